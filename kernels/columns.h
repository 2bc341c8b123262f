// Weights as the official files store them, (inputs, outputs): multiplied in place, a strip of 64 outputs at a time. Included by
// isa.h.

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

// Fetches what columns_piece(w, out0 + o, in0, rows) will give 512 bytes later in its rows, or in the rows after them, of a strip
// `width` wide that starts at out0: rows lie too far apart for the processor to see what comes.
LIBREMOE_INLINE void columns_fetch(const Weight& w, int64_t out0, int64_t width, int64_t o, int64_t in0, int64_t rows) {
  const int64_t ahead = o + (width < 512 ? width : 512), more = ahead >= width;
  const uint8_t* p = w.data + (in0 + more * rows) * w.data_stride + out0 + ahead - more * width;
  for (int64_t i = 0; i < rows; i++) __builtin_prefetch(p + i * w.data_stride);
}

// interleave() leaves outputs in an order of its own (a 4 x 4 transpose of quarters); this goes there and back.
LIBREMOE_INLINE void swap_quarters(float* p) {
  float t[64];
  __builtin_memcpy(t, p, sizeof t);
  for (int j = 0; j < 4; j++)
    for (int lane = 0; lane < 4; lane++) __builtin_memcpy(p + 16 * j + 4 * lane, t + 16 * lane + 4 * j, 16);
}

// The scales of 64 outputs.
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
      columns_fetch(w, out0, last, o, in0, 4 * kRun);
      float of_outputs[64], *scales = nullptr;
      if (run_ends) columns_scales(w, in0 / w.group, out0 + o, scales = of_outputs), swap_quarters(scales);
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
      for (int i = 16; i < 20; i++) __builtin_prefetch(piece + (row * 4 + i) * stride);
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
