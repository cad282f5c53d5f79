// core_diffusion/philox.hpp - Philox-4x32-10 (Salmon et al., SC'11), the counter-based generator of this package.
#pragma once
#include <array>
#include <cstdint>

namespace core_diffusion {

/// The 128-bit block at `counter` under the 64-bit `key`.
constexpr std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53} * counter[0], b = std::uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
               static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

/// The uniform number in [0, 1), a multiple of 2^-53, that belongs to element `i` of row `b` under `seed`.
/// Key = the seed's low and high word; counter = (i low, i high, b low, b high); the number is made of
/// the block's first word (low) and second word (high).
constexpr double uniform(std::int64_t seed, std::int64_t b, std::int64_t i) {
  const auto low = [](std::int64_t v) { return static_cast<std::uint32_t>(static_cast<std::uint64_t>(v)); };
  const auto high = [](std::int64_t v) { return static_cast<std::uint32_t>(static_cast<std::uint64_t>(v) >> 32); };
  const auto block = philox({low(i), high(i), low(b), high(b)}, {low(seed), high(seed)});
  return static_cast<double>((std::uint64_t{block[1]} << 32 | block[0]) >> 11) * 0x1p-53;
}

}  // namespace core_diffusion
