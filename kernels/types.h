// What the drivers (matmul.cpp, moe.cpp, attention.cpp) and the per-instruction-set bodies share: plain structs whose
// pointers carry their shapes, and the table of functions that each instruction set fills in. No standard-library templates
// here: bodies are compiled with different target flags, and a shared inline function would leak one set into another.
//
// Numerics, the same for every instruction set, batch and thread count, so that results are equal bit for bit:
//   activations are int8 per kScaleInputs inputs, q = round_half_even(x * (127 / absmax)), scale = absmax / 127;
//   int8 weights, which are kept for exactness, get a second int8 row for what the first leaves over and a third for what the
//   second does, as if they were more tokens, and y is row 0 + row 1 + row 2: activations then have about 23 bits, as many as
//   float32, and decoding one token still waits for memory; AVX2 multiplies them with float32 (floats.h), other bits;
//   a run is what lies in the same group of weights and has the same activation scale; of each run dot = sum q * (code - offset)
//   exactly (formats with a half offset use doubled codes and halve the end result);
//   h = fma(float(dot), weight scale, h) over the runs of an activation scale, y = fma(h, activation scale, y), in order.
// Plain weights: float32 sums in sixteen lanes; of bfloat16 with AMX in the order of its tiles (amx_bf16.h), other bits.
#pragma once
#include <cstdint>

