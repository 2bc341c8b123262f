// Activations times quantised weights: out (tokens, strip of outputs), for few tokens straight from the stored weights, for
// many from a panel of unpacked codes that stays in the L2 cache. Numerics: types.h. Included by isa.h.

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

// Where `rows` inputs x 64 outputs of a columns weight can be read: in place, or from a padded copy at the edges.
LIBREMOE_INLINE const int8_t* columns_piece(const Weight& w, int64_t out0, int64_t in0, int64_t rows, int8_t* copy, int64_t& stride) {
  const int8_t* data = reinterpret_cast<const int8_t*>(w.data) + in0 * w.data_stride + out0;
  const int64_t n_in = w.n_in - in0, n_out = w.n_out - out0;
  stride = w.data_stride;
  if (n_in >= rows && n_out >= 64) return data;
  __builtin_memset(copy, 0, size_t(rows) * 64);
  for (int64_t i = 0; i < n_in && i < rows; i++) __builtin_memcpy(copy + i * 64, data + i * stride, size_t(n_out < 64 ? n_out : 64));
  stride = 64;
  return copy;
}

// interleave() leaves outputs in an order of its own (a 4 x 4 transpose of quarters); this goes there and back.
LIBREMOE_INLINE void swap_quarters(float* p) {
  float t[64];
  __builtin_memcpy(t, p, sizeof t);
  for (int j = 0; j < 4; j++)
    for (int lane = 0; lane < 4; lane++) __builtin_memcpy(p + 16 * j + 4 * lane, t + 16 * lane + 4 * j, 16);
}

// The scales of 64 outputs, in interleave()'s order.
static void columns_scales(const Weight& w, int64_t group, int64_t out0, float scales[64]) {
  for (int i = 0; i < 64; i++) {
    const int64_t at = group * w.scale_stride + out0 + i;
    uint32_t bits = 0;
    if (out0 + i < w.n_out) {
      if (w.scale_is_f32) __builtin_memcpy(&bits, static_cast<const float*>(w.scales) + at, 4);
      else bits = uint32_t(static_cast<const uint16_t*>(w.scales)[at]) << 16;
    }
    __builtin_memcpy(scales + i, &bits, 4);
  }
  swap_quarters(scales);
}

// What columns_few keeps of a strip: sums of the run at hand, and over the runs of an activation scale; outputs in interleave()'s
// order.
struct ColumnsStrip {
  const Quantised& x;
  int64_t slot0, n, width;
  int32_t* sums;  // (n, width)
  float* runs;    // (n, width)
};

// kTokens tokens x 64 outputs x kRun * 4 inputs from in0. scales: of the 64 outputs where a run ends here, or null.
template <int kTokens, int kRun>
LIBREMOE_INLINE void columns_dots(const ColumnsStrip& strip, const int8_t* piece, int64_t stride, int64_t in0, int64_t first,
                                  int64_t o, int32_t offsets[], bool starts, const float* scales) {
  const Quantised& x = strip.x;
  I16 sum[kTokens][4];
  for (int t = 0; t < kTokens; t++)
    for (int j = 0; j < 4; j++)
      sum[t][j] = starts ? set1_i(offsets[first + t])
                         : add(load_i(strip.sums + (first + t) * strip.width + o + 16 * j), set1_i(offsets[first + t]));
  const int8_t* q = x.q + (strip.slot0 + first) * x.blocks * 64 + in0;
  unroll<kRun>([&](auto row_constant) __attribute__((always_inline)) {
    constexpr int row = decltype(row_constant)::value;
    B64 codes[4];
    interleave(piece + row * 4 * stride, stride, codes);
    for (int t = 0; t < kTokens; t++) {
      const int32_t a = four_codes(q + t * x.blocks * 64 + row * 4);
      for (int j = 0; j < 4; j++) sum[t][j] = dot<true>(sum[t][j], codes[j], a);
    }
  });
  for (int t = 0; t < kTokens; t++)
    for (int j = 0; j < 4; j++) {
      const int64_t at = (first + t) * strip.width + o + 16 * j;
      if (scales) store(strip.runs + at, fma(to_float(sum[t][j]), load(scales + 16 * j), load(strip.runs + at)));
      else store_i(strip.sums + at, sum[t][j]);
    }
}

// out += runs * activation scale of 64 outputs of every token, and the runs start again.
static void columns_end_runs(const ColumnsStrip& strip, int64_t in0, int64_t o, float* out) {
  for (int64_t t = 0; t < strip.n; t++) {
    const F16 x_scale = set1(strip.x.scale[(strip.slot0 + t) * strip.x.scales + in0 / kScaleInputs]);
    float* runs = strip.runs + t * strip.width + o;
    swap_quarters(runs);
    for (int j = 0; j < 64; j += 16) {
      float* y = out + t * strip.width + o + j;
      store(y, fma(load(runs + j), x_scale, load(y)));
      store(runs + j, set1(0));
    }
  }
}

