// The Python module libremoe._kernels. Every shape, type and number is checked here, with an error that names the argument;
// nothing below checks again. Arrays cross as typed views without a copy, results go to arrays that the caller owns, and the
// interpreter lock is released while kernels run.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cerrno>
#include <chrono>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>

#include "attention.h"
#include "crc32.h"
#include "dispatch.h"
#include "io.h"
#include "matmul.h"

namespace nb = nanobind;
using namespace libremoe;

namespace {

using Array = nb::ndarray<nb::ro, nb::device::cpu>;
using OutArray = nb::ndarray<nb::device::cpu>;

[[noreturn]] void refuse(const std::string& name, const std::string& what) { throw nb::value_error((name + " " + what).c_str()); }

enum class Type { kF32, kBf16, kU8, kI8, kI64 };

bool is(const nb::dlpack::dtype& dtype, Type type) {
  using nb::dlpack::dtype_code;
  const auto code = dtype.code;
  if (dtype.lanes != 1) return false;
  switch (type) {
    case Type::kF32: return code == uint8_t(dtype_code::Float) && dtype.bits == 32;
    case Type::kBf16: return code == uint8_t(dtype_code::Bfloat) && dtype.bits == 16;
    case Type::kU8: return code == uint8_t(dtype_code::UInt) && dtype.bits == 8;
    case Type::kI8: return code == uint8_t(dtype_code::Int) && dtype.bits == 8;
    case Type::kI64: return code == uint8_t(dtype_code::Int) && dtype.bits == 64;
  }
  return false;
}

const char* name_of(Type type) {
  switch (type) {
    case Type::kF32: return "float32";
    case Type::kBf16: return "bfloat16";
    case Type::kU8: return "uint8";
    case Type::kI8: return "int8";
    case Type::kI64: return "int64";
  }
  return "";
}

template <class A>
std::string shape_of(const A& a) {
  std::string text = "(";
  for (size_t i = 0; i < a.ndim(); i++) text += (i ? ", " : "") + std::to_string(a.shape(i));
  return text + ")";
}

// -1 in `shape`: any size. Rows may be further apart than their length only where `loose_rows` (the last dimension is dense).
template <class A>
void check(const A& a, const char* name, Type type, const std::vector<int64_t>& shape, bool loose_rows = false) {
  if (!is(a.dtype(), type)) refuse(name, std::string("must be ") + name_of(type));
  bool fits = a.ndim() == shape.size();
  std::string wanted = "(";
  for (size_t i = 0; i < shape.size(); i++) {
    fits = fits && (shape[i] < 0 || int64_t(a.shape(i)) == shape[i]);
    wanted += (i ? ", " : "") + (shape[i] < 0 ? std::string("any") : std::to_string(shape[i]));
  }
  if (!fits) refuse(name, "must have shape " + wanted + "), not " + shape_of(a));
  int64_t dense = 1;
  for (size_t i = a.ndim(); i-- > 0;) {
    const bool loose = loose_rows && i == 0 && a.ndim() > 1;
    if (a.shape(i) > 1 && (loose ? a.stride(i) < dense : a.stride(i) != dense)) refuse(name, "must be contiguous");
    dense *= int64_t(a.shape(i));
  }
}

constexpr int64_t kMost = int64_t(1) << 40;  // keeps every product of sizes below 2^63

// A checked weight; holds on to its arrays.
struct PyWeight {
  Weight w{};
  Array data, scales;

  PyWeight(int format, int64_t n_out, int64_t n_in, int64_t group, bool columns, Array data_, Array scales_)
      : data(data_), scales(scales_) {
    static constexpr int64_t kTileBytes[] = {1024, 512, 384, 256};
    if (format < 0 || format >= kFormats) refuse("format", "must be from 0 to 3, not " + std::to_string(format));
    if (n_out < 1 || n_out > kMost) refuse("n_out", "must be positive, not " + std::to_string(n_out));
    if (n_in < 1 || n_in > (1 << 24)) refuse("n_in", "must be from 1 to 2^24, not " + std::to_string(n_in));
    if (group < 32 || group % 32 || group > (1 << 25)) refuse("group", "must be a multiple of 32, not " + std::to_string(group));
    if (columns && format != kInt8) refuse("columns", "is a layout of int8 only");
    const int64_t groups = (n_in + group - 1) / group, tile_rows = (n_out + 15) / 16;
    const bool f32 = is(scales.dtype(), Type::kF32);
    const Type scale_type = f32 ? Type::kF32 : Type::kBf16;
    if (columns) {
      check(data, "data", Type::kI8, {n_in, n_out}, true);
      check(scales, "scales", scale_type, {groups, n_out}, true);
    } else {
      check(data, "data", Type::kU8, {tile_rows, (n_in + 63) / 64, kTileBytes[format]});
      check(scales, "scales", scale_type, {tile_rows, groups, 16});
    }
    w = {static_cast<const uint8_t*>(data.data()), scales.data(), n_in > 1 ? int64_t(data.stride(0)) : n_out,
         groups > 1 ? int64_t(scales.stride(0)) : n_out, n_out, n_in, group, format, f32, columns};
  }
};

struct PyExpert {
  Expert e;
  nb::object gate, up, down;  // kept alive

