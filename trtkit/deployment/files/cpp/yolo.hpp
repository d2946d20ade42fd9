// Preprocessing and postprocessing of the model that `model.json` describes: C++17 and its standard library alone.
//
// `Processor(folder)` reads `model.json`; `preprocess` turns an image into the model's input, `postprocess` turns the
// model's outputs into detections in pixels of the image. The arithmetic is that of `yolo.py`. Compile with
// `-ffp-contract=off` (AArch64), so that products and sums round as they do there.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <locale>
#include <map>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace yolo {

// JSON, as far as `model.json` needs it: no library, so that the folder builds on machines without a network.

class Json {
 public:
  enum class Kind { null, boolean, number, string, array, object };

  static Json parse(const std::string& text) {
    Parser parser{text.c_str()};
    return parser.value(0);
  }

  static Json read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path + " can't be read");
    return parse(std::string(std::istreambuf_iterator<char>(file), {}));
  }

  bool is_null() const { return kind_ == Kind::null; }
  bool boolean() const { return number_ != 0; }
  double number() const { return number_; }
  int integer() const { return static_cast<int>(number_); }
  const std::string& string() const { return string_; }
  const std::vector<Json>& items() const { return items_; }
  const std::vector<std::pair<std::string, Json>>& members() const { return members_; }

  const Json& operator[](const std::string& name) const {
    const Json* member = find(name);
    if (!member) throw std::runtime_error("model.json has no \"" + name + "\"");
    return *member;
  }

  const Json* find(const std::string& name) const {
    for (const auto& member : members_)
      if (member.first == name) return &member.second;
    return nullptr;
  }

 private:
  struct Parser {
    const char* at;

    [[noreturn]] static void fail() { throw std::runtime_error("the JSON is damaged"); }
    void space() { while (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t') ++at; }
    bool take(char wanted) {
      space();
      return *at == wanted && (++at, true);
    }
    bool word(const char* wanted) {
      const size_t length = std::strlen(wanted);
      return std::strncmp(at, wanted, length) == 0 && (at += length, true);
    }

    Json value(int depth) {
      if (depth > 64) fail();
      Json json;
      space();
      if (*at == '{') {
        ++at;
        json.kind_ = Kind::object;
        for (bool more = !take('}'); more;) {
          space();
          std::string name = text();
          if (!take(':')) fail();
          json.members_.emplace_back(std::move(name), value(depth + 1));
          more = take(',');
          if (!more && !take('}')) fail();
        }
      } else if (*at == '[') {
        ++at;
        json.kind_ = Kind::array;
        for (bool more = !take(']'); more;) {
          json.items_.push_back(value(depth + 1));
          more = take(',');
          if (!more && !take(']')) fail();
        }
      } else if (*at == '"') {
        json.kind_ = Kind::string;
        json.string_ = text();
      } else if (word("true") || word("false")) {
        json.kind_ = Kind::boolean;
        json.number_ = at[-2] == 'u' ? 1 : 0;
      } else if (!word("null")) {
        const char* end = at;
        while (*end && std::strchr("+-.0123456789eE", *end)) ++end;
        // strtod would read "0,25" in an application of a locale with decimal commas.
        std::istringstream digits(std::string(at, end));
        digits.imbue(std::locale::classic());
        json.kind_ = Kind::number;
        if (!(digits >> json.number_) || digits.peek() != std::istringstream::traits_type::eof()) fail();
        at = end;
      }
      return json;
    }

    std::string text() {
      if (*at++ != '"') fail();
      std::string result;
      for (; *at != '"'; ++at) {
        if (*at == '\0') fail();
        if (*at != '\\') {
          result += *at;
          continue;
        }
        switch (*++at) {
          case 'n': result += '\n'; break;
          case 't': result += '\t'; break;
          case 'r': result += '\r'; break;
          case 'b': result += '\b'; break;
          case 'f': result += '\f'; break;
          case 'u': append_utf8(result, code_point()); break;
          case '\0': fail();
          default: result += *at;
        }
      }
      ++at;
      return result;
    }

    unsigned hex() {
      unsigned code = 0;
      for (int digit = 0; digit < 4; ++digit) {
        const char letter = *++at;
        const char* digits = "0123456789abcdef";
        const char* found = letter ? std::strchr(digits, letter | (letter > '9' ? 32 : 0)) : nullptr;
        if (!found) fail();
        code = code * 16 + static_cast<unsigned>(found - digits);
      }
      return code;
    }

    unsigned code_point() {
      const unsigned first = hex();
      if (first < 0xD800 || first > 0xDBFF || at[1] != '\\' || at[2] != 'u') return first;
      at += 2;
      return 0x10000 + ((first - 0xD800) << 10) + (hex() - 0xDC00);
    }

    static void append_utf8(std::string& result, unsigned code) {
      if (code < 0x80) {
        result += static_cast<char>(code);
        return;
      }
      const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
      const unsigned leads[] = {0, 0xC0, 0xE0, 0xF0};
      result += static_cast<char>(leads[more] | (code >> (6 * more)));
      for (int part = more - 1; part >= 0; --part) result += static_cast<char>(0x80 | ((code >> (6 * part)) & 0x3F));
    }
  };

  Kind kind_ = Kind::null;
  double number_ = 0;
  std::string string_;
  std::vector<Json> items_;
  std::vector<std::pair<std::string, Json>> members_;
};

// What goes in and comes out.

// An image: uint8, rows of `width` pixels of `channels` values, BGR if there are three. Not owned.
struct Image {
  const uint8_t* data;
  int height, width, channels;
  size_t row_bytes = 0;  // 0: no padding between rows

  const uint8_t* row(int y) const {
    return data + static_cast<size_t>(y) * (row_bytes ? row_bytes : static_cast<size_t>(width) * channels);
  }
};

// An output of one image, without the batch axis; no shape if there is none. Not owned.
struct Tensor {
  const float* data = nullptr;
  std::vector<int64_t> shape;
};

// Where an image lies in the input.
struct Place {
  int height, width, resized_height, resized_width, top, left, input_height, input_width;
};

// The pixels of an object's mask within its box; all others are unset.
struct Mask {
  int x1 = 0, y1 = 0, x2 = 0, y2 = 0;
  std::vector<uint8_t> values;  // (y2 - y1) rows of (x2 - x1), 0 or 1

  bool at(int y, int x) const {
    return y >= y1 && y < y2 && x >= x1 && x < x2 && values[static_cast<size_t>(y - y1) * (x2 - x1) + (x - x1)];
  }
};

struct Detection {
  std::array<float, 4> box{};    // x1, y1, x2, y2
  float score = 0;
  int class_id = 0;
  std::array<float, 5> xywhr{};  // obb: center x, center y, width, height, angle in radians
  std::vector<float> keypoints;  // pose: kpt_shape[0] times kpt_shape[1] values
  Mask mask;                     // segment
  std::vector<float> extra;      // mask coefficients, keypoints or angle as the model gives them
};

struct Thresholds {
  double conf, iou;
  int max_det;
};

constexpr float CLASS_OFFSET = 7680.0f;  // Pixels between the boxes of one class and the next: NMS never compares them.
constexpr size_t MAX_CANDIDATES = 30000;  // NMS considers this many highest-scoring boxes of an image.
constexpr uint8_t PADDING = 114;
constexpr double EPSILON = 1e-7;  // Keeps logarithm and square root away from zero.

// Resizing

using Pixels = std::vector<uint8_t>;

struct Taps {
  int before, after, first, second;  // two source pixels and their weights, in 2048ths
};

inline std::vector<Taps> resize_taps(int before, int after) {
  std::vector<Taps> taps(after);
  for (int index = 0; index < after; ++index) {
    const double scale = 1 / (static_cast<double>(after) / before);
    const float center = static_cast<float>((index + 0.5) * scale - 0.5);
    const int start = static_cast<int>(std::floor(center));
    const float weight = center - static_cast<float>(start);
    taps[index] = {std::clamp(start, 0, before - 1), std::clamp(start + 1, 0, before - 1),
                   static_cast<int>(std::nearbyint((1.0f - weight) * 2048.0f)),
                   static_cast<int>(std::nearbyint(weight * 2048.0f))};
  }
  return taps;
}

// Resizes bilinearly in OpenCV's fixed-point arithmetic (INTER_LINEAR of uint8), bit for bit.
inline Pixels resize(const Image& image, int height, int width) {
  const int channels = image.channels;
  Pixels result(static_cast<size_t>(height) * width * channels);
  if (image.height == height && image.width == width) {
    for (int y = 0; y < height; ++y)
      std::copy_n(image.row(y), static_cast<size_t>(width) * channels, &result[static_cast<size_t>(y) * width * channels]);
    return result;
  }
  const auto down = resize_taps(image.height, height), across = resize_taps(image.width, width);
  for (int y = 0; y < height; ++y) {
    const uint8_t *above = image.row(down[y].before), *below = image.row(down[y].after);
    uint8_t* target = &result[static_cast<size_t>(y) * width * channels];
    for (int x = 0; x < width; ++x) {
      const Taps& tap = across[x];
      for (int c = 0; c < channels; ++c) {
        const int left = tap.before * channels + c, right = tap.after * channels + c;
        const int upper = (above[left] * tap.first + above[right] * tap.second) >> 4;
        const int lower = (below[left] * tap.first + below[right] * tap.second) >> 4;
        const int sum = ((down[y].first * upper) >> 16) + ((down[y].second * lower) >> 16);
        *target++ = static_cast<uint8_t>(std::clamp((sum + 2) >> 2, 0, 255));
      }
    }
  }
  return result;
}

// Weights of the source pixels of each target pixel, as Pillow's antialiasing bilinear filter has them.
inline std::vector<std::pair<int, std::vector<double>>> triangle_weights(int before, int after) {
  const double scale = static_cast<double>(before) / after, reach = std::max(scale, 1.0), unit = 1 << 22;
  std::vector<std::pair<int, std::vector<double>>> result(after);
  for (int index = 0; index < after; ++index) {
    const double center = (index + 0.5) * scale;
    const int first = std::max(0, static_cast<int>(center - reach) - 1);
    const int last = std::min(before, static_cast<int>(center + reach) + 2);
    auto& weights = result[index].second;
    for (int source = first; source < last; ++source)
      weights.push_back(std::max(1 - std::abs(source + 0.5 - center) / reach, 0.0));
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    for (double& weight : weights) weight = before == after ? weight : std::floor(weight / sum * unit + 0.5) / unit;
    result[index].first = first;
  }
  return result;
}

inline Pixels resize_antialiased(const Image& image, int height, int width) {
  const int channels = image.channels;
  const auto across = triangle_weights(image.width, width), down = triangle_weights(image.height, height);
  std::vector<double> rows(static_cast<size_t>(image.height) * width * channels);
  for (int y = 0; y < image.height; ++y)
    for (int x = 0; x < width; ++x)
      for (int c = 0; c < channels; ++c) {
        double sum = 0;
        for (size_t tap = 0; tap < across[x].second.size(); ++tap)
          sum += across[x].second[tap] * image.row(y)[(across[x].first + tap) * channels + c];
        rows[(static_cast<size_t>(y) * width + x) * channels + c] = std::floor(sum + 0.5);
      }
  Pixels result(static_cast<size_t>(height) * width * channels);
  const size_t stride = static_cast<size_t>(width) * channels;
  for (int y = 0; y < height; ++y)
    for (size_t x = 0; x < stride; ++x) {
      double sum = 0;
      for (size_t tap = 0; tap < down[y].second.size(); ++tap)
        sum += down[y].second[tap] * rows[(down[y].first + tap) * stride + x];
      result[y * stride + x] = static_cast<uint8_t>(std::floor(sum + 0.5));
    }
  return result;
}

// Boxes

using Box = std::array<float, 4>;

inline float box_iou(const Box& a, const Box& b) {
  const float width = std::min(a[2], b[2]) - std::max(a[0], b[0]);
  const float height = std::min(a[3], b[3]) - std::max(a[1], b[1]);
  const float shared = std::max(width, 0.0f) * std::max(height, 0.0f);
  const float areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]);
  return shared / std::max(areas - shared, std::numeric_limits<float>::min());
}

