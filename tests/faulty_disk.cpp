// A disk that fails or loses power, for tests: preloaded, it stands between a program and the writes to its files.
// faulty_arm(part, every, error, cut, seed): of the calls that change a file whose path contains part, each every-th
// fails with errno error (every 0: none), and at the cut-th the power goes (cut 0: never): what was written since the
// last sync of its file is undone, but for a part of it chosen by seed, as a disk may have done it in any order; then
// the process ends with status 99.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <string>
#include <vector>

namespace {

struct Change {
  std::string path;
  off_t offset, size_before;
  std::string before, after;  // bytes from offset on
  off_t cut_to;               // -1: a write; else the size that a truncation left
};

std::mutex mutex;
std::vector<Change> unsynced;
std::string part;
long every, cut, calls;
int error;
bool full;  // a write was cut short for want of space: the next call is told so
uint64_t state;

template <class F> F real(const char* name) { return reinterpret_cast<F>(dlsym(RTLD_NEXT, name)); }
ssize_t real_pwrite(int fd, const void* data, size_t n, off_t at) {
  static auto f = real<ssize_t (*)(int, const void*, size_t, off_t)>("pwrite64");
  return f(fd, data, n, at);
}
int real_ftruncate(int fd, off_t size) {
  static auto f = real<int (*)(int, off_t)>("ftruncate64");
  return f(fd, size);
}

uint64_t draw() {  // xorshift64
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return state;
}

std::string path_of(int fd) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path);
  return n < 0 ? std::string() : std::string(path, n);
}

void power_goes() {
  for (size_t i = unsynced.size(); i-- > 0;) {
    const Change& c = unsynced[i];
    int fd = open(c.path.c_str(), O_RDWR);
    if (fd < 0) continue;
    real_pwrite(fd, c.before.data(), c.before.size(), c.offset);
    real_ftruncate(fd, c.size_before);
    close(fd);
  }
  for (const Change& c : unsynced) {
    if (draw() % 2) continue;
    int fd = open(c.path.c_str(), O_RDWR);
    if (fd < 0) continue;
    size_t n = draw() % 4 ? c.after.size() : (draw() % (c.after.size() / 512 + 1)) * 512;  // some writes are torn
    if (c.cut_to >= 0) real_ftruncate(fd, c.cut_to);
    else real_pwrite(fd, c.after.data(), n, c.offset);
    close(fd);
  }
  _exit(99);
}

// Whether this call fails. Counts it, and cuts the power when its time has come.
bool fails(const std::string& path) {
  if (part.empty() || path.find(part) == std::string::npos) return false;
  ++calls;
  if (cut && calls >= cut) power_goes();
  if (!full && !(every && calls % every == 0)) return false;
  errno = error;
  return true;
}

void note(const std::string& path, int fd, const void* data, size_t n, off_t at, off_t cut_to) {
  if (!cut || part.empty() || path.find(part) == std::string::npos) return;
  struct stat st;
  fstat(fd, &st);
  Change c{path, at, st.st_size, "", data ? std::string(static_cast<const char*>(data), n) : "", cut_to};
  size_t n_before = at >= st.st_size ? 0 : (cut_to >= 0 ? st.st_size - at : std::min<off_t>(n, st.st_size - at));
  c.before.resize(n_before);
  if (n_before && pread(fd, &c.before[0], n_before, at) < 0) c.before.clear();
  unsynced.push_back(c);
}

ssize_t do_pwrite(int fd, const void* data, size_t n, off_t at) {
  std::lock_guard<std::mutex> hold(mutex);
  std::string path = part.empty() ? "" : path_of(fd);
  if (fails(path)) {
    full = error == ENOSPC && !full;
    return full ? real_pwrite(fd, data, n / 2, at) : -1;  // a disk that fills up takes what fits
  }
  note(path, fd, data, n, at, -1);
  return real_pwrite(fd, data, n, at);
}

int do_truncate(int fd, off_t size) {
  std::lock_guard<std::mutex> hold(mutex);
  std::string path = part.empty() ? "" : path_of(fd);
  if (fails(path)) return full = false, -1;
  note(path, fd, nullptr, 0, size, size);
  return real_ftruncate(fd, size);
}

int do_sync(int fd, const char* name) {
  std::lock_guard<std::mutex> hold(mutex);
  std::string path = part.empty() ? "" : path_of(fd);
  if (fails(path)) return full = false, -1;
  int result = real<int (*)(int)>(name)(fd);
  std::vector<Change> left;
  for (Change& c : unsynced)
    if (c.path != path) left.push_back(std::move(c));
  unsynced.swap(left);
  return result;
}

}  // namespace

extern "C" {
void faulty_arm(const char* its_part, long its_every, int its_error, long its_cut, unsigned long seed) {
  std::lock_guard<std::mutex> hold(mutex);
  part = its_part, every = its_every, error = its_error, cut = its_cut, calls = 0, full = false, state = seed * 2654435761u + 1;
}
ssize_t pwrite(int fd, const void* data, size_t n, off_t at) { return do_pwrite(fd, data, n, at); }
ssize_t pwrite64(int fd, const void* data, size_t n, off_t at) { return do_pwrite(fd, data, n, at); }
int ftruncate(int fd, off_t size) noexcept { return do_truncate(fd, size); }
int ftruncate64(int fd, off_t size) noexcept { return do_truncate(fd, size); }
int fsync(int fd) { return do_sync(fd, "fsync"); }
int fdatasync(int fd) { return do_sync(fd, "fdatasync"); }
}
