// A mixture of experts in two parallel loops: gate and up with the activation, straight into int8; then down with the sum over
// a token's experts. Tokens are sorted by expert, so each expert's weights are read once a batch.
#include <algorithm>
#include <cstring>

#include "dispatch.h"
#include "matmul.h"

namespace libremoe {

namespace {

// Slot s is one (token, choice) pair; slots of one expert are neighbours, in the order of tokens.
struct Slots {
  std::vector<int64_t> token;   // of a slot
  std::vector<int64_t> of;      // slot of (token, choice)
  std::vector<int64_t> expert;  // chosen experts, ascending
  std::vector<int64_t> start;   // first slot of each, and the number of slots

  Slots(const int64_t* ids, int64_t n_rows, int64_t n_active, size_t n_experts) : token(size_t(n_rows * n_active)), of(token.size()) {
    std::vector<int64_t> next(n_experts + 1, 0);
    for (size_t i = 0; i < of.size(); i++) next[size_t(ids[i]) + 1]++;
    for (size_t e = 0; e < n_experts; e++) {
      if (next[e + 1]) expert.push_back(int64_t(e)), start.push_back(next[e]);
      next[e + 1] += next[e];
    }
    start.push_back(int64_t(of.size()));
    for (size_t i = 0; i < of.size(); i++) {
      of[i] = next[size_t(ids[i])]++;
      token[size_t(of[i])] = int64_t(i) / n_active;
    }
  }
};

}  // namespace

void moe(const float* x, int64_t n_rows, int64_t dim, const int64_t* ids, const float* gates, int64_t n_active,
         const std::vector<const Expert*>& experts, bool gelu, float* y) {
  const Slots slots(ids, n_rows, n_active, experts.size());
  const int64_t n_slots = n_rows * n_active, n_chosen = int64_t(slots.expert.size());
  const Expert& any = *experts[size_t(slots.expert[0])];
  const int64_t hidden_dim = any.gate.n_out, hidden_blocks = (hidden_dim + 63) / 64;
  const Activations a = quantise(x, n_slots, dim, parts_of(any.gate), slots.token.data());
  Activations h(n_slots, hidden_dim, parts_of(any.down));
  const auto& k = kernels();

  // An item is as many strips as it takes for whole activation scales of what comes out.
  const int64_t width = strip_width(any.gate, n_slots * a.view.parts), span = std::max(width, kScaleInputs);
  const int64_t items = (hidden_dim + span - 1) / span, chunk = kTokenChunk / a.view.parts;
  pool()->parallel_for(n_chosen * items, [&](int64_t item, Memory& memory) {
    const int64_t nth = item / items, begin = item % items * span, end = std::min(begin + span, hidden_blocks * 64);
    const Expert& expert = *experts[size_t(slots.expert[size_t(nth)])];
    Scratch& scratch = memory.scratch();
    float* hidden = memory.floats(size_t(chunk * span));
    const int64_t last = slots.start[size_t(nth) + 1];
    for (int64_t s = slots.start[size_t(nth)]; s < last; s += chunk) {
      const int64_t n = std::min(chunk, last - s);
      for (int64_t out0 = begin; out0 < end; out0 += width) {
        k.product(expert.gate, a.view, s, s + n, out0, width, scratch, scratch.out);
        k.product(expert.up, a.view, s, s + n, out0, width, scratch, scratch.out2);
        k.activate(scratch.out, scratch.out2, n * width, gelu);
        for (int64_t i = 0; i < n; i++)
          std::memcpy(hidden + i * span + out0 - begin, scratch.out + i * width, sizeof(float) * size_t(width));
      }
      for (int64_t i = 0; i < n; i++)  // quantise() counts from the row's first input: shift the item there
        k.quantise(hidden + i * span - begin, hidden_dim, begin / 64, std::min(end / 64, hidden_blocks), h.view, s + i);
    }
  });

  const int64_t down_width = strip_width(any.down, n_slots * h.view.parts), down_chunk = kTokenChunk / h.view.parts;
  pool()->parallel_for((dim + down_width - 1) / down_width, [&](int64_t strip, Memory& memory) {
    const int64_t out0 = strip * down_width, valid = std::min(down_width, dim - out0);
    Scratch& scratch = memory.scratch();
    float* products = memory.floats(size_t(n_slots * down_width));
    for (int64_t nth = 0; nth < n_chosen; nth++) {
      const Expert& expert = *experts[size_t(slots.expert[size_t(nth)])];
      const int64_t last = slots.start[size_t(nth) + 1];
      for (int64_t s = slots.start[size_t(nth)]; s < last; s += down_chunk) {
        const int64_t end = std::min(s + down_chunk, last);
        k.product(expert.down, h.view, s, end, out0, down_width, scratch, scratch.out);
        std::memcpy(products + s * down_width, scratch.out, sizeof(float) * size_t((end - s) * down_width));
      }
    }
    for (int64_t n = 0; n < n_rows; n++) {
      float* out = y + n * dim + out0;
      std::memset(out, 0, sizeof(float) * size_t(valid));
      for (int64_t c = n * n_active; c < (n + 1) * n_active; c++) {
        const float* from = products + slots.of[size_t(c)] * down_width;
        for (int64_t o = 0; o < valid; o++) out[o] += gates[c] * from[o];
      }
    }
  });
}

}  // namespace libremoe
