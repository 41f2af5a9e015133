// Vectors that begin at a cache line: a 32-byte load that crosses two lines takes twice as long, and malloc aligns to 16 bytes.
#pragma once
#include <cstddef>
#include <new>
#include <vector>

namespace ramet {

template <class T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};

  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}

  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
  void deallocate(T* p, std::size_t) { ::operator delete(p, kLine); }
  bool operator==(const LineAllocator&) const = default;
};

template <class T>
using Aligned = std::vector<T, LineAllocator<T>>;

}  // namespace ramet
