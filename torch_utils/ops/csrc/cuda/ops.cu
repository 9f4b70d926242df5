// The CUDA kernels: float16, bfloat16, float32 and float64, NCHW and channels_last. A thread computes one element of a
// result, a block one or a few groups of a normalisation; sums are taken in float32 (float64 for float64), in a fixed
// order.
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

// a / b for a, b >= 0; a division of 32 bits takes a quarter of the time of one of 64.
__device__ inline int64_t quotient(int64_t a, int64_t b) {
  return (a | b) >> 31 ? a / b : int64_t(uint32_t(a) / uint32_t(b));
}

__device__ inline int64_t take_remainder(int64_t& a, int64_t b) {  // a becomes a / b
  const int64_t before = a;
  a = quotient(a, b);
  return before - a * b;
}

inline int blocks(int64_t count) { return int((count + kThreads - 1) / kThreads); }

// Neighbours in memory that a thread reads and writes at once.
template <typename T, int V> struct alignas(sizeof(T) * V) Pack { T of[V]; };

template <int V, typename T> __device__ Pack<T, V> load(const T* from) { return *reinterpret_cast<const Pack<T, V>*>(from); }
template <int V, typename T> __device__ void store(T* to, const Pack<T, V>& values) {
  *reinterpret_cast<Pack<T, V>*>(to) = values;
}

inline bool aligned(std::initializer_list<const void*> addresses, size_t bytes) {
  for (const void* address : addresses)
    if (reinterpret_cast<uintptr_t>(address) % bytes) return false;
  return true;
}
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

template <int N> using Int = std::integral_constant<int, N>;

// Calls run(Int<act>) for the networks' usual activations, so that a kernel need not decide on it for each number, and
// run(Int<kAnyAct>) for the others.
constexpr int kAnyAct = -1;

template <typename F> void with_known(Act act, F run) {
  if (act == Act::linear) return run(Int<int(Act::linear)>());
  if (act == Act::lrelu) return run(Int<int(Act::lrelu)>());
  run(Int<kAnyAct>());
}

// bias_act.

// What V elements from channel c on have of b: one of a channel, or those of V channels if inner is 1.
template <int V, typename T> __device__ Pack<T, V> per_channel(const T* b, int64_t c, int64_t inner) {
  if (inner == 1) return load<V>(b + c);
  Pack<T, V> same;
  for (int j = 0; j < V; j++) same.of[j] = b[c];
  return same;
}

// The channel of element i, where `inner` neighbours share one.
__device__ inline int64_t channel_of(int64_t i, int64_t inner, int64_t channels) {
  int64_t outer = inner == 1 ? i : quotient(i, inner);
  return take_remainder(outer, channels);
}

