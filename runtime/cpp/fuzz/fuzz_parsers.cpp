// libFuzzer: a manifest (first byte even) or a program (odd) of arbitrary bytes is read or refused, never more.
#include <cstddef>
#include <cstdint>
#include <string>

#include "bundle.hpp"
#include "error.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) return 0;
    const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
    try {
        if (data[0] % 2 == 0) {
            ditedge::manifest_from_json(text, "manifest.json");
        } else {
            const ditedge::Program program = ditedge::program_from_json(text, "program.json");
            ditedge::with_x0_slot(program).draws_noise(program.steps - 1);
        }
    } catch (const ditedge::Error&) {
    }
    return 0;
}