// One minus the Hellinger distance of two oriented boxes as normal distributions (arXiv:2106.06072).
inline float prob_iou(const std::array<float, 5>& first, const std::array<float, 5>& second) {
  struct Normal {
    double a, b, c, own;
    explicit Normal(const std::array<float, 5>& box) {
      const double along = double(box[2]) * box[2] / 12, across = double(box[3]) * box[3] / 12;
      const double cos = std::cos(double(box[4])), sin = std::sin(double(box[4]));
      a = along * cos * cos + across * sin * sin;
      b = along * sin * sin + across * cos * cos;
      c = (along - across) * cos * sin;
      own = std::max(a * b - c * c, 0.0);
    }
  };
  const Normal one(first), two(second);
  const double a = one.a + two.a, b = one.b + two.b, c = one.c + two.c;
  const double x = double(first[0]) - second[0], y = double(first[1]) - second[1], both = a * b - c * c;
  const double apart = (a * y * y + b * x * x - 2 * c * x * y) / (both + EPSILON) / 4;
  const double spread = std::log(both / (4 * std::sqrt(one.own * two.own) + EPSILON) + EPSILON) / 2;
  const double distance = std::clamp(apart + spread, EPSILON, 100.0);
  return static_cast<float>(std::max(1 - std::sqrt(1 - std::exp(-distance) + EPSILON), 0.0));
}

