// AVX-512 with VNNI. Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma.
#define LIBREMOE_ISA avx512vnni
#define LIBREMOE_ISA_NAME "avx512vnni"
#define LIBREMOE_AVX512
#define LIBREMOE_PRODUCT product<Vectors>
#include "isa.h"
