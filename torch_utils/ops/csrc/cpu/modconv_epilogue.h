// stylegan_di::modconv_epilogue and its gradient: FIR filter, demodulation, noise, bias, activation, gain and clamp in
// one pass. See modconv_epilogue.py.
#pragma once

#include <ATen/ops/sum.h>

#include "fir.h"

namespace stylegan_di {

// Sums of one sample over pixels: a vector's worth within a row, double precision from row to row.
template <typename T> class ChannelSums {
 public:
  explicit ChannelSums(int64_t count) : row_(count), total_(count) {}
  T* row() { return row_.data(); }
  void close_row() {
    for (size_t c = 0; c < row_.size(); c++) total_[c] += row_[c], row_[c] = 0;
  }
  void add(int64_t c, T value) { total_[c] += value; }
  void write(T* out) const { std::copy(total_.begin(), total_.end(), out); }

 private:
  std::vector<T> row_;
  std::vector<double> total_;
};

struct EpilogueShape {
  int64_t batch, channels, in_height, in_width, height, width, S, planes;
  bool last;

  EpilogueShape(const Tensor& x, const Optional& f, at::IntArrayRef padding)
      : batch(x.size(0)), channels(x.size(1)), in_height(x.size(2)), in_width(x.size(3)), last(is_channels_last(x)) {
    height = f ? in_height + padding[2] + padding[3] - f->size(0) + 1 : in_height;
    width = f ? in_width + padding[0] + padding[1] - f->size(1) + 1 : in_width;
    S = last ? channels : 1;
    planes = last ? 1 : channels;
  }

  Extent filtering() const { return {in_height, in_width, height, width, S}; }
  Extent transposed() const { return {height, width, in_height, in_width, S}; }
};

const int64_t kNoStep[] = {1, 1};

inline Tensor modconv_epilogue(const Tensor& x, const Optional& f, at::IntArrayRef padding, double filter_gain,
                               const Optional& scale, const Optional& noise, const Optional& b, std::string_view act,
                               double alpha, double gain, std::optional<double> clamp) {
  if (!computes(x)) {
    const auto single = at::kFloat;
    return modconv_epilogue(x.to(single), f, padding, filter_gain, to(scale, single), to(noise, single), to(b, single),
                            act, alpha, gain, clamp)
        .to(x.scalar_type());
  }
  const EpilogueShape shape(x, f, padding);
  const Tensor in = x.contiguous(layout_of(x));
  Tensor y = like(x, shape.height, shape.width);
  const Optional scales = dense(scale, x.scalar_type()), noises = dense(noise, x.scalar_type()),
                 biases = dense(b, x.scalar_type());
  dispatch(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    std::optional<Fir<T>> fir;
    if (f) fir.emplace(f->to(x.scalar_type()), shape.filtering(), kNoStep, kNoStep, padding[0], padding[2], false, filter_gain);
    const T *source = in.const_data_ptr<T>(), *d = data_or_null<T>(scales), *z = data_or_null<T>(noises),
            *bias = data_or_null<T>(biases);
    T* target = y.mutable_data_ptr<T>();
    const int64_t length = shape.width * shape.S, in_length = shape.in_width * shape.S;
    const bool shared_noise = noise && noise->size(0) == 1;
    const Vec<T> factor(gain), upper(clamp.value_or(0)), lower(-clamp.value_or(0));
    with_piecewise_linear(parse_act(act), [&](auto activation) {
      auto finish = [&](Vec<T> u) {
        u = activate<activation(), T>(u, alpha) * factor;
        return clamp ? at::vec::clamp(u, lower, upper) : u;
      };
      auto pixels = [&](const T* row, T* out, int64_t n, int64_t channel, const T* noise_row) {
        if (!shape.last) {
          const Vec<T> by(d ? d[n * shape.channels + channel] : T(1)), shift(bias ? bias[channel] : T(0));
          vectors<T>(shape.width, [&](int64_t i, int64_t count) {
            const Vec<T> added = noise_row ? load(noise_row + i, count) + shift : shift;
            store(finish(at::vec::fmadd(load(row + i, count), by, added)), out + i, count);
          });
          return;
        }
        for (int64_t px = 0; px < shape.width; px++, row += shape.S, out += shape.S) {
          const Vec<T> added(noise_row ? noise_row[px] : T(0));
          vectors<T>(shape.S, [&](int64_t c, int64_t count) {
            const Vec<T> by = d ? load(d + n * shape.channels + c, count) : Vec<T>(1);
            const Vec<T> shift = bias ? load(bias + c, count) + added : added;
            store(finish(at::vec::fmadd(load(row + c, count), by, shift)), out + c, count);
          });
        }
      };
      const int64_t grain = std::max<int64_t>(1, 4096 / std::max<int64_t>(1, length));
      at::parallel_for(0, shape.batch * shape.planes * shape.height, grain, [&](int64_t begin, int64_t end) {
        std::vector<T> buffer(fir ? in_length : 0), filtered(fir ? length : 0);
        for (int64_t i = begin; i < end; i++) {
          const int64_t plane = i / shape.height, py = i % shape.height, n = plane / shape.planes;
          const T* image = source + plane * shape.in_height * in_length;
          if (fir) fir->row(image, py, buffer.data(), filtered.data());
          const T* noise_row = z ? z + ((shared_noise ? 0 : n) * shape.height + py) * shape.width : nullptr;
          pixels(fir ? filtered.data() : image + py * length, target + i * length, n, plane % shape.planes, noise_row);
        }
      });
    });
  });
  return y;
}

