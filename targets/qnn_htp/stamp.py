"""What a context binary was made for, read from the files themselves rather than from what was asked for.

The context model's metadata names the SoC that the execution provider was given, in
``ep_compatibility_info.QNNExecutionProvider``; the binary holds the settings that HTP's graph preparation ran
with, and there the SoC's name, the architecture and the size of its VTCM. The second is the proof: with an
``htp_arch`` that it does not know the provider prepares for v68 of an unknown SoC, and says nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import ToolError

_INFO = "ep_compatibility_info.QNNExecutionProvider"
# The settings are one long text, stored once for each part of the binary.
_PREPARED = re.compile(rb"soc_type=(\w+);arch=(\d+);")
_VTCM = re.compile(rb"\bvtcm_size=(\d+);")


@dataclass(frozen=True)
class Stamp:
    """For which hardware and by which toolchain a context was made.

    Attributes:
        soc_model: QNN's number of the SoC, as the context model says.
        soc: The SoC's name in the binary, such as ``SM8650``.
        arch: HTP's architecture in the binary, such as 75.
        vtcm_bytes: VTCM that the graph was prepared for; 0 where the binary does not say.
        sdk: Version of the QNN SDK.
        info: The compatibility text of the context model, whole.
    """

    soc_model: int
    soc: str
    arch: int
    vtcm_bytes: int
    sdk: str
    info: str

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return dict(vars(self))


def read_stamp(context: Path) -> Stamp:
    """Read the stamp of a context model and of the binary that it names.

    Raises:
        ToolError: A file is missing; the model does not hold exactly one EPContext node; or one of the two
            does not say what it was made for, or the binary says two things.
    """
    import onnx

    if not context.is_file():
        raise ToolError("the QNN execution provider wrote no context model", where=str(context))
    model = onnx.load(context, load_external_data=False)
    ops = [node.op_type for node in model.graph.node]
    if ops != ["EPContext"]:
        found = ", ".join(sorted(set(ops))) or "nothing"
        raise ToolError(
            f"the context model must hold exactly one EPContext node; it has {len(ops)} nodes: {found}",
            where=str(context),
        )
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in model.graph.node[0].attribute}
    info = next((p.value for p in model.metadata_props if p.key == _INFO), "")
    soc, arch, vtcm = _prepared(binary_of(context, attributes))
    return Stamp(_soc_model(info, context), soc, arch, vtcm, _text(attributes.get("ep_sdk_version")), info)


def check_stamp(stamp: Stamp, soc_model: int, arch: int, where: Path) -> None:
    """Raise an error unless a context was made for the hardware that was asked for.

    Raises:
        ToolError: It was made for another SoC or architecture.
    """
    if (stamp.soc_model, stamp.arch) != (soc_model, arch):
        raise ToolError(
            f"the context was made for {stamp.soc} (SoC {stamp.soc_model}, v{stamp.arch}), "
            f"not for SoC {soc_model}, v{arch}",
            where=str(where),
            hint="The profile's soc_model and arch must belong together",
        )


def binary_of(context: Path, attributes: dict[str, Any]) -> Path:
    """The file that an EPContext node with these attributes names.

    Raises:
        ToolError: There is no such file, or the name is not relative to the model.
    """
    name = _text(attributes.get("ep_cache_context"))
    if attributes.get("embed_mode") != 0 or not name or Path(name).name != name:
        raise ToolError(f"the context model does not name a file beside it, but {name!r}", where=str(context))
    binary = context.with_name(name)
    if not binary.is_file() or binary.stat().st_size == 0:
        raise ToolError("the context's binary is missing or empty", where=str(binary))
    return binary


def _soc_model(info: str, context: Path) -> int:
    # v2 : backend : SDK : blob : arch asked for : SoC asked for : VTCM asked for : …
    parts = info.split(":")
    if parts[0] != "v2" or len(parts) < 6 or not parts[5].isdigit():
        raise ToolError(
            f"the context model's compatibility text is {info!r}, in no form that edgekit knows",
            where=str(context),
            hint="pip install 'edgekit[qnn]' gives a version that edgekit knows",
        )
    return int(parts[5])


def _prepared(binary: Path) -> tuple[str, int, int]:
    data = binary.read_bytes()
    found = set(_PREPARED.findall(data))
    if len(found) != 1:
        said = " and ".join(sorted(f"{s.decode()} v{a.decode()}" for s, a in found)) or "nothing"
        raise ToolError(
            f"the context's binary must say which SoC it is for; it says {said}", where=str(binary)
        )
    ((soc, arch),) = found
    vtcm = {int(size) for size in _VTCM.findall(data)}
    return soc.decode(), int(arch), vtcm.pop() if len(vtcm) == 1 else 0


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")
