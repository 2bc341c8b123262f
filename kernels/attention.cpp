// Attention in parallel over (sequence, kv head, some query tokens). Keys are taken in blocks of 64 and partitions of 1024,
// both counted from the sequence's first token, and partitions are merged in order: so a token's bits are the same in any
// chunk, any batch, on any number of threads. With few queries and a long context partitions are work items of their own.
#include "attention.h"

#include <algorithm>
#include <cstring>

#include "dispatch.h"

namespace libremoe {

namespace {

constexpr int64_t kBlock = 64, kPartition = 1024, kRows = 64;  // query rows (tokens x heads of a group) of one work item

// Query tokens first..last of one sequence with one kv head, and the partitions of keys that they see.
struct Task {
  size_t sequence;
  int64_t kv_head, first, last, partition0, partition1, state;  // state: index of partition0's among all
};

struct Shape {
  int64_t group, padded, rows;  // query heads a kv head, head_dim in whole vectors, most query rows of a task
  size_t state() const { return size_t(rows * (padded + 2)); }  // floats of m, l, acc
  size_t work() const { return size_t(2 * kBlock * padded + 2 * kBlock); }
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
      for (int64_t g = 0; g < a.n_kv_heads; g++, state += p1 - p0) tasks.push_back({b, g, first, last, p0, p1, state});
    }
  return tasks;
}

void clear(float* state, const Shape& shape) {
  std::memset(state, 0, sizeof(float) * shape.state());
  std::fill(state, state + shape.rows, -__builtin_inff());
}

// The softmax state of a task over one partition.
void one_partition(const AttentionArgs& a, const Shape& shape, const Task& task, int64_t partition, float* state, float* work) {
  const int64_t rows = (task.last - task.first) * shape.group, stride = a.n_kv_heads * a.head_dim;
  float* q = work + shape.work();
  int64_t from[kRows + 1024], to[kRows + 1024];  // one token may have up to 1024 heads a group
  for (int64_t row = 0; row < rows; row++) {
    const int64_t n = task.first + row / shape.group, head = task.kv_head * shape.group + row % shape.group;
    std::memset(q + row * shape.padded, 0, sizeof(float) * size_t(shape.padded));
    std::memcpy(q + row * shape.padded, a.q + (n * a.n_heads + head) * a.head_dim, sizeof(float) * size_t(a.head_dim));
    from[row] = visible_from(a, n), to[row] = visible_to(a, task.sequence, n);
  }
  const int64_t lowest = *std::min_element(from, from + rows), highest = *std::max_element(to, to + rows);
  AttendArgs args{q, shape.padded, from, to, rows, a.head_dim, nullptr, nullptr, stride, a.kv_is_bf16, 0, 0, a.scale, a.softcap,
                  state, state + shape.rows, state + 2 * shape.rows, work};
  for (int64_t key0 = partition * kPartition; key0 < std::min((partition + 1) * kPartition, highest); key0 += kBlock) {
    if (key0 + kBlock <= lowest) continue;
    const int64_t row0 = a.tables ? (*a.tables)[task.sequence][size_t(key0 / kBlock)] * kBlock : a.starts[task.sequence] + key0;
    const int64_t at = (row0 * stride + task.kv_head * a.head_dim) * (a.kv_is_bf16 ? 2 : 4);
    args.k = static_cast<const char*>(a.k) + at, args.v = static_cast<const char*>(a.v) + at;
    args.key0 = key0, args.n_keys = std::min(kBlock, a.context_lens[task.sequence] - key0);
    kernels().attend(args);
  }
}

void merge(const Shape& shape, float* state, const float* other) {
  for (int64_t row = 0; row < shape.rows; row++)
    kernels().attend_merge(state + row, state + shape.rows + row, state + 2 * shape.rows + row * shape.padded, other[row],
                           other[shape.rows + row], other + 2 * shape.rows + row * shape.padded, shape.padded);
}

void finish(const AttentionArgs& a, const Shape& shape, const Task& task, const float* state, float* out) {
  for (int64_t row = 0; row < (task.last - task.first) * shape.group; row++) {
    const int64_t n = task.first + row / shape.group, head = task.kv_head * shape.group + row % shape.group;
    const float total = state[shape.rows + row], *acc = state + 2 * shape.rows + row * shape.padded;
    float* to = out + (n * a.n_heads + head) * a.head_dim;
    for (int64_t i = 0; i < a.head_dim; i++) to[i] = total == 0 ? 0 : acc[i] / total;
  }
}

}  // namespace

void attention(const AttentionArgs& a, float* out) {
  const int64_t group = a.n_heads / a.n_kv_heads;
  const Shape shape{group, (a.head_dim + 15) / 16 * 16, std::max<int64_t>(1, kRows / group) * group};
  const std::vector<Task> tasks = tasks_of(a, shape);
  const size_t q_floats = size_t(shape.rows * shape.padded);
  const auto threads = pool();

  if (int64_t(tasks.size()) >= 4 * threads->size()) {
    threads->parallel_for(int64_t(tasks.size()), [&](int64_t i, Memory& memory) {
      const Task& task = tasks[size_t(i)];
      float* total = memory.floats(2 * shape.state() + shape.work() + q_floats);
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
                  memory.floats(shape.work() + q_floats));
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

void write_cache(const float* from, int64_t n_tokens, int64_t width, const std::vector<int64_t>& slots, void* cache, bool is_bf16) {
  for (int64_t n = 0; n < n_tokens; n++) {
    const float* row = from + n * width;
    if (!is_bf16) {
      std::memcpy(static_cast<float*>(cache) + slots[size_t(n)] * width, row, sizeof(float) * size_t(width));
      continue;
    }
    uint16_t* to = static_cast<uint16_t*>(cache) + slots[size_t(n)] * width;
    for (int64_t i = 0; i < width; i++) {
      uint32_t bits;
      std::memcpy(&bits, row + i, 4);
      const bool is_nan = (bits & 0x7FFFFFFF) > 0x7F800000;
      to[i] = uint16_t(is_nan ? bits >> 16 | 0x40 : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
    }
  }
}

}  // namespace libremoe
