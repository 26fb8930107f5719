#include "files.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <new>
#include <system_error>
#include <vector>

#include "sha256.hpp"

namespace ditedge {
namespace {

constexpr std::size_t kBlock = 256 << 10;  // read and hashed while it is in the cache
constexpr std::int64_t kSecond = 1'000'000'000, kYoung = 2 * kSecond;  // no file system's clock is coarser

// Fewer bytes than wanted: the file ends there. -1: it cannot be read.
std::int64_t read_some(int descriptor, char* to, std::size_t bytes, std::size_t from) {
    std::size_t done = 0;
    while (done < bytes) {
        const ssize_t got = pread(descriptor, to + done, bytes - done, static_cast<off_t>(from + done));
        if (got < 0 && errno != EINTR) return -1;
        if (got == 0) break;
        if (got > 0) done += static_cast<std::size_t>(got);
    }
    return static_cast<std::int64_t>(done);
}

bool regular(int descriptor, struct stat& status) { return fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode); }

// What the operating system has against the call that failed just now: "Too many open files".
std::string reason() { return std::generic_category().message(errno); }

std::int64_t nanoseconds(const timespec& time) { return time.tv_sec * kSecond + time.tv_nsec; }

}  // namespace

Descriptor::Descriptor(int folder, const std::filesystem::path& path, int flags)
    : descriptor_(openat(folder, path.c_str(), flags | O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)) {}

Descriptor::~Descriptor() {
    if (descriptor_ >= 0) close(descriptor_);
}

Folder::Folder(const std::filesystem::path& folder) : path(folder), descriptor(AT_FDCWD, folder, O_DIRECTORY) {
    if (descriptor.get() < 0) fail_bundle(folder.string() + " is not a bundle: " + reason());
}

std::string read_text(int folder, const std::filesystem::path& path, const std::string& place, std::size_t limit,
                      ditedge_status status) {
    const Descriptor file(folder, path, 0);
    struct stat found {};
    if (file.get() < 0) throw Error(status, "cannot read " + place + ": " + reason());
    if (!regular(file.get(), found)) throw Error(status, "cannot read " + place + ": not a file");
    if (static_cast<std::uint64_t>(found.st_size) > limit)
        throw Error(status, place + ": larger than " + (limit < 1 << 20 ? std::to_string(limit >> 10) + " kB" : std::to_string(limit >> 20) + " MB"));
    std::string text(static_cast<std::size_t>(found.st_size), '\0');
    const std::int64_t got = read_some(file.get(), text.data(), text.size(), 0);
    if (got < 0) throw Error(status, "cannot read " + place + ": " + reason());
    text.resize(static_cast<std::size_t>(got));
    return text;
}

Mapping::Mapping(int descriptor, std::size_t bytes, const std::string& place)
    : data_(bytes == 0 ? MAP_FAILED : mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, descriptor, 0)), bytes_(bytes) {
    if (data_ == MAP_FAILED) fail_bundle("cannot read " + place + ": " + (bytes == 0 ? "it is empty" : reason()));
}

Mapping::~Mapping() { munmap(data_, bytes_); }

bool OpenFile::Stamp::operator==(const Stamp& other) const {
    return bytes == other.bytes && modified == other.modified && changed == other.changed;
}

OpenFile::OpenFile(const Folder& folder, const std::string& name, FileInfo info, const char* complaint)
    : place_((folder.path / name).string()), descriptor_(folder.descriptor.get(), name, 0), info_(std::move(info)),
      complaint_(complaint) {
    if (descriptor_.get() < 0) fail_bundle("cannot read " + place_ + ": " + reason());
    if (stamp().bytes < 0) fail_bundle("cannot read " + place_ + ": not a file");
    posix_fadvise(descriptor_.get(), 0, 0, POSIX_FADV_SEQUENTIAL);
}

bool OpenFile::exists(const Folder& folder, const std::string& name) {
    struct stat status {};
    return fstatat(folder.descriptor.get(), name.c_str(), &status, 0) == 0 && S_ISREG(status.st_mode);
}

OpenFile::Stamp OpenFile::stamp() const {
    struct stat status {};
    if (!regular(descriptor_.get(), status)) return {};
    return {status.st_size, nanoseconds(status.st_mtim), nanoseconds(status.st_ctim)};
}

void OpenFile::read(char* to, std::size_t bytes, std::size_t from) const {
    const std::int64_t got = read_some(descriptor_.get(), to, bytes, from);
    if (got < 0) fail_bundle("cannot read " + place_ + ": " + reason());
    if (got != static_cast<std::int64_t>(bytes)) refused();
}

std::size_t OpenFile::size() const {
    const auto size = static_cast<std::size_t>(info_.bytes);
    if (static_cast<std::uint64_t>(info_.bytes) != size) throw std::bad_alloc();  // 4 GB on 32 bits
    return size;
}

void OpenFile::check() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Stamp before = stamp();
    if (before.bytes != info_.bytes) refused();
    if (info_.sha256.empty() || before == checked_) return;
    Sha256 hash;
    std::vector<char> block(kBlock);
    for (std::size_t at = 0; at < size(); at += kBlock) {
        const std::size_t wanted = std::min(kBlock, size() - at);
        read(block.data(), wanted, at);
        hash.update(block.data(), wanted);
    }
    if (hash.hexdigest() != info_.sha256) refused();
    // A file that was written to just now could be so again without another time: then it is hashed again, too.
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    checked_ = std::max(before.modified, before.changed) + kYoung < nanoseconds(now) ? before : Stamp();
}

std::string OpenFile::text() const {
    if (stamp().bytes != info_.bytes) refused();
    std::string text(size(), '\0');
    read(text.data(), text.size(), 0);
    if (!info_.sha256.empty() && sha256_of(text) != info_.sha256) refused();
    return text;
}

std::unique_ptr<Mapping> OpenFile::map() const {
    return std::make_unique<Mapping>(descriptor_.get(), size(), place_);
}

void OpenFile::refused() const { fail_bundle(place_ + complaint_); }

}  // namespace ditedge
