// The CUDA kernels: float16, bfloat16, float32 and float64, NCHW and channels_last. A thread computes one element of a
// result, a block one group of a normalisation; sums are taken in float32 (float64 for float64), in a fixed order.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../filtered_lrelu.h"
#include "../kernels.h"

namespace stylegan_di {

constexpr int kThreads = 256;

template <typename T> struct Compute { using type = float; };
template <> struct Compute<double> { using type = double; };
template <typename T> using compute_t = typename Compute<T>::type;

#define STYLEGAN_DI_DISPATCH(TYPE, ...) \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, TYPE, "stylegan_di", __VA_ARGS__)

inline int blocks(int64_t count) { return int((count + kThreads - 1) / kThreads); }
inline cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream(); }
inline void check_launch() { TORCH_CHECK(cudaPeekAtLastError() == cudaSuccess, cudaGetErrorString(cudaGetLastError())); }

// Activations.

template <typename S> __device__ S logistic(S u) { return S(1) / (S(1) + exp(-u)); }

template <typename S> __device__ S activate(Act act, S u, S alpha) {
  switch (act) {
    case Act::relu: return u > 0 ? u : S(0);
    case Act::lrelu: return u > 0 ? u : u * alpha;
    case Act::tanh: return tanh(u);
    case Act::sigmoid: return logistic(u);
    case Act::elu: return u > 0 ? u : expm1(u);
    case Act::selu: return S(kSeluScale) * (u > 0 ? u : S(kSeluAlpha) * expm1(u));
    case Act::softplus: return u > 20 ? u : log1p(exp(u));
    case Act::swish: return u * logistic(u);
    default: return u;
  }
}

template <typename S> __device__ S derivative(Act act, S r, S alpha) {
  switch (act) {
    case Act::relu: return r > 0 ? S(1) : S(0);
    case Act::lrelu: return r > 0 ? S(1) : alpha;
    case Act::tanh: return 1 - r * r;
    case Act::sigmoid: return r * (1 - r);
    case Act::elu: return r > 0 ? S(1) : r + 1;
    case Act::selu: return r > 0 ? S(kSeluScale) : r + S(kSeluScale * kSeluAlpha);
    case Act::softplus: return -expm1(-r);
    case Act::swish: {
      const S s = logistic(r);
      return s * (1 + r * (1 - s));
    }
    default: return S(1);
  }
}

template <typename S> struct Finish {  // activation, gain, clamp
  Act act;
  S alpha, gain, limit;  // limit < 0: none

  __device__ S operator()(S u) const {
    const S y = activate(act, u, alpha) * gain;
    return limit < 0 ? y : y > limit ? limit : y < -limit ? -limit : y;
  }
  // dy * gain * act' where |y| < limit; r is y, or for swish x + b.
  __device__ S back(S dy, S r) const {
    const bool from_input = act == Act::swish, by_sign = act == Act::relu || act == Act::lrelu;
    const S argument = from_input || by_sign ? r : r / gain;
    const S y = from_input ? activate(act, r, alpha) * gain : r;
    return limit >= 0 && fabs(y) >= limit ? S(0) : dy * derivative(act, argument, alpha) * gain;
  }
};

template <typename S> Finish<S> finish_of(std::string_view act, double alpha, double gain, std::optional<double> clamp) {
  return {parse_act(act), S(alpha), S(gain), S(clamp.value_or(-1))};
}

// bias_act.

template <typename T, typename S>
__global__ void bias_act_kernel(T* out, const T* x, const T* dy, const T* b, int64_t count, int64_t inner,
                                int64_t channels, Finish<S> finish) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const S bias = b ? S(b[i / inner % channels]) : S(0), u = S(x[i]) + bias;
  out[i] = T(dy ? finish.back(S(dy[i]), finish.act == Act::swish ? u : S(x[i])) : finish(u));
}

