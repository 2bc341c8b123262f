// The choice of instruction set.
#pragma once
#include <string>
#include <vector>

#include "threads.h"
#include "types.h"

namespace libremoe {

// Forces an instruction set by name; "" chooses as at start. Throws std::invalid_argument where the processor lacks it.
void use_isa(const std::string& name);
std::vector<std::string> available_isas();

}  // namespace libremoe
