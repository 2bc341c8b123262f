// A few tile rows of quantised weights times a few tokens, straight from the stored weights: the innermost loops of product.h.
// Numerics: types.h. Included by isa.h.

// Tile rows and tokens that a micro kernel holds at a time.
#if defined(LIBREMOE_AVX512)
constexpr int kTileRows = 4, kMostTokens = 6;  // 24 of 32 registers hold sums
#elif defined(LIBREMOE_AVX2)
constexpr int kTileRows = 2, kMostTokens = 4;  // pairs of registers: 8 of 16
#else
constexpr int kTileRows = 1, kMostTokens = 1;
#endif
// With AVX2 more than two tokens take one tile row at a time: as many sums, and half the codes to unpack.
template <int kTokens> constexpr int kRowsWith = kMostTokens == 4 && kTokens > 2 ? 1 : kTileRows;

// What a micro kernel walks over. tile and scale point at block 0 / group 0 of up to four tile rows.
struct Walk {
  const uint8_t* tile[4];
  int64_t tile_step;      // bytes from a tile to the next in the same tile row
  const void* scale[4];
  int64_t scale_step;     // elements from a group's scales to the next group's
  bool scale_is_f32;
  int64_t first, last;    // blocks of 64 inputs
  int32_t offset;         // the code that means zero
  int64_t n_parts;        // 32-input or 64-input blocks that have scales, in the whole weight
  int64_t group_parts;    // of those in a group
  const int8_t* q;        // first token's; tokens follow at blocks * 64
  const float* x_scale;   // tokens follow at scales
  const int32_t* sum;
  int64_t blocks, scales;
  float* out;             // (tokens, stride)
  int64_t stride;
};

LIBREMOE_INLINE F16 load_scale(const void* scales, int64_t at, bool is_f32) {
  return is_f32 ? load(static_cast<const float*>(scales) + at) : load_bf16(static_cast<const uint16_t*>(scales) + at);
}

LIBREMOE_INLINE int32_t four_codes(const int8_t* q) { int32_t a; __builtin_memcpy(&a, q, 4); return a; }

// sum += codes of rows kFirst..kFirst + kCount of kRows tiles, times kTokens tokens' inputs at q, `stride` apart.
template <class Format, int kRows, int kTokens, int kFirst, int kCount>
LIBREMOE_INLINE void dot_rows(const uint8_t* const tile[], const int8_t* q, int64_t stride, I16 sum[kTokens][kRows]) {
#if defined(LIBREMOE_PAIRS)
  if constexpr (!Format::kWide && kCount > 8) {
    dot_rows<Format, kRows, kTokens, kFirst, 8>(tile, q, stride, sum);
    return dot_rows<Format, kRows, kTokens, kFirst + 8, kCount - 8>(tile, q, stride, sum);
  } else if constexpr (!Format::kWide) {
    Pairs pairs[kTokens][kRows];
    unroll<kCount>([&](auto row_constant) __attribute__((always_inline)) {
      constexpr int row = decltype(row_constant)::value;
      for (int r = 0; r < kRows; r++) {
        const B64 codes = Format::template row<kFirst + row>(tile[r]);
        for (int t = 0; t < kTokens; t++) {
          const Pairs two = products(codes, four_codes(q + t * stride + (kFirst + row) * 4));
          pairs[t][r] = row ? add(pairs[t][r], two) : two;
        }
      }
    });
    for (int t = 0; t < kTokens; t++)
      for (int r = 0; r < kRows; r++) sum[t][r] = add(sum[t][r], pairs[t][r]);
    return;
  }
#endif
  unroll<kCount>([&](auto row_constant) __attribute__((always_inline)) {
    constexpr int row = kFirst + decltype(row_constant)::value;
    B64 codes[kRows];
    for (int r = 0; r < kRows; r++) codes[r] = Format::template row<row>(tile[r]);
    for (int t = 0; t < kTokens; t++) {
      const int32_t a = four_codes(q + t * stride + row * 4);
      for (int r = 0; r < kRows; r++) sum[t][r] = dot<Format::kWide>(sum[t][r], codes[r], a);
    }
  });
}

