// AMX: 16 tokens x 16 outputs x 64 inputs an instruction. A tile of the layout is an AMX B tile as it lies. A seam of four
// operations (load, clear, multiply-add, store) has two bodies: the instructions, and plain code that does the same, with which
// this file's control flow is tested on processors without AMX. Included by isa.h.

// Shapes of the tiles: 0-3 sums (tokens x 16), 4 and 6 activations (tokens x inputs), 5 and 7 codes (inputs / 4 x 16 x 4).
struct TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};

  TileShapes(int tokens, int inputs) {
    for (int i = 0; i < 8; i++) {
      const bool codes = i == 5 || i == 7, activations = i == 4 || i == 6;
      rows[i] = uint8_t(codes ? inputs / 4 : tokens), bytes[i] = uint16_t(activations ? inputs : 64);
    }
  }
};

#if defined(LIBREMOE_AMX)

LIBREMOE_INLINE void tiles_begin(const TileShapes& shapes) {
  asm volatile("" ::: "memory");  // gcc's tile loads do not say that they read memory
  _tile_loadconfig(&shapes);
}
LIBREMOE_INLINE void tiles_end() { _tile_release(); }
#define TILE_CLEAR(tile) _tile_zero(tile)  // macros: gcc wants the tile's number as a literal
#define TILE_LOAD(tile, from, stride) _tile_loadd(tile, from, stride)
#define TILE_STORE(tile, to) _tile_stored(tile, to, 64)
#define TILE_DOT(sum, a, b) _tile_dpbssd(sum, a, b)
#define TILE_DOT_BF16(sum, a, b) _tile_dpbf16ps(sum, a, b)

#else  // emulated

static thread_local uint8_t tile_memory[8][16][64];
static thread_local TileShapes tile_shapes(16, 64);
LIBREMOE_INLINE void tiles_begin(const TileShapes& shapes) {
  tile_shapes = shapes;
  __builtin_memset(tile_memory, 0xFF, sizeof tile_memory);
}
LIBREMOE_INLINE void tiles_end() {}
static void tile_load(int tile, const void* from, int64_t stride) {
  for (int r = 0; r < tile_shapes.rows[tile]; r++)
    __builtin_memcpy(tile_memory[tile][r], static_cast<const char*>(from) + r * stride, tile_shapes.bytes[tile]);
}
template <class T>
static void tile_store(int tile, T* to) {
  for (int r = 0; r < tile_shapes.rows[tile]; r++) __builtin_memcpy(to + 16 * r, tile_memory[tile][r], tile_shapes.bytes[tile]);
}
static void tile_dot(int to, int a, int b) {  // TDPBSSD: signed bytes of A and B
  for (int m = 0; m < tile_shapes.rows[to]; m++)
    for (int n = 0; n < 16; n++) {
      int32_t sum;
      __builtin_memcpy(&sum, tile_memory[to][m] + 4 * n, 4);
      for (int k = 0; k < tile_shapes.bytes[a]; k++)
        sum += int8_t(tile_memory[a][m][k]) * int32_t(int8_t(tile_memory[b][k / 4][4 * n + k % 4]));
      __builtin_memcpy(tile_memory[to][m] + 4 * n, &sum, 4);
    }
}
LIBREMOE_INLINE float flushed(float x) { return __builtin_fabsf(x) < 1.17549435e-38f ? __builtin_copysignf(0.0f, x) : x; }
static void tile_dot_bf16(int to, int a, int b) {  // TDPBF16PS: even and odd inputs in sums of their own, then added; no denormals
  const auto value = [](const uint8_t* p) {
    uint16_t half;
    __builtin_memcpy(&half, p, 2);
    const uint32_t bits = uint32_t(half) << 16;
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return flushed(x);
  };
  for (int m = 0; m < tile_shapes.rows[to]; m++)
    for (int n = 0; n < tile_shapes.bytes[to] / 4; n++) {
      float even = 0, odd = 0, sum;
      for (int k = 0; k < tile_shapes.bytes[a] / 4; k++) {
        const uint8_t *p = tile_memory[a][m] + 4 * k, *q = tile_memory[b][k] + 4 * n;
        even = flushed(__builtin_fmaf(value(p), value(q), even)), odd = flushed(__builtin_fmaf(value(p + 2), value(q + 2), odd));
      }
      __builtin_memcpy(&sum, tile_memory[to][m] + 4 * n, 4);
      sum = flushed(sum + flushed(even + odd));
      __builtin_memcpy(tile_memory[to][m] + 4 * n, &sum, 4);
    }
}
#define TILE_DOT_BF16(sum, a, b) tile_dot_bf16(sum, a, b)
#define TILE_CLEAR(tile) __builtin_memset(tile_memory[tile], 0, 1024)
#define TILE_LOAD(tile, from, stride) tile_load(tile, from, stride)
#define TILE_STORE(tile, to) tile_store(tile, to)
#define TILE_DOT(sum, a, b) tile_dot(sum, a, b)

