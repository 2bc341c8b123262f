// AMX for bfloat16 weights: 16 outputs x 16 tokens x 32 inputs an instruction, for any number of tokens, so that a row's bits are
// the same in any batch. Activations are split into up to three bfloat16 numbers that add up to them; every product is exact,
// and sums are float32, each in the one order of its 32 inputs, parts and blocks. The instruction takes denormal numbers for
// zero. Included by isa.h.

// The one row `row` of x into its places, zeros past n_in; returns how many parts are not all zero, at least 1. What is not finite
// is in the first part alone.
static int split_bf16(const float* x, int64_t n_in, const SplitRows& to, int64_t row) {
  const int64_t block0 = row / 16 * 16, width = to.n_rows - block0 < 16 ? to.n_rows - block0 : 16;
  uint16_t* at = to.data + block0 * to.blocks * 96 + (row - block0) * 2;
  uint32_t any[3] = {};
  for (int64_t b = 0; b < to.blocks; b++) {
    float v[32] = {};
    __builtin_memcpy(v, x + b * 32, sizeof(float) * size_t(n_in - b * 32 < 32 ? n_in - b * 32 : 32));
    for (int part = 0; part < 3; part++, at += 32 * width) {
      uint32_t high[32];
      for (int i = 0; i < 32; i++) {
        uint32_t bits;
        __builtin_memcpy(&bits, v + i, 4);
        const bool is_finite = (bits & 0x7FFFFFFF) < 0x7F800000, is_nan = (bits & 0x7FFFFFFF) > 0x7F800000;
        high[i] = (is_finite ? bits + 0x7FFF + (bits >> 16 & 1) : bits | (is_nan ? 0x400000 : 0)) & 0xFFFF0000;
        float rounded;
        __builtin_memcpy(&rounded, high + i, 4);
        v[i] = (high[i] & 0x7F800000) == 0x7F800000 ? 0.0f : v[i] - rounded;
        any[part] |= high[i] << 1;
      }
      for (int i = 0; i < 32; i += 2) {
        const uint32_t pair = high[i] >> 16 | high[i + 1];
        __builtin_memcpy(at + i * width, &pair, 4);
      }
    }
  }
  return any[2] ? 3 : any[1] ? 2 : 1;
}

constexpr int64_t kBf16Ahead = 512;  // inputs: a kilobyte of each row

LIBREMOE_INLINE TileShapes bf16_shapes(int64_t tokens) {  // 0-3 sums (16 x tokens), 4 and 5 weights, 6 and 7 activations
  TileShapes shapes(16, 64);
  for (int i = 0; i < 8; i++)
    if (i < 4 || i > 5) shapes.bytes[i] = uint16_t(4 * tokens);
  return shapes;
}

// A chunk of the weight's inputs as tiles (tile row, block of the chunk), zeros past its end.
static void bf16_panel(const Bf16Args& a, int64_t rows, int64_t chunk, int64_t first, int64_t blocks) {
  for (int64_t o = 0; o < rows * 16; o++) {
    uint16_t* to = a.panel + o / 16 * chunk * 512 + o % 16 * 32;
    const uint16_t* from = a.w + o * a.w_stride + first * 32;
    for (int64_t b = 0; b < blocks; b++, to += 512, from += 32) {
      const int64_t left = o < a.n_out ? a.n_in - (first + b) * 32 : 0;
      if (left >= 32) {
        __builtin_memcpy(to, from, 64);
        continue;
      }
      __builtin_memset(to, 0, 64);
      if (left > 0) __builtin_memcpy(to, from, sizeof(uint16_t) * size_t(left));
    }
  }
}

// Two tile rows of weights, in a panel or where they are stored: elements from a block of 32 inputs to the next, from an output to
// the next, and from a tile row to the other.
struct Bf16Rows {
  const uint16_t* data;
  int64_t block, output, other;
};

