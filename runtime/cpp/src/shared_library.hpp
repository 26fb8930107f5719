// Engine libraries are loaded with dlopen when a sampler asks for them, and never unloaded: they keep threads and
// thread-local data to the end of the process.
#pragma once

#include <string>
#include <vector>

namespace ditedge {

struct SharedLibrary {
    std::string path;
    void* handle = nullptr;

    // Throws Error (engine) when the library has no such function.
    template <class Function>
    Function function(const char* name) const {
        return reinterpret_cast<Function>(symbol(name));
    }

private:
    void* symbol(const char* name) const;
};

// `wanted` where it is given, else what the environment variable names, else the first of `names` that loads. Throws
// Error (engine), saying where `product` (say "ONNX Runtime") may be named.
SharedLibrary open_shared_library(const std::string& product, const std::string& wanted, const char* environment,
                                  std::vector<std::string> names);

}  // namespace ditedge
