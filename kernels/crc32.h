// CRC-32 as in zlib and gzip (reflected polynomial 0xEDB88320), fast enough to check weights while they stream from a disk.
#pragma once
#include <cstddef>
#include <cstdint>

namespace libremoe {

// Of n bytes, continuing from `crc` (0 at first), like zlib's crc32().
uint32_t crc32(uint32_t crc, const uint8_t* data, size_t n);

// The same by a table: what the fast one is tested against, and its tail.
uint32_t crc32_by_table(uint32_t crc, const uint8_t* data, size_t n);

}  // namespace libremoe