// Few tokens times a wide strip of a columns weight, in place. kRun rows of 4 inputs are taken together, each a read stream of
// its own along its row of outputs: few for the memory's sake, more where sums of many tokens have to be put aside between.
template <int kRun>
static void columns_few(const Weight& w, const Quantised& x, int64_t slot0, int64_t n, int64_t out0, int64_t width, Scratch& scratch,
                        float* out) {
  const ColumnsStrip strip{x, slot0, n, width, reinterpret_cast<int32_t*>(scratch.panel), scratch.runs};
  constexpr int64_t kInputs = 4 * kRun;
  const int64_t last = out0 + width < w.n_out ? width : w.n_out - out0;
  __builtin_memset(strip.runs, 0, sizeof(float) * size_t(n * width));
  for (int64_t in0 = 0; in0 < w.n_in; in0 += kInputs) {
    const int64_t next = in0 + kInputs;  // may lie past the inputs' end; those are zeros in x
    const bool starts = in0 % w.group == 0 || in0 % kScaleInputs == 0;
    const bool scale_ends = next >= w.n_in || next % kScaleInputs == 0, run_ends = scale_ends || next % w.group == 0;
    int32_t offsets[kFewTokens] = {};  // for whole halves of blocks
    for (int64_t t = 0; t < n && in0 % 32 == 0; t++) {
      const int32_t* s = x.sum + ((slot0 + t) * x.blocks + in0 / 64) * 2;
      offsets[t] = (kWideZero - 128) * (kInputs == 64 ? s[0] + s[1] : s[in0 / 32 % 2]);
    }
    for (int64_t o = 0; o < last; o += 64) {
      int8_t copy[4 * kRun * 64];
      int64_t stride;
      const int8_t* piece = columns_piece(w, out0 + o, in0, 4 * kRun, copy, stride);
      for (int i = 0; i < 4 * kRun; i++) __builtin_prefetch(piece + i * stride + 512);
      float of_outputs[64], *scales = nullptr;
      if (run_ends) columns_scales(w, in0 / w.group, out0 + o, scales = of_outputs);
      int64_t t = 0;
      if constexpr (kMostTokens >= 6)  // two tokens of three parts, or one
        for (; t + 6 <= n; t += 6) columns_dots<6, kRun>(strip, piece, stride, in0, t, o, offsets, starts, scales);
      if (n == 3) columns_dots<3, kRun>(strip, piece, stride, in0, t, o, offsets, starts, scales), t = 3;
      for (; t + 4 <= n; t += 4) columns_dots<4, kRun>(strip, piece, stride, in0, t, o, offsets, starts, scales);
      for (; t + 2 <= n; t += 2) columns_dots<2, kRun>(strip, piece, stride, in0, t, o, offsets, starts, scales);
      for (; t < n; t++) columns_dots<1, kRun>(strip, piece, stride, in0, t, o, offsets, starts, scales);
      if (scale_ends) columns_end_runs(strip, in0, o, out);
    }
  }
}

template <class Many>
static void columns_unpack(const Weight& w, int64_t out0, int64_t first, int64_t last, uint8_t* panel) {
  for (int64_t b = first; b < last; b++, panel += 1024) {
    int8_t copy[64 * 64];
    int64_t stride;
    const int8_t* piece = columns_piece(w, out0, b * 64, 64, copy, stride);
    for (int row = 0; row < 16; row++) {
      B64 codes[4];
      interleave(piece + row * 4 * stride, stride, codes);
      for (int j = 0; j < 4; j++) {  // quarter `lane` of codes[j] belongs to tile row `lane`
        uint8_t bytes[64];
        store_bytes(bytes, Many::kSigned ? less(codes[j], 128) : codes[j]);
        for (int lane = 0; lane < 4; lane++)
          __builtin_memcpy(panel + 1024 * Many::kBlocks * lane + 64 * row + 16 * j, bytes + 16 * lane, 16);
      }
    }
  }
}

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

template <class Many>
static void product(const Weight& w, const Quantised& x, int64_t slot0, int64_t slot1, int64_t out0, int64_t width,
                    Scratch& scratch, float* out) {
  const int64_t n = slot1 - slot0;
  const bool half_blocks = w.group % 64;
  __builtin_memset(out, 0, sizeof(float) * size_t(n * width));
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
  const bool doubled = w.format == kInt3 || w.format == kInt2;
  const int64_t valid = w.n_out - out0 < width ? w.n_out - out0 : width;
  for (int64_t t = 0; t < n && (doubled || valid < width); t++)
    for (int64_t o = 0; o < width; o++) out[t * width + o] = o < valid ? out[t * width + o] * (doubled ? 0.5f : 1.0f) : 0.0f;
}
