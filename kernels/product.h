// Activations times quantised weights: out (tokens, strip of outputs), for few tokens straight from the stored weights, for
// many from a panel of unpacked codes that stays in the L2 cache. Numerics: types.h. Included by isa.h.

static Walk walk_of(const Weight& w, const Quantised& x, int64_t slot0, int64_t out0, float* out) {
  static constexpr int kBytes[] = {Int8::kBytes, Int4::kBytes, Int3::kBytes, Int2::kBytes};
  static constexpr int kOffset[] = {Int8::kOffset, Int4::kOffset, Int3::kOffset, Int2::kOffset};
  const int64_t tiles = (w.n_in + 63) / 64, tile_rows = (w.n_out + 15) / 16, groups = (w.n_in + w.group - 1) / w.group;
  const int64_t scale_bytes = w.scale_is_f32 ? 4 : 2, part = w.group % 64 ? 32 : 64;
  Walk walk;
  walk.tile_step = kBytes[w.format];
  walk.scale_step = w.columns ? w.scale_stride : 16;
  for (int r = 0; r < 4; r++) {  // rows past the end repeat the last one; product() clears their outputs
    int64_t p = out0 / 16 + r;
    p = p < tile_rows ? p : tile_rows - 1;
    walk.tile[r] = w.columns ? nullptr : w.data + p * tiles * walk.tile_step;
    walk.scale[r] = static_cast<const uint8_t*>(w.scales) + p * 16 * (w.columns ? 1 : groups) * scale_bytes;
  }
  walk.scale_is_f32 = w.scale_is_f32;
  walk.offset = kOffset[w.format];
  walk.first = 0, walk.last = tiles;
  walk.n_parts = (w.n_in + part - 1) / part, walk.group_parts = w.group / part;
  walk.q = x.q + slot0 * x.blocks * 64, walk.x_scale = x.scale + slot0 * x.scales, walk.sum = x.sum + slot0 * x.blocks * 2;
  walk.blocks = x.blocks, walk.scales = x.scales;
  walk.out = out, walk.stride = kStrip;
  return walk;
}

// Few tokens: codes are unpacked in registers. Where tokens go in several turns, a piece at a time that the L2 cache keeps.
template <class Format>
static void product_few(const Walk& whole, int64_t n, bool half_blocks) {
  const bool one_turn = n <= kMostTokens && n != 5;
  const int64_t step = one_turn ? whole.last : 4 * kScaleBlocks;
  for (int64_t first = 0; first < whole.last; first += step) {
    Walk walk = whole;
    walk.first = first, walk.last = first + step < whole.last ? first + step : whole.last;
    dots_of<Format>(walk, n, half_blocks);
  }
}

// Stored codes of the panel after the one at hand, fetched a little at a time while this one is multiplied.
struct Ahead {
  const uint8_t* row[4] = {};
  int64_t bytes = 0, at = 0, step = 64;

  void turns(int64_t n) { step = (bytes / n + 63) / 64 * 64; }
  void fetch() {
    for (const int64_t end = at + step; at < end && at < bytes; at += 64)
      for (int r = 0; r < 4; r++) __builtin_prefetch(row[r] + at, 0, 2);
  }
};

// How many tokens are multiplied with a panel of codes, one byte each: by vectors here, by tiles in amx.h.
struct Vectors {
  static constexpr bool kSigned = false;
  static constexpr int64_t kBlocks = kPanelBlocks;
  // n tokens times the codes of a walk; they exceed 127 only where `wide`.
  static void dots(const Walk& w, int64_t n, bool half_blocks, bool wide, Ahead) {
#if defined(LIBREMOE_AVX2)  // the only body that multiplies narrow codes faster
    if (!wide) return dots_of<Narrow>(w, n, half_blocks);
#endif
    (void)wide;
    dots_of<Int8>(w, n, half_blocks);
  }
};