// y of x, or dx of dy and ref = x.
inline Tensor bias_act_any(const Tensor& x, const Optional& dy, const Optional& b, int64_t dim, std::string_view act,
                           double alpha, double gain, std::optional<double> clamp) {
  const Tensor& main = dy ? *dy : x;
  const c10::cuda::CUDAGuard guard(main.device());
  const auto layout = dim == 1 ? layout_of(main) : at::MemoryFormat::Contiguous;
  const Tensor in = x.contiguous(layout);
  const Optional upper = dy ? Optional(dy->contiguous(layout)) : dy, bias = dense(b, main.scalar_type());
  Tensor out = at::empty_like(in);
  int64_t inner = 1;
  if (layout == at::MemoryFormat::Contiguous)
    for (int64_t axis = dim + 1; axis < main.dim(); axis++) inner *= main.size(axis);
  const int64_t channels = main.size(dim);
  if (main.numel()) {
    STYLEGAN_DI_DISPATCH(main.scalar_type(), [&] {
      using S = compute_t<scalar_t>;
      bias_act_kernel<scalar_t, S><<<blocks(main.numel()), kThreads, 0, stream()>>>(
          out.mutable_data_ptr<scalar_t>(), in.const_data_ptr<scalar_t>(), data_or_null<scalar_t>(upper),
          data_or_null<scalar_t>(bias), main.numel(), inner, channels, finish_of<S>(act, alpha, gain, clamp));
    });
    check_launch();
  }
  return main.is_contiguous(layout) ? out : at::empty_like(main).copy_(out);
}

Tensor bias_act(const Tensor& x, const Optional& b, int64_t dim, std::string_view act, double alpha, double gain,
                std::optional<double> clamp) {
  return bias_act_any(x, std::nullopt, b, dim, act, alpha, gain, clamp);
}

Tensor bias_act_grad(const Tensor& dy, const Tensor& ref, const Optional& b, int64_t dim, std::string_view act,
                     double alpha, double gain, std::optional<double> clamp) {
  return bias_act_any(ref, dy, b, dim, act, alpha, gain, clamp);
}

// upfirdn2d and the epilogue: a resampled and filtered pixel, then scale, noise, bias, activation.

struct Images {  // of channels planes height x width, NCHW or channels_last
  int64_t channels, height, width;
  bool last;

  explicit Images(const Tensor& x) : channels(x.size(1)), height(x.size(2)), width(x.size(3)), last(is_channels_last(x)) {}
  __host__ __device__ int64_t at(int64_t n, int64_t c, int64_t y, int64_t x) const {
    return last ? ((n * height + y) * width + x) * channels + c : ((n * channels + c) * height + y) * width + x;
  }
  __device__ void split(int64_t i, int64_t& n, int64_t& c, int64_t& y, int64_t& x) const {
    if (last) c = i % channels, i /= channels;
    x = i % width, i /= width, y = i % height, i /= height;
    if (!last) c = i % channels, i /= channels;
    n = i;
  }
};

struct Taps {
  int64_t height, width, up_x, up_y, down_x, down_y, pad_x, pad_y;
  bool flip;
  double gain;
};

template <typename T, typename S>
__device__ S filtered(const T* x, const Images& in, const T* f, const Taps& taps, int64_t n, int64_t c, int64_t oy,
                      int64_t ox) {
  S sum = 0;
  for (int64_t ky = 0; ky < taps.height; ky++) {
    const int64_t y = oy * taps.down_y + ky - taps.pad_y;
    if (y < 0 || y % taps.up_y || y / taps.up_y >= in.height) continue;
    for (int64_t kx = 0; kx < taps.width; kx++) {
      const int64_t px = ox * taps.down_x + kx - taps.pad_x;
      if (px < 0 || px % taps.up_x || px / taps.up_x >= in.width) continue;
      const int64_t tap = taps.flip ? ky * taps.width + kx : (taps.height - 1 - ky) * taps.width + taps.width - 1 - kx;
      sum += S(x[in.at(n, c, y / taps.up_y, px / taps.up_x)]) * S(f[tap]);
    }
  }
  return sum * S(taps.gain);
}

