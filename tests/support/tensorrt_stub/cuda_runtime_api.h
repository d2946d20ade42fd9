// The CUDA runtime's functions that a program with TensorRT calls, in the host's memory.
#pragma once

#include <cstdlib>
#include <cstring>

using cudaError_t = int;
using cudaStream_t = void*;
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
constexpr cudaError_t cudaSuccess = 0;

inline const char* cudaGetErrorString(cudaError_t) { return "out of memory"; }
inline cudaError_t cudaMalloc(void** pointer, size_t bytes) { return (*pointer = std::malloc(bytes)) ? 0 : 2; }
inline cudaError_t cudaFree(void* pointer) { return std::free(pointer), 0; }
inline cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  return std::memcpy(target, source, bytes), 0;
}
inline cudaError_t cudaStreamCreate(cudaStream_t* stream) { return *stream = nullptr, 0; }
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return 0; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return 0; }
