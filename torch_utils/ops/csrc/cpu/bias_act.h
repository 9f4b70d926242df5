// stylegan_di::bias_act and its gradient; see bias_act.py.
#pragma once

#include "common.h"

namespace stylegan_di {

// A tensor as `outer` rows of `inner` elements; row r has the bias b[r % count], or b[i] at each element i.
struct Rows {
  int64_t outer, inner, count;
  bool bias_along;

  Rows(const Tensor& x, int64_t dim) {
    count = x.size(dim);
    inner = 1;
    if (!is_channels_last(x)) {
      for (int64_t axis = dim + 1; axis < x.dim(); axis++) inner *= x.size(axis);
    }
    bias_along = inner == 1;
    if (bias_along) inner = count;
    outer = inner ? x.numel() / inner : 0;
  }
};

// Calls body(offset, count, bias) for vectors that cover the tensor.
template <typename T, typename Body> inline void each_with_bias(const Rows& rows, const T* b, Body body) {
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(rows.inner, 1));
  at::parallel_for(0, rows.outer, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const Vec<T> shared(b && !rows.bias_along ? b[row % rows.count] : T(0));
      const bool along = b && rows.bias_along;
      vectors<T>(rows.inner, [&](int64_t i, int64_t n) {
        body(row * rows.inner + i, n, along ? load(b + i, n) : shared);
      });
    }
  });
}

inline bool in_rows(const Tensor& x, int64_t dim) { return x.is_contiguous() || (is_channels_last(x) && dim == 1); }

inline Tensor bias_act(const Tensor& x, const Optional& b, int64_t dim, std::string_view act, double alpha,
                       double gain, std::optional<double> clamp) {
  if (!computes(x)) {
    return bias_act(x.to(at::kFloat), to(b, at::kFloat), dim, act, alpha, gain, clamp).to(x.scalar_type());
  }
  Tensor y = at::empty_like(x);
  if (!in_rows(x, dim)) {
    return y.copy_(bias_act(x.contiguous(), b, dim, act, alpha, gain, clamp));
  }
  dispatch(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Optional bias = dense(b, x.scalar_type());
    const T* in = x.const_data_ptr<T>();
    T* out = y.mutable_data_ptr<T>();
    const Vec<T> scale(gain), limit(clamp.value_or(0)), lower(-clamp.value_or(0));
    with_act(parse_act(act), [&](auto activation) {
      each_with_bias(Rows(x, dim), data_or_null<T>(bias), [&](int64_t i, int64_t n, const Vec<T>& bias) {
        Vec<T> v = activate<activation(), T>(load(in + i, n) + bias, alpha) * scale;
        if (clamp) v = at::vec::clamp(v, lower, limit);
        store(v, out + i, n);
      });
    });
  });
  return y;
}

inline Tensor bias_act_grad(const Tensor& dy, const Tensor& ref, const Optional& b, int64_t dim, std::string_view act,
                            double alpha, double gain, std::optional<double> clamp) {
  if (!computes(dy)) {
    return bias_act_grad(dy.to(at::kFloat), ref.to(at::kFloat), to(b, at::kFloat), dim, act, alpha, gain, clamp)
        .to(dy.scalar_type());
  }
  Tensor dx = at::empty_like(dy);
  if (!in_rows(dy, dim)) {
    return dx.copy_(bias_act_grad(dy.contiguous(), ref, b, dim, act, alpha, gain, clamp));
  }
  dispatch(dy.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Tensor arranged_ref = ref.contiguous(layout_of(dy));
    const Optional bias = dense(b, dy.scalar_type());
    const T *upper = dy.const_data_ptr<T>(), *r = arranged_ref.const_data_ptr<T>();
    T* out = dx.mutable_data_ptr<T>();
    const Vec<T> scale(gain), limit(clamp.value_or(0)), inverse(T(1) / T(gain)), nothing(0);
    with_act(parse_act(act), [&](auto activation) {
      constexpr Act A = activation();
      constexpr bool from_input = A == Act::swish, by_sign = A == Act::relu || A == Act::lrelu;
      each_with_bias(Rows(dy, dim), data_or_null<T>(bias), [&](int64_t i, int64_t n, const Vec<T>& bias) {
        const Vec<T> value = load(r + i, n);
        const Vec<T> argument = from_input ? value + bias : by_sign ? value : value * inverse;
        Vec<T> v = load(upper + i, n) * derivative<A, T>(argument, alpha) * scale;
        if (clamp) {
          const Vec<T> y = from_input ? activate<A, T>(argument, alpha) * scale : value;
          v = Vec<T>::blendv(v, nothing, y.abs() >= limit);
        }
        store(v, out + i, n);
      });
    });
  });
  return dx;
}

}  // namespace stylegan_di
