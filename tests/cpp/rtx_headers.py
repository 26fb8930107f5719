"""TensorRT's headers made into those of TensorRT-RTX, as far as libditedge uses them: what its documentation adds.

    python rtx_headers.py FROM TO

NVIDIA gives TensorRT-RTX's own headers only with its SDK. So its branch of the engine compiles, and runs over the double, all
the same: a runtime configuration that has a cache and a strategy, and a context that says whether it can be captured.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

HIDDEN = r"#if ENABLE_FEATURE_DISABLE_RUNTIME_ALLOCATION\n[^#]*isStreamCapturable.*?#endif[^\n]*"
VERSION = {"MAJOR": 1, "MINOR": 7, "PATCH": 1}
DECLARED = """class IRuntimeCache;
enum class DynamicShapesKernelSpecializationStrategy : int32_t
{
    kLAZY = 0,
    kEAGER = 1,
    kNONE = 2
};
namespace apiv
{
class VRuntimeCache : public VRoot
{
public:
    virtual IHostMemory* serialize() const noexcept = 0;
    virtual bool deserialize(void const* blob, std::size_t size) noexcept = 0;
};
} // namespace apiv
"""
CACHE = """class IRuntimeCache : public INoCopy
{
public:
    virtual ~IRuntimeCache() noexcept = default;
    IHostMemory* serialize() const noexcept { return mImpl->serialize(); }
    bool deserialize(void const* blob, std::size_t size) noexcept { return mImpl->deserialize(blob, size); }

protected:
    apiv::VRuntimeCache* mImpl;
};

"""
CONFIG = {
    "IRuntimeCache* createRuntimeCache() const noexcept": "createRuntimeCache()",
    "bool setRuntimeCache(IRuntimeCache const& cache) noexcept": "setRuntimeCache(cache)",
    "void setDynamicShapesKernelSpecializationStrategy(DynamicShapesKernelSpecializationStrategy strategy) noexcept": (
        "setDynamicShapesKernelSpecializationStrategy(strategy)"
    ),
}
CONTEXT = {"bool isStreamCapturable(cudaStream_t stream) const noexcept": "isStreamCapturable(stream)"}


def with_methods(text: str, head: str, methods: dict[str, str], virtual: bool) -> str:
    """The class that begins with `head`, with methods: as they are declared -> as the one behind them is called."""
    place = text.index("public:", text.index(head)) + len("public:")
    added = [
        f"    virtual {signature} = 0;" if virtual else f"    {signature} {{ return mImpl->{call}; }}"
        for signature, call in methods.items()
    ]
    return "\n".join([text[:place], *added]) + text[place:]


def made(source: Path, out: Path) -> None:
    shutil.copytree(source, out, dirs_exist_ok=True)
    version = (out / "NvInferVersion.h").read_text().replace("_ENTERPRISE", "_RTX")
    lines = [
        f"#define TRT_{part}_RTX {VERSION[part]}" if (part := line.partition("TRT_")[2][:5]) in VERSION and line.startswith("#define TRT_") else line
        for line in version.splitlines()
    ]  # fmt: skip
    (out / "NvInferVersion.h").write_text("\n".join(lines) + "\n")
    for name in ("NvInferImpl.h", "NvInferRuntime.h"):  # where it is hidden already
        (out / name).write_text(re.sub(HIDDEN, "", (out / name).read_text(), flags=re.DOTALL))
    text = (out / "NvInferImpl.h").read_text()
    text = with_methods(text, "class VRuntimeConfig : public VRoot", CONFIG, virtual=True)
    text = with_methods(text, "class VExecutionContext : public VRoot", CONTEXT, virtual=True)
    place = text.index("class VHostMemory : public VRoot")
    text = text[:place] + "} // namespace apiv\n" + DECLARED + "namespace apiv\n{\n" + text[place:]
    (out / "NvInferImpl.h").write_text(text)
    text = (out / "NvInferRuntime.h").read_text()
    text = with_methods(text, "class IExecutionContext : public INoCopy", CONTEXT, virtual=False)
    text = with_methods(text, "class IRuntimeConfig : public INoCopy", CONFIG, virtual=False)
    (out / "NvInferRuntime.h").write_text(
        text.replace("class IRuntimeConfig : public INoCopy", CACHE + "class IRuntimeConfig : public INoCopy", 1)
    )


if __name__ == "__main__":
    made(Path(sys.argv[1]), Path(sys.argv[2]))
