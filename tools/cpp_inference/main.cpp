// Classes of an image: infer MODEL.ts IMAGE.ppm CLASSES.pgm. The model is a TorchScript file of `segvid export`.
#include <torch/script.h>

#include <fstream>
#include <iostream>
#include <string>

int main(int count, char** words) {
  if (count != 4) {
    std::cerr << "usage: infer MODEL.ts IMAGE.ppm CLASSES.pgm\n";
    return 2;
  }
  std::ifstream in(words[2], std::ios::binary);
  std::string magic;
  int64_t width = 0, height = 0, largest = 0;
  in >> magic >> width >> height >> largest;
  if (!in || magic != "P6" || largest != 255) {
    std::cerr << words[2] << " is no 8-bit PPM (P6) without comments\n";
    return 1;
  }
  in.get();  // the one blank after the header
  torch::Tensor pixels = torch::empty({height, width, 3}, torch::kUInt8);
  in.read(reinterpret_cast<char*>(pixels.data_ptr<uint8_t>()), pixels.numel());
  if (!in) {
    std::cerr << words[2] << " is cut off\n";
    return 1;
  }
  try {
    torch::NoGradGuard no_gradients;
    torch::jit::Module model = torch::jit::load(words[1]);
    torch::Tensor classes = model.forward({pixels.permute({2, 0, 1}).unsqueeze(0)}).toTensor();
    if (classes.dim() == 4) classes = classes.argmax(1);  // exported with scores
    classes = classes.to(torch::kUInt8).contiguous();
    std::ofstream out(words[3], std::ios::binary);
    out << "P5\n" << width << ' ' << height << "\n255\n";
    out.write(reinterpret_cast<const char*>(classes.data_ptr<uint8_t>()), classes.numel());
    return out.flush() ? 0 : 1;
  } catch (const c10::Error& error) {
    std::cerr << error.what_without_backtrace() << '\n';
    return 1;
  }
}
