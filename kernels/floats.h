// int8 weights times float32 inputs: AVX2, which has no instruction that adds such products, takes three times as long for three
// int8 parts of an input as for the float32 that it is. Included by isa.h where LIBREMOE_FLOAT_ROWS is set; activations of int8
// weights are kFloatRows int8 rows a token there, room for the inputs as they are. Numerics, the same for any batch, layout and
// number of threads: h = fma(input, code, h) over the inputs of a run (types.h) in order, y = fma(h, weight scale, y).

constexpr int64_t kFloatBlocks = 8;  // blocks of 64 inputs in a panel of floats: 128 KiB for four tile rows
constexpr int64_t kFloatFew = kFewTokens / kFloatRows;  // tokens up to which weights are not copied
static_assert(kFloatBlocks % kScaleBlocks == 0 && kFloatBlocks * 4 <= kPanelBlocks, "a panel ends where a run does, and fits in");
constexpr float kCodeUnit = 1.0f / (1 << 24);  // float_codes() gives codes times 2^24: powers of two change no rounding

// Code k of each of eight outputs, whose four codes lie together, as a float: a byte moved to the top of its lane needs no shift.
template <int k>
LIBREMOE_INLINE Register float_codes(__m256i codes) {
  constexpr int m[] = {0x00808080 | k << 24, 0x00808080 | (4 + k) << 24, 0x00808080 | (8 + k) << 24, 0x00808080 | (12 + k) << 24};
  return {_mm256_cvtepi32_ps(_mm256_shuffle_epi8(codes, _mm256_set_epi32(m[3], m[2], m[1], m[0], m[3], m[2], m[1], m[0])))};
}

LIBREMOE_INLINE __m256i signed_codes(const uint8_t* p) {
  return _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), _mm256_set1_epi8(char(0x80)));
}

// Rows of float32 inputs with zeros up to whole blocks, and where runs end.
struct FloatRows {
  const float* first;
  int64_t stride, n_in, group;

  FloatRows(const Weight& w, const Quantised& x, int64_t token)
      : first(reinterpret_cast<const float*>(x.q + token * kFloatRows * x.blocks * 64)), stride(x.blocks * 64), n_in(w.n_in), group(w.group) {}
  const float* row(int64_t token) const { return first + token * stride; }
  int64_t run_end(int64_t in0) const {
    const int64_t of_group = (in0 / group + 1) * group, of_scale = (in0 / kScaleInputs + 1) * kScaleInputs;
    const int64_t end = of_group < of_scale ? of_group : of_scale;
    return end < stride ? end : stride;
  }
};

// kTokens tokens times kRows tile rows straight from the stored codes.
template <int kTokens, int kRows>
static void float_few(const Walk& w, int tile_row, const FloatRows& x) {
  for (int64_t in0 = 0, end; in0 < x.n_in; in0 = end) {
    end = x.run_end(in0);
    Register h[kTokens][kRows][2];
    for (int t = 0; t < kTokens; t++)
      for (int r = 0; r < kRows; r++) h[t][r][0] = h[t][r][1] = set1_register(0);
    for (int64_t i = in0; i < end; i += 4) {
      const int64_t at = i / 64 * 1024 + i % 64 * 16;
      for (int r = 0; r < kRows; r++)
        for (int half = 0; half < 2; half++) {
          const __m256i codes = signed_codes(w.tile[tile_row + r] + at + 32 * half);
          unroll<4>([&](auto k_constant) __attribute__((always_inline)) {
            constexpr int k = decltype(k_constant)::value;
            const Register code = held(float_codes<k>(codes));
            for (int t = 0; t < kTokens; t++) h[t][r][half] = fma(set1_register(x.row(t)[i + k]), code, h[t][r][half]);
          });
        }
    }
    for (int r = 0; r < kRows; r++) {
      const F16 scale = load_scale(w.scale[tile_row + r], in0 / x.group * w.scale_step, w.scale_is_f32) * set1(kCodeUnit);
      for (int t = 0; t < kTokens; t++) {
        float* y = w.out + t * w.stride + 16 * (tile_row + r);
        store(y, fma(F16{h[t][r][0].v, h[t][r][1].v}, scale, load(y)));
      }
    }
  }
}

// The codes of blocks first..last of four tile rows into panel (4, kFloatBlocks * 64 inputs, 16 outputs), times 2^24.
static void float_unpack(const Walk& w, int64_t first, int64_t last, float* panel) {
  for (int r = 0; r < 4; r++)
    for (int64_t i = first * 64; i < last * 64; i += 4)
      for (int half = 0; half < 2; half++) {
        const __m256i codes = signed_codes(w.tile[r] + i / 64 * 1024 + i % 64 * 16 + 32 * half);
        float* to = panel + (r * kFloatBlocks * 64 + i - first * 64) * 16 + 8 * half;
        unroll<4>([&](auto k_constant) __attribute__((always_inline)) {
          constexpr int k = decltype(k_constant)::value;
          store(to + 16 * k, float_codes<k>(codes));
        });
      }
}

static void float_unpack_columns(const Weight& w, int64_t out0, int64_t first, int64_t last, float* panel) {
  for (int64_t b = first; b < last; b++) {
    int8_t copy[64 * 64];
    int64_t stride;
    const int8_t* piece = columns_piece(w, out0, b * 64, 64, copy, stride);
    for (int64_t i = 0; i < 64; i++) {
      __builtin_prefetch(piece + (i + 16) * stride);  // rows lie too far apart for the processor to see what comes
      for (int o = 0; o < 64; o += 8) {
        float* to = panel + (o / 16 * kFloatBlocks * 64 + (b - first) * 64 + i) * 16 + o % 16;
        store(to, load_register(piece + i * stride + o) * set1_register(1 << 24));
      }
    }
  }
}

