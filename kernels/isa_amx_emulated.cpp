// The AMX body with tile instructions in plain code, for tests on processors without AMX. Compiled as isa_avx2.cpp.
#define LIBREMOE_ISA amx_emulated
#define LIBREMOE_ISA_NAME "amx-emulated"
#define LIBREMOE_AVX2
#define LIBREMOE_TILES
#define LIBREMOE_PRODUCT product<Amx>
#include "isa.h"