template <typename T, typename S>
__global__ void epilogue_kernel(T* y, const T* x, Images in, Images out, const T* f, Taps taps, const T* scale,
                                const T* noise, bool one_noise, const T* b, int64_t count, Finish<S> finish) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  int64_t n, c, oy, ox;
  out.split(i, n, c, oy, ox);
  S u = f ? filtered<T, S>(x, in, f, taps, n, c, oy, ox) : S(x[i]);
  if (scale) u *= S(scale[n * out.channels + c]);
  if (noise) u += S(noise[((one_noise ? 0 : n) * out.height + oy) * out.width + ox]);
  if (b) u += S(b[c]);
  y[i] = T(finish(u));
}

inline Tensor filter_and_finish(const Tensor& x, const Optional& f, Taps taps, int64_t height, int64_t width,
                                const Optional& scale, const Optional& noise, const Optional& b, std::string_view act,
                                double alpha, double gain, std::optional<double> clamp) {
  const c10::cuda::CUDAGuard guard(x.device());
  const auto type = x.scalar_type();
  const Tensor in = x.contiguous(layout_of(x));
  Tensor y = like(x, height, width);
  const Optional filter = dense(f, type), scales = dense(scale, type), noises = dense(noise, type), bias = dense(b, type);
  const bool one_noise = noise && noise->size(0) == 1;
  if (!y.numel()) return y;
  STYLEGAN_DI_DISPATCH(type, [&] {
    using S = compute_t<scalar_t>;
    epilogue_kernel<scalar_t, S><<<blocks(y.numel()), kThreads, 0, stream()>>>(
        y.mutable_data_ptr<scalar_t>(), in.const_data_ptr<scalar_t>(), Images(in), Images(y),
        data_or_null<scalar_t>(filter), taps, data_or_null<scalar_t>(scales), data_or_null<scalar_t>(noises), one_noise,
        data_or_null<scalar_t>(bias), y.numel(), finish_of<S>(act, alpha, gain, clamp));
  });
  check_launch();
  return y;
}

inline Tensor resample(const Tensor& x, const Tensor& f, at::IntArrayRef up, at::IntArrayRef down, at::IntArrayRef pads,
                       bool flip, double gain) {
  const Taps taps{f.size(0), f.size(1), up[0], up[1], down[0], down[1], pads[0], pads[2], flip, gain};
  const int64_t width = (x.size(3) * up[0] + pads[0] + pads[1] - f.size(1)) / down[0] + 1;
  const int64_t height = (x.size(2) * up[1] + pads[2] + pads[3] - f.size(0)) / down[1] + 1;
  return filter_and_finish(x, f, taps, height, width, {}, {}, {}, "linear", 0, 1, {});
}

Tensor upfirdn2d(const Tensor& x, const Tensor& f, at::IntArrayRef up, at::IntArrayRef down, at::IntArrayRef pads,
                 bool flip, double gain) {
  if (f.dim() == 2) return resample(x, f, up, down, pads, flip, gain);
  const Tensor y = resample(x, f.unsqueeze(1), {1, up[1]}, {1, down[1]}, {0, 0, pads[2], pads[3]}, flip, 1);
  return resample(y, f.unsqueeze(0), {up[0], 1}, {down[0], 1}, {pads[0], pads[1], 0, 0}, flip, gain);
}

