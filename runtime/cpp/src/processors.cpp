#include "processors.hpp"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <numeric>
#include <set>
#include <string>
#include <thread>
#include <vector>

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

// The numbers of the processors that the operating system lets this process run on.
std::vector<int> allowed() {
    std::vector<int> numbers;
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        for (int i = 0; i < CPU_SETSIZE; ++i)
            if (CPU_ISSET(i, &set)) numbers.push_back(i);
    } else {  // more than 1,024 processors
        numbers.resize(std::max(1u, std::thread::hardware_concurrency()));
        std::iota(numbers.begin(), numbers.end(), 0);
    }
    return numbers;
}

int within_quota(std::size_t processors, const fs::path& root) {
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
    const bool bounded = quota < static_cast<double>(processors);
    return std::max(1, bounded ? static_cast<int>(std::ceil(quota)) : static_cast<int>(processors));
}

}  // namespace

int usable_processors(const fs::path& root) { return within_quota(allowed().size(), root); }

int thread_count(int wanted, const fs::path& root) {
    if (wanted != 0) return std::min(wanted, usable_processors(root));
    std::set<std::string> cores;
    for (const int number : allowed()) {
        const std::string name = "cpu" + std::to_string(number);
        std::ifstream file(root / "sys/devices/system/cpu" / name / "topology/thread_siblings_list");
        std::string siblings;
        cores.insert(std::getline(file, siblings) ? siblings : name);
    }
    return within_quota(cores.size(), root);
}

}  // namespace ditedge
