"""Source files beside a context: how an application on the device loads and feeds it."""

from __future__ import annotations

from pathlib import Path

from edgekit.describe import describe_artifact
from edgekit.errors import ModelError
from edgekit.files import write_whole
from edgekit.targets.qnn_htp.compile import device_path
from edgekit.targets.qnn_htp.source import cpp_source, java_class, java_source, python_source

LAYOUT_NOTE = (
    "HTP computes in NHWC: of the NCHW input '{name}' the compiled context makes NHWC first, one Transpose "
    "at the edge. A network that takes NHWC saves it"
)


def write_sources(artifact: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Write a loader in Python, C++ and Java beside an artifact.

    Args:
        artifact: The ``.onnx`` file; what the compiler made of it lies beside it.

    Returns:
        The files, and what who loads the artifact must know; also why a language is left out.

    Raises:
        ModelError: The artifact cannot be read.
        OutputError: A file cannot be written.
    """
    model = device_path(artifact).name
    try:
        entry = describe_artifact(artifact)
    except ModelError as error:
        return [], (f"no source is written: {error.what}",)
    notes = [LAYOUT_NOTE.format(name=spec.name) for spec in entry.inputs if spec.layout == "NCHW"]
    written = []
    for language, (name, write) in {
        "Python": (f"{artifact.stem}_host.py", python_source),
        "C++": (f"{artifact.stem}_host.cpp", cpp_source),
        "Java": (f"{java_class(model)}.java", java_source),
    }.items():
        try:
            text = write(entry, model)
        except ModelError as error:  # a type that the language's interface has not
            notes.append(f"no {language} source is written: {error.what}")
            continue
        write_whole(artifact.with_name(name), text.encode())
        written.append(artifact.with_name(name))
    return written, tuple(notes)
