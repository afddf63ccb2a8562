"""What a context was made for, where the files are not as they should be."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edgekit.errors import ToolError
from edgekit.targets.qnn_htp.stamp import Stamp, check_stamp, read_stamp

_BINARY = b"PICKLE\x00soc_type=SM8650;arch=75;\x00vtcm_size=8388608;;x\x00min_vtcm_size=1;"


def _write(
    folder: Path,
    *,
    info: str = "v2:6:2.51.0:5.51.0:0:57:0:0",
    binary: bytes = _BINARY,
    name: str = "a.ctx_qnn.bin",
    ops: tuple[str, ...] = ("EPContext",),
    embed: int = 0,
) -> Path:
    nodes = [
        helper.make_node(
            op, ["x"], [f"y{i}"], embed_mode=embed, ep_cache_context=name, ep_sdk_version="v2.51.0"
        )
        for i, op in enumerate(ops)
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("x", "y0"))
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y]))
    helper.set_model_props(model, {"ep_compatibility_info.QNNExecutionProvider": info})
    onnx.save(model, folder / "a.ctx.onnx")
    (folder / "a.ctx_qnn.bin").write_bytes(binary)
    return folder / "a.ctx.onnx"


def test_a_stamp(tmp_path: Path) -> None:
    stamp = read_stamp(_write(tmp_path))
    assert stamp == Stamp(57, "SM8650", 75, 8388608, "v2.51.0", "v2:6:2.51.0:5.51.0:0:57:0:0")
    check_stamp(stamp, 57, 75, tmp_path)


@pytest.mark.parametrize(("soc", "arch"), [(57, 73), (43, 75)])
def test_both_figures_must_agree(tmp_path: Path, soc: int, arch: int) -> None:
    with pytest.raises(ToolError, match=rf"SM8650 \(SoC 57, v75\), not for SoC {soc}, v{arch}"):
        check_stamp(read_stamp(_write(tmp_path)), soc, arch, tmp_path)


def test_vtcm_that_is_not_said_is_zero(tmp_path: Path) -> None:
    assert read_stamp(_write(tmp_path, binary=b"soc_type=SM8650;arch=75;")).vtcm_bytes == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"info": ""}, "compatibility text is ''"),
        ({"info": "v3:6:2.51.0:5.51.0:0:57:0:0"}, "no form that edgekit knows"),
        ({"binary": b""}, "missing or empty"),
        ({"binary": b"PICKLE"}, "it says nothing"),
        ({"binary": b"soc_type=A;arch=75; soc_type=B;arch=68;"}, "it says A v75 and B v68"),
        ({"name": "b.bin"}, "missing or empty"),
        ({"name": "../a.ctx_qnn.bin"}, "does not name a file beside it"),
        ({"embed": 1}, "does not name a file beside it"),
        ({"ops": ("EPContext", "EPContext")}, "has 2 nodes: EPContext"),
        ({"ops": ("Relu",)}, "has 1 nodes: Relu"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    with pytest.raises(ToolError, match=message):
        read_stamp(_write(tmp_path, **changed))  # type: ignore[arg-type]


def test_no_context_model(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="wrote no context model"):
        read_stamp(tmp_path / "a.ctx.onnx")
