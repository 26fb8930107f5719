#include "json.hpp"

#include <cmath>
#include <fstream>

namespace ditedge {
namespace {

constexpr int kMaxDepth = 32;

}  // namespace

std::string read_text(const std::filesystem::path& path, std::size_t limit, ditedge_status status) {
    std::error_code code;
    if (!std::filesystem::is_regular_file(path, code)) throw Error(status, "cannot read " + path.string());
    std::ifstream file(path, std::ios::binary);
    if (!file) throw Error(status, "cannot read " + path.string());
    std::string text;
    std::vector<char> buffer(1 << 16);
    while (file.read(buffer.data(), static_cast<std::streamsize>(buffer.size())) || file.gcount() > 0) {
        text.append(buffer.data(), static_cast<std::size_t>(file.gcount()));
        if (text.size() > limit)
            throw Error(status, path.string() + ": larger than " + std::to_string(limit >> 20) + " MB");
    }
    return text;
}

Json parse_json(const std::string& text, const std::string& place, ditedge_status status) {
    try {
        return Json::parse(text, [&](int depth, Json::parse_event_t, const Json&) {
            if (depth > kMaxDepth) throw Error(status, place + ": nested more than " + std::to_string(kMaxDepth) + " deep");
            return true;
        });
    } catch (const Json::exception&) {
        throw Error(status, place + ": not valid JSON");
    }
}

const Json& Field::object() const {
    if (!value_->is_object()) fail("expected an object");
    return *value_;
}

Field Field::at(const std::string& key) const {
    const auto found = object().find(key);
    if (found == object().end()) fail("'" + key + "' is missing");
    return {*found, place_ + ": " + key, status_};
}

std::vector<std::pair<std::string, Field>> Field::items() const {
    std::vector<std::pair<std::string, Field>> items;
    for (const auto& item : object().items())
        items.emplace_back(item.key(), Field(item.value(), place_ + ": " + item.key(), status_));
    return items;
}

std::vector<Field> Field::elements() const {
    if (!value_->is_array()) fail("expected a list");
    std::vector<Field> elements;
    elements.reserve(value_->size());
    for (const Json& value : *value_) elements.emplace_back(value, place_, status_);
    return elements;
}

std::string Field::text() const {
    if (!value_->is_string()) fail("expected a text");
    return value_->get<std::string>();
}

std::string Field::one_of(std::initializer_list<const char*> choices) const {
    std::string found = text(), all;
    for (const char* choice : choices) {
        if (found == choice) return found;
        all += (all.empty() ? "'" : ", '") + std::string(choice) + "'";
    }
    fail("'" + found + "' is not one of " + all);
}

std::string Field::sha256() const {
    std::string digest = text();
    if (digest.size() != 64 || digest.find_first_not_of("0123456789abcdef") != std::string::npos)
        fail("not a SHA-256 of 64 lower-case hexadecimal digits");
    return digest;
}

bool Field::boolean() const {
    if (!value_->is_boolean()) fail("expected true or false");
    return value_->get<bool>();
}

double Field::number() const {
    if (!value_->is_number() || !std::isfinite(value_->get<double>())) fail("expected a finite number");
    return value_->get<double>();
}

double Field::number_between(double low, double high) const {
    const double value = number();
    if (!(low < value && value < high)) fail("out of range");
    return value;
}

std::int64_t Field::integer(std::int64_t low, std::int64_t high) const {
    const bool too_large = value_->is_number_unsigned() && value_->get<std::uint64_t>() > std::uint64_t{INT64_MAX};
    if (!value_->is_number_integer() || too_large) fail("expected a whole number");
    const auto value = value_->get<std::int64_t>();
    if (value < low || value > high)
        fail(std::to_string(value) + " is not between " + std::to_string(low) + " and " + std::to_string(high));
    return value;
}

}  // namespace ditedge
