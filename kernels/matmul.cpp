// linear: quantise each row of x once, then strips of outputs in parallel, each computed whole by one thread.
#include "matmul.h"

#include <algorithm>
#include <cstring>

#include "dispatch.h"

namespace libremoe {

namespace {
constexpr int64_t kQuantiseBlocks = 64;  // of 64 inputs: one work item

// linear_dense() with tiles of bfloat16.
void linear_bf16(const uint16_t* w, int64_t w_stride, int64_t n_out, int64_t n_in, const float* x, int64_t n_rows, float* y) {
  const auto& k = kernels();
  const auto threads = pool();
  const int64_t blocks = (n_in + 31) / 32;
  const std::unique_ptr<uint16_t[]> split(new uint16_t[size_t(n_rows * blocks * 96)]);
  SplitRows rows{split.get(), n_rows, blocks, 1};
  std::vector<int> parts(static_cast<size_t>(n_rows));
  threads->parallel_for(n_rows, [&](int64_t n, Memory&) { parts[size_t(n)] = k.split_bf16(x + n * n_in, n_in, rows, n); });
  rows.parts = *std::max_element(parts.begin(), parts.end());

  // Few tokens: strips of two tile rows, long runs of each. Many: wide ones, for which a chunk of activations is read once.
  const int64_t share = n_out / (4 * threads->size()) / 32 * 32;
  const int64_t width = n_rows <= 16 ? 32 : std::max<int64_t>(32, std::min(kBf16Strip, share));
  threads->parallel_for((n_out + width - 1) / width, [&](int64_t strip, Memory& memory) {
    const int64_t out0 = strip * width, valid = std::min(width, n_out - out0), tile_rows = (valid + 31) / 32 * 2;
    float* sums = memory.floats(size_t((n_rows + 15) / 16 * tile_rows * 256));
    uint16_t* panel = reinterpret_cast<uint16_t*>(memory.scratch().panel);
    k.dense_bf16({w + out0 * w_stride, w_stride, valid, n_in, rows, panel, sums});
    for (int64_t n = 0; n < n_rows; n++)
      for (int64_t o = 0; o < valid; o++) y[n * n_out + out0 + o] = sums[(n / 16 * tile_rows + o / 16) * 256 + o % 16 * 16 + n % 16];
  });
}

constexpr int64_t kDenseRows = 16, kDenseTokens = 128;  // outputs and tokens of a plain weight in one work item
}  // namespace

Activations::Activations(int64_t rows, int64_t n_in, int parts) {
  rows *= parts;
  const int64_t blocks = (n_in + 63) / 64, scales = (blocks + kScaleBlocks - 1) / kScaleBlocks;
  q.reset(new int8_t[size_t(rows * blocks * 64)]);
  scale.reset(new float[size_t(rows * scales)]);
  sum.reset(new int32_t[size_t(rows * blocks * 2)]);
  view = {q.get(), scale.get(), sum.get(), blocks, scales, parts};
}

Activations quantise(const float* x, int64_t n_rows, int64_t n_in, int parts, const int64_t* source) {
  Activations a(n_rows, n_in, parts);
  const int64_t blocks = a.view.blocks, pieces = (blocks + kQuantiseBlocks - 1) / kQuantiseBlocks;
  const auto& k = kernels();
  pool()->parallel_for(n_rows * pieces, [&](int64_t item, Memory&) {
    const int64_t row = item / pieces, first = item % pieces * kQuantiseBlocks;
    const float* from = x + (source ? source[row] : row) * n_in;
    k.quantise(from, n_in, first, std::min(first + kQuantiseBlocks, blocks), a.view, row);
  });
  return a;
}

int64_t strip_width(const Weight& w, int64_t n_rows) {
  if (!w.columns || n_rows > kFewTokens) return kStrip;
  const int64_t share = w.n_out / (4 * pool()->size()) / kScaleInputs * kScaleInputs;  // four items a thread: all end together
  return std::max(kScaleInputs, std::min(kColumnsStrip, share));
}

void linear(const Weight& w, const float* x, int64_t n_rows, float* y) {
  const int parts = parts_of(w);
  const Activations a = quantise(x, n_rows, w.n_in, parts, nullptr);
  const int64_t width = strip_width(w, n_rows * parts), strips = (w.n_out + width - 1) / width;
  const int64_t chunk = kTokenChunk / parts;
  const auto& k = kernels();
  pool()->parallel_for(strips, [&](int64_t strip, Memory& memory) {
    Scratch& scratch = memory.scratch();
    const int64_t out0 = strip * width, valid = std::min(width, w.n_out - out0);
    for (int64_t n = 0; n < n_rows; n += chunk) {
      const int64_t end = std::min(n + chunk, n_rows);
      k.product(w, a.view, n, end, out0, width, scratch, scratch.out);
      for (int64_t i = n; i < end; i++)
        std::memcpy(y + i * w.n_out + out0, scratch.out + (i - n) * width, sizeof(float) * size_t(valid));
    }
  });
}

void linear_dense(const void* w, bool is_bf16, int64_t w_stride, int64_t n_out, int64_t n_in, const float* x, int64_t n_rows,
                  float* y) {
  const auto& k = kernels();
  if (is_bf16 && k.dense_bf16) {
    for (int64_t n = 0; n < n_rows; n += kTokenChunk)
      linear_bf16(static_cast<const uint16_t*>(w), w_stride, n_out, n_in, x + n * n_in, std::min(kTokenChunk, n_rows - n), y + n * n_out);
    return;
  }
  const int64_t pieces = (n_out + kDenseRows - 1) / kDenseRows;
  pool()->parallel_for(pieces * ((n_rows + kDenseTokens - 1) / kDenseTokens), [&](int64_t item, Memory&) {
    const int64_t first = item / pieces * kDenseTokens, n = std::min(kDenseTokens, n_rows - first), begin = item % pieces * kDenseRows;
    for (int64_t o = begin; o < std::min(begin + kDenseRows, n_out); o += 4) {
      const char* from = static_cast<const char*>(w) + o * w_stride * (is_bf16 ? 2 : 4);
      k.dense(from, is_bf16, w_stride, std::min<int64_t>(4, n_out - o), x + first * n_in, n, n_in, y + first * n_out + o, n_out);
    }
  });
}

}  // namespace libremoe
