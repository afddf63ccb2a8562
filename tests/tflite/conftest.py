"""Models of one operator, run by LiteRT and by the integer reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from edgekit.tflite.interpreter import Kernels, LiteRt
from edgekit.tflite.model import Array, DType, Operator, Quantization, Tensor, TfliteModel
from edgekit.tflite.reference.run import Reference
from edgekit.tflite.write import write_model

#: Widest difference in codes to the kernels of a device; None where they are not held against the reference.
Steps = int | None


@dataclass(frozen=True)
class OneOperator:
    """Builds, runs and compares models of one operator."""

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        scale: float | Sequence[float] | None = None,
        zero_point: int = 0,
        *,
        dtype: DType = DType.INT8,
        axis: int = 0,
        data: Any = None,
    ) -> Tensor:
        """A tensor; several scales make it per-channel, ``scale=None`` leaves it without quantization."""
        quantization = None
        if scale is not None:
            scales = np.atleast_1d(np.array(scale, np.float32))
            quantization = Quantization(scales, np.full(len(scales), zero_point, np.int64), axis)
        values = None if data is None else np.array(data, dtype.numpy).reshape(tuple(shape))
        return Tensor(name, tuple(shape), dtype, quantization, values)

    def constant(self, name: str, values: Any, dtype: DType = DType.INT32) -> Tensor:
        """Shapes, axes, paddings: a constant that is no codes."""
        data = np.array(values, dtype.numpy)
        return Tensor(name, data.shape, dtype, None, data)

    def model(
        self, op: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], **options: Any
    ) -> TfliteModel:
        """A model of one operator; tensors without values are its inputs, named after themselves."""
        tensors = {t.name: t for t in (*inputs, *outputs) if t is not None}
        return TfliteModel(
            tensors=tensors,
            operators=(
                Operator(
                    op, tuple(t.name if t else None for t in inputs), tuple(t.name for t in outputs), options
                ),
            ),
            inputs={t.name: t.name for t in inputs if t is not None and t.data is None},
            outputs={t.name: t.name for t in outputs},
        )

    def values(self, model: TfliteModel, seed: int = 0) -> dict[str, Array]:
        """Random inputs: codes of the whole range with both its ends, floats of a normal distribution."""
        rng = np.random.default_rng(seed)
        found: dict[str, Array] = {}
        for name, tensor_name in model.inputs.items():
            tensor = model.tensors[tensor_name]
            if tensor.dtype is DType.FLOAT32:
                found[name] = rng.normal(size=tensor.shape).astype(np.float32)
                continue
            limits = np.iinfo(tensor.dtype.numpy)
            codes = rng.integers(
                limits.min, limits.max, tensor.shape, dtype=tensor.dtype.numpy, endpoint=True
            )
            flat = codes.reshape(-1)
            flat[:1], flat[-1:] = limits.min, limits.max
            found[name] = codes
        return found

    def check(
        self,
        model: TfliteModel,
        values: Mapping[str, Array] | None = None,
        *,
        optimized: Steps = 1,
        xnnpack: Steps = 1,
        reference: Steps = 0,
        seed: int = 0,
    ) -> dict[str, Array]:
        """Run a model in the integer reference and in LiteRT and assert that they agree.

        Args:
            model: The model.
            values: Its inputs; random ones if left out.
            optimized: Steps that LiteRT's optimized kernels may differ by; None leaves them out.
            xnnpack: Steps that XNNPACK may differ by; None leaves it out.
            reference: Steps that LiteRT's reference kernels may differ by: none, unless a test says why; None
                leaves them out.
            seed: Of the random inputs.

        Returns:
            The reference's outputs.
        """
        pytest.importorskip("ai_edge_litert")
        values = self.values(model, seed) if values is None else values
        data = write_model(model)
        ours = Reference(model).run(values)
        limits = {Kernels.REFERENCE: reference, Kernels.OPTIMIZED: optimized, Kernels.XNNPACK: xnnpack}
        for kernels, limit in limits.items():
            if limit is None:
                continue
            theirs = LiteRt(data, kernels).run(values)
            for name, found in ours.items():
                assert found.dtype == theirs[name].dtype
                assert found.shape == theirs[name].shape
                if found.dtype == np.float32:
                    # Sums are taken in another order: what matters is the size of their terms.
                    largest = float(np.abs(theirs[name]).max(initial=0))
                    np.testing.assert_allclose(found, theirs[name], rtol=1e-5, atol=1e-6 * max(1.0, largest))
                    continue
                apart = np.abs(found.astype(np.int64) - theirs[name].astype(np.int64))
                assert apart.max(initial=0) <= limit, (
                    f"{kernels}: {name} is {apart.max()} steps off, {np.mean(apart > 0):.1%} differ"
                )
        return ours


@pytest.fixture(scope="session")
def one_op() -> OneOperator:
    """``one_op.check(one_op.model("ADD", [a, b], [c]))``."""
    return OneOperator()


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    """The message of the error that a call must raise."""

    def message(error: type[Exception], call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
        with pytest.raises(error) as caught:
            call(*args, **kwargs)
        return str(caught.value)

    return message
