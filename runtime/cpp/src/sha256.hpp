// SHA-256 (FIPS 180-4), with the processor's instructions where it has them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace ditedge {

class Sha256 {
public:
    // portable: without the processor's instructions, for tests.
    explicit Sha256(bool portable = false);
    void update(const void* data, std::size_t bytes);
    std::string hexdigest();  // 64 lower-case digits; ends the hash

private:
    void (*const blocks_)(std::uint32_t* state, const unsigned char* data, std::size_t count);
    std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<unsigned char, 64> pending_{};
    std::size_t held_ = 0;
    std::uint64_t total_ = 0;
};

std::string sha256_of(const std::string& text);

}  // namespace ditedge