Tensor modconv_epilogue(const Tensor& x, const Optional& f, at::IntArrayRef pads, double filter_gain,
                        const Optional& scale, const Optional& noise, const Optional& b, std::string_view act,
                        double alpha, double gain, std::optional<double> clamp) {
  const int64_t fh = f ? f->size(0) : 1, fw = f ? f->size(1) : 1;
  const int64_t height = f ? x.size(2) + pads[2] + pads[3] - fh + 1 : x.size(2);
  const int64_t width = f ? x.size(3) + pads[0] + pads[1] - fw + 1 : x.size(3);
  const Taps taps{fh, fw, 1, 1, 1, 1, pads[0], pads[2], false, filter_gain};
  return filter_and_finish(x, f, taps, height, width, scale, noise, b, act, alpha, gain, clamp);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> modconv_epilogue_grad(
    const Tensor& dy, const Tensor& y, const Tensor& x, const Optional& f, at::IntArrayRef pads, double filter_gain,
    const Optional& scale, std::string_view act, double alpha, double gain, std::optional<double> clamp) {
  const Tensor t = bias_act_any(y.contiguous(layout_of(x)), dy.contiguous(layout_of(x)), {}, 1, act, alpha, gain, clamp);
  Tensor g = t;
  if (f) {
    const int64_t fh = f->size(0), fw = f->size(1);
    g = resample(t, *f, {1, 1}, {1, 1}, {fw - 1 - pads[0], fw - 1 - pads[1], fh - 1 - pads[2], fh - 1 - pads[3]}, true,
                 filter_gain);
  }
  Tensor dx = scale ? g.mul(scale->to(x.scalar_type()).unsqueeze(2).unsqueeze(3)) : f ? g : g.clone();
  return {dx.contiguous(layout_of(x)), x.mul(g).sum({2, 3}), t.sum({1}, true).contiguous(), t.sum({2, 3})};
}

// filtered_lrelu and its linear parts: the kernels above in turn.

inline Tensor resample(const Tensor& x, const Resampling& r) {
  return upfirdn2d(x, r.f, {r.up, r.up}, {r.down, r.down}, r.pads, r.flip, r.gain);
}

// clamp(lrelu(up(x + b)) * gain), which also tells the slope at each pixel.
inline Tensor activated(const Tensor& x, const Optional& b, const Resampling& up, const LeakyRelu& act) {
  const Tensor biased = b ? bias_act(x, b, 1, "linear", 0, 1, {}) : x;
  return bias_act(resample(biased, up), {}, 1, "lrelu", act.slope, act.gain, act.clamp);
}

inline Tensor through(const Tensor& t, const Tensor& activated, const LeakyRelu& act) {
  return bias_act_grad(t, activated, {}, 1, "lrelu", act.slope, act.gain, act.clamp);
}

Tensor filtered_lrelu(const Tensor& x, STYLEGAN_DI_LRELU_ARGUMENTS) {
  const FilterPair filters(x, fu, fd, up, down, padding, flip_filter);
  return resample(activated(x, b, filters.up, {gain, slope, clamp}), filters.down);
}

Tensor filtered_lrelu_tangent(const Tensor& v, const Tensor& x, STYLEGAN_DI_LRELU_ARGUMENTS) {
  const FilterPair filters(x, fu, fd, up, down, padding, flip_filter);
  const LeakyRelu act{gain, slope, clamp};
  const Tensor t = resample(v.contiguous(layout_of(x)), filters.up);
  return resample(through(t, activated(x, b, filters.up, act), act), filters.down);
}

Tensor filtered_lrelu_grad(const Tensor& dy, const Tensor& x, STYLEGAN_DI_LRELU_ARGUMENTS) {
  const FilterPair filters(x, fu, fd, up, down, padding, flip_filter);
  const LeakyRelu act{gain, slope, clamp};
  const Tensor t = resample(dy.contiguous(layout_of(x)), filters.down.transposed());
  return resample(through(t, activated(x, b, filters.up, act), act), filters.up.transposed());
}

// Group normalisation: a block for each group of a sample.

template <typename S> __device__ S block_sum(S value) {
  __shared__ S lanes[kThreads];
  lanes[threadIdx.x] = value;
  __syncthreads();
  for (int half = kThreads / 2; half; half /= 2) {
    if (int(threadIdx.x) < half) lanes[threadIdx.x] += lanes[threadIdx.x + half];
    __syncthreads();
  }
  const S sum = lanes[0];
  __syncthreads();
  return sum;
}

struct Norm {
  int64_t channels, pixels, groups, per_group;
  bool last, one_shift, one_weight, one_bias, silu;

  // Where element k of a group is, and of which channel; neighbours in memory go to neighbouring threads.
  __device__ int64_t locate(int64_t n, int64_t g, int64_t k, int64_t& c) const {
    if (last) {
      c = g * per_group + k % per_group;
      return (n * pixels + k / per_group) * channels + c;
    }
    c = g * per_group + k / pixels;
    return (n * channels + c) * pixels + k % pixels;
  }
};

template <typename T, typename S>
__global__ void norm_kernel(T* y, T* mean, T* rstd, const T* x, const T* shift, const T* weight, const T* bias,
                            double eps, Norm norm) {
  const int64_t n = blockIdx.x / norm.groups, g = blockIdx.x % norm.groups, size = norm.per_group * norm.pixels;
  const T* shifts = shift ? shift + (norm.one_shift ? 0 : n) * norm.channels : nullptr;
  int64_t c;
  auto value = [&](int64_t k, int64_t& i) {
    i = norm.locate(n, g, k, c);
    return S(x[i]) + (shifts ? S(shifts[c]) : S(0));
  };
  int64_t i;
  S sum = 0;
  for (int64_t k = threadIdx.x; k < size; k += kThreads) sum += value(k, i);
  const S average = block_sum(sum) / S(size);
  sum = 0;
  for (int64_t k = threadIdx.x; k < size; k += kThreads) {
    const S centred = value(k, i) - average;
    sum += centred * centred;
  }
  const S r = S(1) / sqrt(block_sum(sum) / S(size) + S(eps));
  for (int64_t k = threadIdx.x; k < size; k += kThreads) {
    const S v = (value(k, i) - average) * r;
    const S u = v * S(weight[(norm.one_weight ? 0 : n) * norm.channels + c]) +
                S(bias[(norm.one_bias ? 0 : n) * norm.channels + c]);
    y[i] = T(norm.silu ? u * logistic(u) : u);
  }
  if (threadIdx.x == 0) mean[blockIdx.x] = T(average), rstd[blockIdx.x] = T(r);
}

inline Norm norm_of(const Tensor& x, const Optional& shift, const Tensor& weight, const Tensor& bias, int64_t groups,
                    bool silu) {
  return {x.size(1), x.size(2) * x.size(3), groups, x.size(1) / groups, is_channels_last(x),
          shift && shift->size(0) == 1, weight.size(0) == 1, bias.size(0) == 1, silu};
}

std::tuple<Tensor, Tensor, Tensor> group_norm_silu(const Tensor& x, const Optional& shift, const Tensor& weight,
                                                   const Tensor& bias, int64_t groups, double eps, bool silu) {
  const c10::cuda::CUDAGuard guard(x.device());
  const auto type = x.scalar_type();
  const Tensor in = x.contiguous(layout_of(x));
  const Optional shifts = dense(shift, type), weights = dense(weight, type), biases = dense(bias, type);
  Tensor y = like(x, x.size(2), x.size(3)), mean = at::empty({x.size(0), groups}, x.options()), rstd = at::empty_like(mean);
  STYLEGAN_DI_DISPATCH(type, [&] {
    norm_kernel<scalar_t, compute_t<scalar_t>><<<int(x.size(0) * groups), kThreads, 0, stream()>>>(
        y.mutable_data_ptr<scalar_t>(), mean.mutable_data_ptr<scalar_t>(), rstd.mutable_data_ptr<scalar_t>(),
        in.const_data_ptr<scalar_t>(), data_or_null<scalar_t>(shifts), data_or_null<scalar_t>(weights),
        data_or_null<scalar_t>(biases), eps, norm_of(x, shift, weight, bias, groups, silu));
  });
  check_launch();
  return {y, mean, rstd};
}

template <typename T, typename S>
__global__ void norm_grad_kernel(T* dx, T* dshift, T* dweight, T* dbias, const T* dy, const T* x, const T* shift,
                                 const T* weight, const T* bias, double eps, Norm norm) {
  const int64_t n = blockIdx.x / norm.groups, g = blockIdx.x % norm.groups, size = norm.per_group * norm.pixels;
  const T* shifts = shift ? shift + (norm.one_shift ? 0 : n) * norm.channels : nullptr;
  const T *weights = weight + (norm.one_weight ? 0 : n) * norm.channels,
          *biases = bias + (norm.one_bias ? 0 : n) * norm.channels;
  int64_t i, c;
  S sum = 0;  // mean and rstd anew: those that were kept are rounded to T
  auto value = [&](int64_t k) {
    i = norm.locate(n, g, k, c);
    return S(x[i]) + (shifts ? S(shifts[c]) : S(0));
  };
  for (int64_t k = threadIdx.x; k < size; k += kThreads) sum += value(k);
  const S mean = block_sum(sum) / S(size);
  sum = 0;
  for (int64_t k = threadIdx.x; k < size; k += kThreads) {
    const S centred = value(k) - mean;
    sum += centred * centred;
  }
  const S r = S(1) / sqrt(block_sum(sum) / S(size) + S(eps));
  auto gradient = [&](S normalised) {
    const S up = S(dy[i]);
    return norm.silu ? up * derivative(Act::swish, normalised * S(weights[c]) + S(biases[c]), S(0)) : up;
  };
  S first = 0, second = 0;
  for (int64_t channel = g * norm.per_group; channel < (g + 1) * norm.per_group; channel++) {
    S of_dv = 0, of_product = 0;
    for (int64_t p = threadIdx.x; p < norm.pixels; p += kThreads) {
      const int64_t local = channel - g * norm.per_group;
      const S normalised = (value(norm.last ? p * norm.per_group + local : local * norm.pixels + p) - mean) * r;
      const S dv = gradient(normalised);
      of_dv += dv, of_product += dv * normalised;
    }
    of_dv = block_sum(of_dv), of_product = block_sum(of_product);
    first += of_dv * S(weights[channel]), second += of_product * S(weights[channel]);
    if (threadIdx.x == 0) {
      dbias[n * norm.channels + channel] = T(of_dv);
      dweight[n * norm.channels + channel] = T(of_product);
    }
  }
  first /= S(size), second /= S(size);
  for (int64_t channel = g * norm.per_group; channel < (g + 1) * norm.per_group; channel++) {
    S of_dx = 0;
    for (int64_t p = threadIdx.x; p < norm.pixels; p += kThreads) {
      const int64_t local = channel - g * norm.per_group;
      const S normalised = (value(norm.last ? p * norm.per_group + local : local * norm.pixels + p) - mean) * r;
      const S result = r * (gradient(normalised) * S(weights[c]) - first - normalised * second);
      dx[i] = T(result);
      of_dx += result;
    }
    of_dx = block_sum(of_dx);
    if (threadIdx.x == 0) dshift[n * norm.channels + channel] = T(of_dx);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> group_norm_silu_grad(const Tensor& dy, const Tensor& x, const Optional& shift,
                                                                const Tensor& weight, const Tensor& bias,
                                                                const Tensor& mean, const Tensor& rstd, int64_t groups,
                                                                double eps, bool silu) {
  const c10::cuda::CUDAGuard guard(x.device());
  const auto type = x.scalar_type();
  const Tensor in = x.contiguous(layout_of(x)), upper = dy.contiguous(layout_of(x));
  const Optional shifts = dense(shift, type), weights = dense(weight, type), biases = dense(bias, type);
  Tensor dx = like(x, x.size(2), x.size(3)), dshift = at::empty({x.size(0), x.size(1)}, x.options());
  Tensor dweight = at::empty_like(dshift), dbias = at::empty_like(dshift);
  STYLEGAN_DI_DISPATCH(type, [&] {
    norm_grad_kernel<scalar_t, compute_t<scalar_t>><<<int(x.size(0) * groups), kThreads, 0, stream()>>>(
        dx.mutable_data_ptr<scalar_t>(), dshift.mutable_data_ptr<scalar_t>(), dweight.mutable_data_ptr<scalar_t>(),
        dbias.mutable_data_ptr<scalar_t>(), upper.const_data_ptr<scalar_t>(), in.const_data_ptr<scalar_t>(),
        data_or_null<scalar_t>(shifts), data_or_null<scalar_t>(weights), data_or_null<scalar_t>(biases), eps,
        norm_of(x, shift, weight, bias, groups, silu));
  });
  check_launch();
  if (weight.size(0) == 1) dweight = dweight.sum({0}, true);
  if (bias.size(0) == 1) dbias = dbias.sum({0}, true);
  return {dx, dshift, dweight, dbias};
}

}  // namespace stylegan_di

STYLEGAN_DI_KERNELS(CUDA)
