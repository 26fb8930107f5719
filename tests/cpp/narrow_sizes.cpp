// narrow_sizes BUNDLE LONG_PROGRAM WIDE_PROGRAM: what the C interface refuses where size_t has 32 bits and products of sizes wrap to small
// numbers. The engine is a double that writes nothing: reaching it is the fault. BUNDLE makes images of 256 x 256 x 3.
#include "capi.cpp"

#include <cstdio>

namespace {

bool reached = false;

struct Unreached final : ditedge::Loop {
    using Loop::Loop;
    void sample(const ditedge::Run&, float*) override { reached = true; }
    void decode_some(const std::string&, const float*, std::int64_t, const ditedge::Size&, std::uint8_t*) override { reached = true; }
};

int told(const char* call, ditedge_status status, ditedge_status expected) {
    const bool right = status == expected && !reached;
    std::printf("%s %s: %d %s\n", right ? "right" : "WRONG", call, status, ditedge_last_error());
    return right ? 0 : 1;
}

}  // namespace

namespace ditedge {
std::unique_ptr<Loop> open_loop(std::shared_ptr<const Bundle> bundle, const EngineOptions&) {
    return std::make_unique<Unreached>(std::move(bundle));
}
std::unique_ptr<Loop> open_host_loop(std::shared_ptr<const Bundle>, const EngineOptions&) { return nullptr; }
std::unique_ptr<Loop> open_device_loop(std::shared_ptr<const Bundle>, const EngineOptions&) { return nullptr; }
std::unique_ptr<Engine> open_ort_engine(const GraphBytes&, const GraphInfo&, const EngineOptions&, bool) { return nullptr; }
}  // namespace ditedge

int main(int argc, char** argv) {
    static_assert(sizeof(std::size_t) == 4, "compile this for a 32-bit processor");
    ditedge_bundle* bundle = nullptr;
    ditedge_session* session = nullptr;
    if (argc != 4 || ditedge_bundle_open(argv[1], 0, &bundle) || ditedge_session_open(bundle, nullptr, &session))
        return std::puts(ditedge_last_error()), 1;
    const std::int64_t count = 65536;  // times 196,608 bytes are 3 * 2^32
    const std::vector<std::int64_t> labels(static_cast<std::size_t>(count), 1);
    const std::vector<std::uint64_t> seeds(labels.size(), 1);
    ditedge_params params;
    ditedge_params_init(&params, sizeof params);
    params.count = count, params.labels = labels.data(), params.seeds = seeds.data(), params.batch = 1;
    std::uint8_t image = 0;
    float latent = 0;
    int wrong = told("images", ditedge_generate_images(session, &params, &image, 0), DITEDGE_ERROR_ARGUMENT);
    wrong += told("decode", ditedge_decode(session, &latent, count, &image, 0), DITEDGE_ERROR_ARGUMENT);
    // 2^20 latents of 2^12 bytes are 2^32.
    params.count = 1 << 20;
    const std::vector<std::int64_t> more(std::size_t{1} << 20, 1);
    params.labels = more.data(), params.seeds = nullptr, params.initial_noise = &latent, params.step_noise = &latent;
    wrong += told("latents", ditedge_generate_latents(session, &params, &latent, 0), DITEDGE_ERROR_ARGUMENT);
    // 1,024 steps of 1,024 latents, too.
    std::vector<float> some(std::size_t{1} << 20);
    params.count = 1024, params.program_file = argv[2], params.step_noise_bytes = 0;
    wrong += told("noise", ditedge_generate_latents(session, &params, some.data(), some.size() * sizeof(float)), DITEDGE_ERROR_ARGUMENT);
    // A batch whose states are more than the address space.
    params.initial_noise = params.step_noise = nullptr, params.seeds = seeds.data();
    params.count = 4096, params.batch = 4096;
    params.program_file = argv[3];  // 64 slots, 100 steps: tables of 7 GB
    std::vector<float> batch(std::size_t{1} << 22);
    wrong += told("batch", ditedge_generate_latents(session, &params, batch.data(), batch.size() * sizeof(float)), DITEDGE_ERROR_MEMORY);
    return wrong != 0;
}
