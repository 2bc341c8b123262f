// The thread pool: a fixed number of threads, one parallel loop at a time. Workers spin for a short while after a loop, since
// the next one usually follows within microseconds, then sleep. The caller takes part. No OpenMP: torch brings its own.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "types.h"

namespace libremoe {

// One thread's working memory, made on first use and kept from loop to loop.
class Memory {
 public:
  Scratch& scratch();
  float* floats(size_t n);  // at least n of them

 private:
  std::vector<uint8_t> panel_;
  std::vector<float> products_, floats_;
  Scratch scratch_{};
};

class ThreadPool {
 public:
  using Body = std::function<void(int64_t item, Memory& memory)>;

  explicit ThreadPool(int n_threads, bool pin = false) : size_(n_threads), memory_(size_t(n_threads)) {
    for (int t = 1; t < n_threads; t++) workers_.emplace_back([this, t, pin] {
      if (pin) pin_to(t);
      work(t);
    });
    if (pin) pin_to(0);
  }

  ~ThreadPool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_.store(true);
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }

  // Runs body for every item in [0, n_items). Items are claimed one at a time, so they must not depend on each other and a
  // result must not depend on who computed it. Calls from several threads at once take turns. body must not throw.
  void parallel_for(int64_t n_items, const Body& body) {
    if (n_items <= 0) return;
    std::lock_guard<std::mutex> turn(turn_);
    if (size_ == 1 || n_items == 1) {
      for (int64_t i = 0; i < n_items; i++) body(i, memory_[0]);
      return;
    }
    body_ = &body;
    n_items_ = n_items;
    next_.store(0, std::memory_order_relaxed);
    running_.store(size_ - 1, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);  // so that no worker falls asleep between its last look and this loop
      epoch_.fetch_add(1, std::memory_order_release);
    }
    if (asleep_.load(std::memory_order_acquire)) wake_.notify_all();
    claim(0);
    for (int spins = 0; running_.load(std::memory_order_acquire);) pause(spins);
  }

 private:
  static constexpr int kSpins = 2000;  // 50 to 100 microseconds

  static void pause(int& spins) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
    if (++spins % 256 == 0) std::this_thread::yield();  // more threads than processors must not stall each other
  }

  void claim(int thread) {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < n_items_;) (*body_)(i, memory_[size_t(thread)]);
  }

  void work(int thread) {
    uint64_t seen = 0;
    for (;;) {
      for (int spins = 0; epoch_.load(std::memory_order_acquire) == seen && !stopping_.load() && spins < kSpins;) pause(spins);
      if (epoch_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        asleep_.fetch_add(1, std::memory_order_acq_rel);
        wake_.wait(lock, [&] { return epoch_.load(std::memory_order_acquire) != seen || stopping_.load(); });
        asleep_.fetch_sub(1, std::memory_order_acq_rel);
      }
      if (stopping_.load()) return;
      seen = epoch_.load(std::memory_order_acquire);
      claim(thread);
      running_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  static void pin_to(int cpu);  // dispatch.cpp

  const int size_;
  std::vector<Memory> memory_;
  std::vector<std::thread> workers_;
  std::mutex turn_, mutex_;
  std::condition_variable wake_;
  std::atomic<bool> stopping_{false};
  std::atomic<int> asleep_{0}, running_{0};
  std::atomic<uint64_t> epoch_{0};
  std::atomic<int64_t> next_{0};
  const Body* body_ = nullptr;
  int64_t n_items_ = 0;
};

// The pool of this process: physical cores that this process may use, LIBREMOE_THREADS, or set_threads(). After a fork the
// child gets a fresh pool. LIBREMOE_PIN=1 ties threads to processors.
std::shared_ptr<ThreadPool> pool();
void set_threads(int n_threads);

}  // namespace libremoe
