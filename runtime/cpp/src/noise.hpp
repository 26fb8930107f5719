// Philox4x32-10 and Box-Muller, as runtime/loop/noise.py: computed in float64, rounded once to float32.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ditedge {

// numbers[i] is element i of the draw-th draw of the stream `seed`.
void standard_normal(std::uint64_t seed, std::uint64_t draw, float* numbers, std::size_t count);

}  // namespace ditedge
