// Reading untrusted JSON: bounded size and depth, and every mistake is one sentence that names file and field.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "error.hpp"

namespace ditedge {

using Json = nlohmann::json;

// A whole file. Throws Error(status) when it cannot be read or is larger than `limit` bytes.
std::string read_text(const std::filesystem::path& path, std::size_t limit, ditedge_status status);

// Parses `text`; `place` is only for the message.
Json parse_json(const std::string& text, const std::string& place, ditedge_status status);

// A value and where it stands. Keys that are not asked for are ignored: see docs/embedding.md, "Which bundles load".
class Field {
public:
    Field(const Json& value, std::string place, ditedge_status status)
        : value_(&value), place_(std::move(place)), status_(status) {}

    const Json& json() const { return *value_; }
    const std::string& place() const { return place_; }
    [[noreturn]] void fail(const std::string& complaint) const { throw Error(status_, place_ + ": " + complaint); }

    bool has(const char* key) const { return object().contains(key); }
    bool null() const { return value_->is_null(); }
    Field at(const std::string& key) const;
    std::vector<std::pair<std::string, Field>> items() const;
    std::vector<Field> elements() const;

    std::string text() const;
    std::string one_of(std::initializer_list<const char*> choices) const;
    std::string sha256() const;
    bool boolean() const;
    double number() const;  // finite
    double number_between(double low, double high) const;  // both excluded
    std::int64_t integer(std::int64_t low, std::int64_t high) const;

private:
    const Json& object() const;

    const Json* value_;
    std::string place_;
    ditedge_status status_;
};

}  // namespace ditedge
