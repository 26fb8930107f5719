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
    std::string reason;
    for (const std::string& name : names) {
        if (void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) return {name, handle};
        const char* error = dlerror();
        reason = error != nullptr ? error : name;
    }
    fail_engine(product + " is not to be found (" + reason + "): name its library in the options or in " + environment);
}

void* SharedLibrary::symbol(const char* name) const {
    void* found = dlsym(handle, name);
    if (found == nullptr) fail_engine(path + " has no " + name + ": it is another library, or too old");
    return found;
}

}  // namespace ditedge
