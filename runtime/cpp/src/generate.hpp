// Cuts a request into batches and samples them (runtime/loop/generate.py); images that are not finite (runtime/loop/finite.py).
#pragma once

#include <functional>
#include <vector>

#include "capi.hpp"

namespace ditedge {

bool finite(const float* numbers, std::size_t count);

// Images of given latents with an infinite number or NaN become zeros. Throws Error (not finite) if there are any.
void blacken_not_finite(const Bundle& bundle, const float* latents, std::int64_t count, const Size& of_latent, std::uint8_t* images);

// Gets a batch's latents, by the index of its first image: zeros for one that is not `good`.
using Write = std::function<void(std::size_t first, const std::vector<bool>& good, const float* latents)>;

// One batch after another of a request that was checked (check_request). size_of_latent: H and W. Throws Error (not finite) when
// all are written.
void generate(ditedge_session& session, const ditedge_params& params, const Size& size_of_latent, const Write& write);

}  // namespace ditedge
