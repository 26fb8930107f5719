// Command lines of the examples: --name VALUE pairs, and names alone of options that are "off".
#pragma once

#include <map>
#include <stdexcept>
#include <string>

class Arguments {
private:
    template <class Convert>
    auto convert(const char* name, const Convert& conversion) const {
        try {
            std::size_t used = 0;
            const auto value = conversion(text(name), &used);
            if (used == text(name).size() && text(name)[0] != '-') return value;
        } catch (const std::logic_error&) {
        }
        throw std::invalid_argument(std::string(name) + " " + text(name) + " is not a number");
    }

public:
    std::map<std::string, std::string> values;

    // known: every option with its default
    Arguments(int argc, char** argv, std::map<std::string, std::string> known) : values(std::move(known)) {
        for (int i = 1; i < argc; ++i) {
            const auto found = values.find(argv[i]);
            if (found == values.end()) throw std::invalid_argument(std::string("unknown option ") + argv[i]);
            if (found->second == "off" || found->second == "on") {
                found->second = "on";
                continue;
            }
            if (i + 1 == argc || *argv[i + 1] == '\0') throw std::invalid_argument(std::string(argv[i]) + " needs a value");
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
        const auto value = convert(name, [](const std::string& s, std::size_t* n) { return std::stoull(s, n); });
        if (value > most) throw std::invalid_argument(std::string(name) + " " + text(name) + " is more than " + std::to_string(most));
        return value;
    }
    double number(const char* name) const { return convert(name, [](const std::string& s, std::size_t* n) { return std::stod(s, n); }); }
};