// kRows tile rows x kTokens tokens over blocks first..last; first is a multiple of kScaleBlocks. kPartRows: scales change after 16
// rows of codes, or 8 (groups of 32), at the earliest. spans: groups have several such parts.
template <class Format, int kRows, int kTokens, int kPartRows, bool spans>
static void micro(const Walk& w) {
  constexpr int kParts = 16 / kPartRows;
  const int32_t zero = (Format::kWide ? kWideZero : 0) - w.offset;
  int64_t group = w.first * kParts / w.group_parts, left = (group + 1) * w.group_parts - w.first * kParts;
  for (int64_t first = w.first; first < w.last; first += kScaleBlocks) {
    const int64_t last = first + kScaleBlocks < w.last ? first + kScaleBlocks : w.last;
    F16 runs[kTokens][kRows];
    I16 sum[kTokens][kRows];
    for (int t = 0; t < kTokens; t++)
      for (int r = 0; r < kRows; r++) runs[t][r] = set1(0), sum[t][r] = set1_i(0);
    for (int64_t b = first; b < last; b++) {
      const uint8_t* tile[kRows];
      for (int r = 0; r < kRows; r++) tile[r] = w.tile[r] + b * w.tile_step;
      unroll<kParts>([&](auto part_constant) __attribute__((always_inline)) {
        constexpr int part = decltype(part_constant)::value;
        const int64_t index = b * kParts + part;
        if (index >= w.n_parts) return;
        for (int t = 0; t < kTokens; t++) {
          const int32_t* s = w.sum + (t * w.blocks + b) * 2;
          const I16 start = set1_i(zero * (kParts == 1 ? s[0] + s[1] : s[part]));
          for (int r = 0; r < kRows; r++) sum[t][r] = spans ? add(sum[t][r], start) : start;
        }
        dot_rows<Format, kRows, kTokens, part * kPartRows, kPartRows>(tile, w.q + b * 64, w.blocks * 64, sum);
        const bool group_ends = !spans || --left == 0 || index + 1 == w.n_parts;
        if (group_ends || (b + 1 == last && part + 1 == kParts)) {
          for (int r = 0; r < kRows; r++) {
            const F16 scale = load_scale(w.scale[r], group * w.scale_step, w.scale_is_f32);
            for (int t = 0; t < kTokens; t++) {
              runs[t][r] = fma(to_float(sum[t][r]), scale, runs[t][r]);
              if (spans) sum[t][r] = set1_i(0);
            }
          }
        }
        if (group_ends) group++, left = w.group_parts;
      });
    }
    for (int t = 0; t < kTokens; t++) {
      const F16 x_scale = set1(w.x_scale[t * w.scales + first / kScaleBlocks]);
      for (int r = 0; r < kRows; r++) {
        float* out = w.out + t * w.stride + r * 16;
        store(out, fma(runs[t][r], x_scale, load(out)));
      }
    }
  }
}

template <class Format, int kPartRows, int kTokens>
LIBREMOE_INLINE void step_tokens(Walk& w, int64_t& left) {
  if constexpr (kTokens <= kMostTokens) {
    constexpr int kRows = kRowsWith<kTokens>;
    for (; left >= kTokens; left -= kTokens) {
      for (int r = 0; r < 4; r += kRows) {
        Walk rows = w;
        for (int i = 0; i < kRows; i++) rows.tile[i] = w.tile[r + i], rows.scale[i] = w.scale[r + i];
        rows.out += 16 * r;
        w.group_parts > 1 ? micro<Format, kRows, kTokens, kPartRows, true>(rows) : micro<Format, kRows, kTokens, kPartRows, false>(rows);
      }
      w.q += kTokens * w.blocks * 64, w.x_scale += kTokens * w.scales, w.sum += kTokens * w.blocks * 2;
      w.out += kTokens * w.stride;
    }
  }
}

// All of n tokens, as many at a time as registers hold.
template <class Format, int kPartRows>
static void all_tokens(Walk w, int64_t n) {
  if (n == 3) step_tokens<Format, kPartRows, 3>(w, n);  // a token of int8: three parts
  if (n == 8) step_tokens<Format, kPartRows, 4>(w, n);  // 4 + 4 rather than 6 + 2
  step_tokens<Format, kPartRows, 6>(w, n);
  step_tokens<Format, kPartRows, 4>(w, n);
  step_tokens<Format, kPartRows, 2>(w, n);
  step_tokens<Format, kPartRows, 1>(w, n);
}

template <class Format>
LIBREMOE_INLINE void dots_of(const Walk& w, int64_t n, bool half_blocks) {
  half_blocks ? all_tokens<Format, 8>(w, n) : all_tokens<Format, 16>(w, n);
}

// The codes of blocks first..last of four tile rows into panel (tile row, kBlocks) of 1024 bytes each, as they are or minus the
// offset.
template <class Format, class Many>
static void unpack(const Walk& w, uint8_t* panel) {
  for (int r = 0; r < 4; r++)
    for (int64_t b = w.first; b < w.last; b++) {
      const uint8_t* tile = w.tile[r] + b * w.tile_step;
      uint8_t* to = panel + (r * Many::kBlocks + b - w.first) * 1024;
      unroll<16>([&](auto row) __attribute__((always_inline)) {
        const B64 codes = Format::template row<decltype(row)::value>(tile);
        store_bytes(to + 64 * decltype(row)::value, Many::kSigned ? less(codes, Format::kOffset) : codes);
      });
    }
}