// V elements of a channel, or of V channels that are neighbours; Known: the activation, or kAnyAct.
template <typename T, typename S, int V, int Known>
__global__ void bias_act_kernel(T* out, const T* x, const T* dy, const T* b, int64_t count, int64_t inner,
                                int64_t channels, Finish<S> finish) {
  const int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * V;
  if (i >= count) return;
  if constexpr (Known != kAnyAct) finish.act = static_cast<Act>(Known);
  Pack<T, V> values = load<V>(x + i), upper = dy ? load<V>(dy + i) : values, own{};
  if (b) own = per_channel<V>(b, channel_of(i, inner, channels), inner);
  for (int j = 0; j < V; j++) {
    const S u = S(values.of[j]) + S(own.of[j]);
    const S r = finish.act == Act::swish ? u : S(values.of[j]);
    values.of[j] = T(dy ? finish.back(S(upper.of[j]), r) : finish(u));
  }
  store<V>(out + i, values);
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
      constexpr int V = 16 / sizeof(scalar_t);
      const scalar_t *uppers = data_or_null<scalar_t>(upper), *biases = data_or_null<scalar_t>(bias);
      auto run = [&](auto kernel, int each) {
        kernel<<<blocks(main.numel() / each), kThreads, 0, stream()>>>(
            out.mutable_data_ptr<scalar_t>(), in.const_data_ptr<scalar_t>(), uppers, biases, main.numel(), inner,
            channels, finish_of<S>(act, alpha, gain, clamp));
      };
      const bool packed = (inner == 1 ? channels : inner) % V == 0;
      if (!packed || !aligned({in.const_data_ptr(), uppers, biases, out.const_data_ptr()}, 16))
        return run(bias_act_kernel<scalar_t, S, 1, kAnyAct>, 1);
      with_known(parse_act(act), [&](auto known) { run(bias_act_kernel<scalar_t, S, V, known>, V); });
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

// bias_add: x + b + alpha * other.

template <typename T, typename S, int V>
__global__ void bias_add_kernel(T* out, const T* x, const T* b, const T* other, S alpha, int64_t count, int64_t inner,
                                int64_t channels) {
  const int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * V;
  if (i >= count) return;
  Pack<T, V> values = load<V>(x + i);
  const Pack<T, V> more = load<V>(other + i), own = per_channel<V>(b, channel_of(i, inner, channels), inner);
  for (int j = 0; j < V; j++) values.of[j] = T(S(values.of[j]) + S(own.of[j]) + alpha * S(more.of[j]));
  store<V>(out + i, values);
}

Tensor bias_add(const Tensor& x, const Tensor& b, const Tensor& other, double alpha) {
  const c10::cuda::CUDAGuard guard(x.device());
  const auto type = x.scalar_type();
  const auto layout = layout_of(x);
  const Tensor in = x.contiguous(layout), more = other.to(type).contiguous(layout), bias = b.to(type).contiguous();
  Tensor y = at::empty_like(in);
  const int64_t channels = x.size(1), inner = layout == at::MemoryFormat::ChannelsLast ? 1 : x.size(2) * x.size(3);
  if (!y.numel()) return y;
  STYLEGAN_DI_DISPATCH(type, [&] {
    using S = compute_t<scalar_t>;
    constexpr int V = 16 / sizeof(scalar_t);
    auto run = [&](auto kernel, int each) {
      kernel<<<blocks(y.numel() / each), kThreads, 0, stream()>>>(
          y.mutable_data_ptr<scalar_t>(), in.const_data_ptr<scalar_t>(), bias.const_data_ptr<scalar_t>(),
          more.const_data_ptr<scalar_t>(), S(alpha), y.numel(), inner, channels);
    };
    const bool packed = (inner == 1 ? channels : inner) % V == 0;
    if (packed && aligned({in.const_data_ptr(), bias.const_data_ptr(), more.const_data_ptr(), y.const_data_ptr()}, 16))
      run(bias_add_kernel<scalar_t, S, V>, V);
    else run(bias_add_kernel<scalar_t, S, 1>, 1);
  });
  check_launch();
  return y;
}

// upfirdn2d and the epilogue: a resampled and filtered pixel, then scale, noise, bias, activation.

struct Images {  // of channels planes height x width, NCHW or channels_last
  int64_t channels, height, width, along_c, along_y, along_x;

  explicit Images(const Tensor& x)
      : channels(x.size(1)), height(x.size(2)), width(x.size(3)), along_c(is_channels_last(x) ? 1 : height * width),
        along_y(is_channels_last(x) ? width * channels : width), along_x(is_channels_last(x) ? channels : 1) {}
  __device__ int64_t plane(int64_t n, int64_t c) const { return n * channels * height * width + c * along_c; }
  __device__ void split(int64_t i, int64_t& n, int64_t& c, int64_t& y, int64_t& x) const {
    if (along_c == 1) c = take_remainder(i, channels);
    x = take_remainder(i, width), y = take_remainder(i, height);
    if (along_c != 1) c = take_remainder(i, channels);
    n = i;
  }
};

struct Taps {
  int height, width, up_x, up_y, down_x, down_y, pad_x, pad_y;
  bool flip;
  double gain;
};

// The first tap that meets a pixel, not an inserted zero; position: of tap 0 in the upsampled image.
__device__ inline int first_tap(int position, int up) {
  const int past = position % up;  // has the sign of position
  return past > 0 ? up - past : -past;
}

template <typename T, typename S, int V>  // of V channels
__device__ void filtered(S (&sums)[V], const T* x, const Images& in, const T* f, const Taps& taps, int64_t n, int64_t c,
                         int oy, int ox) {
  const T* plane = x + in.plane(n, c);
  const int top = oy * taps.down_y - taps.pad_y, left = ox * taps.down_x - taps.pad_x;
  const int first_y = first_tap(top, taps.up_y), first_x = first_tap(left, taps.up_x);
  for (int j = 0; j < V; j++) sums[j] = 0;
  for (int ky = first_y, y = (top + ky) / taps.up_y; ky < taps.height; ky += taps.up_y, y++) {
    if (y < 0 || y >= in.height) continue;
    const T* line = plane + y * in.along_y;
    for (int kx = first_x, px = (left + kx) / taps.up_x; kx < taps.width; kx += taps.up_x, px++) {
      if (px < 0 || px >= in.width) continue;
      const int tap = ky * taps.width + kx;
      const S factor = S(f[taps.flip ? tap : taps.height * taps.width - 1 - tap]);
      const Pack<T, V> values = load<V>(line + px * in.along_x);
      for (int j = 0; j < V; j++) sums[j] += S(values.of[j]) * factor;
    }
  }
  for (int j = 0; j < V; j++) sums[j] *= S(taps.gain);
}

template <typename T, typename S, int V, int Known>  // V channels that are neighbours; Known: as for bias_act
__global__ void epilogue_kernel(T* y, const T* x, Images in, Images out, const T* f, Taps taps, const T* scale,
                                const T* noise, bool one_noise, const T* b, int64_t count, Finish<S> finish) {
  const int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * V;
  if (i >= count) return;
  if constexpr (Known != kAnyAct) finish.act = static_cast<Act>(Known);
  int64_t n, c, oy, ox;
  out.split(i, n, c, oy, ox);
  S u[V];
  Pack<T, V> values;
  if (f) {
    filtered<T, S, V>(u, x, in, f, taps, n, c, int(oy), int(ox));
  } else {
    values = load<V>(x + i);
    for (int j = 0; j < V; j++) u[j] = S(values.of[j]);
  }
  const S added = noise ? S(noise[((one_noise ? 0 : n) * out.height + oy) * out.width + ox]) : S(0);
  for (int j = 0; j < V; j++) {
    if (scale) u[j] *= S(scale[n * out.channels + c + j]);
    u[j] += added;
    if (b) u[j] += S(b[c + j]);
    values.of[j] = T(finish(u[j]));
  }
  store<V>(y + i, values);
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
    auto run = [&](auto kernel, int each) {
      kernel<<<blocks(y.numel() / each), kThreads, 0, stream()>>>(
          y.mutable_data_ptr<scalar_t>(), in.const_data_ptr<scalar_t>(), Images(in), Images(y),
          data_or_null<scalar_t>(filter), taps, data_or_null<scalar_t>(scales), data_or_null<scalar_t>(noises),
          one_noise, data_or_null<scalar_t>(bias), y.numel(), finish_of<S>(act, alpha, gain, clamp));
    };
    const bool packed = is_channels_last(in) && is_channels_last(y) && x.size(1) % 4 == 0;
    if (!packed || !aligned({in.const_data_ptr(), y.const_data_ptr()}, 4 * sizeof(scalar_t)))
      return run(epilogue_kernel<scalar_t, S, 1, kAnyAct>, 1);
    with_known(parse_act(act), [&](auto known) { run(epilogue_kernel<scalar_t, S, 4, known>, 4); });
  });
  check_launch();
  return y;
}