// Greedy class-wise NMS of detections by falling score.
inline std::vector<Detection> nms(const std::vector<Detection>& sorted, const Thresholds& limits) {
  std::vector<Box> boxes;
  for (const auto& one : sorted) {
    boxes.push_back(one.box);
    for (float& side : boxes.back()) side += static_cast<float>(one.class_id) * CLASS_OFFSET;
  }
  std::vector<Detection> kept;
  std::vector<char> dropped(sorted.size(), 0);
  for (size_t index = 0; index < sorted.size() && kept.size() < static_cast<size_t>(limits.max_det); ++index) {
    if (dropped[index]) continue;
    kept.push_back(sorted[index]);
    for (size_t other = index + 1; other < sorted.size(); ++other)
      if (box_iou(boxes[index], boxes[other]) > limits.iou) dropped[other] = 1;
  }
  return kept;
}

// Class-wise Fast NMS of oriented boxes by `prob_iou`, of detections by falling score.
inline std::vector<Detection> nms_rotated(const std::vector<Detection>& sorted, const Thresholds& limits) {
  std::vector<Detection> kept;
  for (size_t index = 0; index < sorted.size() && kept.size() < static_cast<size_t>(limits.max_det); ++index) {
    bool free = true;
    for (size_t before = 0; before < index && free; ++before)
      free = sorted[before].class_id != sorted[index].class_id ||
             prob_iou(sorted[before].xywhr, sorted[index].xywhr) <= static_cast<float>(limits.iou);
    if (free) kept.push_back(sorted[index]);
  }
  return kept;
}

