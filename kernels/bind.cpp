// The Python module libremoe._kernels. Every shape, type and number is checked here, with an error that names the argument;
// nothing below checks again. Arrays cross as typed views without a copy, results go to arrays that the caller owns, and the
// interpreter lock is released while kernels run.
#include "bind.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>

#include "dispatch.h"
#include "matmul.h"

using namespace libremoe;

namespace {

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
  m.def("linear", &py_linear, nb::arg("weight"), nb::arg("x"), nb::arg("out"));
  m.def("linear_dense", &py_linear_dense, nb::arg("w"), nb::arg("x"), nb::arg("out"));
  m.def("moe", &py_moe, nb::arg("x"), nb::arg("ids"), nb::arg("gates"), nb::arg("experts"), nb::arg("gelu"), nb::arg("out"));
  m.def("quantize", &py_quantize, nb::arg("weight"), nb::arg("format"), nb::arg("group"), nb::arg("offset"), nb::arg("factors"),
        nb::arg("data"), nb::arg("scales"));
  m.def("rms_norm", &py_rms_norm, nb::arg("x"), nb::arg("weight"), nb::arg("eps"), nb::arg("out"));
  m.def("rope", &py_rope, nb::arg("x"), nb::arg("positions"), nb::arg("cos"), nb::arg("sin"), nb::arg("out"));
  m.def("route", &py_route, nb::arg("logits"), nb::arg("renormalise"), nb::arg("ids"), nb::arg("gates"));
  bind_attention(m);
  bind_io(m);
  m.def("measure_read", &measure_read, nb::arg("data"));
  m.def("measure_peak", &measure_peak, nb::arg("iterations"));
  m.def("isa", [] { return std::string(kernels().name); });
  m.def("available_isas", &available_isas);
  m.def("use_isa", &use_isa, nb::arg("name"));
  m.def("threads", [] { return pool()->size(); });
  m.def("set_threads", &set_threads, nb::arg("n_threads"));
}
