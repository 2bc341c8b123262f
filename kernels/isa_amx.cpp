// AVX-512 with AMX int8 tiles for many tokens. Compiled as isa_avx512.cpp, and -mamx-tile -mamx-int8.
#define LIBREMOE_ISA amx
#define LIBREMOE_ISA_NAME "amx"
#define LIBREMOE_AVX512
#define LIBREMOE_AMX
#define LIBREMOE_TILES
#define LIBREMOE_PRODUCT product<Amx>
#include "isa.h"
