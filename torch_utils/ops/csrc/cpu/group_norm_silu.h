// stylegan_di::group_norm_silu and its gradient. See group_norm_silu.py.
#pragma once

#include <array>

#include "common.h"

namespace stylegan_di {

// The pixels of a sample, channel by channel; in channels_last a vector is `count` channels of one pixel, in NCHW it is
// `count` pixels of one channel.
struct NormShape {
  int64_t batch, channels, pixels, groups, per_group;
  bool last;

  NormShape(const Tensor& x, int64_t groups)
      : batch(x.size(0)), channels(x.size(1)), pixels(x.size(2) * x.size(3)), groups(groups),
        per_group(x.size(1) / groups), last(is_channels_last(x)) {}

  // Calls body(offset, count, channel, sums) for vectors that cover a sample; what it adds to the K sums goes, summed
  // over pixels, to totals[K][channels]. Sums of single precision are put away every 32 pixels or at a channel's end.
  template <int K, typename T, typename Body> void each(Body body, std::vector<double>* totals = nullptr) const {
    constexpr int64_t kBlock = 32;
    for (int k = 0; k < K; k++) totals[k].assign(channels, 0);
    if (last) {
      for (int64_t first = 0; first < pixels; first += kBlock) {
        const int64_t end = std::min(first + kBlock, pixels);
        vectors<T>(channels, [&](int64_t c, int64_t n) {
          std::array<Vec<T>, K> sums;
          sums.fill(Vec<T>(0));
          for (int64_t p = first; p < end; p++) body(p * channels + c, n, c, sums);
          for (int k = 0; k < K; k++) {
            T lanes[Vec<T>::size()];
            sums[k].store(lanes);
            for (int64_t i = 0; i < n; i++) totals[k][c + i] += lanes[i];
          }
        });
      }
    } else {
      for (int64_t c = 0; c < channels; c++) {
        std::array<Vec<T>, K> sums;
        sums.fill(Vec<T>(0));
        vectors<T>(pixels, [&](int64_t i, int64_t n) {
          if (n == Vec<T>::size()) return body(c * pixels + i, n, c, sums);
          std::array<Vec<T>, K> rest;  // lanes beyond the last pixel do not count
          rest.fill(Vec<T>(0));
          body(c * pixels + i, n, c, rest);
          for (int k = 0; k < K; k++) sums[k] = sums[k] + Vec<T>::set(Vec<T>(0), rest[k], n);
        });
        for (int k = 0; k < K; k++) totals[k][c] += total(sums[k]);
      }
    }
  }

  // A per-channel value as a vector: of `count` channels from c, or of the one channel c.
  template <typename T> Vec<T> channel(const std::vector<T>& values, int64_t c, int64_t count) const {
    return last ? load(values.data() + c, count) : Vec<T>(values[c]);
  }
};

template <typename T> struct PerSample {  // [1 or N, C] values, read as those of sample n
  const T* data;
  bool shared;
  int64_t channels;

  PerSample(const Optional& t, int64_t channels)
      : data(data_or_null<T>(t)), shared(t && t->size(0) == 1), channels(channels) {}
  T operator()(int64_t n, int64_t c) const { return data ? data[(shared ? 0 : n) * channels + c] : T(0); }
};

inline std::tuple<Tensor, Tensor, Tensor> group_norm_silu(const Tensor& x, const Optional& shift, const Tensor& weight,
                                                          const Tensor& bias, int64_t groups, double eps, bool silu) {
  if (!computes(x)) {
    const auto single = at::kFloat;
    auto [y, mean, rstd] = group_norm_silu(x.to(single), to(shift, single), weight.to(single), bias.to(single), groups,
                                           eps, silu);
    return {y.to(x.scalar_type()), mean, rstd};
  }
  const NormShape shape(x, groups);
  const Tensor in = x.contiguous(layout_of(x));
  const auto type = x.scalar_type();
  const Optional shifts = dense(shift, type), weights = dense(weight, type), biases = dense(bias, type);
  Tensor y = like(x, x.size(2), x.size(3));
  Tensor mean = at::empty({shape.batch, groups}, x.options()), rstd = at::empty({shape.batch, groups}, x.options());
  dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    const int64_t C = shape.channels, size = C * shape.pixels, D = shape.per_group;
    const PerSample<T> s(shifts, C), w(weights, C), b(biases, C);
    const T* source = in.const_data_ptr<T>();
    T *target = y.mutable_data_ptr<T>(), *means = mean.mutable_data_ptr<T>(), *rstds = rstd.mutable_data_ptr<T>();
    at::parallel_for(0, shape.batch, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> slope(C), offset(C);
      std::vector<double> sums;
      for (int64_t n = begin; n < end; n++) {
        const T* sample = source + n * size;
        shape.each<1, T>([&](int64_t i, int64_t k, int64_t c, auto& sum) { sum[0] = sum[0] + load(sample + i, k); },
                         &sums);
        for (int64_t g = 0; g < groups; g++) {
          double sum = 0;
          for (int64_t c = g * D; c < (g + 1) * D; c++) sum += sums[c] + double(shape.pixels) * s(n, c);
          means[n * groups + g] = sum / (D * shape.pixels);
          for (int64_t c = g * D; c < (g + 1) * D; c++) offset[c] = s(n, c) - means[n * groups + g];
        }
        shape.each<1, T>(
            [&](int64_t i, int64_t k, int64_t c, auto& sum) {
              const Vec<T> centred = load(sample + i, k) + shape.channel(offset, c, k);
              sum[0] = at::vec::fmadd(centred, centred, sum[0]);
            },
            &sums);
        for (int64_t g = 0; g < groups; g++) {
          double sum = 0;
          for (int64_t c = g * D; c < (g + 1) * D; c++) sum += sums[c];
          const T r = 1 / std::sqrt(sum / (D * shape.pixels) + eps);
          rstds[n * groups + g] = r;
          for (int64_t c = g * D; c < (g + 1) * D; c++) {
            slope[c] = r * w(n, c);
            offset[c] = offset[c] * slope[c] + b(n, c);
          }
        }
        T* out = target + n * size;
        shape.each<0, T>(
            [&](int64_t i, int64_t k, int64_t c, auto&) {
              const Vec<T> v = at::vec::fmadd(load(sample + i, k), shape.channel(slope, c, k), shape.channel(offset, c, k));
              store(silu ? v * logistic(v) : v, out + i, k);
            });
      }
    });
  });
  return {y, mean, rstd};
}

