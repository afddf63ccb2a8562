"""Running a graph in torch, differentiably, with its initializers as named parameters.

1. Every node becomes one call of a kernel (:mod:`edgekit.train.ops`); a node without a kernel is an error at
   construction. What depends on constants alone is computed once.
2. Floating initializers are parameters under their ONNX names, except constants of the arithmetic (see
   :mod:`edgekit.train.roles`); running statistics of BatchNormalization are buffers and change in training
   mode.
3. The graph states shapes for the batch that it was captured with, usually 1. Feeds with N times that batch
   run too: shapes written into the graph are multiplied where the tensor has N times the elements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import ModelError
from edgekit.graph import Graph, array
from edgekit.passes.edit import has_subgraph, set_constant
from edgekit.train.fuse import fuse
from edgekit.train.ops.base import Array, Call, kernel_for, supported_ops
from edgekit.train.ops.exceptions import NOT_PASSED, WITHOUT_NODE_TEST
from edgekit.train.program import Step, needed, shape_of, step_for
from edgekit.train.roles import Role, roles
from edgekit.train.tensors import from_array, to_array

#: Operators whose result is not fixed by their inputs, and those that look at the mode.
_NOT_FOLDED = frozenset({"Dropout", "BatchNormalization", "RandomNormal", "RandomUniform", "Bernoulli"})


class Executor(nn.Module):
    """A graph as a torch module.

    Args:
        graph: Any graph; nothing in it is changed.
        learn_scales: Make the scales of QuantizeLinear and DequantizeLinear parameters too (LSQ,
            arXiv:1902.08153); otherwise they stay as they are.
        channels_last: Keep images and the weights of convolutions with the channels innermost in memory.
            Shapes are the same; on a CPU, convolutions are faster by a quarter, depthwise ones by half.

    Attributes:
        graph: The graph it was made from.
        parameter_names: ONNX name of every parameter and running statistic to its key in ``state_dict()``.

    Raises:
        ModelError: Nodes that no kernel runs; all of them are named.
    """

    def __init__(self, graph: Graph, *, learn_scales: bool = False, channels_last: bool = True) -> None:
        super().__init__()
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._shared = _Shared(graph)
        self.parameter_names: dict[str, str] = {}
        self._places: dict[str, tuple[nn.Module, str, bool]] = {}
        self.input_specs = tuple(_open_spec(v) for v in graph.model.graph.inputs)
        self.output_names = tuple(str(v.name) for v in graph.model.graph.outputs)
        _refuse_unknown(graph)
        self._fixed: dict[str, Array] = {}
        self._add_initializers(graph, learn_scales)
        self._steps = self._fold(graph)
        self._programs: dict[tuple[str, ...], list[Step]] = {}
        self._calls: dict[tuple[tuple[str, ...], bool, int], list[Call]] = {}

    @property
    def graph(self) -> Graph:
        return self._shared.graph

    def forward(self, feeds: Mapping[str, Tensor], keep: Sequence[str] = ()) -> dict[str, Tensor]:
        """Compute the outputs.

        Args:
            feeds: Every input by name; the leading dimension may be a multiple of the graph's.
            keep: Names of inner tensors to hand out too.

        Returns:
            The graph's outputs and the tensors in ``keep``, by name.

        Raises:
            ModelError: An input is missing or has another shape; a name in ``keep`` is unknown.
        """
        batch = self._batch(feeds)
        names = tuple(sorted(set(keep)))
        program = self._program(names)
        calls = self._calls_for(names, program, batch)
        values: dict[str, Tensor] = {
            name: (owner._parameters if trained else owner._buffers)[key]  # type: ignore[misc]
            for name, (owner, key, trained) in self._places.items()
        }
        for name, tensor in feeds.items():
            values[name] = tensor.contiguous(memory_format=self._layout) if tensor.ndim == 4 else tensor
        for step, call in zip(program, calls, strict=True):
            inputs = [None if name is None else values[name] for name in step.inputs]
            result = step.kernel(call, *inputs)
            if isinstance(result, Tensor):
                values[step.outputs[0]] = result
            else:
                values.update(zip(step.outputs, result, strict=False))
            del inputs, result
            for name in step.free:
                values.pop(name, None)
        return {name: values[name] for name in dict.fromkeys((*self.output_names, *keep))}

    def weight(self, name: str) -> nn.Parameter:
        """The parameter that holds an initializer.

        Raises:
            ModelError: The initializer is not trained, or there is none of that name.
        """
        owner, key, trained = self._places.get(name, (self, "", False))
        found = owner._parameters.get(key) if trained else None
        if found is None:
            raise ModelError(f"the executor has no parameter '{name}'", valid=list(self.weights())[:20])
        return found

    def weights(self) -> dict[str, nn.Parameter]:
        """Every parameter by ONNX name."""
        return {name: self.weight(name) for name, (_, _, trained) in self._places.items() if trained}

    def to_graph(self) -> Graph:
        """A copy of the graph with the parameters and running statistics as they are now."""
        result = self.graph.copy()
        initializers = result.model.graph.initializers
        for name in self.parameter_names:
            owner, key, trained = self._places[name]
            tensor = (owner._parameters if trained else owner._buffers)[key]
            old = array(initializers[name])
            if tensor is not None and old is not None:
                set_constant(initializers[name], to_array(tensor, old.dtype))
        return result

    def _batch(self, feeds: Mapping[str, Tensor]) -> int:
        """How many times larger the batch of ``feeds`` is than the graph's."""
        batch = 1
        for name, declared in self.input_specs:
            if name not in feeds:
                raise ModelError(f"input '{name}' is missing", valid=[n for n, _ in self.input_specs])
            actual = tuple(feeds[name].shape)
            if declared is None or actual == declared:
                continue
            if (
                len(actual) != len(declared)
                or actual[1:] != declared[1:]
                or not declared[0]
                or actual[0] % declared[0]
            ):
                raise ModelError(
                    f"has shape {list(actual)}, the graph states {list(declared)}",
                    where=f"input '{name}'",
                    hint="Only the leading dimension may be larger, by a whole factor",
                )
            batch = max(batch, actual[0] // declared[0])
        return batch

    def _program(self, keep: tuple[str, ...]) -> list[Step]:
        if keep not in self._programs:
            made = {name for step in self._steps for name in step.outputs}
            known = made | {name for name, _ in self.input_specs} | set(self._places)
            unknown = [name for name in keep if name not in known]
            if unknown:
                raise ModelError(f"the graph has no tensor named {unknown}")
            wanted = (*self.output_names, *keep)
            self._programs[keep] = needed(fuse(needed(self._steps, wanted), wanted), wanted)
        return self._programs[keep]

    def _calls_for(self, keep: tuple[str, ...], program: list[Step], batch: int) -> list[Call]:
        key = (keep, self.training, batch)
        if key not in self._calls:
            self._calls[key] = [replace(s.call, training=self.training, batch=batch) for s in program]
        return self._calls[key]

    def _add_initializers(self, graph: Graph, learn_scales: bool) -> None:
        for name, role in roles(graph, learn_scales=learn_scales).items():
            value = array(graph.model.graph.initializers[name])
            if value is None:
                raise ModelError(f"initializer '{name}' has no content or is an input too")
            if role is Role.FIXED:
                self._add_fixed(name, value)
            elif role is Role.STATISTIC:
                self._attach(name, from_array(value))
            else:
                tensor = from_array(value)
                if tensor.ndim == 4:
                    tensor = tensor.contiguous(memory_format=self._layout)
                self._attach(name, nn.Parameter(tensor))

    def _add_fixed(self, name: str, value: Array, tensor: Tensor | None = None) -> None:
        self._fixed[name] = value
        key = f"fixed{len(self._fixed)}"
        self.register_buffer(key, from_array(value) if tensor is None else tensor, persistent=False)
        self._places[name] = (self, key, False)

    def _attach(self, name: str, tensor: Tensor) -> None:
        """Register under ``name`` split at its dots, or a name near it where torch does not allow that."""
        parts = [part or "_" for part in name.split(".")]
        owner: nn.Module = self
        for i, part in enumerate(parts[:-1]):
            child = owner._modules.get(part)
            if child is None:
                if hasattr(owner, part):
                    parts[i] = part = _free_name(owner, part)
                child = _Names()
                owner.add_module(part, child)
            owner = child
        parts[-1] = key = _free_name(owner, parts[-1])
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(key, tensor)
        else:
            owner.register_buffer(key, tensor)
        self._places[name] = (owner, key, isinstance(tensor, nn.Parameter))
        self.parameter_names[name] = ".".join(parts)

    def _fold(self, graph: Graph) -> list[Step]:
        """Steps of all nodes; those that depend on fixed constants alone are run here."""
        opsets = graph.model.opset_imports
        steps = []
        for node in graph.nodes:
            kernel = kernel_for(node.op_type, node.domain)
            if kernel is None:
                raise ModelError(f"no kernel for {node.op_type}", where=str(node.name))
            step = step_for(node, kernel, opsets.get(node.domain, 1), self._fixed)
            inputs = [name for name in step.inputs if name is not None]
            if node.op_type in _NOT_FOLDED or not all(name in self._fixed for name in inputs):
                steps.append(step)
                continue
            arguments = [None if n is None else self._buffers[self._places[n][1]] for n in step.inputs]
            with torch.no_grad():
                result = kernel(step.call, *arguments)
            outputs = (result,) if isinstance(result, Tensor) else result
            for name, tensor in zip(step.outputs, outputs, strict=False):
                if name:
                    self._add_fixed(name, to_array(tensor), tensor)
        return steps


class _Names(nn.Module):
    """A container: what a dotted name means before its last dot."""


class _Shared:
    """Holds what copies of the executor have in common."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self


class _Positional(nn.Module):
    """See :func:`torch_module`."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.executor = Executor(graph)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        names = [name for name, _ in self.executor.input_specs]
        if len(inputs) != len(names):
            raise ModelError(f"takes {len(names)} inputs, got {len(inputs)}", valid=names)
        found = self.executor(dict(zip(names, inputs, strict=True)))
        outputs = tuple(found[name] for name in self.executor.output_names)
        return outputs[0] if len(outputs) == 1 else outputs


def torch_module(graph: Graph) -> nn.Module:
    """A module that takes the graph's inputs by position, for a training loop of one's own.

    It returns one tensor, or a tuple of them in the graph's order. ``module.executor.to_graph()`` is the
    trained graph.

    Raises:
        ModelError: Nodes that no kernel runs.
    """
    return _Positional(graph)


def check_batch(
    executor: Executor, feeds_list: Sequence[Mapping[str, Tensor]], tolerance: float = 1e-4
) -> bool:
    """Whether a batch of two gives what its samples give one by one.

    Args:
        executor: Run in evaluation mode, then put back into the mode that it was in.
        feeds_list: At least two samples, each at the batch of the graph; the first two are used.
        tolerance: Largest difference allowed, relative to the largest value of an output.
    """
    if len(feeds_list) < 2:
        raise ValueError("two samples are needed")
    first, second = feeds_list[:2]
    was_training = executor.training
    executor.eval()
    try:
        with torch.no_grad():
            single = [executor(feeds) for feeds in (first, second)]
            try:
                both = executor({name: torch.cat([first[name], second[name]]) for name in first})
            except (RuntimeError, IndexError, ModelError):
                # Shapes that fix the batch fail inside torch in as many ways as there are operators.
                return False
    finally:
        executor.train(was_training)
    return all(_same(torch.cat([s[n] for s in single]), both[n], tolerance) for n in executor.output_names)


def ops_table() -> list[dict[str, str]]:
    """Every operator that the executor runs, for the documentation.

    Each row has ``op``, ``domain`` ("" for ONNX's own), ``kernel`` (module and function), ``notes`` (what it
    does) and ``tested`` (empty where it passes all node tests of the onnx package; otherwise which ones it
    does not pass and why, or what it is compared with instead).
    """
    rows = []
    for (domain, name), kernel in supported_ops().items():
        short = [f"{test}: {reason}" for test, (op, reason) in NOT_PASSED.items() if op == name]
        rows.append(
            {
                "op": name,
                "domain": domain,
                "kernel": f"{kernel.__module__.rpartition('.')[2]}.{kernel.__name__}",
                "notes": (kernel.__doc__ or "").strip().split("\n")[0],
                "tested": "; ".join(short) or WITHOUT_NODE_TEST.get((domain, name), ""),
            }
        )
    return rows


def _same(expected: Tensor, found: Tensor, tolerance: float) -> bool:
    if expected.shape != found.shape:
        return False
    if expected.numel() == 0:
        return True
    a, b = expected.double(), found.double()
    return bool((a - b).abs().max() <= tolerance * a.abs().max().clamp_min(1e-6))


def _refuse_unknown(graph: Graph) -> None:
    missing = [
        node for node in graph.nodes if kernel_for(node.op_type, node.domain) is None or has_subgraph(node)
    ]
    if missing:
        ops = sorted({f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in missing})
        names = ", ".join(f"'{n.name}' ({n.op_type})" for n in missing)
        raise ModelError(
            f"cannot be run for training: no kernel for {', '.join(ops)} of the nodes {names}",
            hint="edgekit.train.executor.ops_table() lists the operators that can be trained through",
        )


def _open_spec(value: Any) -> tuple[str, tuple[int, ...] | None]:
    return str(value.name), shape_of(value)


def _free_name(owner: nn.Module, name: str) -> str:
    name = name or "_"
    while hasattr(owner, name):
        name += "_"
    return name
