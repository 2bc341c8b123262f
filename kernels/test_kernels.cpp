// The kernels without Python: every instruction set, format, layout and odd shapes against double precision, equal bits for
// every instruction set and number of threads, and the thread pool under load. Built with sanitizers by `make test-native`:
//   g++ -std=c++17 -fsanitize=address,undefined ... or -fsanitize=thread; see the Makefile.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <random>

#include "attention.h"
#include "dispatch.h"
#include "matmul.h"

using namespace libremoe;

namespace {

int failures = 0;

void expect(bool holds, const char* what, const char* isa, double value = 0) {
  if (holds) return;
  std::printf("FAILED %s on %s (%g)\n", what, isa, value);
  failures++;
}

std::mt19937 rng(7);

std::vector<float> normal(size_t n) {
  std::normal_distribution<float> d;
  std::vector<float> v(n);
  for (float& x : v) x = d(rng);
  return v;
}

// A weight with random bytes in memory of exactly its size, so that the address sanitizer sees one byte too many.
struct Owned {
  std::vector<uint8_t> data;
  std::vector<float> scales;
  Weight w;

  Owned(int format, bool columns, int64_t n_out, int64_t n_in, int64_t group) {
    static const int64_t kBytes[] = {1024, 512, 384, 256};
    const int64_t groups = (n_in + group - 1) / group, p = (n_out + 15) / 16;
    data.resize(size_t(columns ? n_in * n_out : p * ((n_in + 63) / 64) * kBytes[format]));
    for (auto& byte : data) byte = uint8_t(rng());
    scales = normal(size_t(columns ? groups * n_out : p * groups * 16));
    w = {data.data(), scales.data(), n_out, n_out, n_out, n_in, group, format, true, columns};
  }

  // Bits `count` from `shift` of row r's byte at `column` in a plane that starts at `plane` of a tile; libremoe/quant.py.
  static int plane_bits(const uint8_t* plane, int bits, int r, int column) {
    const int n_rows = 2 * bits;
    return plane[(r % n_rows) * 64 + column] >> (r / n_rows * bits) & ((1 << bits) - 1);
  }