// sums (+)= two tile rows times kWide blocks of `tokens` tokens over some blocks of inputs. sums and x of the second block of tokens
// follow at sums_step and x_step. kStored: the weights come from memory, and what comes next is fetched.
template <int kWide, bool kStored>
LIBREMOE_INLINE void bf16_tiles(const Bf16Rows& w, int64_t blocks, const uint16_t* x, int64_t x_step, int64_t tokens, int parts, bool starts,
                                float* sums, int64_t sums_step) {
  if (starts) {
    TILE_CLEAR(0); TILE_CLEAR(1);
    if (kWide > 1) { TILE_CLEAR(2); TILE_CLEAR(3); }
  } else {
    TILE_LOAD(0, sums, 64); TILE_LOAD(1, sums + 256, 64);
    if (kWide > 1) { TILE_LOAD(2, sums + sums_step, 64); TILE_LOAD(3, sums + sums_step + 256, 64); }
  }
  for (int64_t b = 0; b < blocks; b++) {
    const uint16_t* at = w.data + b * w.block;
    for (int o = 0; kStored && o < 16; o++) {
      __builtin_prefetch(at + kBf16Ahead + o * w.output);
      __builtin_prefetch(at + kBf16Ahead + o * w.output + w.other);
    }
    TILE_LOAD(4, at, 2 * w.output); TILE_LOAD(5, at + w.other, 2 * w.output);
    for (int part = 0; part < parts; part++) {
      const uint16_t* from = x + (b * 3 + part) * 32 * tokens;
      TILE_LOAD(6, from, 4 * tokens); TILE_DOT_BF16(0, 4, 6); TILE_DOT_BF16(1, 5, 6);
      if (kWide > 1) { TILE_LOAD(7, from + x_step, 64); TILE_DOT_BF16(2, 4, 7); TILE_DOT_BF16(3, 5, 7); }
    }
  }
  TILE_STORE(0, sums); TILE_STORE(1, sums + 256);
  if (kWide > 1) { TILE_STORE(2, sums + sums_step); TILE_STORE(3, sums + sums_step + 256); }
}

// Few tokens: whole tiles straight from the stored weights, which are read once. Returns how many blocks that were.
static int64_t bf16_stored(const Bf16Args& a) {
  const int64_t blocks = a.n_in / 32, n = a.x.n_rows;
  if (n > 16 || a.n_out % 32 || !blocks) return 0;
  tiles_begin(bf16_shapes(n));
  for (int64_t r = 0; r < a.n_out / 16; r += 2)
    bf16_tiles<1, true>({a.w + r * 16 * a.w_stride, 32, a.w_stride, 16 * a.w_stride}, blocks, a.x.data, 0, n, a.x.parts, true,
                        a.sums + r * 256, 0);
  return blocks;
}

static void dense_bf16(const Bf16Args& a) {
  const int64_t rows = (a.n_out + 31) / 32 * 2, chunk = kBf16PanelTiles / rows, n = a.x.n_rows, token_step = a.x.blocks * 96;
  for (int64_t first = bf16_stored(a); first < a.x.blocks; first += chunk) {
    const int64_t blocks = a.x.blocks - first < chunk ? a.x.blocks - first : chunk;
    bf16_panel(a, rows, chunk, first, blocks);
    int64_t t = 0;
    const auto some = [&](auto wide, int64_t tokens) __attribute__((always_inline)) {
      const uint16_t* x = a.x.data + t * token_step + first * 96 * tokens;
      for (int64_t r = 0; r < rows; r += 2)
        bf16_tiles<decltype(wide)::value, false>({a.panel + r * chunk * 512, 512, 32, chunk * 512}, blocks, x, 16 * token_step, tokens,
                                                 a.x.parts, first == 0, a.sums + (t / 16 * rows + r) * 256, rows * 256);
    };
    tiles_begin(bf16_shapes(16));  // also keeps the compiler from loading tiles before the panel is written
    for (; t + 32 <= n; t += 32) some(Constant<2>{}, 16);
    if (t + 16 <= n) some(Constant<1>{}, 16), t += 16;
    if (t < n) {
      tiles_begin(bf16_shapes(n - t));
      some(Constant<1>{}, n - t);
    }
  }
  tiles_end();
}
