// Weights into the tiles layout of libremoe/quant.py, tile rows in parallel.
#include <algorithm>
#include <cstring>
#include <vector>

#include "dispatch.h"
#include "matmul.h"

namespace libremoe {

namespace {

struct Planes {
  int count, bits[2];
};
constexpr Planes kPlanes[kFormats] = {{1, {8, 0}}, {1, {4, 0}}, {2, {2, 1}}, {1, {2, 0}}};

// 16 rows of codes, row_stride apart, 64 of each -> one tile.
void pack_tile(const uint8_t* codes, int64_t row_stride, const Planes& planes, uint8_t* to) {
  uint8_t rows[16][64];  // 16 outputs x 4 inputs each
  for (int o = 0; o < 16; o++)
    for (int r = 0; r < 16; r++) std::memcpy(rows[r] + 4 * o, codes + o * row_stride + 4 * r, 4);
  for (int plane = 0, shift = 0; plane < planes.count; shift += planes.bits[plane++]) {
    const int bits = planes.bits[plane], n_rows = 2 * bits, mask = (1 << bits) - 1;
    for (int r = 0; r < n_rows; r++, to += 64) {
      std::memset(to, 0, 64);
      for (int f = 0; f < 8 / bits; f++)
        for (int i = 0; i < 64; i++) to[i] = uint8_t(to[i] | (rows[r + f * n_rows][i] >> shift & mask) << (f * bits));
    }
  }
}

}  // namespace

void quantize(const float* weight, int64_t n_out, int64_t n_in, int format, int64_t group, const CodeRange& range, uint8_t* data,
              uint16_t* scales) {
  const int64_t n_groups = (n_in + group - 1) / group, n_tiles = (n_in + 63) / 64, tile_rows = (n_out + 15) / 16;
  const int64_t padded = std::max(n_groups * group, n_tiles * 64), tile_bytes = 128 * (format == kInt8 ? 8 : 5 - format);
  const uint8_t middle = uint8_t(-range.low);  // the code that means zero, or the one below
  const auto& k = kernels();
  pool()->parallel_for(tile_rows, [&](int64_t p, Memory&) {
    std::vector<uint8_t> codes(size_t(16 * padded), middle);
    std::vector<float> row(static_cast<size_t>(padded)), row_scales(static_cast<size_t>(n_groups));
    std::memset(scales + p * n_groups * 16, 0, sizeof(uint16_t) * size_t(n_groups) * 16);
    for (int64_t o = 0; o < std::min<int64_t>(16, n_out - p * 16); o++) {
      std::memcpy(row.data(), weight + (p * 16 + o) * n_in, sizeof(float) * size_t(n_in));
      k.quantise_weights(row.data(), n_groups, group, range, codes.data() + o * padded, row_scales.data());
      std::fill(codes.data() + o * padded + n_in, codes.data() + (o + 1) * padded, middle);
      for (int64_t g = 0; g < n_groups; g++) {
        uint32_t bits;
        std::memcpy(&bits, &row_scales[size_t(g)], 4);
        scales[(p * n_groups + g) * 16 + o] = uint16_t(bits >> 16);
      }
    }
    for (int64_t q = 0; q < n_tiles; q++)
      pack_tile(codes.data() + q * 64, padded, kPlanes[format], data + (p * n_tiles + q) * tile_bytes);
  });
}

}  // namespace libremoe
