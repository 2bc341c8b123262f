// Sixteen lanes: the only file that knows vector instructions (with floats.h's codes and amx.h's tiles). Included inside
// one instruction set's namespace by isa.h. F16 is 16 floats, I16 is 16 int32, B64 is a row of 16 outputs x 4 codes.
// Every operation rounds the same way in every body, so that results are equal bit for bit.

#define LIBREMOE_INLINE static inline __attribute__((always_inline))

#if defined(LIBREMOE_AVX512)

struct F16 { __m512 v; };
struct I16 { __m512i v; };
struct B64 { __m512i v; };
LIBREMOE_INLINE F16 set1(float x) { return {_mm512_set1_ps(x)}; }
LIBREMOE_INLINE F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
LIBREMOE_INLINE void store(float* p, F16 a) { _mm512_storeu_ps(p, a.v); }
LIBREMOE_INLINE F16 load_bf16(const uint16_t* p) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
LIBREMOE_INLINE F16 load_int8(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
LIBREMOE_INLINE F16 operator+(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
LIBREMOE_INLINE F16 operator-(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
LIBREMOE_INLINE F16 operator*(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
LIBREMOE_INLINE F16 operator/(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
LIBREMOE_INLINE F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
LIBREMOE_INLINE F16 max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }  // b where either is NaN
LIBREMOE_INLINE F16 min(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }
LIBREMOE_INLINE F16 add_exponent(F16 p, F16 n) {
  __m512i shifted = _mm512_slli_epi32(_mm512_castps_si512(n.v), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p.v), shifted))};
}
LIBREMOE_INLINE I16 set1_i(int32_t x) { return {_mm512_set1_epi32(x)}; }
LIBREMOE_INLINE I16 load_i(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
LIBREMOE_INLINE void store_i(int32_t* p, I16 a) { _mm512_storeu_si512(p, a.v); }
LIBREMOE_INLINE I16 add(I16 a, I16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
LIBREMOE_INLINE F16 to_float(I16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
LIBREMOE_INLINE B64 load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
LIBREMOE_INLINE void store_bytes(uint8_t* p, B64 a) { _mm512_storeu_si512(p, a.v); }
LIBREMOE_INLINE B64 operator|(B64 a, B64 b) { return {_mm512_or_si512(a.v, b.v)}; }
LIBREMOE_INLINE B64 less(B64 a, int x) { return {_mm512_sub_epi8(a.v, _mm512_set1_epi8(char(x)))}; }  // bytes minus x
template <int kShift, int kMask>  // kShift < 0: to the left; bits that cross a byte are masked away
LIBREMOE_INLINE B64 field(B64 a) {
  if constexpr (kShift > 0) a.v = _mm512_srli_epi16(a.v, kShift);
  if constexpr (kShift < 0) a.v = _mm512_slli_epi16(a.v, -kShift);
  return {_mm512_and_si512(a.v, _mm512_set1_epi8(char(kMask)))};
}
constexpr int32_t kWideZero = 0;
template <bool kWide>  // acc + sum of 4 unsigned codes * 4 signed bytes of `a`; kWide: of code - kWideZero, and codes may exceed 127
LIBREMOE_INLINE I16 dot(I16 acc, B64 codes, int32_t a) { return {_mm512_dpbusd_epi32(acc.v, codes.v, _mm512_set1_epi32(a))}; }
// Four inputs' rows of 64 outputs -> codes (+128) in four registers; register j holds outputs 16 * (lane / 4) + 4 * j + lane % 4.
LIBREMOE_INLINE void interleave(const int8_t* rows, int64_t stride, B64 out[4]) {
  const __m512i flip = _mm512_set1_epi8(char(0x80));
  __m512i r0 = _mm512_loadu_si512(rows), r1 = _mm512_loadu_si512(rows + stride);
  __m512i r2 = _mm512_loadu_si512(rows + 2 * stride), r3 = _mm512_loadu_si512(rows + 3 * stride);
  __m512i a = _mm512_unpacklo_epi8(r0, r1), b = _mm512_unpacklo_epi8(r2, r3);
  __m512i c = _mm512_unpackhi_epi8(r0, r1), d = _mm512_unpackhi_epi8(r2, r3);
  out[0].v = _mm512_xor_si512(_mm512_unpacklo_epi16(a, b), flip);
  out[1].v = _mm512_xor_si512(_mm512_unpackhi_epi16(a, b), flip);
  out[2].v = _mm512_xor_si512(_mm512_unpacklo_epi16(c, d), flip);
  out[3].v = _mm512_xor_si512(_mm512_unpackhi_epi16(c, d), flip);
}
// Lane i of the result: the sum of v[16 * i] and the fifteen that follow, added in the order of hsum() below.
LIBREMOE_INLINE F16 hsum16(const float v[256]) {
  __m512 a[8], b[4], c[2];
  for (int i = 0; i < 8; i++) {  // pairs (i, i + 8): lanes l and l + 8
    __m512 x = _mm512_loadu_ps(v + 16 * i), y = _mm512_loadu_ps(v + 16 * (i + 8));
    a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xEE));
  }
  for (int i = 0; i < 4; i++)  // quarters of b[i]: v[i], v[i + 8], v[i + 4], v[i + 12]; lanes l and l + 4
    b[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[i], a[i + 4], 0x88), _mm512_shuffle_f32x4(a[i], a[i + 4], 0xDD));
  for (int i = 0; i < 2; i++) {  // lanes l and l + 2 of b[i] and b[i + 2]
    __m512d x = _mm512_castps_pd(b[i]), y = _mm512_castps_pd(b[i + 2]);
    c[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  // c[i] quarter lanes: v[i], v[i], v[i + 2], v[i + 2]; last pair of lanes
  __m512 s = _mm512_add_ps(_mm512_shuffle_ps(c[0], c[1], 0x88), _mm512_shuffle_ps(c[0], c[1], 0xDD));
  // quarter lanes: v[0], v[2], v[1], v[3]; quarters: +0, +8, +4, +12
  return {_mm512_permutexvar_ps(_mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15), s)};
}

#elif defined(LIBREMOE_AVX2)

struct F16 { __m256 a, b; };
struct I16 { __m256i a, b; };
struct B64 { __m256i a, b; };
LIBREMOE_INLINE F16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
LIBREMOE_INLINE F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
LIBREMOE_INLINE void store(float* p, F16 x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
LIBREMOE_INLINE __m256 widen_bf16(const uint16_t* p) {
  __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
LIBREMOE_INLINE F16 load_bf16(const uint16_t* p) { return {widen_bf16(p), widen_bf16(p + 8)}; }
LIBREMOE_INLINE __m256 widen_int8(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
LIBREMOE_INLINE F16 load_int8(const int8_t* p) { return {widen_int8(p), widen_int8(p + 8)}; }
LIBREMOE_INLINE F16 operator+(F16 x, F16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
LIBREMOE_INLINE F16 operator-(F16 x, F16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
LIBREMOE_INLINE F16 operator*(F16 x, F16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
LIBREMOE_INLINE F16 operator/(F16 x, F16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
LIBREMOE_INLINE F16 fma(F16 x, F16 y, F16 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
LIBREMOE_INLINE F16 max(F16 x, F16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
LIBREMOE_INLINE F16 min(F16 x, F16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
LIBREMOE_INLINE __m256 add_exponent_8(__m256 p, __m256 n) {
  __m256i shifted = _mm256_slli_epi32(_mm256_castps_si256(n), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), shifted));
}
LIBREMOE_INLINE F16 add_exponent(F16 p, F16 n) { return {add_exponent_8(p.a, n.a), add_exponent_8(p.b, n.b)}; }
LIBREMOE_INLINE I16 set1_i(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
LIBREMOE_INLINE I16 load_i(const int32_t* p) {
  const __m256i* q = reinterpret_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
LIBREMOE_INLINE void store_i(int32_t* p, I16 x) {
  __m256i* q = reinterpret_cast<__m256i*>(p);
  _mm256_storeu_si256(q, x.a), _mm256_storeu_si256(q + 1, x.b);
}
LIBREMOE_INLINE I16 add(I16 x, I16 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
LIBREMOE_INLINE F16 to_float(I16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
LIBREMOE_INLINE B64 load_bytes(const uint8_t* p) {
  const __m256i* q = reinterpret_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
LIBREMOE_INLINE void store_bytes(uint8_t* p, B64 x) {
  __m256i* q = reinterpret_cast<__m256i*>(p);
  _mm256_storeu_si256(q, x.a), _mm256_storeu_si256(q + 1, x.b);
}
LIBREMOE_INLINE B64 operator|(B64 x, B64 y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
LIBREMOE_INLINE B64 less(B64 x, int y) {
  const __m256i all = _mm256_set1_epi8(char(y));
  return {_mm256_sub_epi8(x.a, all), _mm256_sub_epi8(x.b, all)};
}
template <int kShift, int kMask>
LIBREMOE_INLINE B64 field(B64 x) {
  if constexpr (kShift > 0) x.a = _mm256_srli_epi16(x.a, kShift), x.b = _mm256_srli_epi16(x.b, kShift);
  if constexpr (kShift < 0) x.a = _mm256_slli_epi16(x.a, -kShift), x.b = _mm256_slli_epi16(x.b, -kShift);
  const __m256i mask = _mm256_set1_epi8(char(kMask));
  return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
#if defined(LIBREMOE_AVXVNNI)
constexpr int32_t kWideZero = 0;
template <bool>
LIBREMOE_INLINE __m256i dot_8(__m256i acc, __m256i codes, __m256i a) { return _mm256_dpbusd_avx_epi32(acc, codes, a); }
#else
constexpr int32_t kWideZero = 128;
#define LIBREMOE_PAIRS
LIBREMOE_INLINE __m256i widen_pairs(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
template <bool kWide>
LIBREMOE_INLINE __m256i dot_8(__m256i acc, __m256i codes, __m256i a) {
  if constexpr (kWide) {  // vpmaddubsw saturates at 16 bits: |code - 128| times +-a stays within 2 * 128 * 127
    const __m256i value = _mm256_xor_si256(codes, _mm256_set1_epi8(char(0x80)));
    codes = _mm256_abs_epi8(value), a = _mm256_sign_epi8(a, value);
  }
  return _mm256_add_epi32(acc, widen_pairs(_mm256_maddubs_epi16(codes, a)));
}
// Sums of two products in 16 bits. Codes of at most 15: eight of them still fit, and only then are they widened.
struct Pairs { __m256i a, b; };
LIBREMOE_INLINE Pairs products(B64 codes, int32_t a) {
  const __m256i four = _mm256_set1_epi32(a);
  return {_mm256_maddubs_epi16(codes.a, four), _mm256_maddubs_epi16(codes.b, four)};
}
LIBREMOE_INLINE Pairs add(Pairs x, Pairs y) { return {_mm256_add_epi16(x.a, y.a), _mm256_add_epi16(x.b, y.b)}; }
LIBREMOE_INLINE I16 add(I16 x, Pairs y) {
  return {_mm256_add_epi32(x.a, widen_pairs(y.a)), _mm256_add_epi32(x.b, widen_pairs(y.b))};
}
#endif
template <bool kWide>
LIBREMOE_INLINE I16 dot(I16 acc, B64 codes, int32_t a) {
  const __m256i four = _mm256_set1_epi32(a);
  return {dot_8<kWide>(acc.a, codes.a, four), dot_8<kWide>(acc.b, codes.b, four)};
}
LIBREMOE_INLINE void interleave(const int8_t* rows, int64_t stride, B64 out[4]) {
  const __m256i flip = _mm256_set1_epi8(char(0x80));
  for (int half = 0; half < 2; half++) {
    __m256i r[4];
    for (int i = 0; i < 4; i++) r[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + i * stride + half * 32));
    __m256i a = _mm256_unpacklo_epi8(r[0], r[1]), b = _mm256_unpacklo_epi8(r[2], r[3]);
    __m256i c = _mm256_unpackhi_epi8(r[0], r[1]), d = _mm256_unpackhi_epi8(r[2], r[3]);
    __m256i o[4] = {_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b), _mm256_unpacklo_epi16(c, d),
                    _mm256_unpackhi_epi16(c, d)};
    for (int j = 0; j < 4; j++) (half ? out[j].b : out[j].a) = _mm256_xor_si256(o[j], flip);
  }
}
// Lane i of the result: the sum of v[16 * i] and the fifteen that follow, added in the order of hsum() below.
LIBREMOE_INLINE F16 hsum16(const float v[256]) {
  __m256 pairs[8], quads[4];
  for (int i = 0; i < 8; i++) {  // halves: sums i and i + 8; lanes l and l + 8, then l and l + 4
    const float *p = v + 16 * i, *q = v + 16 * (i + 8);
    __m256 x = _mm256_add_ps(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
    __m256 y = _mm256_add_ps(_mm256_loadu_ps(q), _mm256_loadu_ps(q + 8));
    pairs[i] = _mm256_add_ps(_mm256_permute2f128_ps(x, y, 0x20), _mm256_permute2f128_ps(x, y, 0x31));
  }
  for (int i = 0; i < 4; i++) {  // pairs of lanes: sums 2 * i and 2 * i + 1; lanes l and l + 2
    __m256d x = _mm256_castps_pd(pairs[2 * i]), y = _mm256_castps_pd(pairs[2 * i + 1]);
    quads[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)), _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
  }
  __m256 eights[2];
  for (int i = 0; i < 2; i++)
    eights[i] = _mm256_add_ps(_mm256_shuffle_ps(quads[2 * i], quads[2 * i + 1], 0x88), _mm256_shuffle_ps(quads[2 * i], quads[2 * i + 1], 0xDD));
  return {_mm256_permute2f128_ps(eights[0], eights[1], 0x20), _mm256_permute2f128_ps(eights[0], eights[1], 0x31)};
}

#else  // portable; on Arm with the dot product extension only dot() differs

struct F16 { float v[16]; };
struct I16 { int32_t v[16]; };
struct B64 { uint8_t v[64]; };
#define LIBREMOE_EACH(T, expression) T r; for (int i = 0; i < 16; i++) r.v[i] = expression; return r
LIBREMOE_INLINE F16 set1(float x) { LIBREMOE_EACH(F16, x); }
LIBREMOE_INLINE F16 load(const float* p) { LIBREMOE_EACH(F16, p[i]); }
LIBREMOE_INLINE void store(float* p, F16 a) { for (int i = 0; i < 16; i++) p[i] = a.v[i]; }
LIBREMOE_INLINE float from_bits(uint32_t u) { float f; __builtin_memcpy(&f, &u, 4); return f; }
LIBREMOE_INLINE uint32_t to_bits(float f) { uint32_t u; __builtin_memcpy(&u, &f, 4); return u; }
LIBREMOE_INLINE F16 load_bf16(const uint16_t* p) { LIBREMOE_EACH(F16, from_bits(uint32_t(p[i]) << 16)); }
LIBREMOE_INLINE F16 load_int8(const int8_t* p) { LIBREMOE_EACH(F16, float(p[i])); }
LIBREMOE_INLINE F16 operator+(F16 a, F16 b) { LIBREMOE_EACH(F16, a.v[i] + b.v[i]); }
LIBREMOE_INLINE F16 operator-(F16 a, F16 b) { LIBREMOE_EACH(F16, a.v[i] - b.v[i]); }
LIBREMOE_INLINE F16 operator*(F16 a, F16 b) { LIBREMOE_EACH(F16, a.v[i] * b.v[i]); }
LIBREMOE_INLINE F16 operator/(F16 a, F16 b) { LIBREMOE_EACH(F16, a.v[i] / b.v[i]); }
LIBREMOE_INLINE F16 fma(F16 a, F16 b, F16 c) { LIBREMOE_EACH(F16, __builtin_fmaf(a.v[i], b.v[i], c.v[i])); }
LIBREMOE_INLINE F16 max(F16 a, F16 b) { LIBREMOE_EACH(F16, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
LIBREMOE_INLINE F16 min(F16 a, F16 b) { LIBREMOE_EACH(F16, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
LIBREMOE_INLINE F16 add_exponent(F16 p, F16 n) { LIBREMOE_EACH(F16, from_bits(to_bits(p.v[i]) + (to_bits(n.v[i]) << 23))); }
LIBREMOE_INLINE I16 set1_i(int32_t x) { LIBREMOE_EACH(I16, x); }
LIBREMOE_INLINE I16 load_i(const int32_t* p) { LIBREMOE_EACH(I16, p[i]); }
LIBREMOE_INLINE void store_i(int32_t* p, I16 a) { for (int i = 0; i < 16; i++) p[i] = a.v[i]; }
LIBREMOE_INLINE I16 add(I16 a, I16 b) { LIBREMOE_EACH(I16, a.v[i] + b.v[i]); }
LIBREMOE_INLINE F16 to_float(I16 a) { LIBREMOE_EACH(F16, float(a.v[i])); }
LIBREMOE_INLINE B64 load_bytes(const uint8_t* p) { B64 r; __builtin_memcpy(r.v, p, 64); return r; }
LIBREMOE_INLINE void store_bytes(uint8_t* p, B64 a) { __builtin_memcpy(p, a.v, 64); }
LIBREMOE_INLINE B64 operator|(B64 a, B64 b) { for (int i = 0; i < 64; i++) a.v[i] |= b.v[i]; return a; }
LIBREMOE_INLINE B64 less(B64 a, int x) { for (int i = 0; i < 64; i++) a.v[i] = uint8_t(a.v[i] - x); return a; }
template <int kShift, int kMask>
LIBREMOE_INLINE B64 field(B64 a) {
  for (int i = 0; i < 64; i++) a.v[i] = uint8_t((kShift >= 0 ? a.v[i] >> (kShift & 7) : a.v[i] << (-kShift & 7)) & kMask);
  return a;
}
constexpr int32_t kWideZero = 0;
template <bool kWide>  // a call, so that the sixteen rows of a block stay small
static __attribute__((noinline)) I16 dot(I16 acc, const B64& codes, int32_t a) {
#if defined(LIBREMOE_NEON)
  const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(a));
  for (int i = 0; i < 4; i++) {
    int32x4_t sum = vld1q_s32(acc.v + 4 * i);
    uint8x16_t c = vld1q_u8(codes.v + 16 * i);
    if constexpr (kWide) {  // the instruction is signed: code = (code - 128) + 64 + 64
      sum = vdotq_s32(vdotq_s32(sum, vdupq_n_s8(64), four), vdupq_n_s8(64), four);
      c = veorq_u8(c, vdupq_n_u8(0x80));
    }
    vst1q_s32(acc.v + 4 * i, vdotq_s32(sum, vreinterpretq_s8_u8(c), four));
  }
#else
  int8_t b[4];
  __builtin_memcpy(b, &a, 4);
  for (int i = 0; i < 16; i++)
    acc.v[i] += codes.v[4 * i] * b[0] + codes.v[4 * i + 1] * b[1] + codes.v[4 * i + 2] * b[2] + codes.v[4 * i + 3] * b[3];
#endif
  return acc;
}
LIBREMOE_INLINE void interleave(const int8_t* rows, int64_t stride, B64 out[4]) {
  for (int j = 0; j < 4; j++)
    for (int lane = 0; lane < 16; lane++)
      for (int i = 0; i < 4; i++)
        out[j].v[lane * 4 + i] = uint8_t(rows[i * stride + 16 * (lane / 4) + 4 * j + lane % 4] ^ 0x80);
}

#endif

// Sum of 16 lanes in a fixed order: l + (l + 8), then + 4, + 2, + 1.
LIBREMOE_INLINE float hsum(F16 a) {
  float s[16];
  store(s, a);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; i++) s[i] = s[i] + s[i + width];
  return s[0];
}
#if !defined(LIBREMOE_AVX512) && !defined(LIBREMOE_AVX2)
LIBREMOE_INLINE F16 hsum16(const float v[256]) {
  float s[16];
  for (int i = 0; i < 16; i++) s[i] = hsum(load(v + 16 * i));
  return load(s);
}
#endif

// One register of floats, for loops that hold as many sums as there are registers: half of an F16 with AVX2.
#if defined(LIBREMOE_AVX2)
struct Register { __m256 v; };
LIBREMOE_INLINE Register load_register(const float* p) { return {_mm256_loadu_ps(p)}; }
LIBREMOE_INLINE Register load_register(const uint16_t* p) { return {widen_bf16(p)}; }
LIBREMOE_INLINE Register load_register(const int8_t* p) { return {widen_int8(p)}; }
LIBREMOE_INLINE Register set1_register(float x) { return {_mm256_set1_ps(x)}; }
LIBREMOE_INLINE Register operator*(Register a, Register b) { return {_mm256_mul_ps(a.v, b.v)}; }
LIBREMOE_INLINE Register fma(Register a, Register b, Register c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
LIBREMOE_INLINE void store(float* p, Register a) { _mm256_storeu_ps(p, a.v); }
LIBREMOE_INLINE Register held(Register a) {  // else gcc reads memory again for each use
  asm("" : "+x"(a.v));
  return a;
}
#else
using Register = F16;
LIBREMOE_INLINE Register load_register(const float* p) { return load(p); }
LIBREMOE_INLINE Register load_register(const uint16_t* p) { return load_bf16(p); }
LIBREMOE_INLINE Register load_register(const int8_t* p) { return load_int8(p); }
LIBREMOE_INLINE Register set1_register(float x) { return set1(x); }
LIBREMOE_INLINE Register held(Register a) { return a; }
#endif
constexpr int kLanes = sizeof(Register) / sizeof(float), kRegisters = 16 / kLanes;

template <int kCount, class Body, int kAt = 0>
LIBREMOE_INLINE void unroll(Body&& body) {
  if constexpr (kAt < kCount) {
    body(Constant<kAt>{});
    unroll<kCount, Body, kAt + 1>(static_cast<Body&&>(body));
  }
}
