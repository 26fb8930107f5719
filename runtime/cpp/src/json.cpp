#include "json.hpp"

#include <cmath>

namespace ditedge {
namespace {

constexpr std::size_t kMaxDepth = 32, kMaxValues = 1 << 20;  // of a document
constexpr double kMaxNumber = 3.0e38;  // below float32's largest number

// Builds a document (of nlohmann's parser events) and stops at the first excess: memory is never more than a few times
// what the bounds allow.
class Builder {
public:
    Builder(const std::string& place, ditedge_status status) : place_(place), status_(status) {}

    Json root;

    bool null() { return add(nullptr), true; }
    bool boolean(bool value) { return add(value), true; }
    bool number_integer(std::int64_t value) { return add(value), true; }
    bool number_unsigned(std::uint64_t value) { return add(value), true; }
    bool number_float(double value, const std::string&) { return add(value), true; }
    bool string(std::string& value) { return add(std::move(value)), true; }
    bool binary(Json::binary_t&) { return false; }
    bool start_object(std::size_t) { return enter(Json::object()); }
    bool start_array(std::size_t) { return enter(Json::array()); }
    bool end_object() { return open_.pop_back(), true; }
    bool end_array() { return open_.pop_back(), true; }
    bool key(std::string& name) {
        if (open_.back()->contains(name)) fail("'" + name.substr(0, 100) + "' stands twice in one object");
        key_ = std::move(name);
        return true;
    }
    bool parse_error(std::size_t, const std::string&, const Json::exception&) { fail("not valid JSON"); }
    [[noreturn]] void fail(const std::string& complaint) const { throw Error(status_, place_ + ": " + complaint); }

private:
    Json& add(Json value) {
        if (left_-- == 0) fail("more values than such a file has");
        if (open_.empty()) return root = std::move(value);
        if (open_.back()->is_object()) return (*open_.back())[key_] = std::move(value);
        open_.back()->push_back(std::move(value));
        return open_.back()->back();
    }
    bool enter(Json container) {
        if (open_.size() == kMaxDepth) fail("nested more than " + std::to_string(kMaxDepth) + " deep");
        open_.push_back(&add(std::move(container)));
        return true;
    }

    std::size_t left_ = kMaxValues;
    std::string place_, key_;
    ditedge_status status_;
    std::vector<Json*> open_;  // lists and objects that are not at their end: what follows goes into the last one
};

}  // namespace

Json parse_json(const std::string& text, const std::string& place, ditedge_status status) {
    Builder builder(place, status);
    // nlohmann's parser passes over a byte order mark, and takes a NUL for the end.
    if (text.rfind("\xef\xbb\xbf", 0) == 0 || text.find('\0') != std::string::npos) builder.fail("not valid JSON");
    Json::sax_parse(text, &builder);
    return std::move(builder.root);
}

const Json& Field::object() const {
    if (!value_->is_object()) fail("expected an object");
    return *value_;
}

Field Field::at(const std::string& key) const {
    const auto found = object().find(key);
    if (found == object().end()) fail("'" + key + "' is missing");
    return {*found, *place_ + ": " + key, status_};
}

std::vector<std::pair<std::string, Field>> Field::items(std::size_t most) const {
    std::vector<std::pair<std::string, Field>> items;
    if (object().size() > most) fail("has " + std::to_string(object().size()) + " entries, at most " + std::to_string(most) + " are read");
    for (const auto& item : object().items())
        items.emplace_back(item.key(), Field(item.value(), *place_ + ": " + item.key(), status_));
    return items;
}

std::vector<Field> Field::elements(std::size_t most) const {
    if (!value_->is_array()) fail("expected a list");
    if (value_->size() > most) fail("has " + std::to_string(value_->size()) + " entries, at most " + std::to_string(most) + " are read");
    std::vector<Field> elements;
    elements.reserve(value_->size());
    for (const Json& value : *value_) elements.push_back(Field(value, place_, status_));
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
    if (!value_->is_number() || !(std::abs(value_->get<double>()) <= kMaxNumber)) fail("expected a number within +-3e38");
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
