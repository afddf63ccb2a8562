"""Take codes in and give codes out: drop the QuantizeLinear and DequantizeLinear nodes at a graph's ends.

1. A float input ``x`` that only QuantizeLinear nodes of the same parameters read becomes an input of codes:
   ``x -> QuantizeLinear -> x_quantized -> ...`` turns into ``x -> ...``.
2. A float output ``y`` that DequantizeLinear makes becomes an output of codes:
   ``... -> y_quantized -> DequantizeLinear -> y`` turns into ``... -> y``. The DequantizeLinear stays, under
   another name, where nodes of the graph read ``y`` too.
3. Names and order of inputs and outputs stay. What the codes mean goes into the model's metadata under
   ``edgekit.io``, so that the file explains itself.

Exact: the new graph on QuantizeLinear's codes gives the codes that DequantizeLinear read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from pydantic import BaseModel, ConfigDict, ValidationError

from edgekit.errors import ModelError
from edgekit.graph import Change, Graph, Refusal, array
from edgekit.passes.edit import Names
from edgekit.passes.subgraph import maker, remove_dead

#: Key of the model's ``metadata_props`` under which :class:`Ends` stands as JSON.
ENDS_KEY = "edgekit.io"
#: Element types that codes at a graph's end may have.
CODES = ("uint8", "int8", "uint16", "int16")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class End(_Part):
    """An input or output of a file whose ends hold codes.

    Attributes:
        name: Its name.
        dtype: NumPy element type in the file.
        shape: Dimensions.
        scale: Of the codes; real = scale * (code - zero_point). None for what holds no codes.
        zero_point: See ``scale``.
        layout: ``NCHW`` or ``NHWC`` for images, else empty.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float | None = None
    zero_point: int | None = None
    layout: str = ""


class Ends(_Part):
    """What the metadata entry ``edgekit.io`` says.

    Attributes:
        inputs: In order.
        outputs: In order.
    """

    inputs: tuple[End, ...]
    outputs: tuple[End, ...]

    @property
    def coded(self) -> dict[str, End]:
        """Those that hold codes, by name."""
        return {end.name: end for end in (*self.inputs, *self.outputs) if end.scale is not None}


@dataclass(frozen=True)
class _Codes:
    scale: float
    zero_point: int
    dtype: ir.DataType


def quantized_ends(graph: Graph, *, layout: str = "auto") -> Graph:
    """A QDQ graph whose inputs and outputs are codes wherever they can be.

    Args:
        graph: A QDQ graph.
        layout: How to read image inputs: ``nchw``, ``nhwc``, or ``auto`` to tell from the shape.

    Returns:
        The graph; its history names what stays float and why. Ends that hold codes already are described
        too. Without a single code at its ends it has no metadata entry.
    """
    result = graph.copy()
    main = result.model.graph
    refused: list[Refusal] = []
    found: dict[str, _Codes] = {}
    known: dict[str, _Codes] = {}
    taken: list[list[str]] = []
    for ends, convert in ((main.inputs, _convert_input), (main.outputs, _convert_output)):
        names = [str(v.name) for v in ends]
        kept = len(found)
        for index, name in enumerate(names):
            if ends[index].dtype != ir.DataType.FLOAT:
                known |= _given_codes(ends[index])  # no float to begin with: nothing is left undone
                continue
            codes = convert(main, index)
            if isinstance(codes, str):
                refused.append(Refusal(name, codes))
            else:
                found[name] = codes
        taken.append(list(found)[kept:])
    if known or found:
        result.model.metadata_props[ENDS_KEY] = _described(result, known | found, layout).model_dump_json()
    summary = f"{len(taken[0])} inputs and {len(taken[1])} outputs hold codes, {len(refused)} stay float"
    details = {"inputs": taken[0], "outputs": taken[1]}
    return result.with_change(Change("quantized_ends", summary, tuple(refused), details))


