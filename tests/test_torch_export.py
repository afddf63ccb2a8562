from __future__ import annotations

import io
import json
import logging
import pickle
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.capture import Captured, capture
from edgekit.errors import ModelError, UsageError
from edgekit.graph import OPSET, array
from edgekit.passes.edit import static_shape

torch = pytest.importorskip("torch")

# Written into a folder of its own and imported from there, as a user's package is.
NETS = '''
import torch
from torch import nn
from torch.nn import functional as F

NOT_CALLABLE = 3


class Block(nn.Module):
    def __init__(self, a, b, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(a, b, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(b)
        self.conv2 = nn.Conv2d(b, b, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(b)
        self.short = None
        if stride > 1:
            self.short = nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.short is None else self.short(x)))


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.blocks = nn.Sequential(Block(8, 8, 1), Block(8, 12, 2))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(12, 10)

    def forward(self, x):
        return self.head(self.drop(self.blocks(self.stem(x)).mean((2, 3))))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.position = nn.Parameter(torch.randn(1, 12, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.out = nn.Linear(16, 5)

    def forward(self, ids, mask):
        x = self.embed(ids) + self.position[:, : ids.shape[1]]
        x = self.encoder(x, src_key_padding_mask=mask == 0)
        return {"logits": self.out(x), "pooled": x.mean(1)}


def randomize(module):
    """Batch normalization statistics that are not the identity."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.running_mean, -1, 1)
            nn.init.uniform_(m.running_var, 0.2, 2)
            nn.init.uniform_(m.weight, 0.5, 1.5)
    return module


def classifier():
    torch.manual_seed(0)
    print("building")
    return randomize(Classifier())


def transformer():
    torch.manual_seed(0)
    ones = torch.ones(1, 12, dtype=torch.int64)
    return Transformer(), {"ids": ones, "mask": ones}


def branching():
    class Branching(nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x - 1

    return Branching()


def two_inputs():
    class Two(nn.Module):
        def forward(self, left, right, scale=2.0):
            return left + scale * right

    return Two()


def raises():
    raise RuntimeError("no weights here")


def other():
    return "a string"


def bad_examples():
    return nn.Identity(), {"x": 3}
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("project")
    (folder / "capture_test_nets.py").write_text(NETS)
    yield folder
    sys.modules.pop("capture_test_nets", None)


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Any:
    return capture("capture_test_nets:classifier", input_shapes={"image": (1, 3, 16, 16)}, folder=folder)


@pytest.fixture(scope="module")
def transformer(folder: Path) -> Any:
    return capture("capture_test_nets:transformer", folder=folder)


def _module(folder: Path, name: Any) -> Any:
    sys.path.insert(0, str(folder))
    try:
        import importlib

        return getattr(importlib.import_module("capture_test_nets"), name)()
    finally:
        sys.path.remove(str(folder))


def test_a_residual_classifier(classifier: Captured) -> None:
    graph = classifier.graph
    ops = [n.op_type for n in graph.nodes]
    assert sorted(set(ops)) == ["Add", "Conv", "Gemm", "GlobalAveragePool", "Relu", "Reshape"]
    assert ops.count("Conv") == 6
    assert {"stem.weight", "blocks.1.short.0.weight", "blocks.1.short.0.bias", "head.weight"} <= set(
        graph.model.graph.initializers
    )
    assert graph.inputs[0].name == "image"
    assert graph.model.opset_imports == {"": OPSET}
    assert classifier.difference.value < 1e-4
    assert "torch module" in classifier.difference.note
    assert b"capture_test_nets.py" not in graph.to_bytes(), "no path of this machine in the model"


def test_a_transformer_with_integer_inputs(transformer: Captured, folder: Path) -> None:
    graph = transformer.graph
    ops = {n.op_type for n in graph.nodes}
    assert {"LayerNormalization", "Gelu", "Softmax", "MatMul", "Gather"} <= ops
    assert not ops & {"Shape", "Constant", "CastLike", "Identity", "Dropout"}
    assert [i.dtype for i in graph.inputs] == [np.int64, np.int64]
    assert [o.shape for o in graph.outputs] == [(1, 12, 5), (1, 16)]
    names = set(dict(_module(folder, "transformer")[0].named_parameters()))
    assert names <= set(graph.model.graph.initializers), "every parameter is found under its own name"
    assert transformer.difference.value < 1e-4
    assert all(static_shape(v) is not None for v in graph.values().values())


def test_rearranged_weights_hold_the_parameters(transformer: Captured, folder: Path) -> None:
    module = _module(folder, "transformer")[0]
    folding = next(c for c in transformer.graph.history if c.pass_name == "fold_constants")
    rearranged = folding.details["rearranged_weights"]
    values = transformer.graph.values()
    for name, parameter in module.named_parameters():
        weight = parameter.detach().numpy()
        found = array(values[name])
        assert found is not None
        assert np.array_equal(found, weight.T if name in rearranged else weight), name


def test_what_a_callable_prints_goes_to_stderr(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError):
        capture("capture_test_nets:classifier", folder=folder)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "building\n")


def test_nothing_else_is_printed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = logging.root.manager.disable
    path = list(sys.path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        capture("capture_test_nets:two_inputs", input_shapes={"left": (1, 3), "right": (1, 3)}, folder=folder)
    out, err = capfd.readouterr()
    assert out + err == ""
    assert logging.root.manager.disable == before
    assert sys.path == path


def test_a_module_without_shapes(folder: Path) -> None:
    with pytest.raises(
        UsageError, match=r"what shape its inputs have \(left, right, scale\).*--input-shape left="
    ):
        capture("capture_test_nets:two_inputs", folder=folder)


def test_too_few_shapes(folder: Path) -> None:
    with pytest.raises(
        UsageError, match=r"forward takes 2 input\(s\), 1 shape\(s\) were given.*valid: left, right, scale"
    ):
        capture("capture_test_nets:two_inputs", input_shapes={"left": (1, 3)}, folder=folder)


def test_shapes_may_override_examples(folder: Path) -> None:
    shapes = {"ids": (2, 7), "mask": (2, 7)}
    found = capture("capture_test_nets:transformer", input_shapes=shapes, folder=folder)
    assert [i.shape for i in found.graph.inputs] == [(2, 7), (2, 7)]
    with pytest.raises(UsageError, match=r"no input 'words' \(valid: ids, mask\)"):
        capture("capture_test_nets:transformer", input_shapes={"words": (1, 3)}, folder=folder)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("raises", ModelError, "raised RuntimeError: no weights here"),
        ("other", ModelError, "returned str, not an nn.Module"),
        ("bad_examples", ModelError, "not a mapping of names to tensors"),
        ("nothing", UsageError, "has no 'nothing'"),
        ("NOT_CALLABLE", UsageError, "not a function"),
        ("branching", ModelError, "torch.onnx.export failed"),
    ],
)
def test_a_callable_that_does_not_work(folder: Path, name: Any, error: Any, message: Any) -> None:
    with pytest.raises(error, match=message):
        capture(f"capture_test_nets:{name}", input_shapes={"x": (1, 3)}, folder=folder)


def test_a_module_that_is_not_there(folder: Path) -> None:
    with pytest.raises(UsageError, match="no module 'capture_test_missing'"):
        capture("capture_test_missing:make", folder=folder)


@pytest.fixture(scope="module")
def saved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The classifier as torch saves it, with an open batch."""
    module = _module(folder, "classifier").eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (torch.rand(2, 3, 16, 16),), dynamic_shapes=({0: batch},))
        path = tmp_path_factory.mktemp("saved") / "classifier.pt2"
        torch.export.save(program, path)
    return path


def test_a_saved_program(saved: Path, classifier: Captured) -> None:
    found = capture(str(saved))
    assert found.graph.inputs[0].shape == (1, 3, 16, 16)
    assert [n.op_type for n in found.graph.nodes] == [n.op_type for n in classifier.graph.nodes]
    assert "head.weight" in found.graph.model.graph.initializers
    assert found.difference.value < 1e-4
    assert "torch module" in found.difference.note
    assert len(found.sha256) == 64


def test_a_saved_program_takes_a_batch(saved: Path) -> None:
    assert capture(str(saved), input_shapes={"x": (3, 3, 16, 16)}).graph.outputs[0].shape == (3, 10)


@pytest.mark.parametrize("keep", [0, 100, 3000])
def test_a_damaged_program(saved: Path, tmp_path: Path, keep: Any) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"not a program|empty"):
        capture(str(path))


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(
        ModelError, match=r"not a program saved by torch\.export\.save.*torch\.export\.save\("
    ):
        capture(str(tmp_path / "m.pt2"))


class _Exploit:
    """Unpickling it writes a file."""

    def __init__(self, marker: Any) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (open, (self.marker, "w"))


def _rewrite(source: Any, target: Any, change: Any) -> Any:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.infolist():
            new.writestr(item.filename, change(item.filename, old.read(item)))


@pytest.mark.parametrize("place", ["sample_inputs", "constants"])
def test_a_program_cannot_run_code(saved: Path, tmp_path: Path, place: Any) -> None:
    marker = tmp_path / "ran"
    buffer = io.BytesIO()
    torch.save(_Exploit(str(marker)), buffer)
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    config = json.dumps({"config": {"c": entry}}).encode()

    def change(name: Any, data: Any) -> Any:
        if place == "sample_inputs" and "sample_inputs" in name:
            return buffer.getvalue()
        return config if place == "constants" and name.endswith("constants_config.json") else data

    path = tmp_path / "m.pt2"
    _rewrite(saved, path, change)
    if place == "constants":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("classifier/data/constants/opaque_obj_0", pickle.dumps(_Exploit(str(marker))))
    with pytest.raises(ModelError):
        capture(str(path))
    assert not marker.exists()
