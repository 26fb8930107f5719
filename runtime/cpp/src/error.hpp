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
    // Names out of untrusted files may hold anything, a NUL among it.
    static std::string printable(std::string text) {
        for (char& letter : text)
            if (static_cast<unsigned char>(letter) < 0x20) letter = '?';
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
