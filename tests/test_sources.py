from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit.capture import capture
from edgekit.errors import EdgekitError, ModelError, UsageError
from edgekit.sources import read, read_onnx

TEXT = """g (float[1,3,8,8] x) => (float[1,4,6,6] y) { [conv] c = Conv(x, w) [act] y = Relu(c) }"""


def _model(text: Any = TEXT, opset: Any = 21, **weights: Any) -> Any:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    if not weights and "w" in text:
        weights = {"w": np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)}
    for name, values in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    return model


def _save(folder: Path, model: Any, name: Any = "m.onnx") -> Any:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def _save_external(folder: Path, location: Any = "weights.bin") -> Any:
    """The model with its weight in a file of its own."""
    model = _model()
    tensor = model.graph.initializer[0]
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": str(len(data))}.items():
        tensor.external_data.add(key=key, value=value)
    return _save(folder, model), data


# --- files that are no model


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing\.onnx: no such file"):
        capture(str(tmp_path / "nothing.onnx"))


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").mkdir()
    with pytest.raises(ModelError, match="is a folder"):
        capture(str(tmp_path / "m.onnx"))


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    with pytest.raises(ModelError, match="the file is empty"):
        capture(str(tmp_path / "m.onnx"))


@pytest.mark.parametrize(
    "data", [b"not a model at all, only some text", b"\x00" * 64, b"PK\x03\x04" + b"\x00" * 40]
)
def test_other_bytes(tmp_path: Path, data: Any) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(ModelError, match=r"not an ONNX model|no network"):
        capture(str(tmp_path / "m.onnx"))


def test_a_model_without_nodes(tmp_path: Path) -> None:
    model = _model()
    del model.graph.node[:]
    with pytest.raises(ModelError, match="no network"):
        read_onnx(_save(tmp_path, model))


def test_a_model_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    data = _model().SerializeToString()
    path = tmp_path / "m.onnx"
    for length in range(1, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError):
            capture(str(path))