#endif

constexpr int64_t kAmxPanelBlocks = 8;  // four tile rows of them are 32 KiB: codes stay in the L1 cache for all tokens

// A turn is up to four parts of 32 or 64 inputs, each a group: the next turn's products are under way while this turn's are scaled.
constexpr int kTurn = 4;

// Products of kTokens tokens and one tile row, `parts` parts from q and codes on, into sums (part, token, 16 outputs).
template <int kTokens, int kInputs>
LIBREMOE_INLINE void turn_products(const int8_t* q, int64_t stride, const uint8_t* codes, int64_t parts, int32_t* sums) {
  constexpr int kCodes = kInputs * 16, kSums = kTokens * 16;
  TILE_CLEAR(0); TILE_LOAD(4, q, stride); TILE_LOAD(5, codes, 64); TILE_DOT(0, 4, 5);
  if (parts > 1) { TILE_CLEAR(1); TILE_LOAD(6, q + kInputs, stride); TILE_LOAD(7, codes + kCodes, 64); TILE_DOT(1, 6, 7); }
  if (parts > 2) { TILE_CLEAR(2); TILE_LOAD(4, q + 2 * kInputs, stride); TILE_LOAD(5, codes + 2 * kCodes, 64); TILE_DOT(2, 4, 5); }
  if (parts > 3) { TILE_CLEAR(3); TILE_LOAD(6, q + 3 * kInputs, stride); TILE_LOAD(7, codes + 3 * kCodes, 64); TILE_DOT(3, 6, 7); }
  TILE_STORE(0, sums);
  if (parts > 1) TILE_STORE(1, sums + kSums);
  if (parts > 2) TILE_STORE(2, sums + 2 * kSums);
  if (parts > 3) TILE_STORE(3, sums + 3 * kSums);
}

