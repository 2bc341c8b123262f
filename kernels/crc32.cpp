// Carry-less multiplication folds 64 bytes at a time: Gopal et al., "Fast CRC Computation for Generic Polynomials Using
// PCLMULQDQ Instruction", Intel 2009, with its constants for this polynomial, bit-reflected.
#include "crc32.h"

#include <array>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace libremoe {

namespace {

constexpr std::array<uint32_t, 256> make_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; bit++) value = value & 1 ? value >> 1 ^ 0xEDB88320u : value >> 1;
    table[i] = value;
  }
  return table;
}

constexpr std::array<uint32_t, 256> kTable = make_table();

#if defined(__x86_64__)

// x^(512 + 32), x^(512 - 32); x^(128 + 32), x^(128 - 32); x^64; the polynomial and its inverse; each modulo the polynomial.
alignas(16) constexpr uint64_t kFold512[] = {0x0154442bd4, 0x01c6e41596}, kFold128[] = {0x01751997d0, 0x00ccaa009e};
alignas(16) constexpr uint64_t kFold64[] = {0x0163cd6124, 0}, kBarrett[] = {0x01db710641, 0x01f7011641};

__attribute__((target("pclmul,sse4.1"))) inline __m128i fold(__m128i sum, __m128i next, __m128i by) {
  return _mm_xor_si128(next, _mm_xor_si128(_mm_clmulepi64_si128(sum, by, 0x00), _mm_clmulepi64_si128(sum, by, 0x11)));
}

// n is a multiple of 16 and at least 64; state is the complement of a crc.
__attribute__((target("pclmul,sse4.1"))) uint32_t folded(uint32_t state, const uint8_t* data, size_t n) {
  const auto at = [&](size_t i) __attribute__((target("pclmul,sse4.1"))) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(data + i));
  };
  const auto constant = [](const uint64_t* p) __attribute__((target("pclmul,sse4.1"))) {
    return _mm_load_si128(reinterpret_cast<const __m128i*>(p));
  };
  __m128i a = _mm_xor_si128(at(0), _mm_cvtsi32_si128(int(state))), b = at(16), c = at(32), d = at(48);
  size_t i = 64;
  for (const __m128i by = constant(kFold512); i + 64 <= n; i += 64) {
    a = fold(a, at(i), by), b = fold(b, at(i + 16), by);
    c = fold(c, at(i + 32), by), d = fold(d, at(i + 48), by);
  }
  const __m128i by = constant(kFold128), low = _mm_setr_epi32(-1, 0, -1, 0);
  a = fold(fold(fold(a, b, by), c, by), d, by);
  for (; i < n; i += 16) a = fold(a, at(i), by);
  a = _mm_xor_si128(_mm_srli_si128(a, 8), _mm_clmulepi64_si128(a, by, 0x10));  // 128 bits to 96
  a = _mm_xor_si128(_mm_srli_si128(a, 4), _mm_clmulepi64_si128(_mm_and_si128(a, low), constant(kFold64), 0x00));
  const __m128i barrett = constant(kBarrett);
  __m128i quotient = _mm_clmulepi64_si128(_mm_and_si128(a, low), barrett, 0x10);
  quotient = _mm_clmulepi64_si128(_mm_and_si128(quotient, low), barrett, 0x00);
  return uint32_t(_mm_extract_epi32(_mm_xor_si128(a, quotient), 1));
}

#endif

}  // namespace

uint32_t crc32_by_table(uint32_t crc, const uint8_t* data, size_t n) {
  uint32_t state = ~crc;
  for (size_t i = 0; i < n; i++) state = state >> 8 ^ kTable[(state ^ data[i]) & 0xFF];
  return ~state;
}

uint32_t crc32(uint32_t crc, const uint8_t* data, size_t n) {
#if defined(__x86_64__)
  static const bool multiplies = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
  if (multiplies && n >= 64) {
    const size_t whole = n / 16 * 16;
    crc = ~folded(~crc, data, whole);
    data += whole, n -= whole;
  }
#endif
  return crc32_by_table(crc, data, n);
}

}  // namespace libremoe
