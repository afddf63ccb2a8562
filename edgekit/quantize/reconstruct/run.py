"""Reconstruction of a quantized network, block by block, on unlabelled samples.

For each block in execution order:

1. the float network's output of the block is computed, from its input kept on disk;
2. rounding of weights, biases and activation scales are learned so that the quantized block gives that output
   on the input that the network quantized up to there gives (:mod:`edgekit.quantize.reconstruct.train`);
3. the result is measured in ONNX Runtime on samples that the training has not seen, and kept if the error has
   fallen;
4. the block's quantized output is computed and kept for those behind it.

Memory holds one batch of one block at a time; tensors that later blocks read are in files.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgekit.errors import ModelError
from edgekit.graph import Change, Graph
from edgekit.passes.edit import static_shape
from edgekit.quantize.histogram import Array
from edgekit.quantize.plan import Plan
from edgekit.quantize.qparams import QParams
from edgekit.quantize.reconstruct import checkpoint as saved
from edgekit.quantize.reconstruct.blocks import Block
from edgekit.quantize.reconstruct.checkpoint import Done
from edgekit.quantize.reconstruct.importance import bytes_needed, channel_weights
from edgekit.quantize.reconstruct.network import Network, bias_of
from edgekit.quantize.reconstruct.options import (
    BlockResult,
    Feeds,
    Granularity,
    Progress,
    Reconstruction,
    ReconstructOptions,
    Status,
)
from edgekit.quantize.reconstruct.sections import ENTRY
from edgekit.quantize.reconstruct.store import Store
from edgekit.quantize.reconstruct.stream import Stream
from edgekit.quantize.reconstruct.tasks import Aim, has_batch_axis, make_task
from edgekit.quantize.reconstruct.train import Learned, learn
from edgekit.quantize.scheme import Scheme

#: Samples that gradients of the outputs are taken on.
FISHER_SAMPLES = 8
#: Training samples that the error of nearest rounding is taken on.
BASELINE_SAMPLES = 8
#: Error over signal below which there is nothing to gain.
NEGLIGIBLE = 1e-9


def reconstruct(
    work: Graph,
    plan: Plan,
    params: Mapping[str, QParams],
    scheme: Scheme,
    scales: Mapping[str, Array],
    feeds: Feeds,
    options: ReconstructOptions | None = None,
    *,
    teacher: Graph | None = None,
    progress: Progress | None = None,
    status: Status | None = None,
    checkpoint: Path | None = None,
    folder: Path | None = None,
) -> Reconstruction:
    """Learn the rounding of weights, biases and activation scales of a network.

    Args:
        work: The float graph that is quantized, with equalized channels and corrected biases.
        plan: What is quantized.
        params: Parameters of the activations.
        scheme: The target's number formats.
        scales: From :func:`~edgekit.quantize.qdq.all_weight_scales`.
        feeds: Called for a pass over the samples.
        options: How.
        teacher: The float graph to come near to, with the tensor names of ``work``: ``work`` without
            corrected biases. None is ``work`` itself.
        progress: Called with steps made and steps in all.
        status: Called with a line on every block.
        checkpoint: A file that blocks are kept in as they are done; if it is there, the run goes on from it.
        folder: Where a temporary folder for the activations is made.

    Returns:
        What goes into ``insert_qdq(graph, plan, params, scheme, scales, codes)``.

    Raises:
        DataError: There are fewer than two samples, or the checkpoint is damaged.
        UsageError: The checkpoint belongs to another run.
        ModelError: The executor cannot run a node of a block with weights.
        OutputError: The disk is full.
    """
    start, options, teacher = time.perf_counter(), options or ReconstructOptions(), teacher or work
    network = Network.start(work, plan, params, scheme, scales, options)
    with Store(folder) as store:
        stream = Stream(teacher, network, store, feeds, options)
        stamp = saved.fingerprint(work, teacher, plan, params, scheme, scales, options, stream.digest)
        line = _Line(network, stream, options, progress, status)
        line.run(teacher, checkpoint, stamp)
    return line.result(time.perf_counter() - start)


class _Line:
    def __init__(
        self,
        network: Network,
        stream: Stream,
        options: ReconstructOptions,
        progress: Progress | None,
        status: Status | None,
    ) -> None:
        self.network, self.stream, self.options = network, stream, options
        self.progress = progress or (lambda _done, _total: None)
        self.status = status or (lambda _text: None)
        self.total = len(network.blocks) * options.iterations
        self.done: list[Done] = []
        self.notes: list[str] = []
        self.weights: dict[str, Array] = {}

    def run(self, teacher: Graph, checkpoint: Path | None, stamp: Mapping[str, str]) -> None:
        before = saved.load(checkpoint, stamp) if checkpoint is not None and checkpoint.exists() else []
        if self.options.fisher:
            self._measure_importance(teacher)
        self.stream.advance(self.network, ENTRY)
        for number, block in enumerate(self.network.blocks):
            self.stream.run_float(number)
            done = before[number] if number < len(before) else self._block(number, block)
            self.network = self.network.changed(done)
            self.done.append(done)
            if checkpoint is not None and number >= len(before):
                saved.save(checkpoint, self.done, stamp)
            self.progress((number + 1) * self.options.iterations, self.total)
            self.stream.advance(self.network, number)

    def result(self, seconds: float) -> Reconstruction:
        results = tuple(d.result for d in self.done)
        learned = sum(r.noise_after < r.noise_before for r in results)
        summary = f"{learned} of {len(results)} blocks reconstructed on {self.stream.count} samples"
        return Reconstruction(
            graph=self.network.work.with_change(Change("reconstruct", summary)),
            params=dict(self.network.params),
            scales=dict(self.network.scales),
            codes=dict(self.network.codes),
            blocks=results,
            peak_bytes=_peak_bytes(),
            seconds=seconds,
            notes=tuple(self.notes),
        )

    def _measure_importance(self, teacher: Graph) -> None:
        needed, most = bytes_needed(teacher), self.options.memory_bytes
        if needed > most:
            self.notes.append(
                f"channels count alike: their weights would take {needed / 2**20:.0f} MB to measure, "
                f"{most / 2**20:.0f} MB are allowed"
            )
            return
        step = max(1, len(self.stream.trained) // FISHER_SAMPLES)
        chosen = self.stream.trained[::step][:FISHER_SAMPLES]
        wanted = [b.outputs[0] for b in self.network.blocks if b.weighted and len(b.outputs) == 1]
        try:
            self.weights = channel_weights(
                teacher, wanted, list(self.stream.feeds(chosen)), self.options.seed
            )
        except ModelError as error:
            # The arithmetic behind the blocks may have no kernel or no gradient; blocks do without it.
            self.notes.append(f"channels count alike: {error}")

    def _block(self, number: int, block: Block) -> Done:
        start = time.perf_counter()
        if len(block.outputs) != 1:
            name = (*block.outputs, *block.nodes)[0]
            return Done(
                BlockResult(name, block.weighted, 0.0, 0.0, 0.0, "not looked at: it has several results")
            )
        weights = self._weights_of(block.outputs[0])
        error, signal = self.stream.error(self.network, number, self.stream.held, weights)
        before = error / max(signal, 1e-30)
        done, after, note = self._learn(number, block, weights, before)
        seconds = time.perf_counter() - start
        result = BlockResult(block.outputs[0], block.weighted, before, after, seconds, note)
        self.status(_describe(result))
        return replace(done, result=result)

    def _learn(self, number: int, block: Block, weights: Array, before: float) -> tuple[Done, float, str]:
        """What a block learned, the noise with it, and what to say about it."""
        nothing = Done(BlockResult(block.outputs[0], block.weighted, before, before, 0.0))
        if not block.weighted:
            return nothing, before, "no quantized weights: nothing to learn"
        if before < NEGLIGIBLE:
            return nothing, before, "left as it was: it has no error"
        network, stream, options = self.network, self.stream, self.options
        few = stream.trained[:: max(1, len(stream.trained) // BASELINE_SAMPLES)][:BASELINE_SAMPLES]
        baseline = max(stream.error(network, number, few, weights)[0], 1e-30)
        result = network.sections.quantized_name(block.outputs[0])
        task = make_task(network, number, Aim(result, weights, baseline), options)
        if not has_batch_axis(network.sections, task):
            return nothing, before, "left as it was: a tensor has no leading axis of one sample"
        learned = learn(
            task,
            stream.trained,
            lambda samples: stream.fetch(network, task, number, samples, mix=options.drop > 0),
            options,
            seconds=self._share(number),
            progress=lambda made: self.progress(number * options.iterations + made, self.total),
        )
        found, after = self._best(number, block, self._candidates(nothing, learned), weights)
        if not after < before:
            return nothing, before, f"left as it was: what was learned gives {after:.3g} on held-out samples"
        return found, after, self._note(block, learned, found)

    def _best(
        self, number: int, block: Block, candidates: Sequence[Done], weights: Array
    ) -> tuple[Done, float]:
        """The candidate with the least noise on held-out samples, and that noise."""
        best, least = candidates[0], float("inf")
        for candidate in candidates:
            network = self.network.changed(candidate)
            if network.without_room(block.weighted):
                continue  # a bias does not fit int32 any more
            error, signal = self.stream.error(network, number, self.stream.held, weights)
            if error / max(signal, 1e-30) < least:
                best, least = candidate, error / max(signal, 1e-30)
        return best, least

    def _candidates(self, nothing: Done, learned: Learned) -> list[Done]:
        """All that was learned, and without what fits the training samples too closely most easily."""
        whole = self._done(nothing.result, learned)
        found = [whole]
        if whole.steps:
            found.append(replace(whole, steps={}))
        if whole.steps or whole.shifts:
            found.append(replace(whole, codes={}))
        return found

    def _done(self, result: BlockResult, learned: Learned) -> Done:
        shifts = {}
        for node, bias in learned.biases.items():
            old = bias_of(self.network.nodes[node])
            if old is not None:
                shifts[node] = bias - old
        return Done(result, codes=learned.codes, shifts=shifts, steps=learned.scales)

    def _note(self, block: Block, learned: Learned, found: Done) -> str:
        notes = []
        if learned.scales and not found.steps:
            notes.append("activation ranges kept: the learned ones do worse on held-out samples")
        if not found.codes:
            notes.append("weights rounded to nearest: learned rounding does worse on held-out samples")
        if block.uncut and self.options.granularity == Granularity.BLOCK:
            notes.append(f"a layer alone: the region around it has {block.uncut} layers and no cut")
        if learned.steps < self.options.iterations:
            notes.append(f"{learned.steps} of {self.options.iterations} steps in its share of the time")
        return "; ".join(notes)

    def _weights_of(self, output: str) -> Array:
        found = self.weights.get(output)
        shape = static_shape(self.stream.floats.values[output]) or (1,)
        return np.ones([1] * len(shape), np.float32) if found is None else found

    def _share(self, number: int) -> float | None:
        """Seconds that a block may take: of what is left, its part by what it computes."""
        if self.options.seconds is None:
            return None
        costs = [
            self.network.sections.sections[i].bytes if b.weighted else 0
            for i, b in enumerate(self.network.blocks)
        ]
        left = max(0.0, self.options.seconds - sum(d.result.seconds for d in self.done))
        return left * costs[number] / max(1, sum(costs[number:]))


def _describe(result: BlockResult) -> str:
    def db(noise: float) -> str:
        return f"{-10 * np.log10(max(noise, 1e-12)):.1f} dB"

    note = f" ({result.note})" if result.note else ""
    return f"{result.name}: {db(result.noise_before)} to {db(result.noise_after)}{note}"


def _peak_bytes() -> int:
    """Largest resident memory of this process so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
