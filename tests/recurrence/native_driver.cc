// Runs the native layer outside of XLA, for the sanitizers: all cells, odd sizes, ragged lengths, and threads that come late, come
// several at a time, or never come. Prints the largest difference from one thread alone, and fails above 1e-4 of the largest value.

#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <functional>
#include <mutex>
#include <queue>
#include <random>
#include <thread>

#include "backward.h"

using namespace s2s;

class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
  }
  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closing_ = true;
    }
    ready_.notify_all();
    for (auto& thread : threads_) thread.join();
  }
  void schedule(std::function<void()> task) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push(std::move(task));
    }
    ready_.notify_one();
  }

 private:
  void work() {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      ready_.wait(lock, [this] { return closing_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      auto task = std::move(tasks_.front());
      tasks_.pop();
      lock.unlock();
      task();
    }
  }
  std::mutex mutex_;
  std::condition_variable ready_;
  std::queue<std::function<void()>> tasks_;
  std::vector<std::thread> threads_;
  bool closing_ = false;
};

// All arrays of a layer. Sizes are exact, so that the address sanitizer sees a single float too many.
struct Layer {
  Sizes n;
  std::vector<int32_t> lengths;
  std::vector<std::vector<std::vector<float>>> arrays;
  std::vector<Direction> directions;

  Layer(Cell cell, long batch, long time, long in, long hidden, int count, bool ragged, unsigned seed)
      : n{cell, batch, time, in, hidden} {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> uniform(-0.5f, 0.5f);
    if (ragged) {
      for (long b = 0; b < batch; ++b) lengths.push_back(static_cast<int32_t>(random() % (time + 1)));
    }
    arrays.resize(count);
    for (int d = 0; d < count; ++d) {
      const auto make = [&](long size) {
        arrays[d].emplace_back(size);
        for (float& value : arrays[d].back()) value = uniform(random);
        return arrays[d].back().data();
      };
      Direction at;
      const long gates = n.gates() * hidden, state = batch * hidden;
      const auto only = [&](bool wanted, long size) { return wanted ? make(size) : nullptr; };
      at.reverse = d == 1;
      at.x = make(batch * time * in), at.w = make(in * gates), at.u = make(hidden * gates), at.b = make(gates);
      at.b_n = only(n.gru(), hidden), at.h0 = make(state), at.c0 = only(n.lstm(), state);
      at.y = make(batch * time * hidden), at.h_last = make(state), at.c_last = only(n.lstm(), state);
      at.saved = make(time * batch * n.saved() * hidden);
      at.dy = make(batch * time * hidden), at.dh_last = make(state), at.dc_last = only(n.lstm(), state);
      at.dx = make(batch * time * in), at.dw = make(in * gates), at.du = make(hidden * gates), at.db = make(gates);
      at.db_n = only(n.gru(), hidden), at.dh0 = make(state), at.dc0 = only(n.lstm(), state);
      directions.push_back(at);
    }
  }

  template <typename Schedule>
  void run(int threads, const Schedule& schedule) {
    const int32_t* at = lengths.empty() ? nullptr : lengths.data();
    Forward(n, directions, at, threads).run(schedule);
    Backward(n, directions, at, threads).run(schedule);
  }
};

int main() {
  Pool pool(3);
  const auto busy = [&](auto task) { pool.schedule(std::move(task)); };
  const auto late = [&](auto task) {
    pool.schedule([task]() mutable {
      std::this_thread::sleep_for(std::chrono::microseconds(200));
      task();
    });
  };
  const auto never = [](auto) {};
  double worst = 0;
  unsigned seed = 0;
  const long sizes[][4] = {{0, 3, 2, 5}, {3, 0, 2, 5}, {1, 1, 1, 1}, {2, 9, 3, 33}, {1, 500, 5, 40}, {40, 7, 1, 17}, {19, 30, 34, 65},
                            {200, 6, 3, 80}, {1, 1, 7, 64}, {3, 1, 5, 32}};
  for (int cell = 0; cell < 5; ++cell) {
    for (const auto& s : sizes) {
      for (int count = 1; count <= 2; ++count) {
        const bool ragged = ++seed % 2;
        const auto make = [&] { return Layer(static_cast<Cell>(cell), s[0], s[1], s[2], s[3], count, ragged, seed); };
        Layer alone = make();
        alone.run(1, never);
        Layer one = make(), two = make(), three = make(), four = make(), five = make();
        const auto compare = [&](Layer& other) {
          for (int d = 0; d < count; ++d) {
            for (size_t a = 0; a < alone.arrays[d].size(); ++a) {
              double most = 1e-3, difference = 0;
              for (size_t i = 0; i < alone.arrays[d][a].size(); ++i) {
                most = std::max<double>(most, std::fabs(alone.arrays[d][a][i]));
                difference = std::max<double>(difference, std::fabs(alone.arrays[d][a][i] - other.arrays[d][a][i]));
              }
              worst = std::max(worst, difference / most);
            }
          }
        };
        // Two layers at once on one pool, which is busy with either; then threads that come late, and none at all.
        std::thread beside([&] { two.run(4, busy); });
        one.run(4, busy);
        beside.join();
        three.run(2, late);
        four.run(3, never);
        five.run(5, busy);
        for (Layer* layer : {&one, &two, &three, &four, &five}) compare(*layer);
      }
    }
  }
  std::printf("%.3g\n", worst);
  return worst < 1e-4 ? 0 : 1;
}
