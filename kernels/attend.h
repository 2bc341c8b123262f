// Attention of some query rows to one block of at most 64 keys, with a running softmax (Milakov & Gimelshein 2018; Dao et al.
// 2022). A row's state changes only by the blocks in which it sees a key, so its bits do not depend on what else is computed
// with it. Included by isa.h.

LIBREMOE_INLINE void widen(const void* from, bool is_bf16, int64_t at, int64_t n, float* to) {
  for (int64_t i = 0; i < n; i += 16) {
    if (n - i >= 16) store(to + i, is_bf16 ? load_bf16(static_cast<const uint16_t*>(from) + at + i)
                                           : load(static_cast<const float*>(from) + at + i));
    else store(to + i, load_weights(from, is_bf16, at + i, n - i));
  }
}

// Scores of two query rows and 8 keys, each a sum in the order of hsum(); lanes 0-7 are the first row's.
LIBREMOE_INLINE F16 scores_2x8(const float* const q[2], const float* keys, int64_t padded) {
  F16 sum[16];
  for (int i = 0; i < 16; i++) sum[i] = set1(0);
  for (int64_t i = 0; i < padded; i += 16) {
    const F16 a = load(q[0] + i), b = load(q[1] + i);
    for (int s = 0; s < 8; s++) {
      const F16 key = load(keys + s * padded + i);
      sum[s] = fma(a, key, sum[s]);
      sum[8 + s] = fma(b, key, sum[8 + s]);
    }
  }
  return hsum16(sum);
}

// acc = acc * rescale + sum of weights[s] * values[s] for two rows, keys from..to in order.
template <int kVectors>
LIBREMOE_INLINE void add_values(float* const acc[2], const float rescale[2], const float* weights, const float* values,
                                int64_t padded, int64_t from, int64_t to) {
  F16 sum[2][kVectors];
  for (int r = 0; r < 2; r++)
    for (int i = 0; i < kVectors; i++) sum[r][i] = load(acc[r] + 16 * i) * set1(rescale[r]);
  for (int64_t s = from; s < to; s++) {
    const F16 a = set1(weights[s]), b = set1(weights[64 + s]);
    for (int i = 0; i < kVectors; i++) {
      const F16 value = load(values + s * padded + 16 * i);
      sum[0][i] = fma(a, value, sum[0][i]);
      sum[1][i] = fma(b, value, sum[1][i]);
    }
  }
  for (int r = 1; r >= 0; r--)  // both may be the same row: the first is the one that counts
    for (int i = 0; i < kVectors; i++) store(acc[r] + 16 * i, sum[r][i]);
}

// Scores of one row -> weights, and its running maximum and sum; returns what its values so far are to be multiplied with.
LIBREMOE_INLINE float soften(float* scores, int64_t from, int64_t to, float& m, float& l) {
  float peak = m;
  for (int64_t s = from; s < to; s++) peak = scores[s] > peak ? scores[s] : peak;
  float change[16] = {m - peak};
  store(change, exp(load(change)));
  for (int64_t s = from / 16 * 16; s < to; s += 16) store(scores + s, exp(load(scores + s) - set1(peak)));
  for (int64_t s = 0; s < from; s++) scores[s] = 0;
  for (int64_t s = to; s < 64; s++) scores[s] = 0;
  float total = l * change[0];
  for (int64_t s = from; s < to; s++) total += scores[s];
  m = peak, l = total;
  return change[0];
}

static void attend(const AttendArgs& a) {
  const int64_t padded = (a.head_dim + 15) / 16 * 16;
  float *keys = a.work, *values = keys + 64 * padded, *weights = values + 64 * padded;  // weights: (2, 64)
  for (int64_t s = 0; s < a.n_keys; s++) {
    widen(a.k, a.kv_is_bf16, s * a.kv_stride, a.head_dim, keys + s * padded);
    widen(a.v, a.kv_is_bf16, s * a.kv_stride, a.head_dim, values + s * padded);
  }
  const F16 scale = set1(a.scale), cap = set1(a.softcap), twice_inverse = set1(a.softcap > 0 ? 2.0f / a.softcap : 0.0f);
  for (int64_t row = 0; row < a.rows; row += 2) {
    const int64_t rows[2] = {row, row + 1 < a.rows ? row + 1 : row};  // the last of an odd number is its own partner
    int64_t from[2], to[2];
    for (int r = 0; r < 2; r++) {
      from[r] = a.visible_from[rows[r]] > a.key0 ? a.visible_from[rows[r]] - a.key0 : 0;
      to[r] = a.visible_to[rows[r]] - a.key0 < a.n_keys ? a.visible_to[rows[r]] - a.key0 : a.n_keys;
      if (from[r] >= to[r]) from[r] = to[r] = 0;
    }
    const bool empty[2] = {to[0] == 0, to[1] == 0};
    if (empty[0] && empty[1]) continue;
    const int64_t first = empty[0] ? from[1] : empty[1] ? from[0] : from[0] < from[1] ? from[0] : from[1];
    const int64_t last = to[0] > to[1] ? to[0] : to[1];
    const float* q[2] = {a.q + rows[0] * a.q_stride, a.q + rows[1] * a.q_stride};
    __builtin_memset(weights, 0, 128 * sizeof(float));
    for (int64_t s = first / 8 * 8; s < last; s += 8) {
      F16 score = scores_2x8(q, keys + s * padded, padded) * scale;
      if (a.softcap > 0) score = cap - (cap + cap) / (set1(1.0f) + exp(score * twice_inverse));  // cap * tanh(score / cap)
      float both[16];
      store(both, score);
      __builtin_memcpy(weights + s, both, 32), __builtin_memcpy(weights + 64 + s, both + 8, 32);
    }
    float rescale[2] = {1.0f, 1.0f};
    float* acc[2];
    for (int r = 1; r >= 0; r--) {
      acc[r] = a.acc + rows[r] * padded;
      if (empty[r]) __builtin_memset(weights + 64 * r, 0, 64 * sizeof(float));
      else if (r == 0 || rows[1] != row) rescale[r] = soften(weights + 64 * r, from[r], to[r], a.m[rows[r]], a.l[rows[r]]);
    }
    int64_t i = 0;
    for (; i + 128 <= padded; i += 128, acc[0] += 128, acc[1] += 128)
      add_values<8>(acc, rescale, weights, values + i, padded, first, last);
    for (; i < padded; i += 16, acc[0] += 16, acc[1] += 16) add_values<1>(acc, rescale, weights, values + i, padded, first, last);
  }
}

static void attend_merge(float* m, float* l, float* acc, float m2, float l2, const float* acc2, int64_t head_dim) {
  if (l2 == 0) return;
  const float peak = m2 > *m ? m2 : *m;
  float both[16] = {*m - peak, m2 - peak};
  store(both, exp(load(both)));
  *m = peak, *l = *l * both[0] + l2 * both[1];
  for (int64_t i = 0; i < head_dim; i++) acc[i] = acc[i] * both[0] + acc2[i] * both[1];
}
