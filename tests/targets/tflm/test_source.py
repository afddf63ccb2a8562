"""The C++ source: what a compiler makes of it is the model, byte for byte."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import ModelError, ToolError
from edgekit.targets.tflm import source as module
from edgekit.targets.tflm.operators import METHODS, check_operators, methods
from edgekit.targets.tflm.source import check_source, write_source
from edgekit.tflite.model import DType, Operator, Quantization, Tensor, TfliteModel

MAIN = """
#include <cstdio>
#include "model.h"
struct Resolver {
  int count = 0;
  int AddRelu() { ++count; return 0; }
  int AddLogistic() { ++count; return 0; }
};
int main() {
  using namespace edgekit_model;
  Resolver resolver;
  const bool done = RegisterOperators(resolver);
  unsigned long sum = 0;
  for (std::size_t i = 0; i < kModelSize; ++i) sum = (sum * 31 + kModel[i]) % 1000003;
  const bool aligned = reinterpret_cast<std::uintptr_t>(kModel) % 16 == 0;
  std::printf("%zu %lu %d %d %u %d %zu %.9g %d %d %s %s\\n", kModelSize, sum, aligned, done, kOperatorCount,
              resolver.count, kArenaSize, kInputs[0].scale, kInputs[0].zero_point, kOutputs[0].shape[1],
              kInputs[0].name, kOutputs[0].type);
}
"""


def _model(*ops: str, dtype: DType = DType.INT8) -> TfliteModel:
    names = [f"t{i}" for i in range(len(ops) + 1)]
    step = Quantization.single(0.1, -7)
    tensors = {n: Tensor(n, (1, 40), dtype, step) for n in names}
    chain = [Operator(op, (names[i],), (names[i + 1],), source=f"node{i}") for i, op in enumerate(ops)]
    return TfliteModel(tensors, tuple(chain), {'im"age?': names[0]}, {"out": names[-1]})


def test_the_compiled_source_is_the_model(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++")
    data = np.random.default_rng(0).integers(0, 256, 1000).astype(np.uint8).tobytes()
    source, header = write_source(_model("RELU", "LOGISTIC", "RELU"), data, 4096, tmp_path)
    assert (source.name, header.name) == ("model.cc", "model.h")
    assert "without a warning" in check_source(source).text
    (tmp_path / "main.cc").write_text(MAIN)
    program = tmp_path / "program"
    subprocess.run(
        [compiler, "-std=c++17", "-Wall", "-Werror", "main.cc", "model.cc", "-o", program],
        cwd=tmp_path,
        check=True,
    )
    shown = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    total = 0
    for byte in data:
        total = (total * 31 + byte) % 1000003
    scale = f"{np.float32(0.1):.9g}"
    assert shown == ["1000", str(total), "1", "1", "2", "2", "4096", scale, "-7", "40", 'im"age?', "int8"]


def test_source_that_does_not_compile_is_a_tool_error(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    (tmp_path / "model.cc").write_text("int main( {")
    with pytest.raises(ToolError, match=r"model\.cc: the compiler refuses it"):
        check_source(tmp_path / "model.cc")


def test_without_a_compiler_it_says_that_nothing_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COMPILERS", ("no-such-compiler",))
    found = check_source(tmp_path / "model.cc")
    assert found.compiler == ""
    assert found.text == "not compiled: this machine has none of no-such-compiler"


def test_operators_that_the_runtime_lacks_are_all_named_with_a_remedy() -> None:
    with pytest.raises(ModelError) as caught:
        check_operators(_model("GELU", "RELU", "TILE"))
    text = str(caught.value)
    assert "GELU of node 'node0'" in text
    assert "TILE of node 'node2'" in text
    assert "RELU" not in text.replace("GELU", "")
    assert "replace GELU by HardSwish" in text
    assert methods(_model("RELU", "RELU6", "RELU")) == ("AddRelu", "AddRelu6")
    check_operators(_model("HARD_SWISH"))
    with pytest.raises(ModelError, match="no integer kernel for 16-bit HARD_SWISH of node 'node0'"):
        check_operators(_model("HARD_SWISH", dtype=DType.INT16))


def test_every_operator_of_the_table_is_one_of_tflites_and_in_the_runtime() -> None:
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    runtime = pytest.importorskip("tflite_micro.python.tflite_micro._runtime")
    library = Path(runtime.__file__).read_bytes()
    for op, method in METHODS.items():
        assert hasattr(schema.BuiltinOperator, op), op
        assert f"Register_{op}".encode() in library, op
        assert method.removeprefix("Add").lower() == op.replace("_", "").lower(), op
