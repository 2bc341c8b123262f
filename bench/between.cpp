// bench/between.py compiles this with two builds of kernels/isa_*.cpp, each in a namespace of its own: A and B.
// Calls them in turn on the same weights, so that a shared machine's moods meet both; prints the best of each.
#include <time.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "types.h"

namespace libremoe::A { extern const Kernels table; }
namespace libremoe::B { extern const Kernels table; }

using namespace libremoe;

static double seconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

int main() {
  const Kernels* builds[] = {&A::table, &B::table};
  const int64_t n_out = 1024, n_in = 6144, blocks = n_in / 64;
  struct { const char* name; int format; int64_t group; int tile_bytes, parts; } cases[] = {
      {"int4, groups of 32", kInt4, 32, 512, 1}, {"int4, groups of 64", kInt4, 64, 512, 1}, {"int8, groups of 64", kInt8, 64, 1024, 3}};
  for (const auto& c : cases) {
    std::vector<uint8_t> data(size_t(n_out / 16 * blocks * c.tile_bytes));
    for (auto& byte : data) byte = uint8_t(rand());
    std::vector<uint16_t> scales(size_t(n_out / 16 * (n_in / c.group) * 16), 0x3F80);
    const Weight w{data.data(), scales.data(), 0, 0, n_out, n_in, c.group, c.format, false, false};
    for (int64_t n : {1, 2, 4, 8, 16, 64}) {
      const int64_t rows = n * c.parts;
      std::vector<int8_t> q(size_t(rows * blocks * 64));
      std::vector<float> scale(size_t(rows * blocks)), x(size_t(n * n_in)), wanted(size_t(rows * 64));
      std::vector<int32_t> sum(size_t(rows * blocks * 2));
      for (auto& value : x) value = float(rand()) / float(RAND_MAX) - 0.5f;
      const Quantised activations{q.data(), scale.data(), sum.data(), blocks, c.parts};
      for (int64_t i = 0; i < n; i++) builds[0]->quantise(x.data() + i * n_in, n_in, 0, blocks, activations, i);
      std::vector<uint8_t> panel(kPanelBlocks * 4096 + 64);
      std::vector<float> out(kOutFloats), out2(kOutFloats), group(kOutFloats);
      Scratch scratch{panel.data(), out.data(), out2.data(), group.data()};
      double best[2] = {1e9, 1e9};
      bool equal = true;
      for (int round = 0; round < (n >= 16 ? 7 : 15); round++)
        for (int b = 0; b < 2; b++) {
          const double start = seconds();
          for (int64_t o = 0; o < n_out; o += 64) builds[b]->product(w, activations, 0, rows, o, 64, scratch, out.data());
          const double taken = seconds() - start;
          best[b] = taken < best[b] ? taken : best[b];
          for (size_t i = 0; i < wanted.size(); i++) b ? void(equal = equal && wanted[i] == out[i]) : void(wanted[i] = out[i]);
        }
      const double operations = 2.0 * double(n * n_out * n_in);
      std::printf("%s, %2d tokens: %.3f -> %.3f TOPS, %.2f times as fast, results %s\n", c.name, int(n), operations / best[0] / 1e12,
                  operations / best[1] / 1e12, best[0] / best[1], equal ? "equal" : "DIFFERENT");
    }
  }
}
