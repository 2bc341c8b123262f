// AMX: 16 tokens x 16 outputs x 64 inputs an instruction. A tile of the layout is an AMX B tile as it lies. A seam of three
// operations (load, multiply-add, store) has two bodies: the instructions, and plain code that does the same, with which this
// file's control flow is tested on processors without AMX. Included by isa.h.

#if defined(LIBREMOE_AMX)

LIBREMOE_INLINE void tiles_begin() {  // all eight tiles of 16 rows x 64 bytes
  struct { uint8_t palette, start_row, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } config = {};
  config.palette = 1;
  for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
  _tile_loadconfig(&config);
}
LIBREMOE_INLINE void tiles_end() { _tile_release(); }
#define TILE_CLEAR(tile) _tile_zero(tile)  // macros: gcc wants the tile's number as a literal
#define TILE_LOAD(tile, from, stride) _tile_loadd(tile, from, stride)
#define TILE_STORE(tile, to) _tile_stored(tile, to, 64)
#define TILE_DOT(sum, a, b) _tile_dpbsud(sum, a, b)

#else  // emulated

static thread_local uint8_t tile_memory[8][16][64];
LIBREMOE_INLINE void tiles_begin() { __builtin_memset(tile_memory, 0xFF, sizeof tile_memory); }
LIBREMOE_INLINE void tiles_end() {}
static void tile_load(int tile, const void* from, int64_t stride) {
  for (int r = 0; r < 16; r++) __builtin_memcpy(tile_memory[tile][r], static_cast<const char*>(from) + r * stride, 64);
}
static void tile_dot(int to, int a, int b) {  // TDPBSUD: signed bytes of A, unsigned bytes of B
  for (int m = 0; m < 16; m++)
    for (int n = 0; n < 16; n++) {
      int32_t sum;
      __builtin_memcpy(&sum, tile_memory[to][m] + 4 * n, 4);
      for (int k = 0; k < 64; k++) sum += int8_t(tile_memory[a][m][k]) * int32_t(tile_memory[b][k / 4][4 * n + k % 4]);
      __builtin_memcpy(tile_memory[to][m] + 4 * n, &sum, 4);
    }
}
#define TILE_CLEAR(tile) __builtin_memset(tile_memory[tile], 0, 1024)
#define TILE_LOAD(tile, from, stride) tile_load(tile, from, stride)
#define TILE_STORE(tile, to) __builtin_memcpy(to, tile_memory[tile], 1024)
#define TILE_DOT(sum, a, b) tile_dot(sum, a, b)

#endif

constexpr int64_t kAmxTokens = 16;

// One part of 64 or 32 inputs: exact sums of n tokens x 16 outputs, minus the offset, scaled into out (and group).
LIBREMOE_INLINE void add_tile(const Walk& w, int64_t n, const int32_t* sums, int row, int64_t b, int part, int parts, int64_t group,
                              bool ends) {
  const F16 scale = load_scale(w.scale[row], group * w.scale_step, w.scale_is_f32);
  const bool spans = w.group_parts > 1;
  for (int64_t t = 0; t < n; t++) {
    const int32_t* s = w.sum + (t * w.blocks + b) * 2;
    const I16 dots = add(load_i(sums + 16 * t), set1_i(-w.offset * (parts == 1 ? s[0] + s[1] : s[part])));
    const F16 x_scale = set1(w.x_scale[t * w.blocks + b]);
    F16 g = to_float(dots) * x_scale;
    if (spans) {
      float* kept = w.group + t * w.stride + row * 16;
      g = fma(to_float(dots), x_scale, load(kept));
      store(kept, ends ? set1(0) : g);
    }
    float* out = w.out + t * w.stride + row * 16;
    if (ends) store(out, fma(g, scale, load(out)));
  }
}

// The activations of one block, as they lie or, where some are to be left out, copied: tokens past n, and for groups of 32 the
// other half of the inputs, are zero. So half of a product is used then, with the same exact result.
LIBREMOE_INLINE const int8_t* amx_activations(const int8_t* q, int64_t& stride, int64_t n, bool half_blocks, int part, int8_t* copy) {
  if (n == kAmxTokens && !half_blocks) return q;
  __builtin_memset(copy, 0, 1024);
  const int from = half_blocks ? 32 * part : 0;
  for (int64_t t = 0; t < n; t++) __builtin_memcpy(copy + t * 64 + from, q + t * stride + from, half_blocks ? 32 : 64);
  stride = 64;
  return copy;
}

// n tokens (at most 16) x four tile rows. Tiles 0-3 hold sums, 4 the activations, 5-7 codes.
static void amx_tokens(const Walk& w, int64_t n, bool half_blocks) {
  const int parts = half_blocks ? 2 : 1;
  alignas(64) int32_t sums[4][256];
  alignas(64) int8_t copy[1024];
  int64_t group = w.first * parts / w.group_parts, left = (group + 1) * w.group_parts - w.first * parts;
  for (int64_t b = w.first; b < w.last; b++)
    for (int part = 0; part < parts && b * parts + part < w.n_parts; part++) {
      int64_t stride = w.blocks * 64;
      const int8_t* q = amx_activations(w.q + b * 64, stride, n, half_blocks, part, copy);
      TILE_LOAD(4, q, stride);
      const int64_t at = b * w.tile_step;
      TILE_CLEAR(0); TILE_CLEAR(1); TILE_CLEAR(2); TILE_CLEAR(3);
      TILE_LOAD(5, w.tile[0] + at, 64); TILE_DOT(0, 4, 5);
      TILE_LOAD(6, w.tile[1] + at, 64); TILE_DOT(1, 4, 6);
      TILE_LOAD(7, w.tile[2] + at, 64); TILE_DOT(2, 4, 7);
      TILE_LOAD(5, w.tile[3] + at, 64); TILE_DOT(3, 4, 5);
      TILE_STORE(0, sums[0]); TILE_STORE(1, sums[1]); TILE_STORE(2, sums[2]); TILE_STORE(3, sums[3]);
      const bool ends = --left == 0 || b * parts + part + 1 == w.n_parts;
      for (int row = 0; row < 4; row++) add_tile(w, n, sums[row], row, b, part, parts, group, ends);
      if (left == 0) group++, left = w.group_parts;
    }
}

static void amx_dots(const Walk& whole, int64_t n, bool half_blocks, bool wide) {
  constexpr int64_t kWorthwhile = 4;  // fewer tokens are left to the vector instructions
  Walk w = whole;
  tiles_begin();
  while (n >= kWorthwhile) {
    const int64_t some = n < kAmxTokens ? n : kAmxTokens;
    amx_tokens(w, some, half_blocks);
    w.q += some * w.blocks * 64, w.x_scale += some * w.blocks, w.sum += some * w.blocks * 2;
    w.out += some * w.stride, w.group += some * w.stride;
    n -= some;
  }
  tiles_end();
  vector_dots(w, n, half_blocks, wide);
}
