// How many processors this process may use: more threads than that only wait for each other.
#pragma once

#include <filesystem>

namespace ditedge {

// By affinity and by the CPU quotas of the process's control groups (versions 1 and 2), rounded up; at least 1.
// `root` is "/", or a copy of /proc/self/cgroup and /sys/fs/cgroup in a test.
int usable_processors(const std::filesystem::path& root = "/");

// The number of threads to ask an engine for: at most the usable processors; 0 (the engine's choice) stays 0 where this
// process may use all of the machine.
int bounded_threads(int wanted);

}  // namespace ditedge
