// Parsers for DeepStream's Gst-nvinfer: the model's outputs to objects, as `model.json` beside this library describes them.
//
// NvDsInferParseYolo gives boxes; since DeepStream 9.0 with the rotation angle of oriented ones.
// NvDsInferParseYoloMask gives boxes with masks (segment) or with keypoints in the place of the mask (pose).
#include <dlfcn.h>

#include <cstdio>
#include <memory>
#include <mutex>

#include "nvdsinfer_custom_impl.h"
#include "yolo.hpp"

namespace {

// The folder of this library.
std::string find_folder() {
  Dl_info info{};
  static const int here = 0;
  if (!dladdr(&here, &info) || !info.dli_fname) throw std::runtime_error("the parser's library can't be located");
  const std::string path = info.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

const yolo::Processor& processor() {
  static const yolo::Processor model(find_folder());
  return model;
}

yolo::Tensor find_output(const std::vector<NvDsInferLayerInfo>& layers, const std::string& name) {
  for (const NvDsInferLayerInfo& layer : layers) {
    if (name.empty() || !layer.layerName || name != layer.layerName) continue;
    if (layer.dataType != FLOAT) throw std::runtime_error("the output " + name + " is not float32");
    yolo::Tensor tensor{static_cast<const float*>(layer.buffer), {}};
    for (unsigned int axis = 0; axis < layer.inferDims.numDims; ++axis) tensor.shape.push_back(layer.inferDims.d[axis]);
    return tensor;
  }
  return {};
}

// Detections in pixels of the network's input whose scores reach the thresholds of the configuration.
std::vector<yolo::Detection> decode(const std::vector<NvDsInferLayerInfo>& layers, const NvDsInferNetworkInfo& network,
                                    const NvDsInferParseDetectionParams& parameters) {
  const yolo::Processor& model = processor();
  if (static_cast<int>(network.width) != model.width || static_cast<int>(network.height) != model.height)
    throw std::runtime_error("the network's input is not the one in model.json");
  const yolo::Tensor output = find_output(layers, model.main);
  if (output.shape.size() != 2) throw std::runtime_error("the model has no output " + model.main + " of two axes");
  const std::vector<float>& least = parameters.perClassPreclusterThreshold;
  yolo::Thresholds limits = model.thresholds;
  if (!least.empty()) limits.conf = *std::min_element(least.begin(), least.end());
  std::vector<yolo::Detection> kept;
  for (yolo::Detection& one : model.decode(output, limits)) {
    const auto number = static_cast<size_t>(one.class_id);
    if (one.class_id < 0 || number >= parameters.numClassesConfigured) continue;
    if (number < least.size() && one.score < least[number]) continue;
    kept.push_back(std::move(one));
  }
  return kept;
}

// Since DeepStream 9.0 an object has a rotation angle; its box is then the one before rotation around its center.
template <typename Object>
auto set_rotation(Object& object, const yolo::Detection& one, int) -> decltype(object.rotation_angle, void()) {
  object.left = one.xywhr[0] - one.xywhr[2] / 2;
  object.top = one.xywhr[1] - one.xywhr[3] / 2;
  object.width = one.xywhr[2];
  object.height = one.xywhr[3];
  object.rotation_angle = one.xywhr[4];
}

template <typename Object>
void set_rotation(Object&, const yolo::Detection&, long) {}

template <typename Object>
Object to_object(const yolo::Detection& one, bool rotated) {
  const yolo::Box box = rotated ? yolo::Processor::around(one.xywhr) : one.box;
  const auto width = static_cast<float>(processor().width), height = static_cast<float>(processor().height);
  Object object{};
  object.classId = static_cast<unsigned int>(one.class_id);
  object.detectionConfidence = one.score;
  object.left = std::clamp(box[0], 0.0f, width);
  object.top = std::clamp(box[1], 0.0f, height);
  object.width = std::clamp(box[2], 0.0f, width) - object.left;
  object.height = std::clamp(box[3], 0.0f, height) - object.top;
  if (rotated) set_rotation(object, one, 0);
  return object;
}

// The mask's cells cover the object's box: one for each pixel of the input, at most as many as there are prototype pixels.
// Values are probabilities.
void set_mask(NvDsInferInstanceMaskInfo& object, const yolo::Detection& one, const yolo::Tensor& prototypes) {
  const yolo::Processor& model = processor();
  const auto rows = static_cast<int>(prototypes.shape[1]), columns = static_cast<int>(prototypes.shape[2]);
  const int height = std::clamp(static_cast<int>(std::lround(object.height)), 1, rows);
  const int width = std::clamp(static_cast<int>(std::lround(object.width)), 1, columns);
  std::vector<yolo::MaskTap> down, across;
  for (int y = 0; y < height; ++y)
    down.emplace_back(object.top + (y + 0.5) * object.height / height, rows, model.height);
  for (int x = 0; x < width; ++x)
    across.emplace_back(object.left + (x + 0.5) * object.width / width, columns, model.width);
  const std::vector<float> logits = yolo::sample_mask(prototypes, one.extra, down, across);
  object.mask_width = static_cast<unsigned int>(width);
  object.mask_height = static_cast<unsigned int>(height);
  object.mask_size = static_cast<unsigned int>(logits.size() * sizeof(float));
  object.mask = new float[logits.size()];  // DeepStream deletes it.
  std::transform(logits.begin(), logits.end(), object.mask, [](float value) { return 1 / (1 + std::exp(-value)); });
}

// Keypoints in pixels of the network's input, a row each.
void set_keypoints(NvDsInferInstanceMaskInfo& object, const yolo::Detection& one) {
  object.mask_width = static_cast<unsigned int>(processor().kpt_shape[1]);
  object.mask_height = static_cast<unsigned int>(processor().kpt_shape[0]);
  object.mask_size = static_cast<unsigned int>(one.extra.size() * sizeof(float));
  object.mask = new float[one.extra.size()];
  std::copy(one.extra.begin(), one.extra.end(), object.mask);
}

bool report(const std::exception& error) {
  static std::once_flag once;
  std::call_once(once, [&] { std::fprintf(stderr, "YOLO parser: %s\n", error.what()); });
  return false;
}

}  // namespace

extern "C" bool NvDsInferParseYolo(std::vector<NvDsInferLayerInfo> const& layers, NvDsInferNetworkInfo const& network,
                                   NvDsInferParseDetectionParams const& parameters,
                                   std::vector<NvDsInferObjectDetectionInfo>& objects) {
  try {
    for (const yolo::Detection& one : decode(layers, network, parameters))
      objects.push_back(to_object<NvDsInferObjectDetectionInfo>(one, processor().task == "obb"));
    return true;
  } catch (const std::exception& error) {
    return report(error);
  }
}

extern "C" bool NvDsInferParseYoloMask(std::vector<NvDsInferLayerInfo> const& layers,
                                       NvDsInferNetworkInfo const& network,
                                       NvDsInferParseDetectionParams const& parameters,
                                       std::vector<NvDsInferInstanceMaskInfo>& objects) {
  try {
    const bool pose = processor().task == "pose";
    const yolo::Tensor prototypes = find_output(layers, processor().prototypes);
    if (!pose && prototypes.shape.size() != 3) throw std::runtime_error("the model has no mask prototypes");
    for (const yolo::Detection& one : decode(layers, network, parameters)) {
      objects.push_back(to_object<NvDsInferInstanceMaskInfo>(one, false));
      pose ? set_keypoints(objects.back(), one) : set_mask(objects.back(), one, prototypes);
    }
    return true;
  } catch (const std::exception& error) {
    return report(error);
  }
}

CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE(NvDsInferParseYolo);
CHECK_CUSTOM_INSTANCE_MASK_PARSE_FUNC_PROTOTYPE(NvDsInferParseYoloMask);
