#include "tables.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "error.hpp"

namespace ditedge {
namespace {

std::vector<float> floats(const std::vector<double>& table) {
    std::vector<float> rounded;
    rounded.reserve(table.size());
    for (const double number : table) rounded.push_back(static_cast<float>(number));
    return rounded;
}

// Row `step` of [N, ...].
std::vector<float> row(const std::vector<float>& table, std::int64_t step, std::int64_t steps) {
    const auto size = static_cast<std::ptrdiff_t>(table.size()) / static_cast<std::ptrdiff_t>(steps);
    const auto from = table.begin() + static_cast<std::ptrdiff_t>(step) * size;
    return {from, from + size};
}

// Tables [N, ...] of each image -> [N, B, ...]
std::vector<float> stacked(const std::vector<const ImageTables*>& images, std::vector<float> ImageTables::*table) {
    std::vector<float> all;
    for (std::int64_t step = 0; step < images[0]->steps; ++step)
        for (const ImageTables* image : images) {
            const std::vector<float> own = row(image->*table, step, image->steps);
            all.insert(all.end(), own.begin(), own.end());
        }
    return all;
}

Evaluations evaluations_of_step(const std::vector<const ImageTables*>& images, const std::vector<std::vector<std::int64_t>>& rows,
                                const std::map<std::string, std::int64_t>& row_of, std::size_t step) {
    const std::size_t batch = images.size(), channels = static_cast<std::size_t>(images[0]->out_channels);
    Evaluations some;
    for (std::size_t b = 0; b < batch; ++b) {
        some.sample.push_back(static_cast<std::int64_t>(b));
        some.condition.push_back(rows[b].front());
        if (!images[b]->prompts.empty()) some.prompt.push_back(row_of.at(images[b]->prompts.front()->key));
    }
    for (std::size_t b = 0; b < batch; ++b)
        if (images[b]->guided[step]) {
            some.sample.push_back(static_cast<std::int64_t>(b));
            some.condition.push_back(rows[b].back());
            if (!images[b]->prompts.empty()) some.prompt.push_back(row_of.at(images[b]->prompts.back()->key));
        }
    const std::size_t count = some.sample.size();
    some.combine.assign(batch * count * channels, 0.0f);
    for (std::size_t e = 0; e < count; ++e) {
        const auto b = static_cast<std::size_t>(some.sample[e]);
        const auto weights = images[b]->weights.begin() + static_cast<std::ptrdiff_t>((2 * step + (e >= batch)) * channels);
        std::copy_n(weights, channels, some.combine.begin() + static_cast<std::ptrdiff_t>((b * count + e) * channels));
    }
    return some;
}

// What a conditioner of classes is told at every step, beside the class.
Columns columns_of(const Program& program, const ModelInfo& model, const Subject& subject) {
    Columns columns = {{"timestep", program.timestep}};
    for (const auto& [name, value] : subject.told) columns.emplace_back(name, std::vector<double>(program.timestep.size(), value));
    if (!model.told_interval) return columns;
    if (program.interval.empty())
        fail_request("program '" + program.name + "' does not say how far its steps go ('interval'), which this model is told: make "
                     "one with sampler mean-flow");
    columns.emplace_back("interval", program.interval);
    return columns;
}

}  // namespace

ImageTables image_tables(const Program& program, const ModelInfo& model, const Subject& subject, double guidance) {
    const auto steps = static_cast<std::size_t>(program.steps), channels = static_cast<std::size_t>(model.out_channels);
    const std::size_t guided_channels = static_cast<std::size_t>(std::min(model.guided_channels, model.out_channels));
    ImageTables tables{program.steps, program.slots, model.out_channels, {}, {}, {}, {}, {}, {}, {}, {}, {}};
    // Classifier-free guidance (Ho & Salimans 2022) of strength g: weight g on the labelled evaluation and 1 - g on the
    // unlabelled one for the first guided_channels channels, 1 and 0 for every other channel. A step of factor f takes
    // 1 + f (g - 1) for g.
    tables.weights.assign(2 * steps * channels, 0.0f);
    bool any = false, finite = std::abs(guidance) <= kMaxGuidance;
    for (std::size_t step = 0; step < steps; ++step) {
        const double factor = program.guidance[step], more = factor * (guidance - 1);
        const double strength = factor == 1 ? guidance : 1 + more;
        const float with_label = static_cast<float>(strength), without_label = static_cast<float>(1 - strength);
        finite = finite && std::isfinite(with_label) && std::isfinite(without_label);
        const bool guides = factor != 0 && guidance != 1.0;
        tables.guided.push_back(guides);
        any = any || guides;
        for (std::size_t o = 0; o < channels; ++o) {
            const bool weighed = guides && o < guided_channels;
            tables.weights[2 * step * channels + o] = weighed ? with_label : 1.0f;
            tables.weights[(2 * step + 1) * channels + o] = weighed ? without_label : 0.0f;
        }
    }
    if (!finite) fail_request("guidance " + shown(guidance) + " is not a number up to 3e38");
    if (any && (subject.prompt ? !subject.negative : subject.away_from < 0 && !model.null_class))
        fail_request("guidance needs a null class, and this model was trained without label dropout: use 1, or "
                     "give a class to guide away from");
    if (subject.prompt) {
        tables.prompts = {subject.prompt};
        if (any) tables.prompts.push_back(subject.negative);
        tables.conditions = prompt_conditions(program.timestep, subject.told, subject.vectors ? static_cast<std::int64_t>(tables.prompts.size()) : 0);
    } else {
        std::vector<std::int64_t> labels = {subject.label};
        if (any) labels.push_back(subject.away_from >= 0 ? subject.away_from : *model.null_class);
        tables.conditions = class_conditions(columns_of(program, model, subject), labels);
    }
    for (std::int64_t step = 0; step < program.steps; ++step) tables.draws.push_back(program.draws_noise(step));
    tables.x0_from = floats(program.x0_from);
    tables.x0_bound.assign(steps, static_cast<float>(program.x0_bound));
    tables.log_sigma = floats(program.log_sigma);
    tables.mix = floats(program.mix);
    return tables;
}

ImageTables ImageTables::at(std::int64_t step) const {
    const auto index = static_cast<std::size_t>(step);
    return {1, slots, out_channels, conditions.of_steps(step, 1), {guided[index]}, {draws[index]}, row(weights, step, steps),
            row(x0_from, step, steps), row(x0_bound, step, steps), row(log_sigma, step, steps), row(mix, step, steps), prompts};
}

StepTables gather(const std::vector<const ImageTables*>& images) {
    StepTables tables;
    tables.steps = images[0]->steps, tables.batch = static_cast<std::int64_t>(images.size());
    tables.slots = images[0]->slots, tables.out_channels = images[0]->out_channels;
    std::map<std::string, std::int64_t> row_of;  // of prompts, by their keys
    for (const ImageTables* image : images)
        for (const PromptPointer& prompt : image->prompts)
            if (row_of.try_emplace(prompt->key, static_cast<std::int64_t>(tables.prompts.size())).second) tables.prompts.push_back(prompt);
    std::vector<Conditions> mapped;
    std::vector<const Conditions*> conditions;
    for (const ImageTables* image : images) {
        std::vector<std::int64_t> places;
        for (const PromptPointer& prompt : image->prompts) places.push_back(row_of.at(prompt->key));
        mapped.push_back(with_rows(image->conditions, places));
    }
    for (const Conditions& own : mapped) conditions.push_back(&own);
    std::tie(tables.conditions, tables.rows_of) = shared_conditions(conditions);
    std::map<std::vector<float>, std::size_t> known;  // weights of all images at a step, which say who is guided, too
    for (std::size_t step = 0; step < static_cast<std::size_t>(tables.steps); ++step) {
        std::vector<float> key;
        bool draws = false;
        for (const ImageTables* image : images) {
            const std::vector<float> weights = row(image->weights, static_cast<std::int64_t>(step), image->steps);
            key.insert(key.end(), weights.begin(), weights.end());
            key.push_back(image->guided[step] ? 1.0f : 0.0f);
            draws = draws || image->draws[step];
        }
        const auto [found, fresh] = known.try_emplace(key, tables.evaluations.size());
        if (fresh) tables.evaluations.push_back(evaluations_of_step(images, tables.rows_of, row_of, step));
        tables.evaluations_of.push_back(found->second);
        tables.draws.push_back(draws);
    }
    tables.x0_from = stacked(images, &ImageTables::x0_from);
    tables.x0_bound = stacked(images, &ImageTables::x0_bound);
    tables.log_sigma = stacked(images, &ImageTables::log_sigma);
    tables.mix = stacked(images, &ImageTables::mix);
    return tables;
}

StepTables step_tables(const Program& program, const ModelInfo& model, const std::vector<Subject>& subjects, double guidance) {
    std::vector<ImageTables> images;
    for (const Subject& subject : subjects) images.push_back(image_tables(program, model, subject, guidance));
    std::vector<const ImageTables*> pointers;
    for (const ImageTables& image : images) pointers.push_back(&image);
    return gather(pointers);
}

std::vector<Tensor> StepTables::inputs(std::int64_t step) const {
    std::vector<Tensor> all = evaluation_inputs(step);
    const std::vector<Tensor> others = row_inputs(step);
    all.insert(all.end(), others.begin(), others.end());
    return all;
}

std::vector<Tensor> StepTables::evaluation_inputs(std::int64_t step) const {
    const Evaluations& some = evaluations[evaluations_of[static_cast<std::size_t>(step)]];
    const std::int64_t count = evaluation_count(step);
    std::vector<Tensor> bound = {view("sample", some.sample.data(), {count}),
            view("condition", some.condition.data(), {count}),
            view("combine", some.combine.data(), {batch, count, out_channels})};
    if (!some.prompt.empty()) bound.push_back(view("prompt", some.prompt.data(), {count}));
    return bound;
}

std::vector<Tensor> StepTables::row_inputs(std::int64_t step) const {
    return {view("x0_from", x0_from.data() + step * batch * 2, {batch, 2}),
            view("x0_bound", x0_bound.data() + step * batch, {batch}),
            view("log_sigma", log_sigma.data() + step * batch * 2, {batch, 2}),
            view("mix", mix.data() + step * batch * slots * (slots + 2), {batch, slots, slots + 2})};
}

std::int64_t StepTables::evaluation_count(std::int64_t step) const {
    return static_cast<std::int64_t>(evaluations[evaluations_of[static_cast<std::size_t>(step)]].sample.size());
}

}  // namespace ditedge
