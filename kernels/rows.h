// What works on one row at a time: quantisation of activations, plain f32 and bf16 products, activation functions, norms,
// rotation, routing. Each row's bits depend on that row alone. Included by isa.h.

constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer, ties to even

// exp(x) for x in [-87, 88], clamped to it; NaN stays NaN. 2^n * Taylor to the 7th power on |r| <= ln(2) / 2: error < 1e-7.
LIBREMOE_INLINE F16 exp(F16 x) {
  x = min(set1(88.0f), max(set1(-87.0f), x));
  const F16 shifted = fma(x, set1(1.44269504f), set1(kRound));
  const F16 n = shifted - set1(kRound);
  F16 r = fma(n, set1(-0.693145752f), x);  // ln(2) in two parts, the first exact in products with n
  r = fma(n, set1(-1.42860677e-6f), r);
  F16 p = set1(1.0f / 5040);
  const float coefficients[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  for (float c : coefficients) p = fma(p, r, set1(c));
  return add_exponent(p, shifted);
}

LIBREMOE_INLINE F16 sigmoid(F16 x) { return set1(1.0f) / (set1(1.0f) + exp(set1(0.0f) - x)); }

// n floats (whole blocks of 64) -> codes, scale and the sums of codes of each half block; v becomes what is left over.
LIBREMOE_INLINE void quantise_run(float* v, int64_t n, int8_t* q, float* scale, int32_t* sum) {
  int32_t peak_bits = 0;
  for (int64_t i = 0; i < n; i++) {  // magnitudes order as their bits do, and what is not finite comes out on top
    int32_t magnitude;
    __builtin_memcpy(&magnitude, v + i, 4);
    magnitude &= 0x7FFFFFFF;
    peak_bits = magnitude > peak_bits ? magnitude : peak_bits;
  }
  float peak;
  __builtin_memcpy(&peak, &peak_bits, 4);
  const bool finite = peak_bits < 0x7F800000, tiny = peak < 1e-35f;  // 127 / peak must not overflow
  const float inverse = tiny || !finite ? 0.0f : 127.0f / peak;
  const float step = !finite ? __builtin_nanf("") : tiny ? 0.0f : peak / 127.0f;
  for (int64_t half = 0; half < n; half += 32) {
    int32_t codes[32], total = 0;
    for (int i = 0; i < 32; i++) {
      const float r = (finite ? v[half + i] : 0.0f) * inverse + kRound;
      __builtin_memcpy(codes + i, &r, 4);
      codes[i] -= 0x4B400000;
    }
    for (int i = 0; i < 32; i++) total += codes[i];
    for (int i = 0; i < 32; i++) q[half + i] = int8_t(codes[i]);
    for (int i = 0; i < 32; i++) v[half + i] = v[half + i] - step * float(codes[i]);
    sum[half / 32] = total;
  }
  *scale = step;
}

static void quantise(const float* x, int64_t n_in, int64_t block0, int64_t block1, const Quantised& to, int64_t row) {
  if (to.parts == kFloatRows) {
    float* inputs = reinterpret_cast<float*>(to.q + row * kFloatRows * to.blocks * 64);
    const int64_t end = block1 * 64 < n_in ? block1 * 64 : n_in;
    for (int64_t i = block0 * 64; i < end; i++) inputs[i] = x[i] + (x[i] - x[i]);  // infinity becomes NaN, as with parts
    __builtin_memset(inputs + end, 0, sizeof(float) * size_t(block1 * 64 - end));
    return;
  }
  for (int64_t b = block0; b < block1; b += kScaleBlocks) {
    float v[kScaleInputs] = {};
    const int64_t blocks = block1 - b < kScaleBlocks ? block1 - b : kScaleBlocks, left = n_in - b * 64;
    __builtin_memcpy(v, x + b * 64, sizeof(float) * size_t(left < blocks * 64 ? left : blocks * 64));
    for (int part = 0; part < to.parts; part++) {
      const int64_t to_row = row * to.parts + part, at = to_row * to.blocks + b;
      quantise_run(v, blocks * 64, to.q + at * 64, to.scale + to_row * to.scales + b / kScaleBlocks, to.sum + at * 2);
    }
  }
}

LIBREMOE_INLINE F16 load_tail(const float* p, int64_t n) {
  if (n >= 16) return load(p);
  float v[16] = {};
  __builtin_memcpy(v, p, sizeof(float) * size_t(n));
  return load(v);
}

// Tokens and outputs of a plain weight that a loop holds at a time, for many tokens; one token goes with four outputs.
#if defined(LIBREMOE_AVX2)
constexpr int kPlainTokens = 3, kPlainOutputs = 2;
#else
constexpr int kPlainTokens = 4, kPlainOutputs = 4;
#endif

// kTokens rows of x times kOutputs outputs; lane l of a sum holds inputs l, l + 16, ...: the order is the same for any of both.
template <int kTokens, int kOutputs, class T>
static void dense_tokens(const T* const w[], int64_t n_valid, const float* x, int64_t n_in, float* y, int64_t y_stride) {
  Register sum[kTokens][kOutputs][kRegisters];
  for (int t = 0; t < kTokens; t++)
    for (int o = 0; o < kOutputs; o++)
      for (int r = 0; r < kRegisters; r++) sum[t][o][r] = set1_register(0);
  const auto add_inputs = [&](const T* const from[], const float* rows, int64_t stride, int64_t i) __attribute__((always_inline)) {
    for (int r = 0; r < kRegisters; r++, i += kLanes) {
      Register weight[kOutputs];
      for (int o = 0; o < kOutputs; o++) weight[o] = load_register(from[o] + i);
      for (int t = 0; t < kTokens; t++) {
        const Register v = held(load_register(rows + t * stride + i));
        for (int o = 0; o < kOutputs; o++) sum[t][o][r] = fma(v, weight[o], sum[t][o][r]);
      }
    }
  };
  int64_t i = 0;
  for (; i + 16 <= n_in; i += 16) add_inputs(w, x, n_in, i);
  if (i < n_in) {
    T tails[kOutputs][16] = {};
    float rows[kTokens][16] = {};
    const T* from[kOutputs];
    for (int o = 0; o < kOutputs; o++) __builtin_memcpy(tails[o], w[o] + i, sizeof(T) * size_t(n_in - i)), from[o] = tails[o];
    for (int t = 0; t < kTokens; t++) __builtin_memcpy(rows[t], x + t * n_in + i, sizeof(float) * size_t(n_in - i));
    add_inputs(from, rows[0], 16, 0);
  }
  for (int t = 0; t < kTokens; t++)
    for (int64_t o = 0; o < kOutputs && o < n_valid; o++) {
      float lanes[16];
      for (int r = 0; r < kRegisters; r++) store(lanes + kLanes * r, sum[t][o][r]);
      y[t * y_stride + o] = hsum(load(lanes));
    }
}

template <class T>
static void dense_rows(const T* w, int64_t w_stride, int64_t n_valid, const float* x, int64_t n, int64_t n_in, float* y,
                       int64_t y_stride) {
  const T* from[4];
  for (int64_t o = 0; o < 4; o++) from[o] = w + (o < n_valid ? o : n_valid - 1) * w_stride;
  for (; n >= kPlainTokens; n -= kPlainTokens, x += kPlainTokens * n_in, y += kPlainTokens * y_stride)
    for (int o = 0; o < 4 && o < n_valid; o += kPlainOutputs)
      dense_tokens<kPlainTokens, kPlainOutputs>(from + o, n_valid - o, x, n_in, y + o, y_stride);
  for (; n >= 1; n -= 1, x += n_in, y += y_stride) dense_tokens<1, 4>(from, n_valid, x, n_in, y, y_stride);
}

static void dense(const void* w, bool is_bf16, int64_t w_stride, int64_t n_valid, const float* x, int64_t n_rows, int64_t n_in,
                  float* y, int64_t y_stride) {
  is_bf16 ? dense_rows(static_cast<const uint16_t*>(w), w_stride, n_valid, x, n_rows, n_in, y, y_stride)
          : dense_rows(static_cast<const float*>(w), w_stride, n_valid, x, n_rows, n_in, y, y_stride);
}

// gate = act(gate) * up; n is a multiple of 16. GELU in the tanh form: x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)).
static void activate(float* gate, const float* up, int64_t n, bool gelu) {
  for (int64_t i = 0; i < n; i += 16) {
    const F16 x = load(gate + i);
    const F16 inner = gelu ? set1(1.59576912f) * fma(set1(0.044715f) * x * x, x, x) : x;
    store(gate + i, x * sigmoid(inner) * load(up + i));
  }
}

static void rms_norm(const float* x, const float* weight, float eps, int64_t dim, float* y) {
  F16 squares = set1(0);
  for (int64_t i = 0; i < dim; i += 16) {
    const F16 v = load_tail(x + i, dim - i);
    squares = fma(v, v, squares);
  }
  const float scale = 1.0f / __builtin_sqrtf(hsum(squares) / float(dim) + eps);
  for (int64_t i = 0; i < dim; i++) y[i] = x[i] * scale * weight[i];
}

static void rope(const float* x, const float* cos, const float* sin, int64_t half, float* y) {
  for (int64_t i = 0; i < half; i++) {
    const float a = x[i], b = x[half + i];
    y[i] = a * cos[i] - b * sin[i];
    y[half + i] = b * cos[i] + a * sin[i];
  }
}

// Softmax over all experts, then the n_active most probable; the lower index wins on equal values. work: n_experts + 16.
static void route(const float* logits, int64_t n_experts, int64_t n_active, bool renormalise, float* work, int64_t* ids,
                  float* gates) {
  float peak = logits[0];
  for (int64_t e = 1; e < n_experts; e++) peak = logits[e] > peak ? logits[e] : peak;
  float total = 0;
  for (int64_t e = 0; e < n_experts; e += 16) store(work + e, exp(load_tail(logits + e, n_experts - e) - set1(peak)));
  for (int64_t e = 0; e < n_experts; e++) total += work[e];
  for (int64_t e = 0; e < n_experts; e++) work[e] /= total;
  float chosen = 0;
  for (int64_t a = 0; a < n_active; a++) {
    int64_t best = -1;
    for (int64_t e = 0; e < n_experts; e++) {
      bool taken = false;
      for (int64_t i = 0; i < a; i++) taken = taken || ids[i] == e;
      if (!taken && (best < 0 || work[e] > work[best])) best = e;
    }
    ids[a] = best, gates[a] = work[best];
    chosen += gates[a];
  }
  for (int64_t a = 0; renormalise && a < n_active; a++) gates[a] /= chosen;
}
