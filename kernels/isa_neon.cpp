// Arm with the dot product extension (armv8.2-a+dotprod); the rest is the portable body, which compilers vectorise for Arm.
#define LIBREMOE_ISA neon
#define LIBREMOE_ISA_NAME "neon"
#define LIBREMOE_NEON
#define LIBREMOE_PRODUCT product<Vectors>
#include "isa.h"