// Bilinear positions of pixels in a grid of mask prototypes.
struct MaskTap {
  int before;
  float weight;
  MaskTap(double center, int count, int size) {
    const double position = std::clamp(center * (static_cast<double>(count) / size) - 0.5, 0.0, count - 1.0);
    before = std::min(static_cast<int>(position), std::max(0, count - 2));
    weight = static_cast<float>(position - before);
  }
};

// The mask of one object over prototypes, as logits where the taps lie: positive is inside.
inline std::vector<float> sample_mask(const Tensor& prototypes, const std::vector<float>& coefficients,
                                      const std::vector<MaskTap>& down, const std::vector<MaskTap>& across) {
  const int count = static_cast<int>(prototypes.shape[0]);
  const int height = static_cast<int>(prototypes.shape[1]), width = static_cast<int>(prototypes.shape[2]);
  if (coefficients.size() < static_cast<size_t>(count))
    throw std::runtime_error("an object has " + std::to_string(coefficients.size()) + " mask coefficients for " +
                             std::to_string(count) + " prototypes");
  std::vector<float> values(down.size() * across.size());
  if (values.empty()) return values;
  const int top = down.front().before, bottom = std::min(down.back().before + 2, height);
  const int left = across.front().before, right = std::min(across.back().before + 2, width);
  std::vector<float> part(static_cast<size_t>(bottom - top) * (right - left), 0.0f);
  for (int channel = 0; channel < count; ++channel)
    for (int y = top; y < bottom; ++y) {
      const float* row = prototypes.data + (static_cast<size_t>(channel) * height + y) * width;
      float* target = &part[static_cast<size_t>(y - top) * (right - left)];
      for (int x = left; x < right; ++x) target[x - left] += coefficients[channel] * row[x];
    }
  size_t next = 0;
  for (const MaskTap& row : down) {
    const size_t above = row.before - top, below = std::min<size_t>(above + 1, bottom - top - 1);
    const auto vertical = [&](size_t column) {
      return part[above * (right - left) + column] * (1 - row.weight) + part[below * (right - left) + column] * row.weight;
    };
    for (const MaskTap& column : across) {
      const size_t before = column.before - left, after = std::min<size_t>(before + 1, right - left - 1);
      values[next++] = vertical(before) * (1 - column.weight) + vertical(after) * column.weight;
    }
  }
  return values;
}