// Panels of codes, each multiplied with all tokens while it is in a cache.
template <class Many>
static void product_many(const Weight& w, const Walk& whole, int64_t n, int64_t out0, Scratch& scratch) {
  static_assert(Many::kBlocks <= kPanelBlocks && Many::kBlocks % kScaleBlocks == 0, "scratch holds a panel of whole scales");
  for (int64_t first = 0; first < whole.last; first += Many::kBlocks) {
    Walk walk = whole;
    walk.first = first;
    walk.last = first + Many::kBlocks < whole.last ? first + Many::kBlocks : whole.last;
    if (w.columns || w.format != kInt8 || Many::kSigned) {
      if (w.columns) columns_unpack<Many>(w, out0, walk.first, walk.last, scratch.panel);
      else if (w.format == kInt8) unpack<Int8, Many>(walk, scratch.panel);
      else if (w.format == kInt4) unpack<Int4, Many>(walk, scratch.panel);
      else if (w.format == kInt3) unpack<Int3, Many>(walk, scratch.panel);
      else unpack<Int2, Many>(walk, scratch.panel);
      for (int r = 0; r < 4; r++) walk.tile[r] = scratch.panel + 1024 * (r * Many::kBlocks - first);
      walk.tile_step = 1024;
    }
    Ahead ahead;
    if (!w.columns && walk.last < whole.last) {
      for (int r = 0; r < 4; r++) ahead.row[r] = whole.tile[r] + walk.last * whole.tile_step;
      ahead.bytes = (whole.last - walk.last < Many::kBlocks ? whole.last - walk.last : Many::kBlocks) * whole.tile_step;
    }
    Many::dots(walk, n, w.group % 64, w.format == kInt8, ahead);
  }
}

#if defined(LIBREMOE_FLOAT_ROWS)
#include "floats.h"
constexpr int kInt8Parts = kFloatRows;
#else
constexpr int kInt8Parts = 3;
#endif

// out (n, width) += rows slot0..slot0 + n of x, a token's parts each for themselves, times outputs out0..out0 + width.
template <class Many>
static void rows_product(const Weight& w, const Quantised& x, int64_t slot0, int64_t n, int64_t out0, int64_t width, Scratch& scratch,
                         float* out) {
  const bool half_blocks = w.group % 64;
  if (w.columns && (n <= kFewTokens || out0 + kStrip > w.n_out)) {
    for (int64_t t = 0; t < n; t += kFewTokens) {
      const int64_t some = n - t < kFewTokens ? n - t : kFewTokens;
      (some <= 3 ? columns_few<4> : half_blocks ? columns_few<8> : columns_few<16>)(w, x, slot0 + t, some, out0, width, scratch,
                                                                                out + t * width);
    }
    return;
  }
  const Walk walk = walk_of(w, x, slot0, out0, out);
  if (n > kFewTokens) product_many<Many>(w, walk, n, out0, scratch);
  else if (w.format == kInt8) product_few<Int8>(walk, n, half_blocks);
  else if (w.format == kInt4) product_few<Int4>(walk, n, half_blocks);
  else if (w.format == kInt3) product_few<Int3>(walk, n, half_blocks);
  else product_few<Int2>(walk, n, half_blocks);
}

template <class Many>
static void product(const Weight& w, const Quantised& x, int64_t first, int64_t last, int64_t out0, int64_t width, Scratch& scratch,
                    float* out) {
  const bool doubled = w.format == kInt3 || w.format == kInt2;
  const int64_t n = last - first, parts = x.parts == kFloatRows ? 1 : x.parts, valid = w.n_out - out0 < width ? w.n_out - out0 : width;
  __builtin_memset(out, 0, sizeof(float) * size_t(n * parts * width));
#if defined(LIBREMOE_FLOAT_ROWS)
  if (x.parts == kFloatRows) float_product(w, x, first, n, out0, width, scratch, out);
  else
#endif
    rows_product<Many>(w, x, first * parts, n * parts, out0, width, scratch, out);
  for (int64_t t = 0; parts > 1 && t < n; t++) {
    float* sum = out + t * width;
    const float* part = out + t * parts * width;
    if (t) __builtin_memcpy(sum, part, sizeof(float) * size_t(width));  // parts of earlier tokens lay there
    for (int64_t p = 1; p < parts; p++)
      for (int64_t o = 0; o < width; o++) sum[o] += part[p * width + o];
  }
  for (int64_t t = 0; t < n && (doubled || valid < width); t++)  // tile rows past the end have repeated the last one
    for (int64_t o = 0; o < width; o++) out[t * width + o] = o < valid ? out[t * width + o] * (doubled ? 0.5f : 1.0f) : 0.0f;
}
