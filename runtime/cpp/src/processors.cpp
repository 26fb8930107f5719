#include "processors.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>
#include <thread>

namespace ditedge {
namespace {

namespace fs = std::filesystem;

// A control group's quota in processors; infinity without one.
double quota_of(const fs::path& group) {
    double quota = -1, period = 0;  // "max 100000" is no quota: reading it as a number fails
    std::ifstream both(group / "cpu.max");  // version 2
    if (!(both >> quota >> period)) {
        std::ifstream first(group / "cpu.cfs_quota_us"), second(group / "cpu.cfs_period_us");
        if (!(first >> quota && second >> period)) return INFINITY;
    }
    return quota > 0 && period > 0 ? quota / period : INFINITY;
}

// The smallest quota of the groups from `path` up to the hierarchy's root. In a container, the paths may be the host's
// and not be there: its own group is the root.
double smallest_quota(const fs::path& hierarchy, const std::string& path) {
    double least = quota_of(hierarchy);
    fs::path group = hierarchy;
    for (const fs::path& part : fs::path(path).relative_path()) least = std::min(least, quota_of(group /= part));
    return least;
}

int processors_by_affinity() {
    cpu_set_t set;
    const int counted = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;  // fails above 1024 processors
    return counted > 0 ? counted : static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace

int usable_processors(const fs::path& root) {
    double quota = INFINITY;
    std::ifstream groups(root / "proc/self/cgroup");  // lines of "4:cpu,cpuacct:/path" (version 1) and "0::/path"
    for (std::string line; std::getline(groups, line);) {
        const std::size_t first = line.find(':'), second = line.find(':', first + 1);
        if (second == std::string::npos) continue;
        const std::string names = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
        if (names.empty()) {
            quota = std::min({quota, smallest_quota(root / "sys/fs/cgroup", path), smallest_quota(root / "sys/fs/cgroup/unified", path)});
        } else if (("," + names + ",").find(",cpu,") != std::string::npos) {
            for (const std::string& name : {names, std::string("cpu")})
                quota = std::min(quota, smallest_quota(root / "sys/fs/cgroup" / name, path));
        }
    }
    const int processors = std::max(1, processors_by_affinity());
    return quota < processors ? std::max(1, static_cast<int>(std::ceil(quota))) : processors;
}

int bounded_threads(int wanted) {
    const int usable = usable_processors();
    if (wanted == 0) return usable < sysconf(_SC_NPROCESSORS_ONLN) ? usable : 0;
    return std::min(wanted, usable);
}

}  // namespace ditedge
