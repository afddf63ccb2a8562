"""The model as C++ source: ``model.cc`` and ``model.h`` for a program that links TFLite Micro."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit import __version__
from edgekit.errors import ToolError
from edgekit.files import write_whole
from edgekit.targets.tflm.operators import methods
from edgekit.tflite.model import Tensor, TfliteModel

#: Compilers that are tried, in this order, to check what was written.
COMPILERS = ("g++", "clang++")
TIMEOUT_S = 120.0
_COLUMNS = 16


@dataclass(frozen=True)
class SourceCheck:
    """Whether a compiler has seen the source.

    Attributes:
        compiler: Its first version line; empty where there is none on this machine.
        text: One sentence for the report.
    """

    compiler: str
    text: str


def write_source(model: TfliteModel, data: bytes, arena_bytes: int, folder: Path) -> tuple[Path, Path]:
    """Write ``model.cc`` and ``model.h``.

    Args:
        model: What ``data`` holds.
        data: The ``.tflite``.
        arena_bytes: What the header gives as the size of the tensor arena.
        folder: Where they go.

    Raises:
        ModelError: TFLite Micro lacks an operator.
        OutputError: A file cannot be written.
    """
    header, source = folder / "model.h", folder / "model.cc"
    write_whole(header, _header(model, len(data), arena_bytes).encode())
    write_whole(source, _source(data).encode())
    return source, header


def check_source(source: Path) -> SourceCheck:
    """Let a C++ compiler of this machine read the source, warnings being errors.

    Raises:
        ToolError: It refuses the source, or takes too long.
    """
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        return SourceCheck("", f"not compiled: this machine has none of {', '.join(COMPILERS)}")
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", source.name]
    try:
        done = subprocess.run(command, cwd=source.parent, capture_output=True, text=True, timeout=TIMEOUT_S)
        shown = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError(f"the compiler could not be run: {error}", where=compiler) from error
    if done.returncode:
        raise ToolError(f"the compiler refuses it: {done.stderr.strip()[-2000:]}", where=str(source))
    version = shown.stdout.splitlines()[0] if shown.stdout else compiler
    return SourceCheck(version, f"read without a warning by {version}")


def _source(data: bytes) -> str:
    rows = (data[i : i + _COLUMNS] for i in range(0, len(data), _COLUMNS))
    body = "\n".join(" ".join(f"0x{byte:02x}," for byte in row) for row in rows)
    lines = [
        f"// Written by edgekit {__version__}; do not edit.",
        '#include "model.h"',
        "",
        "namespace edgekit_model {",
        "alignas(16) const unsigned char kModel[kModelSize] = {",
        body,
        "};",
        "}  // namespace edgekit_model",
    ]
    return "\n".join(lines) + "\n"


def _header(model: TfliteModel, size: int, arena_bytes: int) -> str:
    wanted = methods(model)
    lines = [
        f"// Written by edgekit {__version__}; do not edit.",
        "#ifndef EDGEKIT_MODEL_H_",
        "#define EDGEKIT_MODEL_H_",
        "",
        "#include <cstddef>",
        "#include <cstdint>",
        "",
        "namespace edgekit_model {",
        "",
        "// The .tflite file.",
        f"constexpr std::size_t kModelSize = {size};",
        "extern const unsigned char kModel[kModelSize];",
        "",
        "// Bytes of tensor arena that the model needed in the 64-bit build of TFLite Micro with its",
        "// reference kernels. 32-bit pointers need less; kernels with scratch buffers (CMSIS-NN) need more.",
        f"constexpr std::size_t kArenaSize = {arena_bytes};",
        "",
        "// real = scale * (code - zero_point); scale 0 stands for values that are no codes.",
        "struct TensorInfo {",
        "  const char* name;",
        "  const char* type;",
        "  float scale;",
        "  std::int32_t zero_point;",
        "  int rank;",
        "  int shape[6];",
        "};",
        *_infos("Input", model.inputs, model),
        *_infos("Output", model.outputs, model),
        "",
        "// For tflite::MicroMutableOpResolver<kOperatorCount>. Returns false where one cannot be added.",
        f"constexpr unsigned int kOperatorCount = {len(wanted)};",
        "template <typename Resolver>",
        "bool RegisterOperators(Resolver& resolver) {",
        *(f"  if (resolver.{method}() != 0) return false;" for method in wanted),
        "  return true;",
        "}",
        "",
        "}  // namespace edgekit_model",
        "",
        "#endif  // EDGEKIT_MODEL_H_",
    ]
    return "\n".join(lines) + "\n"


def _infos(kind: str, names: Mapping[str, str], model: TfliteModel) -> list[str]:
    rows = [f"    {_info(name, model.tensors[tensor])}," for name, tensor in names.items()]
    count = f"k{kind}Count"
    return [
        "",
        f"constexpr int {count} = {len(names)};",
        f"constexpr TensorInfo k{kind}s[{count}] = {{",
        *rows,
        "};",
    ]


def _info(name: str, tensor: Tensor) -> str:
    scale, zero_point = "0.0f", 0
    if tensor.quantization is not None:
        scale = f"{float(tensor.quantization.scale[0])!r}f"
        scale = scale if re.search(r"[.e]", scale) else scale.replace("f", ".0f")
        zero_point = int(tensor.quantization.zero_point[0])
    shape = ", ".join(str(size) for size in tensor.shape)
    return f'{{"{_quoted(name)}", "{tensor.dtype}", {scale}, {zero_point}, {len(tensor.shape)}, {{{shape}}}}}'


def _quoted(name: str) -> str:
    """The name as it stands in a C string: plain ASCII, anything else in octal."""
    plain = set(range(32, 127)) - {ord('"'), ord("\\"), ord("?")}
    return "".join(chr(b) if b in plain else f"\\{b:03o}" for b in name.encode())