// Returns dx, and for every sample the gradients of scale [N,C], noise [N,1,H,W] and bias [N,C].
inline std::tuple<Tensor, Tensor, Tensor, Tensor> modconv_epilogue_grad(
    const Tensor& dy, const Tensor& y, const Tensor& x, const Optional& f, at::IntArrayRef padding,
    double filter_gain, const Optional& scale, std::string_view act, double alpha, double gain,
    std::optional<double> clamp) {
  if (!computes(x)) {
    const auto single = at::kFloat;
    auto [dx, dd, dz, db] = modconv_epilogue_grad(dy.to(single), y.to(single), x.to(single), f, padding, filter_gain,
                                                  to(scale, single), act, alpha, gain, clamp);
    const auto type = x.scalar_type();
    return {dx.to(type), dd.to(type), dz.to(type), db.to(type)};
  }
  const EpilogueShape shape(x, f, padding);
  const auto layout = layout_of(x);
  const Tensor in = x.contiguous(layout), out = y.contiguous(layout), upper = dy.contiguous(layout);
  const Optional scales = dense(scale, x.scalar_type());
  Tensor dx = like(x, shape.in_height, shape.in_width);
  Tensor dd = at::zeros({shape.batch, shape.channels}, x.options());
  Tensor dz = at::zeros({shape.batch, 1, shape.height, shape.width}, x.options());
  Tensor db = at::zeros({shape.batch, shape.channels}, x.options());
  dispatch(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    std::optional<Fir<T>> fir;  // the transposed filter
    if (f) fir.emplace(f->to(x.scalar_type()), shape.transposed(), kNoStep, kNoStep, f->size(1) - 1 - padding[0], f->size(0) - 1 - padding[2], true, filter_gain);
    const T *xs = in.const_data_ptr<T>(), *ys = out.const_data_ptr<T>(), *dys = upper.const_data_ptr<T>(),
            *d = data_or_null<T>(scales);
    T *dxs = dx.mutable_data_ptr<T>(), *dds = dd.mutable_data_ptr<T>(), *dzs = dz.mutable_data_ptr<T>(),
      *dbs = db.mutable_data_ptr<T>();
    const int64_t S = shape.S, C = shape.channels, length = shape.width * S, in_length = shape.in_width * S;
    const Vec<T> factor(gain), limit(clamp.value_or(0)), nothing(0);
    with_piecewise_linear(parse_act(act), [&](auto activation) {
      auto through = [&](const Vec<T>& up, const Vec<T>& value) {  // dy -> du
        Vec<T> v = up * derivative<activation(), T>(value, alpha) * factor;
        return clamp ? Vec<T>::blendv(v, nothing, value.abs() >= limit) : v;
      };
      at::parallel_for(0, shape.batch, 1, [&](int64_t begin, int64_t end) {
        std::vector<T> du(shape.height * length), buffer(fir ? length : 0), filtered(fir ? in_length : 0);
        for (int64_t n = begin; n < end; n++) {
          ChannelSums<T> bias_sums(C), scale_sums(C);
          for (int64_t plane = 0; plane < shape.planes; plane++) {
            const int64_t at = (n * shape.planes + plane) * shape.height * length;
            for (int64_t py = 0; py < shape.height; py++) {
              const T *up = dys + at + py * length, *value = ys + at + py * length;
              T *t = du.data() + py * length, *noise_row = dzs + (n * shape.height + py) * shape.width;
              if (shape.last) {
                for (int64_t px = 0; px < shape.width; px++, up += S, value += S, t += S) {
                  Vec<T> pixel(0);
                  vectors<T>(S, [&](int64_t c, int64_t count) {
                    const Vec<T> v = through(load(up + c, count), load(value + c, count));
                    store(v, t + c, count);
                    store(load(bias_sums.row() + c, count) + v, bias_sums.row() + c, count);
                    pixel = pixel + (count == Vec<T>::size() ? v : Vec<T>::set(nothing, v, count));
                  });
                  noise_row[px] = total(pixel);
                }
                bias_sums.close_row();
              } else {
                Vec<T> sum(0);
                vectors<T>(length, [&](int64_t i, int64_t count) {
                  const Vec<T> v = through(load(up + i, count), load(value + i, count));
                  store(v, t + i, count);
                  store(load(noise_row + i, count) + v, noise_row + i, count);
                  sum = sum + (count == Vec<T>::size() ? v : Vec<T>::set(nothing, v, count));
                });
                bias_sums.add(plane, total(sum));
              }
            }
            for (int64_t iy = 0; iy < shape.in_height; iy++) {
              if (fir) fir->row(du.data(), iy, buffer.data(), filtered.data());
              const T* g = fir ? filtered.data() : du.data() + iy * length;
              const int64_t offset = ((n * shape.planes + plane) * shape.in_height + iy) * in_length;
              const T* pixel = xs + offset;
              T* target = dxs + offset;
              if (shape.last) {
                for (int64_t px = 0; px < shape.in_width; px++, g += S, pixel += S, target += S) {
                  vectors<T>(S, [&](int64_t c, int64_t count) {
                    const Vec<T> v = load(g + c, count);
                    T* sums = scale_sums.row() + c;
                    store(at::vec::fmadd(v, load(pixel + c, count), load(sums, count)), sums, count);
                    store(d ? v * load(d + n * C + c, count) : v, target + c, count);
                  });
                }
                scale_sums.close_row();
              } else {
                const Vec<T> by(d ? d[n * C + plane] : T(1));
                Vec<T> sum(0);
                vectors<T>(in_length, [&](int64_t i, int64_t count) {
                  const Vec<T> v = load(g + i, count), product = v * load(pixel + i, count);
                  sum = sum + (count == Vec<T>::size() ? product : Vec<T>::set(nothing, product, count));
                  store(v * by, target + i, count);
                });
                scale_sums.add(plane, total(sum));
              }
            }
          }
          bias_sums.write(dbs + n * C);
          scale_sums.write(dds + n * C);
        }
      });
    });
  });
  return {dx, dd, dz, db};
}

}  // namespace stylegan_di
