#include "cuda.hpp"

#include <algorithm>
#include <vector>

#include "error.hpp"
#include "shared_library.hpp"

namespace ditedge {
namespace {

Cuda calls_of(const SharedLibrary& library) {
    Cuda cuda;
    cuda.GetErrorName = library.function<const char* (*)(int)>("cudaGetErrorName");
#define DITEDGE_CUDA_LOAD(name, ...) cuda.name = library.function<int (*)(__VA_ARGS__)>("cuda" #name);
    DITEDGE_CUDA_CALLS(DITEDGE_CUDA_LOAD)
#undef DITEDGE_CUDA_LOAD
    return cuda;
}

// "12.4": what the driver is for, by any runtime library; nothing when there is no driver.
std::string driver_version(const Cuda& cuda) {
    int version = 0;
    if (cuda.DriverGetVersion(&version) != kSuccess || version == 0) return "";
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// The newest runtime library here that the driver runs: one that is newer answers every call with an error, and an older
// one beside it may do. Throws Error (engine) when there is none, Error (no device) when the driver is too old for all.
Cuda load_cuda() {
    std::vector<std::string> names = {"libcudart.so.13", "libcudart.so.12", "libcudart.so"};
    std::string refused;
    for (;;) {
        SharedLibrary library;
        try {
            library = open_shared_library("the CUDA runtime", "", "DITEDGE_CUDART", names);
        } catch (const Error&) {
            if (refused.empty()) throw;
            throw Error(DITEDGE_ERROR_NO_DEVICE, refused);
        }
        const Cuda cuda = calls_of(library);
        int devices = 0;
        const std::string driver = driver_version(cuda);
        if (cuda.GetDeviceCount(&devices) != kDriverTooOld || driver.empty()) return cuda;
        if (refused.empty())
            refused = "the NVIDIA driver, which is for CUDA " + driver + ", is too old for " + library.path +
                      ": update it, or install the runtime library of CUDA " + driver.substr(0, driver.find('.'));
        const auto tried = std::find(names.begin(), names.end(), library.path);
        if (tried == names.end() || tried + 1 == names.end()) throw Error(DITEDGE_ERROR_NO_DEVICE, refused);
        names.erase(names.begin(), tried + 1);
    }
}

}  // namespace

Gpu::Gpu(int device, const std::string& needing, const std::string& instead, std::deque<std::string>& said)
    : cuda(load_cuda()), warnings(said), device_(device) {
    int devices = 0;
    const bool driver = cuda.GetDeviceCount(&devices) == kSuccess;
    if (!driver || device_ >= devices)
        throw Error(DITEDGE_ERROR_NO_DEVICE, needing + " an NVIDIA GPU and its driver, and there is no CUDA device " +
                                                 std::to_string(device_) + " here: " + instead);
    use();
}

void Gpu::use() const { check(cuda.SetDevice(device_), "cudaSetDevice"); }

void Gpu::check(int error, const char* call) const {
    if (error == kSuccess) return;
    const std::string remedy = error == kOutOfMemory ? ": use a smaller batch" : "";
    fail_engine(std::string("CUDA: ") + call + " failed with " + cuda.GetErrorName(error) + remedy);
}

int Gpu::attribute(int which) const {
    int value = 0;
    check(cuda.DeviceGetAttribute(&value, which, device_), "cudaDeviceGetAttribute");
    return value;
}

std::string Gpu::capability() const {
    return "sm" + std::to_string(attribute(kCapabilityMajor)) + std::to_string(attribute(kCapabilityMinor));
}

std::string Gpu::model() const { return capability() + "-" + std::to_string(attribute(kMultiprocessors)); }

}  // namespace ditedge