def test_a_damaged_model_never_ends_in_another_error(tmp_path: Path) -> None:
    data = _model().SerializeToString()
    random = np.random.default_rng(0)
    path, refused = tmp_path / "m.onnx", 0
    for _ in range(150):
        damaged = bytearray(data)
        damaged[random.integers(len(data) // 4)] = random.integers(
            256
        )  # names, shapes and attributes come first
        path.write_bytes(bytes(damaged))
        try:
            capture(str(path))
        except EdgekitError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_a_pickle_is_refused_unread(tmp_path: Path, suffix: Any) -> None:
    with pytest.raises(ModelError, match="may run anything") as caught:
        capture(str(tmp_path / f"m{suffix}"))
    assert "torch.export.save" in caught.value.hint
    assert "torch.onnx.export" in caught.value.hint


@pytest.mark.parametrize("name", ["m.h5", "m", "m.tflite", "m.onnx.txt"])
def test_another_kind_of_file_lists_the_valid_ones(name: Any) -> None:
    with pytest.raises(UsageError, match=r"\.onnx file, a \.pt2 file.*package\.module:callable"):
        capture(name)


def test_relative_paths_start_at_the_folder(tmp_path: Path) -> None:
    _save(tmp_path, _model())
    assert capture("m.onnx", folder=tmp_path).graph.outputs[0].shape == (1, 4, 6, 6)


# --- weights in files beside the model


def test_weights_beside_the_model_are_loaded(tmp_path: Path) -> None:
    inside = capture(str(_save(tmp_path, _model(), "inside.onnx")))
    path, data = _save_external(tmp_path)
    (tmp_path / "weights.bin").write_bytes(data)
    found = capture(str(path))
    assert found.graph.to_bytes() == inside.graph.to_bytes()
    assert found.sha256 == hashlib.sha256(path.read_bytes() + data).hexdigest()


def test_a_missing_weight_file_is_named(tmp_path: Path) -> None:
    path, _ = _save_external(tmp_path)
    with pytest.raises(ModelError, match=r"weight 'w': its data file 'weights\.bin' is missing"):
        capture(str(path))


def test_a_weight_file_that_is_cut_off(tmp_path: Path) -> None:
    path, data = _save_external(tmp_path)
    (tmp_path / "weights.bin").write_bytes(data[:-1])
    with pytest.raises(ModelError, match=r"'weights\.bin' is cut off \(431 bytes\)"):
        capture(str(path))


@pytest.mark.parametrize("kind", ["parent", "absolute", "link", "linked folder", "hidden parent", "windows"])
def test_a_weight_file_outside_the_folder_is_not_read(tmp_path: Path, kind: Any) -> None:
    outside = tmp_path / "secret.bin"
    folder = tmp_path / "model"
    folder.mkdir()
    location = {
        "parent": "../secret.bin",
        "absolute": str(outside),
        "link": "link.bin",
        "linked folder": "link/secret.bin",
        "hidden parent": "sub/../../secret.bin",
        "windows": "C:\\secret.bin",
    }[kind]
    path, data = _save_external(folder, location)
    outside.write_bytes(data)
    (folder / "sub").mkdir()
    if kind == "link":
        (folder / "link.bin").symlink_to(outside)
    elif kind == "linked folder":
        (folder / "link").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(ModelError, match="outside the model's folder; it was not read"):
        capture(str(path))


def test_a_negative_offset_is_refused(tmp_path: Path) -> None:
    path, data = _save_external(tmp_path)
    (tmp_path / "weights.bin").write_bytes(data)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[1].value = "-4"
    with pytest.raises(ModelError, match="cut off"):
        capture(str(_save(tmp_path, model)))


def test_more_weights_than_a_model_can_hold_are_refused_unread(tmp_path: Path) -> None:
    path, _ = _save_external(tmp_path)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[2].value = str(3 << 30)
    with pytest.raises(ModelError, match=r"3\.0 GiB of weights"):
        capture(str(_save(tmp_path, model)))


# --- networks that cannot be worked on


@pytest.mark.parametrize(
    ("text", "weights", "message"),
    [
        (TEXT, {"w": np.full((4, 3, 3, 3), np.nan, np.float32)}, "weight 'w': 108 of 108 numbers are NaN"),
        (
            TEXT,
            {"w": np.full((4, 3, 3, 3), np.inf, np.float32)},
            "weight 'w': 108 of 108 numbers are infinite",
        ),
        (
            "g (float[2] x) => (float[2] y) { y = Add(x, w) }",
            {"w": np.array([1, np.inf], np.float32)},
            "weight 'w': 1 of 2 numbers are infinite",
        ),
        (
            "g (float[2] x) => (uint8[2] y) { [q] y = QuantizeLinear(x, w) }",
            {"w": np.float32(1)},
            "QuantizeLinear node 'q': the model is quantized already.*float model",
        ),
        (
            "g (float[2] x) => (float[2] y) { [r] y = RandomNormalLike(x) }",
            {},
            "node 'r': draws random numbers",
        ),
        ("g (float[2] x) => (float[2] y) { [o] y = Whatever(x) }", {}, "no operator 'Whatever'"),
        (
            """g (float[1,2,3] x) => (float[1,2,3] y) {
                [b] y, m, v = BatchNormalization<training_mode=1>(x, w, w, w, w) }""",
            {"w": np.ones(2, np.float32)},
            "node 'b': the model was exported in training mode.*eval",
        ),
        (
            "g (float[2] x) => (float[2] y) { [d] y = Dropout(x, r, w) }",
            {"r": np.float32(0.5), "w": np.array(True)},
            "node 'd': Dropout is in training mode",
        ),
        (
            "g (float[2] x) => (int64[1,N] y) { [nz] y = NonZero(x) }",
            {},
            "NonZero node 'nz'.*depends on the data",
        ),
    ],
)
def test_a_network_that_cannot_be_used(tmp_path: Path, text: Any, weights: Any, message: Any) -> None:
    with pytest.raises(ModelError, match=message):
        capture(str(_save(tmp_path, _model(text, **weights))))


def test_minus_infinity_in_a_mask_is_fine(tmp_path: Path) -> None:
    text = "g (float[2] x) => (float[2] y) { a = Add(x, w) y = Softmax<axis=0>(a) }"
    assert (
        capture(str(_save(tmp_path, _model(text, w=np.array([0, -np.inf], np.float32))))).difference.value
        == 0
    )


def test_an_operator_of_another_domain_is_named(tmp_path: Path) -> None:
    model = _model()
    model.graph.node[1].domain = "com.microsoft"
    model.graph.node[1].op_type = "QuickGelu"
    model.opset_import.add(domain="com.microsoft", version=1)
    with pytest.raises(ModelError, match=r"node 'act': operator 'QuickGelu' of domain 'com\.microsoft'"):
        capture(str(_save(tmp_path, model)))


def test_the_standard_domain_may_be_spelled_out(tmp_path: Path) -> None:
    model = _model()
    model.graph.node[1].domain = "ai.onnx"
    assert [n.op_type for n in capture(str(_save(tmp_path, model))).graph.nodes] == ["Conv", "Relu"]


def test_a_model_without_outputs(tmp_path: Path) -> None:
    model = _model()
    del model.graph.output[:]
    with pytest.raises(ModelError, match="no outputs"):
        capture(str(_save(tmp_path, model)))


def test_bfloat16_weights_are_refused(tmp_path: Path) -> None:
    model = _model()
    tensor = model.graph.initializer[0]
    tensor.data_type, tensor.raw_data = onnx.TensorProto.BFLOAT16, tensor.raw_data[: 2 * 108]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    with pytest.raises(ModelError, match="bfloat16"):
        capture(str(_save(tmp_path, model)))


def test_a_weight_of_the_wrong_length(tmp_path: Path) -> None:
    model = _model()
    model.graph.initializer[0].raw_data = b"1234"
    with pytest.raises(ModelError):
        capture(str(_save(tmp_path, model)))


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    model = _model("g (float[2] x) => (float[2] y) { y = local.twice(x) }")
    function = onnx.helper.make_function(
        "local",
        "twice",
        ["a"],
        ["b"],
        [onnx.helper.make_node("Add", ["a", "a"], ["b"])],
        [onnx.helper.make_opsetid("", 21)],
    )
    model.functions.append(function)
    model.opset_import.add(domain="local", version=1)
    found = capture(str(_save(tmp_path, model)))
    assert [n.op_type for n in found.graph.nodes] == ["Add"]
    assert not found.graph.model.functions
    assert found.graph.model.opset_imports == {"": 21}


def test_a_source_runs_the_original(tmp_path: Path) -> None:
    origin = read(str(_save(tmp_path, _model())), None, None)
    assert (
        origin.run({"x": np.zeros((1, 3, 8, 8), np.float32)})["y"].tolist() == np.zeros((1, 4, 6, 6)).tolist()
    )
