"""From torch to ONNX: modules made by a callable, and programs saved by ``torch.export``.

The exporter's own optimizer stays off: it renames the weights of Linear layers, and edgekit's passes clean up
anyway.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import logging
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import ModelError, UsageError
from edgekit.graph import OPSET
from edgekit.objects import load_callable

if TYPE_CHECKING:
    import onnx
    import torch

Arrays = dict[str, np.ndarray[Any, Any]]
Run = Callable[[Mapping[str, np.ndarray[Any, Any]]], Arrays]
#: File name prefixes of pickled objects in a ``.pt2`` archive.
_OBJECTS = ("custom_obj", "opaque_obj")

Exported = tuple["onnx.ModelProto", Run | None, str]

_EXAMPLES_HINT = (
    "Inputs given by shape are float32; for others let the callable return (module, {'name': example, …})"
)


def export_callable(
    source: str, input_shapes: Mapping[str, tuple[int, ...]], folder: Path | None
) -> Exported:
    """Export the module that ``package.module:callable`` returns.

    The callable is called without arguments; what it prints goes to stderr. It returns an ``nn.Module``,
    whose inputs ``input_shapes`` describes in the order of ``forward``, or ``(module, {name: example})``. The
    module is put into eval mode.

    Returns:
        The model, a function that runs the torch module itself, and the SHA-256 of the exported model.

    Raises:
        UsageError: No such module or callable, or ``input_shapes`` does not fit ``forward``.
        ModelError: The callable fails or returns something else, or the module cannot be exported.
    """
    module, examples = _build(source, folder)
    module.eval()
    inputs = _examples(module, examples, input_shapes, source)
    proto = _export(module, tuple(inputs.values()), source, input_names=list(inputs))
    names = list(inputs)

    def run(feeds: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        import torch

        with torch.no_grad(), redirect_stdout(sys.stderr):
            found = module(*(torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in names))
        return _named(found, proto)

    return proto, run, hashlib.sha256(proto.SerializeToString()).hexdigest()


def export_program(path: Path) -> Exported:
    """Export a program that ``torch.export.save`` wrote.

    A file cannot run code of its own: pickled objects are refused, and tensors are read with torch's
    ``weights_only`` loader.

    Raises:
        ModelError: Not such a file, damaged, or not exportable.
    """
    import torch

    _check_archive(path)
    try:
        with _quiet(), _weights_only():
            program = torch.export.load(path)
    except Exception as error:  # torch raises many unrelated classes on a file it cannot read
        raise ModelError(
            f"not a program saved by torch.export.save ({_line(error)})",
            where=str(path),
            hint="Write it with torch.export.save(torch.export.export(model.eval(), args), 'model.pt2')",
        ) from error
    proto = _export(program, None, str(path))
    names = [value.name for value in proto.graph.input]

    def run(feeds: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        flat = [torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in names]
        args, kwargs = torch.utils._pytree.tree_unflatten(flat, program.call_spec.in_spec)
        with torch.no_grad():
            return _named(program.module()(*args, **kwargs), proto)

    whole = program.call_spec.in_spec is not None and program.call_spec.in_spec.num_leaves == len(names)
    return proto, run if whole else None, hashlib.sha256(path.read_bytes()).hexdigest()


def _check_archive(path: Path) -> None:
    """Refuse an archive that holds pickled Python objects, which torch.export.load would unpickle."""
    hint = "Write it with torch.export.save(torch.export.export(model.eval(), args), 'model.pt2')"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            configs = [n for n in names if n.endswith("_constants_config.json")]
            text = "".join(archive.read(name).decode("utf-8", "replace") for name in configs)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ModelError("not a program saved by torch.export.save", where=str(path), hint=hint) from error
    # Two entries of one name could show this check another content than torch reads.
    if len(names) != len(set(names)) or any(kind in part for part in (text, *names) for kind in _OBJECTS):
        raise ModelError(
            "holds pickled Python objects, which may run anything when loaded", where=str(path), hint=hint
        )


def _build(source: str, folder: Path | None) -> tuple[torch.nn.Module, Mapping[str, Any] | None]:
    import torch

    builder = load_callable(source, folder)
    try:
        with redirect_stdout(sys.stderr):
            made = builder()
    except Exception as error:  # the user's code may raise anything
        raise ModelError(f"raised {type(error).__name__}: {_line(error)}", where=source) from error
    module, examples = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, torch.nn.Module):
        raise ModelError(
            f"returned {type(module).__name__}, not an nn.Module",
            where=source,
            valid=["nn.Module", "(nn.Module, {name: example tensor})"],
        )
    if examples is not None and not (
        isinstance(examples, Mapping) and all(isinstance(t, torch.Tensor) for t in examples.values())
    ):
        raise ModelError("its second result is not a mapping of names to tensors", where=source)
    return module, examples


def _examples(
    module: torch.nn.Module,
    examples: Mapping[str, torch.Tensor] | None,
    shapes: Mapping[str, tuple[int, ...]],
    source: str,
) -> dict[str, torch.Tensor]:
    """An example tensor for each input, in the order of ``forward``."""
    import torch

    wanted = _parameters(module)
    if examples is not None:
        for name in shapes:
            if name not in examples:
                raise UsageError(f"the model has no input '{name}'", where="--input-shape", valid=examples)
        # Clones, because the exporter takes one tensor given for two inputs for one input.
        return {
            name: torch.ones(shapes[name], dtype=tensor.dtype) if name in shapes else tensor.clone()
            for name, tensor in examples.items()
        }
    if not shapes:
        first = wanted[0][0] if wanted else "x"
        raise UsageError(
            f"a module does not say what shape its inputs have ({', '.join(n for n, _ in wanted)})",
            where=source,
            hint=f"Add --input-shape {first}=1,3,224,224",
        )
    needed = sum(required for _, required in wanted)
    if wanted and not needed <= len(shapes) <= len(wanted):
        raise UsageError(
            f"forward takes {needed} input(s), {len(shapes)} shape(s) were given: {', '.join(shapes)}",
            where="--input-shape",
            valid=[name for name, _ in wanted],
        )
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def _parameters(module: torch.nn.Module) -> list[tuple[str, bool]]:
    """Names of forward's positional parameters, and whether each is required; empty for ``*args``."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return []
    return [
        (p.name, p.default is p.empty)
        for p in parameters
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]


