// The CPU kernels.
#include "bias_act.h"
#include "filtered_lrelu.h"
#include "fir.h"
#include "group_norm_silu.h"
#include "modconv_epilogue.h"

STYLEGAN_DI_KERNELS(CPU)
