"""HTP's emulator: outputs, and how far they are from ONNX Runtime's on the same file.

The emulator computes what the device computes and takes its time: a second for an image of 416 x 416, half a
minute for one of 640 x 640. How long it takes says nothing of the device.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.coded import dequantize, quantize
from edgekit.errors import EdgekitError, ToolError
from edgekit.graph import Graph
from edgekit.measure.steps import StepTable
from edgekit.passes.quantized_ends import End, Ends, quantized_ends, read_ends
from edgekit.session import Arrays, open_runner
from edgekit.target import CodeDifference, RuntimeParity
from edgekit.targets.qnn_htp.alone import Apart, reference
from edgekit.targets.qnn_htp.body import Body, settled
from edgekit.targets.qnn_htp.compile import Record, context_path
from edgekit.targets.qnn_htp.placement import load_artifact
from edgekit.targets.qnn_htp.process import compile_context, run_emulated
from edgekit.targets.qnn_htp.profiles import HtpProfile

Feeds = Sequence[Mapping[str, np.ndarray[Any, Any]]]

EMULATOR = "HTP emulator"
RELOADED = "HTP emulator, context loaded again"
REFERENCE = "ONNX Runtime"
LAYERS_NOTE = "each layer was fed with ONNX Runtime's codes: its difference is that of its own kernel"
#: Steps of 8 bits that an output may be off.
BUDGET_STEPS = 1


def emulate(path: Path, feeds: Feeds, profile: HtpProfile) -> list[Arrays]:
    """Run the compiled context of an artifact; float ends run in ONNX Runtime.

    Args:
        path: The artifact.
        feeds: Float inputs by name.
        profile: What it was compiled for.

    Returns:
        The network's outputs, in float also where the artifact has ends of codes.

    Raises:
        ModelError: The artifact or its record is missing.
        ToolError: The toolchain is not installed, crashed or hung.
    """
    record = Record.load(path)
    if record.why_not:
        raise ToolError(record.why_not, where=str(path))
    graph = load_artifact(path)
    body = Body.of(settled(graph), record.refused)
    ends = read_ends(graph.model.metadata_props)
    coded = [_coded(feed, ends) for feed in feeds]
    inner = [body.to_body(feed) for feed in coded]
    found = run_emulated(context_path(path), inner, soc=profile.soc_model, arch=profile.arch)
    outputs = [body.from_body(out, feed) for out, feed in zip(found, coded, strict=True)]
    return [_real(out, ends) for out in outputs]


def compare_runtimes(path: Path, graph: Graph, feeds: Feeds, profile: HtpProfile) -> RuntimeParity | None:
    """Codes of the body's outputs: the emulator's against those of ONNX Runtime with nothing optimized.

    The body is compiled once more, with ends of codes, so that no rounding of them is missed; its context is
    then loaded again.

    Args:
        path: The artifact; its record says which nodes are not in the body.
        graph: The QDQ graph that it was made from, with float ends.
        feeds: Float inputs by name.
        profile: What it was compiled for.

    Returns:
        None where nothing was compiled.

    Raises:
        ModelError: The artifact has no record.
        ToolError: The toolchain crashed or hung.
    """
    record = Record.load(path)
    if record.why_not:
        return None
    return compare_body(Body.of(settled(graph), record.refused), feeds, profile)


def compare_body(body: Body, feeds: Feeds, profile: HtpProfile) -> RuntimeParity:
    """The same of a body that is at hand, whoever quantized it.

    Raises:
        ModelError: It has no ends of codes, or HTP refuses nodes of it.
        ToolError: The toolchain crashed or hung.
    """
    codes = quantized_ends(body.parts.body)
    ends = read_ends(codes.model.metadata_props)
    inner = [_coded(body.to_body(feed), ends) for feed in feeds]
    apart = Apart(codes)
    exact = open_runner(codes, threads=1, optimize=False)
    expected = [exact.run(feed) for feed in inner]
    every = open_runner(apart.whole.SerializeToString(), threads=1, optimize=False).run(inner[0])
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        model = Path(folder) / "body.onnx"
        codes.save(model)
        compiled = compile_context(
            model, profile.soc_model, profile.arch, Path(folder), stem="codes", feeds=inner
        )
        again = run_emulated(compiled.context, inner, soc=profile.soc_model, arch=profile.arch)
        layers, problem = _layers(apart, inner[0], every, Path(folder), profile)
    ops = {str(v.name): _maker(v) for v in codes.model.graph.outputs}
    same = all(
        np.array_equal(one[name], other[name])
        for one, other in zip(compiled.outputs, again, strict=True)
        for name in one
    )
    note = (
        "the context, loaded again, gives the outputs of the session that made it, bit for bit"
        if same
        else "the context, loaded again, gives OTHER outputs than the session that made it"
    )
    return RuntimeParity(
        reference=REFERENCE,
        budget_steps=BUDGET_STEPS,
        samples=len(feeds),
        outputs={EMULATOR: _rows(expected, compiled.outputs, ops)}
        | ({} if same else {RELOADED: _rows(expected, again, ops)}),
        layers={EMULATOR: layers} if layers else {},
        notes=(note, problem or LAYERS_NOTE),
    )


def _layers(
    apart: Apart, feed: Arrays, expected: Arrays, folder: Path, profile: HtpProfile
) -> tuple[tuple[CodeDifference, ...], str]:
    """The difference of every layer by itself on one sample, or why there is none."""
    model = folder / "layers.onnx"
    model.write_bytes(apart.opened.SerializeToString())
    feeds = {**feed, **{reference(name): expected[name] for name in apart.tensors}}
    try:
        compiled = compile_context(
            model, profile.soc_model, profile.arch, folder, stem="layers", feeds=[feeds]
        )
    except EdgekitError as error:
        return (), f"the layers were not compared one by one: {error.what}"
    inner = {name: expected[name] for name in apart.tensors if name in apart.ops}
    return _rows([inner], compiled.outputs, apart.ops), ""


def _rows(
    expected: Sequence[Arrays], found: Sequence[Arrays], ops: Mapping[str, str]
) -> tuple[CodeDifference, ...]:
    table = StepTable()
    for one, other in zip(expected, found, strict=True):
        table.add({name: one[name] for name in ops if name in one}, other, ops)
    return table.rows()


def _maker(value: Any) -> str:
    """What computes an output, behind the QuantizeLinear that makes its codes."""
    node = value.producer()
    while node is not None and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return "" if node is None else str(node.op_type)


def _coded(feed: Mapping[str, np.ndarray[Any, Any]], ends: Ends | None) -> Arrays:
    """A feed as a file with such ends takes it."""
    known = {} if ends is None else {e.name: e for e in ends.inputs if e.scale is not None}
    return {name: quantize(v, known[name]) if name in known else v for name, v in feed.items()}


def _real(outputs: Arrays, ends: Ends | None) -> Arrays:
    known: dict[str, End] = {} if ends is None else ends.coded
    return {name: dequantize(v, known[name]) if name in known else v for name, v in outputs.items()}