inline Tensor resample(const Tensor& x, const Tensor& f, at::IntArrayRef up, at::IntArrayRef down, at::IntArrayRef pads,
                       bool flip, double gain) {
  const Taps taps{int(f.size(0)), int(f.size(1)), int(up[0]), int(up[1]), int(down[0]), int(down[1]), int(pads[0]),
                  int(pads[2]), flip, gain};
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
  const Taps taps{int(fh), int(fw), 1, 1, 1, 1, int(pads[0]), int(pads[2]), false, filter_gain};
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

// Group normalisation of images of NCHW: a block for each group of a sample.

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
  bool one_shift, one_weight, one_bias, silu;
  int lanes, rows;  // of a block on channels_last
};

// What is added to x, and what multiplies it and is added after it is normalised.
template <typename T> struct Affine {
  const T *shift, *weight, *bias;

  __device__ Affine of_sample(int64_t n, const Norm& norm) const {
    return {shift ? shift + (norm.one_shift ? 0 : n) * norm.channels : nullptr,
            weight + (norm.one_weight ? 0 : n) * norm.channels, bias + (norm.one_bias ? 0 : n) * norm.channels};
  }
};

// 1 / (1 + exp(-u)), by the GPU's approximations where the result is rounded to 16 bits.
template <typename T, typename S> __device__ S sigmoid(S u) {
  if constexpr (sizeof(T) == 2) return __fdividef(S(1), S(1) + __expf(-u));
  else return logistic(u);
}

