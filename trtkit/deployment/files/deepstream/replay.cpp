// replay FOLDER TENSORS: hands the stored outputs in TENSORS to the parser, image by image, as Gst-nvinfer does, and
// prints the objects as JSON, in pixels of the network's input.
#include "nvdsinfer_custom_impl.h"
#include "report.hpp"

extern "C" bool NvDsInferParseYolo(std::vector<NvDsInferLayerInfo> const&, NvDsInferNetworkInfo const&,
                                   NvDsInferParseDetectionParams const&, std::vector<NvDsInferObjectDetectionInfo>&);
extern "C" bool NvDsInferParseYoloMask(std::vector<NvDsInferLayerInfo> const&, NvDsInferNetworkInfo const&,
                                       NvDsInferParseDetectionParams const&, std::vector<NvDsInferInstanceMaskInfo>&);

namespace {

template <typename Object>
auto get_rotation(const Object& object, int) -> decltype(object.rotation_angle) {
  return object.rotation_angle;
}
template <typename Object>
float get_rotation(const Object&, long) {
  return 0;
}

void print_mask(const NvDsInferInstanceMaskInfo& object) {
  std::cout << ",\"mask_shape\":[" << object.mask_height << ',' << object.mask_width << "],\"mask\":";
  yolo::print_list(std::cout, std::vector<float>(object.mask, object.mask + object.mask_size / sizeof(float)));
  delete[] object.mask;
}
void print_mask(const NvDsInferObjectDetectionInfo&) {}

template <typename Object, typename Function>
void print_objects(Function parse, const std::vector<NvDsInferLayerInfo>& layers, const yolo::Processor& model) {
  const auto classes = static_cast<unsigned int>(model.names.size());
  const std::vector<float> least(classes, static_cast<float>(model.thresholds.conf));
  std::vector<Object> objects;
  if (!parse(layers, {unsigned(model.width), unsigned(model.height), unsigned(model.channels())},
             {classes, least, least}, objects))
    throw std::runtime_error("the parser failed");
  std::cout << '[';
  for (size_t index = 0; index < objects.size(); ++index) {
    const Object& one = objects[index];
    std::cout << (index ? "," : "") << "{\"class\":" << one.classId << ",\"score\":" << one.detectionConfidence
              << ",\"rotation\":" << get_rotation(one, 0) << ",\"box\":";
    yolo::print_list(std::cout, std::vector<float>{one.left, one.top, one.width, one.height});
    print_mask(one);
    std::cout << '}';
  }
  std::cout << "]\n";
}

}  // namespace

int main(int count, char** arguments) {
  try {
    if (count != 3) throw std::runtime_error("usage: replay FOLDER TENSORS");
    std::cout.precision(9);
    const yolo::Processor model(arguments[1]);
    const yolo::StoredTensors tensors(arguments[2]);
    const std::vector<std::string> names = tensors.names();
    for (size_t image = 0; image < tensors.images(); ++image) {
      std::vector<NvDsInferLayerInfo> layers;
      for (const std::string& name : names) {
        const yolo::Tensor tensor = tensors.get(name, image);
        NvDsInferLayerInfo layer{};
        layer.dataType = FLOAT;
        layer.layerName = name.c_str();
        layer.buffer = const_cast<float*>(tensor.data);
        layer.inferDims.numDims = static_cast<unsigned int>(tensor.shape.size());
        for (size_t axis = 0; axis < tensor.shape.size(); ++axis)
          layer.inferDims.d[axis] = static_cast<unsigned int>(tensor.shape[axis]);
        layers.push_back(layer);
      }
      if (model.task == "segment" || model.task == "pose")
        print_objects<NvDsInferInstanceMaskInfo>(NvDsInferParseYoloMask, layers, model);
      else
        print_objects<NvDsInferObjectDetectionInfo>(NvDsInferParseYolo, layers, model);
    }
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
