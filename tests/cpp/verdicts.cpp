// What libditedge says of documents: a line "KIND PATH" in, a line out, "taken" or why the file is refused. What Python
// says of the same files is compared with it (tests/fuzz/verdicts.py).
#include <fcntl.h>

#include <iostream>
#include <string>

#include "build_record.hpp"
#include "bundle.hpp"
#include "error.hpp"
#include "files.hpp"
#include "program.hpp"

namespace {

void read(const std::string& kind, const std::string& path) {
    const auto text = [&](std::size_t most, ditedge_status status) {
        return ditedge::read_text(AT_FDCWD, path, path, most, status);
    };
    if (kind == "manifest") ditedge::manifest_from_json(text(ditedge::kMaxManifestBytes, DITEDGE_ERROR_BUNDLE), path);
    else if (kind == "record") ditedge::build_record_from_json(text(ditedge::kMaxRecordBytes, DITEDGE_ERROR_BUNDLE), path);
    else ditedge::read_program(path);
}

}  // namespace

int main() {
    for (std::string line; std::getline(std::cin, line);) {
        const std::size_t space = line.find(' ');
        try {
            read(line.substr(0, space), line.substr(space + 1));
            std::cout << "taken" << std::endl;
        } catch (const ditedge::Error& error) {
            std::string reason = error.what();
            for (char& letter : reason)
                if (letter == '\n') letter = ' ';
            std::cout << "refused: " << reason << std::endl;
        }
    }
}
