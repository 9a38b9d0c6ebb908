// Work in phases on the threads that happen to be free.
//
// A run has phases one after the other, each with some items that are independent of each other. Whoever takes part claims
// items one by one; an item that somebody else has not begun is anybody's. So the caller can finish alone, and waits only for
// items that have been begun: threads of the pool that start late, or never, hold nobody up, and two runs at once on one pool
// cannot wait for each other.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <thread>
#include <vector>

namespace s2s {

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Phases {
 public:
  explicit Phases(std::vector<int> items) : items_(std::move(items)), ends_(items_.size()) {
    int64_t end = 0;
    int most = 1;
    for (size_t p = 0; p < items_.size(); ++p) {
      ends_[p] = end += items_[p];
      most = items_[p] > most ? items_[p] : most;
    }
    claims_ = std::vector<Claim>(most);
  }

  // Takes part from the first phase that is not over until all are. `first` is the item that this thread tries before the
  // others, so that a thread meets the weights again that its cache holds.
  template <typename Body>
  void take_part(int first, const Body& body) {
    const int64_t phases = static_cast<int64_t>(items_.size());
    for (int64_t p = 0; p < phases; ++p) {
      if (done_.load(std::memory_order_acquire) >= ends_[p]) continue;
      const int count = items_[p];
      for (int n = 0; n < count; ++n) {
        const int item = (first + n) % count;
        int64_t last = claims_[item].phase.load(std::memory_order_relaxed);
        if (last >= p || !claims_[item].phase.compare_exchange_strong(last, p, std::memory_order_relaxed)) continue;
        try {
          body(p, item);
        } catch (...) {  // there is no memory; the item counts nevertheless, or everybody would wait for it
          failed_.store(true, std::memory_order_relaxed);
        }
        done_.fetch_add(1, std::memory_order_acq_rel);
      }
      for (int spins = 0; done_.load(std::memory_order_acquire) < ends_[p]; ++spins) {
        if (spins < 4000) {
          relax();
        } else {
          std::this_thread::yield();  // whoever has the last item may be waiting for this processor
        }
      }
    }
  }

  bool failed() const { return failed_.load(std::memory_order_relaxed); }
  int most() const { return static_cast<int>(claims_.size()); }

 private:
  struct alignas(64) Claim {
    std::atomic<int64_t> phase{-1};
    Claim() = default;
    Claim(const Claim&) {}
  };
  const std::vector<int> items_;
  std::vector<int64_t> ends_;
  std::vector<Claim> claims_;
  alignas(64) std::atomic<int64_t> done_{0};
  std::atomic<bool> failed_{false};
};

// Runs `body(phase, item)` for all items of all phases. `schedule(task)` hands a task to a pool; `helpers` of them are asked for.
// `body` and what it points at are touched by helpers only while they hold an item, so both may die when this returns.
template <typename Body, typename Schedule>
void run_phases(std::vector<int> items, int helpers, const Body& body, const Schedule& schedule) {
  if (items.empty()) return;
  auto phases = std::make_shared<Phases>(std::move(items));
  try {
    for (int h = 1; h <= std::min(helpers, phases->most() - 1); ++h) {  // more would find no item
      schedule([phases, h, pointer = &body] { phases->take_part(h, [pointer](int64_t p, int i) { (*pointer)(p, i); }); });
    }
  } catch (...) {
    // No memory for another task. Those that were handed over may hold `body` already: it has to live until all is done.
  }
  phases->take_part(0, body);
  if (phases->failed()) throw std::bad_alloc();
}

}  // namespace s2s
