// The CPU kernels, attached to the schemas that the Python modules define.
#include "bias_act.h"
#include "fir.h"
#include "group_norm_silu.h"
#include "modconv_epilogue.h"

TORCH_LIBRARY_IMPL(stylegan_di, CPU, m) {
  m.impl("bias_act", stylegan_di::bias_act);
  m.impl("bias_act_grad", stylegan_di::bias_act_grad);
  m.impl("upfirdn2d", stylegan_di::upfirdn2d);
  m.impl("modconv_epilogue", stylegan_di::modconv_epilogue);
  m.impl("modconv_epilogue_grad", stylegan_di::modconv_epilogue_grad);
  m.impl("group_norm_silu", stylegan_di::group_norm_silu);
  m.impl("group_norm_silu_grad", stylegan_di::group_norm_silu_grad);
}
