"""Programs that run a compiled network on a device: C++, Java for Android, Python.

Each loads the file in ONNX Runtime with the QNN execution provider, takes and returns float values, and turns
them into codes and back where the file has codes at its ends. None of them needs edgekit.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod
from string import Template

import numpy as np

from edgekit import __version__
from edgekit.bundle import ArtifactEntry, TensorEntry
from edgekit.errors import ModelError
from edgekit.targets.qnn_htp.source_text import CPP, JAVA, PYTHON

#: Name of a context model without float ends; ONNX Runtime has to run all of it on HTP.
_CONTEXT = ".ctx.onnx"
_CPP = {f"{u}int{b}": f"std::{u}int{b}_t" for u in ("", "u") for b in (8, 16, 32, 64)} | {
    "float32": "float",
    "float64": "double",
}
#: Element types that ONNX Runtime's Java API makes tensors of: array type, buffer method.
_JAVA_IN = {
    "float32": ("float", "floats"),
    "float64": ("double", "doubles"),
    "int8": ("byte", "bytes"),
    "uint8": ("byte", "bytes"),
    "int16": ("short", "shorts"),
    "int32": ("int", "ints"),
    "int64": ("long", "longs"),
}
_JAVA_OUT = _JAVA_IN | {
    "uint16": ("short", "shorts"),
    "uint32": ("int", "ints"),
    "uint64": ("long", "longs"),
}


@dataclass(frozen=True)
class _Slot:
    """An input or output in the order of the entry; ``codes``: the host quantizes or dequantizes it."""

    index: int
    entry: TensorEntry

    @property
    def codes(self) -> bool:
        # A float end whose codes are inside of the file has a scale as well.
        return self.entry.scale is not None and self.entry.dtype == self.entry.quantized

    @property
    def scale(self) -> str:
        return repr(float(np.float32(self.entry.scale or 1.0)))

    @property
    def zero_point(self) -> int:
        return self.entry.zero_point or 0

    @property
    def elements(self) -> int:
        return prod(self.entry.shape)

    @property
    def note(self) -> str:
        """Shape, layout and codes, for a comment; no name."""
        text = "scalar" if not self.entry.shape else " x ".join(map(str, self.entry.shape))
        text += f", {self.entry.layout}" if self.entry.layout else ""
        if self.codes:
            return f"{text}; {self.entry.dtype} codes in the file: {self.scale} * (code - {self.zero_point})"
        return f"{text}; {self.entry.dtype}"


def cpp_source(entry: ArtifactEntry, context_name: str, *, strict: bool | None = None) -> str:
    """A C++17 class ``edgekit_model::Model`` over ONNX Runtime's C++ API, with an example ``main``.

    Args:
        entry: What the file takes and returns.
        context_name: Name of the file; the program looks for it in the working directory unless told a path.
        strict: Whether a node that is not on HTP is an error; None for a file called ``*.ctx.onnx``.

    Raises:
        ModelError: An input or output has a type that the program cannot hold.
    """
    inputs, outputs = _slots(entry, _CPP, _CPP, "C++")
    kinds = [_CPP[s.entry.dtype] for s in (*inputs, *outputs)]
    return Template(CPP).substitute(
        head=_comment(_notes(context_name, inputs, strict), "//"),
        context=cpp_quoted(context_name),
        strict=_flag(context_name, strict),
        input_names=", ".join(cpp_quoted(s.entry.name) for s in inputs),
        output_names=", ".join(cpp_quoted(s.entry.name) for s in outputs),
        input_fields="\n".join(_cpp_field("input", s) for s in inputs),
        output_fields="\n".join(_cpp_field("output", s) for s in outputs),
        feeds="\n".join(_cpp_feed(s) for s in inputs),
        results="\n".join(
            _cpp_result(s, kind) for s, kind in zip(outputs, kinds[len(inputs) :], strict=True)
        ),
        zeros="\n".join(f"  in.input{s.index}.resize({s.elements});" for s in inputs),
        shown="\n".join(_cpp_shown(s) for s in outputs),
    )


def java_source(entry: ArtifactEntry, context_name: str, *, strict: bool | None = None) -> str:
    """A Java class called :func:`java_class` over ONNX Runtime for Android.

    Args:
        entry: What the file takes and returns.
        context_name: Name of the file; the class is told its folder.
        strict: Whether a node that is not on HTP is an error; None for a file called ``*.ctx.onnx``.

    Raises:
        ModelError: ONNX Runtime's Java API has no tensors of a type that is needed, such as uint16 inputs.
    """
    inputs, outputs = _slots(entry, _JAVA_IN, _JAVA_OUT, "Java")
    return Template(JAVA).substitute(
        head=_comment(_notes(context_name, inputs, strict), "//"),
        name=java_class(context_name),
        context=java_quoted(context_name),
        strict=_flag(context_name, strict),
        input_fields="\n".join(_java_field("input", s) for s in inputs),
        output_fields="\n".join(_java_field("output", s) for s in outputs),
        feeds="\n".join(_java_feed(s) for s in inputs),
        results="\n".join(_java_result(s) for s in outputs),
    )


def python_source(entry: ArtifactEntry, context_name: str, *, strict: bool | None = None) -> str:
    """A Python module that needs numpy, onnxruntime and onnxruntime_qnn; also a program.

    Args:
        entry: What the file takes and returns.
        context_name: Name of the file, which lies beside the module.
        strict: Whether a node that is not on HTP is an error; None for a file called ``*.ctx.onnx``.
    """
    inputs, outputs = ([_Slot(i, e) for i, e in enumerate(es)] for es in (entry.inputs, entry.outputs))
    return Template(PYTHON).substitute(
        head=_comment(_notes(context_name, inputs, strict), "#"),
        context=ascii(context_name),
        strict=_flag(context_name, strict),
        inputs="\n".join(_python_row(s) for s in inputs),
        outputs="\n".join(_python_row(s) for s in outputs),
    )


def java_class(context_name: str) -> str:
    """The class that :func:`java_source` writes for a file: ``Int8Host`` for ``int8.ctx.onnx``."""
    stem = re.sub(r"\W", "_", context_name.split(".")[0], flags=re.ASCII).capitalize()
    return f"{stem if stem[:1].isalpha() else f'Net{stem}'}Host"


def cpp_quoted(name: str) -> str:
    """A C++ string literal in plain ASCII: the bytes of UTF-8, what is not plain in octal."""
    plain = set(range(32, 127)) - {ord('"'), ord("\\"), ord("?")}  # '?' begins trigraphs
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03o}" for b in name.encode()) + '"'


def java_quoted(name: str) -> str:
    r"""A Java string literal in plain ASCII.

    Java reads ``\u`` escapes before anything else, in comments too: what would end a literal or begin such an
    escape is written in octal.
    """
    units = np.frombuffer(name.encode("utf-16-le"), "<u2").tolist()
    plain = set(range(32, 127)) - {ord('"'), ord("\\")}
    parts = (chr(u) if u in plain else f"\\{u:03o}" if u < 128 else f"\\u{u:04x}" for u in units)
    return '"' + "".join(parts) + '"'


def _slots(
    entry: ArtifactEntry, known_in: Collection[str], known_out: Collection[str], language: str
) -> tuple[list[_Slot], list[_Slot]]:
    found = []
    for entries, valid in ((entry.inputs, known_in), (entry.outputs, known_out)):
        for tensor in entries:
            if tensor.dtype not in valid:
                raise ModelError(
                    f"is {tensor.dtype}, which the {language} program cannot hold in a tensor",
                    where=f"'{tensor.name}'",
                    valid=valid,
                    hint="Compile the network with float ends for this language",
                )
        found.append([_Slot(i, tensor) for i, tensor in enumerate(entries)])
    return found[0], found[1]


def _notes(context_name: str, inputs: Sequence[_Slot], strict: bool | None) -> list[str]:
    """What the reader of a program has to know."""
    lines = [
        f"Written by edgekit {__version__}.",
        "",
        f"Runs {ascii(context_name)[1:-1]} on the Hexagon Tensor Processor: ONNX Runtime with QNN.",
        "The binary that the file names lies beside it. The device needs QNN's libraries for its Hexagon",
        "architecture: libQnnHtp.so, libQnnSystem.so, libQnnHtpV<arch>Stub.so and libQnnHtpV<arch>Skel.so.",
        "",
    ]
    if _flag(context_name, strict) == "1":
        lines += ["Strict: what the Hexagon does not take is an error; nothing runs on the CPU unnoticed."]
    else:
        lines += ["The network has float ends: nodes around the EPContext node run on the CPU."]
    lines += [
        "",
        "Inputs are real values after preprocessing; the bundle's manifest.json has it under 'preprocess'.",
        "Where the file takes codes they are made here, rounding half to even.",
    ]
    if any(s.entry.layout == "NCHW" for s in inputs):
        lines += [
            "",
            "The Hexagon works on NHWC. An image in NCHW costs one transpose, which the compiler puts at the",
            "edge. To fold it, let the network take NHWC and begin with a Transpose (perm 0, 3, 1, 2): the",
            "compiler cancels the two, and camera images come in as they are. Outputs in NCHW likewise.",
        ]
    return lines


def _comment(lines: Sequence[str], mark: str) -> str:
    # A '?' or a backslash may not stand in a comment of C++ or Java: trigraphs, \u escapes, joined lines.
    plain = (line.replace("\\", "/").replace("?", ".") for line in lines)
    return "\n".join(f"{mark} {line}".rstrip() for line in plain)


def _flag(context_name: str, strict: bool | None) -> str:
    return str(int(context_name.endswith(_CONTEXT) if strict is None else strict))


def _cpp_field(kind: str, slot: _Slot) -> str:
    held = "float" if slot.codes else _CPP[slot.entry.dtype]
    return f"  std::vector<{held}> {kind}{slot.index};  // {cpp_quoted(slot.entry.name)}: {slot.note}"


def _cpp_feed(slot: _Slot) -> str:
    i, kind = slot.index, _CPP[slot.entry.dtype]
    shape = f"std::array<std::int64_t, {len(slot.entry.shape)}>{{{', '.join(map(str, slot.entry.shape))}}}"
    given = f"in.input{i}, {slot.elements}, kInputNames[{i}]"
    if slot.codes:
        made = f"Quantize<{kind}>({given}, {slot.scale}f, {slot.zero_point})"
    else:
        made = f"Checked({given})"
    return (
        f"    std::vector<{kind}> data{i} = {made};\n    feeds.push_back(Tensor(memory, data{i}, {shape}));"
    )


def _cpp_result(slot: _Slot, kind: str) -> str:
    codes = f"Dequantize<{kind}>(found[{slot.index}], {slot.scale}f, {slot.zero_point})"
    made = codes if slot.codes else f"Values<{kind}>(found[{slot.index}])"
    return f"    out.output{slot.index} = {made};"


def _cpp_shown(slot: _Slot) -> str:
    name, field = cpp_quoted(slot.entry.name), f"out.output{slot.index}"
    return f'  std::cout << {name} << ": " << {field}.size() << " values\\n";'


def _java_field(kind: str, slot: _Slot) -> str:
    held = "float" if slot.codes else _JAVA_OUT[slot.entry.dtype][0]
    name = java_quoted(slot.entry.name)
    return f"    /* {_java_comment(name)}: {slot.note} */\n    public {held}[] {kind}{slot.index};"


def _java_comment(literal: str) -> str:
    return literal.replace("*/", "*\\057")


def _java_feed(slot: _Slot) -> str:
    entry = slot.entry
    shape = f"new long[] {{{', '.join(map(str, entry.shape))}}}"
    given = f"{java_quoted(entry.name)}, in.input{slot.index}, {shape}"
    if slot.codes:
        limits = np.iinfo(entry.dtype)
        means = f"{slot.scale}f, {slot.zero_point}, {limits.min}, {limits.max}"
        wide = "quantize16" if entry.dtype == "int16" else "quantize8"
        kind = "" if wide == "quantize16" else f", OnnxJavaType.{entry.dtype.upper()}"
        return f"      {wide}(feeds, {given}, {means}{kind});"
    kind = f", OnnxJavaType.{entry.dtype.upper()}" if entry.dtype.endswith("int8") else ""
    return f"      feed(feeds, {given}{kind});"


def _java_result(slot: _Slot) -> str:
    method, name = _JAVA_OUT[slot.entry.dtype][1], java_quoted(slot.entry.name)
    if slot.codes:
        mask = {"uint8": "0xFF", "uint16": "0xFFFF"}.get(slot.entry.dtype, "-1")
        made = f"dequantize({method}(found, {name}), {mask}, {slot.scale}f, {slot.zero_point})"
    else:
        made = f"{method}(found, {name})"
    return f"        out.output{slot.index} = {made};"


def _python_row(slot: _Slot) -> str:
    e = slot.entry
    means = f"{slot.scale}, {slot.zero_point}" if slot.codes else "None, None"
    layout = f"  # {e.layout}" if e.layout else ""
    return f"    {e.name!a}: ({e.dtype!a}, {tuple(e.shape)}, {means}),{layout}"
