"""The bundle: one folder that holds everything a device needs, and the proof that it works.

::

    manifest.json               what is in the bundle and how to run it; hash of every other file
    <target>/float.onnx         the artifacts; ':' of a target's name is '-'
    <target>/int8.onnx
    samples/*.npz               inputs with the outputs that are expected of each artifact
    overlays/*.jpg              detections side by side, for detectors
    report.html, report.json    what was measured
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgekit.errors import InputError, ModelError, OutputError, UnknownNameError

if TYPE_CHECKING:
    from edgekit.session import Arrays

#: Version of the manifest's format.
SCHEMA: Literal[1] = 1
MANIFEST = "manifest.json"
#: Largest difference from a stored output, relative to its largest value, that passes for rounding.
REPLAY_TOLERANCE = 1e-3
#: Least cosine to the stored output of an int8 artifact: CPUs round and saturate differently.
REPLAY_COSINE = 0.999


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorEntry(_Part):
    """One input or output of an artifact.

    Attributes:
        name: Its name.
        shape: Dimensions.
        dtype: NumPy element type.
        layout: ``NCHW`` or ``NHWC`` for images, else empty.
        scale: Of the quantized form inside the artifact; real = scale * (code - zero_point).
        zero_point: See ``scale``.
        quantized: Element type of the quantized form.
        tensor: Name in the artifact, where that is another one.
        stored: Shape in the artifact, where that is another one.
        axes: Axis i of ``stored`` is axis ``axes[i]`` of ``shape``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str = ""
    scale: float | None = None
    zero_point: int | None = None
    quantized: str | None = None
    tensor: str | None = None
    stored: tuple[int, ...] | None = None
    axes: tuple[int, ...] | None = None


class ArtifactEntry(_Part):
    """How one artifact is fed and what it returns.

    Attributes:
        size_bytes: Size of the file.
        inputs: In order.
        outputs: In order: those of the network.
        raw: What the file itself takes and returns, in order, where ONNX files beside it hold the network's
            float ends.
        companions: Files that belong to it, by their paths in the bundle.
        notes: What who loads it must know.
    """

    size_bytes: int
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    raw: dict[str, tuple[TensorEntry, ...]] | None = None
    companions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class ModelEntry(_Part):
    """The network that the bundle was made from."""

    name: str
    source: str
    sha256: str


class DecoderEntry(_Part):
    """How a detector's outputs become boxes.

    Attributes:
        name: Built-in decoder or ``package.module:callable``.
        classes: Class names, where the annotations give them.
    """

    name: str
    classes: tuple[str, ...] = ()


class SampleEntry(_Part):
    """Inputs with expected outputs.

    Attributes:
        name: Name of the sample.
        path: The ``.npz`` file. ``input.<i>`` is the i-th input; ``<target>.<kind>.<i>`` the i-th output that
            is expected of that artifact, in the order of its entry in ``details``.
    """

    name: str
    path: str


class Provenance(_Part):
    """Where the bundle comes from."""

    edgekit: str
    command: str
    created: str
    versions: dict[str, str]
    data_sha256: str


class Manifest(_Part):
    """Content of ``manifest.json``.

    Attributes:
        schema_: Version of the format; written ``schema``.
        model: The network.
        preprocess: How images become inputs.
        preprocess_note: Where that came from.
        artifacts: Path of every artifact by target and kind.
        details: Inputs and outputs of every artifact by path.
        decoder: For detectors.
        samples: Inputs with expected outputs.
        files: SHA-256 of every file but the manifest, by path.
        provenance: Versions, command, time.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    model: ModelEntry
    preprocess: dict[str, Any]
    preprocess_note: str = ""
    artifacts: dict[str, dict[str, str]]
    details: dict[str, ArtifactEntry]
    decoder: DecoderEntry | None = None
    samples: tuple[SampleEntry, ...] = ()
    files: dict[str, str] = {}
    provenance: Provenance


@dataclass(frozen=True)
class StoredSample:
    """A sample of the bundle with the outputs that its artifacts gave when they were made."""

    name: str
    feeds: Arrays
    expected: dict[tuple[str, str], Arrays]


@dataclass(frozen=True)
class Bundle:
    """An opened, verified bundle.

    Attributes:
        folder: Where it is.
        manifest: Its content.
    """

    folder: Path
    manifest: Manifest

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(self.manifest.artifacts)

    def target(self, name: str | None = None) -> str:
        """The full name of a target in the bundle; the first for None. A name without profile finds one.

        Raises:
            UnknownNameError: The bundle has no such target.
        """
        if name is None:
            return self.targets[0]
        for known in self.targets:
            if name in (known, known.partition(":")[0]):
                return known
        raise UnknownNameError(
            f"the bundle has no target '{name}'", where=str(self.folder), valid=self.targets
        )

    def path(self, target: str, kind: str) -> Path:
        """File of an artifact.

        Raises:
            UnknownNameError: There is none of that kind.
        """
        kinds = self.manifest.artifacts[target]
        if kind not in kinds:
            raise UnknownNameError(f"the bundle has no {kind} artifact for '{target}'", valid=kinds)
        return self.folder / kinds[kind]

    def samples(self) -> tuple[StoredSample, ...]:
        """The stored samples.

        Raises:
            InputError: A file cannot be read.
        """
        return tuple(self._sample(entry) for entry in self.manifest.samples)

    def _sample(self, entry: SampleEntry) -> StoredSample:
        import numpy as np

        try:
            with np.load(self.folder / entry.path) as file:
                arrays = dict(file)
            expected = {}
            for target, kinds in self.manifest.artifacts.items():
                for kind, path in kinds.items():
                    outputs = self.manifest.details[path].outputs
                    expected[target, kind] = {
                        spec.name: arrays[f"{folder_name(target)}.{kind}.{i}"]
                        for i, spec in enumerate(outputs)
                    }
            first = next(iter(self.manifest.details.values()))
            feeds = {spec.name: arrays[f"input.{i}"] for i, spec in enumerate(first.inputs)}
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"cannot be read: {error}", where=str(self.folder / entry.path)) from error
        return StoredSample(entry.name, feeds, expected)


def folder_name(target: str) -> str:
    """Folder of a target's artifacts inside a bundle."""
    return target.replace(":", "-")


