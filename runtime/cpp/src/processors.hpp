// How many processors this process may use (runtime/processors.py): more threads than that only wait for each other.
#pragma once

#include <filesystem>

namespace ditedge {

// By affinity and by the CPU quotas of the process's control groups (versions 1 and 2), rounded up; at least 1.
// `root` is "/", or a folder with a copy of /proc/self/cgroup and /sys.
int usable_processors(const std::filesystem::path& root = "/");

// Threads for an engine: `wanted`, at most the usable processors; 0 is one for each core that may be used (two processors
// of one core share its arithmetic).
int thread_count(int wanted, const std::filesystem::path& root = "/");

}  // namespace ditedge
