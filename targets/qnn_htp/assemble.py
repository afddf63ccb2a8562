"""One ONNX file of a compiled body and the nodes before and behind it.

    x ─► front ─► QuantizeLinear ─► EPContext ─► DequantizeLinear ─► decoder ─► y
         CPU      CPU               HTP          CPU                 CPU

ONNX Runtime runs such a file whole: the QNN provider takes the EPContext node, the CPU provider the rest. The
conversions are there only where the compiled body takes or gives codes and what is around it does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.artifacts import read_onnx
from edgekit.errors import ModelError, UsageError
from edgekit.files import write_whole
from edgekit.graph import OPSET, Graph
from edgekit.passes.quantized_ends import ENDS_KEY, End, Ends, read_ends

if TYPE_CHECKING:
    import onnx

_DOMAIN = "com.microsoft"
_Infos = list[Any]


def assemble(
    front: Graph | None, context_model: Path, decoder: Graph | None, out: Path, *, whole: Graph | None = None
) -> Path:
    """Write the file that a device runs.

    Args:
        front: Nodes before the body (:class:`~edgekit.parts.Parts`); None where there are none.
        context_model: What the body was compiled to: one EPContext node that names its binary. Where the body
            had ends of codes, its metadata say what they mean; the compiler keeps them.
        decoder: Nodes behind the body; None where there are none.
        out: The file to write, in the folder of the context model, whose binary it names.
        whole: The graph that all three were cut from: the file gets its inputs and outputs, in their order
            and of their types. Without it: the front's inputs or the body's, then what the decoder reads
            besides; what the body gives and the decoder does not read, then the decoder's outputs.

    Returns:
        ``out``.

    Raises:
        UsageError: ``out`` lies in another folder than the context model.
        ModelError: The context model is none, or the parts do not fit together.
        OutputError: The file cannot be written.
    """
    context = _load(context_model)
    if out.parent.resolve() != context_model.parent.resolve():
        raise UsageError(
            "must lie beside the context model: it names the same binary, and a name may hold no folder",
            where=str(out),
            valid=(str(context_model.parent),),
        )
    front_proto, decoder_proto = (None if g is None else g.to_proto() for g in (front, decoder))
    edge = _outer(front_proto, context.graph, decoder_proto, None if whole is None else whole.to_proto())
    merge = _Merge(context_model)
    if front_proto is not None:
        merge.take(front_proto)
    ends = read_ends({p.key: p.value for p in context.metadata_props}, where=str(context_model))
    _place(merge, context.graph, edge, front_proto, decoder_proto, {} if ends is None else ends.coded)
    if decoder_proto is not None:
        merge.take(decoder_proto)
    made = _model(context, merge, edge, _ends_of(edge, ends, whole))
    _check_sources(made, context_model)
    write_whole(out, made.SerializeToString())
    return out


def _model(
    context: onnx.ModelProto, merge: _Merge, edge: tuple[_Infos, _Infos], said: Ends | None
) -> onnx.ModelProto:
    import onnx

    constants = list(merge.constants.values())
    graph = onnx.helper.make_graph(
        merge.nodes, context.graph.name, edge[0], edge[1], constants, value_info=merge.infos
    )
    opsets = {"": OPSET, **merge.opsets, _DOMAIN: 1}
    made = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in opsets.items()],
        ir_version=context.ir_version,
        producer_name="edgekit",
    )
    metadata = {p.key: p.value for p in context.metadata_props if p.key != ENDS_KEY}
    if said is not None:
        metadata[ENDS_KEY] = said.model_dump_json()
    onnx.helper.set_model_props(made, metadata)
    return made


def _load(path: Path) -> onnx.ModelProto:
    import onnx

    model = read_onnx(path)
    ops = [(n.domain, n.op_type) for n in model.graph.node]
    if ops != [(_DOMAIN, "EPContext")]:
        raise ModelError(
            f"is no context model: it must hold one EPContext node, and holds {len(ops)} nodes",
            where=str(path),
            hint="compile_context writes it",
        )
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in model.graph.node[0].attribute}
    name = attributes.get("ep_cache_context", b"").decode()
    if attributes.get("embed_mode") == 0 and (Path(name).name != name or not path.with_name(name).is_file()):
        raise ModelError(f"names the binary '{name}', which is not beside it", where=str(path))
    return model


def _outer(
    front: onnx.ModelProto | None,
    body: onnx.GraphProto,
    decoder: onnx.ModelProto | None,
    whole: onnx.ModelProto | None,
) -> tuple[_Infos, _Infos]:
    """Inputs and outputs of the file."""
    if whole is not None:
        return list(whole.graph.input), list(whole.graph.output)
    tail_in = [] if decoder is None else list(decoder.graph.input)
    tail_out = [] if decoder is None else list(decoder.graph.output)
    read = {v.name for v in tail_in}
    given = {v.name for v in body.output}
    # What the decoder reads as well it reads in float.
    known = {v.name: v for v in body.input if v.name not in read} if front is None else {}
    if front is not None:
        known = {v.name: v for v in front.graph.input}
    known.update({v.name: v for v in tail_in if v.name not in given and v.name not in known})
    order = [v.name for v in body.input if v.name in known]
    inputs = [known[n] for n in dict.fromkeys([*order, *known])] if front is None else list(known.values())
    return inputs, [v for v in body.output if v.name not in read] + tail_out


@dataclass
class _Merge:
    """Nodes and constants of several models in one scope."""

    where: Path
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    infos: list[Any] = field(default_factory=list)
    opsets: dict[str, int] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)

    def take(self, model: onnx.ModelProto) -> None:
        """Add a model; what is there already, node by node, is not added again."""
        for tensor in model.graph.initializer:
            self.constant(tensor)
        for node in model.graph.node:
            self.node(node)
        for opset in model.opset_import:
            if self.opsets.setdefault(opset.domain, opset.version) != opset.version:
                raise self.clash(f"opset of '{opset.domain}'")

    def node(self, node: Any) -> None:
        known = [self.made[name] for name in node.output if name in self.made]
        if known:
            if any(other != node for other in known):
                raise self.clash(f"tensor '{node.output[0]}'")
            return
        self.nodes.append(node)
        self.made.update(dict.fromkeys((name for name in node.output if name), node))

    def constant(self, tensor: Any) -> None:
        if self.constants.setdefault(tensor.name, tensor) != tensor:
            raise self.clash(f"constant '{tensor.name}'")

    def clash(self, what: str) -> ModelError:
        return ModelError(
            f"front and decoder differ in the {what}", where=str(self.where), hint="Cut both from one graph"
        )


def _place(
    merge: _Merge,
    body: onnx.GraphProto,
    edge: tuple[_Infos, _Infos],
    front: onnx.ModelProto | None,
    decoder: onnx.ModelProto | None,
    coded: dict[str, End],
) -> None:
    """Add the EPContext node, and the conversions at its ends."""
    import onnx

    around = [*edge[0], *edge[1]]
    for part in (front, decoder):
        around += [] if part is None else [*part.graph.input, *part.graph.output]
    taken = {v.name for v in (*around, *body.input, *body.output)}
    for part in (front, decoder):
        if part is not None:
            taken |= {t.name for t in part.graph.initializer} | {n for p in part.graph.node for n in p.output}
    wanted: dict[str, int] = {}
    for info in around:
        kind = info.type.tensor_type.elem_type
        if wanted.setdefault(info.name, kind) != kind:
            raise ModelError(
                f"'{info.name}' holds codes for one part and floats for another",
                where=str(merge.where),
                hint="Cut the graph that has the ends that are wanted",
            )
    node, names = onnx.NodeProto(), _Fresh(taken)
    node.CopyFrom(body.node[0])
    after = []
    for info in body.input:
        if _converted(info, wanted, coded, merge.where):
            inner, params = names(f"{info.name}_codes"), _params(merge, names, coded[info.name])
            merge.node(onnx.helper.make_node("QuantizeLinear", [info.name, *params], [inner], name=inner))
            node.input[:] = [inner if n == info.name else n for n in node.input]
    for info in body.output:
        inner = info.name
        if _converted(info, wanted, coded, merge.where):
            inner, params = names(f"{info.name}_codes"), _params(merge, names, coded[info.name])
            label = names(f"{info.name}_DequantizeLinear")
            after.append(onnx.helper.make_node("DequantizeLinear", [inner, *params], [info.name], name=label))
            node.output[:] = [inner if n == info.name else n for n in node.output]
        if inner not in {v.name for v in edge[1]}:  # the operator infers no types
            merge.infos.append(onnx.helper.make_value_info(inner, info.type))
    for made in (node, *after):
        merge.node(made)


def _converted(info: Any, wanted: dict[str, int], coded: dict[str, End], where: Path) -> bool:
    """Whether the body has codes where what is around it has floats."""
    import onnx

    kind = info.type.tensor_type.elem_type
    other = wanted.get(info.name, kind)
    if other == kind:
        return False
    if info.name in coded and other == onnx.TensorProto.FLOAT:
        return True
    names = [onnx.TensorProto.DataType.Name(k).lower() for k in (kind, other)]
    raise ModelError(
        f"'{info.name}' is {names[0]} in the compiled body and {names[1]} around it",
        where=str(where),
        hint=f"Compile what quantized_ends gives: its metadata '{ENDS_KEY}' say what codes mean",
    )


def _params(merge: _Merge, names: _Fresh, end: End) -> list[str]:
    """Scale and zero point as constants."""
    import onnx

    values = {"scale": np.array(end.scale, np.float32), "zero_point": np.array(end.zero_point, end.dtype)}
    found = []
    for label, value in values.items():
        name = names(f"{end.name}_{label}")
        merge.constant(onnx.numpy_helper.from_array(value, name))
        found.append(name)
    return found


@dataclass
class _Fresh:
    """Hands out names that are not taken."""

    taken: set[str]

    def __call__(self, base: str) -> str:
        name, count = base, 0
        while name in self.taken:
            count += 1
            name = f"{base}.{count}"
        self.taken.add(name)
        return name


def _ends_of(edge: tuple[_Infos, _Infos], ends: Ends | None, whole: Graph | None) -> Ends | None:
    """What the file's metadata say of its ends; None where they hold no codes."""
    if whole is not None:
        return read_ends(whole.model.metadata_props)
    import onnx

    coded = {} if ends is None else ends.coded

    def described(infos: Sequence[Any]) -> tuple[End, ...]:
        found = []
        for info in infos:
            kind = str(onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))
            shape = tuple(int(d.dim_value) for d in info.type.tensor_type.shape.dim)
            end = coded.get(info.name)
            keeps = end is not None and end.dtype == kind
            found.append(end if keeps and end is not None else End(name=info.name, dtype=kind, shape=shape))
        return tuple(found)

    made = Ends(inputs=described(edge[0]), outputs=described(edge[1]))
    return made if made.coded else None


def _check_sources(model: onnx.ModelProto, where: Path) -> None:
    """Raise an error for a tensor that nothing makes."""
    known = {v.name for v in (*model.graph.input, *model.graph.initializer)} | {""}
    for node in model.graph.node:
        _require(node.input, known, f"node '{node.name}'", where)
        known.update(node.output)
    _require((v.name for v in model.graph.output), known, "the file", where)


def _require(names: Iterable[str], known: set[str], reader: str, where: Path) -> None:
    missing = [name for name in names if name not in known]
    if missing:
        raise ModelError(
            f"{reader} needs '{missing[0]}', which no part gives",
            where=str(where),
            hint="Cut and compile the parts from one graph, and give all of them",
        )