template <typename T, typename S> __device__ S normalised_gradient(S dy, S normalised, S weight, S bias, bool silu) {
  if (!silu) return dy;
  const S u = normalised * weight + bias, s = sigmoid<T>(u);
  return dy * s * (1 + u * (1 - s));
}

template <typename T, typename S>
__global__ void norm_kernel(T* y, S* mean, S* rstd, const T* x, Affine<T> affine, double eps, Norm norm) {
  const int64_t n = blockIdx.x / norm.groups, g = blockIdx.x % norm.groups, size = norm.per_group * norm.pixels;
  const int64_t begin = blockIdx.x * size;
  const Affine<T> own = affine.of_sample(n, norm);
  int64_t c;
  auto value = [&](int64_t k) {
    c = g * norm.per_group + quotient(k, norm.pixels);
    return S(x[begin + k]) + (own.shift ? S(own.shift[c]) : S(0));
  };
  S sum = 0;
  for (int64_t k = threadIdx.x; k < size; k += kThreads) sum += value(k);
  const S average = block_sum(sum) / S(size);
  sum = 0;
  for (int64_t k = threadIdx.x; k < size; k += kThreads) {
    const S centred = value(k) - average;
    sum += centred * centred;
  }
  const S r = S(1) / sqrt(block_sum(sum) / S(size) + S(eps));
  for (int64_t k = threadIdx.x; k < size; k += kThreads) {
    const S v = (value(k) - average) * r, u = v * S(own.weight[c]) + S(own.bias[c]);
    y[begin + k] = T(norm.silu ? u * sigmoid<T>(u) : u);
  }
  if (threadIdx.x == 0) mean[blockIdx.x] = average, rstd[blockIdx.x] = r;
}

template <typename T, typename S>
__global__ void norm_grad_kernel(T* dx, T* dshift, T* dweight, T* dbias, const T* dy, const T* x, const S* means,
                                 const S* rstds, Affine<T> affine, Norm norm) {
  const int64_t n = blockIdx.x / norm.groups, g = blockIdx.x % norm.groups, size = norm.per_group * norm.pixels;
  const int64_t begin = blockIdx.x * size;
  const Affine<T> own = affine.of_sample(n, norm);
  const S mean = means[blockIdx.x], r = rstds[blockIdx.x];
  auto value = [&](int64_t k, int64_t c) { return S(x[begin + k]) + (own.shift ? S(own.shift[c]) : S(0)); };
  S first = 0, second = 0;
  for (int64_t local = 0; local < norm.per_group; local++) {
    const int64_t c = g * norm.per_group + local;
    S of_dv = 0, of_product = 0;
    for (int64_t p = threadIdx.x; p < norm.pixels; p += kThreads) {
      const int64_t k = local * norm.pixels + p;
      const S v = (value(k, c) - mean) * r;
      const S dv = normalised_gradient<T>(S(dy[begin + k]), v, S(own.weight[c]), S(own.bias[c]), norm.silu);
      of_dv += dv, of_product += dv * v;
    }
    of_dv = block_sum(of_dv), of_product = block_sum(of_product);
    first += of_dv * S(own.weight[c]), second += of_product * S(own.weight[c]);
    if (threadIdx.x == 0) {
      dbias[n * norm.channels + c] = T(of_dv);
      dweight[n * norm.channels + c] = T(of_product);
    }
  }
  first /= S(size), second /= S(size);
  for (int64_t local = 0; local < norm.per_group; local++) {
    const int64_t c = g * norm.per_group + local;
    S of_dx = 0;
    for (int64_t p = threadIdx.x; p < norm.pixels; p += kThreads) {
      const int64_t k = local * norm.pixels + p;
      const S v = (value(k, c) - mean) * r;
      const S dv = normalised_gradient<T>(S(dy[begin + k]), v, S(own.weight[c]), S(own.bias[c]), norm.silu);
      const S result = r * (dv * S(own.weight[c]) - first - v * second);
      dx[begin + k] = T(result);
      of_dx += result;
    }
    of_dx = block_sum(of_dx);
    if (threadIdx.x == 0) dshift[n * norm.channels + c] = T(of_dx);
  }
}

