// What is chosen once for the process: the instruction set (by cpuid, or LIBREMOE_ISA) and the thread pool.
#include "dispatch.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <stdexcept>

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace libremoe {

namespace portable { extern const Kernels table; }
#if defined(__x86_64__)
namespace avx2 { extern const Kernels table; }
namespace avxvnni { extern const Kernels table; }
namespace avx512vnni { extern const Kernels table; }
namespace amx { extern const Kernels table; }
namespace amx_emulated { extern const Kernels table; }
#elif defined(LIBREMOE_HAS_NEON)
namespace neon { extern const Kernels table; }
#endif

namespace {

#if defined(__x86_64__)
// The processor has AMX int8 and bfloat16, and the kernel grants its registers to this process (Linux: arch_prctl, once).
bool has_amx() {
  unsigned a = 7, b, c = 0, d;
  asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  if (!(d >> 22 & 1) || !(d >> 24 & 1) || !(d >> 25 & 1)) return false;  // amx-bf16, amx-tile, amx-int8
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // Linux Documentation/arch/x86/xstate.rst
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool has_avxvnni() {
  unsigned a = 7, b, c = 1, d;
  asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  return a >> 4 & 1;
}
#endif

// Best last. "amx-emulated" runs the AMX body's control flow with plain code in place of the tile instructions: for tests.
std::vector<const Kernels*> find_available() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vnni");
  if (has_avx2) found.push_back(&amx_emulated::table);
  found.push_back(&portable::table);
  if (has_avx2) found.push_back(&avx2::table);
  if (has_avx2 && has_avxvnni()) found.push_back(&avxvnni::table);
  if (has_avx512) found.push_back(&avx512vnni::table);
  if (has_avx512 && has_amx()) found.push_back(&amx::table);
#else
  found.push_back(&portable::table);
#if defined(LIBREMOE_HAS_NEON)
  found.push_back(&neon::table);
#endif
#endif
  return found;
}

const std::vector<const Kernels*>& available() {
  static const std::vector<const Kernels*> found = find_available();
  return found;
}

const Kernels* by_name(const std::string& name) {
  std::string names;
  for (const Kernels* k : available()) {
    if (name == k->name) return k;
    names += (names.empty() ? "" : ", ") + std::string(k->name);
  }
  throw std::invalid_argument("instruction set " + name + " is not to be had on this processor; there are: " + names);
}

const Kernels* choose() {
  const char* forced = std::getenv("LIBREMOE_ISA");
  return forced && *forced ? by_name(forced) : available().back();
}

std::atomic<const Kernels*> chosen{nullptr};

// One thread of each physical core among the processors that this process may run on.
int physical_cores() {
  int logical = int(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
    std::set<std::string> cores;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
      if (!CPU_ISSET(cpu, &allowed)) continue;
      char path[96], siblings[256] = "";
      std::snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
      std::FILE* file = std::fopen(path, "r");
      if (!file || !std::fgets(siblings, sizeof siblings, file)) std::snprintf(siblings, sizeof siblings, "%d", cpu);
      if (file) std::fclose(file);
      cores.insert(siblings);
    }
    if (!cores.empty()) logical = int(cores.size());
  }
#endif
  return logical < 1 ? 1 : logical;
}

constexpr int kMostThreads = 1024;

int threads_wanted() {
  const char* text = std::getenv("LIBREMOE_THREADS");
  if (!text || !*text) return physical_cores();
  char* end;
  const long n = std::strtol(text, &end, 10);
  if (*end || n < 1 || n > kMostThreads)
    throw std::invalid_argument("LIBREMOE_THREADS must be a number from 1 to 1024, not " + std::string(text));
  return int(n);
}

std::mutex pool_mutex;
std::shared_ptr<ThreadPool> the_pool;

#if !defined(_WIN32)
// In a forked child the pool's threads are gone: leave the old pool alone and make another on demand.
void forget_after_fork() {
  new (&pool_mutex) std::mutex;
  new (&the_pool) std::shared_ptr<ThreadPool>;
}
#endif

std::shared_ptr<ThreadPool> make_pool(int n_threads) {
#if !defined(_WIN32)
  static const int registered = pthread_atfork(nullptr, nullptr, forget_after_fork);
  (void)registered;
#endif
  const char* pin = std::getenv("LIBREMOE_PIN");
  return std::make_shared<ThreadPool>(n_threads, pin && std::strcmp(pin, "1") == 0);
}

}  // namespace

void ThreadPool::pin_to(int cpu) {
#if defined(__linux__)
  cpu_set_t allowed, one;
  if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
  for (int i = 0, nth = 0; i < CPU_SETSIZE; i++) {
    if (!CPU_ISSET(i, &allowed) || nth++ != cpu) continue;
    CPU_ZERO(&one);
    CPU_SET(i, &one);
    pthread_setaffinity_np(pthread_self(), sizeof one, &one);
  }
#else
  (void)cpu;
#endif
}

const Kernels& kernels() {
  const Kernels* k = chosen.load();
  if (!k) chosen.store(k = choose());
  return *k;
}

void use_isa(const std::string& name) { chosen.store(name.empty() ? choose() : by_name(name)); }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Kernels* k : available()) names.push_back(k->name);
  return names;
}

std::shared_ptr<ThreadPool> pool() {
  std::lock_guard<std::mutex> lock(pool_mutex);
  if (!the_pool) the_pool = make_pool(threads_wanted());
  return the_pool;
}

void set_threads(int n_threads) {
  if (n_threads < 1 || n_threads > kMostThreads) throw std::invalid_argument("n_threads must be from 1 to 1024");
  std::lock_guard<std::mutex> lock(pool_mutex);
  if (the_pool && the_pool->size() == n_threads) return;
  the_pool = nullptr;  // a loop that still runs keeps its own reference
  the_pool = make_pool(n_threads);
}

Scratch& Memory::scratch() {
  if (!scratch_.panel) {
    panel_.resize(size_t(kPanelBlocks) * 4096 + 64);
    products_.resize(size_t(kOutFloats) * 3 + 16);
    const auto aligned = [](void* p) { return (reinterpret_cast<uintptr_t>(p) + 63) / 64 * 64; };
    scratch_.panel = reinterpret_cast<uint8_t*>(aligned(panel_.data()));
    scratch_.out = reinterpret_cast<float*>(aligned(products_.data()));
    scratch_.out2 = scratch_.out + kOutFloats;
    scratch_.runs = scratch_.out2 + kOutFloats;
  }
  return scratch_;
}

float* Memory::floats(size_t n) {
  if (floats_.size() < n) floats_.resize(n);
  return floats_.data();
}

}  // namespace libremoe