namespace libremoe {

enum FormatId { kInt8 = 0, kInt4 = 1, kInt3 = 2, kInt2 = 3 };
constexpr int kFormats = 4;

// A quantised weight of logical shape (n_out, n_in); layouts and codes are defined by libremoe/quant.py.
struct Weight {
  const uint8_t* data;  // tiles: (ceil(n_out / 16), ceil(n_in / 64), tile bytes); columns: (n_in, data_stride) signed
  const void* scales;   // tiles: (ceil(n_out / 16), n_groups, 16); columns: (n_groups, scale_stride)
  int64_t data_stride, scale_stride;  // columns only, in elements
  int64_t n_out, n_in, group;
  int format;         // FormatId
  bool scale_is_f32;  // else bfloat16
  bool columns;       // the official layout, int8 only
};

constexpr int64_t kScaleBlocks = 4;  // blocks of 64 inputs that share an activation scale
constexpr int64_t kScaleInputs = 64 * kScaleBlocks;
constexpr int kFloatRows = 4;  // as many int8 rows have room for a token's inputs in float32

// Rows of int8 activations: q (rows, blocks * 64), padded with zeros; scale (rows, scales); sum of q (rows, blocks * 2).
struct Quantised {
  int8_t* q;
  float* scale;
  int32_t* sum;
  int64_t blocks, scales;  // scales: blocks / kScaleBlocks, rounded up
  int parts;  // rows that a token has, whose products are added (parts_of() in matmul.h); kFloatRows: they hold float32 inputs
};

constexpr int64_t kStrip = 64;          // outputs of one work item: four tile rows, four read streams
constexpr int64_t kColumnsStrip = 2048;  // at most, for the columns layout with few tokens: long runs of each input's row
constexpr int64_t kFewTokens = 8;       // up to here weights are streamed once and never copied
constexpr int64_t kTokenChunk = 512;    // tokens that a strip's accumulators are held for
constexpr int64_t kPanelBlocks = 64;    // blocks of 64 inputs unpacked at a time: a 256 KiB panel stays in the L2 cache

// One thread's working memory. out and runs hold (kTokenChunk, kStrip), which is more than (kFewTokens, kColumnsStrip).
struct Scratch {
  uint8_t* panel;      // (kPanelBlocks, 4 tiles of 1024 bytes)
  float *out, *out2;   // products; two for gate and up
  float* runs;         // columns: sums over the runs of an activation scale
};
constexpr int64_t kOutFloats = kTokenChunk * kStrip;

// Rows of activations as sums of up to three bfloat16 numbers, as tiles take them: of each block of up to 16 tokens
// (blocks of 32 inputs, 3 parts, 16 pairs of inputs, tokens, 2).
struct SplitRows {
  uint16_t* data;
  int64_t n_rows, blocks;
  int parts;  // the first so many are not all zero
};

// Up to kBf16Strip outputs of a bfloat16 weight times rows of activations. sums: of each block of 16 tokens (tile rows, 16 outputs,
// 16 tokens), tile rows in pairs; what lies past the tokens or outputs means nothing.
struct Bf16Args {
  const uint16_t* w;   // rows of inputs, w_stride apart
  int64_t w_stride, n_out, n_in;
  SplitRows x;
  uint16_t* panel;     // kBf16PanelTiles tiles of 512
  float* sums;
};
constexpr int64_t kBf16Strip = 128, kBf16PanelTiles = 128;

// What keys and values are kept as. int8: codes, and a float32 scale for each head of each token.
enum class KvType { kF32, kBf16, kInt8 };
constexpr int64_t kv_bytes(KvType type) { return type == KvType::kF32 ? 4 : type == KvType::kBf16 ? 2 : 1; }

// Queries of one kv head against a block of its keys: the unit of attention.cpp.
struct AttendArgs {
  const float* q;        // (rows, q_stride) query rows of this kv head, head_dim each
  int64_t q_stride;
  const int64_t* visible_from;  // (rows) first key position seen
  const int64_t* visible_to;    // (rows) one past the last
  int64_t rows, head_dim;
  const void* k;         // one block's first key of this head
  const void* v;
  const void *next_k, *next_v;    // to be fetched ahead, next_bytes a key, next_step bytes apart; or null
  int64_t next_step, next_bytes;
  int64_t kv_stride;     // elements between consecutive keys
  KvType kv_type;
  const float *k_scale, *v_scale;  // (64) of this block's keys, zero past the last; null unless int8
  int64_t key0, n_keys;  // position of the block's first key, keys present (at most 64)
  float scale, softcap;  // softcap 0: none
  float* m;              // (rows) running maximum
  float* l;              // (rows) running sum
  float* acc;            // (rows, head_dim rounded up to 16) running weighted values
  float* work;           // (64, head_dim) keys and the same of values as float; head_dim in whole vectors
};

// How quantise_weights looks for a group's scale: peak times each factor, and codes from low to high (minus the offset).
struct CodeRange {
  float low, high, shift;  // shift: 0.5 where zero lies between two codes
  const float* factors;
  int64_t n_factors;
};

struct Kernels {
  const char* name;
  int int8_parts;  // of an input to int8 weights: 3, or kFloatRows
  // Blocks block0..block1 of one row x (n_in floats) into rows row * parts to row * parts + parts - 1. block0 is a multiple of
  // kScaleBlocks, and so is block1 or it is the last.
  void (*quantise)(const float* x, int64_t n_in, int64_t block0, int64_t block1, const Quantised& to, int64_t row);
  // out (last - first, width) = tokens first..last of x times outputs out0..out0 + width, in memory for x.parts times as much.
  // out0 is a multiple of 64 and width is 64 (up to kColumnsStrip for columns with at most kFewTokens rows); outputs past n_out
  // come out as zero.
  void (*product)(const Weight& w, const Quantised& x, int64_t first, int64_t last, int64_t out0, int64_t width,
                  Scratch& scratch, float* out);
  // y[n * y_stride + o] for rows 0..n_rows of x (n_in floats each) and 4 outputs at w (n_valid of them real), f32 or bf16.
  void (*dense)(const void* w, bool is_bf16, int64_t w_stride, int64_t n_valid, const float* x, int64_t n_rows, int64_t n_in,
                float* y, int64_t y_stride);
  // Where there are tiles of bfloat16, else null: a row of x into its places, returning its parts; and their products.
  int (*split_bf16)(const float* x, int64_t n_in, const SplitRows& to, int64_t row);
  void (*dense_bf16)(const Bf16Args& a);
  void (*activate)(float* gate, const float* up, int64_t n, bool gelu);  // gate = act(gate) * up
  void (*attend)(const AttendArgs& a);
  // (m, l, acc) = the softmax state merged with another one over the following keys.
  void (*attend_merge)(float* m, float* l, float* acc, float m2, float l2, const float* acc2, int64_t head_dim);
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t dim, float* y);
  void (*rope)(const float* x, const float* cos, const float* sin, int64_t half, float* y);
  void (*route)(const float* logits, int64_t n_experts, int64_t n_active, bool renormalise, float* work, int64_t* ids,
                float* gates);
  // Unsigned codes and scales (bfloat16 values) of n_groups groups of 32, 64 or 128 weights.
  void (*quantise_weights)(const float* x, int64_t n_groups, int64_t group, const CodeRange& range, uint8_t* codes, float* scales);
  double (*peak)(int64_t iterations);  // multiply-adds of int8 in registers done; for bench/kernels.py
  uint64_t (*read)(const uint8_t* data, int64_t bytes);  // xor of everything, four streams
};

// Chosen by cpuid at start, LIBREMOE_ISA, or use_isa(). See dispatch.cpp.
const Kernels& kernels();

}  // namespace libremoe
