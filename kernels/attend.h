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

// Scores of one query row and 16 keys, each a sum in the order of hsum(). padded: head_dim rounded up to 16.
LIBREMOE_INLINE F16 scores_16(const float* q, const float* keys, int64_t padded) {
  F16 sum[16];
  for (int s = 0; s < 16; s++) sum[s] = set1(0);
  for (int64_t i = 0; i < padded; i += 16) {
    const F16 v = load(q + i);
    for (int s = 0; s < 16; s++) sum[s] = fma(v, load(keys + s * padded + i), sum[s]);
  }
  return hsum16(sum);
}

// acc = acc * rescale + sum of weights[s] * values[s], keys from..to in order.
template <int kVectors>
LIBREMOE_INLINE void add_values(float* acc, float rescale, const float* weights, const float* values, int64_t padded, int64_t from,
                                int64_t to) {
  F16 sum[kVectors];
  for (int i = 0; i < kVectors; i++) sum[i] = load(acc + 16 * i) * set1(rescale);
  for (int64_t s = from; s < to; s++) {
    const F16 weight = set1(weights[s]);
    for (int i = 0; i < kVectors; i++) sum[i] = fma(weight, load(values + s * padded + 16 * i), sum[i]);
  }
  for (int i = 0; i < kVectors; i++) store(acc + 16 * i, sum[i]);
}

static void attend(const AttendArgs& a) {
  const int64_t padded = (a.head_dim + 15) / 16 * 16;
  float *keys = a.work, *values = keys + 64 * padded, *weights = values + 64 * padded;
  for (int64_t s = 0; s < a.n_keys; s++) {
    widen(a.k, a.kv_is_bf16, s * a.kv_stride, a.head_dim, keys + s * padded);
    widen(a.v, a.kv_is_bf16, s * a.kv_stride, a.head_dim, values + s * padded);
  }
  for (int64_t row = 0; row < a.rows; row++) {
    const int64_t from = a.visible_from[row] > a.key0 ? a.visible_from[row] - a.key0 : 0;
    const int64_t to = a.visible_to[row] - a.key0 < a.n_keys ? a.visible_to[row] - a.key0 : a.n_keys;
    if (from >= to) continue;
    float peak = a.m[row];
    for (int64_t s = from / 16 * 16; s < to; s += 16) {
      F16 score = scores_16(a.q + row * a.q_stride, keys + s * padded, padded) * set1(a.scale);
      if (a.softcap > 0) score = set1(a.softcap) * tanh(score / set1(a.softcap));
      store(weights + s, score);
    }
    for (int64_t s = from; s < to; s++) peak = weights[s] > peak ? weights[s] : peak;
    float both[16] = {a.m[row] - peak};
    store(both, exp(load(both)));
    float total = a.l[row] * both[0];
    for (int64_t s = from / 16 * 16; s < to; s += 16) store(weights + s, exp(load(weights + s) - set1(peak)));
    for (int64_t s = from; s < to; s++) total += weights[s];
    a.m[row] = peak, a.l[row] = total;
    float* acc = a.acc + row * padded;
    int64_t i = 0;
    for (; i + 128 <= padded; i += 128) add_values<8>(acc + i, both[0], weights, values + i, padded, from, to);
    for (; i < padded; i += 16) add_values<1>(acc + i, both[0], weights, values + i, padded, from, to);
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
