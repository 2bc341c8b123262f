// The parallel loops over kernels: what bind.cpp calls after it has checked every shape.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "types.h"

namespace libremoe {

// Rows of int8 activations with their memory.
struct Activations {
  std::unique_ptr<int8_t[]> q;
  std::unique_ptr<float[]> scale;
  std::unique_ptr<int32_t[]> sum;
  Quantised view;

  Activations(int64_t rows, int64_t n_in);
};

// Quantises x (n_rows, n_in); row i of the result is row `source[i]` of x, or row i without source.
Activations quantise(const float* x, int64_t n_rows, int64_t n_in, const int64_t* source);

// y (n_rows, n_out) = x (n_rows, n_in) @ W.T
void linear(const Weight& w, const float* x, int64_t n_rows, float* y);

// The same for a plain weight (n_out, n_in), float32 or bfloat16, row stride in elements.
void linear_dense(const void* w, bool is_bf16, int64_t w_stride, int64_t n_out, int64_t n_in, const float* x, int64_t n_rows,
                  float* y);

int64_t strip_width(const Weight& w, int64_t n_rows);

struct Expert {
  Weight gate, up, down;
};

// y (n_rows, dim) = sum over a of gates[n, a] * experts[ids[n, a]](x[n]), in the order of a. Only experts in ids are read;
// they must not be null.
void moe(const float* x, int64_t n_rows, int64_t dim, const int64_t* ids, const float* gates, int64_t n_active,
         const std::vector<const Expert*>& experts, bool gelu, float* y);

}  // namespace libremoe
