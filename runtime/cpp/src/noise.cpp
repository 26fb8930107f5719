#include "noise.hpp"

#include <array>
#include <cmath>

namespace ditedge {
namespace {

using Words = std::array<std::uint32_t, 4>;

// Salmon et al., SC11, "Parallel random numbers: as easy as 1, 2, 3".
Words philox4x32_10(Words c, std::uint32_t k0, std::uint32_t k1) {
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t p0 = std::uint64_t{0xD2511F53} * c[0], p1 = std::uint64_t{0xCD9E8D57} * c[2];
        c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<std::uint32_t>(p1),
             static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<std::uint32_t>(p0)};
        k0 += 0x9E3779B9, k1 += 0xBB67AE85;
    }
    return c;
}

}  // namespace

void standard_normal(std::uint64_t seed, std::uint64_t draw, float* numbers, std::size_t count) {
    constexpr double kPi = 3.14159265358979323846, kTwoToMinus32 = 0x1p-32;
    const auto low = [](std::uint64_t x) { return static_cast<std::uint32_t>(x); };
    for (std::uint64_t i = 0; i < count; ++i) {
        const Words words = philox4x32_10({low(draw), low(draw >> 32), low(i), low(i >> 32)}, low(seed), low(seed >> 32));
        const double u = (words[0] + 0.5) * kTwoToMinus32;
        const double v = (words[1] + 0.5) * (kTwoToMinus32 * 2.0 * kPi);
        numbers[i] = static_cast<float>(std::sqrt(-2.0 * std::log(u)) * std::sin(v));
    }
}

}  // namespace ditedge
