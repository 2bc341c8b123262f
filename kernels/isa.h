// All bodies of one instruction set. Each isa_*.cpp defines LIBREMOE_ISA (a namespace of its own, so that nothing compiled
// with its target flags is shared with another), its LIBREMOE_* switch for simd.h, and includes this file.
#include <cstdint>

#include "types.h"
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#elif defined(LIBREMOE_NEON)
#include <arm_neon.h>
#endif

namespace libremoe::LIBREMOE_ISA {

template <int k> struct Constant { static constexpr int value = k; };

#include "simd.h"
#include "formats.h"
#include "rows.h"
#include "micro.h"
#include "columns.h"
#include "product.h"
#include "attend.h"
#include "weights.h"
#include "limits.h"
#if defined(LIBREMOE_TILES)
#include "amx.h"
#include "amx_bf16.h"
#else
constexpr auto split_bf16 = nullptr, dense_bf16 = nullptr;
#endif

extern const Kernels table;
const Kernels table = {
    LIBREMOE_ISA_NAME, kInt8Parts, quantise, LIBREMOE_PRODUCT, dense, split_bf16, dense_bf16, activate, attend, attend_merge,
    rms_norm, rope, route, quantise_weights, peak, read,
};

}  // namespace libremoe::LIBREMOE_ISA
