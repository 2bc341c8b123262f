// One unpack per format: row<r>(tile) gives row r (16 outputs x 4 inputs) of a tile as unsigned codes, which the body
// multiplies. The planes of libremoe/quant.py: byte row i of a b-bit plane holds in field f the codes of row i + f * 2 * b.
// Formats whose offset is a half give doubled codes, so that the offset is whole; kOffset is in those units.
// Included inside one instruction set's namespace by isa.h.

struct Int8 {
  static constexpr int kBytes = 1024, kOffset = 128;
  static constexpr bool kWide = true;
  template <int r> LIBREMOE_INLINE B64 row(const uint8_t* tile) { return load_bytes(tile + 64 * r); }
};

struct Int4 {
  static constexpr int kBytes = 512, kOffset = 8;
  static constexpr bool kWide = false;
  template <int r> LIBREMOE_INLINE B64 row(const uint8_t* tile) {
    return field<4 * (r / 8), 0x0F>(load_bytes(tile + 64 * (r % 8)));
  }
};

struct Int3 {  // two bits, then the third in a plane of its own
  static constexpr int kBytes = 384, kOffset = 7;
  static constexpr bool kWide = false;
  template <int r> LIBREMOE_INLINE B64 row(const uint8_t* tile) {
    return field<2 * (r / 4) - 1, 0x06>(load_bytes(tile + 64 * (r % 4))) |
           field<(r / 2) - 3, 0x08>(load_bytes(tile + 256 + 64 * (r % 2)));
  }
};

struct Int2 {
  static constexpr int kBytes = 256, kOffset = 3;
  static constexpr bool kWide = false;
  template <int r> LIBREMOE_INLINE B64 row(const uint8_t* tile) {
    return field<2 * (r / 4) - 1, 0x06>(load_bytes(tile + 64 * (r % 4)));
  }
};

struct Narrow : Int8 {  // unpacked codes of the formats below 8 bits
  static constexpr bool kWide = false;
};
