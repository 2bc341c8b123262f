// Attention in parallel over (sequence, kv heads, some query tokens). Keys are taken in blocks of 64 and partitions of 256,
// both counted from the sequence's first token, and partitions are merged in order: so a token's bits are the same in any
// chunk, any batch, on any number of threads. With few queries and a long context partitions are work items of their own.
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "dispatch.h"

namespace libremoe {

namespace {

constexpr int64_t kBlock = 64, kPartition = 256, kRows = 64;  // query rows (tokens x heads of a group) of one work item

// Query tokens first..last of one sequence with kv heads head0 and following, and the partitions of keys that they see.
struct Task {
  size_t sequence;
  int64_t head0, first, last, partition0, partition1, state;  // state: index of partition0's among all
};

struct Shape {
  int64_t group, padded, rows, heads;  // query heads a kv head, head_dim in whole vectors, most query rows and kv heads of a task
  size_t state() const { return size_t(heads * rows * (padded + 2)); }  // floats of m, l (heads, rows), acc (heads, rows, padded)
  size_t work() const { return size_t(2 * kBlock * padded + heads * rows * padded); }
};

int64_t visible_from(const AttentionArgs& a, int64_t token) {
  return a.window ? std::max<int64_t>(0, a.positions[token] - a.window + 1) : 0;
}

int64_t visible_to(const AttentionArgs& a, size_t sequence, int64_t token) {
  return std::min(a.positions[token] + 1, a.context_lens[sequence]);
}

std::vector<Task> tasks_of(const AttentionArgs& a, const Shape& shape) {
  std::vector<Task> tasks;
  int64_t state = 0;
  const int64_t step = std::max<int64_t>(1, kRows / shape.group);
  for (size_t b = 0; b + 1 < a.starts.size(); b++)
    for (int64_t first = a.starts[b]; first < a.starts[b + 1]; first += step) {
      const int64_t last = std::min(first + step, a.starts[b + 1]);
      int64_t from = INT64_MAX, to = 0;
      for (int64_t n = first; n < last; n++) from = std::min(from, visible_from(a, n)), to = std::max(to, visible_to(a, b, n));
      const int64_t p0 = from / kPartition, p1 = std::max(p0, (to + kPartition - 1) / kPartition);
      for (int64_t g = 0; g < a.n_kv_heads; g += shape.heads, state += p1 - p0) tasks.push_back({b, g, first, last, p0, p1, state});
    }
  return tasks;
}

// One token a sequence: a block's keys of all heads lie together and are best read together, unless threads would have
// nothing to do. More tokens: their queries fill a task by themselves.
int64_t heads_of_task(const AttentionArgs& a, int64_t n_threads) {
  int64_t partitions = 0, heads = a.n_kv_heads;
  for (size_t b = 0; b + 1 < a.starts.size(); b++) {
    if (a.starts[b + 1] - a.starts[b] > 1) return 1;
    partitions += (a.context_lens[b] + kPartition - 1) / kPartition;
  }
  while (heads % 2 == 0 && partitions * (a.n_kv_heads / heads) < 2 * n_threads) heads /= 2;
  return heads;
}

void clear(float* state, const Shape& shape) {
  std::memset(state, 0, sizeof(float) * shape.state());
  std::fill(state, state + shape.heads * shape.rows, -__builtin_inff());
}

// Scales of one head of n keys from row0 on, with zeros up to a whole block; returns `to`.
const float* scales_of_head(const float* scales, int64_t row0, int64_t n, int64_t n_heads, int64_t head, float* to) {
  for (int64_t s = 0; s < kBlock; s++) to[s] = s < n ? scales[(row0 + s) * n_heads + head] : 0;
  return to;
}

// The softmax state of a task over one partition.
void one_partition(const AttentionArgs& a, const Shape& shape, const Task& task, int64_t partition, float* state, float* work) {
  const int64_t rows = (task.last - task.first) * shape.group, stride = a.n_kv_heads * a.head_dim, bytes = kv_bytes(a.kv_type);
  const int64_t all_rows = shape.heads * shape.rows;
  float* q = work + 2 * kBlock * shape.padded;  // (heads, rows, padded)
  int64_t from[kRows + 1024], to[kRows + 1024];  // one token may have up to 1024 heads a group
  for (int64_t row = 0; row < rows; row++) {
    const int64_t n = task.first + row / shape.group;
    from[row] = visible_from(a, n), to[row] = visible_to(a, task.sequence, n);
    for (int64_t h = 0; h < shape.heads; h++) {
      float* to_row = q + (h * shape.rows + row) * shape.padded;
      const int64_t head = (task.head0 + h) * shape.group + row % shape.group;
      std::memset(to_row, 0, sizeof(float) * size_t(shape.padded));
      std::memcpy(to_row, a.q + (n * a.n_heads + head) * a.head_dim, sizeof(float) * size_t(a.head_dim));
    }
  }
  const int64_t lowest = *std::min_element(from, from + rows), highest = *std::max_element(to, to + rows);
  const auto row_of = [&](int64_t key0) {  // of k and v, of a block's first key
    return a.tables ? (*a.tables)[task.sequence][size_t(key0 / kBlock)] * kBlock : a.starts[task.sequence] + key0;
  };
  const int64_t head_bytes = a.head_dim * bytes, end = std::min((partition + 1) * kPartition, highest);
  const bool all_heads = shape.heads == a.n_kv_heads;
  float k_scale[kBlock], v_scale[kBlock];
  AttendArgs args{};
  args.q_stride = shape.padded, args.visible_from = from, args.visible_to = to, args.rows = rows, args.head_dim = a.head_dim;
  args.kv_stride = stride, args.kv_type = a.kv_type, args.scale = a.scale, args.softcap = a.softcap, args.work = work;
  args.next_step = all_heads ? head_bytes : stride * bytes, args.next_bytes = head_bytes;
  const char *k = static_cast<const char*>(a.k), *v = static_cast<const char*>(a.v);
  for (int64_t key0 = std::max(partition * kPartition, lowest / kBlock * kBlock); key0 < end; key0 += kBlock) {
    args.key0 = key0, args.n_keys = std::min(kBlock, a.context_lens[task.sequence] - key0);
    const int64_t row0 = row_of(key0), next_row0 = key0 + kBlock < end ? row_of(key0 + kBlock) : -1;
    for (int64_t h = 0; h < shape.heads; h++) {
      const int64_t at = row0 * stride * bytes + (task.head0 + h) * head_bytes;
      // All heads together fetch the next block from its first byte to its last, one head its own rows.
      const int64_t next = next_row0 * stride * bytes + (all_heads ? h * kBlock : task.head0 + h) * head_bytes;
      const bool more = next_row0 >= 0;
      args.k = k + at, args.v = v + at, args.next_k = more ? k + next : nullptr, args.next_v = more ? v + next : nullptr;
      if (a.kv_type == KvType::kInt8) {
        args.k_scale = scales_of_head(a.k_scales, row0, args.n_keys, a.n_kv_heads, task.head0 + h, k_scale);
        args.v_scale = scales_of_head(a.v_scales, row0, args.n_keys, a.n_kv_heads, task.head0 + h, v_scale);
      }
      args.q = q + h * shape.rows * shape.padded;
      args.m = state + h * shape.rows, args.l = args.m + all_rows;
      args.acc = state + 2 * all_rows + h * shape.rows * shape.padded;
      kernels().attend(args);
    }
  }
}

void merge(const Shape& shape, float* state, const float* other) {
  const int64_t rows = shape.heads * shape.rows;
  for (int64_t row = 0; row < rows; row++)
    kernels().attend_merge(state + row, state + rows + row, state + 2 * rows + row * shape.padded, other[row], other[rows + row],
                           other + 2 * rows + row * shape.padded, shape.padded);
}

void finish(const AttentionArgs& a, const Shape& shape, const Task& task, const float* state, float* out) {
  for (int64_t h = 0; h < shape.heads; h++)
    for (int64_t row = 0; row < (task.last - task.first) * shape.group; row++) {
      const int64_t n = task.first + row / shape.group, head = (task.head0 + h) * shape.group + row % shape.group;
      const int64_t at = h * shape.rows + row;
      const float total = state[shape.heads * shape.rows + at];
      const float* acc = state + 2 * shape.heads * shape.rows + at * shape.padded;
      float* to = out + (n * a.n_heads + head) * a.head_dim;
      for (int64_t i = 0; i < a.head_dim; i++) to[i] = total == 0 ? 0 : acc[i] / total;
    }
}

void round_bf16(const float* from, int64_t n, uint16_t* to) {
  for (int64_t i = 0; i < n; i++) {
    uint32_t bits;
    std::memcpy(&bits, from + i, 4);
    const bool is_nan = (bits & 0x7FFFFFFF) > 0x7F800000;
    to[i] = uint16_t(is_nan ? bits >> 16 | 0x40 : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
  }
}

// Codes of one head; returns their scale, NaN where something is not finite. libremoe/ops/reference.py's to_int8(), bit for bit.
float round_int8(const float* from, int64_t n, int8_t* to) {
  float peak = 0;
  bool finite = true;
  for (int64_t i = 0; i < n; i++) peak = std::max(peak, std::fabs(from[i])), finite = finite && std::isfinite(from[i]);
  const bool tiny = peak < 1e-35f;  // 127 / peak must not overflow
  const float inverse = finite && !tiny ? 127.0f / peak : 0.0f;
  for (int64_t i = 0; i < n; i++) to[i] = finite ? int8_t(std::nearbyint(from[i] * inverse)) : 0;
  return !finite ? __builtin_nanf("") : tiny ? 0.0f : peak / 127.0f;
}

}  // namespace

void attention(const AttentionArgs& a, float* out) {
  const int64_t group = a.n_heads / a.n_kv_heads;
  const auto threads = pool();
  int64_t most = 1;
  for (size_t b = 0; b + 1 < a.starts.size(); b++) most = std::max(most, a.starts[b + 1] - a.starts[b]);
  const Shape shape{group, (a.head_dim + 15) / 16 * 16, std::min(most, std::max<int64_t>(1, kRows / group)) * group,
                    heads_of_task(a, threads->size())};
  const std::vector<Task> tasks = tasks_of(a, shape);

  if (int64_t(tasks.size()) >= 4 * threads->size()) {
    threads->parallel_for(int64_t(tasks.size()), [&](int64_t i, Memory& memory) {
      const Task& task = tasks[size_t(i)];
      float* total = memory.floats(2 * shape.state() + shape.work());
      float* part = total + shape.state();
      clear(total, shape);
      for (int64_t p = task.partition0; p < task.partition1; p++) {
        clear(part, shape);
        one_partition(a, shape, task, p, part, part + shape.state());
        merge(shape, total, part);
      }
      finish(a, shape, task, total, out);
    });
    return;
  }

  std::vector<std::pair<size_t, int64_t>> parts;  // (task, partition), in the order of states
  for (size_t i = 0; i < tasks.size(); i++)
    for (int64_t p = tasks[i].partition0; p < tasks[i].partition1; p++) parts.push_back({i, p});
  std::vector<float> states(parts.size() * shape.state());
  threads->parallel_for(int64_t(parts.size()), [&](int64_t i, Memory& memory) {
    float* state = states.data() + size_t(i) * shape.state();
    clear(state, shape);
    one_partition(a, shape, tasks[parts[size_t(i)].first], parts[size_t(i)].second, state,
                  memory.floats(shape.work()));
  });
  threads->parallel_for(int64_t(tasks.size()), [&](int64_t i, Memory& memory) {
    const Task& task = tasks[size_t(i)];
    float* total = memory.floats(shape.state());
    clear(total, shape);
    for (int64_t p = 0; p < task.partition1 - task.partition0; p++)
      merge(shape, total, states.data() + size_t(task.state + p) * shape.state());
    finish(a, shape, task, total, out);
  });
}

void write_cache(const float* from, int64_t n_tokens, int64_t n_heads, int64_t head_dim, const std::vector<int64_t>& slots,
                 KvType type, void* cache, float* scales) {
  const int64_t width = n_heads * head_dim;
  for (int64_t n = 0; n < n_tokens; n++) {
    const int64_t slot = slots[size_t(n)];
    const float* row = from + n * width;
    if (type == KvType::kF32) std::memcpy(static_cast<float*>(cache) + slot * width, row, sizeof(float) * size_t(width));
    else if (type == KvType::kBf16) round_bf16(row, width, static_cast<uint16_t*>(cache) + slot * width);
    else
      for (int64_t h = 0; h < n_heads; h++)
        scales[slot * n_heads + h] = round_int8(row + h * head_dim, head_dim, static_cast<int8_t*>(cache) + slot * width + h * head_dim);
  }
}

}  // namespace libremoe