// Group normalisation of channels_last: a block takes neighbouring channels of a sample that are whole groups, one of
// its threads V of them, which are of one group, at every rows-th pixel.

template <typename T, typename S, int V> struct Column {
  static constexpr int kShared = kThreads * (V > 2 ? V : 2);

  const Norm& norm;
  S* shared;
  int lane, row;            // lane: which V channels of the block; row: which pixels
  int first, group_lanes;   // the group's first lane, and how many lanes it has
  int n, c, group;          // the sample, the first channel, and the group, counted over all samples
  S shift[V], weight[V], bias[V];

  __device__ Column(const Norm& norm, const Affine<T>& affine, S* shared) : norm(norm), shared(shared) {
    const int per_group = int(norm.per_group), blocks = int(norm.channels) / (norm.lanes * V);
    lane = int(threadIdx.x) % norm.lanes, row = int(threadIdx.x) / norm.lanes;
    group_lanes = per_group / V, first = lane - lane % group_lanes;
    n = int(blockIdx.x) / blocks, c = (int(blockIdx.x) % blocks * norm.lanes + lane) * V;
    group = n * int(norm.groups) + c / per_group;
    const Affine<T> own = affine.of_sample(n, norm);
    for (int j = 0; j < V; j++) {
      shift[j] = own.shift ? S(own.shift[c + j]) : S(0);
      weight[j] = S(own.weight[c + j]), bias[j] = S(own.bias[c + j]);
    }
  }
  // Where the group's first channel is in x + shift, at the first pixel.
  __device__ S first_value(const T* x, const Affine<T>& affine) const {
    const int channel = c - (lane - first) * V;
    const T* own = affine.of_sample(n, norm).shift;
    return S(x[n * norm.pixels * norm.channels + channel]) + (own ? S(own[channel]) : S(0));
  }
  // Replaces each of two numbers by its sum over the group's threads: first over an eighth of the rows each.
  __device__ void over_group(S& a, S& b) const {
    const int some = norm.rows >= 8 ? norm.rows / 8 : 1;
    S* const mine = shared + threadIdx.x;
    mine[0] = a, mine[kThreads] = b;
    __syncthreads();
    if (row < some) {
      for (int k = some; k < norm.rows; k += some) a += mine[k * norm.lanes], b += mine[kThreads + k * norm.lanes];
      mine[0] = a, mine[kThreads] = b;
    }
    __syncthreads();
    a = b = 0;
    for (int k = 0; k < some; k++)
      for (int other = first; other < first + group_lanes; other++)
        a += shared[k * norm.lanes + other], b += shared[kThreads + k * norm.lanes + other];
    __syncthreads();
  }
  // Replaces each channel's value by its sum over the rows, in the threads of row 0.
  __device__ void over_rows(S (&values)[V]) const {
    const int some = norm.rows >= 8 ? norm.rows / 8 : 1;
    S* const mine = shared + threadIdx.x;
    for (int j = 0; j < V; j++) mine[j * kThreads] = values[j];
    __syncthreads();
    auto fold = [&](int rows, int into) {
      if (row < into)
        for (int j = 0; j < V; j++) {
          for (int k = into; k < rows; k += into) values[j] += mine[j * kThreads + k * norm.lanes];
          mine[j * kThreads] = values[j];
        }
      __syncthreads();
    };
    fold(norm.rows, some);
    if (some > 1) fold(some, 1);
  }
};

