// AVX2 and FMA: x86 since about 2013. Compiled with -mavx2 -mfma.
#define LIBREMOE_ISA avx2
#define LIBREMOE_ISA_NAME "avx2"
#define LIBREMOE_AVX2
#define LIBREMOE_FLOAT_ROWS
#define LIBREMOE_PRODUCT product<Vectors>
#include "isa.h"
