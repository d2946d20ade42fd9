// detect [--json] [--tensors FOLDER] [--input FILE] [--model FOLDER] IMAGE ...
//
// Prints the detections on images. `--tensors` takes the model's outputs from a folder instead of running the engine,
// `--input` writes the model's input of all images to a file (float32).
#include <iomanip>
#include <memory>

#include "report.hpp"
#ifdef YOLO_TENSORRT
#include "engine.hpp"
#endif
#ifdef YOLO_OPENCV
#include <opencv2/imgcodecs.hpp>
#endif

namespace {

yolo::LoadedImage read_image(const std::string& path, [[maybe_unused]] int channels) {
#ifdef YOLO_OPENCV
  const bool raw = path.size() > 4 && path.substr(path.size() - 4) == ".pam";
  const cv::Mat image = raw ? cv::Mat() : cv::imread(path, channels == 1 ? cv::IMREAD_GRAYSCALE : cv::IMREAD_COLOR);
  if (!image.empty())
    return {yolo::Pixels(image.datastart, image.dataend), image.rows, image.cols, image.channels()};
#endif
  return yolo::read_pnm(path);
}

void print_text(const yolo::Processor& processor, const std::vector<yolo::Detection>& found) {
  std::cout << std::fixed;
  for (const auto& one : found) {
    const auto name = processor.names.find(one.class_id);
    std::cout << std::setprecision(3) << one.score << "  "
              << (name == processor.names.end() ? std::to_string(one.class_id) : name->second) << std::setprecision(1);
    for (float side : one.box) std::cout << "  " << side;
    std::cout << '\n';
  }
}

void print_text(const yolo::Processor& processor, const yolo::Tensor& probabilities) {
  std::vector<int> order(static_cast<size_t>(probabilities.shape.at(0)));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return probabilities.data[a] > probabilities.data[b]; });
  if (order.size() > 5) order.resize(5);
  std::cout << std::fixed << std::setprecision(3);
  for (int number : order) std::cout << probabilities.data[number] << "  " << processor.names.at(number) << '\n';
}

int run(const std::vector<std::string>& arguments) {
  std::string folder = ".", tensors, input;
  bool json = false;
  std::vector<std::string> paths;
  for (size_t index = 0; index < arguments.size(); ++index) {
    const std::string& word = arguments[index];
    if (word == "--json") json = true;
    else if (word == "--model" && index + 1 < arguments.size()) folder = arguments[++index];
    else if (word == "--tensors" && index + 1 < arguments.size()) tensors = arguments[++index];
    else if (word == "--input" && index + 1 < arguments.size()) input = arguments[++index];
    else if (word.rfind("--", 0) == 0) throw std::runtime_error("unknown option " + word);
    else paths.push_back(word);
  }
  const yolo::Processor processor(folder);
  const size_t image_size = size_t(processor.channels()) * processor.height * processor.width;
  const size_t most = processor.batch ? processor.batch : 8;
  std::ofstream input_file;
  if (!input.empty()) input_file.open(input, std::ios::binary);

  std::unique_ptr<yolo::StoredTensors> stored;
  if (!tensors.empty()) stored = std::make_unique<yolo::StoredTensors>(tensors);
#ifdef YOLO_TENSORRT
  std::unique_ptr<yolo::Engine> engine;
  if (!stored) engine = std::make_unique<yolo::Engine>(processor);
#else
  if (!stored) throw std::runtime_error("this program was built without TensorRT: NvInfer.h was not found");
#endif

  for (size_t start = 0; start < paths.size(); start += most) {
    const size_t count = std::min(most, paths.size() - start);
    // A fixed batch is filled up with zeros.
    const size_t filled = processor.batch && !processor.dynamic ? most : count;
    std::vector<float> values(filled * image_size);
    std::vector<yolo::Place> places;
    for (size_t index = 0; index < count; ++index)
      places.push_back(processor.preprocess(read_image(paths[start + index], processor.channels()), &values[index * image_size]));
    if (input_file.is_open())
      input_file.write(reinterpret_cast<const char*>(values.data()),
                       static_cast<std::streamsize>(count * image_size * sizeof(float)));
    std::map<std::string, yolo::Tensor> outputs;
#ifdef YOLO_TENSORRT
    if (engine)
      outputs = engine->run(values, {int64_t(filled), processor.channels(), processor.height, processor.width});
#endif
    const auto get = [&](const std::string& name, size_t index) {
      if (stored) return stored->get(name, start + index);
      const auto found = outputs.find(name);
      return found == outputs.end() ? yolo::Tensor{} : yolo::StoredTensors::slice(found->second, index);
    };
    for (size_t index = 0; index < count; ++index) {
      const yolo::Tensor output = get(processor.main, index);
      if (output.shape.empty()) throw std::runtime_error("the model has no output " + processor.main);
      if (!json) std::cout << paths[start + index] << '\n';
      if (processor.task == "classify") {
        json ? void(std::cout << yolo::to_json(output) << '\n') : print_text(processor, output);
        continue;
      }
      const auto found =
          processor.postprocess(output, get(processor.prototypes, index), places[index], processor.thresholds);
      json ? void(std::cout << yolo::to_json(processor, found, places[index]) << '\n') : print_text(processor, found);
    }
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  try {
    return run({arguments + 1, arguments + count});
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
