"""TensorRT's interface classes with every pure virtual function defined, written from NvInferImpl.h as it is installed.

    python stubs_of_headers.py NvInferImpl.h > stubs.hpp

A function that gpu_double.cpp does not override ends the process with its name: the library must not call it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

CLASSES = ("VRuntime", "VCudaEngine", "VExecutionContext")
RTX_CLASSES = ("VHostMemory", "VRuntimeConfig", "VRuntimeCache")  # that the double has with headers of TensorRT-RTX


def stubs(header: str) -> str:
    lines = ["#pragma once", "#pragma GCC system_header", "#include <NvInferRuntime.h>", "using namespace nvinfer1;"]
    lines.append("[[noreturn]] void unexpected(const char* what);")
    for name in CLASSES + (RTX_CLASSES if "class VRuntimeCache" in header else ()):
        (body,) = re.findall(rf"class {name} : public VRoot\n{{(.*?)\n}};", header, re.DOTALL)
        lines.append(f"struct {name}Stubs : nvinfer1::apiv::{name} {{")
        for declaration in re.findall(r"virtual ([^;{]*?) = 0;", body, re.DOTALL):
            flat = " ".join(declaration.split())
            lines.append(f'    {flat} {{ unexpected("{flat}"); }}')
        lines.append("};")
    return "\n".join(lines)


if __name__ == "__main__":
    print(stubs(Path(sys.argv[1]).read_text()))
