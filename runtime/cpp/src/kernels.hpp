// Kernels that TensorRT-RTX compiled on this GPU, kept from one start to the next (runtime/plans/kernels.py). They are
// executable code. So they lie in the user's own cache directory, in a folder that nobody else may touch, and never in a
// bundle, which may come from anywhere. The library itself refuses those of another GPU, driver or version.
#pragma once

#include <deque>
#include <string>
#include <string_view>

namespace ditedge {

// Of one plan on one GPU: in $XDG_CACHE_HOME or ~/.cache; "" for a user without a home.
std::string kernel_file(const std::string& plan_sha256, const std::string& gpu);
// What was kept, "" for nothing. A folder or file that others may write to is not used: that of a folder is said.
std::string read_kernels(const std::string& file, std::deque<std::string>& warnings);
// Whole or not at all; where it cannot be written, they are compiled again next time.
void keep_kernels(const std::string& file, std::string_view kernels, std::deque<std::string>& warnings);

}  // namespace ditedge
