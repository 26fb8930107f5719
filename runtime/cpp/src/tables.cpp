#include "tables.hpp"

#include <algorithm>
#include <cmath>
#include <set>

#include "error.hpp"

namespace ditedge {
namespace {

// [N, row] float64 -> [N, B, row] float32
std::vector<float> per_sample(const std::vector<double>& table, std::int64_t steps, std::int64_t batch) {
    const std::size_t row = table.size() / static_cast<std::size_t>(steps);
    std::vector<float> repeated;
    repeated.reserve(table.size() * static_cast<std::size_t>(batch));
    for (std::size_t step = 0; step < static_cast<std::size_t>(steps); ++step)
        for (std::int64_t b = 0; b < batch; ++b)
            for (std::size_t i = 0; i < row; ++i) repeated.push_back(static_cast<float>(table[step * row + i]));
    return repeated;
}

}  // namespace

StepTables step_tables(const Program& program, const ModelInfo& model, const std::vector<std::int64_t>& labels,
                       double guidance, const std::vector<std::int64_t>& away_from) {
    if (!std::isfinite(static_cast<float>(guidance)) || !std::isfinite(static_cast<float>(1 - guidance)))
        fail_request("guidance " + shown(guidance) + " is not a finite number in float32");
    const std::size_t batch = labels.size();
    StepTables tables{program.steps, static_cast<std::int64_t>(batch), program.slots, model.out_channels,
                      {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}};
    bool any = false;
    for (const bool guided : program.guided) {
        tables.guided.push_back(guided && guidance != 1.0);
        any = any || tables.guided.back();
    }
    for (std::int64_t step = 0; step < program.steps; ++step) tables.draws.push_back(program.draws_noise(step));
    std::vector<std::int64_t> baselines(batch);
    for (std::size_t b = 0; any && b < batch; ++b) {
        const bool given = !away_from.empty() && away_from[b] >= 0;
        if (!given && !model.null_class)
            fail_request("guidance needs a null class, and this model was trained without label dropout: use 1, or "
                         "give a class to guide away from");
        baselines[b] = given ? away_from[b] : *model.null_class;
    }
    std::set<std::int64_t> distinct(labels.begin(), labels.end());
    if (any) distinct.insert(baselines.begin(), baselines.end());
    tables.labels.assign(distinct.begin(), distinct.end());
    const auto row = [&](std::int64_t label) {
        return std::lower_bound(tables.labels.begin(), tables.labels.end(), label) - tables.labels.begin();
    };
    for (std::size_t b = 0; b < 2 * batch; ++b) {
        tables.sample.push_back(static_cast<std::int64_t>(b % batch));
        tables.condition.push_back(b < batch ? row(labels[b]) : any ? row(baselines[b - batch]) : 0);
    }
    // Classifier-free guidance (Ho & Salimans 2022): weight g on the labelled evaluation and 1 - g on the unlabelled one
    // for the first guided_channels channels, 1 and 0 for every other channel.
    const auto channels = static_cast<std::size_t>(model.out_channels);
    const auto guided_channels = static_cast<std::size_t>(std::min(model.guided_channels, model.out_channels));
    tables.combine_plain.assign(batch * batch * channels, 0.0f);
    tables.combine_guided.assign(2 * batch * batch * channels, 0.0f);
    for (std::size_t b = 0; b < batch; ++b)
        for (std::size_t o = 0; o < channels; ++o) {
            const bool guides = o < guided_channels;
            tables.combine_plain[(b * batch + b) * channels + o] = 1.0f;
            tables.combine_guided[(b * 2 * batch + b) * channels + o] = guides ? static_cast<float>(guidance) : 1.0f;
            tables.combine_guided[(b * 2 * batch + batch + b) * channels + o] =
                guides ? static_cast<float>(1 - guidance) : 0.0f;
        }
    for (const double time : program.timestep) tables.timestep.push_back(static_cast<float>(time));
    tables.x0_from = per_sample(program.x0_from, program.steps, tables.batch);
    tables.log_sigma = per_sample(program.log_sigma, program.steps, tables.batch);
    tables.mix = per_sample(program.mix, program.steps, tables.batch);
    tables.x0_bound.assign(batch, static_cast<float>(program.x0_bound));
    return tables;
}

std::vector<Tensor> StepTables::inputs(std::int64_t step) const {
    const bool guides = guided[static_cast<std::size_t>(step)];
    const std::int64_t evaluations = guides ? 2 * batch : batch;
    return {view("sample", sample.data(), {evaluations}),
            view("condition", condition.data(), {evaluations}),
            view("combine", (guides ? combine_guided : combine_plain).data(), {batch, evaluations, out_channels}),
            view("x0_from", x0_from.data() + step * batch * 2, {batch, 2}),
            view("x0_bound", x0_bound.data(), {batch}),
            view("log_sigma", log_sigma.data() + step * batch * 2, {batch, 2}),
            view("mix", mix.data() + step * batch * slots * (slots + 2), {batch, slots, slots + 2})};
}

std::pair<std::vector<float>, std::vector<std::int64_t>> StepTables::conditions(std::int64_t first, std::int64_t count) const {
    std::pair<std::vector<float>, std::vector<std::int64_t>> rows;
    for (std::int64_t step = first; step < first + count; ++step) {
        rows.first.insert(rows.first.end(), labels.size(), timestep[static_cast<std::size_t>(std::min(step, steps - 1))]);
        rows.second.insert(rows.second.end(), labels.begin(), labels.end());
    }
    return rows;
}

}  // namespace ditedge
