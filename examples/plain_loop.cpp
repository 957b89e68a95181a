// Continues a prompt with any exported language model, knowing only the names of its inputs.
//
//     c++ -std=c++17 -I onnxruntime/include plain_loop.cpp -lonnxruntime -o plain_loop
//     ./plain_loop LIBRARY MODEL HEAD_SIZE NEW ID [ID ...]
//
// Needs onnxruntime_cxx_api.h of ONNX Runtime 1.18 or later. Models whose logits are float32.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <map>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <onnxruntime_cxx_api.h>

namespace {

const std::string kPast = "past_key_values.", kPresent = "present.";

bool starts_with(const std::string& text, const std::string& start) { return text.rfind(start, 0) == 0; }

// The likeliest `count` tokens after a prompt.
std::vector<int64_t> generate(Ort::Session& session, int64_t head_size, std::vector<int64_t> tokens, size_t count) {
  Ort::AllocatorWithDefaultOptions allocator;
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::vector<std::string> inputs, outputs;
  for (size_t i = 0; i < session.GetInputCount(); i++)
    inputs.push_back(session.GetInputNameAllocated(i, allocator).get());
  for (size_t i = 0; i < session.GetOutputCount(); i++)
    outputs.push_back(session.GetOutputNameAllocated(i, allocator).get());

  std::map<std::string, Ort::Value> cache;
  for (size_t i = 0; i < inputs.size(); i++) {
    if (!starts_with(inputs[i], kPast)) continue;
    auto type = session.GetInputTypeInfo(i);
    auto info = type.GetTensorTypeAndShapeInfo();
    auto shape = info.GetShape();
    // As wide as the original's heads, unless the model says another width.
    const int64_t empty[] = {1, shape[1], 0, shape[3] > 0 ? shape[3] : head_size};
    cache.emplace(inputs[i], Ort::Value::CreateTensor(allocator, empty, 4, info.GetElementType()));
  }

  std::vector<const char*> output_names;
  for (const auto& name : outputs) output_names.push_back(name.c_str());
  std::vector<int64_t> told;
  int64_t total = 0;
  while (told.size() < count) {
    const auto length = static_cast<int64_t>(tokens.size());
    std::vector<int64_t> positions(tokens.size());
    std::iota(positions.begin(), positions.end(), total);
    total += length;
    std::vector<int64_t> mask(static_cast<size_t>(total), 1);
    const int64_t new_shape[] = {1, length}, mask_shape[] = {1, total};

    std::vector<const char*> names;
    std::vector<Ort::Value> values;
    auto feed = [&](const std::string& name, std::vector<int64_t>& data, const int64_t* shape) {
      names.push_back(name.c_str());
      values.push_back(Ort::Value::CreateTensor<int64_t>(memory, data.data(), data.size(), shape, 2));
    };
    for (const auto& name : inputs) {
      if (name == "input_ids") {
        feed(name, tokens, new_shape);
      } else if (name == "position_ids") {
        feed(name, positions, new_shape);
      } else if (name == "attention_mask") {
        feed(name, mask, mask_shape);
      } else {
        names.push_back(name.c_str());
        values.push_back(std::move(cache.at(name)));
      }
    }
    auto results = session.Run(Ort::RunOptions{nullptr}, names.data(), values.data(), values.size(),
                               output_names.data(), output_names.size());
    cache.clear();
    for (size_t i = 0; i < outputs.size(); i++) {
      if (starts_with(outputs[i], kPresent)) {
        cache.emplace(kPast + outputs[i].substr(kPresent.size()), std::move(results[i]));
      } else if (outputs[i] == "logits") {
        const auto vocabulary = results[i].GetTensorTypeAndShapeInfo().GetShape()[2];
        const float* last = results[i].GetTensorData<float>() + (length - 1) * vocabulary;
        told.push_back(std::max_element(last, last + vocabulary) - last);
      }
    }
    tokens = {told.back()};
  }
  return told;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 6) {
    std::cerr << "usage: plain_loop LIBRARY MODEL HEAD_SIZE NEW ID [ID ...]\n";
    return 2;
  }
  try {
    Ort::Env env;
    Ort::SessionOptions options;
    options.RegisterCustomOpsLibrary(argv[1]);  // all that is new
    Ort::Session session(env, argv[2], options);
    std::vector<int64_t> prompt;
    for (int i = 5; i < argc; i++) prompt.push_back(std::atoll(argv[i]));
    for (auto token : generate(session, std::atoll(argv[3]), prompt, std::strtoul(argv[4], nullptr, 10))) {
      std::cout << token << ' ';
    }
    std::cout << '\n';
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
}