// What goes into the model and what comes out.
class Processor {
 public:
  std::string task, format, file, input, main, prototypes;
  std::map<int, std::string> names;
  int height = 0, width = 0, batch = 0;  // batch 0: any
  bool dynamic = false, host_code = false;  // host_code: the engine brings a TensorRT runtime of its own
  std::array<int, 2> kpt_shape{0, 0};
  Thresholds thresholds{};

  explicit Processor(const std::string& folder) {
    const Json json = Json::read(folder + "/model.json");
    task = json["task"].string();
    file = folder + "/" + json["file"]["name"].string();
    for (const auto& name : json["names"].members()) names[std::stoi(name.first)] = name.second.string();
    const Json &source = json["input"], &settings = json["preprocess"], &outputs = json["outputs"];
    input = source["name"].string();
    height = source["imgsz"].items().at(0).integer();
    width = source["imgsz"].items().at(1).integer();
    batch = source["batch"].integer();
    dynamic = source["dynamic"].boolean();
    for (size_t index = 0; index < json["kpt_shape"].items().size(); ++index)
      kpt_shape.at(index) = json["kpt_shape"].items()[index].integer();
    kind_ = settings["kind"].string();
    channels_ = settings["channels"].integer();
    reverse_ = channels_ == 3 && settings["color"].string() == "rgb";
    scale_ = settings["scale"].number();
    for (const Json& value : settings["mean"].items()) mean_.push_back(static_cast<float>(value.number()));
    for (const Json& value : settings["std"].items()) std_.push_back(static_cast<float>(value.number()));
    format = outputs["format"].string();
    main = outputs["main"].string();
    prototypes = outputs["prototypes"].string();
    const Json* passport = json.find("passport");
    const Json* compatibility = passport ? passport->find("compatibility") : nullptr;
    host_code = compatibility && compatibility->string() == "version";
    const Json& limits = json["thresholds"];
    thresholds = {limits["conf"].number(), limits["iou"].number(), limits["max_det"].integer()};
  }

  int channels() const { return channels_; }