  double value(int64_t o, int64_t i) const {
    const int64_t groups = (w.n_in + w.group - 1) / w.group, g = i / w.group;
    if (w.columns) return double(int8_t(data[size_t(i * w.n_out + o)])) * double(scales[size_t(g * w.n_out + o)]);
    static const int kBytes[] = {1024, 512, 384, 256};
    const uint8_t* tile = data.data() + (o / 16 * ((w.n_in + 63) / 64) + i / 64) * kBytes[w.format];
    const int r = int(i % 64 / 4), column = int(o % 16 * 4 + i % 4);
    const double scale = double(scales[size_t((o / 16 * groups + g) * 16 + o % 16)]);
    if (w.format == kInt8) return (tile[r * 64 + column] - 128) * scale;
    if (w.format == kInt4) return (plane_bits(tile, 4, r, column) - 8) * scale;
    if (w.format == kInt2) return (plane_bits(tile, 2, r, column) - 1.5) * scale;
    return (plane_bits(tile, 2, r, column) + 4 * plane_bits(tile + 256, 1, r, column) - 3.5) * scale;
  }
};

// x as the kernels round it: int8 per kScaleInputs inputs, and the same of the rest where there are more parts.
std::vector<double> rounded(std::vector<float> x, int64_t n_rows, int64_t n_in, int parts) {
  std::vector<double> y(x.size());
  for (int part = 0; part < parts; part++)
  for (int64_t n = 0; n < n_rows; n++)
    for (int64_t b = 0; b < n_in; b += kScaleInputs) {
      const int64_t end = std::min(b + kScaleInputs, n_in);
      float peak = 0;
      for (int64_t i = b; i < end; i++) peak = std::max(peak, std::fabs(x[size_t(n * n_in + i)]));
      for (int64_t i = b; i < end; i++)
      {
        const size_t at = size_t(n * n_in + i);
        const float code = peak > 0 ? std::nearbyint(x[at] * (127.0f / peak)) : 0, step = peak / 127.0f;
        y[at] += code * double(step);
        x[at] = x[at] - step * code;
      }
    }
  return y;
}

double error_of(const std::vector<float>& y, const std::vector<double>& wanted) {
  double worst = 0, largest = 1e-30;
  for (size_t i = 0; i < y.size(); i++) {
    worst = std::max(worst, std::fabs(double(y[i]) - wanted[i]));
    largest = std::max(largest, std::fabs(wanted[i]));
  }
  return worst / largest;
}

constexpr double kFloatSums = 5e-6;  // float32 sums against double, of the largest output

void test_linear(int format, bool columns, int64_t n_out, int64_t n_in, int64_t group) {
  const Owned weight(format, columns, n_out, n_in, group);
  for (int64_t n : {1, 2, 3, 7, 8, 9, 35}) {
    const std::vector<float> x = normal(size_t(n * n_in));
    const std::vector<double> xr = rounded(x, n, n_in, format == kInt8 ? 3 : 1);
    std::vector<double> wanted(size_t(n * n_out));
    for (int64_t o = 0; o < n_out; o++)
      for (int64_t i = 0; i < n_in; i++) {
        const double v = weight.value(o, i);
        for (int64_t t = 0; t < n; t++) wanted[size_t(t * n_out + o)] += v * xr[size_t(t * n_in + i)];
      }
    std::map<int, std::vector<float>> outputs;  // by parts: those that multiply float32 have bits of their own
    for (const auto& isa : available_isas()) {
      use_isa(isa);
      std::vector<float> y(size_t(n * n_out), NAN), last(static_cast<size_t>(n_out), NAN);
      linear(weight.w, x.data(), n, y.data());
      linear(weight.w, x.data() + (n - 1) * n_in, 1, last.data());
      const std::vector<float>& first = outputs.emplace(parts_of(weight.w), y).first->second;
      expect(error_of(y, wanted) < kFloatSums, "linear against double", isa.c_str(), error_of(y, wanted));
      expect(!std::memcmp(y.data(), first.data(), y.size() * 4), "linear, equal bits", isa.c_str());
      expect(!std::memcmp(y.data() + (n - 1) * n_out, last.data(), last.size() * 4), "linear, a row alone", isa.c_str());
    }
  }
}

void test_dense(int64_t n_out, int64_t n_in, int64_t n, bool is_bf16) {
  std::vector<float> w = normal(size_t(n_out * n_in)), x = normal(size_t(n * n_in));
  std::vector<uint16_t> halves(is_bf16 ? w.size() : 0);
  for (size_t i = 0; i < halves.size(); i++) {  // cut, so that both are the same numbers
    uint32_t bits;
    std::memcpy(&bits, &w[i], 4);
    halves[i] = uint16_t(bits >> 16), bits &= 0xFFFF0000;
    std::memcpy(&w[i], &bits, 4);
  }
  std::vector<double> wanted(size_t(n * n_out));
  for (int64_t t = 0; t < n; t++)
    for (int64_t o = 0; o < n_out; o++)
      for (int64_t i = 0; i < n_in; i++) wanted[size_t(t * n_out + o)] += double(w[size_t(o * n_in + i)]) * x[size_t(t * n_in + i)];
  for (const auto& isa : available_isas())
    for (int threads : {1, 3}) {
      use_isa(isa), set_threads(threads);
      std::vector<float> y(size_t(n * n_out), NAN);
      linear_dense(is_bf16 ? halves.data() : static_cast<const void*>(w.data()), is_bf16, n_in, n_out, n_in, x.data(), n, y.data());
      expect(error_of(y, wanted) < kFloatSums, "plain linear against double", isa.c_str(), error_of(y, wanted));
    }
}

void test_moe(int64_t dim, int64_t hidden_dim, int64_t n_rows, bool columns) {
  const Owned gate(kInt8, columns, hidden_dim, dim, 64), up(kInt8, columns, hidden_dim, dim, 64), down(kInt8, columns, dim, hidden_dim, 64);
  const Expert expert{gate.w, up.w, down.w};
  const std::vector<float> x = normal(size_t(n_rows * dim)), gates = normal(size_t(n_rows * 2));
  std::vector<int64_t> ids;
  for (int64_t n = 0; n < n_rows; n++) ids.push_back(n % 3), ids.push_back(3);
  std::map<int, std::vector<float>> outputs;
  for (const auto& isa : available_isas())
    for (int threads : {1, 3}) {
      use_isa(isa), set_threads(threads);
      std::vector<float> y(size_t(n_rows * dim), NAN);
      moe(x.data(), n_rows, dim, ids.data(), gates.data(), 2, {&expert, &expert, &expert, &expert}, true, y.data());
      const std::vector<float>& first = outputs.emplace(parts_of(gate.w), y).first->second;
      expect(!std::memcmp(y.data(), first.data(), y.size() * 4), "moe, equal bits", isa.c_str());
      for (float v : y) expect(std::isfinite(v), "moe is finite", isa.c_str(), v);
    }
}

// Keys or values in blocks whose order is turned around, in memory of exactly their size; x becomes what they hold.
struct OwnedCache {
  std::vector<uint8_t> data;
  std::vector<float> scales;

