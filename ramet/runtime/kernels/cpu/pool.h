// A small thread pool for regions of a few microseconds.
//
// Work is handed out in chunks by one atomic ticket (epoch | count | next). A region ends when all its *chunks* are done, not when
// all threads have reported: a thread that the operating system has taken off its core is simply not waited for, and the others
// do its share. Idle threads spin for a short while (regions of a step follow each other closely), then sleep in the kernel.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>
#include <immintrin.h>

namespace ramet {

// Denormal numbers count as zero while this lives: probabilities near e⁻⁸⁷ are of no use, and their products cost hundreds of cycles.
class FlushDenormals {
 public:
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  const unsigned before_;
};

class Pool {
 public:
  explicit Pool(int num_threads) : num_threads_(num_threads < 1 ? 1 : num_threads) {
    for (int t = 1; t < num_threads_; ++t) threads_.emplace_back([this, t] { work(t); });
  }

  ~Pool() {
    stop_.store(true);
    epoch_.fetch_add(1);
    epoch_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  int num_threads() const { return num_threads_; }

  // body(chunk, thread) for chunk = 0 … count-1. One caller at a time.
  template <class Body>
  void run(int count, const Body& body) {
    if (count <= 0) return;
    if (num_threads_ == 1 || count == 1) {
      for (int chunk = 0; chunk < count; ++chunk) body(chunk, 0);
      return;
    }
    call_ = [](const void* context, int chunk, int thread) { (*static_cast<const Body*>(context))(chunk, thread); };
    context_ = &body;
    done_.store(0, std::memory_order_relaxed);
    const uint32_t epoch = epoch_.load(std::memory_order_relaxed) + 1;
    ticket_.store(uint64_t(epoch) << 32 | uint64_t(count) << 16, std::memory_order_release);
    epoch_.store(epoch, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) epoch_.notify_all();
    while (take(0)) {
    }
    for (int spins = 0; done_.load(std::memory_order_acquire) < count; ++spins) {
      if (spins < kSpins) _mm_pause();
      else std::this_thread::yield();
    }
  }

  // body(begin, end, thread) for at most `pieces` even parts of 0 … n-1.
  template <class Body>
  void share(int64_t n, int pieces, const Body& body) {
    const int count = int(std::min<int64_t>(n, pieces));
    run(count, [&](int piece, int thread) { body(n * piece / count, n * (piece + 1) / count, thread); });
  }

 private:
  static constexpr int kSpins = 3000;  // about 30–100 µs

  bool take(int thread) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while ((ticket & 0xffff) < (ticket >> 16 & 0xffff)) {
      if (ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) {
        call_(context_, int(ticket & 0xffff), thread);
        done_.fetch_add(1, std::memory_order_release);
        return true;
      }
    }
    return false;
  }

  void work(int thread) {
    const FlushDenormals flush;
    while (!stop_.load(std::memory_order_relaxed)) {
      const uint32_t seen = epoch_.load(std::memory_order_acquire);
      while (take(thread)) {
      }
      for (int spins = 0; spins < kSpins && epoch_.load(std::memory_order_acquire) == seen; ++spins) _mm_pause();
      if (epoch_.load(std::memory_order_acquire) != seen) continue;
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      epoch_.wait(seen, std::memory_order_seq_cst);
      sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    }
  }

  const int num_threads_;
  std::vector<std::thread> threads_;
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int> done_{0};
  alignas(64) std::atomic<uint32_t> epoch_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  void (*call_)(const void*, int, int) = nullptr;
  const void* context_ = nullptr;
};

}  // namespace ramet