// The values of x, and of dy if it is given, at a thread's pixels. The first K are kept in registers, and are all; with
// K = 0 they are read anew at each visit, several at a time.
template <typename T, typename S, int V, int K> struct Pixels {
  const Column<T, S, V>& column;
  const T *x, *dy;
  int64_t start, step;
  int count;
  Pack<T, V> a[K ? K : 1], b[K ? K : 1];

  __device__ Pixels(const Column<T, S, V>& column, const T* x, const T* dy) : column(column), x(x), dy(dy) {
    const Norm& norm = column.norm;
    start = (column.n * norm.pixels + column.row) * norm.channels + column.c, step = norm.rows * norm.channels;
    count = (int(norm.pixels) - column.row + norm.rows - 1) / norm.rows;
#pragma unroll
    for (int k = 0; k < K; k++)
      if (k < count) {
        a[k] = load<V>(x + start + k * step);
        if (dy) b[k] = load<V>(dy + start + k * step);
      }
  }
  // Makes the next visit convert to S what is kept: the compiler would keep the results, which take twice the registers.
  __device__ void convert_anew() {
#pragma unroll
    for (int k = 0; k < K; k++)
      for (int word = 0; word < int(sizeof(a[k]) / 4); word++) {
        asm volatile("" : "+r"(reinterpret_cast<unsigned*>(&a[k])[word]));
        if (dy) asm volatile("" : "+r"(reinterpret_cast<unsigned*>(&b[k])[word]));
      }
  }
  // Calls call(offset, values of x, values of dy) for each pixel.
  template <typename F> __device__ void visit(F call) const {
    if constexpr (K > 0) {
#pragma unroll
      for (int k = 0; k < K; k++)
        if (k < count) call(start + k * step, a[k], b[k]);
    } else {
      constexpr int kAhead = 4;
      int64_t at = start;
      int left = count;
      for (; left >= kAhead; left -= kAhead, at += kAhead * step) {
        Pack<T, V> ahead[kAhead], above[kAhead];
#pragma unroll
        for (int k = 0; k < kAhead; k++) {
          ahead[k] = load<V>(x + at + k * step);
          if (dy) above[k] = load<V>(dy + at + k * step);
        }
#pragma unroll
        for (int k = 0; k < kAhead; k++) call(at + k * step, ahead[k], above[k]);
      }
      for (; left > 0; left--, at += step) call(at, load<V>(x + at), dy ? load<V>(dy + at) : Pack<T, V>());
    }
  }
};

template <typename T, typename S, int V, int K>
__global__ void __launch_bounds__(kThreads, 2)
    norm_last_kernel(T* y, S* mean, S* rstd, const T* x, Affine<T> affine, double eps, Norm norm) {
  __shared__ S shared[Column<T, S, V>::kShared];
  const Column<T, S, V> column(norm, affine, shared);
  Pixels<T, S, V, K> pixels(column, x, nullptr);
  const S near = column.first_value(x, affine);  // variances are taken about a number near the mean
  S factor[V], offset[V], sum = 0, squares = 0;
  for (int j = 0; j < V; j++) offset[j] = column.shift[j] - near;
  pixels.visit([&](int64_t, const Pack<T, V>& values, const Pack<T, V>&) {
    for (int j = 0; j < V; j++) {
      const S centred = S(values.of[j]) + offset[j];
      sum += centred, squares += centred * centred;
    }
  });
  column.over_group(sum, squares);
  pixels.convert_anew();
  const S size = S(int(norm.per_group * norm.pixels)), beyond = sum / size, variance = squares / size - beyond * beyond;
  const S average = near + beyond, r = S(1) / sqrt((variance > 0 ? variance : S(0)) + S(eps));
  for (int j = 0; j < V; j++) {
    factor[j] = r * column.weight[j];
    offset[j] = (column.shift[j] - average) * factor[j] + column.bias[j];
  }
  pixels.visit([&](int64_t at, Pack<T, V> values, const Pack<T, V>&) {
    for (int j = 0; j < V; j++) {
      const S u = S(values.of[j]) * factor[j] + offset[j];
      values.of[j] = T(norm.silu ? u * sigmoid<T>(u) : u);
    }
    store<V>(y + at, values);
  });
  if (column.row == 0 && column.lane == column.first) mean[column.group] = average, rstd[column.group] = r;
}

