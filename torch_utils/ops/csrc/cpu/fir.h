// One row of an image, resampled and filtered; and stylegan_di::upfirdn2d, which is all rows. See upfirdn2d.py.
#pragma once

#include <numeric>

#include "common.h"

namespace stylegan_di {

// Along one axis, which positions each output is the weighted sum of.
template <typename T> struct Axis {
  std::vector<int64_t> first, position, tap;  // those of output o are [first[o], first[o + 1])
  std::vector<T> weight;

  Axis(const std::vector<T>& taps, int64_t size, int64_t out_size, int64_t up, int64_t down, int64_t pad) : first{0} {
    for (int64_t o = 0; o < out_size; o++) {
      for (int64_t k = 0; k < int64_t(taps.size()); k++) {
        const int64_t at = o * down + k - pad;
        if (at < 0 || at % up || at / up >= size || taps[k] == 0) continue;
        position.push_back(at / up);
        tap.push_back(k);
        weight.push_back(taps[k]);
      }
      first.push_back(position.size());
    }
  }

  // out[length] of output o (plus out, if add), from rows of `length` elements that are `length` apart.
  void sum(const T* rows, int64_t length, int64_t o, T* out, bool add) const {
    const int64_t count = first[o + 1] - first[o], *at = position.data() + first[o];
    const T* weights = weight.data() + first[o];
    if (count == 4 && !add) return sum_of<4>(rows, length, at, weights, out);
    if (count == 3 && !add) return sum_of<3>(rows, length, at, weights, out);
    if (count == 2 && !add) return sum_of<2>(rows, length, at, weights, out);
    vectors<T>(length, [&](int64_t i, int64_t n) {
      Vec<T> total = add ? load(out + i, n) : Vec<T>(0);
      for (int64_t k = 0; k < count; k++) {
        total = at::vec::fmadd(load(rows + at[k] * length + i, n), Vec<T>(weights[k]), total);
      }
      store(total, out + i, n);
    });
  }

 private:
  template <int count>
  static void sum_of(const T* rows, int64_t length, const int64_t* at, const T* weights, T* out) {
    const T* row[count];
    for (int k = 0; k < count; k++) row[k] = rows + at[k] * length;
    vectors<T>(length, [&](int64_t i, int64_t n) {
      Vec<T> total = load(row[0] + i, n) * Vec<T>(weights[0]);
      for (int k = 1; k < count; k++) total = at::vec::fmadd(load(row[k] + i, n), Vec<T>(weights[k]), total);
      store(total, out + i, n);
    });
  }
};

// Images in and out of a filter, and how pixels lie: S elements apart.
struct Extent {
  int64_t height, width, out_height, out_width, S;
};

// A filter that is correlated: the sum over terms of (vertical taps) x (horizontal taps). A separable one has one term.
// Others take their taps one by one where pixels are vectors (S > 1).
template <typename T> class Fir {
 public:
  Fir(const Tensor& f, const Extent& extent, at::IntArrayRef up, at::IntArrayRef down, int64_t pad_x, int64_t pad_y,
      bool flip, double gain)
      : extent_(extent), up_x_(up[0]), down_x_(down[0]), pad_x_(pad_x) {
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
    if (!separable && extent.S > 1) {
      for (int64_t y = 0; y < height; y++)
        for (int64_t x = 0; x < width; x++) matrix_.push_back(at(y, x));
      taps_width_ = width;
      const std::vector<T> rows(height, T(1)), columns(width, T(1));
      terms_.push_back({Axis<T>(rows, extent.height, extent.out_height, up[1], down[1], pad_y),
                        Axis<T>(columns, extent.width, extent.out_width, up_x_, down_x_, pad_x), columns});
      return;
    }
    for (int64_t x = 0; x < (separable ? 1 : width); x++) {
      std::vector<T> vertical(height), horizontal(width);
      for (int64_t y = 0; y < height; y++) vertical[y] = at(y, separable ? peak_x : x);
      for (int64_t i = 0; i < width; i++) horizontal[i] = separable ? at(peak_y, i) / peak : T(i == x);
      terms_.push_back({Axis<T>(vertical, extent.height, extent.out_height, up[1], down[1], pad_y),
                        Axis<T>(horizontal, extent.width, extent.out_width, up_x_, down_x_, pad_x), horizontal});
    }
  }

  // Row `oy` of the result, out[out_width * S], of one plane [height, width * S]; `buffer` holds width * S.
  void row(const T* plane, int64_t oy, T* buffer, T* out) const {
    const int64_t S = extent_.S;
    if (!matrix_.empty()) return tap_by_tap(plane, oy, out);
    for (size_t index = 0; index < terms_.size(); index++) {
      const Term& term = terms_[index];
      term.vertical.sum(plane, extent_.width * S, oy, buffer, false);
      if (S == 1) {
        along_row(term.taps, buffer, out, index != 0);
      } else {
        for (int64_t ox = 0; ox < extent_.out_width; ox++) term.horizontal.sum(buffer, S, ox, out + ox * S, index != 0);
      }
    }
  }

 private:
  struct Term {
    Axis<T> vertical, horizontal;
    std::vector<T> taps;  // horizontal
  };

  // Several sums at a time, since each addition waits for the one before it.
  void tap_by_tap(const T* plane, int64_t oy, T* out) const {
    const Axis<T>&rows = terms_[0].vertical, &columns = terms_[0].horizontal;
    const int64_t S = extent_.S, first_row = rows.first[oy], last_row = rows.first[oy + 1];
    for (int64_t ox = 0; ox < extent_.out_width; ox++, out += S) {
      const int64_t begin = columns.first[ox], end = columns.first[ox + 1];
      vectors<T>(S, [&](int64_t i, int64_t n) {
        Vec<T> sums[4] = {Vec<T>(0), Vec<T>(0), Vec<T>(0), Vec<T>(0)};
        for (int64_t r = first_row; r < last_row; r++) {
          const T *line = plane + rows.position[r] * extent_.width * S + i, *w = matrix_.data() + rows.tap[r] * taps_width_;
          const int64_t *at = columns.position.data(), *tap = columns.tap.data();
          int64_t k = begin;
          for (; k + 4 <= end; k += 4)
            for (int lane = 0; lane < 4; lane++)
              sums[lane] = at::vec::fmadd(load(line + at[k + lane] * S, n), Vec<T>(w[tap[k + lane]]), sums[lane]);
          for (; k < end; k++) sums[0] = at::vec::fmadd(load(line + at[k] * S, n), Vec<T>(w[tap[k]]), sums[0]);
        }
        store((sums[0] + sums[1]) + (sums[2] + sums[3]), out + i, n);
      });
    }
  }

  // Pixels side by side: tap by tap along the row.
  void along_row(const std::vector<T>& taps, const T* row, T* out, bool add) const {
    const int64_t width = extent_.width, out_width = extent_.out_width;
    if (!add) std::fill(out, out + out_width, T(0));
    const int64_t common = std::gcd(up_x_, down_x_), out_step = up_x_ / common, in_step = down_x_ / common;
    for (int64_t k = 0; k < int64_t(taps.size()); k++) {
      if (taps[k] == 0) continue;
      int64_t ox = 0;  // the first output whose position is a pixel of the row, not a zero in between
      while (ox < out_width && (ox * down_x_ + k - pad_x_ < 0 || (ox * down_x_ + k - pad_x_) % up_x_)) ox++;
      if (ox == out_width) continue;
      const int64_t ix = (ox * down_x_ + k - pad_x_) / up_x_;
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

  const Extent extent_;
  const int64_t up_x_, down_x_, pad_x_;
  std::vector<Term> terms_;
  std::vector<T> matrix_;  // all taps where they are taken one by one
  int64_t taps_width_ = 0;
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
    const int64_t S = last ? channels : 1, planes = x.size(0) * (last ? 1 : channels);
    const Fir<T> fir(f, {height, width, out_height, out_width, S}, up, down, padding[0], padding[2], flip_filter, gain);
    const T* source = in.const_data_ptr<T>();
    T* target = y.mutable_data_ptr<T>();
    const int64_t grain = std::max<int64_t>(1, 4096 / std::max<int64_t>(1, out_width * S));
    at::parallel_for(0, planes * out_height, grain, [&](int64_t begin, int64_t end) {
      std::vector<T> buffer(width * S);
      for (int64_t i = begin; i < end; i++)
        fir.row(source + i / out_height * height * width * S, i % out_height, buffer.data(), target + i * out_width * S);
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