// Returns dx, the gradient of shift [N,C], and those of weight and bias, shaped as they are.
inline std::tuple<Tensor, Tensor, Tensor, Tensor> group_norm_silu_grad(
    const Tensor& dy, const Tensor& x, const Optional& shift, const Tensor& weight, const Tensor& bias,
    const Tensor& mean, const Tensor& rstd, int64_t groups, double eps, bool silu) {
  if (!computes(x)) {
    const auto single = at::kFloat;
    auto [dx, ds, dw, db] = group_norm_silu_grad(dy.to(single), x.to(single), to(shift, single), weight.to(single),
                                                 bias.to(single), mean.to(single), rstd.to(single), groups, eps, silu);
    const auto type = x.scalar_type();
    return {dx.to(type), ds.to(type), dw.to(type), db.to(type)};
  }
  const NormShape shape(x, groups);
  const auto type = x.scalar_type();
  const Tensor in = x.contiguous(layout_of(x)), upper = dy.contiguous(layout_of(x));
  const Optional shifts = dense(shift, type), weights = dense(weight, type), biases = dense(bias, type);
  const Tensor all_means = mean.contiguous(), all_rstds = rstd.contiguous();
  Tensor dx = like(x, x.size(2), x.size(3));
  Tensor ds = at::empty({shape.batch, shape.channels}, x.options()), dw = at::empty_like(ds), db = at::empty_like(ds);
  dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    const int64_t C = shape.channels, size = C * shape.pixels, D = shape.per_group;
    const PerSample<T> s(shifts, C), w(weights, C), b(biases, C);
    const T *source = in.const_data_ptr<T>(), *above = upper.const_data_ptr<T>(),
            *means = all_means.const_data_ptr<T>(), *rstds = all_rstds.const_data_ptr<T>();
    T *dxs = dx.mutable_data_ptr<T>(), *dss = ds.mutable_data_ptr<T>(), *dws = dw.mutable_data_ptr<T>(),
      *dbs = db.mutable_data_ptr<T>();
    at::parallel_for(0, shape.batch, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> slope(C), offset(C), weights(C), biases(C), keep(C), lean(C), level(C);
      std::vector<double> sums[3];  // over pixels, of dv, dv * normalised, normalised
      for (int64_t n = begin; n < end; n++) {
        const T *sample = source + n * size, *up = above + n * size;
        T* out = dxs + n * size;
        for (int64_t c = 0; c < C; c++) {  // normalised = x * slope + offset
          slope[c] = rstds[n * groups + c / D];
          offset[c] = (s(n, c) - means[n * groups + c / D]) * slope[c];
          weights[c] = w(n, c);
          biases[c] = b(n, c);
        }
        shape.each<3, T>(
            [&](int64_t i, int64_t k, int64_t c, auto& sum) {
              const Vec<T> normalised =
                  at::vec::fmadd(load(sample + i, k), shape.channel(slope, c, k), shape.channel(offset, c, k));
              Vec<T> dv = load(up + i, k);
              if (silu) {
                const Vec<T> v = at::vec::fmadd(normalised, shape.channel(weights, c, k), shape.channel(biases, c, k));
                dv = dv * derivative<Act::swish, T>(v, 0);
              }
              store(dv, out + i, k);
              sum[0] = sum[0] + dv;
              sum[1] = at::vec::fmadd(dv, normalised, sum[1]);
              sum[2] = sum[2] + normalised;
            },
            sums);
        std::copy(sums[0].begin(), sums[0].end(), dbs + n * C);
        std::copy(sums[1].begin(), sums[1].end(), dws + n * C);
        for (int64_t g = 0; g < groups; g++) {
          double first = 0, second = 0;
          for (int64_t c = g * D; c < (g + 1) * D; c++) {
            first += double(weights[c]) * sums[0][c];
            second += double(weights[c]) * sums[1][c];
          }
          first /= D * shape.pixels, second /= D * shape.pixels;
          const T r = rstds[n * groups + g];
          for (int64_t c = g * D; c < (g + 1) * D; c++) {  // dx = keep * dv - lean * x - level
            dss[n * C + c] = r * (double(weights[c]) * sums[0][c] - first * shape.pixels - second * sums[2][c]);
            keep[c] = r * weights[c];
            lean[c] = r * second * slope[c];
            level[c] = r * (first + second * offset[c]);
          }
        }
        shape.each<0, T>(
            [&](int64_t i, int64_t k, int64_t c, auto&) {
              const Vec<T> pulled =
                  at::vec::fmadd(load(sample + i, k), shape.channel(lean, c, k), shape.channel(level, c, k));
              store(load(out + i, k) * shape.channel(keep, c, k) - pulled, out + i, k);
            });
      }
    });
  });
  if (weight.size(0) == 1) dw = dw.sum(0, true);
  if (bias.size(0) == 1) db = db.sum(0, true);
  return {dx, ds, dw, db};
}

}  // namespace stylegan_di
