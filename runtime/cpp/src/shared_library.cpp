#include "shared_library.hpp"

#include <dlfcn.h>

#include <cstdlib>

#include "error.hpp"

namespace ditedge {

SharedLibrary open_shared_library(const std::string& product, const std::string& wanted, const char* environment,
                                  std::vector<std::string> names) {
    const char* given = std::getenv(environment);
    if (!wanted.empty())
        names = {wanted};
    else if (given != nullptr && *given != '\0')
        names = {given};
    std::string reasons;
    std::vector<std::string> absent;
    for (const std::string& name : names) {
        if (void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) return {name, handle};
        const char* error = dlerror();
        const std::string reason = error != nullptr ? error : name + ": cannot be loaded";
        // Of a library that is there, but lacks another one, the message begins with that one's name.
        if (reason.rfind(name + ": cannot open shared object file: No such file", 0) == 0)
            absent.push_back(name);
        else
            reasons += reason + "; ";
    }
    std::string list;
    for (std::size_t i = 0; i < absent.size(); ++i)
        if (i < 3 || i + 1 == absent.size()) list += (i == 0 ? "there is no " : i < 3 ? ", " : " ... ") + absent[i];
    fail_engine(product + " is not to be found (" + reasons + list + "): name its library in the options or in " + environment);
}

void* SharedLibrary::symbol(const char* name) const {
    void* found = dlsym(handle, name);
    if (found == nullptr) fail_engine(path + " has no " + name + ": it is another library, or too old");
    return found;
}

}  // namespace ditedge