  PyExpert(nb::object gate_, nb::object up_, nb::object down_) : gate(gate_), up(up_), down(down_) {
    e = {weight(gate, "gate"), weight(up, "up"), weight(down, "down")};
    if (e.up.n_out != e.gate.n_out || e.up.n_in != e.gate.n_in) refuse("up", "must have the shape of gate");
    if (e.down.n_out != e.gate.n_in || e.down.n_in != e.gate.n_out) refuse("down", "must have the transposed shape of gate");
    if (e.up.format != e.gate.format || e.up.columns != e.gate.columns) refuse("up", "must have the format and layout of gate");
  }
  static Weight weight(const nb::object& object, const char* name) {
    if (!nb::isinstance<PyWeight>(object)) throw nb::type_error((std::string(name) + " must be a Weight").c_str());
    return nb::cast<const PyWeight&>(object).w;
  }
};

const float* floats(const Array& a) { return static_cast<const float*>(a.data()); }
float* floats(const OutArray& a) { return static_cast<float*>(a.data()); }

void py_linear(const PyWeight& w, Array x, OutArray out) {
  check(x, "x", Type::kF32, {-1, w.w.n_in});
  check(out, "out", Type::kF32, {int64_t(x.shape(0)), w.w.n_out});
  const int64_t n_rows = int64_t(x.shape(0));
  nb::gil_scoped_release release;
  linear(w.w, floats(x), n_rows, floats(out));
}

void py_linear_dense(Array w, Array x, OutArray out) {
  const bool bf16 = is(w.dtype(), Type::kBf16);
  check(w, "w", bf16 ? Type::kBf16 : Type::kF32, {-1, -1}, true);
  const int64_t n_out = int64_t(w.shape(0)), n_in = int64_t(w.shape(1)), stride = n_out > 1 ? int64_t(w.stride(0)) : n_in;
  check(x, "x", Type::kF32, {-1, n_in});
  const int64_t n_rows = int64_t(x.shape(0));
  check(out, "out", Type::kF32, {n_rows, n_out});
  nb::gil_scoped_release release;
  linear_dense(w.data(), bf16, stride, n_out, n_in, floats(x), n_rows, floats(out));
}

void py_moe(Array x, Array ids, Array gates, nb::list experts, bool gelu, OutArray out) {
  check(x, "x", Type::kF32, {-1, -1});
  const int64_t n_rows = int64_t(x.shape(0)), dim = int64_t(x.shape(1));
  check(ids, "ids", Type::kI64, {n_rows, -1});
  const int64_t n_active = int64_t(ids.shape(1));
  check(gates, "gates", Type::kF32, {n_rows, n_active});
  check(out, "out", Type::kF32, {n_rows, dim});
  if (!n_rows || !n_active) refuse("ids", "must not be empty");
  std::vector<const Expert*> pointers;
  const Expert* first = nullptr;
  const auto same = [](const Weight& a, const Weight& b) { return a.format == b.format && a.columns == b.columns; };
  for (nb::handle h : experts) {
    pointers.push_back(nullptr);
    if (h.is_none()) continue;
    if (!nb::isinstance<PyExpert>(h)) throw nb::type_error("experts must hold Expert or None");
    const Expert& e = nb::cast<const PyExpert&>(h).e;
    if (e.gate.n_in != dim) refuse("experts", "must take x's " + std::to_string(dim) + " inputs");
    if (!first) first = &e;
    if (e.gate.n_out != first->gate.n_out) refuse("experts", "must all have one hidden_dim");
    if (!same(e.gate, first->gate) || !same(e.down, first->down)) refuse("experts", "must all have the same formats and layouts");
    pointers.back() = &e;
  }
  const int64_t* id = static_cast<const int64_t*>(ids.data());
  for (int64_t i = 0; i < n_rows * n_active; i++)
    if (id[i] < 0 || id[i] >= int64_t(pointers.size()) || !pointers[size_t(id[i])])
      refuse("ids", "names expert " + std::to_string(id[i]) + ", which experts does not hold");
  nb::gil_scoped_release release;
  moe(floats(x), n_rows, dim, id, floats(gates), n_active, pointers, gelu, floats(out));
}

std::vector<int64_t> slots_of(const std::vector<int64_t>& starts, const int64_t* positions,
                              const std::vector<std::vector<int64_t>>& tables) {
  std::vector<int64_t> slots;
  for (size_t b = 0; b + 1 < starts.size(); b++)
    for (int64_t n = starts[b]; n < starts[b + 1]; n++) {
      if (positions[n] / 64 >= int64_t(tables[b].size())) refuse("positions", "reaches past its sequence's block table");
      slots.push_back(tables[b][size_t(positions[n] / 64)] * 64 + positions[n] % 64);
    }
  return slots;
}

// With tables: k_new and v_new are written to their slots of k_cache and v_cache first. Without: they are all the keys.
void py_attention(Array q, Array k_new, Array v_new, std::vector<int64_t> starts, Array positions,
                  std::vector<int64_t> context_lens, nb::object tables_or_none, nb::object k_cache_or_none,
                  nb::object v_cache_or_none, double scale, double softcap, int64_t window, OutArray out) {
  check(q, "q", Type::kF32, {-1, -1, -1});
  const int64_t n = int64_t(q.shape(0)), n_heads = int64_t(q.shape(1)), head_dim = int64_t(q.shape(2));
  check(k_new, "k", Type::kF32, {n, -1, head_dim});
  const int64_t n_kv_heads = int64_t(k_new.shape(1));
  check(v_new, "v", Type::kF32, {n, n_kv_heads, head_dim});
  check(positions, "positions", Type::kI64, {n});
  check(out, "out", Type::kF32, {n, n_heads * head_dim});
  if (n_kv_heads < 1 || n_heads < 1 || n_heads % n_kv_heads || n_heads / n_kv_heads > 1024 || head_dim < 1)
    refuse("q", "must have heads in a whole multiple (at most 1024) of the " + std::to_string(n_kv_heads) + " kv heads");
  if (starts.empty() || starts.front() != 0 || starts.back() != n) refuse("starts", "must go from 0 to the number of tokens");
  const size_t n_sequences = starts.size() - 1;
  for (size_t b = 0; b < n_sequences; b++)
    if (starts[b] > starts[b + 1]) refuse("starts", "must not descend");
  if (context_lens.size() != n_sequences) refuse("context_lens", "must have one number a sequence");
  if (window < 0) refuse("window", "must not be negative");
  const int64_t* position = static_cast<const int64_t*>(positions.data());
  for (size_t b = 0; b < n_sequences; b++) {
    if (context_lens[b] < 0 || context_lens[b] > kMost) refuse("context_lens", "must not be negative");
    for (int64_t i = starts[b]; i < starts[b + 1]; i++)
      if (position[i] < 0 || position[i] >= context_lens[b]) refuse("positions", "must lie in the sequence's context");
  }
  AttentionArgs args{floats(q), k_new.data(), v_new.data(), false, n_heads, n_kv_heads, head_dim, starts, position,
                     context_lens, nullptr, float(scale), float(softcap), window};
  if (tables_or_none.is_none()) {
    for (size_t b = 0; b < n_sequences; b++)
      if (context_lens[b] != starts[b + 1] - starts[b]) refuse("context_lens", "without a cache must be the sequences' lengths");
    nb::gil_scoped_release release;
    attention(args, floats(out));
    return;
  }
  const auto tables = nb::cast<std::vector<std::vector<int64_t>>>(tables_or_none);
  const auto k_cache = nb::cast<OutArray>(k_cache_or_none), v_cache = nb::cast<OutArray>(v_cache_or_none);
  const bool bf16 = is(k_cache.dtype(), Type::kBf16);
  check(k_cache, "k_cache", bf16 ? Type::kBf16 : Type::kF32, {-1, 64, n_kv_heads, head_dim});
  const int64_t n_blocks = int64_t(k_cache.shape(0));
  check(v_cache, "v_cache", bf16 ? Type::kBf16 : Type::kF32, {n_blocks, 64, n_kv_heads, head_dim});
  if (tables.size() != n_sequences) refuse("block_tables", "must have one table a sequence");
  for (size_t b = 0; b < n_sequences; b++) {
    if (int64_t(tables[b].size()) < (context_lens[b] + 63) / 64) refuse("block_tables", "must cover the context");
    for (int64_t block : tables[b])
      if (block < 0 || block >= n_blocks) refuse("block_tables", "names block " + std::to_string(block) + ", which is not in the cache");
  }
  const std::vector<int64_t> slots = slots_of(starts, position, tables);
  args.tables = &tables, args.k = k_cache.data(), args.v = v_cache.data(), args.kv_is_bf16 = bf16;
  nb::gil_scoped_release release;
  write_cache(floats(k_new), n, n_kv_heads * head_dim, slots, k_cache.data(), bf16);
  write_cache(floats(v_new), n, n_kv_heads * head_dim, slots, v_cache.data(), bf16);
  attention(args, floats(out));
}

void py_quantize(Array weight, int format, int64_t group, double offset, const std::vector<double>& factors, OutArray data,
                 OutArray scales) {
  static constexpr int64_t kTileBytes[] = {1024, 512, 384, 256};
  check(weight, "weight", Type::kF32, {-1, -1});
  const int64_t n_out = int64_t(weight.shape(0)), n_in = int64_t(weight.shape(1)), tile_rows = (n_out + 15) / 16;
  if (n_out < 1 || n_in < 1) refuse("weight", "must not be empty");
  if (format < 0 || format >= kFormats) refuse("format", "must be from 0 to 3, not " + std::to_string(format));
  if (group != 32 && group != 64 && group != 128) refuse("group", "must be 32, 64 or 128, not " + std::to_string(group));
  const int levels = 1 << (kTileBytes[format] / 128);
  if (!(offset > 0 && offset < levels)) refuse("offset", "must be a code of the format");
  check(data, "data", Type::kU8, {tile_rows, (n_in + 63) / 64, kTileBytes[format]});
  check(scales, "scales", Type::kBf16, {tile_rows, (n_in + group - 1) / group, 16});
  const std::vector<float> rounded(factors.begin(), factors.end());
  const CodeRange range{float(-offset), float(levels - 1 - offset), float(offset - double(int64_t(offset))), rounded.data(),
                        int64_t(rounded.size())};
  nb::gil_scoped_release release;
  quantize(floats(weight), n_out, n_in, format, group, range, static_cast<uint8_t*>(data.data()),
           static_cast<uint16_t*>(scales.data()));
}

void py_rms_norm(Array x, Array weight, double eps, OutArray out) {
  check(x, "x", Type::kF32, {-1, -1});
  const int64_t n = int64_t(x.shape(0)), dim = int64_t(x.shape(1));
  check(weight, "weight", Type::kF32, {dim});
  check(out, "out", Type::kF32, {n, dim});
  nb::gil_scoped_release release;
  for (int64_t i = 0; i < n; i++) kernels().rms_norm(floats(x) + i * dim, floats(weight), float(eps), dim, floats(out) + i * dim);
}

void py_rope(Array x, Array positions, Array cos, Array sin, OutArray out) {
  check(x, "x", Type::kF32, {-1, -1, -1});
  const int64_t n = int64_t(x.shape(0)), heads = int64_t(x.shape(1)), head_dim = int64_t(x.shape(2)), half = head_dim / 2;
  check(positions, "positions", Type::kI64, {n});
  check(cos, "cos", Type::kF32, {-1, half});
  check(sin, "sin", Type::kF32, {int64_t(cos.shape(0)), half});
  check(out, "out", Type::kF32, {n, heads, head_dim});
  if (head_dim % 2) refuse("x", "must have an even head_dim");
  const int64_t* position = static_cast<const int64_t*>(positions.data());
  for (int64_t i = 0; i < n; i++)
    if (position[i] < 0 || position[i] >= int64_t(cos.shape(0))) refuse("positions", "must lie in the table of cos");
  nb::gil_scoped_release release;
  for (int64_t i = 0; i < n; i++)
    for (int64_t h = 0; h < heads; h++) {
      const int64_t at = (i * heads + h) * head_dim;
      kernels().rope(floats(x) + at, floats(cos) + position[i] * half, floats(sin) + position[i] * half, half, floats(out) + at);
    }
}

void py_route(Array logits, bool renormalise, OutArray ids, OutArray gates) {
  check(logits, "logits", Type::kF32, {-1, -1});
  const int64_t n = int64_t(logits.shape(0)), n_experts = int64_t(logits.shape(1));
  check(ids, "ids", Type::kI64, {n, -1});
  const int64_t n_active = int64_t(ids.shape(1));
  check(gates, "gates", Type::kF32, {n, n_active});
  if (n_active < 1 || n_active > n_experts) refuse("ids", "must have from 1 to n_experts choices");
  std::vector<float> work(size_t(n_experts) + 16);
  for (int64_t i = 0; i < n; i++)
    kernels().route(floats(logits) + i * n_experts, n_experts, n_active, renormalise, work.data(),
                    static_cast<int64_t*>(ids.data()) + i * n_active, floats(gates) + i * n_active);
}

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

// Seconds and bytes of reading an array once with all threads, four streams each.
double measure_read(Array data) {
  check(data, "data", Type::kU8, {-1});
  const auto threads = pool();
  const int64_t share = int64_t(data.shape(0)) / threads->size() / 256 * 256;
  if (!share) refuse("data", "is too short");
  std::vector<uint64_t> sums(size_t(threads->size()) * 8);
  nb::gil_scoped_release release;
  const auto start = std::chrono::steady_clock::now();
  threads->parallel_for(threads->size(), [&](int64_t i, Memory&) {
    sums[size_t(i) * 8] = kernels().read(static_cast<const uint8_t*>(data.data()) + i * share, share);
  });
  return double(share) * threads->size() / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Operations (two a multiply-add) a second of int8 products with operands in registers, all threads.
double measure_peak(int64_t iterations) {
  if (iterations < 1) refuse("iterations", "must be positive");
  const auto threads = pool();
  nb::gil_scoped_release release;
  const auto start = std::chrono::steady_clock::now();
  double done = 0;
  std::vector<double> each(size_t(threads->size()) * 8);
  threads->parallel_for(threads->size(), [&](int64_t i, Memory&) { each[size_t(i) * 8] = kernels().peak(iterations); });
  for (double d : each) done += d;
  return 2 * done / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

NB_MODULE(_kernels, m) {
  m.doc() = "libremoe's compiled kernels for processors; libremoe.ops.cpu is the way in.";
  nb::class_<PyWeight>(m, "Weight")
      .def(nb::init<int, int64_t, int64_t, int64_t, bool, Array, Array>(), nb::arg("format"), nb::arg("n_out"), nb::arg("n_in"),
           nb::arg("group"), nb::arg("columns"), nb::arg("data"), nb::arg("scales"));
  nb::class_<PyExpert>(m, "Expert")
      .def(nb::init<nb::object, nb::object, nb::object>(), nb::arg("gate"), nb::arg("up"), nb::arg("down"));
  nb::class_<PyRing>(m, "Ring")
      .def(nb::init<int64_t>(), nb::arg("depth"))
      .def("read", &PyRing::read, nb::arg("fd"), nb::arg("to"), nb::arg("offset"))
      .def("wait", &PyRing::wait);
  m.def("linear", &py_linear, nb::arg("weight"), nb::arg("x"), nb::arg("out"));
  m.def("linear_dense", &py_linear_dense, nb::arg("w"), nb::arg("x"), nb::arg("out"));
  m.def("moe", &py_moe, nb::arg("x"), nb::arg("ids"), nb::arg("gates"), nb::arg("experts"), nb::arg("gelu"), nb::arg("out"));
  m.def("attention", &py_attention, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("starts"), nb::arg("positions"),
        nb::arg("context_lens"), nb::arg("block_tables").none(), nb::arg("k_cache").none(), nb::arg("v_cache").none(),
        nb::arg("scale"), nb::arg("softcap"), nb::arg("window"), nb::arg("out"));
  m.def("quantize", &py_quantize, nb::arg("weight"), nb::arg("format"), nb::arg("group"), nb::arg("offset"), nb::arg("factors"),
        nb::arg("data"), nb::arg("scales"));
  m.def("rms_norm", &py_rms_norm, nb::arg("x"), nb::arg("weight"), nb::arg("eps"), nb::arg("out"));
  m.def("rope", &py_rope, nb::arg("x"), nb::arg("positions"), nb::arg("cos"), nb::arg("sin"), nb::arg("out"));
  m.def("route", &py_route, nb::arg("logits"), nb::arg("renormalise"), nb::arg("ids"), nb::arg("gates"));
  m.def("block_crc32", &block_crc32, nb::arg("data"), nb::arg("block"));
  m.def("measure_read", &measure_read, nb::arg("data"));
  m.def("measure_peak", &measure_peak, nb::arg("iterations"));
  m.def("isa", [] { return std::string(kernels().name); });
  m.def("available_isas", &available_isas);
  m.def("use_isa", &use_isa, nb::arg("name"));
  m.def("threads", [] { return pool()->size(); });
  m.def("set_threads", &set_threads, nb::arg("n_threads"));
}
