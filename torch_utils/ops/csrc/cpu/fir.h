// One row of an image, resampled and filtered; and stylegan_di::upfirdn2d, which is all rows. See upfirdn2d.py.
#pragma once

#include <numeric>

#include "common.h"

namespace stylegan_di {

// A filter that is correlated: the sum over terms of (vertical taps) x (horizontal taps). A separable one has one term.
template <typename T> struct Fir {
  struct Term {
    std::vector<T> vertical, horizontal;
  };
  std::vector<Term> terms;
  int64_t up_x, up_y, down_x, down_y, pad_x, pad_y;  // padding before the first pixel

  Fir(const Tensor& f, at::IntArrayRef up, at::IntArrayRef down, int64_t px0, int64_t py0, bool flip, double gain)
      : up_x(up[0]), up_y(up[1]), down_x(down[0]), down_y(down[1]), pad_x(px0), pad_y(py0) {
    const Tensor taps = f.to(at::kDouble).contiguous();
    const int64_t height = f.size(0), width = f.size(1);
    const double* p = taps.const_data_ptr<double>();
    auto at = [&](int64_t y, int64_t x) {
      return gain * (flip ? p[y * width + x] : p[(height - 1 - y) * width + (width - 1 - x)]);
    };
    int64_t peak_y = 0, peak_x = 0;
    for (int64_t y = 0; y < height; y++)
      for (int64_t x = 0; x < width; x++)
        if (std::abs(at(y, x)) > std::abs(at(peak_y, peak_x))) peak_y = y, peak_x = x;
    const double peak = at(peak_y, peak_x);
    const double rounding = sizeof(T) == 4 ? 1e-7 : 1e-12;
    bool separable = peak != 0;
    for (int64_t y = 0; y < height && separable; y++)
      for (int64_t x = 0; x < width; x++)
        separable &= std::abs(at(y, x) - at(y, peak_x) * at(peak_y, x) / peak) <= rounding * std::abs(peak);
    for (int64_t x = 0; x < (separable ? 1 : width); x++) {
      Term term{std::vector<T>(height), std::vector<T>(width)};
      for (int64_t y = 0; y < height; y++) term.vertical[y] = at(y, separable ? peak_x : x);
      for (int64_t i = 0; i < width; i++) term.horizontal[i] = separable ? at(peak_y, i) / peak : T(i == x);
      terms.push_back(term);
    }
  }

  // Row `oy` of the result, out[out_width * S], of one plane [height, width * S]; `buffer` holds width * S.
  void row(const T* plane, int64_t height, int64_t width, int64_t S, int64_t oy, int64_t out_width, T* buffer,
           T* out) const {
    for (size_t index = 0; index < terms.size(); index++) {
      vertical(terms[index].vertical, plane, height, width * S, oy, buffer);
      if (S == 1) horizontal_dense(terms[index].horizontal, buffer, width, out_width, out, index != 0);
      else horizontal(terms[index].horizontal, buffer, width, S, out_width, out, index != 0);
    }
  }

 private:
  void vertical(const std::vector<T>& taps, const T* plane, int64_t height, int64_t length, int64_t oy,
                T* out) const {
    constexpr int kMost = 64;
    const T* rows[kMost];
    T weights[kMost];
    int found = 0;
    for (int64_t k = 0; k < int64_t(taps.size()); k++) {
      const int64_t position = oy * down_y + k - pad_y;
      if (position < 0 || position % up_y || position / up_y >= height || taps[k] == 0) continue;
      TORCH_CHECK(found < kMost, "filters of at most 64 taps");
      rows[found] = plane + position / up_y * length;
      weights[found++] = taps[k];
    }
    vectors<T>(length, [&](int64_t i, int64_t n) {
      Vec<T> sum(0);
      for (int k = 0; k < found; k++) sum = at::vec::fmadd(load(rows[k] + i, n), Vec<T>(weights[k]), sum);
      store(sum, out + i, n);
    });
  }

  void horizontal(const std::vector<T>& taps, const T* row, int64_t width, int64_t S, int64_t out_width, T* out,
                  bool add) const {
    for (int64_t ox = 0; ox < out_width; ox++) {
      constexpr int kMost = 64;
      const T* pixels[kMost];
      T weights[kMost];
      int found = 0;
      for (int64_t k = 0; k < int64_t(taps.size()); k++) {
        const int64_t position = ox * down_x + k - pad_x;
        if (position < 0 || position % up_x || position / up_x >= width || taps[k] == 0) continue;
        TORCH_CHECK(found < kMost, "filters of at most 64 taps");
        pixels[found] = row + position / up_x * S;
        weights[found++] = taps[k];
      }
      T* target = out + ox * S;
      vectors<T>(S, [&](int64_t i, int64_t n) {
        Vec<T> sum = add ? load(target + i, n) : Vec<T>(0);
        for (int k = 0; k < found; k++) sum = at::vec::fmadd(load(pixels[k] + i, n), Vec<T>(weights[k]), sum);
        store(sum, target + i, n);
      });
    }
  }

  // Pixels side by side: tap by tap along the row.
  void horizontal_dense(const std::vector<T>& taps, const T* row, int64_t width, int64_t out_width, T* out,
                        bool add) const {
    if (!add) std::fill(out, out + out_width, T(0));
    const int64_t common = std::gcd(up_x, down_x), out_step = up_x / common, in_step = down_x / common;
    for (int64_t k = 0; k < int64_t(taps.size()); k++) {
      if (taps[k] == 0) continue;
      int64_t ox = 0;  // the first output whose position is a pixel of the row, not a zero in between
      while (ox < out_width && (ox * down_x + k - pad_x < 0 || (ox * down_x + k - pad_x) % up_x)) ox++;
      if (ox == out_width) continue;
      const int64_t ix = (ox * down_x + k - pad_x) / up_x;
      const int64_t count =
          std::min((out_width - ox + out_step - 1) / out_step, (width - ix + in_step - 1) / in_step);
      T* target = out + ox;
      const T *source = row + ix, weight = taps[k];
      if (out_step == 1 && in_step == 1) {
        for (int64_t i = 0; i < count; i++) target[i] += weight * source[i];
      } else {
        for (int64_t i = 0; i < count; i++) target[i * out_step] += weight * source[i * in_step];
      }
    }
  }
};

inline Tensor resample(const Tensor& x, const Tensor& f, at::IntArrayRef up, at::IntArrayRef down,
                       at::IntArrayRef padding, bool flip_filter, double gain) {
  const int64_t channels = x.size(1), height = x.size(2), width = x.size(3);
  const int64_t out_width = (width * up[0] + padding[0] + padding[1] - f.size(1)) / down[0] + 1;
  const int64_t out_height = (height * up[1] + padding[2] + padding[3] - f.size(0)) / down[1] + 1;
  const bool last = is_channels_last(x);
  const Tensor in = x.contiguous(layout_of(x));
  Tensor y = like(x, out_height, out_width);
  dispatch(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Fir<T> fir(f, up, down, padding[0], padding[2], flip_filter, gain);
    const int64_t S = last ? channels : 1, planes = x.size(0) * (last ? 1 : channels);
    const T* source = in.const_data_ptr<T>();
    T* target = y.mutable_data_ptr<T>();
    const int64_t grain = std::max<int64_t>(1, 4096 / std::max<int64_t>(1, out_width * S));
    at::parallel_for(0, planes * out_height, grain, [&](int64_t begin, int64_t end) {
      std::vector<T> buffer(width * S);
      for (int64_t i = begin; i < end; i++)
        fir.row(source + i / out_height * height * width * S, height, width, S, i % out_height, out_width,
                buffer.data(), target + i * out_width * S);
    });
  });
  return y;
}

inline Tensor upfirdn2d(const Tensor& x, const Tensor& f, at::IntArrayRef up, at::IntArrayRef down,
                        at::IntArrayRef padding, bool flip_filter, double gain) {
  if (!computes(x)) {
    return upfirdn2d(x.to(at::kFloat), f, up, down, padding, flip_filter, gain).to(x.scalar_type());
  }
  const Tensor taps = f.to(x.scalar_type());  // as the reference rounds them
  if (taps.dim() == 2) return resample(x, taps, up, down, padding, flip_filter, gain);
  const Tensor column = taps.unsqueeze(1), row = taps.unsqueeze(0);  // along each axis in turn
  const Tensor y = resample(x, column, {1, up[1]}, {1, down[1]}, {0, 0, padding[2], padding[3]}, flip_filter, 1);
  return resample(y, row, {up[0], 1}, {down[0], 1}, {padding[0], padding[1], 0, 0}, flip_filter, gain);
}

}  // namespace stylegan_di
