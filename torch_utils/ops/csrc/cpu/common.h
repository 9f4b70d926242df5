// What the CPU kernels share: vectors and activations.
//
// An image [N,C,H,W] is seen as rows of W * S elements, S elements apart from pixel to pixel. In channels_last S is C,
// and a sample has one plane; in NCHW S is 1, and it has C planes. One loop serves both layouts.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <vector>

#include "../kernels.h"

namespace stylegan_di {

template <typename T> using Vec = at::vec::Vectorized<T>;

// Calls body(i, count) for vectors that cover [0, n); count is less than a full vector only in the last.
template <typename T, typename Body> inline void vectors(int64_t n, Body body) {
  constexpr int64_t width = Vec<T>::size();
  int64_t i = 0;
  for (; i + width <= n; i += width) body(i, width);
  if (i < n) body(i, n - i);
}

template <typename T> inline Vec<T> load(const T* p, int64_t count) {
  return count == Vec<T>::size() ? Vec<T>::loadu(p) : Vec<T>::loadu(p, count);
}

template <typename T> inline void store(const Vec<T>& v, T* p, int64_t count) {
  if (count == Vec<T>::size()) v.store(p);
  else v.store(p, count);
}

template <typename T> inline T total(const Vec<T>& v) {
  return at::vec::vec_reduce_all<T>([](const Vec<T>& a, const Vec<T>& b) { return a + b; }, v);
}

// float16 and bfloat16 compute in float32: on a CPU they are for tests, not for speed.
inline bool computes(const Tensor& x) { return x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble; }

inline Optional to(const Optional& t, at::ScalarType type) { return t.has_value() ? Optional(t->to(type)) : t; }

template <typename Body> inline void dispatch(at::ScalarType type, Body body) {
  TORCH_CHECK(type == at::kFloat || type == at::kDouble, "float32 or float64 expected, not ", type);
  if (type == at::kFloat) body(float());
  else body(double());
}

// Activations.

template <typename T> inline Vec<T> logistic(const Vec<T>& u) { return Vec<T>(1) / (Vec<T>(1) + u.neg().exp_u20()); }

template <Act act, typename T> inline Vec<T> activate(const Vec<T>& u, T alpha) {
  using V = Vec<T>;
  const V zero(0);
  if constexpr (act == Act::linear) return u;
  if constexpr (act == Act::relu) return at::vec::maximum(u, zero);
  if constexpr (act == Act::lrelu) return V::blendv(u * V(alpha), u, u > zero);
  if constexpr (act == Act::tanh) return u.tanh();
  if constexpr (act == Act::sigmoid) return logistic(u);
  if constexpr (act == Act::elu) return V::blendv(u.expm1(), u, u > zero);
  if constexpr (act == Act::selu) return V::blendv(u.expm1() * V(kSeluAlpha), u, u > zero) * V(kSeluScale);
  if constexpr (act == Act::softplus) return V::blendv(u.exp().log1p(), u, u > V(20));
  if constexpr (act == Act::swish) return u * logistic(u);
}

template <Act act, typename T> inline Vec<T> derivative(const Vec<T>& r, T alpha) {
  using V = Vec<T>;
  const V zero(0), one(1);
  if constexpr (act == Act::linear) return one;
  if constexpr (act == Act::relu) return V::blendv(zero, one, r > zero);
  if constexpr (act == Act::lrelu) return V::blendv(V(alpha), one, r > zero);
  if constexpr (act == Act::tanh) return one - r * r;
  if constexpr (act == Act::sigmoid) return r * (one - r);
  if constexpr (act == Act::elu) return at::vec::minimum(r, zero) + one;
  if constexpr (act == Act::selu) return V::blendv(r + V(kSeluScale * kSeluAlpha), V(kSeluScale), r > zero);
  if constexpr (act == Act::softplus) return r.neg().expm1().neg();
  if constexpr (act == Act::swish) {
    const V s = logistic(r);
    return s * (one + r * (one - s));
  }
}

// Calls body with the activation as a compile-time constant.
template <Act act> using Constant = std::integral_constant<Act, act>;

template <typename Body> inline void with_piecewise_linear(Act act, Body body) {
  switch (act) {
    case Act::linear: return body(Constant<Act::linear>());
    case Act::relu: return body(Constant<Act::relu>());
    case Act::lrelu: return body(Constant<Act::lrelu>());
    default: TORCH_CHECK(false, "linear, relu or lrelu expected");
  }
}

template <typename Body> inline void with_act(Act act, Body body) {
  switch (act) {
    case Act::tanh: return body(Constant<Act::tanh>());
    case Act::sigmoid: return body(Constant<Act::sigmoid>());
    case Act::elu: return body(Constant<Act::elu>());
    case Act::selu: return body(Constant<Act::selu>());
    case Act::softplus: return body(Constant<Act::softplus>());
    case Act::swish: return body(Constant<Act::swish>());
    default: return with_piecewise_linear(act, body);
  }
}

}  // namespace stylegan_di
