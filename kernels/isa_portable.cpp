// Plain C++: what every other body is tested against, and the only one on processors that have none of theirs.
#define LIBREMOE_ISA portable
#define LIBREMOE_ISA_NAME "portable"
#define LIBREMOE_PRODUCT product<Vectors>
#include "isa.h"
