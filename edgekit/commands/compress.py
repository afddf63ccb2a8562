"""``prune``, ``sparsify`` and ``distill``: each step of a recipe alone, from a model to ``.onnx``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.commands.shell import (
    Answer,
    Data,
    InputShapes,
    Limit,
    Model,
    PreprocessText,
    Shell,
    command,
    file_out,
    read_shapes,
)

if TYPE_CHECKING:
    from edgekit.pipeline.smaller import Smaller

Keep = Annotated[float | None, typer.Option("--keep", metavar="SHARE", help="Share of the channels to keep.")]
Macs = Annotated[float | None, typer.Option("--macs", metavar="SHARE", help="… of the multiply-accumulates.")]
Params = Annotated[float | None, typer.Option("--params", metavar="SHARE", help="… of the parameters.")]
Bytes = Annotated[float | None, typer.Option("--bytes", metavar="SHARE", help="… of the weights' bytes.")]
Latency = Annotated[
    float | None, typer.Option("--latency", metavar="SHARE", help="… of the latency on the target.")
]
DropLayers = Annotated[
    int, typer.Option("--drop-layers", metavar="N", min=0, help="Blocks to remove whole, at most.")
]
Plan = Annotated[
    Path | None, typer.Option("--plan", metavar="FILE", help="Apply this plan in place of a search.")
]
Cost = Annotated[
    str, typer.Option("--cost", metavar="KIND", help="float or int8: whose latency and bytes count.")
]
ImportanceName = Annotated[
    str,
    typer.Option(
        "--importance",
        metavar="NAME",
        help="fisher (no labels needed), magnitude-l1, magnitude-l2, bn-gamma or activation.",
    ),
]
Scope = Annotated[
    str | None,
    typer.Option("--scope", metavar="NAME", help="global, or uniform: the same share of every group."),
]
Align = Annotated[
    int | None,
    typer.Option(
        "--align", metavar="N", min=1, help="Keep channels in multiples of N; the target's by default."
    ),
]
MinKeep = Annotated[
    float | None, typer.Option("--min-keep", metavar="SHARE", help="Least share of a group that stays.")
]
Steps = Annotated[
    int | None, typer.Option("--steps", metavar="N", min=1, help="Prune and recover in N steps.")
]
Sensitivity = Annotated[
    bool, typer.Option("--sensitivity", help="Also measure what each group means to the outputs.")
]
Verify = Annotated[
    bool,
    typer.Option("--verify/--no-verify", help="Compare with the original whose removed channels are zero."),
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="The .onnx file; <model>.<step>.onnx by default.")
]
TargetName = Annotated[
    str, typer.Option("--target", metavar="T", help="Whose alignment, latency and kernels count.")
]
Recover = Annotated[
    str,
    typer.Option(
        "--recover",
        metavar="HOW",
        help="refit: least squares, in seconds; distill: that, then training; none.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude", metavar="NAME", help="Leave this whole; * and ? stand for anything; repeatable."
    ),
]
Epochs = Annotated[int | None, typer.Option("--epochs", metavar="N", min=1, help="Passes over the samples.")]
Seconds = Annotated[
    float | None, typer.Option("--seconds", metavar="S", min=1, help="Most time for the training.")
]
Rate = Annotated[
    float | None,
    typer.Option("--rate", metavar="R", help="Peak learning rate, relative to the weights; 0.01 is much."),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of everything drawn at random.")]
Samples = Annotated[
    int, typer.Option("--samples", metavar="N", min=1, help="Samples that ranking and refit look at.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    command(app, "prune", "Remove channels and layers, and recover what they did.")(prune)
    command(app, "sparsify", "Set single weights to zero: what it buys, and what not.")(sparsify)
    command(app, "distill", "Train a model to do what another does; no labels.")(distill)


def prune(
    shell: Shell,
    model: Model,
    data: Data,
    keep: Keep = None,
    macs: Macs = None,
    params: Params = None,
    bytes_: Bytes = None,
    latency: Latency = None,
    drop_layers: DropLayers = 0,
    plan: Plan = None,
    target: TargetName = "ort-cpu",
    cost: Cost = "float",
    importance: ImportanceName = "fisher",
    scope: Scope = None,
    align: Align = None,
    min_keep: MinKeep = None,
    steps: Steps = None,
    recover: Recover = "refit",
    epochs: Epochs = None,
    seconds: Seconds = None,
    rate: Rate = None,
    exclude: Exclude = None,
    samples: Samples = 128,
    sensitivity: Sensitivity = False,
    verify: Verify = True,
    seed: Seed = 0,
    preprocess: PreprocessText = None,
    input_shape: InputShapes = None,
    limit: Limit = None,
    out: Out = None,
) -> Answer:
    """Remove channels, and blocks where asked, from a model; samples are needed, labels are not.

    Say how much with one of --keep, --macs, --params, --bytes and --latency, a share of the original's. The
    plan (which channels stay) is written beside the model: apply it again with --plan, or to your own module
    with edgekit.apply_plan.
    """
    from edgekit import api

    options: dict[str, Any] = {
        **{"keep": keep, "macs": macs, "params": params, "bytes": bytes_, "latency": latency},
        **{"drop_layers": drop_layers, "cost": cost, "importance": importance, "scope": scope},
        **{"align": align, "min_keep": min_keep, "steps": steps, "samples": samples, "verify": verify},
        **{"exclude": tuple(exclude or ()), "sensitivity": sensitivity, "seed": seed},
    }
    training = {"epochs": epochs, "seconds": seconds, "rate": rate, "seed": seed}
    path = file_out(model, "pruned", out)
    with shell.reporter() as reporter:
        graph, how = _start(api, reporter, model, input_shape, preprocess)
        made = api.prune(
            graph, data, target, plan=plan, recover=recover, training=training,
            preprocess=how, limit=limit, reporter=reporter, **options,
        )  # fmt: skip
    files = {"plan": _beside(path, "plan.json")}
    if made.plan is not None:
        made.plan.save(files["plan"])
    return _answer(made, path, files)


def sparsify(
    shell: Shell,
    model: Model,
    data: Data,
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", metavar="SHARE", help="Share of the weights to set to zero.")
    ] = None,
    pattern: Annotated[
        str,
        typer.Option(
            "--pattern", metavar="NAME", help="unstructured, or N:M such as 2:4: N of every M stay."
        ),
    ] = "unstructured",
    scope: Annotated[
        str,
        typer.Option(
            "--scope", metavar="NAME", help="layer compares the weights of each layer, global of all."
        ),
    ] = "layer",
    criterion: Annotated[
        str,
        typer.Option(
            "--criterion", metavar="NAME", help="magnitude, or activation: what goes of the layer's output."
        ),
    ] = "magnitude",
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", min=1, help="Zero a part and recover, N times.")
    ] = 1,
    target: TargetName = "ort-cpu",
    recover: Recover = "refit",
    epochs: Epochs = None,
    seconds: Seconds = None,
    rate: Rate = None,
    exclude: Exclude = None,
    samples: Samples = 128,
    seed: Seed = 0,
    preprocess: PreprocessText = None,
    input_shape: InputShapes = None,
    limit: Limit = None,
    out: Out = None,
) -> Answer:
    """Set the smallest weights to zero, and say what that buys on the target."""
    from edgekit import api

    options: dict[str, Any] = {
        **{"sparsity": sparsity, "pattern": pattern, "scope": scope, "samples": samples},
        **{"criterion": criterion, "steps": steps},
    }
    options["exclude"] = tuple(exclude or ())
    training = {"epochs": epochs, "seconds": seconds, "rate": rate, "seed": seed}
    path = file_out(model, "sparse", out)
    with shell.reporter() as reporter:
        graph, how = _start(api, reporter, model, input_shape, preprocess)
        made = api.sparsify(
            graph, data, target, recover=recover, training=training,
            preprocess=how, limit=limit, reporter=reporter, **options,
        )  # fmt: skip
    return _answer(made, path, {})


def distill(
    shell: Shell,
    model: Model,
    data: Data,
    teacher: Annotated[
        str, typer.Option("--teacher", metavar="MODEL", help="The model whose outputs are learned.")
    ],
    epochs: Epochs = None,
    seconds: Seconds = None,
    rate: Rate = None,
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="N", min=1, help="Samples of one step.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", metavar="T", help="Of class scores.")
    ] = None,
    features: Annotated[
        bool, typer.Option("--features/--no-features", help="Inner tensors follow the teacher's too.")
    ] = True,
    augment: Annotated[bool, typer.Option("--augment/--no-augment", help="Vary the images.")] = True,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", help="How the model was cut from the teacher, where it was."),
    ] = None,
    seed: Seed = 0,
    preprocess: PreprocessText = None,
    input_shape: InputShapes = None,
    limit: Limit = None,
    out: Out = None,
) -> Answer:
    """Train a model to give what its teacher gives, on samples without labels.

    An interrupted training goes on where it stopped when the same command is run again.
    """
    from edgekit import api

    options: dict[str, Any] = {
        **{"epochs": epochs, "seconds": seconds, "rate": rate, "batch": batch, "temperature": temperature},
        **{"features": features, "augment": augment, "seed": seed},
    }
    path = file_out(model, "distilled", out)
    checkpoint = _beside(path, "checkpoint.pt")
    shell.on_interrupt = "Run the same command again to go on from there"
    with shell.reporter() as reporter:
        graph, how = _start(api, reporter, model, input_shape, preprocess)
        made = api.distill(
            graph, teacher, data, plan=plan, preprocess=how, limit=limit, checkpoint=checkpoint,
            reporter=reporter, **options,
        )  # fmt: skip
    answer = _answer(made, path, {})
    checkpoint.unlink(missing_ok=True)
    return answer


def _start(
    api: Any, reporter: Any, model: str, input_shape: list[str] | None, preprocess: str | None
) -> tuple[Any, Any]:
    """The captured model and how images become its inputs."""
    from edgekit.pipeline.job import read_preprocess

    how, note, assumed = read_preprocess(preprocess, "given with the command")
    if assumed:
        reporter.note(f"Preprocessing {note}")
    reporter.step("capture")
    return api.load(model, read_shapes(input_shape)), how


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.stem}.{suffix}")


def _answer(made: Smaller, path: Path, files: dict[str, Path]) -> Answer:
    from edgekit.pipeline.state import plain
    from edgekit.report.compression_text import compression_lines

    size = made.graph.save(path)
    document = {
        "out": str(path),
        "size_bytes": size,
        **{name: str(file) for name, file in files.items()},
        "steps": list(made.steps),
        "latency": made.latency,
    }
    lines = [f"{path}: {size / 1e6:.2f} MB", *(f"{name}: {file}" for name, file in files.items())]
    for step in made.steps:
        lines += ["", *compression_lines(plain(step))]
    if made.latency is not None:
        lines += ["", made.latency_text]
    return Answer(plain(document), "\n".join(lines))
