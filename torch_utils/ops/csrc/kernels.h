// What the kernels of CPU and CUDA share: layouts, names of activations, and which kernel an operator has.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <string_view>

namespace stylegan_di {

using at::Tensor;
using Optional = std::optional<Tensor>;

template <typename T> inline const T* data_or_null(const Optional& t) {
  return t.has_value() ? t->const_data_ptr<T>() : nullptr;
}

inline Optional dense(const Optional& t, at::ScalarType type) {
  return t.has_value() ? Optional(t->to(type).contiguous()) : t;
}

inline bool is_channels_last(const Tensor& x) {
  return x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast) && !x.is_contiguous();
}

inline at::MemoryFormat layout_of(const Tensor& x) {
  return is_channels_last(x) ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

inline Tensor like(const Tensor& x, int64_t height, int64_t width) {
  return at::empty({x.size(0), x.size(1), height, width}, x.options(), layout_of(x));
}

// Activations: a = act(u); derivative in terms of r, which is a, or u for swish. See bias_act.py.

enum class Act { linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus, swish };
constexpr double kSeluScale = 1.0507009873554804934193349852946, kSeluAlpha = 1.6732632423543772848170429916717;

inline Act parse_act(std::string_view name) {
  constexpr std::string_view names[] = {"linear", "relu", "lrelu", "tanh", "sigmoid",
                                        "elu",    "selu", "softplus", "swish"};
  for (int i = 0; i < 9; i++)
    if (names[i] == name) return static_cast<Act>(i);
  TORCH_CHECK(false, "unknown activation ", std::string(name));
}

}  // namespace stylegan_di

// Attaches the kernels to the schemas that the Python modules define.
#define STYLEGAN_DI_KERNELS(DEVICE)                                              \
  TORCH_LIBRARY_IMPL(stylegan_di, DEVICE, m) {                                   \
    m.impl("bias_act", stylegan_di::bias_act);                                   \
    m.impl("bias_act_grad", stylegan_di::bias_act_grad);                         \
    m.impl("upfirdn2d", stylegan_di::upfirdn2d);                                 \
    m.impl("filtered_lrelu", stylegan_di::filtered_lrelu);                       \
    m.impl("filtered_lrelu_tangent", stylegan_di::filtered_lrelu_tangent);       \
    m.impl("filtered_lrelu_grad", stylegan_di::filtered_lrelu_grad);             \
    m.impl("modconv_epilogue", stylegan_di::modconv_epilogue);                   \
    m.impl("modconv_epilogue_grad", stylegan_di::modconv_epilogue_grad);         \
    m.impl("group_norm_silu", stylegan_di::group_norm_silu);                     \
    m.impl("group_norm_silu_grad", stylegan_di::group_norm_silu_grad);           \
  }
