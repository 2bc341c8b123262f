// The interface of the kernel: io_uring_setup(2), io_uring_enter(2), and J. Axboe, "Efficient IO with io_uring", 2019, for the
// order in which heads and tails must be read and written.
#include "io.h"

#include <cerrno>

#if defined(__linux__) && __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#define LIBREMOE_HAS_RING 1
#endif

namespace libremoe {

namespace {

[[noreturn]] void fail(int code, const char* what) { throw std::system_error(code, std::generic_category(), what); }

}  // namespace

#if defined(LIBREMOE_HAS_RING)

Ring::Ring(unsigned depth) : depth_(depth) {
  io_uring_params params{};
  fd_ = int(syscall(SYS_io_uring_setup, depth, &params));
  if (fd_ < 0) fail(errno, "io_uring_setup");
  // The reading of an offset without a vector came with 5.6, the single mapping before it.
  constexpr unsigned kNeeded = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_RW_CUR_POS;
  if ((params.features & kNeeded) != kNeeded) {
    close(fd_);
    fail(ENOSYS, "io_uring of this kernel");
  }
  const size_t sq = params.sq_off.array + params.sq_entries * sizeof(unsigned);
  const size_t cq = params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe);
  rings_bytes_ = sq > cq ? sq : cq;
  entries_bytes_ = params.sq_entries * sizeof(io_uring_sqe);
  const auto map = [&](size_t bytes, off_t offset) {
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd_, offset);
    if (at == MAP_FAILED) {
      const int code = errno;
      release();
      fail(code, "mmap of io_uring");
    }
    return at;
  };
  rings_ = map(rings_bytes_, off_t(IORING_OFF_SQ_RING));
  entries_ = map(entries_bytes_, off_t(IORING_OFF_SQES));
  const auto at = [&](unsigned offset) { return reinterpret_cast<unsigned*>(static_cast<char*>(rings_) + offset); };
  sq_tail_ = at(params.sq_off.tail), sq_mask_ = at(params.sq_off.ring_mask), sq_array_ = at(params.sq_off.array);
  cq_head_ = at(params.cq_off.head), cq_tail_ = at(params.cq_off.tail), cq_mask_ = at(params.cq_off.ring_mask);
  cqes_ = at(params.cq_off.cqes);
}

Ring::~Ring() {
  try {
    while (under_way_) wait();
  } catch (const std::system_error&) {  // the kernel ends the reads itself when the descriptor is closed
  }
  release();
}

void Ring::release() {
  if (entries_) munmap(entries_, entries_bytes_);
  if (rings_) munmap(rings_, rings_bytes_);
  if (fd_ >= 0) close(fd_);
}

void Ring::read(int fd, void* to, unsigned n, int64_t offset, uint64_t tag) {
  if (under_way_ >= depth_) fail(EBUSY, "io_uring is full");
  const unsigned tail = *sq_tail_, index = tail & *sq_mask_;  // the kernel only reads the tail
  auto& entry = static_cast<io_uring_sqe*>(entries_)[index];
  std::memset(&entry, 0, sizeof entry);
  entry.opcode = IORING_OP_READ;
  entry.fd = fd;
  entry.addr = reinterpret_cast<uint64_t>(to);
  entry.len = n;
  entry.off = uint64_t(offset);
  entry.user_data = tag;
  sq_array_[index] = index;
  __atomic_store_n(sq_tail_, tail + 1, __ATOMIC_RELEASE);
  under_way_++, unsubmitted_++;
  enter(unsubmitted_, 0);  // at once: the disk should not wait for the next read to be thought of
}

std::vector<Ring::Done> Ring::wait() {
  std::vector<Done> found;
  if (!under_way_) return found;
  unsigned head = *cq_head_;
  if (head == __atomic_load_n(cq_tail_, __ATOMIC_ACQUIRE) || unsubmitted_) enter(unsubmitted_, 1);
  for (const unsigned tail = __atomic_load_n(cq_tail_, __ATOMIC_ACQUIRE); head != tail; head++) {
    const auto& done = static_cast<const io_uring_cqe*>(cqes_)[head & *cq_mask_];
    found.push_back({done.user_data, done.res});
  }
  __atomic_store_n(cq_head_, head, __ATOMIC_RELEASE);
  under_way_ -= unsigned(found.size());
  return found;
}

// Hands over what is in the submission queue and waits for at_least results. What the kernel has no room for now stays queued.
void Ring::enter(unsigned to_submit, unsigned at_least) {
  for (;;) {
    const unsigned flags = at_least ? IORING_ENTER_GETEVENTS : 0;
    const long n = syscall(SYS_io_uring_enter, fd_, to_submit, at_least, flags, nullptr, 0);
    if (n >= 0) {
      unsubmitted_ -= unsigned(n);
      to_submit -= unsigned(n);
      if (!at_least || __atomic_load_n(cq_tail_, __ATOMIC_ACQUIRE) != *cq_head_) return;
    } else if (errno == EAGAIN || errno == EBUSY) {
      if (!at_least || __atomic_load_n(cq_tail_, __ATOMIC_ACQUIRE) != *cq_head_) return;  // the next wait() hands it over
      usleep(100);
    } else if (errno != EINTR) {
      fail(errno, "io_uring_enter");
    }
  }
}

#else

Ring::Ring(unsigned) { fail(ENOSYS, "io_uring"); }
Ring::~Ring() = default;
void Ring::read(int, void*, unsigned, int64_t, uint64_t) { fail(ENOSYS, "io_uring"); }
std::vector<Ring::Done> Ring::wait() { return {}; }
void Ring::enter(unsigned, unsigned) {}
void Ring::release() {}

#endif

}  // namespace libremoe
