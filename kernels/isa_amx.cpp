// AVX-512 with AMX tiles: int8 for many tokens, bfloat16. Compiled as isa_avx512.cpp, and -mamx-tile -mamx-int8 -mamx-bf16.
#define LIBREMOE_ISA amx
#define LIBREMOE_ISA_NAME "amx"
#define LIBREMOE_AVX512
#define LIBREMOE_AMX
#define LIBREMOE_TILES
#define LIBREMOE_PRODUCT product<Amx>
#include "isa.h"
