// Arguments from Python: typed views without a copy, checked with an error that names the argument. Each bind_*.cpp adds its part
// to the module of bind.cpp.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <string>
#include <vector>

namespace libremoe {

namespace nb = nanobind;

using Array = nb::ndarray<nb::ro, nb::device::cpu>;
using OutArray = nb::ndarray<nb::device::cpu>;

[[noreturn]] inline void refuse(const std::string& name, const std::string& what) { throw nb::value_error((name + " " + what).c_str()); }

enum class Type { kF32, kBf16, kU8, kI8, kI64 };

inline bool is(const nb::dlpack::dtype& dtype, Type type) {
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

inline const char* name_of(Type type) {
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

inline const float* floats(const Array& a) { return static_cast<const float*>(a.data()); }
inline float* floats(const OutArray& a) { return static_cast<float*>(a.data()); }

void bind_attention(nb::module_& m);
void bind_io(nb::module_& m);

}  // namespace libremoe