template <typename T, typename S, int V, int K>
__global__ void __launch_bounds__(kThreads, 2)
    norm_last_grad_kernel(T* dx, T* dshift, T* dweight, T* dbias, const T* dy, const T* x, const S* means,
                          const S* rstds, Affine<T> affine, Norm norm) {
  __shared__ S shared[Column<T, S, V>::kShared];
  const Column<T, S, V> column(norm, affine, shared);
  Pixels<T, S, V, K> pixels(column, x, dy);
  const S mean = means[column.group], r = rstds[column.group];
  S offset[V], of_dv[V] = {}, of_product[V] = {}, of_v[V] = {}, first = 0, second = 0;
  for (int j = 0; j < V; j++) offset[j] = (column.shift[j] - mean) * r;
  auto gradients = [&](int j, const Pack<T, V>& values, const Pack<T, V>& upper, S& v, S& dv) {
    v = S(values.of[j]) * r + offset[j];
    dv = normalised_gradient<T>(S(upper.of[j]), v, column.weight[j], column.bias[j], norm.silu);
  };
  pixels.visit([&](int64_t, const Pack<T, V>& values, const Pack<T, V>& upper) {
    S v, dv;
    for (int j = 0; j < V; j++) {
      gradients(j, values, upper, v, dv);
      of_dv[j] += dv, of_product[j] += dv * v, of_v[j] += v;
    }
  });
  for (int j = 0; j < V; j++) first += of_dv[j] * column.weight[j], second += of_product[j] * column.weight[j];
  column.over_group(first, second);
  pixels.convert_anew();
  const S size = S(int(norm.per_group * norm.pixels)), count = S(int(norm.pixels));
  first /= size, second /= size;
  pixels.visit([&](int64_t at, const Pack<T, V>& values, const Pack<T, V>& upper) {
    Pack<T, V> results;
    S v, dv;
    for (int j = 0; j < V; j++) {
      gradients(j, values, upper, v, dv);
      results.of[j] = T(r * (dv * column.weight[j] - first - v * second));
    }
    store<V>(dx + at, results);
  });
  column.over_rows(of_dv), column.over_rows(of_product), column.over_rows(of_v);
  if (column.row) return;
  const int64_t target = int64_t(column.n) * norm.channels + column.c;
  for (int j = 0; j < V; j++) {
    dbias[target + j] = T(of_dv[j]), dweight[target + j] = T(of_product[j]);
    dshift[target + j] = T(r * (of_dv[j] * column.weight[j] - count * first - second * of_v[j]));  // the sum of dx
  }
}

