// Command lines of the examples: --name VALUE pairs, and names alone of options that are "off".
#pragma once

#include <charconv>
#include <cmath>
#include <map>
#include <set>
#include <stdexcept>
#include <string>

// What was typed may be the name of a file, and that may hold what commands a terminal.
inline std::string printable(std::string text) {
    for (char& letter : text)
        if (static_cast<unsigned char>(letter) < 0x20 || letter == 0x7f) letter = '?';
    return text;
}

class Arguments {
public:
    std::map<std::string, std::string> values;

    // known: every option with its default
    Arguments(int argc, char** argv, std::map<std::string, std::string> known) : values(std::move(known)) {
        std::set<std::string> given;
        for (int i = 1; i < argc; ++i) {
            const std::string name = argv[i];
            const auto found = values.find(name);
            if (found == values.end()) throw std::invalid_argument("unknown option " + name);
            if (!given.insert(name).second) throw std::invalid_argument(name + " is given twice");
            if (found->second == "off") {
                found->second = "on";
                continue;
            }
            if (i + 1 == argc || *argv[i + 1] == '\0') throw std::invalid_argument(name + " needs a value");
            found->second = argv[++i];
        }
    }
    static bool ask_for_help(int argc, char** argv) {
        return argc == 2 && (std::string(argv[1]) == "--help" || std::string(argv[1]) == "-h");
    }
    const std::string& text(const char* name) const { return values.at(name); }
    const char* text_or_null(const char* name) const { return text(name).empty() ? nullptr : text(name).c_str(); }
    bool on(const char* name) const { return text(name) == "on"; }
    // 0 to `most`
    unsigned long long whole(const char* name, unsigned long long most) const {
        unsigned long long value = 0;
        const char* const end = text(name).data() + text(name).size();
        const auto [stop, error] = std::from_chars(text(name).data(), end, value);
        if (error == std::errc::invalid_argument || stop != end) fail(name, " is not a whole number");
        if (error == std::errc::result_out_of_range || value > most) fail(name, " is more than " + std::to_string(most));
        return value;
    }
    double number(const char* name) const {
        std::size_t used = 0;
        double value = NAN;
        try {
            value = std::stod(text(name), &used);
        } catch (const std::logic_error&) {
        }
        if (used != text(name).size() || !std::isfinite(value)) fail(name, " is not a finite number");
        return value;
    }

private:
    [[noreturn]] void fail(const char* name, const std::string& complaint) const {
        throw std::invalid_argument(std::string(name) + " " + text(name) + complaint);
    }
};
