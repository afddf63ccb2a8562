"""ONNX files as artifacts."""

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from edgekit import artifacts
from edgekit.artifacts import open_artifact, read_onnx, write_artifact
from edgekit.errors import ModelError, OutputError, UsageError
from edgekit.graph import Graph


def _graph() -> Graph:
    graph = helper.make_graph(
        [helper.make_node("Abs", ["x"], ["y"])],
        "abs",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return Graph(ir.from_proto(model))


def test_the_file_is_named_after_its_kind_and_is_the_graph(tmp_path: Path) -> None:
    artifact = write_artifact(_graph(), "float", tmp_path / "new")
    assert artifact.path == tmp_path / "new" / "float.onnx"
    assert onnx.load(artifact.path) == _graph().to_proto()


def test_an_unknown_kind_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"int4.*valid: float, int8"):
        write_artifact(_graph(), "int4", tmp_path)


def test_a_folder_that_is_a_file_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="taken"):
        write_artifact(_graph(), "float", tmp_path / "taken")


@pytest.mark.parametrize(("asked", "used"), [(1, 1), (2, 2), (64, 2), (0, 0)])
def test_threads_are_no_more_than_this_machine_has_cores(
    asked: int, used: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "cores", lambda: 2)
    path = write_artifact(_graph(), "float", tmp_path).path
    runner = open_artifact(path, asked, optimize=True)
    assert runner.session.get_session_options().intra_op_num_threads == used


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.onnx: there is no such file"):
        open_artifact(tmp_path / "gone.onnx", 1, optimize=True)


def test_an_onnx_file_is_read_or_the_error_names_it(tmp_path: Path) -> None:
    path = write_artifact(_graph(), "float", tmp_path).path
    assert [node.op_type for node in read_onnx(path).graph.node] == ["Abs"]
    for content, reason in ((b"no protobuf \xff\xff", ""), (b"", "it has no outputs")):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=rf"float\.onnx: cannot be read as ONNX: .*{reason}"):
            read_onnx(path)
    with pytest.raises(ModelError, match=r"gone\.onnx: there is no such file"):
        read_onnx(tmp_path / "gone.onnx")
