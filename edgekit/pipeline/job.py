"""What one run is asked to do, with every default filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgekit.data.base import Samples
from edgekit.data.preprocess import Preprocess
from edgekit.data.samples import open_samples
from edgekit.errors import UsageError
from edgekit.quantize.calibrators import Calibrator
from edgekit.quantize.quantize import Options
from edgekit.recipe import BudgetSection, CompressSection, EvaluateSection, QatSection, Recipe

if TYPE_CHECKING:
    from edgekit.graph import TensorSpec

#: Anything that says how images become inputs.
PreprocessLike = Preprocess | Mapping[str, Any] | str | None

CALIBRATORS = ("auto", *(method.value for method in Calibrator))


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        model: The network: a path or ``package.module:callable``.
        data: The calibration samples.
        targets: ``name`` or ``name:profile``.
        folder: What relative paths and modules start from; None is the working folder.
        input_shapes: Shapes of inputs that the network leaves open.
        preprocess: How images become inputs.
        preprocess_note: Where that came from; says so when it was assumed.
        assumed: True when nobody said how images become inputs.
        limit: Most calibration samples.
        evaluate: The task.
        compress: Steps that make the network smaller, in order.
        qat: Training of the quantized network; None for none.
        qad_seconds: Most seconds for the same as the last rung of the ladder.
        compare: Artifacts of the network before compression to measure too: ``float``, ``int8``.
        io: What int8 artifacts take and return, ``quantized`` or ``float``; None is the target's own way.
        quantize: False makes the float artifact only.
        options: Of the quantizer.
        max_drop: Loss of the task metric above which quantization is tried again with more tensors raised.
        budget: What int8 must meet.
        runs: Timed calls.
        command: For the report.
    """

    model: str
    data: str
    targets: tuple[str, ...]
    folder: Path | None = None
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    preprocess: Preprocess = field(default_factory=Preprocess)
    preprocess_note: str = ""
    assumed: bool = False
    limit: int | None = None
    evaluate: EvaluateSection = field(default_factory=lambda: EvaluateSection(task="outputs"))
    compress: tuple[CompressSection, ...] = ()
    qat: QatSection | None = None
    qad_seconds: float = 0.0
    compare: tuple[str, ...] = ("float",)
    io: Literal["quantized", "float"] | None = None
    quantize: bool = True
    options: Options = field(default_factory=Options)
    max_drop: float | None = None
    budget: BudgetSection = field(default_factory=BudgetSection)
    runs: int = 100
    command: str = ""

    def samples(
        self, inputs: tuple[TensorSpec, ...], source: str | None = None, limit: int | None = None
    ) -> Samples:
        """The calibration samples, or those of another source."""
        return open_samples(source or self.data, inputs, self.preprocess, limit=limit, folder=self.folder)


def from_recipe(recipe: Recipe, *, runs: int = 100, command: str = "") -> Job:
    """The job that a recipe describes.

    Raises:
        UsageError: The preprocessing has a wrong key or value.
    """
    section = recipe.quantize
    preprocess, note, assumed = read_preprocess(recipe.data.preprocess, "from the recipe")
    return Job(
        model=recipe.model.source,
        data=recipe.data.calibrate,
        targets=recipe.deploy.targets,
        folder=recipe.folder,
        input_shapes=dict(recipe.model.input_shape),
        preprocess=preprocess,
        preprocess_note=note,
        assumed=assumed,
        limit=recipe.data.limit,
        evaluate=recipe.evaluate or EvaluateSection(task="outputs"),
        compress=tuple(step for step in recipe.compress if not isinstance(step, QatSection)),
        qat=next((step for step in recipe.compress if isinstance(step, QatSection)), None),
        qad_seconds=section.qad_seconds,
        compare=recipe.deploy.compare,
        io=recipe.deploy.io,
        quantize=section.enabled,
        options=Options(
            calibrator=section.calibrator,
            percentile=section.percentile,
            equalize=section.equalize,
            correct_biases=section.correct_biases,
            max_raised=section.max_raised,
            target_db=section.target_db,
            reconstruct_seconds=section.reconstruct_seconds,
        ),
        max_drop=section.max_drop,
        budget=recipe.budget,
        runs=runs,
        command=command,
    )


def read_preprocess(given: PreprocessLike, origin: str) -> tuple[Preprocess, str, bool]:
    """The preprocessing, where it came from, and whether it was assumed.

    Raises:
        UsageError: A key or a value is wrong.
    """
    if given is None:
        preprocess = Preprocess()
        return preprocess, f"assumed, since nobody said otherwise: {preprocess.describe()}", True
    if isinstance(given, Preprocess):
        return given, f"{origin}: {given.describe()}", False
    preprocess = Preprocess.parse(given) if isinstance(given, str) else Preprocess.read(given)
    return preprocess, f"{origin}: {preprocess.describe()}", False


def make_options(base: Options | None = None, **given: Any) -> Options:
    """Options of the quantizer, with those that are not None replaced.

    Raises:
        UsageError: An option is unknown or its value is wrong.
    """
    options = base or Options()
    unknown = sorted(set(given) - set(Options.__dataclass_fields__))
    if unknown:
        raise UsageError(f"there is no option '{unknown[0]}'", valid=Options.__dataclass_fields__)
    options = replace(options, **{key: value for key, value in given.items() if value is not None})
    if options.calibrator not in CALIBRATORS:
        raise UsageError(f"'{options.calibrator}'", where="calibrator", valid=CALIBRATORS)
    if not 50 < options.percentile <= 100:
        raise UsageError(f"{options.percentile:g}", where="percentile", valid=("above 50 up to 100",))
    return options
