// ONNX Runtime ($REAL_ONNXRUNTIME) that claims to have Xnnpack's provider and takes it without a word, as providers do that
// accept none of a graph's nodes: everything runs on the CPU.
#include <dlfcn.h>

#include <cstdlib>
#include <onnxruntime/onnxruntime_c_api.h>

namespace {

OrtApi api;
char name[] = "XnnpackExecutionProvider";
char* names[] = {name};

OrtStatus* ORT_API_CALL available(char*** providers, int* count) noexcept {
    *providers = names, *count = 1;
    return nullptr;
}

OrtStatus* ORT_API_CALL release(char**, int) noexcept { return nullptr; }

OrtStatus* ORT_API_CALL append(OrtSessionOptions*, const char*, const char* const*, const char* const*, size_t) noexcept { return nullptr; }

const OrtApiBase* real() {
    void* library = dlopen(std::getenv("REAL_ONNXRUNTIME"), RTLD_NOW | RTLD_LOCAL);
    return reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library, "OrtGetApiBase"))();
}

const OrtApi* ORT_API_CALL get_api(uint32_t version) noexcept {
    api = *real()->GetApi(version);
    api.GetAvailableProviders = available, api.ReleaseAvailableProviders = release;
    api.SessionOptionsAppendExecutionProvider = append;
    return &api;
}

const char* ORT_API_CALL get_version() noexcept { return real()->GetVersionString(); }

const OrtApiBase base = {get_api, get_version};

}  // namespace

extern "C" const OrtApiBase* OrtGetApiBase() noexcept { return &base; }
