"""Bundles: what is checked when one is opened, and before one is written."""

from __future__ import annotations

import errno
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.bundle import (
    ArtifactEntry,
    Bundle,
    Manifest,
    ModelEntry,
    Provenance,
    SampleEntry,
    check_file_out,
    check_out,
    open_bundle,
    replay,
    write_manifest,
)
from edgekit.describe import describe_artifact
from edgekit.errors import InputError, ModelError, OutputError, UnknownNameError

TARGET = "ort-cpu:host"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small bundle of one quantized artifact."""
    made = tmp_path / "bundle"
    (made / "ort-cpu-host").mkdir(parents=True)
    (made / "samples").mkdir()
    onnx.save(quantized(), made / "ort-cpu-host" / "int8.onnx")
    arrays: dict[str, Any] = {"input.0": np.ones((1, 3)), "ort-cpu-host.int8.0": np.ones((1, 3))}
    np.savez(made / "samples" / "0.npz", **arrays)
    write_manifest(made, manifest(describe_artifact(made / "ort-cpu-host" / "int8.onnx")))
    return made


def quantized() -> onnx.ModelProto:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy"]
    constants = [
        numpy_helper.from_array(np.array(0.5, np.float32), "s"),
        numpy_helper.from_array(np.array(7, np.uint8), "z"),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def manifest(entry: ArtifactEntry) -> Manifest:
    path = "ort-cpu-host/int8.onnx"
    return Manifest(
        model=ModelEntry(name="net", source="net.onnx", sha256="0"),
        preprocess={},
        artifacts={TARGET: {"int8": path}},
        details={path: entry},
        samples=(SampleEntry(name="first", path="samples/0.npz"),),
        provenance=Provenance(edgekit="0", command="", created="", versions={}, data_sha256=""),
    )


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    change(content)
    (folder / "manifest.json").write_text(json.dumps(content))


def test_a_bundle_is_read_back(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert bundle.targets == (TARGET,)
    assert bundle.path(TARGET, "int8").is_file()
    assert set(bundle.manifest.files) == {"ort-cpu-host/int8.onnx", "samples/0.npz"}
    (sample,) = bundle.samples()
    assert sample.name == "first"
    assert sample.feeds["x"].shape == (1, 3)
    assert list(sample.expected) == [(TARGET, "int8")]


def test_scales_of_inputs_and_outputs_are_in_the_manifest(folder: Path) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    assert content["schema"] == 1
    entry = content["details"]["ort-cpu-host/int8.onnx"]
    for tensor in (*entry["inputs"], *entry["outputs"]):
        assert (tensor["scale"], tensor["zero_point"], tensor["quantized"]) == (0.5, 7, "uint8")


@pytest.mark.parametrize(("name", "found"), [(None, TARGET), ("ort-cpu", TARGET), (TARGET, TARGET)])
def test_a_target_is_found_by_name(folder: Path, name: str | None, found: str) -> None:
    assert open_bundle(folder).target(name) == found


def test_what_a_bundle_lacks_is_named(folder: Path) -> None:
    bundle = open_bundle(folder)
    with pytest.raises(UnknownNameError, match=TARGET):
        bundle.target("ethos-u")
    with pytest.raises(UnknownNameError, match="int8"):
        bundle.path(TARGET, "float")


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "ort-cpu-host" / "int8.onnx").unlink()
    with pytest.raises(ModelError, match=r"int8\.onnx: is missing"):
        open_bundle(folder)


def test_a_changed_file_is_named(folder: Path) -> None:
    with (folder / "samples" / "0.npz").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(ModelError, match=r"0\.npz: was changed"):
        open_bundle(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(schema=2), "schema"),
        (lambda c: c.update(new=1), "new"),
        (lambda c: c["files"].update({"../x": "0"}), "outside the bundle"),
        (lambda c: c["files"].update({"/etc/passwd": "0"}), "outside the bundle"),
        (lambda c: c["files"].pop("samples/0.npz"), "no hash"),
        (lambda c: c["details"].clear(), "does not describe"),
        (lambda c: (c["artifacts"].clear(), c.update(samples=[])), "names no artifact"),
    ],
)
def test_a_wrong_manifest_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(folder, change)
    with pytest.raises(InputError, match=message):
        open_bundle(folder)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such bundle"):
        open_bundle(tmp_path / "none")
    with pytest.raises(InputError, match=r"holds no manifest\.json"):
        open_bundle(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="JSON"):
        open_bundle(tmp_path)


def test_a_sample_that_does_not_fit_is_refused(folder: Path) -> None:
    np.savez(folder / "samples" / "0.npz", a=np.ones(1))
    bundle = Bundle(folder, write_manifest(folder, open_manifest(folder)))
    with pytest.raises(InputError, match=r"0\.npz"):
        bundle.samples()


def open_manifest(folder: Path) -> Manifest:
    return Manifest.model_validate_json((folder / "manifest.json").read_bytes())


def test_out_is_checked_without_leaving_anything(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for good in (folder, tmp_path / "empty", tmp_path / "new" / "deep"):
        check_out(good)
    check_file_out(tmp_path / "new" / "a.onnx")
    for bad, message in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "under", "is a file"),
        (tmp_path, "did not make"),
    ):
        with pytest.raises(OutputError, match=message):
            check_out(bad)
    with pytest.raises(OutputError, match="is a folder"):
        check_file_out(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    # Permission bits do not bind the superuser, who runs many a CI.
    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    with pytest.raises(OutputError, match="Permission denied"):
        check_out(tmp_path / "new")
    with pytest.raises(OutputError, match="Permission denied"):
        check_file_out(tmp_path / "new.onnx")


def test_replay_judges_differences() -> None:
    expected = {"y": np.array([1.0, 2.0, 3.0])}
    assert replay(expected, expected) == {"max_abs": 0.0, "relative": 0.0, "cosine": 1.0, "ok": True}
    assert replay(expected, {"y": np.array([1.0, 2.0, 3.001])})["ok"]
    assert not replay(expected, {"y": np.array([3.0, 2.0, 1.0])})["ok"]
    assert not replay(expected, {"y": np.array([np.nan, 2.0, 3.0])})["ok"]


def test_what_is_no_onnx_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"\x00nonsense")
    with pytest.raises(ModelError, match="cannot be read"):
        describe_artifact(tmp_path / "x.onnx")