inline at::ScalarType statistics_of(at::ScalarType type) {  // of mean and rstd
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

inline Norm norm_of(const Tensor& x, const Optional& shift, const Tensor& weight, const Tensor& bias, int64_t groups,
                    bool silu) {
  return {x.size(1), x.size(2) * x.size(3), groups, x.size(1) / groups, shift && shift->size(0) == 1,
          weight.size(0) == 1, bias.size(0) == 1, silu, 0, 0};
}

// How many channels a thread takes of channels_last: 8 of 16 bits, 4 or 1. It also sets lanes and rows. 0: use NCHW.
template <typename T> int channels_of_a_thread(Norm& norm, std::initializer_list<const void*> addresses) {
  int64_t wide = norm.per_group;  // channels of a block: groups until a row is two sectors of memory
  while (norm.channels % (2 * wide) == 0 && wide * sizeof(T) < 64) wide *= 2;
  int each = 1;
  for (int more : {4, 8})
    if (norm.per_group % more == 0 && more * sizeof(T) <= 16 && aligned(addresses, more * sizeof(T))) each = more;
  if (wide / each > kThreads) return 0;
  norm.lanes = int(wide / each), norm.rows = 1;
  while (2 * norm.rows * norm.lanes <= kThreads) norm.rows *= 2;
  return each;
}

// Calls run(Int<V>, Int<K>) for V = each (1 if that is 0), and a K that holds a thread's pixels and is at most Most, or 0.
template <int Most, typename T, typename F> void with_width(int each, const Norm& norm, F run) {
  const int64_t pixels = (norm.pixels + norm.rows - 1) / norm.rows;
  if constexpr (sizeof(T) == 2)
    if (each == 8) {
      if (pixels <= 4) return run(Int<8>(), Int<4>());
      if (pixels <= Most) return run(Int<8>(), Int<Most>());
      return run(Int<8>(), Int<0>());
    }
  if constexpr (sizeof(T) <= 4)
    if (each == 4) return run(Int<4>(), Int<0>());
  run(Int<1>(), Int<0>());
}

std::tuple<Tensor, Tensor, Tensor> group_norm_silu(const Tensor& x, const Optional& shift, const Tensor& weight,
                                                   const Tensor& bias, int64_t groups, double eps, bool silu) {
  const c10::cuda::CUDAGuard guard(x.device());
  const auto type = x.scalar_type();
  Tensor in = x.contiguous(layout_of(x)), y = at::empty_like(in);
  Tensor mean = at::empty({x.size(0), groups}, x.options().dtype(statistics_of(type))), rstd = at::empty_like(mean);
  const Optional shifts = dense(shift, type), weights = dense(weight, type), biases = dense(bias, type);
  Norm norm = norm_of(x, shift, weight, bias, groups, silu);
  STYLEGAN_DI_DISPATCH(type, [&] {
    using S = compute_t<scalar_t>;
    const Affine<scalar_t> affine{data_or_null<scalar_t>(shifts), data_or_null<scalar_t>(weights),
                                  data_or_null<scalar_t>(biases)};
    const auto addresses = {in.const_data_ptr(), static_cast<const void*>(y.const_data_ptr())};
    const int each = is_channels_last(in) ? channels_of_a_thread<scalar_t>(norm, addresses) : 0;
    if (!each) in = in.contiguous(), y = at::empty_like(in);
    auto run = [&](auto kernel, int64_t grid, int threads) {
      kernel<<<int(grid), threads, 0, stream()>>>(y.mutable_data_ptr<scalar_t>(), mean.mutable_data_ptr<S>(),
                                                  rstd.mutable_data_ptr<S>(), in.const_data_ptr<scalar_t>(), affine,
                                                  eps, norm);
    };
    if (!each) return run(norm_kernel<scalar_t, S>, x.size(0) * groups, kThreads);
    with_width<16, scalar_t>(each, norm, [&](auto width, auto kept) {
      run(norm_last_kernel<scalar_t, S, width, kept>, x.size(0) * x.size(1) / (norm.lanes * each),
          norm.lanes * norm.rows);
    });
  });
  check_launch();
  return {y.contiguous(layout_of(x)), mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> group_norm_silu_grad(const Tensor& dy, const Tensor& x, const Optional& shift,
                                                                const Tensor& weight, const Tensor& bias,
                                                                const Tensor& mean, const Tensor& rstd, int64_t groups,
                                                                double eps, bool silu) {
  const c10::cuda::CUDAGuard guard(x.device());
  const auto type = x.scalar_type();
  Tensor in = x.contiguous(layout_of(x)), upper = dy.contiguous(layout_of(x)), dx = at::empty_like(in);
  const Tensor means = mean.to(statistics_of(type)).contiguous(), rstds = rstd.to(statistics_of(type)).contiguous();
  const Optional shifts = dense(shift, type), weights = dense(weight, type), biases = dense(bias, type);
  Tensor dshift = at::empty({x.size(0), x.size(1)}, x.options());
  Tensor dweight = at::empty_like(dshift), dbias = at::empty_like(dshift);
  Norm norm = norm_of(x, shift, weight, bias, groups, silu);
  STYLEGAN_DI_DISPATCH(type, [&] {
    using S = compute_t<scalar_t>;
    const Affine<scalar_t> affine{data_or_null<scalar_t>(shifts), data_or_null<scalar_t>(weights),
                                  data_or_null<scalar_t>(biases)};
    const auto addresses = {in.const_data_ptr(), upper.const_data_ptr(), static_cast<const void*>(dx.const_data_ptr())};
    const int each = is_channels_last(in) ? channels_of_a_thread<scalar_t>(norm, addresses) : 0;
    if (!each) in = in.contiguous(), upper = upper.contiguous(), dx = at::empty_like(in);
    auto run = [&](auto kernel, int64_t grid, int threads) {
      kernel<<<int(grid), threads, 0, stream()>>>(
          dx.mutable_data_ptr<scalar_t>(), dshift.mutable_data_ptr<scalar_t>(), dweight.mutable_data_ptr<scalar_t>(),
          dbias.mutable_data_ptr<scalar_t>(), upper.const_data_ptr<scalar_t>(), in.const_data_ptr<scalar_t>(),
          means.const_data_ptr<S>(), rstds.const_data_ptr<S>(), affine, norm);
    };
    if (!each) return run(norm_grad_kernel<scalar_t, S>, x.size(0) * groups, kThreads);
    with_width<4, scalar_t>(each, norm, [&](auto width, auto kept) {
      run(norm_last_grad_kernel<scalar_t, S, width, kept>, x.size(0) * x.size(1) / (norm.lanes * each),
          norm.lanes * norm.rows);
    });
  });
  check_launch();
  if (weight.size(0) == 1) dweight = dweight.sum({0}, true);
  if (bias.size(0) == 1) dbias = dbias.sum({0}, true);
  return {dx.contiguous(layout_of(x)), dshift, dweight, dbias};
}

}  // namespace stylegan_di

STYLEGAN_DI_KERNELS(CUDA)

TORCH_LIBRARY_IMPL(stylegan_di, CUDA, m) { m.impl("bias_add", stylegan_di::bias_add); }
