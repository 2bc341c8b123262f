// Attention over a cache in blocks, or over plain rows.
#pragma once
#include <cstdint>
#include <vector>

#include "types.h"

namespace libremoe {

// Sequence b has tokens starts[b]..starts[b + 1] of the batch, and context_lens[b] keys. With tables, key s of sequence b lies
// in block tables[b][s / 64] of k and v (n_blocks, 64, n_kv_heads, head_dim); without, k and v are (tokens, n_kv_heads,
// head_dim) and keys are the sequence's own tokens. int8 has scales (n_blocks, 64, n_kv_heads).
struct AttentionArgs {
  const float* q;  // (tokens, n_heads, head_dim)
  const void *k, *v;
  KvType kv_type;
  const float *k_scales, *v_scales;
  int64_t n_heads, n_kv_heads, head_dim;
  const std::vector<int64_t>& starts;
  const int64_t* positions;  // (tokens)
  const std::vector<int64_t>& context_lens;
  const std::vector<std::vector<int64_t>>* tables;
  float scale, softcap;  // softcap 0: none
  int64_t window;        // 0: none
};

// out (tokens, n_heads * head_dim)
void attention(const AttentionArgs& a, float* out);

// Writes new keys or values (tokens, n_heads, head_dim) to their slots of a cache (slots, n_heads, head_dim). bfloat16 rounds to
// nearest even, int8 to 1/127 of a head's largest component, with scales (slots, n_heads).
void write_cache(const float* from, int64_t n_tokens, int64_t n_heads, int64_t head_dim, const std::vector<int64_t>& slots,
                 KvType type, void* cache, float* scales);

}  // namespace libremoe
