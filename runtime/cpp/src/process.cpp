#include "process.hpp"

#include <algorithm>
#include <cmath>

#include "json.hpp"

namespace ditedge {
namespace {

// Relative, of a beta: float32's roundings of one in cumulative products are below it, another schedule is above
// (LOG_SNR_TOLERANCE in runtime/samplers/process.py; the noise level of the first timestep is its beta).
constexpr double kTolerance = 1e-3;

bool near(double a, double b) { return std::abs(a - b) <= kTolerance * std::max(std::abs(a), std::abs(b)); }

bool same_schedule(const std::optional<ScheduleInfo>& a, const std::optional<ScheduleInfo>& b) {
    if (!a || !b) return !a && !b;
    if (a->steps != b->steps) return false;
    const bool comparable = (a->kind == "given") == (b->kind == "given");
    if (!comparable) return true;  // alphas are what Python compares: this runtime makes none
    return a->kind == b->kind && a->zero_terminal_snr == b->zero_terminal_snr &&
           std::equal(a->betas.begin(), a->betas.end(), b->betas.begin(), b->betas.end(), near);
}

std::string words(const std::array<double, 2>& range) { return shown(range[0]) + " (noise) to " + shown(range[1]) + " (data)"; }

std::string words(const Process& process) {
    const std::optional<ScheduleInfo>& schedule = process.schedule;
    if (!schedule) return process.prediction == "edm" ? "EDM's sigmas" : "a flow, which has no betas";
    const std::vector<double>& betas = schedule->betas;
    const std::string ends = betas.empty() ? "" : " from " + shown(betas.front()) + " to " + shown(betas.back());
    return schedule->kind + " betas" + ends + " over " + std::to_string(schedule->steps) + " timesteps" +
           (schedule->zero_terminal_snr ? ", rescaled to zero terminal SNR" : "");
}

}  // namespace

std::optional<ScheduleInfo> read_schedule(const Field& field) {
    if (field.null()) return std::nullopt;
    ScheduleInfo schedule;
    schedule.kind = field.at("kind").one_of({"linear", "scaled_linear", "cosine", "given"});
    schedule.steps = field.at("steps").integer(1, kMaxSteps);
    for (const char* end : {"beta_start", "beta_end"}) {
        const bool given = field.has(end) && !field.at(end).null();
        if (given) schedule.betas.push_back(field.at(end).number_between(0, 1));
        if (given != (schedule.kind == "linear" || schedule.kind == "scaled_linear")) field.fail(std::string(end) + " belongs to linear betas, and only to them");
    }
    const bool listed = field.has("betas") && !field.at("betas").null();
    if (listed != (schedule.kind == "given")) field.fail("betas are listed for kind 'given', and only for it");
    if (listed) {
        for (const Field& beta : field.at("betas").elements(kMaxSteps)) schedule.betas.push_back(beta.number_between(0, 1));
        if (static_cast<std::int64_t>(schedule.betas.size()) != schedule.steps) field.fail("expected as many betas as steps");
    }
    if (field.has("zero_terminal_snr")) schedule.zero_terminal_snr = field.at("zero_terminal_snr").boolean();
    return schedule;
}

std::array<double, 2> read_timestep_range(const Field& field) {
    const std::vector<Field> ends = field.elements(2);
    if (ends.size() != 2) field.fail("expected two numbers");
    return {ends[0].number(), ends[1].number()};
}

Process read_process(const Field& field) {
    Process process;
    process.prediction = field.at("prediction").one_of({"epsilon", "x0", "v", "flow", "flow-to-data", "mean-flow", "edm"});
    process.timestep_range = read_timestep_range(field.at("timestep_range"));
    process.schedule = read_schedule(field.at("schedule"));
    return process;
}

void check_process(const std::string& name, const Process& made_for, const Process& model) {
    std::string theirs, ours;
    const auto differ = [&](const std::string& before, const std::string& their, const std::string& our) {
        theirs += (theirs.empty() ? "" : " and ") + before + their;
        ours += (ours.empty() ? "" : " and ") + before + our;
    };
    if (made_for.prediction != model.prediction) differ("a prediction of ", made_for.prediction, model.prediction);
    const double most = std::max(std::abs(model.timestep_range[0]), std::abs(model.timestep_range[1]));
    const auto close = [&](double a, double b) { return std::abs(a - b) <= 1e-6 * most; };
    if (!std::equal(made_for.timestep_range.begin(), made_for.timestep_range.end(), model.timestep_range.begin(), close))
        differ("timesteps from ", words(made_for.timestep_range), words(model.timestep_range));
    if (!same_schedule(made_for.schedule, model.schedule)) differ("", words(made_for), words(model));
    if (!theirs.empty())
        fail_request("program '" + name + "' was made for " + theirs + "; this model has " + ours +
                     ": make one for this model, or insist with other_process");
}

}  // namespace ditedge