// kTokens tokens times one tile row of a panel, as often as there are tokens for it.
template <int kTokens>
static void float_tokens(const Walk& w, int tile_row, const FloatRows& x, const float* panel, int64_t& token, int64_t n) {
  for (; token + kTokens <= n; token += kTokens)
    for (int64_t in0 = w.first * 64, end; in0 < w.last * 64 && in0 < x.n_in; in0 = end) {
      end = x.run_end(in0);
      Register h[kTokens][2];
      for (int t = 0; t < kTokens; t++) h[t][0] = h[t][1] = set1_register(0);
      const float *codes = panel + (in0 - w.first * 64) * 16, *input = x.row(token) + in0;
      for (int64_t i = in0; i < end; i++, codes += 16, input++) {
        const Register low = held(load_register(codes)), high = held(load_register(codes + 8));
        for (int t = 0; t < kTokens; t++) {
          const Register v = set1_register(input[t * x.stride]);
          h[t][0] = fma(v, low, h[t][0]), h[t][1] = fma(v, high, h[t][1]);
        }
      }
      const F16 scale = load_scale(w.scale[tile_row], in0 / x.group * w.scale_step, w.scale_is_f32) * set1(kCodeUnit);
      for (int t = 0; t < kTokens; t++) {
        float* y = w.out + (token + t) * w.stride + 16 * tile_row;
        store(y, fma(F16{h[t][0].v, h[t][1].v}, scale, load(y)));
      }
    }
}

static void float_many(const Weight& w, const Walk& whole, const FloatRows& x, int64_t n, int64_t out0, Scratch& scratch) {
  float* panel = reinterpret_cast<float*>(scratch.panel);
  Walk walk = whole;
  for (walk.first = 0; walk.first < whole.last; walk.first = walk.last) {
    walk.last = walk.first + kFloatBlocks < whole.last ? walk.first + kFloatBlocks : whole.last;
    w.columns ? float_unpack_columns(w, out0, walk.first, walk.last, panel) : float_unpack(walk, walk.first, walk.last, panel);
    for (int64_t begin = 0; begin < n; begin += 6)  // the inputs of six tokens stay in the L1 cache for four tile rows
      for (int r = 0; r < 4; r++) {
        const int64_t end = begin + 6 < n ? begin + 6 : n;
        const float* codes = panel + r * kFloatBlocks * 64 * 16;
        int64_t token = begin;
        float_tokens<6>(walk, r, x, codes, token, end);
        float_tokens<4>(walk, r, x, codes, token, end);
        float_tokens<2>(walk, r, x, codes, token, end);
        float_tokens<1>(walk, r, x, codes, token, end);
      }
  }
}

// kTokens tokens times `width` outputs of a columns weight, in place; sums of a run are put aside between pieces of 16 inputs.
template <int kTokens>
static void float_columns(const Weight& w, const FloatRows& x, int64_t out0, int64_t width, float* sums, float* out) {
  constexpr int kInputs = 16, kWide = 8 / kTokens;
  const int64_t last = out0 + width < w.n_out ? width : w.n_out - out0;
  for (int64_t in0 = 0; in0 < x.n_in; in0 += kInputs) {
    const int64_t next = in0 + kInputs;
    const bool starts = in0 % w.group == 0 || in0 % kScaleInputs == 0, ends = next >= x.n_in || next == x.run_end(in0);
    for (int64_t o = 0; o < last; o += 64) {
      int8_t copy[kInputs * 64];
      int64_t stride;
      const int8_t* piece = columns_piece(w, out0 + o, in0, kInputs, copy, stride);
      columns_fetch(w, out0, last, o, in0, kInputs);
      float scales[64];
      if (ends) columns_scales(w, in0 / w.group, out0 + o, scales);
      for (int at = 0; at < 64; at += 8 * kWide) {
        Register h[kTokens][kWide];
        for (int t = 0; t < kTokens; t++)
          for (int j = 0; j < kWide; j++) h[t][j] = starts ? set1_register(0) : load_register(sums + t * width + o + at + 8 * j);
        for (int i = 0; i < kInputs; i++)
          for (int j = 0; j < kWide; j++) {
            const Register code = held(load_register(piece + i * stride + at + 8 * j));
            for (int t = 0; t < kTokens; t++) h[t][j] = fma(set1_register(x.row(t)[in0 + i]), code, h[t][j]);
          }
        for (int t = 0; t < kTokens; t++)
          for (int j = 0; j < kWide; j++) {
            float *y = out + t * width + o + at + 8 * j, *sum = sums + t * width + o + at + 8 * j;
            if (ends) store(y, fma(h[t][j], load_register(scales + at + 8 * j), load_register(y)));
            else store(sum, h[t][j]);
          }
      }
    }
  }
}

// product() of an int8 weight: n tokens from first on, outputs past n_out left as they come.
static void float_product(const Weight& w, const Quantised& x, int64_t first, int64_t n, int64_t out0, int64_t width, Scratch& scratch,
                          float* out) {
  if (w.columns && (n <= kFloatFew || out0 + kStrip > w.n_out)) {
    int64_t t = 0;
    for (; t + 2 <= n; t += 2) float_columns<2>(w, FloatRows(w, x, first + t), out0, width, scratch.runs, out + t * width);
    if (t < n) float_columns<1>(w, FloatRows(w, x, first + t), out0, width, scratch.runs, out + t * width);
    return;
  }
  const Walk walk = walk_of(w, x, 0, out0, out);
  const FloatRows rows(w, x, first);
  if (n == 1) return float_few<1, 4>(walk, 0, rows);
  if (n > 2) return float_many(w, walk, rows, n, out0, scratch);
  float_few<2, 2>(walk, 0, rows), float_few<2, 2>(walk, 2, rows);
}