  // Turns an image into the model's input, planes of `channels` x `height` x `width`.
  Place preprocess(const Image& image, float* values) const {
    if (image.channels != channels_)
      throw std::runtime_error("the image has " + std::to_string(image.channels) + " channels, the model takes " +
                               std::to_string(channels_));
    Place place{image.height, image.width, height, width, 0, 0, height, width};
    Pixels pixels;
    if (kind_ == "letterbox") {
      const double ratio = std::min(double(height) / image.height, double(width) / image.width);
      place.resized_height = std::min(static_cast<int>(std::ceil(image.height * ratio)), height);
      place.resized_width = std::min(static_cast<int>(std::ceil(image.width * ratio)), width);
      place.top = (height - place.resized_height) / 2;
      place.left = (width - place.resized_width) / 2;
      pixels = resize(image, place.resized_height, place.resized_width);
    } else if (kind_ == "stretch") {
      pixels = resize(image, height, width);
    } else {
      if (height == width && image.height <= image.width)
        place.resized_width = static_cast<int>(double(int64_t(height) * image.width) / image.height);
      else if (height == width)
        place.resized_height = static_cast<int>(double(int64_t(width) * image.height) / image.width);
      // Rounds halves to even, as Python does.
      place.top = -static_cast<int>(std::nearbyint((place.resized_height - height) / 2.0));
      place.left = -static_cast<int>(std::nearbyint((place.resized_width - width) / 2.0));
      pixels = resize_antialiased(image, place.resized_height, place.resized_width);
    }
    for (int channel = 0; channel < channels_; ++channel) {
      const int source = reverse_ ? channels_ - 1 - channel : channel;
      for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x) {
          const int row = y - place.top, column = x - place.left;
          const bool inside = row >= 0 && row < place.resized_height && column >= 0 && column < place.resized_width;
          const uint8_t pixel =
              inside ? pixels[(static_cast<size_t>(row) * place.resized_width + column) * channels_ + source] : PADDING;
          // Division rounds correctly, multiplication by 1 / 255 would not.
          float value = scale_ == 1.0 / 255 ? pixel / 255.0f : pixel * static_cast<float>(scale_);
          if (!mean_.empty()) value -= mean_[channel];
          if (!std_.empty()) value /= std_[channel];
          *values++ = value;
        }
    }
    return place;
  }

  // Decodes the main output: boxes in pixels of the input, by falling score.
  std::vector<Detection> decode(const Tensor& output, const Thresholds& limits) const {
    const bool dense = format == "dense", queries = format == "detr_queries", rotated = task == "obb";
    const auto rows = static_cast<size_t>(output.shape.at(dense ? 1 : 0));
    const auto columns = static_cast<size_t>(output.shape.at(dense ? 0 : 1));
    const auto count = dense || queries ? names.size() : size_t{2};
    if (columns < 4 + count) throw std::runtime_error("the output " + main + " has too few values for each box");
    const size_t row_step = dense ? 1 : columns, column_step = dense ? rows : 1;
    const auto conf = static_cast<float>(limits.conf);
    std::vector<Detection> found;
    for (size_t row = 0; row < rows; ++row) {
      const auto value = [&](size_t column) { return output.data[row * row_step + column * column_step]; };
      Detection one;
      one.score = value(4);
      if (dense || queries) {
        for (size_t number = 1; number < count; ++number)
          if (value(4 + number) > one.score) one.score = value(4 + number), one.class_id = static_cast<int>(number);
      } else {
        one.class_id = static_cast<int>(value(5));
      }
      if (!(one.score > conf)) continue;
      for (size_t column = 4 + count; column < columns; ++column) one.extra.push_back(value(column));
      Box box{value(0), value(1), value(2), value(3)};
      if (rotated) one.xywhr = {box[0], box[1], box[2], box[3], value(columns - 1)};
      if (format == "detr_rows" || queries)
        for (int side = 0; side < 4; ++side) box[side] *= static_cast<float>(side % 2 ? height : width);
      if (dense || queries || format == "detr_rows") {
        const float x = box[2] / 2, y = box[3] / 2;
        box = {box[0] - x, box[1] - y, box[0] + x, box[1] + y};
      }
      one.box = box;
      found.push_back(std::move(one));
    }
    std::stable_sort(found.begin(), found.end(),
                     [](const Detection& a, const Detection& b) { return a.score > b.score; });
    if (dense) {
      if (found.size() > MAX_CANDIDATES) found.resize(MAX_CANDIDATES);
      return rotated ? nms_rotated(found, limits) : nms(found, limits);
    }
    if (found.size() > static_cast<size_t>(limits.max_det)) found.resize(limits.max_det);
    return found;
  }

  // Turns the outputs of one image into detections in pixels of the image; `mask` may be empty.
  std::vector<Detection> postprocess(const Tensor& output, const Tensor& mask, const Place& place,
                                     const Thresholds& limits) const {
    auto found = decode(output, limits);
    for (Detection& one : found) to_image(one, mask, place);
    return found;
  }

 private:
  static void point_to_image(float& x, float& y, const Place& place, bool clip) {
    x = (x - static_cast<float>(place.left)) / static_cast<float>(double(place.resized_width) / place.width);
    y = (y - static_cast<float>(place.top)) / static_cast<float>(double(place.resized_height) / place.height);
    if (!clip) return;
    x = std::clamp(x, 0.0f, static_cast<float>(place.width));
    y = std::clamp(y, 0.0f, static_cast<float>(place.height));
  }

  void to_image(Detection& one, const Tensor& mask, const Place& place) const {
    if (task == "obb") {
      rotated_to_image(one, place);
      return;
    }
    point_to_image(one.box[0], one.box[1], place, true);
    point_to_image(one.box[2], one.box[3], place, true);
    if (task == "pose") {
      one.keypoints = one.extra;
      for (int point = 0; point < kpt_shape[0]; ++point)
        point_to_image(one.keypoints.at(point * kpt_shape[1]), one.keypoints.at(point * kpt_shape[1] + 1), place, false);
    } else if (task == "segment" && !mask.shape.empty()) {
      if (mask.shape.size() != 3) throw std::runtime_error("the output " + prototypes + " holds no mask prototypes");
      Mask& result = one.mask;
      result.x1 = static_cast<int>(std::ceil(one.box[0]));
      result.y1 = static_cast<int>(std::ceil(one.box[1]));
      result.x2 = std::max(result.x1, static_cast<int>(std::ceil(one.box[2])));
      result.y2 = std::max(result.y1, static_cast<int>(std::ceil(one.box[3])));
      std::vector<MaskTap> down, across;
      for (int y = result.y1; y < result.y2; ++y)
        down.emplace_back((y + 0.5) * (double(place.resized_height) / place.height) + place.top,
                          static_cast<int>(mask.shape[1]), place.input_height);
      for (int x = result.x1; x < result.x2; ++x)
        across.emplace_back((x + 0.5) * (double(place.resized_width) / place.width) + place.left,
                            static_cast<int>(mask.shape[2]), place.input_width);
      for (float value : sample_mask(mask, one.extra, down, across)) result.values.push_back(value > 0);
    }
  }

  static void rotated_to_image(Detection& one, const Place& place) {
    auto& box = one.xywhr;
    const auto horizontal = static_cast<float>(double(place.resized_width) / place.width);
    const auto vertical = static_cast<float>(double(place.resized_height) / place.height);
    const float cos = std::cos(box[4]), sin = std::sin(box[4]);
    point_to_image(box[0], box[1], place, false);
    box[2] *= std::hypot(cos / horizontal, sin / vertical);
    box[3] *= std::hypot(sin / horizontal, cos / vertical);
    box[4] = std::atan2(sin / vertical, cos / horizontal);
    one.box = around(box);
    for (int side = 0; side < 4; ++side)
      one.box[side] = std::clamp(one.box[side], 0.0f, static_cast<float>(side % 2 ? place.height : place.width));
  }

 public:
  // The upright box around an oriented one.
  static Box around(const std::array<float, 5>& box) {
    const float cos = std::abs(std::cos(box[4])), sin = std::abs(std::sin(box[4]));
    const float x = cos * box[2] / 2 + sin * box[3] / 2, y = sin * box[2] / 2 + cos * box[3] / 2;
    return {box[0] - x, box[1] - y, box[0] + x, box[1] + y};
  }

 private:
  std::string kind_;
  int channels_ = 3;
  bool reverse_ = true;
  double scale_ = 1.0 / 255;
  std::vector<float> mean_, std_;
};

}  // namespace yolo
