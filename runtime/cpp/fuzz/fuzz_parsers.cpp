// libFuzzer: a manifest, a program, a build record, a graph, a signature, a key or a recorded prompt (by the first byte) of
// arbitrary bytes is read or refused, never more.
#include <cstddef>
#include <cstdint>
#include <string>

#include "build_record.hpp"
#include "bundle.hpp"
#include "error.hpp"
#include "manifest.hpp"
#include "onnx_graph.hpp"
#include "prompts.hpp"
#include "signatures.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) return 0;
    const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
    try {
        if (data[0] % 7 == 0) {
            ditedge::manifest_from_json(text, "manifest.json");
        } else if (data[0] % 7 == 1) {
            const ditedge::BuildRecord record = ditedge::build_record_from_json(text, "build.json");
            if (record.plans.count("step") != 0) record.check_shape("step", 0, "state", {1, 1, 1, 8, 8});
        } else if (data[0] % 7 == 3) {
            ditedge::read_onnx(text, 4, "step.onnx");
        } else if (data[0] % 7 == 4) {
            ditedge::signature_from_json(text, "manifest.json.sig");
        } else if (data[0] % 7 == 5) {
            ditedge::public_key_from_pem(text, "key.pem");
        } else if (data[0] % 7 == 6) {
            ditedge::TextInfo info;
            info.encoders.push_back({"", 120, 16, std::nullopt, 0, true});
            ditedge::recorded_prompt(text, info, "prompt.safetensors");
        } else {
            const ditedge::Program program = ditedge::program_from_json(text, "program.json");
            ditedge::with_x0_slot(program).draws_noise(program.steps - 1);
        }
    } catch (const ditedge::Error&) {
    }
    return 0;
}