  OwnedCache(std::vector<float>& x, int64_t n, int64_t n_heads, int64_t head_dim, KvType type, const std::vector<int64_t>& table) {
    const int64_t width = n_heads * head_dim, n_slots = int64_t(table.size()) * 64;
    data.resize(size_t(n_slots * width * kv_bytes(type)));
    if (type == KvType::kInt8) scales.resize(size_t(n_slots * n_heads));
    std::vector<int64_t> slots;
    for (int64_t s = 0; s < n; s++) slots.push_back(table[size_t(s / 64)] * 64 + s % 64);
    write_cache(x.data(), n, n_heads, head_dim, slots, type, data.data(), scales.data());
    for (int64_t s = 0; s < n; s++)
      for (int64_t i = 0; i < width; i++) {
        const size_t at = size_t(slots[size_t(s)] * width + i);
        float& value = x[size_t(s * width + i)];
        if (type == KvType::kInt8) value = float(int8_t(data[at])) * scales[at / size_t(head_dim)];
        else if (type == KvType::kF32) std::memcpy(&value, data.data() + 4 * at, 4);
        else {
          const uint32_t bits = uint32_t(data[2 * at] | data[2 * at + 1] << 8) << 16;
          std::memcpy(&value, &bits, 4);
        }
      }
  }
};

void test_attention(int64_t n_heads, int64_t n_kv_heads, int64_t head_dim, int64_t n, int64_t window, float softcap,
                    bool cached = false, KvType type = KvType::kF32) {
  const std::vector<float> q = normal(size_t(n * n_heads * head_dim));
  std::vector<float> k = normal(size_t(n * n_kv_heads * head_dim)), v = normal(size_t(n * n_kv_heads * head_dim));
  std::vector<std::vector<int64_t>> tables(1);
  for (int64_t block = (n + 63) / 64; cached && block--;) tables[0].push_back(block);
  const OwnedCache keys(k, cached ? n : 0, n_kv_heads, head_dim, type, tables[0]);
  const OwnedCache values(v, cached ? n : 0, n_kv_heads, head_dim, type, tables[0]);
  std::vector<int64_t> positions(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; i++) positions[size_t(i)] = i;
  std::vector<double> wanted(q.size());
  for (int64_t t = 0; t < n; t++)
    for (int64_t h = 0; h < n_heads; h++) {
      const int64_t g = h / (n_heads / n_kv_heads), from = window ? std::max<int64_t>(0, t - window + 1) : 0;
      std::vector<double> weights;
      double total = 0;
      for (int64_t s = from; s <= t; s++) {
        double score = 0;
        for (int64_t i = 0; i < head_dim; i++)
          score += double(q[size_t((t * n_heads + h) * head_dim + i)]) * k[size_t((s * n_kv_heads + g) * head_dim + i)];
        score *= 0.25;
        if (softcap > 0) score = softcap * std::tanh(score / softcap);
        weights.push_back(std::exp(score));
        total += weights.back();
      }
      for (int64_t s = from; s <= t; s++)
        for (int64_t i = 0; i < head_dim; i++)
          wanted[size_t((t * n_heads + h) * head_dim + i)] +=
              weights[size_t(s - from)] / total * v[size_t((s * n_kv_heads + g) * head_dim + i)];
    }
  const std::vector<int64_t> starts{0, n}, contexts{n};
  std::vector<float> first;
  for (const auto& isa : available_isas())
    for (int threads : {1, 4}) {
      use_isa(isa), set_threads(threads);
      std::vector<float> y(q.size(), NAN);
      attention({q.data(), cached ? keys.data.data() : static_cast<const void*>(k.data()),
                 cached ? values.data.data() : static_cast<const void*>(v.data()), type, keys.scales.data(), values.scales.data(),
                 n_heads, n_kv_heads, head_dim, starts, positions.data(), contexts, cached ? &tables : nullptr, 0.25f, softcap,
                 window}, y.data());
      if (first.empty()) first = y;
      expect(error_of(y, wanted) < 2e-5, "attention against double", isa.c_str(), error_of(y, wanted));
      expect(!std::memcmp(y.data(), first.data(), y.size() * 4), "attention, equal bits", isa.c_str());
    }
}

// Many short loops, from several threads at once, with pauses long enough for workers to fall asleep.
void test_pool() {
  for (int threads : {1, 2, 5}) {
    set_threads(threads);
    std::vector<std::thread> callers;
    std::atomic<int64_t> total{0};
    for (int c = 0; c < 3; c++) callers.emplace_back([&] {
      for (int i = 0; i < 300; i++) {
        std::vector<int64_t> seen(17, 0);
        pool()->parallel_for(17, [&](int64_t item, Memory& memory) {
          memory.floats(64)[0] = float(item);
          seen[size_t(item)] += item;
        });
        for (int64_t s : seen) total += s;
        if (i % 100 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      }
    });
    for (auto& caller : callers) caller.join();
    expect(total == 3 * 300 * 136, "every item once", "pool", double(total));
  }
}

}  // namespace

int main() {
  test_pool();
  for (auto [n_out, n_in] : {std::pair<int64_t, int64_t>{1, 1}, {17, 65}, {70, 130}, {64, 4100}}) {
    for (int format = 0; format < kFormats; format++)
      for (int64_t group : {32, 64, 96, 128, 8192}) test_linear(format, false, n_out, n_in, group);
    for (int64_t group : {32, 64, 96, 8192}) test_linear(kInt8, true, n_out, n_in, group);
  }
  test_linear(kInt8, true, 600, 70, 128);
  for (bool is_bf16 : {false, true}) {
    test_dense(1, 1, 1, is_bf16), test_dense(19, 77, 9, is_bf16), test_dense(70, 300, 16, is_bf16);
    test_dense(40, 64, 35, is_bf16), test_dense(33, 33, 530, is_bf16);
  }
  test_moe(64, 80, 5, false), test_moe(70, 530, 2, true), test_moe(40, 100, 30, true);
  test_attention(4, 2, 16, 150, 0, 0), test_attention(3, 1, 20, 1100, 0, 5), test_attention(2, 2, 130, 90, 33, 30);
  for (KvType type : {KvType::kF32, KvType::kBf16, KvType::kInt8}) {
    test_attention(4, 2, 16, 150, 0, 0, true, type), test_attention(3, 1, 20, 300, 0, 5, true, type);
    test_attention(6, 1, 128, 1, 0, 30, true, type), test_attention(2, 2, 130, 90, 33, 30, true, type);
  }
  std::printf("%s: %d failures\n", failures ? "FAILED" : "ok", failures);
  return failures ? 1 : 0;
}
