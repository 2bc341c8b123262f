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

  Activations(int64_t rows, int64_t n_in, int parts);
};

// Quantises x (n_rows, n_in); row i of the result is row `source[i]` of x, or row i without source.
Activations quantise(const float* x, int64_t n_rows, int64_t n_in, int parts, const int64_t* source);

// Rows of int8 activations that a token has with this weight; types.h says why.
inline int parts_of(const Weight& w) { return w.format == kInt8 ? kernels().int8_parts : 1; }

// y (n_rows, n_out) = x (n_rows, n_in) @ W.T
void linear(const Weight& w, const float* x, int64_t n_rows, float* y);

// The same for a plain weight (n_out, n_in), float32 or bfloat16, row stride in elements.
void linear_dense(const void* w, bool is_bf16, int64_t w_stride, int64_t n_out, int64_t n_in, const float* x, int64_t n_rows,
                  float* y);

// Outputs of a work item; n_rows counts parts.
int64_t strip_width(const Weight& w, int64_t n_rows);

// Weight (n_out, n_in) into the tiles layout, formats and all as in libremoe/quant.py's quantize(): group 32, 64 or 128,
// data (ceil(n_out / 16), ceil(n_in / 64), tile bytes), scales (ceil(n_out / 16), ceil(n_in / group), 16) bfloat16.
void quantize(const float* weight, int64_t n_out, int64_t n_in, int format, int64_t group, const CodeRange& range, uint8_t* data,
              uint16_t* scales);

struct Expert {
  Weight gate, up, down;
};

// y (n_rows, dim) = sum over a of gates[n, a] * experts[ids[n, a]](x[n]), in the order of a. Only experts in ids are read;
// they must not be null, and have the same formats.
void moe(const float* x, int64_t n_rows, int64_t dim, const int64_t* ids, const float* gates, int64_t n_active,
         const std::vector<const Expert*>& experts, bool gelu, float* y);

}  // namespace libremoe