def is_bundle(path: Path) -> bool:
    """Whether the folder looks like a bundle."""
    return (path / MANIFEST).is_file()


def open_bundle(path: Path | str) -> Bundle:
    """Open a bundle and check every file in it.

    Raises:
        InputError: There is no bundle, or its manifest is unusable.
        ModelError: A file is missing or was changed.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError("there is no such bundle folder", where=str(folder))
    if not is_bundle(folder):
        raise InputError(f"is no bundle: it holds no {MANIFEST}", where=str(folder))
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{key}: {first['msg']}" if key else first["msg"], where=str(folder / MANIFEST)
        ) from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(folder / MANIFEST)) from error
    _check(folder, manifest)
    return Bundle(folder, manifest)


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Hash every file of a finished bundle folder and write its manifest; returns it with the hashes."""
    files = {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    manifest = manifest.model_copy(update={"files": files})
    content = manifest.model_dump(mode="json", by_alias=True, exclude_none=True)
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return manifest


def check_out(path: Path) -> None:
    """Find out before any work whether a bundle can be written to ``path``; nothing is left behind.

    Raises:
        OutputError: It cannot: the message says why.
    """
    path = path.absolute()
    try:
        if path.exists() and not path.is_dir():
            raise OutputError("is a file, not a folder", where=str(path))
        if path.is_dir() and any(path.iterdir()) and not is_bundle(path):
            raise OutputError(
                "the folder holds files that edgekit did not make",
                where=str(path),
                hint="Choose an empty or new folder",
            )
        _check_writable(path)
    except OSError as error:
        raise OutputError(f"cannot write: {error.strerror or error}", where=str(path)) from error


def check_file_out(path: Path) -> None:
    """Find out before any work whether a file can be written to ``path``; nothing is left behind.

    Raises:
        OutputError: It cannot: the message says why.
    """
    path = path.absolute()
    try:
        if path.is_dir():
            raise OutputError("is a folder, not a file", where=str(path))
        _check_writable(path)
    except OSError as error:
        raise OutputError(f"cannot write: {error.strerror or error}", where=str(path)) from error


def _check_writable(path: Path) -> None:
    parent = next(p for p in path.parents if p.exists())
    if not parent.is_dir():
        raise OutputError(f"'{parent}' is a file, not a folder", where=str(path))
    with tempfile.TemporaryFile(dir=parent):
        pass


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=str(path)) from error


def replay(expected: Arrays, found: Mapping[str, Any]) -> dict[str, Any]:
    """Compare outputs with the stored ones.

    Returns:
        ``max_abs`` and ``relative`` (to the largest expected value) difference, ``cosine``, and ``ok``.
    """
    import numpy as np

    from edgekit.measure.outputs import cosine

    largest, relative, least = 0.0, 0.0, 1.0
    for name, wanted in expected.items():
        a, b = wanted.astype(np.float64), np.asarray(found[name]).astype(np.float64)
        if not np.array_equal(np.isfinite(a), np.isfinite(b)):
            return {"max_abs": np.inf, "relative": np.inf, "cosine": 0.0, "ok": False}
        a, b = np.nan_to_num(a), np.nan_to_num(b)
        difference = float(np.abs(a - b).max(initial=0.0))
        largest = max(largest, difference)
        relative = max(relative, difference / max(float(np.abs(a).max(initial=0.0)), 1e-12))
        least = min(least, cosine(a, b))
    ok = relative <= REPLAY_TOLERANCE or least >= REPLAY_COSINE
    return {"max_abs": largest, "relative": relative, "cosine": least, "ok": ok}


def _check(folder: Path, manifest: Manifest) -> None:
    hint = "Make the bundle again with edgekit export"
    named = [path for kinds in manifest.artifacts.values() for path in kinds.values()]
    named += [sample.path for sample in manifest.samples]
    for name in (*manifest.files, *named):
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts:
            raise InputError(f"names the file '{name}' outside the bundle", where=str(folder / MANIFEST))
    for name in named:
        if name not in manifest.files:
            raise InputError(f"has no hash for '{name}'", where=str(folder / MANIFEST), hint=hint)
    for path in (path for kinds in manifest.artifacts.values() for path in kinds.values()):
        if path not in manifest.details:
            raise InputError(f"does not describe '{path}'", where=str(folder / MANIFEST), hint=hint)
    if not named:
        raise InputError("names no artifact", where=str(folder / MANIFEST), hint=hint)
    for name, sha256 in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise ModelError("is missing from the bundle", where=str(file), hint=hint)
        if file_sha256(file) != sha256:
            raise ModelError("was changed: its hash is not the manifest's", where=str(file), hint=hint)
