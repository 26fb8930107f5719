#include "program.hpp"

#include <fcntl.h>

#include "files.hpp"
#include "json.hpp"

namespace ditedge {
namespace {

constexpr double kNoBound = 3.0e38;
constexpr std::size_t kMaxSlots = 64;

std::vector<double> numbers(const Field& list, std::size_t count) {
    std::vector<double> values;
    for (const Field& element : list.elements(count)) values.push_back(element.number());
    if (values.size() != count)
        list.fail("has a list of " + std::to_string(values.size()) + " numbers, expected " + std::to_string(count));
    return values;
}

void append(std::vector<double>& all, const std::vector<double>& more) { all.insert(all.end(), more.begin(), more.end()); }

}  // namespace

bool Program::draws_noise(std::int64_t step) const {
    for (std::int64_t row = 0; row < slots; ++row)
        if (mix[static_cast<std::size_t>(((step * slots + row) * (slots + 2)) + slots + 1)] != 0.0) return true;
    return false;
}

bool is_step_graph(const std::string& name) { return name == "step" || name.rfind("step-", 0) == 0; }

Program program_from_json(const std::string& text, const std::string& place) {
    const Json json = parse_json(text, place, DITEDGE_ERROR_PROGRAM);
    const Field root(json, place, DITEDGE_ERROR_PROGRAM);
    root.at("version").integer(2, 2);
    root.at("made").items(SIZE_MAX);  // for people: that it is an object is all that counts
    Program program;
    if (root.has("process") && !root.at("process").null()) program.process = read_process(root.at("process"));
    program.name = root.at("name").text();
    const std::vector<double> init = numbers(root.at("init"), 2);
    program.init = {init[0], init[1]};
    program.x0_bound = root.at("x0_bound").number();
    if (!(program.x0_bound > 0 && program.x0_bound <= kNoBound)) root.at("x0_bound").fail("is not in (0, 3e38]");

    const Field timestep = root.at("timestep");
    const std::size_t steps = timestep.elements(kMaxSteps).size();
    if (steps < 1) timestep.fail("expected 1 to 100000 numbers");
    program.timestep = numbers(timestep, steps);
    const auto rows = [&](const char* key) {
        const Field field = root.at(key);
        std::vector<Field> elements = field.elements(kMaxSteps);
        if (elements.size() != steps)
            field.fail("has " + std::to_string(elements.size()) + " rows, timestep has " + std::to_string(steps));
        return elements;
    };
    for (const Field& row : rows("x0_from")) append(program.x0_from, numbers(row, 2));
    for (const Field& row : rows("log_sigma")) append(program.log_sigma, numbers(row, 2));
    for (const Field& factor : rows("guidance")) {
        program.guidance.push_back(factor.number());
        if (program.guidance.back() < 0) factor.fail("is negative: 0 is no guidance");
    }
    if (root.has("interval") && !root.at("interval").null()) program.interval = numbers(root.at("interval"), steps);
    if (root.has("graph") && !root.at("graph").null())
        for (const Field& name : rows("graph")) {
            program.graph.push_back(name.text());
            if (!is_step_graph(program.graph.back())) name.fail("is not a step graph's name: 'step' or 'step-...'");
        }
    const std::vector<Field> matrices = rows("mix");
    const std::size_t slots = matrices[0].elements(kMaxSlots).size();
    if (slots < 1) matrices[0].fail("expected 1 to 64 slots");
    for (const Field& matrix : matrices) {
        const std::vector<Field> lines = matrix.elements(kMaxSlots);
        if (lines.size() != slots) matrix.fail("has matrices of different sizes");
        for (const Field& line : lines) append(program.mix, numbers(line, slots + 2));
    }
    program.steps = static_cast<std::int64_t>(steps);
    program.slots = static_cast<std::int64_t>(slots);
    return program;
}

Program read_program(const std::filesystem::path& path) {
    return program_from_json(read_text(AT_FDCWD, path, path.string(), kMaxProgramBytes, DITEDGE_ERROR_PROGRAM), path.string());
}

Program with_x0_slot(const Program& program) {
    Program wider = program;
    wider.slots = program.slots + 1;
    const auto old_slots = static_cast<std::size_t>(program.slots), slots = old_slots + 1;
    wider.mix.assign(static_cast<std::size_t>(program.steps) * slots * (slots + 2), 0.0);
    for (std::size_t step = 0; step < static_cast<std::size_t>(program.steps); ++step) {
        for (std::size_t row = 0; row < old_slots; ++row)
            for (std::size_t column = 0; column < old_slots + 2; ++column)
                wider.mix[(step * slots + row) * (slots + 2) + column + (column >= old_slots ? 1 : 0)] =
                    program.mix[(step * old_slots + row) * (old_slots + 2) + column];
        wider.mix[(step * slots + old_slots) * (slots + 2) + slots] = 1.0;
    }
    return wider;
}

}  // namespace ditedge
