// core/cuda.hpp - what the host side of CUDA operators shares: errors, the current device, scratch in stream order.
#pragma once
#include <core/tensor.hpp>

#include <cuda_runtime.h>

#include <array>
#include <mutex>

namespace core {
inline namespace v1 {
/// Throws MemoryError or RuntimeError, "op: what: the driver's sentence", unless `e` is a success.
inline void check_cuda(const char* op, cudaError_t e, const char* what) {
  if (e == cudaSuccess) return;
  cudaGetLastError();
  throw core::Error(e == cudaErrorMemoryAllocation ? "MemoryError" : "RuntimeError",
                    std::string(op) + ": " + what + ": " + cudaGetErrorString(e));
}

/// Makes a device current for a scope.
class OnDevice {
 public:
  OnDevice(const char* op, int device) {
    check_cuda(op, cudaGetDevice(&before_), "asking for the current device");
    if (device != before_) check_cuda(op, cudaSetDevice(device), "choosing the device");
  }
  ~OnDevice() { cudaSetDevice(before_); }
  OnDevice(const OnDevice&) = delete;

 private:
  int before_ = 0;
};

/// Scratch in stream order, from a pool that keeps up to 1 GiB per device.
class DeviceScratch {
 public:
  DeviceScratch(const char* op, int device, cudaStream_t stream, std::int64_t bytes) : stream_(stream) {
    if (bytes) check_cuda(op, cudaMallocFromPoolAsync(&data_, static_cast<std::size_t>(bytes), pool(op, device), stream), "scratch memory");
  }
  ~DeviceScratch() {
    if (data_) cudaFreeAsync(data_, stream_);
  }
  DeviceScratch(const DeviceScratch&) = delete;
  template <class T>
  T* get() const {
    return static_cast<T*>(data_);
  }

 private:
  static cudaMemPool_t pool(const char* op, int device) {
    static std::mutex mutex;
    static std::array<cudaMemPool_t, 128> pools{};
    std::lock_guard lock(mutex);
    cudaMemPool_t& p = pools.at(static_cast<std::size_t>(device));
    if (!p) {
      cudaMemPoolProps props{};
      props.allocType = cudaMemAllocationTypePinned;
      props.location = {cudaMemLocationTypeDevice, device};
      check_cuda(op, cudaMemPoolCreate(&p, &props), "making a memory pool");
      std::uint64_t keep = std::uint64_t{1} << 30;
      check_cuda(op, cudaMemPoolSetAttribute(p, cudaMemPoolAttrReleaseThreshold, &keep), "setting up a memory pool");
    }
    return p;
  }

  cudaStream_t stream_;
  void* data_ = nullptr;
};
}  // namespace v1
}  // namespace core
