"""Programs for the device: run, compiled against stand-ins of ONNX Runtime's headers, and read."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit.bundle import ArtifactEntry, TensorEntry
from edgekit.errors import ModelError
from edgekit.targets.qnn_htp.source import (
    cpp_quoted,
    cpp_source,
    java_class,
    java_quoted,
    java_source,
    python_source,
)

CONTEXT = "int8.ctx.onnx"
#: Names that end literals, comments or lines in one language or another.
NASTY = (
    'quo"te',
    "it's",
    "back\\slash",
    "\\u000a",
    "line\nbreak\ttab",
    "end of comment */ // ??/",
    "größe 图像 😀",
    "images/0:1",
    "$name ${name} {brace} %s",
    "\\",
)


def coded(name: str, dtype: str = "uint8", layout: str = "", zero: int = 3) -> TensorEntry:
    return TensorEntry(
        name=name,
        shape=(1, 3, 4, 4),
        dtype=dtype,
        layout=layout,
        scale=0.0123,
        zero_point=zero,
        quantized=dtype,
    )


def entry_of(inputs: list[TensorEntry], outputs: list[TensorEntry]) -> ArtifactEntry:
    return ArtifactEntry(size_bytes=1, inputs=tuple(inputs), outputs=tuple(outputs))


def plain(name: str, dtype: str = "float32", **more: Any) -> TensorEntry:
    return TensorEntry(name=name, shape=(1, 5), dtype=dtype, **more)


def mixed() -> ArtifactEntry:
    """All kinds of ends, under all kinds of names."""
    names = iter(NASTY * 2)
    inputs = [coded(next(names), d) for d in ("uint8", "int8", "int16")]
    inputs += [
        plain(next(names), d) for d in ("float32", "float64", "int32", "int64", "uint8", "int8", "int16")
    ]
    inputs.append(plain("inside", scale=0.5, zero_point=1, quantized="uint8"))
    outputs = [coded(f"{next(names)} out", d) for d in ("uint8", "int8", "uint16", "int16")]
    outputs += [plain(f"{next(names)} out", d) for d in ("float32", "int64", "uint8")]
    outputs.append(TensorEntry(name="scalar", shape=(), dtype="float32"))
    return entry_of(inputs, outputs)


@pytest.mark.parametrize("name", NASTY)
def test_names_in_c_and_java_literals_are_the_names(name: str) -> None:
    for literal in (cpp_quoted(name), java_quoted(name)):
        assert literal.isascii()
        assert literal.isprintable()
        body = literal[1:-1]
        assert '"' not in body
    octal = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), cpp_quoted(name)[1:-1])
    assert octal.encode("latin-1").decode() == name
    # Java: first the \u escapes of backslashes with an even number before them, then the octal ones.
    units = re.sub(r"\\u([0-9a-f]{4})", lambda m: chr(int(m[1], 16)), java_quoted(name)[1:-1])
    text = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), units)
    assert text.encode("utf-16-le", "surrogatepass").decode("utf-16-le") == name
    assert "?" not in cpp_quoted(name)


@pytest.mark.parametrize("write", [cpp_source, java_source, python_source])
def test_every_program_says_what_its_reader_must_know(write: Any) -> None:
    entry = entry_of([coded("x", layout="NCHW")], [coded("y")])
    text = write(entry, CONTEXT)
    assert "perm 0, 3, 1, 2" in text
    assert "preprocess" in text
    assert "Strict" in text
    assert '"session.disable_cpu_ep_fallback", "1"' in text
    assert repr(float(np.float32(0.0123))) in text
    ends = write(entry_of([plain("x")], [plain("y")]), "int8.device.onnx")
    assert '"session.disable_cpu_ep_fallback", "0"' in ends
    assert "float ends" in ends
    assert "NCHW" not in ends
    assert '"session.disable_cpu_ep_fallback", "1"' in write(entry, "other.onnx", strict=True)
    assert max(map(len, text.splitlines())) < 200
    assert text.isascii()


def test_types_without_tensors_are_refused_with_the_remedy() -> None:
    with pytest.raises(ModelError, match=r"'x': is uint16, which the Java program.*float ends"):
        java_source(entry_of([coded("x", "uint16")], [coded("y")]), CONTEXT)
    with pytest.raises(ModelError, match="'m': is bool, which the C"):
        cpp_source(entry_of([plain("m", "bool")], [coded("y")]), CONTEXT)


def test_the_java_class_is_called_after_the_file() -> None:
    assert java_class("int8.ctx.onnx") == "Int8Host"
    assert java_class("8-bit.ctx.onnx") == "Net8_bitHost"
    assert "public final class Int8Host implements" in java_source(mixed(), CONTEXT)


def test_java_balances_and_keeps_names_in_literals() -> None:
    text = java_source(mixed(), CONTEXT)
    # What javac would see of it after comments and literals are gone.
    code = re.sub(r'"(?:[^"\\\n]|\\.)*"', '""', text)
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", code, flags=re.S)
    for pair in ("{}", "()", "[]"):
        assert code.count(pair[0]) == code.count(pair[1])
    assert '"' not in code.replace('""', "")
    for tensor in mixed().inputs:
        assert f"(feeds, {java_quoted(tensor.name)}, in.input" in text
    for tensor in mixed().outputs:
        assert f"(found, {java_quoted(tensor.name)})" in text
    assert "0, 255, OnnxJavaType.UINT8" in text
    assert "-128, 127, OnnxJavaType.INT8" in text
    assert "0xFFFF" in text


def test_python_is_read_back_as_it_was_meant() -> None:
    entry = mixed()
    tree = ast.parse(python_source(entry, NASTY[0]))
    tables = {
        target.id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id != "CONTEXT"
    }
    scale = float(np.float32(0.0123))
    assert list(tables["INPUTS"]) == [t.name for t in entry.inputs]
    assert list(tables["OUTPUTS"]) == [t.name for t in entry.outputs]
    assert tables["INPUTS"][NASTY[0]] == ("uint8", (1, 3, 4, 4), scale, 3)
    assert tables["INPUTS"]["inside"] == ("float32", (1, 5), None, None)
    assert tables["OUTPUTS"]["scalar"] == ("float32", (), None, None)


CPP_STUB = r"""
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>
#define ORTCHAR_T char
enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING };
enum OrtAllocatorType { OrtArenaAllocator };
enum OrtMemType { OrtMemTypeDefault };
namespace Ort {
struct Env { Env(OrtLoggingLevel, const char*); };
struct SessionOptions {
  SessionOptions& AddConfigEntry(const char*, const char*);
  SessionOptions& AppendExecutionProvider(const std::string&,
                                          const std::unordered_map<std::string, std::string>& = {});
};
struct MemoryInfo { static MemoryInfo CreateCpu(OrtAllocatorType, OrtMemType); };
struct RunOptions { explicit RunOptions(std::nullptr_t); };
struct TensorTypeAndShapeInfo { std::size_t GetElementCount() const; };
struct Value {
  Value(Value&&) = default;
  template <typename T>
  static Value CreateTensor(const MemoryInfo&, T*, std::size_t, const std::int64_t*, std::size_t);
  template <typename T> const T* GetTensorData() const;
  TensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const;
};
struct Session {
  Session(const Env&, const ORTCHAR_T*, const SessionOptions&);
  std::vector<Value> Run(const RunOptions&, const char* const*, const Value*, std::size_t, const char* const*,
                         std::size_t);
};
}  // namespace Ort
"""


@pytest.mark.parametrize("macros", [[], ["-DEDGEKIT_EXAMPLE"]])
def test_a_compiler_reads_the_cpp_without_a_warning(tmp_path: Path, macros: list[str]) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("this machine has no g++")
    (tmp_path / "onnxruntime_cxx_api.h").write_text(CPP_STUB)
    (tmp_path / "host.cpp").write_text(cpp_source(mixed(), CONTEXT))
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{tmp_path}"]
    done = subprocess.run(
        [compiler, *flags, *macros, "host.cpp"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]


JAVA_STUBS = {
    "OrtException": "public class OrtException extends Exception {}",
    "OnnxValue": "public interface OnnxValue extends AutoCloseable {}",
    "OnnxJavaType": "public enum OnnxJavaType { UINT8, INT8, INT16, FLOAT }",
    "OnnxTensor": """public class OnnxTensor implements OnnxValue {
        public static OnnxTensor createTensor(
            OrtEnvironment e, java.nio.ByteBuffer b, long[] s, OnnxJavaType t)
            throws OrtException { return null; }
        public static OnnxTensor createTensor(OrtEnvironment e, java.nio.FloatBuffer b, long[] s)
            throws OrtException { return null; }
        public static OnnxTensor createTensor(OrtEnvironment e, java.nio.DoubleBuffer b, long[] s)
            throws OrtException { return null; }
        public static OnnxTensor createTensor(OrtEnvironment e, java.nio.ShortBuffer b, long[] s)
            throws OrtException { return null; }
        public static OnnxTensor createTensor(OrtEnvironment e, java.nio.IntBuffer b, long[] s)
            throws OrtException { return null; }
        public static OnnxTensor createTensor(OrtEnvironment e, java.nio.LongBuffer b, long[] s)
            throws OrtException { return null; }
        public java.nio.ByteBuffer getByteBuffer() { return null; }
        public java.nio.FloatBuffer getFloatBuffer() { return null; }
        public java.nio.DoubleBuffer getDoubleBuffer() { return null; }
        public java.nio.ShortBuffer getShortBuffer() { return null; }
        public java.nio.IntBuffer getIntBuffer() { return null; }
        public java.nio.LongBuffer getLongBuffer() { return null; }
        public void close() {} }""",
    "OrtEnvironment": """public class OrtEnvironment {
        public static OrtEnvironment getEnvironment() { return null; }
        public OrtSession createSession(String p, OrtSession.SessionOptions o)
            throws OrtException { return null; }
    }""",
    "OrtSession": """import java.util.Map; import java.util.Optional;
    public class OrtSession implements AutoCloseable {
        public Result run(Map<String, OnnxTensor> feeds) throws OrtException { return null; }
        public void close() throws OrtException {}
        public static class Result implements AutoCloseable {
            public Optional<OnnxValue> get(String name) { return null; }
            public void close() {} }
        public static class SessionOptions implements AutoCloseable {
            public void addConfigEntry(String k, String v) throws OrtException {}
            public void addQnn(Map<String, String> o) throws OrtException {}
            public void close() {} } }""",
}


def test_a_compiler_reads_the_java(tmp_path: Path) -> None:
    compiler = shutil.which("javac")
    if compiler is None:
        pytest.skip("this machine has no javac")
    folder = tmp_path / "ai" / "onnxruntime"
    folder.mkdir(parents=True)
    for name, text in JAVA_STUBS.items():
        (folder / f"{name}.java").write_text(f"package ai.onnxruntime; {text}")
    (tmp_path / "Int8Host.java").write_text(java_source(mixed(), CONTEXT))
    done = subprocess.run(
        [
            compiler,
            "-proc:none",
            "-d",
            str(tmp_path / "classes"),
            "-sourcepath",
            str(tmp_path),
            "Int8Host.java",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_python_program_gives_exactly_the_emulators_codes(tmp_path: Path, convolutions: Path) -> None:
    """In a process of its own, which has numpy and ONNX Runtime and cannot import edgekit."""
    pytest.importorskip("onnxruntime_qnn")
    import onnx_ir as ir

    from edgekit.coded import dequantize, quantize
    from edgekit.describe import describe_artifact
    from edgekit.graph import Graph
    from edgekit.passes.infer_shapes import infer_shapes
    from edgekit.passes.quantized_ends import quantized_ends, read_ends
    from edgekit.targets.qnn_htp.process import compile_context, run_emulated

    graph = quantized_ends(infer_shapes(Graph(ir.from_proto(onnx.load(convolutions)))))
    ends = read_ends(graph.model.metadata_props)
    assert ends is not None
    graph.save(tmp_path / "coded.onnx")
    compiled = compile_context(tmp_path / "coded.onnx", 57, 75, tmp_path / "made")
    image = np.random.default_rng(0).normal(0, 1.5, (1, 4, 16, 16)).astype(np.float32)
    image.flat[:3] = [np.nan, np.inf, -np.inf]
    codes = {"x": quantize(image, ends.inputs[0])}
    (wanted,) = run_emulated(compiled.context, [codes], soc=57, arch=75)
    script = compiled.context.with_name("int8_host.py")
    script.write_text(python_source(describe_artifact(compiled.context), compiled.context.name))
    np.savez(tmp_path / "in.npz", image)
    blocked = "import sys; sys.modules['edgekit'] = None; import runpy; "
    probe = (
        f"import numpy; m = runpy.run_path({str(script)!r}); "
        f"a = numpy.load({str(tmp_path / 'in.npz')!r}); model = m['Model'](soc_model='57'); "
        f"numpy.savez({str(tmp_path / 'codes.npz')!r}, *model.codes({{'x': a['arr_0']}}).values())"
    )
    for command in ([sys.executable, "-I", "-c", blocked + probe], program(script, tmp_path)):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
    with np.load(tmp_path / "codes.npz") as found:
        assert found["arr_0"].dtype == wanted["y"].dtype
        np.testing.assert_array_equal(found["arr_0"], wanted["y"])
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_array_equal(found["arr_0"], dequantize(wanted["y"], ends.outputs[0]))


def test_the_compiler_cancels_a_transpose_that_makes_an_nhwc_image_nchw(tmp_path: Path) -> None:
    """What the programs say about folding it."""
    pytest.importorskip("onnxruntime_qnn")
    from onnx import TensorProto, helper, numpy_helper

    from edgekit.targets.qnn_htp.process import compile_context

    constants: dict[str, np.ndarray[Any, Any]] = {
        "s": np.array(0.02, np.float32),
        "z": np.array(128, np.uint8),
        "w": np.random.default_rng(0).integers(-127, 128, (8, 3, 3, 3), dtype=np.int8),
        "wz": np.array(0, np.int8),
    }
    found = {}
    for layout, shape in (("NCHW", [1, 3, 16, 16]), ("NHWC", [1, 16, 16, 3])):
        nodes = [helper.make_node("DequantizeLinear", ["x", "s", "z"], ["xd"], name="xd")]
        if layout == "NHWC":
            nodes += [
                helper.make_node("Transpose", ["xd"], ["t"], name="turn", perm=[0, 3, 1, 2]),
                helper.make_node("QuantizeLinear", ["t", "s", "z"], ["tq"], name="tq"),
                helper.make_node("DequantizeLinear", ["tq", "s", "z"], ["td"], name="td"),
            ]
        nodes += [
            helper.make_node("DequantizeLinear", ["w", "s", "wz"], ["wd"], name="wd"),
            helper.make_node("Conv", [nodes[-1].output[0], "wd"], ["c"], name="conv", kernel_shape=[3, 3]),
            helper.make_node("QuantizeLinear", ["c", "s", "z"], ["y"], name="y"),
        ]
        graph = helper.make_graph(
            nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
            [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 8, 14, 14])],
            [numpy_helper.from_array(v, k) for k, v in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.save(model, tmp_path / f"{layout}.onnx")
        compiled = compile_context(tmp_path / f"{layout}.onnx", 57, 75, tmp_path / layout)
        found[layout] = compiled.trace.qnn_ops.get("Transpose", 0)
    assert found == {"NCHW": 2, "NHWC": 1}, "the output's transpose stays"


def program(script: Path, folder: Path) -> list[str]:
    return [sys.executable, "-I", str(script), str(folder / "in.npz"), str(folder / "out.npz")]
