#include "conditions.hpp"

#include <algorithm>
#include <map>

namespace ditedge {
namespace {

using Record = std::vector<std::variant<std::vector<float>, std::vector<std::int64_t>>>;  // of each condition [N]

Record record_of(const Conditions& conditions, std::int64_t row) {
    Record record;
    for (const Condition& condition : conditions.values)
        std::visit(
            [&](const auto& values) {
                std::decay_t<decltype(values)> column;
                for (std::int64_t step = 0; step < conditions.steps; ++step)
                    column.push_back(values[static_cast<std::size_t>(step * conditions.rows + row)]);
                record.emplace_back(std::move(column));
            },
            condition.values);
    return record;
}

}  // namespace

Conditions Conditions::of_steps(std::int64_t first, std::int64_t count) const {
    Conditions some{count, rows, {}};
    for (const Condition& condition : values)
        std::visit(
            [&](const auto& all) {
                std::decay_t<decltype(all)> chosen;
                for (std::int64_t step = first; step < first + count; ++step) {
                    const auto from = all.begin() + static_cast<std::ptrdiff_t>(std::min(step, steps - 1) * rows);
                    chosen.insert(chosen.end(), from, from + static_cast<std::ptrdiff_t>(rows));
                }
                some.values.push_back({condition.name, std::move(chosen)});
            },
            condition.values);
    return some;
}

std::vector<Tensor> Conditions::inputs() const {
    std::vector<Tensor> inputs;
    for (const Condition& condition : values)
        std::visit([&](const auto& all) { inputs.push_back(view(condition.name, all.data(), {steps * rows})); }, condition.values);
    return inputs;
}

std::vector<Tensor> conditioner_inputs(const Conditions& conditions, const std::vector<float>& vectors) {
    std::vector<Tensor> inputs = conditions.inputs();
    const std::int64_t rows = conditions.steps * conditions.rows;
    if (!vectors.empty()) inputs.push_back(view("vector", vectors.data(), {rows, static_cast<std::int64_t>(vectors.size()) / rows}));
    return inputs;
}

Conditions class_conditions(const Columns& columns, const std::vector<std::int64_t>& labels) {
    Conditions conditions{static_cast<std::int64_t>(columns.front().second.size()), static_cast<std::int64_t>(labels.size()), {}};
    for (const auto& [name, column] : columns) {
        std::vector<float> values;
        for (const double value : column) values.insert(values.end(), labels.size(), static_cast<float>(value));
        conditions.values.push_back({name, std::move(values)});
    }
    std::vector<std::int64_t> classes;
    for (std::int64_t step = 0; step < conditions.steps; ++step) classes.insert(classes.end(), labels.begin(), labels.end());
    conditions.values.push_back({"label", std::move(classes)});
    return conditions;
}

Conditions prompt_conditions(const std::vector<double>& timesteps, const Scalars& scalars, std::int64_t prompts) {
    const std::int64_t rows = std::max<std::int64_t>(prompts, 1), steps = static_cast<std::int64_t>(timesteps.size());
    std::vector<float> times;
    std::vector<std::int64_t> own;
    for (const double timestep : timesteps)
        for (std::int64_t row = 0; row < rows; ++row) times.push_back(static_cast<float>(timestep)), own.push_back(row);
    Conditions conditions{steps, rows, {{"timestep", std::move(times)}}};
    for (const auto& [name, value] : scalars) conditions.values.push_back({name, std::vector<float>(own.size(), value)});
    if (prompts > 0) conditions.values.push_back({kPromptRow, std::move(own)});
    return conditions;
}

Conditions with_rows(const Conditions& conditions, const std::vector<std::int64_t>& rows) {
    Conditions mapped = conditions;
    for (Condition& condition : mapped.values)
        if (std::string_view(condition.name) == kPromptRow)
            for (std::int64_t& row : std::get<std::vector<std::int64_t>>(condition.values)) row = rows[static_cast<std::size_t>(row)];
    return mapped;
}

void append_vectors(const Conditions& conditions, const float* vectors, std::int64_t width, std::vector<float>& rows) {
    for (const Condition& condition : conditions.values)
        if (std::string_view(condition.name) == kPromptRow)
            for (const std::int64_t row : std::get<std::vector<std::int64_t>>(condition.values))
                rows.insert(rows.end(), vectors + row * width, vectors + (row + 1) * width);
}

Conditions joined(const std::vector<Conditions>& parts) {
    Conditions all{1, 0, parts[0].values};
    for (Condition& condition : all.values) std::visit([](auto& values) { values.clear(); }, condition.values);
    for (const Conditions& part : parts) {
        all.rows += part.steps * part.rows;
        for (std::size_t i = 0; i < all.values.size(); ++i)
            std::visit(
                [&](auto& values) {
                    const auto& more = std::get<std::decay_t<decltype(values)>>(part.values[i].values);
                    values.insert(values.end(), more.begin(), more.end());
                },
                all.values[i].values);
    }
    return all;
}

std::pair<Conditions, std::vector<std::vector<std::int64_t>>> shared_conditions(const std::vector<const Conditions*>& images) {
    std::map<Record, std::int64_t> row;
    std::vector<std::vector<Record>> records;
    for (const Conditions* image : images) {
        records.emplace_back();
        for (std::int64_t r = 0; r < image->rows; ++r) {
            records.back().push_back(record_of(*image, r));
            row[records.back().back()] = 0;
        }
    }
    Conditions shared{images[0]->steps, static_cast<std::int64_t>(row.size()), images[0]->values};
    std::int64_t next = 0;
    for (auto& known : row) known.second = next++;
    for (std::size_t i = 0; i < shared.values.size(); ++i)
        std::visit(
            [&](auto& values) {
                values.clear();
                for (std::size_t step = 0; step < static_cast<std::size_t>(shared.steps); ++step)
                    for (const auto& known : row)
                        values.push_back(std::get<std::decay_t<decltype(values)>>(known.first[i])[step]);
            },
            shared.values[i].values);
    std::vector<std::vector<std::int64_t>> rows;
    for (const std::vector<Record>& own : records) {
        rows.emplace_back();
        for (const Record& record : own) rows.back().push_back(row.at(record));
    }
    return {std::move(shared), std::move(rows)};
}

}  // namespace ditedge
