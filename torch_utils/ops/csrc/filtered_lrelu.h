// The filters of stylegan_di::filtered_lrelu and their transposes, for the kernels of CPU and CUDA; see filtered_lrelu.py.
#pragma once

#include <ATen/ops/ones.h>

#include <array>

#include "kernels.h"

namespace stylegan_di {

// upfirdn2d with equal factors on both axes, from images in_height x in_width to height x width.
struct Resampling {
  Tensor f;  // [taps] or [fh,fw]
  int64_t up, down;
  std::array<int64_t, 4> pads;
  bool flip;
  double gain;
  int64_t in_height, in_width, height, width;

  Resampling(const Tensor& filter, int64_t up, int64_t down, std::array<int64_t, 4> pads, bool flip, double gain,
             int64_t in_height, int64_t in_width)
      : f(filter), up(up), down(down), pads(pads), flip(flip), gain(gain), in_height(in_height), in_width(in_width) {
    height = (in_height * up + pads[2] + pads[3] - f.size(0)) / down + 1;
    width = (in_width * up + pads[0] + pads[1] - f.size(-1)) / down + 1;
  }

  Resampling transposed() const {
    const int64_t fh = f.size(0), fw = f.size(-1);
    const std::array<int64_t, 4> back{fw - 1 - pads[0], (in_width - 1) * up + 1 - width * down + pads[0],
                                      fh - 1 - pads[2], (in_height - 1) * up + 1 - height * down + pads[2]};
    return {f, down, up, back, !flip, gain, height, width};
  }
};

struct LeakyRelu {
  double gain, slope;
  std::optional<double> clamp;
};

// The two filters of an image x.
struct FilterPair {
  Resampling up, down;

  FilterPair(const Tensor& x, const Optional& fu, const Optional& fd, int64_t up, int64_t down, at::IntArrayRef padding,
             bool flip)
      : up(or_identity(fu, x), up, 1, {padding[0], padding[1], padding[2], padding[3]}, flip, double(up * up), x.size(2),
           x.size(3)),
        down(or_identity(fd, x), 1, down, {0, 0, 0, 0}, flip, 1, this->up.height, this->up.width) {}

  static Tensor or_identity(const Optional& f, const Tensor& x) {
    return f.has_value() ? *f : at::ones({1, 1}, x.options().dtype(at::kFloat));
  }
};

// What follows x in the schemas.
#define STYLEGAN_DI_LRELU_ARGUMENTS                                                                                  \
  const Optional &fu, const Optional &fd, const Optional &b, int64_t up, int64_t down, at::IntArrayRef padding,      \
      double gain, double slope, std::optional<double> clamp, bool flip_filter

}  // namespace stylegan_di
