// Checksums and direct reads, as Python calls them.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <cerrno>
#include <memory>
#include <unordered_map>
#include <utility>

#include "bind.h"
#include "crc32.h"
#include "io.h"

namespace libremoe {

namespace {

// CRC-32 of each `block` bytes, the last one perhaps of fewer.
std::vector<uint32_t> block_crc32(Array data, int64_t block) {
  check(data, "data", Type::kU8, {-1});
  if (block < 1) refuse("block", "must be positive");
  const int64_t n = int64_t(data.shape(0));
  const uint8_t* bytes = static_cast<const uint8_t*>(data.data());
  std::vector<uint32_t> found;
  nb::gil_scoped_release release;
  for (int64_t at = 0; at < n; at += block) found.push_back(crc32(0, bytes + at, size_t(n - at < block ? n - at : block)));
  return found;
}

// A ring that holds on to the arrays that are being read into, so that a mistake in Python cannot overwrite freed memory.
class PyRing {
 public:
  explicit PyRing(int64_t depth) {
    if (depth < 1 || depth > 4096) refuse("depth", "must be from 1 to 4096, not " + std::to_string(depth));
    told([&] { ring_ = std::make_unique<Ring>(unsigned(depth)); });
  }

  uint64_t read(int fd, OutArray to, int64_t offset) {
    check(to, "to", Type::kU8, {-1});
    const int64_t n = int64_t(to.shape(0));
    if (n < 1 || n > kMostBytes) refuse("to", "must have from 1 to 2^30 bytes");
    if (offset < 0) refuse("offset", "must not be negative");
    const uint64_t tag = next_++;
    told([&] {
      nb::gil_scoped_release release;  // pages that were never touched are made here
      ring_->read(fd, to.data(), unsigned(n), offset, tag);
    });
    held_.emplace(tag, std::move(to));
    return tag;
  }

  std::vector<std::pair<uint64_t, int64_t>> wait() {
    std::vector<Ring::Done> done;
    told([&] {
      nb::gil_scoped_release release;
      done = ring_->wait();
    });
    std::vector<std::pair<uint64_t, int64_t>> found;
    for (const Ring::Done& d : done) found.emplace_back(d.tag, d.result), held_.erase(d.tag);
    return found;
  }

 private:
  static constexpr int64_t kMostBytes = int64_t(1) << 30;

  template <class Do>
  static void told(const Do& act) {
    try {
      act();
    } catch (const std::system_error& error) {
      errno = error.code().value();
      PyErr_SetFromErrno(PyExc_OSError);
      throw nb::python_error();
    }
  }

  std::unordered_map<uint64_t, OutArray> held_;  // before ring_, which waits for its reads when it ends
  std::unique_ptr<Ring> ring_;
  uint64_t next_ = 0;
};

}  // namespace

void bind_io(nb::module_& m) {
  nb::class_<PyRing>(m, "Ring")
      .def(nb::init<int64_t>(), nb::arg("depth"))
      .def("read", &PyRing::read, nb::arg("fd"), nb::arg("to"), nb::arg("offset"))
      .def("wait", &PyRing::wait);
  m.def("block_crc32", &block_crc32, nb::arg("data"), nb::arg("block"));
}

}  // namespace libremoe
