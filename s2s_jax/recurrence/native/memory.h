// Scratch memory that is kept between calls, and pages that are cheap to touch for the first time.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace s2s {

constexpr size_t kHugePage = size_t{2} << 20;

// Asks for huge pages: a fresh buffer of many megabytes otherwise costs one page fault for each 4 KiB.
inline void prefer_huge_pages(void* begin, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + bytes) & ~(kHugePage - 1);
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a wish; refused is no harm
#else
  (void)begin;
  (void)bytes;
#endif
}

// One block for each call that is under way, so that calls may overlap. Up to four of up to 64 MiB are kept for the next calls, as
// long as the process lives: a fresh block costs more to touch than many a layer to compute.
class Scratch {
 public:
  explicit Scratch(size_t floats) {
    const size_t bytes = floats * sizeof(float) + 64;
    {
      std::lock_guard<std::mutex> lock(mutex());
      auto& kept = blocks();
      size_t best = kept.size();
      for (size_t i = 0; i < kept.size(); ++i) {
        if (kept[i].bytes >= bytes && (best == kept.size() || kept[i].bytes < kept[best].bytes)) best = i;
      }
      if (best < kept.size() && kept[best].bytes <= 4 * bytes + kHugePage) {
        block_ = kept[best];
        kept.erase(kept.begin() + best);
        return;
      }
    }
    block_.bytes = (bytes + 4095) / 4096 * 4096;
    const size_t alignment = block_.bytes >= kHugePage ? kHugePage : 4096;
    block_.begin = std::aligned_alloc(alignment, (block_.bytes + alignment - 1) / alignment * alignment);
    if (block_.begin == nullptr) throw std::bad_alloc();
    prefer_huge_pages(block_.begin, block_.bytes);
  }

  ~Scratch() {
    std::lock_guard<std::mutex> lock(mutex());
    auto& kept = blocks();
    if (block_.bytes <= (size_t{64} << 20)) kept.push_back(block_);
    else std::free(block_.begin);
    while (kept.size() > 4) {
      std::free(kept.front().begin);
      kept.erase(kept.begin());
    }
  }

  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  float* floats() const { return static_cast<float*>(block_.begin); }

 private:
  struct Block {
    void* begin = nullptr;
    size_t bytes = 0;
  };
  static std::mutex& mutex() {
    static auto* one = new std::mutex;  // never destroyed: a thread of the pool may outlive the statics
    return *one;
  }
  static std::vector<Block>& blocks() {
    static auto* all = new std::vector<Block>;
    return *all;
  }
  Block block_;
};

// Hands out aligned pieces of a block. With no block it only counts, so that one function both measures and divides.
class Pieces {
 public:
  explicit Pieces(float* begin = nullptr) : begin_(begin) {}
  float* take(long floats) {
    float* piece = begin_ == nullptr ? nullptr : begin_ + used_;
    used_ += (floats + 15) / 16 * 16;
    return piece;
  }
  size_t used() const { return used_; }

 private:
  float* begin_;
  size_t used_ = 0;
};

}  // namespace s2s
