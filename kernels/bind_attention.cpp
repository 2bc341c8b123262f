// Attention, as Python calls it.
#include <nanobind/stl/vector.h>

#include "attention.h"
#include "bind.h"

namespace libremoe {

namespace {

std::vector<int64_t> slots_of(const std::vector<int64_t>& starts, const int64_t* positions,
                              const std::vector<std::vector<int64_t>>& tables) {
  std::vector<int64_t> slots;
  for (size_t b = 0; b + 1 < starts.size(); b++)
    for (int64_t n = starts[b]; n < starts[b + 1]; n++) {
      if (positions[n] / 64 >= int64_t(tables[b].size())) refuse("positions", "reaches past its sequence's block table");
      slots.push_back(tables[b][size_t(positions[n] / 64)] * 64 + positions[n] % 64);
    }
  return slots;
}

void check_sequences(const std::vector<int64_t>& starts, const std::vector<int64_t>& context_lens, const int64_t* positions,
                     int64_t n_tokens) {
  if (starts.empty() || starts.front() != 0 || starts.back() != n_tokens) refuse("starts", "must go from 0 to the number of tokens");
  const size_t n_sequences = starts.size() - 1;
  for (size_t b = 0; b < n_sequences; b++)
    if (starts[b] > starts[b + 1]) refuse("starts", "must not descend");
  if (context_lens.size() != n_sequences) refuse("context_lens", "must have one number a sequence");
  for (size_t b = 0; b < n_sequences; b++) {
    if (context_lens[b] < 0 || context_lens[b] > kMost) refuse("context_lens", "must not be negative");
    for (int64_t i = starts[b]; i < starts[b + 1]; i++)
      if (positions[i] < 0 || positions[i] >= context_lens[b]) refuse("positions", "must lie in the sequence's context");
  }
}

void check_tables(const std::vector<std::vector<int64_t>>& tables, const std::vector<int64_t>& context_lens, int64_t n_blocks) {
  if (tables.size() != context_lens.size()) refuse("block_tables", "must have one table a sequence");
  for (size_t b = 0; b < tables.size(); b++) {
    if (int64_t(tables[b].size()) < (context_lens[b] + 63) / 64) refuse("block_tables", "must cover the context");
    for (int64_t block : tables[b])
      if (block < 0 || block >= n_blocks) refuse("block_tables", "names block " + std::to_string(block) + ", which is not in the cache");
  }
}

// Keys or values of a cache, which the caller keeps; scales with int8 only.
struct Cache {
  KvType type;
  int64_t n_blocks;
  void* data;
  float* scales;

  Cache(const nb::object& data_, const nb::object& scales_, bool keys, int64_t n_heads, int64_t head_dim) {
    const char *name = keys ? "k_cache" : "v_cache", *scale_name = keys ? "k_scale" : "v_scale";
    if (data_.is_none()) refuse(name, "must be given with block_tables");
    const auto array = nb::cast<OutArray>(data_);
    const bool bf16 = is(array.dtype(), Type::kBf16), int8 = is(array.dtype(), Type::kI8);
    check(array, name, int8 ? Type::kI8 : bf16 ? Type::kBf16 : Type::kF32, {-1, 64, n_heads, head_dim});
    type = int8 ? KvType::kInt8 : bf16 ? KvType::kBf16 : KvType::kF32, n_blocks = int64_t(array.shape(0));
    data = array.data(), scales = nullptr;
    if (!int8) return;
    if (scales_.is_none()) refuse(scale_name, "must be given with a cache of int8");
    const auto scale_array = nb::cast<OutArray>(scales_);
    check(scale_array, scale_name, Type::kF32, {n_blocks, 64, n_heads});
    scales = floats(scale_array);
  }
};

// With tables: k_new and v_new are written to their slots of k_cache and v_cache first. Without: they are all the keys.
void py_attention(Array q, Array k_new, Array v_new, std::vector<int64_t> starts, Array positions,
                  std::vector<int64_t> context_lens, nb::object tables_or_none, nb::object k_cache, nb::object v_cache,
                  nb::object k_scale, nb::object v_scale, double scale, double softcap, int64_t window, OutArray out) {
  check(q, "q", Type::kF32, {-1, -1, -1});
  const int64_t n = int64_t(q.shape(0)), n_heads = int64_t(q.shape(1)), head_dim = int64_t(q.shape(2));
  check(k_new, "k", Type::kF32, {n, -1, head_dim});
  const int64_t n_kv_heads = int64_t(k_new.shape(1));
  check(v_new, "v", Type::kF32, {n, n_kv_heads, head_dim});
  check(positions, "positions", Type::kI64, {n});
  check(out, "out", Type::kF32, {n, n_heads * head_dim});
  if (n_kv_heads < 1 || n_heads < 1 || n_heads % n_kv_heads || n_heads / n_kv_heads > 1024 || head_dim < 1)
    refuse("q", "must have heads in a whole multiple (at most 1024) of the " + std::to_string(n_kv_heads) + " kv heads");
  if (window < 0) refuse("window", "must not be negative");
  const int64_t* position = static_cast<const int64_t*>(positions.data());
  check_sequences(starts, context_lens, position, n);
  AttentionArgs args{floats(q), k_new.data(), v_new.data(), KvType::kF32, nullptr, nullptr, n_heads, n_kv_heads, head_dim, starts,
                     position, context_lens, nullptr, float(scale), float(softcap), window};
  if (tables_or_none.is_none()) {
    for (size_t b = 0; b + 1 < starts.size(); b++)
      if (context_lens[b] != starts[b + 1] - starts[b]) refuse("context_lens", "without a cache must be the sequences' lengths");
    nb::gil_scoped_release release;
    attention(args, floats(out));
    return;
  }
  const auto tables = nb::cast<std::vector<std::vector<int64_t>>>(tables_or_none);
  const Cache keys(k_cache, k_scale, true, n_kv_heads, head_dim), values(v_cache, v_scale, false, n_kv_heads, head_dim);
  if (values.type != keys.type) refuse("v_cache", "must have the type of k_cache");
  if (values.n_blocks != keys.n_blocks) refuse("v_cache", "must have as many blocks as k_cache");
  check_tables(tables, context_lens, keys.n_blocks);
  const std::vector<int64_t> slots = slots_of(starts, position, tables);
  args.tables = &tables, args.k = keys.data, args.v = values.data, args.kv_type = keys.type;
  args.k_scales = keys.scales, args.v_scales = values.scales;
  nb::gil_scoped_release release;
  write_cache(floats(k_new), n, n_kv_heads, head_dim, slots, keys.type, keys.data, keys.scales);
  write_cache(floats(v_new), n, n_kv_heads, head_dim, slots, values.type, values.data, values.scales);
  attention(args, floats(out));
}

}  // namespace

void bind_attention(nb::module_& m) {
  m.def("attention", &py_attention, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("starts"), nb::arg("positions"),
        nb::arg("context_lens"), nb::arg("block_tables").none(), nb::arg("k_cache").none(), nb::arg("v_cache").none(),
        nb::arg("k_scale").none(), nb::arg("v_scale").none(), nb::arg("scale"), nb::arg("softcap"), nb::arg("window"),
        nb::arg("out"));
}

}  // namespace libremoe
