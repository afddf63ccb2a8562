"""Running a graph a few nodes at a time over all samples, with the tensors in between kept.

A layer-by-layer refit needs the input of every layer after the layers before it have changed. Running the
whole network for each layer is quadratic; here the tensors that later nodes still read are kept for every
sample, so each node runs about once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.graph import Graph
from edgekit.passes.edit import size_bytes
from edgekit.session import OrtRunner, open_runner, run_all

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]


class Stream:
    """A graph that is run from node to node over the same samples.

    Args:
        graph: The graph; stays as it is.
        feeds: The samples.
        wanted: Tensors that will be asked for and the last position at which; nodes that none of them depends
            on never run.
        workers: Samples that run at the same time; 0 is one per core.
        memory: Bytes that kept tensors may take. Where more would be needed, nothing new is kept and the next
            request runs again from what was kept last (at worst from the graph's inputs).

    Attributes:
        weights: Constants by name; assign to change one, before a node that reads it has run.
        reruns: Nodes that ran a second time because of ``memory``.
    """

    def __init__(
        self,
        graph: Graph,
        feeds: Sequence[Feeds],
        wanted: Mapping[str, int],
        *,
        workers: int = 0,
        memory: int,
    ) -> None:
        from onnx import numpy_helper

        proto = graph.to_proto()
        self._proto = proto
        self.nodes: list[onnx.NodeProto] = list(proto.graph.node)
        self.weights: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        values = graph.values()
        self._bytes = {name: size_bytes(value) for name, value in values.items()}
        self._types = {v.name: v for v in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)}
        self._workers = workers
        self._memory = memory
        self._needed = self._ancestors(wanted)
        self._last_use = dict(wanted)
        for index in sorted(self._needed):
            for name in reads(self.nodes[index]):
                self._last_use[name] = max(index, self._last_use.get(name, 0))
        self._base = 0
        self._state: list[dict[str, Array]] = [dict(feed) for feed in feeds]
        self._reached = 0
        self.reruns = 0

    def at(self, position: int, wanted: Sequence[str]) -> Iterator[dict[str, Array]]:
        """The values of ``wanted`` for each sample, once all nodes before ``position`` have run.

        Positions must not fall from call to call; the iterator must be used up before the next call.
        """
        nodes = [i for i in range(self._base, position) if i in self._needed]
        self.reruns += sum(i < self._reached for i in nodes)
        self._reached = max(self._reached, position)
        if not nodes:
            for state in self._state:
                yield {name: state[name] for name in wanted}
            return
        alive = self._alive(position)
        keeps = sum(self._bytes[name] for name in alive) * len(self._state) <= self._memory
        made = {out for i in nodes for out in self.nodes[i].output}
        outputs = [name for name in dict.fromkeys([*(alive if keeps else ()), *wanted]) if name in made]
        if not outputs:  # what is asked for was kept, and nothing made since then can be
            for index, state in enumerate(self._state):
                if keeps:
                    self._state[index] = {name: state[name] for name in alive}
                yield {name: state[name] for name in wanted}
            self._base = position if keeps else self._base
            return
        runner = self._open(nodes, outputs)
        inputs = [{name: state[name] for name in runner.input_names} for state in self._state]
        for index, found in enumerate(run_all(runner, inputs, workers=self._workers)):
            both = {**self._state[index], **found}
            if keeps:
                self._state[index] = {name: both[name] for name in alive}
            inputs[index] = {}
            yield {name: both[name] for name in wanted}
        if keeps:
            self._base = position

    def _open(self, nodes: Sequence[int], outputs: Sequence[str]) -> OrtRunner:
        """A session of some nodes alone, with today's weights."""
        from onnx import helper, numpy_helper

        chosen = [self.nodes[i] for i in nodes]
        made = {out for node in chosen for out in node.output}
        read = list(dict.fromkeys(name for node in chosen for name in reads(node)))
        graph = helper.make_graph(
            chosen,
            "segment",
            [self._types[n] for n in read if n not in made and n not in self.weights],
            [self._info(n) for n in outputs],
            [numpy_helper.from_array(self.weights[n], n) for n in read if n in self.weights],
        )
        model = helper.make_model(
            graph, opset_imports=self._proto.opset_import, ir_version=self._proto.ir_version
        )
        return open_runner(model.SerializeToString(), threads=1)

    def _info(self, name: str) -> onnx.ValueInfoProto:
        import onnx

        return self._types.get(name) or onnx.ValueInfoProto(name=name)

    def _alive(self, position: int) -> list[str]:
        """Tensors known at ``position`` that something later reads."""
        known = [*self._state[0], *(o for i in range(self._base, position) for o in self.nodes[i].output)]
        return [name for name in dict.fromkeys(known) if self._last_use.get(name, -1) >= position]

    def _ancestors(self, wanted: Iterable[str]) -> set[int]:
        producer = {out: i for i, node in enumerate(self.nodes) for out in node.output}
        waiting, found = list(wanted), set()
        while waiting:
            index = producer.get(waiting.pop())
            if index is not None and index not in found:
                found.add(index)
                waiting.extend(reads(self.nodes[index]))
        return found


def reads(node: onnx.NodeProto) -> list[str]:
    """Names a node takes, those that its subgraphs take from outside included."""
    found = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
            own = {v.name for v in (*graph.input, *graph.initializer)}
            own.update(out for inner in graph.node for out in inner.output)
            found += [name for inner in graph.node for name in reads(inner) if name not in own]
    return found
