// Runs an engine file with TensorRT 8.6 or newer.
#pragma once

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <memory>

#include "yolo.hpp"

namespace yolo {

inline void check_cuda(cudaError_t code, const char* what) {
  if (code != cudaSuccess) throw std::runtime_error(std::string(what) + " failed: " + cudaGetErrorString(code));
}

// Device memory that grows as needed.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer() { cudaFree(pointer_); }

  void* reserve(size_t bytes) {
    if (bytes > bytes_) {
      check_cuda(cudaFree(pointer_), "cudaFree");
      pointer_ = nullptr;
      check_cuda(cudaMalloc(&pointer_, bytes), "cudaMalloc");
      bytes_ = bytes;
    }
    return pointer_;
  }

 private:
  void* pointer_ = nullptr;
  size_t bytes_ = 0;
};

class Engine {
 public:
  explicit Engine(const Processor& processor) : input_(processor.input) {
    std::ifstream file(processor.file, std::ios::binary);
    if (!file) throw std::runtime_error(processor.file + " can't be read");
    const std::vector<char> data{std::istreambuf_iterator<char>(file), {}};
    size_t start = 0;
    if (data.size() > 5 && data[4] == '{') {
      // A length and a header of JSON come before the plan.
      uint32_t length = 0;
      std::memcpy(&length, data.data(), sizeof length);
      start = std::min<size_t>(4 + size_t{length}, data.size());
    }
    runtime_.reset(nvinfer1::createInferRuntime(logger_));
    if (runtime_ && processor.host_code) runtime_->setEngineHostCodeAllowed(true);
    if (runtime_) engine_.reset(runtime_->deserializeCudaEngine(data.data() + start, data.size() - start));
    if (!engine_)
      throw std::runtime_error("TensorRT can't read " + processor.file +
                               ": it must be the release that built it, on a GPU of the same compute capability "
                               "(model.json, passport)");
    context_.reset(engine_->createExecutionContext());
    if (!context_) throw std::runtime_error("TensorRT has no memory for " + processor.file);
    check_cuda(cudaStreamCreate(&stream_), "cudaStreamCreate");
    for (int index = 0; index < engine_->getNbIOTensors(); ++index) {
      const std::string name = engine_->getIOTensorName(index);
      if (engine_->getTensorDataType(name.c_str()) != nvinfer1::DataType::kFLOAT)
        throw std::runtime_error("the tensor " + name + " is not float32: export with float32 inputs and outputs");
      if (name != input_) outputs_.push_back(name);
    }
  }

  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  ~Engine() { cudaStreamDestroy(stream_); }

  // Runs a batch; the tensors stay valid until the next call. Their shapes begin with the batch.
  std::map<std::string, Tensor> run(const std::vector<float>& values, const std::array<int64_t, 4>& shape) {
    nvinfer1::Dims dims{};
    dims.nbDims = 4;
    for (int axis = 0; axis < 4; ++axis) dims.d[axis] = static_cast<decltype(+dims.d[0])>(shape[axis]);
    if (!context_->setInputShape(input_.c_str(), dims)) throw std::runtime_error("the engine does not take this shape");
    void* source = buffers_[input_].reserve(values.size() * sizeof(float));
    check_cuda(cudaMemcpyAsync(source, values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice, stream_),
               "copying the input");
    context_->setTensorAddress(input_.c_str(), source);
    std::map<std::string, Tensor> result;
    for (const std::string& name : outputs_) {
      const auto sizes = context_->getTensorShape(name.c_str());
      Tensor& tensor = result[name];
      size_t count = 1;
      for (int axis = 0; axis < sizes.nbDims; ++axis) {
        tensor.shape.push_back(sizes.d[axis]);
        count *= static_cast<size_t>(sizes.d[axis]);
      }
      host_[name].resize(count);
      tensor.data = host_[name].data();
      context_->setTensorAddress(name.c_str(), buffers_[name].reserve(count * sizeof(float)));
    }
    if (!context_->enqueueV3(stream_)) throw std::runtime_error("TensorRT could not run the engine");
    for (const std::string& name : outputs_)
      check_cuda(cudaMemcpyAsync(host_[name].data(), buffers_[name].reserve(0), host_[name].size() * sizeof(float),
                                 cudaMemcpyDeviceToHost, stream_),
                 "copying an output");
    check_cuda(cudaStreamSynchronize(stream_), "the run");
    return result;
  }

 private:
  class Logger : public nvinfer1::ILogger {
    void log(Severity severity, const char* message) noexcept override {
      if (severity <= Severity::kWARNING) std::fprintf(stderr, "TensorRT: %s\n", message);
    }
  };

  std::string input_;
  std::vector<std::string> outputs_;
  Logger logger_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  std::map<std::string, DeviceBuffer> buffers_;
  std::map<std::string, std::vector<float>> host_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace yolo
