// Attention of some query rows to one block of at most 64 keys, with a running softmax (Milakov & Gimelshein 2018; Dao et al.
// 2022). A row's state changes only by the blocks in which it sees a key, so its bits do not depend on what else is computed
// with it. Rows of one kv head go together, so that each key and value is loaded and widened once for all. Included by isa.h.

// Query rows, and keys or vectors of values, that a micro kernel holds at a time.
#if defined(LIBREMOE_AVX512)
constexpr int kAttendRows = 6, kAttendWide = 4;  // Grok-1 has 6 query heads a kv head
#elif defined(LIBREMOE_AVX2)
constexpr int kAttendRows = 3, kAttendWide = 2;
#else
constexpr int kAttendRows = 1, kAttendWide = 1;
#endif
constexpr int64_t kAttendFewRows = 6;  // up to here keys and values are read as they lie, for more they are widened first

// Keys and values of a block, rows of whole vectors. Of int8 these are the codes, here and when widened: a key's scale goes to
// its score, a value's to its weight, so that both ways have the same bits.
template <class T>
struct Block {
  const T *k, *v;
  int64_t stride, padded;  // elements from a key to the next, and of one
};

LIBREMOE_INLINE void fetch_ahead(const void* next, const AttendArgs& a, int64_t key) {  // into the L2 cache
  if (!next) return;
  const char* p = static_cast<const char*>(next) + key * a.next_step;
  for (int64_t i = 0; i < a.next_bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

// Scores of kRows query rows and keys from..to, each a sum in the order of hsum(), into scores (kRows, 64), which are
// written in whole vectors: what lies past the end is the last key's.
template <int kRows, class T>
LIBREMOE_INLINE void score(const AttendArgs& a, const Block<T>& block, int64_t row, int64_t from, int64_t to, float* scores) {
  const F16 cap = set1(a.softcap), twice_inverse = set1(a.softcap > 0 ? 2.0f / a.softcap : 0.0f);
  const float* q = a.q + row * a.q_stride;
  alignas(64) float sums[kRows][16 * 16];
  for (int64_t s = from / 16 * 16; s < to; s += 16) {
    for (int piece = 0; piece < 16; piece += kAttendWide) {
      int64_t at[kAttendWide];
      for (int j = 0; j < kAttendWide; j++) {
        const int64_t key = s + piece + j;
        at[j] = (key < from ? from : key < to ? key : to - 1) * block.stride;
        fetch_ahead(a.next_k, a, key);
      }
      Register sum[kRows][kAttendWide][kRegisters];
      for (int r = 0; r < kRows; r++)
        for (int j = 0; j < kAttendWide; j++)
          for (int h = 0; h < kRegisters; h++) sum[r][j][h] = set1_register(0);
      for (int64_t i = 0; i < block.padded; i += 16)
        for (int h = 0; h < kRegisters; h++) {
          Register key[kAttendWide];
          for (int j = 0; j < kAttendWide; j++) key[j] = load_register(block.k + at[j] + i + kLanes * h);
          for (int r = 0; r < kRows; r++) {
            const Register query = held(load_register(q + r * a.q_stride + i + kLanes * h));
            for (int j = 0; j < kAttendWide; j++) sum[r][j][h] = fma(query, key[j], sum[r][j][h]);
          }
        }
      for (int r = 0; r < kRows; r++)
        for (int j = 0; j < kAttendWide; j++)
          for (int h = 0; h < kRegisters; h++) store(sums[r] + 16 * (piece + j) + kLanes * h, sum[r][j][h]);
    }
    const F16 scale = a.k_scale ? load(a.k_scale + s) * set1(a.scale) : set1(a.scale);
    for (int r = 0; r < kRows; r++) {
      F16 score = hsum16(sums[r]) * scale;
      if (a.softcap > 0) score = cap - (cap + cap) / (set1(1.0f) + exp(score * twice_inverse));  // cap * tanh(score / cap)
      store(scores + 64 * r + s, score);
    }
  }
}

LIBREMOE_INLINE float largest(F16 x) {
  float s[16];
  store(s, x);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; i++) s[i] = s[i] > s[i + width] ? s[i] : s[i + width];
  return s[0];
}

// Scores of each row -> weights, zero where it sees no key, and its running maximum and sum; change is what its values so far
// are to be multiplied with.
template <int kRows>
LIBREMOE_INLINE void soften(float* scores, const int64_t* from, const int64_t* to, float* m, float* l, float change[16]) {
  float peak[kRows];
  for (int r = 0; r < 16; r++) change[r] = 0;
  for (int r = 0; r < kRows; r++) {
    float* row = scores + 64 * r;
    for (int64_t s = 0; s < from[r]; s++) row[s] = -__builtin_inff();
    for (int64_t s = to[r]; s < 64; s++) row[s] = -__builtin_inff();
    F16 most = set1(m[r]);
    for (int s = 0; s < 64; s += 16) most = max(load(row + s), most);  // the second where one is NaN
    peak[r] = largest(most);
    if (from[r] < to[r]) change[r] = m[r] - peak[r];
  }
  store(change, exp(load(change)));
  for (int r = 0; r < kRows; r++) {
    float* row = scores + 64 * r;
    if (from[r] >= to[r]) {
      __builtin_memset(row, 0, 64 * sizeof(float));
      continue;
    }
    for (int s = 0; s < 64; s += 16) store(row + s, exp(load(row + s) - set1(peak[r])));
    for (int64_t s = 0; s < from[r]; s++) row[s] = 0;
    for (int64_t s = to[r]; s < 64; s++) row[s] = 0;
    const F16 total = (load(row) + load(row + 16)) + (load(row + 32) + load(row + 48));
    m[r] = peak[r], l[r] = l[r] * change[r] + hsum(total);
  }
}

// acc = acc * change + sum of weights[s] * values[s] for kRows rows and 16 * kVectors columns from i, keys from..to in order.
template <int kRows, int kVectors, class T>
LIBREMOE_INLINE void add_values(const AttendArgs& a, const Block<T>& block, int64_t i, const float* weights, const float* change, float* acc,
                                int64_t from, int64_t to) {
  constexpr int kWide = kVectors * kRegisters;
  Register sum[kRows][kWide];
  for (int r = 0; r < kRows; r++)
    for (int j = 0; j < kWide; j++)
      sum[r][j] = load_register(acc + r * block.padded + i + kLanes * j) * set1_register(change[r]);
  for (int64_t s = from; s < to; s++) {
    if (i == 0) fetch_ahead(a.next_v, a, s);
    Register weight[kRows];
    for (int r = 0; r < kRows; r++) weight[r] = set1_register(weights[64 * r + s]);
    for (int j = 0; j < kWide; j++) {
      const Register value = load_register(block.v + s * block.stride + i + kLanes * j);
      for (int r = 0; r < kRows; r++) sum[r][j] = fma(weight[r], value, sum[r][j]);
    }
  }
  for (int r = 0; r < kRows; r++)
    for (int j = 0; j < kWide; j++) store(acc + r * block.padded + i + kLanes * j, sum[r][j]);
}

template <int kRows, class T>
static void attend_rows(const AttendArgs& a, const Block<T>& block, int64_t row) {
  int64_t from[kRows], to[kRows], first = 64, last = 0;
  for (int r = 0; r < kRows; r++) {
    from[r] = a.visible_from[row + r] > a.key0 ? a.visible_from[row + r] - a.key0 : 0;
    to[r] = a.visible_to[row + r] - a.key0 < a.n_keys ? a.visible_to[row + r] - a.key0 : a.n_keys;
    if (from[r] >= to[r]) {
      from[r] = to[r] = 0;
      continue;
    }
    first = from[r] < first ? from[r] : first, last = to[r] > last ? to[r] : last;
  }
  if (last == 0) return;
  alignas(64) float weights[64 * kRows], change[16];
  score<kRows>(a, block, row, first, last, weights);
  soften<kRows>(weights, from, to, a.m + row, a.l + row, change);
  for (int at = 0; a.v_scale && at < 64 * kRows; at += 16) store(weights + at, load(weights + at) * load(a.v_scale + at % 64));
  float* acc = a.acc + row * block.padded;
  int64_t i = 0;
  for (; i + 16 * kAttendWide <= block.padded; i += 16 * kAttendWide)
    add_values<kRows, kAttendWide>(a, block, i, weights, change, acc, first, last);
  for (; i < block.padded; i += 16) add_values<kRows, 1>(a, block, i, weights, change, acc, first, last);
}

template <class T>
LIBREMOE_INLINE void attend_all(const AttendArgs& a, const Block<T>& block) {
  int64_t row = 0;
  for (; row + kAttendRows <= a.rows; row += kAttendRows) attend_rows<kAttendRows>(a, block, row);
  if constexpr (kAttendRows > 4)
    for (; row + 4 <= a.rows; row += 4) attend_rows<4>(a, block, row);
  if constexpr (kAttendRows > 2)
    for (; row + 2 <= a.rows; row += 2) attend_rows<2>(a, block, row);
  for (; row < a.rows; row++) attend_rows<1>(a, block, row);
}

template <class T>
LIBREMOE_INLINE void widen(const T* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; i += 16)
    for (int64_t at = i; at < i + 16; at += kLanes) {
      if (n - at >= kLanes) {
        store(to + at, load_register(from + at));
        continue;
      }
      T tail[kLanes] = {};
      if (n > at) __builtin_memcpy(tail, from + at, sizeof(T) * size_t(n - at));
      store(to + at, load_register(tail));
    }
}

template <class T>
static void attend_block(const AttendArgs& a) {
  const T *k = static_cast<const T*>(a.k), *v = static_cast<const T*>(a.v);
  const int64_t padded = (a.head_dim + 15) / 16 * 16;
  if (padded == a.head_dim && a.rows <= kAttendFewRows)
    return attend_all(a, Block<T>{k, v, a.kv_stride, padded});
  float *keys = a.work, *values = keys + 64 * padded;
  for (int64_t s = 0; s < a.n_keys; s++) {
    fetch_ahead(a.next_k, a, s), fetch_ahead(a.next_v, a, s);
    widen(k + s * a.kv_stride, a.head_dim, keys + s * padded);
    widen(v + s * a.kv_stride, a.head_dim, values + s * padded);
  }
  AttendArgs widened = a;
  widened.next_k = widened.next_v = nullptr;
  attend_all(widened, Block<float>{keys, values, padded, padded});
}

static void attend(const AttendArgs& a) {
  switch (a.kv_type) {
    case KvType::kF32: return attend_block<float>(a);
    case KvType::kBf16: return attend_block<uint16_t>(a);
    case KvType::kInt8: return attend_block<int8_t>(a);
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
