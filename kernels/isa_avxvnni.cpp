// AVX2 with the 256-bit VNNI instruction: desktop and laptop processors without AVX-512. Compiled with -mavx2 -mfma -mavxvnni.
#define LIBREMOE_ISA avxvnni
#define LIBREMOE_ISA_NAME "avxvnni"
#define LIBREMOE_AVX2
#define LIBREMOE_AVXVNNI
#define LIBREMOE_PRODUCT product<Vectors>
#include "isa.h"