def read_ends(metadata: Mapping[str, str], where: str = "") -> Ends | None:
    """What a model's metadata say about its ends; None where they say nothing.

    Raises:
        ModelError: The entry cannot be used.
    """
    if ENDS_KEY not in metadata:
        return None
    try:
        return Ends.model_validate_json(metadata[ENDS_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or ENDS_KEY
        what = f"its metadata '{ENDS_KEY}' cannot be used: {key}: {first['msg']}"
        raise ModelError(what, where=where) from error


def _convert_input(main: ir.Graph, index: int) -> _Codes | str:
    """Case 1; the reason where the input stays float."""
    value = main.inputs[index]
    readers = {use.node: use.idx for use in value.uses()}
    if value.is_graph_output():
        return "it is an output as well"
    if not readers:
        return "no node reads it"
    for node, position in readers.items():
        if maker(node.outputs[0], "QuantizeLinear") is not node or position != 0:
            return f"{node.op_type} '{node.name}' reads it in float"
    meant = {node: _codes(node, node.outputs[0].dtype) for node in readers}
    codes = next(iter(meant.values()))
    for node, other in meant.items():
        if isinstance(other, str):
            return f"QuantizeLinear '{node.name}' {other}"
        if node.outputs[0].is_graph_output():
            return f"its codes '{node.outputs[0].name}' are an output as well"
        if other != codes:
            return "it is quantized in several ways: " + ", ".join(f"'{n.name}'" for n in meant)
    if isinstance(codes, str):
        return codes
    for node in readers:
        node.outputs[0].replace_all_uses_with(value)
        remove_dead(main, node)
    value.type = ir.TensorType(codes.dtype)
    return codes


def _convert_output(main: ir.Graph, index: int) -> _Codes | str:
    """Case 2; the reason where the output stays float."""
    value = main.outputs[index]
    node = maker(value, "DequantizeLinear")
    if node is None:
        made = value.producer()
        return "no node makes it" if made is None else f"{made.op_type} '{made.name}' makes it in float"
    source = node.inputs[0]
    codes = _codes(node, None if source is None else source.dtype)
    if isinstance(codes, str) or source is None:
        return f"DequantizeLinear '{node.name}' {codes}"
    if sum(other is value for other in main.outputs) > 1:
        return "it is an output several times"
    if source.is_graph_output():
        return f"its codes '{source.name}' are an output as well"
    if source.producer() is None:
        return f"its codes '{source.name}' are an input or a constant: no node makes them"
    name = str(value.name)
    value.name = Names(main).fresh(f"{name}_dequantized")
    main.outputs[index] = source
    remove_dead(main, node)
    source.name, source.type = name, ir.TensorType(codes.dtype)
    source.shape = source.shape if source.shape is not None else value.shape
    return codes


def _given_codes(value: ir.Value) -> dict[str, _Codes]:
    """What an end means that holds codes already; empty where it holds numbers of another kind."""
    made = maker(value, "QuantizeLinear")
    readers = [made] if made is not None else [use.node for use in value.uses() if use.idx == 0]
    meant = [
        _codes(node, value.dtype)
        for node in readers
        if made is not None or maker(node.outputs[0], "DequantizeLinear") is node
    ]
    first = meant[0] if meant and len(meant) == len(readers) else ""
    same = not isinstance(first, str) and all(codes == first for codes in meant)
    return {str(value.name): first} if same and not isinstance(first, str) else {}


def _codes(node: ir.Node, dtype: ir.DataType | None) -> _Codes | str:
    """The parameters of a QuantizeLinear or DequantizeLinear; what is in the way where it has no single
    pair."""
    scale = array(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zero = array(given)
    if scale is None or (given is not None and zero is None):
        return "has a computed scale or zero point"
    if scale.size != 1 or scale.dtype != np.float32:
        return "has more than one scale" if scale.size != 1 else f"has a {scale.dtype} scale"
    if given is not None and dtype is None:
        dtype = given.dtype
    if dtype is None or dtype.name.lower() not in CODES:
        return f"has codes of type {'unknown' if dtype is None else dtype.name.lower()}"
    return _Codes(float(scale.reshape(())), 0 if zero is None else int(zero.reshape(())), dtype)


def _described(graph: Graph, found: dict[str, _Codes], layout: str) -> Ends:
    from edgekit.data.preprocess import image_shape

    parts: list[tuple[End, ...]] = []
    for specs, place in ((graph.inputs, layout), (graph.outputs, "")):
        ends = []
        for spec in specs:
            codes, image = found.get(spec.name), image_shape(spec.shape, place) if place else None
            ends.append(
                End(
                    name=spec.name,
                    dtype=str(spec.dtype),
                    shape=spec.shape,
                    scale=None if codes is None else codes.scale,
                    zero_point=None if codes is None else codes.zero_point,
                    layout="" if image is None else "NCHW" if image.channels_first else "NHWC",
                )
            )
        parts.append(tuple(ends))
    return Ends(inputs=parts[0], outputs=parts[1])
