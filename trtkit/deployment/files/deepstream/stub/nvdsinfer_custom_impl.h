// What a parser uses of DeepStream's interface, after its public documentation: for compiling `parser.cpp` and running
// `replay` on machines without DeepStream. Never put it before DeepStream's own headers.
#pragma once

#include <vector>

enum NvDsInferDataType { FLOAT = 0, HALF = 1, INT8 = 2, INT32 = 3 };

struct NvDsInferDims {
  unsigned int numDims;
  unsigned int d[8];
  unsigned int numElements;
};

struct NvDsInferLayerInfo {
  NvDsInferDataType dataType;
  NvDsInferDims inferDims;
  int bindingIndex;
  const char* layerName;
  void* buffer;
  int isInput;
};

struct NvDsInferNetworkInfo {
  unsigned int width, height, channels;
};

struct NvDsInferParseDetectionParams {
  unsigned int numClassesConfigured;
  std::vector<float> perClassPreclusterThreshold, perClassPostclusterThreshold;
};

struct NvDsInferObjectDetectionInfo {
  unsigned int classId;
  float left, top, width, height, detectionConfidence;
#ifdef STUB_DEEPSTREAM_9
  float rotation_angle;
#endif
};

struct NvDsInferInstanceMaskInfo {
  unsigned int classId;
  float left, top, width, height, detectionConfidence;
  float* mask;
  unsigned int mask_width, mask_height, mask_size;
};

using NvDsInferParseCustomFunc = bool (*)(std::vector<NvDsInferLayerInfo> const&, NvDsInferNetworkInfo const&,
                                          NvDsInferParseDetectionParams const&,
                                          std::vector<NvDsInferObjectDetectionInfo>&);
using NvDsInferInstanceMaskParseCustomFunc = bool (*)(std::vector<NvDsInferLayerInfo> const&,
                                                      NvDsInferNetworkInfo const&, NvDsInferParseDetectionParams const&,
                                                      std::vector<NvDsInferInstanceMaskInfo>&);

#define CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE(function) \
  [[maybe_unused]] static const NvDsInferParseCustomFunc check_##function = function
#define CHECK_CUSTOM_INSTANCE_MASK_PARSE_FUNC_PROTOTYPE(function) \
  [[maybe_unused]] static const NvDsInferInstanceMaskParseCustomFunc check_##function = function
