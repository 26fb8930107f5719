// Files that are opened once: named below a folder that is held open, and read through their own descriptors ever after.
// What is moved, deleted or put in their place later changes nothing; what is written into them is noticed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "error.hpp"

namespace ditedge {

class Descriptor {
public:
    Descriptor(int folder, const std::filesystem::path& path, int flags);  // as openat; -1 where that fails
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor();
    int get() const { return descriptor_; }

private:
    int descriptor_;
};

struct Folder {
    explicit Folder(const std::filesystem::path& folder);  // throws Error (bundle)

    std::filesystem::path path;  // for messages: nothing is opened by it again
    Descriptor descriptor;
};

// A whole file, below a folder's descriptor or AT_FDCWD. Throws Error(status) when it cannot be read or is larger than
// `limit` bytes; `place` is only for the message.
std::string read_text(int folder, const std::filesystem::path& path, const std::string& place, std::size_t limit,
                      ditedge_status status);

struct FileInfo {
    std::string sha256;  // empty: not checked
    std::int64_t bytes;
};

// A read-only view of a whole file. Pages that nobody reads any more can be dropped: a plan may be as large as memory.
class Mapping {
public:
    Mapping(int descriptor, std::size_t bytes, const std::string& place);  // throws Error (bundle)
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    ~Mapping();
    std::string_view bytes() const { return {static_cast<const char*>(data_), bytes_}; }

private:
    void* data_;
    std::size_t bytes_;
};

// Any thread. Throws Error (bundle), naming the file.
class OpenFile {
public:
    // A regular file. `complaint`: what follows its path where its bytes are not `info`'s.
    OpenFile(const Folder& folder, const std::string& name, FileInfo info, const char* complaint);
    static bool exists(const Folder& folder, const std::string& name);

    // Its bytes are the expected ones. Hashes them the first time, and when they may have changed since.
    void check() const;
    std::string text() const;  // the bytes that were hashed, in one reading
    std::unique_ptr<Mapping> map() const;
    const std::string& place() const { return place_; }

private:
    struct Stamp {
        std::int64_t bytes = -1, modified = 0, changed = 0;  // nanoseconds
        bool operator==(const Stamp& other) const;
    };
    Stamp stamp() const;
    void read(char* to, std::size_t bytes, std::size_t from) const;
    std::size_t size() const;  // the expected one
    [[noreturn]] void refused() const;

    std::string place_;
    Descriptor descriptor_;
    FileInfo info_;
    std::string complaint_;
    mutable std::mutex mutex_;
    mutable Stamp checked_;  // when it was last hashed
};

}  // namespace ditedge
