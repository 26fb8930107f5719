// ditedge-sha256 portable|fast CHUNK FILE...: the digest of each file, hashed CHUNK bytes at a time.
#include "sha256.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

int main(int argc, char** argv) {
    if (argc < 4) return 2;
    const auto chunk = static_cast<std::size_t>(std::atoll(argv[2]));
    for (int i = 3; i < argc; ++i) {
        std::ifstream file(argv[i], std::ios::binary);
        const std::string text{std::istreambuf_iterator<char>(file), {}};
        ditedge::Sha256 hash(std::strcmp(argv[1], "portable") == 0);
        for (std::size_t at = 0; at < text.size(); at += chunk) hash.update(text.data() + at, std::min(chunk, text.size() - at));
        std::puts(hash.hexdigest().c_str());
    }
    return 0;
}
