// stylegan_di::filtered_lrelu and its linear parts; see filtered_lrelu.py. Blocks of channels pass through both filters
// and the activation while they are in the cache, so that images of the higher resolution are never in memory.
#pragma once

#include "../filtered_lrelu.h"
#include "fir.h"

namespace stylegan_di {

constexpr int64_t kBlock = 16;  // channels

// The channels [first, first + S) of a sample as [pixels, S], and back.
template <typename T> struct Block {
  int64_t n, first, S;

  template <typename Body> static void each(const Tensor& x, const Block& b, Body body) {
    const int64_t pixels = x.size(2) * x.size(3), channels = x.size(1);
    const bool last = is_channels_last(x);
    for (int64_t c = 0; c < b.S; c++) {
      const int64_t start = last ? b.n * pixels * channels + b.first + c : (b.n * channels + b.first + c) * pixels;
      const int64_t step = last ? channels : 1;
      for (int64_t p = 0; p < pixels; p++) body(start + p * step, p * b.S + c, b.first + c);
    }
  }

  void gather(const Tensor& x, const T* bias, std::vector<T>& out) const {
    const T* source = x.const_data_ptr<T>();
    out.resize(x.size(2) * x.size(3) * S);
    each(x, *this, [&](int64_t i, int64_t o, int64_t c) { out[o] = source[i] + (bias ? bias[c] : T(0)); });
  }

  void scatter(const std::vector<T>& values, Tensor& y) const {
    T* target = y.mutable_data_ptr<T>();
    each(y, *this, [&](int64_t i, int64_t o, int64_t) { target[i] = values[o]; });
  }
};

template <typename T> inline Fir<T> fir_of(const Resampling& r, int64_t S) {
  const Tensor taps = r.f.to(c10::CppTypeToScalarType<T>::value).to(at::kDouble);  // as the reference rounds them
  const Tensor matrix = taps.dim() == 2 ? taps : taps.unsqueeze(1).mul(taps.unsqueeze(0));
  const int64_t up[] = {r.up, r.up}, down[] = {r.down, r.down};
  return Fir<T>(matrix, {r.in_height, r.in_width, r.height, r.width, S}, up, down, r.pads[0], r.pads[2], r.flip, r.gain);
}

// out(act(up(x + b))), or without v; else out(m * in(v)) with the slope m of the activation.
inline Tensor between_filters(const Tensor& x, const Optional& b, const Resampling& up, const Optional& v,
                              const Resampling& in, const Resampling& out, const LeakyRelu& act) {
  const Tensor xs = x.contiguous(layout_of(x));
  const Optional vs = v ? Optional(v->contiguous(layout_of(x))) : v;
  Tensor y = like(x, out.height, out.width);
  const int64_t channels = x.size(1), blocks = (channels + kBlock - 1) / kBlock;
  dispatch(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Optional bias = dense(b, x.scalar_type());
    const Vec<T> gain(act.gain), slope(act.slope * act.gain), nothing(0), limit(act.clamp.value_or(0)),
        lower(-act.clamp.value_or(0));
    at::parallel_for(0, x.size(0) * blocks, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> image, tangent, result, activated, row, line, vline;
      for (int64_t i = begin; i < end; i++) {
        const int64_t first = i % blocks * kBlock, S = std::min(kBlock, channels - first);
        const Block<T> block{i / blocks, first, S};
        const Fir<T> up_fir = fir_of<T>(up, S), out_fir = fir_of<T>(out, S);
        const std::optional<Fir<T>> in_fir = vs ? std::optional<Fir<T>>(fir_of<T>(in, S)) : std::nullopt;
        block.gather(xs, data_or_null<T>(bias), image);
        if (vs) block.gather(*vs, nullptr, tangent);
        const int64_t length = up.width * S;
        row.resize(std::max({x.size(3), up.width, vs ? vs->size(3) : 0}) * S);
        line.resize(length), vline.resize(length), activated.resize(up.height * length);
        for (int64_t py = 0; py < up.height; py++) {
          up_fir.row(image.data(), py, row.data(), line.data());
          if (vs) in_fir->row(tangent.data(), py, row.data(), vline.data());
          T* target = activated.data() + py * length;
          vectors<T>(length, [&](int64_t at, int64_t count) {
            const Vec<T> u = load(line.data() + at, count), by = Vec<T>::blendv(slope, gain, u > nothing), a = u * by;
            if (!vs) return store(act.clamp ? at::vec::clamp(a, lower, limit) : a, target + at, count);
            const Vec<T> m = act.clamp ? Vec<T>::blendv(by, nothing, a.abs() >= limit) : by;
            store(load(vline.data() + at, count) * m, target + at, count);
          });
        }
        result.resize(out.height * out.width * S);
        for (int64_t oy = 0; oy < out.height; oy++)
          out_fir.row(activated.data(), oy, row.data(), result.data() + oy * out.width * S);
        block.scatter(result, y);
      }
    });
  });
  return y;
}

inline Tensor filtered_lrelu(const Tensor& x, STYLEGAN_DI_LRELU_ARGUMENTS) {
  if (!computes(x)) {
    return filtered_lrelu(x.to(at::kFloat), fu, fd, to(b, at::kFloat), up, down, padding, gain, slope, clamp, flip_filter)
        .to(x.scalar_type());
  }
  const FilterPair filters(x, fu, fd, up, down, padding, flip_filter);
  return between_filters(x, b, filters.up, {}, filters.up, filters.down, {gain, slope, clamp});
}

inline Tensor filtered_lrelu_tangent(const Tensor& v, const Tensor& x, STYLEGAN_DI_LRELU_ARGUMENTS) {
  if (!computes(x)) {
    return filtered_lrelu_tangent(v.to(at::kFloat), x.to(at::kFloat), fu, fd, to(b, at::kFloat), up, down, padding, gain,
                                  slope, clamp, flip_filter)
        .to(x.scalar_type());
  }
  const FilterPair filters(x, fu, fd, up, down, padding, flip_filter);
  return between_filters(x, b, filters.up, v, filters.up, filters.down, {gain, slope, clamp});
}

inline Tensor filtered_lrelu_grad(const Tensor& dy, const Tensor& x, STYLEGAN_DI_LRELU_ARGUMENTS) {
  if (!computes(x)) {
    return filtered_lrelu_grad(dy.to(at::kFloat), x.to(at::kFloat), fu, fd, to(b, at::kFloat), up, down, padding, gain,
                               slope, clamp, flip_filter)
        .to(x.scalar_type());
  }
  const FilterPair filters(x, fu, fd, up, down, padding, flip_filter);
  return between_filters(x, b, filters.up, dy, filters.down.transposed(), filters.up.transposed(), {gain, slope, clamp});
}

}  // namespace stylegan_di
