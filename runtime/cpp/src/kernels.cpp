#include "kernels.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "files.hpp"

namespace ditedge {
namespace {

constexpr off_t kMostBytes = 1 << 30;  // a larger file is none of ours

bool own(const struct stat& found) { return found.st_uid == geteuid() && (found.st_mode & 022) == 0; }

// Whether it is a folder of this user, where nobody else can write.
bool is_private(const std::string& folder, std::deque<std::string>& warnings) {
    struct stat found {};
    if (lstat(folder.c_str(), &found) != 0) return false;  // not there yet
    if (S_ISDIR(found.st_mode) && own(found)) return true;
    const std::string text = folder + " is not a folder of this user alone: compiled kernels are not kept there (chmod 700, or remove it)";
    if (warnings.empty() || warnings.back() != text) warnings.push_back(text);
    return false;
}

std::string folder_of(const std::string& file) { return file.substr(0, file.rfind('/')); }

bool write_all(int descriptor, std::string_view bytes) {
    while (!bytes.empty()) {
        const ssize_t written = write(descriptor, bytes.data(), bytes.size());
        if (written <= 0) return false;
        bytes.remove_prefix(static_cast<std::size_t>(written));
    }
    return true;
}

}  // namespace

std::string kernel_file(const std::string& plan_sha256, const std::string& gpu) {
    const auto variable = [](const char* name) { return std::string(std::getenv(name) != nullptr ? std::getenv(name) : ""); };
    std::string root = variable("XDG_CACHE_HOME");
    if (root.empty() || root.front() != '/') root = variable("HOME") + "/.cache";  // relative ones are to be ignored
    return root.front() == '/' && root != "/.cache" ? root + "/ditedge/kernels/" + plan_sha256 + "-" + gpu : "";
}

std::string read_kernels(const std::string& file, std::deque<std::string>& warnings) {
    if (file.empty() || !is_private(folder_of(file), warnings)) return "";
    const Descriptor descriptor(AT_FDCWD, file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);  // no link; a pipe does not wait
    struct stat found {};
    if (descriptor.get() < 0 || fstat(descriptor.get(), &found) != 0) return "";
    if (!S_ISREG(found.st_mode) || found.st_size > kMostBytes || !own(found)) return "";
    std::string kernels(static_cast<std::size_t>(found.st_size), '\0');
    for (std::size_t at = 0; at < kernels.size();) {
        const ssize_t count = read(descriptor.get(), kernels.data() + at, kernels.size() - at);
        if (count <= 0) return "";
        at += static_cast<std::size_t>(count);
    }
    return kernels;
}

void keep_kernels(const std::string& file, std::string_view kernels, std::deque<std::string>& warnings) {
    if (file.empty()) return;
    const std::string folder = folder_of(file);
    std::error_code code;
    std::filesystem::create_directories(folder_of(folder), code);
    mkdir(folder.c_str(), 0700);
    if (!is_private(folder, warnings)) return;
    std::string temporary = file + ".XXXXXX";
    const int descriptor = mkstemp(temporary.data());  // of mode 600
    if (descriptor < 0) return;
    const bool written = write_all(descriptor, kernels);
    if (close(descriptor) != 0 || !written || std::rename(temporary.c_str(), file.c_str()) != 0) std::remove(temporary.c_str());
}

}  // namespace ditedge
