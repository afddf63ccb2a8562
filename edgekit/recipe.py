"""The sections of a recipe, checked key by key; :mod:`edgekit.recipe_file` reads them from a TOML file.

A source is a path or ``package.module:callable``; every path of a loaded recipe is absolute.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator
from pydantic_core import PydanticCustomError

_Shape = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False, min_length=1)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Drop = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1)]
_Text = Annotated[str, Field(min_length=1)]


class _Section(BaseModel):
    # strict: a number in quotes or a boolean is not taken for a number
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSection(_Section):
    """``[model]``: the network.

    Attributes:
        source: ``.onnx`` or ``.pt2`` file, or ``package.module:callable`` returning an ``nn.Module``.
        input_shape: Shape by input name, where the network leaves dimensions open.
    """

    source: _Text
    input_shape: dict[str, _Shape] = {}


class DataSection(_Section):
    """``[data]``: samples for calibration.

    Attributes:
        calibrate: Image folder, ``.npz`` file or ``package.module:callable``.
        preprocess: Keys of :class:`edgekit.data.preprocess.Preprocess`; None when the recipe does not say.
        limit: Use at most this many samples.
    """

    calibrate: _Text
    preprocess: dict[str, Any] | None = None
    limit: _Count | None = None


class EvaluateSection(_Section):
    """``[evaluate]``: the task metric.

    Attributes:
        task: ``detection`` (COCO mAP), ``verification`` (face embeddings, all pairs of images),
            ``classification`` (accuracy) or ``outputs`` (against the original's, no labels).
        images: Samples to evaluate on; for ``outputs`` the calibration samples when left out.
        annotations: COCO JSON file; ``detection`` only.
        decode: Name of the decoder that turns outputs into boxes; ``detection`` only.
        labels: ``package.module:callable`` returning the class of each sample; ``classification`` only. Left
            out, as for ``verification``, an image belongs to the folder that it lies in.
        limit: Use at most this many samples.
        emulated: Samples that are run in the target's emulator too, where it has one; left out: 8.
    """

    task: Literal["detection", "verification", "classification", "outputs"]
    images: _Text | None = None
    annotations: _Text | None = None
    decode: _Text | None = None
    labels: _Text | None = None
    limit: _Count | None = None
    emulated: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _complete(self) -> EvaluateSection:
        needed = {
            "detection": ("images", "annotations", "decode"),
            "verification": ("images",),
            "classification": ("images",),
        }
        if self.task in needed:
            missing = [key for key in needed[self.task] if getattr(self, key) is None]
            if missing:
                text = "task '{task}' needs {keys}"
                given = {"task": self.task, "keys": ", ".join(missing)}
                raise PydanticCustomError("incomplete", text, given)
        return self


class PruneSection(_Section):
    """A ``[[compress]]`` step that removes channels, and layers where asked.

    Attributes:
        name: ``prune``; written ``pass`` in the file.
        keep: Share of the channels to keep.
        macs: Share of the multiply-accumulates to keep.
        params: Share of the parameters to keep.
        bytes: Share of the weights' bytes to keep.
        latency: Share of the latency on the first target to keep.
        importance: How the worth of a channel is judged.
        scope: ``global`` takes from each group what costs least; ``uniform`` the same share from every group.
            ``uniform`` for ``keep`` and ``global`` for the other aims, when left out.
        align: Channels are kept in multiples of this; the target's own figure when left out.
        min_keep: Least share of a group that stays.
        steps: Times that a part is removed and what is left recovers; 1 removes all at once.
        drop_layers: Most residual or repeated blocks to remove, cheapest loss first.
        recover: What follows each removal: ``refit`` fits the layers to the original's by least squares.
        cost: Number format whose latency and bytes count.
        samples: Samples that importance and refit look at.
        exclude: Names, with ``*`` and ``?``, of groups and blocks that stay whole.
        sensitivity: Whether the effect of each group is measured on its own, for the report.
        verify: Whether the result is checked against the original with the removed channels set to zero.
        saved: A plan from an earlier run, used in place of a new one unless everything is made afresh.
        seed: Of the choices made at random.
    """

    name: Literal["prune"] = Field(alias="pass")
    keep: _Share | None = None
    macs: _Share | None = None
    params: _Share | None = None
    bytes: _Share | None = None
    latency: _Share | None = None
    importance: Literal["fisher", "magnitude-l1", "magnitude-l2", "bn-gamma", "activation"] = "fisher"
    scope: Literal["global", "uniform"] | None = None
    align: _Count | None = None
    min_keep: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    steps: _Count | None = None
    drop_layers: Annotated[int, Field(ge=0)] = 0
    recover: Literal["none", "refit"] = "refit"
    cost: Literal["float", "int8"] = "float"
    samples: _Count = 128
    exclude: Annotated[tuple[_Text, ...], Field(strict=False)] = ()
    sensitivity: bool = False
    verify: bool = True
    saved: _Text | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _one_aim(self) -> PruneSection:
        aims = ("keep", "macs", "params", "bytes", "latency")
        given = [aim for aim in aims if getattr(self, aim) is not None]
        if len(given) > 1 or not (given or self.drop_layers or self.saved):
            found = f"not {' and '.join(given)}" if given else "none is given"
            text = "needs one aim out of {aims}: {found}"
            raise PydanticCustomError("aim", text, {"aims": ", ".join(aims), "found": found})
        return self


class SparsifySection(_Section):
    """A ``[[compress]]`` step that sets single weights to zero.

    Attributes:
        name: ``sparsify``; written ``pass`` in the file.
        sparsity: Share of the weights that become zero; for ``N:M`` the pattern says it.
        pattern: ``unstructured``, or ``N:M``: of every M weights in a row of inputs N stay.
        scope: ``layer`` compares the weights of each layer, ``global`` those of all.
        criterion: ``magnitude``, or ``activation``: what of the layer's output goes with the weight.
        steps: Times that a part is zeroed and the rest recovers, by the cubic schedule; 1 does all at once.
        recover: ``refit`` fits the weights that are left to the original by least squares.
        samples: Samples that the refit looks at.
        exclude: Names, with ``*`` and ``?``, of weights that stay whole.
    """

    name: Literal["sparsify"] = Field(alias="pass")
    sparsity: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None = None
    pattern: Annotated[str, Field(pattern=r"^(unstructured|[1-9]\d*:[1-9]\d*)$")] = "unstructured"
    scope: Literal["global", "layer"] = "layer"
    criterion: Literal["magnitude", "activation"] = "magnitude"
    steps: _Count = 1
    recover: Literal["none", "refit"] = "refit"
    samples: _Count = 128
    exclude: Annotated[tuple[_Text, ...], Field(strict=False)] = ()


class DistillSection(_Section):
    """A ``[[compress]]`` step that trains the network to do what its teacher does; no labels are needed.

    Attributes:
        name: ``distill``; written ``pass`` in the file.
        epochs: Passes over the samples; 30 when neither this nor ``seconds`` is given.
        seconds: Time after which the training ends; what comes first of the two ends it.
        rate: Peak learning rate, relative to the size of each channel's weights: 0.01 changes them by up to a
            hundredth in a step. By the kind of the outputs when left out.
        batch: Samples of one step.
        temperature: Of the class scores.
        box_weight: Of a detector's boxes against its scores; 2 when left out.
        features: Whether inner tensors follow the teacher's too.
        augment: Whether images are varied: cut, scaled, mirrored, coloured, put together.
        teacher: Another network than the original.
        data: Samples to train on; those of calibration when left out.
        limit: Use at most this many samples.
        labels: ``package.module:callable`` returning the class of each sample, to be learned too.
        saved: Weights from an earlier run, taken in place of a training unless everything is made afresh.
        seed: Of order, augmentation and initial values.
    """

    name: Literal["distill"] = Field(alias="pass")
    epochs: _Count | None = None
    seconds: _Positive | None = None
    rate: _Positive | None = None
    batch: _Count | None = None
    temperature: _Positive | None = None
    box_weight: _Positive | None = None
    features: bool = True
    augment: bool = True
    teacher: _Text | None = None
    data: _Text | None = None
    limit: _Count | None = None
    labels: _Text | None = None
    saved: _Text | None = None
    seed: int = 0


class SubstituteSection(_Section):
    """A ``[[compress]]`` step that puts one activation in the place of another, which a chip runs faster.

    It changes what the network computes: let ``distill`` follow.

    Attributes:
        name: ``substitute``; written ``pass`` in the file.
        from_: The activation to replace, such as ``silu``; written ``from`` in the file.
        to: What to put there, such as ``hard_swish`` or ``relu6``.
        nodes: Names, with ``*`` and ``?``, of those to replace; all when left out.
    """

    name: Literal["substitute"] = Field(alias="pass")
    from_: _Text = Field(alias="from")
    to: _Text
    nodes: Annotated[tuple[_Text, ...], Field(strict=False)] = ()


class QatSection(_Section):
    """A ``[[compress]]`` step that trains the quantized network to do what its float original does.

    It is the last one: it follows the quantization for each target. No labels are needed.

    Attributes:
        name: ``qat``; written ``pass`` in the file.
        epochs: Most passes over the samples.
        seconds: Time after which the training ends; 120 when neither this nor ``epochs`` is given.
        rate: Peak learning rate, relative to the size of each channel's weights.
        batch: Samples of one step.
        box_weight: Of a detector's boxes against its scores.
        learn_scales: Whether scales are learned too.
        augment: Whether images are varied.
        data: Samples to train on; those of calibration when left out.
        limit: Use at most this many samples.
        labels: ``package.module:callable`` returning the class of each sample, to be learned too.
        seed: Of order and augmentation.
    """

    name: Literal["qat"] = Field(default="qat", alias="pass")
    epochs: _Count | None = None
    seconds: _Positive | None = None
    rate: _Positive | None = None
    batch: _Count | None = None
    box_weight: _Positive | None = None
    learn_scales: bool = True
    augment: bool = True
    data: _Text | None = None
    limit: _Count | None = None
    labels: _Text | None = None
    seed: int = 0


CompressSection = Annotated[
    PruneSection | SparsifySection | DistillSection | SubstituteSection | QatSection,
    Field(discriminator="name"),
]


class QuantizeSection(_Section):
    """``[quantize]``: how tensors get their int8 ranges. Number formats come from the target.

    Attributes:
        enabled: False exports float only.
        calibrator: How a range is chosen from what calibration saw; ``auto`` tries all of them.
        percentile: Share of values, in percent, that the ``percentile`` calibrator keeps inside the range.
        equalize: Whether channels of very different range are balanced between layers.
        correct_biases: Whether biases make up for the mean error of quantized weights.
        max_raised: Most tensors in a wider format; the target's own limit when left out.
        target_db: Signal-to-noise ratio of the outputs, in dB, below which costlier ways are tried.
        reconstruct_seconds: Most seconds for learning rounding and ranges where the ratio is not reached
            without; 0 never does it.
        qad_seconds: Most seconds that the quantized network is trained for, against its float original,
            where all else is not good enough; 0 never does it.
        max_drop: Loss of the task metric that is accepted; more tensors are raised to a wider format until it
            is met or the limit is reached. None raises none for the metric's sake.
    """

    enabled: bool = True
    calibrator: Literal["auto", "minmax", "percentile", "entropy", "mse"] = "auto"
    percentile: Annotated[float, Field(gt=50, le=100, allow_inf_nan=False)] = 99.99
    equalize: bool = True
    correct_biases: bool = True
    max_raised: Annotated[int, Field(ge=0)] | None = None
    target_db: Annotated[float, Field(allow_inf_nan=False)] = 13.0
    reconstruct_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 120.0
    qad_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    max_drop: _Drop | None = None


class DeploySection(_Section):
    """``[deploy]``: where the network goes.

    Attributes:
        targets: ``name`` or ``name:profile``; ``edgekit targets`` lists them.
        compare: Which artifacts of the network before compression are measured beside the compressed ones.
        io: Whether int8 artifacts take and return codes (``quantized``) or float, where the target has a
            choice.
    """

    targets: Annotated[tuple[_Text, ...], Field(strict=False, min_length=1)] = ("ort-cpu",)
    compare: Annotated[tuple[Literal["float", "int8"], ...], Field(strict=False)] = ("float",)
    io: Literal["quantized", "float"] | None = None

    @field_validator("targets")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in value if value.count(name) > 1})
        if twice:
            raise PydanticCustomError("twice", "named twice: {names}", {"names": ", ".join(twice)})
        return value


class BudgetSection(_Section):
    """``[budget]``: what the int8 artifact must meet; a miss ends the run with exit code 1.

    Attributes:
        latency_ms: Median latency.
        size_mb: Size of the file in megabytes (10⁶ bytes).
        max_drop: Loss of the task metric against float.
    """

    latency_ms: _Positive | None = None
    size_mb: _Positive | None = None
    max_drop: _Drop | None = None


class Recipe(_Section):
    """Everything one run needs. :func:`edgekit.recipe_file.load_recipe` reads it from a file."""

    model: ModelSection
    data: DataSection
    evaluate: EvaluateSection | None = None
    compress: Annotated[tuple[CompressSection, ...], Field(strict=False)] = ()
    quantize: QuantizeSection = QuantizeSection()
    deploy: DeploySection = DeploySection()
    budget: BudgetSection = BudgetSection()

    @field_validator("compress")
    @classmethod
    def _qat_is_last(cls, steps: tuple[CompressSection, ...]) -> tuple[CompressSection, ...]:
        if any(isinstance(step, QatSection) for step in steps[:-1]):
            raise PydanticCustomError("order", "qat trains what was quantized: it must be the last step")
        return steps

    _folder: Path = PrivateAttr(default_factory=Path)

    @property
    def folder(self) -> Path:
        """The recipe's folder; the current one for a recipe made in code."""
        return self._folder

    def to_json(self) -> dict[str, Any]:
        """The recipe with every default filled in, JSON-ready, keys as in the file."""
        return self.model_dump(mode="json", by_alias=True)