def _export(
    model: Any, args: tuple[Any, ...] | None, source: str, input_names: Sequence[str] | None = None
) -> Any:
    import torch

    try:
        with _quiet():
            program = torch.onnx.export(
                model,
                args or (),
                dynamo=True,
                opset_version=OPSET,
                input_names=input_names,
                optimize=False,
                verbose=False,
            )
    except Exception as error:  # the exporter wraps whatever the module's own code raises
        raise ModelError(
            f"torch.onnx.export failed: {_cause(error)}", where=source, hint=_EXAMPLES_HINT
        ) from error
    if program is None:
        raise ModelError("torch.onnx.export returned nothing", where=source)
    return program.model_proto


def _named(found: Any, proto: onnx.ModelProto) -> Arrays:
    import torch

    tensors = [t for t in torch.utils._pytree.tree_leaves(found) if isinstance(t, torch.Tensor)]
    names = [value.name for value in proto.graph.output]
    if len(tensors) != len(names):
        raise ModelError(f"the module returns {len(tensors)} tensors, the exported model {len(names)}")
    return {name: t.detach().cpu().numpy() for name, t in zip(names, tensors, strict=True)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep prints, warnings and log lines of torch off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _weights_only() -> Iterator[None]:
    """Make every ``torch.load`` inside refuse code; torch.export.load would fall back to running it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _cause(error: BaseException) -> str:
    """The first line of the exception at the root, which says what the module's code ran into."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {_line(error)}"


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
