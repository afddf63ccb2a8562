"""Give every graph input a static shape.

A symbolic dimension is bound once, by name, so an input whose shape was not given takes the sizes that the
others fix. Where nothing is given and only first dimensions are symbolic, they are the batch, which becomes
1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from edgekit.errors import ModelError, UsageError
from edgekit.graph import Change, Graph
from edgekit.passes.edit import static_shape


def pin_shapes(graph: Graph, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Graph:
    """Replace symbolic input dimensions by numbers.

    Inner shapes that were declared for the symbolic sizes are dropped: infer them again afterwards.

    Args:
        graph: The graph.
        shapes: Shape by input name; inputs that are static already need none.

    Raises:
        UsageError: A name that is no input, a wrong rank, a size that contradicts the model or is not
            positive.
        ModelError: A dimension stays unknown; the message names all of them.
    """
    shapes = dict(shapes or {})
    result = graph.copy()
    inputs = {str(v.name): v for v in result.model.graph.inputs}
    _check_names(shapes, inputs)
    if all(static_shape(v) is not None for v in inputs.values()):
        for name, shape in shapes.items():
            _bind(inputs[name], shape, {})
        return graph
    bound: dict[str, int] = {}
    for name, shape in shapes.items():
        _bind(inputs[name], shape, bound)
    batch = _batch_symbols(inputs.values(), bound)
    bound.update(dict.fromkeys(batch, 1))
    pinned: dict[str, list[int]] = {}
    unknown: list[tuple[str, int, str]] = []
    for name, value in inputs.items():
        shape = shapes.get(name) or _resolve(value, bound, unknown)
        if shape != static_shape(value):
            pinned[name] = list(shape)
        value.shape = ir.Shape(shape)
    if unknown:
        raise _unknown(unknown, graph)
    _forget_inner_shapes(result.model.graph)
    text = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in pinned.items())
    note = " (batch set to 1)" if batch else ""
    return result.with_change(Change("pin_shapes", f"pinned {text}{note}", details={"inputs": pinned}))


def _check_names(shapes: Mapping[str, tuple[int, ...]], inputs: Mapping[str, ir.Value]) -> None:
    for name, shape in shapes.items():
        if name not in inputs:
            raise UsageError(f"the model has no input '{name}'", where="--input-shape", valid=inputs)
        if any(size < 1 for size in shape):
            raise UsageError(f"'{name}' has a size below 1: {shape}", where="--input-shape")


def _bind(value: ir.Value, shape: tuple[int, ...], bound: dict[str, int]) -> None:
    """Check one given shape against the model and remember what it says about symbols."""
    if value.shape is None:
        return
    declared = [d if isinstance(d, int) else d.value for d in value.shape]
    wanted = "x".join("?" if d is None else str(d) for d in declared)
    if len(declared) != len(shape):
        raise UsageError(
            f"'{value.name}' has {len(declared)} dimensions, not {len(shape)}",
            where="--input-shape",
            valid=[wanted],
        )
    for size, dim in zip(shape, declared, strict=True):
        if isinstance(dim, int) and dim != size:
            raise UsageError(
                f"'{value.name}' is fixed to {wanted} in the model, {'x'.join(map(str, shape))} does not fit",
                where="--input-shape",
                valid=[wanted],
            )
        if isinstance(dim, str) and bound.setdefault(dim, size) != size:
            raise UsageError(
                f"'{value.name}' sets '{dim}' to {size}, another input sets it to {bound[dim]}",
                where="--input-shape",
            )


def _batch_symbols(values: Iterable[ir.Value], bound: Mapping[str, int]) -> list[str]:
    """The open dimensions, if all of them come first; one without a name is called after its input."""
    first: list[str] = []
    for value in values:
        if value.shape is None:
            return []
        for position, dim in enumerate(value.shape):
            symbol = None if isinstance(dim, int) else dim.value
            if isinstance(dim, int) or symbol in bound:
                continue
            if position > 0:
                return []
            first.append(symbol if symbol is not None else f"?{value.name}")
    return first


def _resolve(
    value: ir.Value, bound: Mapping[str, int], unknown: list[tuple[str, int, str]]
) -> tuple[int, ...]:
    if value.shape is None:
        unknown.append((str(value.name), -1, "of unknown rank"))
        return ()
    sizes = []
    for position, dim in enumerate(value.shape):
        symbol = dim if isinstance(dim, int) else dim.value or f"?{value.name}"
        size = symbol if isinstance(symbol, int) else bound.get(symbol, 0)
        if size == 0 and not isinstance(symbol, int):
            unknown.append((str(value.name), position, "" if symbol.startswith("?") else symbol))
        sizes.append(size)
    return tuple(sizes)


def _unknown(unknown: list[tuple[str, int, str]], graph: Graph) -> ModelError:
    parts = []
    for name, position, symbol in unknown:
        parts.append(
            f"'{name}' is {symbol}"
            if position < 0
            else f"'{name}' dimension {position} ({symbol or 'unnamed'})"
        )
    examples = []
    for value in graph.model.graph.inputs:
        if not any(value.name == name for name, _, _ in unknown) or value.shape is None:
            continue
        sizes = [str(d) if isinstance(d, int) else "1" if i == 0 else "N" for i, d in enumerate(value.shape)]
        examples.append(f"--input-shape {value.name}={','.join(sizes)}")
    hint = " ".join(examples) or "--input-shape NAME=1,3,H,W"
    return ModelError(f"input sizes are open: {', '.join(parts)}", hint=f"Set them, N being a number: {hint}")


def _forget_inner_shapes(graph: ir.Graph) -> None:
    for node in graph.all_nodes():
        for out in node.outputs:
            out.shape = None
