// Failures inside the library; capi.cpp turns them into status codes.
#pragma once

#include <cstdio>
#include <stdexcept>
#include <string>

#include "ditedge.h"

namespace ditedge {

class Error : public std::runtime_error {
public:
    Error(ditedge_status status, const std::string& message) : std::runtime_error(printable(message)), status_(status) {}
    ditedge_status status() const noexcept { return status_; }

private:
    static constexpr std::size_t kEnd = 400, kLongest = 1000;  // bytes of a message: its ends are kept

    // Names out of untrusted files may hold anything: a NUL, what commands a terminal (in UTF-8 also U+0080 to U+009F), or
    // a megabyte. What is cut out is in the middle, so that the remedy stays.
    static std::string printable(std::string text) {
        if (text.size() > kLongest) {
            const auto inside = [&](std::size_t at) { return (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80; };  // a character
            std::size_t first = kLongest - kEnd - 5, last = text.size() - kEnd;
            while (first > 0 && inside(first)) --first;
            while (last < text.size() && inside(last)) ++last;
            text.replace(first, last - first, " ... ");
        }
        for (std::size_t i = 0; i < text.size(); ++i) {
            const auto letter = static_cast<unsigned char>(text[i]);
            const bool commands = i > 0 && text[i - 1] == '\xc2' && letter >= 0x80 && letter < 0xa0;
            if (letter < 0x20 || letter == 0x7f || commands) text[i] = '?';
            if (commands) text[i - 1] = '?';
        }
        return text;
    }

    ditedge_status status_;
};

// A number as a message shows it.
inline std::string shown(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%g", value);
    return text;
}

[[noreturn]] inline void fail_bundle(const std::string& message) { throw Error(DITEDGE_ERROR_BUNDLE, message); }
[[noreturn]] inline void fail_program(const std::string& message) { throw Error(DITEDGE_ERROR_PROGRAM, message); }
[[noreturn]] inline void fail_request(const std::string& message) { throw Error(DITEDGE_ERROR_REQUEST, message); }
[[noreturn]] inline void fail_cancelled(const std::string& where) { throw Error(DITEDGE_CANCELLED, "stopped " + where); }
[[noreturn]] inline void fail_engine(const std::string& message) { throw Error(DITEDGE_ERROR_ENGINE, message); }

}  // namespace ditedge
