// A stand-in for TensorRT's runtime, with the names and types that its documentation gives and no GPU behind them.
//
// A plan is text: lines `name in|out float|half file sizes...`. An output's values are read from its file.
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "cuda_runtime_api.h"

namespace nvinfer1 {

struct Dims {
  int32_t nbDims;
#ifdef STUB_TENSORRT_10
  int64_t d[8];
#else
  int32_t d[8];
#endif
};

enum class DataType : int32_t { kFLOAT = 0, kHALF = 1 };

class ILogger {
 public:
  enum class Severity : int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
  virtual void log(Severity severity, const char* message) noexcept = 0;
  virtual ~ILogger() = default;
};

struct StubTensor {
  std::string name, file;
  bool is_input, is_half;
  std::vector<int64_t> sizes;
};

class IExecutionContext {
 public:
  explicit IExecutionContext(std::vector<StubTensor> tensors) : tensors_(std::move(tensors)) {}

  bool setInputShape(const char* name, const Dims& dims) noexcept {
    for (const auto& tensor : tensors_)
      if (tensor.name == name) {
        batch_ = dims.d[0];
        bool fits = tensor.is_input && dims.nbDims == 4 && dims.d[0] <= tensor.sizes[0];
        for (int axis = 1; axis < 4; ++axis) fits = fits && dims.d[axis] == tensor.sizes[axis];
        return fits;
      }
    return false;
  }

  Dims getTensorShape(const char* name) const noexcept {
    Dims dims{};
    for (const auto& tensor : tensors_)
      if (tensor.name == name)
        for (int64_t size : tensor.sizes) {
          dims.d[dims.nbDims] = static_cast<decltype(+dims.d[0])>(dims.nbDims ? size : batch_);
          ++dims.nbDims;
        }
    return dims;
  }

  bool setTensorAddress(const char* name, void* data) noexcept {
    addresses_[name] = data;
    return true;
  }

  bool enqueueV3(cudaStream_t) noexcept {
    for (const auto& tensor : tensors_) {
      if (!addresses_.count(tensor.name)) return false;
      if (tensor.is_input) continue;
      size_t count = 1;
      for (int64_t size : tensor.sizes) count *= static_cast<size_t>(size);
      std::ifstream file(tensor.file, std::ios::binary);
      const size_t one = count / static_cast<size_t>(tensor.sizes[0]) * sizeof(float);
      file.seekg(static_cast<std::streamoff>(one * runs_));
      file.read(static_cast<char*>(addresses_[tensor.name]), static_cast<std::streamsize>(one * batch_));
      if (!file) return false;
    }
    runs_ += batch_;
    return true;
  }

 private:
  std::vector<StubTensor> tensors_;
  std::map<std::string, void*> addresses_;
  int64_t batch_ = 0, runs_ = 0;
};

class ICudaEngine {
 public:
  std::vector<StubTensor> tensors;
  int32_t getNbIOTensors() const noexcept { return static_cast<int32_t>(tensors.size()); }
  const char* getIOTensorName(int32_t index) const noexcept { return tensors[index].name.c_str(); }
  DataType getTensorDataType(const char* name) const noexcept {
    for (const auto& tensor : tensors)
      if (tensor.name == name) return tensor.is_half ? DataType::kHALF : DataType::kFLOAT;
    return DataType::kHALF;
  }
  IExecutionContext* createExecutionContext() noexcept { return new IExecutionContext(tensors); }
};

class IRuntime {
 public:
  explicit IRuntime(ILogger& logger) : logger_(logger) {}
  void setEngineHostCodeAllowed(bool allowed) noexcept { host_code_ = allowed; }

  ICudaEngine* deserializeCudaEngine(const void* blob, size_t size) noexcept {
    std::istringstream plan(std::string(static_cast<const char*>(blob), size));
    std::string magic, line;
    if (!std::getline(plan, magic) || !(magic == "ftrt" || (magic == "ftrt-with-runtime" && host_code_))) {
      logger_.log(ILogger::Severity::kERROR, "the plan's magic tag does not match");
      return nullptr;
    }
    auto* engine = new ICudaEngine;
    while (std::getline(plan, line)) {
      std::istringstream words(line);
      StubTensor tensor;
      std::string direction, type;
      words >> tensor.name >> direction >> type >> tensor.file;
      tensor.is_input = direction == "in";
      tensor.is_half = type == "half";
      for (int64_t size; words >> size;) tensor.sizes.push_back(size);
      engine->tensors.push_back(tensor);
    }
    return engine;
  }

 private:
  ILogger& logger_;
  bool host_code_ = false;
};

inline IRuntime* createInferRuntime(ILogger& logger) noexcept { return new IRuntime(logger); }

}  // namespace nvinfer1