// Groups of kInputs: kTokens tokens x one tile row over the blocks of a panel. The sums over the runs of an activation scale are
// held in registers.
template <int kTokens, int kInputs>
static void amx_row(const Walk& w, int row) {
  constexpr int kParts = 64 / kInputs;
  constexpr int64_t kScaleParts = kParts * kScaleBlocks;
  static_assert(kScaleParts % kTurn == 0 || kScaleParts * 2 == kTurn, "a turn ends where an activation scale does");
  alignas(64) int32_t sums[2][kTurn * kTokens * 16];
  const int64_t first = w.first * kParts, end = w.last * kParts, count = (end < w.n_parts ? end : w.n_parts) - first;
  const int64_t stride = w.blocks * 64, out_stride = w.stride, scale_step = w.scale_step, x_scales = w.scales;
  const int8_t* q = w.q + w.first * 64;
  const uint8_t* codes = w.tile[row] + w.first * 1024;
  const float* x_scale = w.x_scale + w.first / kScaleBlocks;
  const void* scales = w.scale[row];
  const bool scale_is_f32 = w.scale_is_f32;
  float* out = w.out + row * 16;
  F16 runs[kTokens];
  for (int t = 0; t < kTokens; t++) runs[t] = set1(0);
  const auto add_part = [&](const int32_t* dots, int64_t part) __attribute__((always_inline)) {
    const F16 scale = load_scale(scales, (first + part) * scale_step, scale_is_f32);
    for (int t = 0; t < kTokens; t++) runs[t] = fma(to_float(load_i(dots + 16 * t)), scale, runs[t]);
  };
  const auto end_scale = [&](int64_t part) __attribute__((always_inline)) {
    for (int t = 0; t < kTokens; t++) {
      float* y = out + t * out_stride;
      store(y, fma(runs[t], set1(x_scale[t * x_scales + part / kScaleParts]), load(y)));
      runs[t] = set1(0);
    }
  };
  const auto products = [&](int64_t part, int64_t parts, int32_t* to) __attribute__((always_inline)) {
    turn_products<kTokens, kInputs>(q + part * kInputs, stride, codes + part * kInputs * 16, parts, to);
  };
  products(0, count, sums[0]);
  int64_t part = 0, side = 0;
  for (; part + 2 * kTurn <= count; part += kTurn, side ^= 1) {
    products(part + kTurn, kTurn, sums[side ^ 1]);
    for (int i = 0; i < kTurn; i++) {
      add_part(sums[side] + i * kTokens * 16, part + i);
      if (kScaleParts < kTurn && (i + 1) % kScaleParts == 0) end_scale(part + i);
    }
    if (kScaleParts >= kTurn && (part + kTurn) % kScaleParts == 0) end_scale(part);
  }
  if (part + kTurn < count) products(part + kTurn, count - part - kTurn, sums[side ^ 1]);
  for (int64_t i = 0; part + i < count; i++) {
    add_part(sums[i < kTurn ? side : side ^ 1] + i % kTurn * kTokens * 16, part + i);
    if ((part + i + 1) % kScaleParts == 0 || part + i + 1 == count) end_scale(part + i);
  }
}

// Products of a run of `parts` parts for four tile rows at once, which share the activations; sums (4, kTokens, 16).
template <int kTokens, int kInputs>
LIBREMOE_INLINE void run_products(const int8_t* q, int64_t stride, const uint8_t* const codes[4], int64_t parts, int32_t* sums) {
  constexpr int kSums = kTokens * 16;
  TILE_CLEAR(0); TILE_CLEAR(1); TILE_CLEAR(2); TILE_CLEAR(3);
  for (int64_t part = 0, at = 0; part < parts; part++, at += kInputs * 16) {
    TILE_LOAD(4, q + part * kInputs, stride);
    TILE_LOAD(5, codes[0] + at, 64); TILE_DOT(0, 4, 5);
    TILE_LOAD(7, codes[1] + at, 64); TILE_DOT(1, 4, 7);
    TILE_LOAD(5, codes[2] + at, 64); TILE_DOT(2, 4, 5);
    TILE_LOAD(7, codes[3] + at, 64); TILE_DOT(3, 4, 7);
  }
  TILE_STORE(0, sums); TILE_STORE(1, sums + kSums); TILE_STORE(2, sums + 2 * kSums); TILE_STORE(3, sums + 3 * kSums);
}

