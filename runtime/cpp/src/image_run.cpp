#include "image_run.hpp"

#include "noise.hpp"

namespace ditedge {

ImageRun::ImageRun(std::shared_ptr<const Bundle> opened, Program chosen, ImageTables made, const Size& of_latent, std::uint64_t drawn_by,
                   const float* given)
    : bundle(std::move(opened)), program(std::move(chosen)), tables(std::move(made)), latent(of_latent), seed(drawn_by) {
    const std::size_t count = bundle->latent_count(latent);
    state.resize(static_cast<std::size_t>(program.slots) * count);
    const auto noise = [&](std::int64_t draw, float* numbers) {
        standard_normal(seed, static_cast<std::uint64_t>(draw), numbers, count);
    };
    first_state(program, noise, given, 1, count, state.data());
}

const float* ImageRun::modulation_rows() const {
    const std::size_t size = modulation.size() / static_cast<std::size_t>(modulation_steps);
    return modulation.data() + static_cast<std::size_t>(step - modulation_from) * size;
}

}  // namespace ditedge
