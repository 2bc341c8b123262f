// Quantisation of weights: libremoe/quant.py's _quantize_rows, equal bit for bit. Included by isa.h.

template <int kVectors>
LIBREMOE_INLINE float sum_of(const F16 v[kVectors]) {  // halves added to each other until one number is left
  F16 s[kVectors];
  for (int i = 0; i < kVectors; i++) s[i] = v[i];
  for (int width = kVectors / 2; width; width /= 2)
    for (int i = 0; i < width; i++) s[i] = s[i] + s[i + width];
  return hsum(s[0]);
}

LIBREMOE_INLINE float round_to_bf16(float x) {  // to nearest, ties to even
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  if ((bits & 0x7FFFFFFF) <= 0x7F800000) bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

// One group's codes (unsigned) and scale. Values that are not finite leave the scale zero, since no error is below another.
template <int kVectors>
static float quantise_group(const float* from, const CodeRange& range, uint8_t* codes) {
  F16 x[kVectors], best[kVectors];
  float largest = from[0], smallest = from[0];
  bool finite = true;
  for (int i = 0; i < 16 * kVectors; i++) {
    largest = from[i] > largest ? from[i] : largest, smallest = from[i] < smallest ? from[i] : smallest;
    finite = finite && from[i] - from[i] == 0;
  }
  const F16 shift = set1(range.shift), low = set1(range.low), high = set1(range.high), round = set1(kRound);
  for (int i = 0; i < kVectors; i++) x[i] = load(from + 16 * i), best[i] = set1(0);
  float best_error = __builtin_inff(), best_scale = 0;
  const float peak = largest >= -smallest ? largest : smallest;
  for (int c = 0; finite && c < range.n_factors; c++) {
    float scale = peak * range.factors[c];
    F16 code[kVectors], part[kVectors], squares[kVectors];
    const auto round_codes = [&]() __attribute__((always_inline)) {
      const F16 inverse = set1(scale == 0 ? 0.0f : 1.0f / scale);
      for (int i = 0; i < kVectors; i++)
        code[i] = min(high, max(low, ((x[i] * inverse + shift) + round) - round - shift));
    };
    round_codes();
    for (int i = 0; i < kVectors; i++) part[i] = x[i] * code[i], squares[i] = code[i] * code[i];
    const float square = sum_of<kVectors>(squares);
    scale = round_to_bf16(sum_of<kVectors>(part) / (square < 1e-30f ? 1e-30f : square));
    round_codes();
    for (int i = 0; i < kVectors; i++) {
      const F16 rest = x[i] - set1(scale) * code[i];
      part[i] = rest * rest;
    }
    const float error = sum_of<kVectors>(part);
    if (!(error < best_error)) continue;
    best_error = error, best_scale = scale;
    for (int i = 0; i < kVectors; i++) best[i] = code[i];
  }
  for (int i = 0; i < kVectors; i++) {
    float value[16];
    store(value, best[i]);
    for (int l = 0; l < 16; l++) codes[16 * i + l] = uint8_t(int32_t(value[l] - range.low));
  }
  return best_scale;
}

static void quantise_weights(const float* x, int64_t n_groups, int64_t group, const CodeRange& range, uint8_t* codes, float* scales) {
  for (int64_t g = 0; g < n_groups; g++, x += group, codes += group)
    scales[g] = group == 32   ? quantise_group<2>(x, range, codes)
                : group == 64 ? quantise_group<4>(x, range, codes)
                              : quantise_group<8>(x, range, codes);
}
