// Reading images and stored tensors, and printing detections as JSON.
#pragma once

#include <cstdio>
#include <iostream>
#include <sstream>

#include "yolo.hpp"

namespace yolo {

// An image that owns its pixels.
struct LoadedImage {
  Pixels pixels;
  int height = 0, width = 0, channels = 0;
  operator Image() const { return {pixels.data(), height, width, channels}; }
};

// Reads a PGM, PPM or PAM file (P5, P6, P7) of 8 bits; three channels become BGR.
inline LoadedImage read_pnm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic, word, rest;
  // Editors write comments into the header, from # to the end of a line.
  const auto next = [&]() -> std::istream& {
    while (file >> word && word[0] == '#') std::getline(file, rest);
    return file;
  };
  const auto number = [&](int& value) {
    if (next() && !(std::istringstream(word) >> value)) file.setstate(std::ios::failbit);
  };
  file >> magic;
  LoadedImage image;
  int most = 0;
  if (magic == "P7") {
    while (next() && word != "ENDHDR") {
      if (word == "WIDTH") number(image.width);
      else if (word == "HEIGHT") number(image.height);
      else if (word == "DEPTH") number(image.channels);
      else if (word == "MAXVAL") number(most);
    }
  } else if (magic == "P5" || magic == "P6") {
    number(image.width), number(image.height), number(most);
    image.channels = magic == "P5" ? 1 : 3;
  }
  if (!file || most != 255 || image.width < 1 || image.height < 1 || image.channels < 1)
    throw std::runtime_error(path + " is no PGM, PPM or PAM image of 8 bits");
  file.get();
  image.pixels.resize(static_cast<size_t>(image.width) * image.height * image.channels);
  if (!file.read(reinterpret_cast<char*>(image.pixels.data()), static_cast<std::streamsize>(image.pixels.size())))
    throw std::runtime_error(path + " is cut short");
  if (image.channels == 3)
    for (size_t pixel = 0; pixel < image.pixels.size(); pixel += 3) std::swap(image.pixels[pixel], image.pixels[pixel + 2]);
  return image;
}

// Float32 tensors that a folder holds as `<name>.bin`, with their shapes in `tensors.json`: the first axis counts images.
class StoredTensors {
 public:
  explicit StoredTensors(const std::string& folder) {
    const Json shapes = Json::read(folder + "/tensors.json");
    for (const auto& [name, entry] : shapes.members()) {
      auto& [shape, values] = tensors_[name];
      size_t count = 1;
      for (const Json& size : entry["shape"].items()) {
        shape.push_back(size.integer());
        count *= static_cast<size_t>(size.integer());
      }
      values.resize(count);
      std::ifstream file(folder + "/" + entry["file"].string(), std::ios::binary);
      if (!file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(count * sizeof(float))))
        throw std::runtime_error(folder + "/" + entry["file"].string() + " is cut short");
    }
  }

  std::vector<std::string> names() const {
    std::vector<std::string> result;
    for (const auto& entry : tensors_) result.push_back(entry.first);
    return result;
  }

  size_t images() const { return tensors_.empty() ? 0 : static_cast<size_t>(tensors_.begin()->second.first.at(0)); }

  // One image's part of a tensor; empty if there is no such tensor.
  Tensor get(const std::string& name, size_t image) const {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? Tensor{} : slice({found->second.second.data(), found->second.first}, image);
  }

  // One image's part of a batch.
  static Tensor slice(const Tensor& batch, size_t image) {
    size_t size = 1;
    for (size_t axis = 1; axis < batch.shape.size(); ++axis) size *= static_cast<size_t>(batch.shape[axis]);
    if (image >= static_cast<size_t>(batch.shape.at(0))) throw std::runtime_error("there is no output for this image");
    return {batch.data + image * size, {batch.shape.begin() + 1, batch.shape.end()}};
  }

 private:
  std::map<std::string, std::pair<std::vector<int64_t>, std::vector<float>>> tensors_;
};

template <typename Values>
void print_list(std::ostream& out, const Values& values) {
  out << '[';
  const char* between = "";
  for (const auto& value : values) out << between << value, between = ",";
  out << ']';
}

// Lengths of unset and set runs in turn, down the columns of the image: COCO's run-length encoding.
inline std::vector<int64_t> count_runs(const Mask& mask, const Place& place) {
  std::vector<int64_t> runs{0};
  bool set = false;
  for (int x = 0; x < place.width; ++x)
    for (int y = 0; y < place.height; ++y) {
      if (mask.at(y, x) != set) runs.push_back(0), set = !set;
      ++runs.back();
    }
  return runs;
}

// One image's detections as a line of JSON.
inline std::string to_json(const Processor& processor, const std::vector<Detection>& found, const Place& place) {
  std::ostringstream out;
  out.precision(9);
  const auto list = [&](const char* name, auto get) {
    out << (out.tellp() > 0 ? ",\"" : "{\"") << name << "\":[";
    for (size_t index = 0; index < found.size(); ++index) {
      if (index) out << ',';
      get(found[index]);
    }
    out << ']';
  };
  list("boxes", [&](const Detection& one) { print_list(out, one.box); });
  list("scores", [&](const Detection& one) { out << one.score; });
  list("classes", [&](const Detection& one) { out << one.class_id; });
  if (processor.task == "pose") list("keypoints", [&](const Detection& one) { print_list(out, one.keypoints); });
  if (processor.task == "obb") list("xywhr", [&](const Detection& one) { print_list(out, one.xywhr); });
  if (processor.task == "segment") list("masks", [&](const Detection& one) { print_list(out, count_runs(one.mask, place)); });
  return out.str() + "}";
}

inline std::string to_json(const Tensor& probabilities) {
  std::ostringstream out;
  out.precision(9);
  out << "{\"probabilities\":";
  print_list(out, std::vector<float>(probabilities.data, probabilities.data + probabilities.shape.at(0)));
  return out.str() + "}";
}

}  // namespace yolo
