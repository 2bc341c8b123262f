// The machine's own limits, measured with the same instructions as the kernels: bench/kernels.py. Included by isa.h.

// Multiply-adds of int8 done by dot() with all operands in registers.
static double peak(int64_t iterations) {
  I16 sum[8];
  for (int i = 0; i < 8; i++) sum[i] = set1_i(i);
  uint8_t bytes[64];
  for (int i = 0; i < 64; i++) bytes[i] = uint8_t(iterations + i);
  B64 codes = load_bytes(bytes);
  int32_t a = int32_t(iterations);
  for (int64_t n = 0; n < iterations; n++) {
#if defined(LIBREMOE_AVX512)
    asm volatile("" : "+r"(a));
#endif
    for (int i = 0; i < 8; i++) {
#if defined(LIBREMOE_AVX2)  // products come before the sum here: equal ones would be computed once
      asm volatile("" : "+x"(codes.a), "+x"(codes.b));
#endif
      sum[i] = dot<false>(sum[i], codes, a);
    }
  }
  float out[16], total = 0;
  for (int i = 0; i < 8; i++) {
    store(out, to_float(sum[i]));
    total += out[i];
  }
  volatile float sink = total;
  (void)sink;
  return double(iterations) * 8 * 64;
}

// Reads everything once, as four streams a quarter of the data apart, like the four tile rows of product.h.
static uint64_t read(const uint8_t* data, int64_t bytes) {
  const int64_t quarter = bytes / 256 * 64;
  B64 any = load_bytes(data);
  for (int64_t i = 0; i < quarter; i += 64)
    for (int s = 0; s < 4; s++) any = any | load_bytes(data + s * quarter + i);
  uint64_t words[8], total = 0;
  store_bytes(reinterpret_cast<uint8_t*>(words), any);
  for (uint64_t word : words) total ^= word;
  return total;
}
