// Reading untrusted JSON: bounded size and depth, and every mistake is one sentence that names file and field.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "error.hpp"

namespace ditedge {

using Json = nlohmann::json;

// Parses `text`; `place` is only for the message. Refuses what docs/format.md, "Limits", says.
Json parse_json(const std::string& text, const std::string& place, ditedge_status status);

// A value and where it stands. Keys that are not asked for are ignored: docs/format.md, "Reading rules".
class Field {
public:
    Field(const Json& value, const std::string& place, ditedge_status status)
        : Field(value, std::make_shared<const std::string>(place), status) {}

    const Json& json() const { return *value_; }
    [[noreturn]] void fail(const std::string& complaint) const { throw Error(status_, *place_ + ": " + complaint); }

    bool has(const char* key) const { return object().contains(key); }
    bool null() const { return value_->is_null(); }
    Field at(const std::string& key) const;
    std::vector<std::pair<std::string, Field>> items(std::size_t most) const;
    std::vector<Field> elements(std::size_t most) const;

    std::string text() const;
    std::string one_of(std::initializer_list<const char*> choices) const;
    std::string sha256() const;
    bool boolean() const;
    double number() const;  // that a float32 can hold
    double number_between(double low, double high) const;  // both excluded
    std::int64_t integer(std::int64_t low, std::int64_t high) const;

private:
    Field(const Json& value, std::shared_ptr<const std::string> place, ditedge_status status)
        : value_(&value), place_(std::move(place)), status_(status) {}
    const Json& object() const;

    const Json* value_;
    std::shared_ptr<const std::string> place_;  // of all elements of a list
    ditedge_status status_;
};

}  // namespace ditedge
