// Many reads at once by io_uring, through raw system calls: no library, and no thread a read. Linux 5.6 and later, where neither
// the administrator nor a container forbids it; elsewhere Ring's constructor says why not, and libremoe/direct_read.py uses threads.
#pragma once
#include <cstddef>
#include <cstdint>
#include <system_error>
#include <vector>

namespace libremoe {

// One thread at a time. What is read into must stay until wait() has told its tag.
class Ring {
 public:
  struct Done {
    uint64_t tag;
    int64_t result;  // bytes read, or the negative of an errno
  };

  explicit Ring(unsigned depth);  // throws std::system_error
  ~Ring();                        // waits for what is under way
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  unsigned depth() const { return depth_; }
  unsigned under_way() const { return under_way_; }

  // Begin to read n bytes of a file at offset. At most depth() at a time: throws std::system_error (EBUSY) beyond.
  void read(int fd, void* to, unsigned n, int64_t offset, uint64_t tag);

  // What has ended; waits for one where nothing has. Empty only where nothing is under way.
  std::vector<Done> wait();

 private:
  void enter(unsigned to_submit, unsigned at_least);
  void release();

  unsigned depth_ = 0, under_way_ = 0, unsubmitted_ = 0;
  int fd_ = -1;
  void* rings_ = nullptr;  // both, mapped at once
  size_t rings_bytes_ = 0;
  void* entries_ = nullptr;  // of the submission queue
  size_t entries_bytes_ = 0;
  unsigned *sq_tail_ = nullptr, *sq_mask_ = nullptr, *sq_array_ = nullptr;
  unsigned *cq_head_ = nullptr, *cq_tail_ = nullptr, *cq_mask_ = nullptr;
  void* cqes_ = nullptr;
};

}  // namespace libremoe