// Groups of several parts: kTokens tokens x four tile rows over the blocks of a panel, a run at a time.
template <int kTokens, int kInputs>
static void amx_rows(const Walk& w) {
  constexpr int kParts = 64 / kInputs;
  constexpr int64_t kScaleParts = kParts * kScaleBlocks;
  alignas(64) int32_t sums[4 * kTokens * 16];
  alignas(64) float held[4 * kTokens * 16];
  const int64_t end = w.last * kParts, last = end < w.n_parts ? end : w.n_parts;
  for (int64_t part = w.first * kParts, run_end; part < last; part = run_end) {
    const int64_t group = part / w.group_parts, scale = part / kScaleParts;
    run_end = (group + 1) * w.group_parts < (scale + 1) * kScaleParts ? (group + 1) * w.group_parts : (scale + 1) * kScaleParts;
    run_end = run_end < last ? run_end : last;
    const uint8_t* codes[4];
    for (int row = 0; row < 4; row++) codes[row] = w.tile[row] + part * kInputs * 16;
    run_products<kTokens, kInputs>(w.q + part * kInputs, w.blocks * 64, codes, run_end - part, sums);
    const bool starts = part % kScaleParts == 0, ends = run_end % kScaleParts == 0 || run_end == last;
    for (int row = 0; row < 4; row++) {
      const F16 weight_scale = load_scale(w.scale[row], group * w.scale_step, w.scale_is_f32);
      for (int t = 0; t < kTokens; t++) {
        float *runs = held + (row * kTokens + t) * 16, *out = w.out + t * w.stride + row * 16;
        const F16 run = fma(to_float(load_i(sums + (row * kTokens + t) * 16)), weight_scale, starts ? set1(0) : load(runs));
        if (ends) store(out, fma(run, set1(w.x_scale[t * w.scales + scale]), load(out)));
        else store(runs, run);
      }
    }
  }
}

// kTokens tokens x four tile rows, as often as there are tokens for it. Meanwhile what comes next is fetched: the inputs of the
// tokens that follow, in this panel or at `next` in the next one, and the stored codes of the next panel.
template <int kTokens, int kInputs, bool kSpans>
static void amx_tokens(Walk& w, int64_t& n, const int8_t* next, Ahead& ahead) {
  if (n < kTokens) return;
  tiles_begin(TileShapes(kTokens, kInputs));
  const int64_t row_bytes = w.blocks * 64, bytes = (w.last - w.first) * 64;
  for (; n >= kTokens; n -= kTokens) {
    const int8_t* soon = n > kTokens ? w.q + kTokens * row_bytes + w.first * 64 : next;
    const int64_t tokens = n > kTokens && n - kTokens < kTokens ? n - kTokens : kTokens;
    for (int row = 0; row < 4; row++) {
      for (int64_t t = row; soon && t < tokens; t += 4)
        for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(soon + t * row_bytes + i);
      ahead.fetch();
      if (!kSpans) amx_row<kTokens, kInputs>(w, row);
    }
    if (kSpans) amx_rows<kTokens, kInputs>(w);
    w.q += kTokens * row_bytes, w.x_scale += kTokens * w.scales, w.out += kTokens * w.stride;
  }
}

template <int kInputs, bool kSpans>
static void amx_all(Walk w, int64_t n, Ahead& ahead) {
  const int8_t* next = n >= 16 && w.last < w.blocks ? w.q + w.last * 64 : nullptr;
  ahead.turns(4 * ((n + 15) / 16));
  amx_tokens<16, kInputs, kSpans>(w, n, next, ahead);
  amx_tokens<8, kInputs, kSpans>(w, n, nullptr, ahead);
  amx_tokens<4, kInputs, kSpans>(w, n, nullptr, ahead);
  amx_tokens<2, kInputs, kSpans>(w, n, nullptr, ahead);
  amx_tokens<1, kInputs, kSpans>(w, n, nullptr, ahead);
  tiles_end();
}

struct Amx {
  static constexpr bool kSigned = true;  // codes of a panel are values: the sums need no correction
  static constexpr int64_t kBlocks = kAmxPanelBlocks;
  static void dots(const Walk& w, int64_t n, bool half_blocks, bool, Ahead ahead) {
    const bool spans = w.group_parts > 1;
    if (half_blocks) spans ? amx_all<32, true>(w, n, ahead) : amx_all<32, false>(w, n, ahead);
    else spans ? amx_all<64, true>(w, n, ahead) : amx_all<64, false>(w, n, ahead);
  }
};
