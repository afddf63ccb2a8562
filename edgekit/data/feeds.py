"""Fitting what a user gives (images, arrays, dicts of arrays) to the inputs of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.data.base import Sample
from edgekit.data.pixels import to_rgb
from edgekit.data.preprocess import Array, Preprocess, image_shape
from edgekit.errors import DataError

if TYPE_CHECKING:
    from edgekit.graph import TensorSpec

RAW_PIXELS_NOTE = "the network takes uint8: pixels are fed as they are, without divide, mean or std"


def image_input(inputs: tuple[TensorSpec, ...], preprocess: Preprocess, where: str) -> TensorSpec:
    """The one input that images are fed to.

    Raises:
        DataError: The network has several inputs, or its input is no image or of a type that images do not
            have.
    """
    listed = ", ".join(f"{spec.name} {list(spec.shape)} {spec.dtype}" for spec in inputs)
    if len(inputs) != 1:
        raise DataError(
            f"images can be fed to a network with one input; this one has {len(inputs)}: {listed}",
            where=where,
            hint="Give an .npz file with one array for each input, or a callable that yields dicts of arrays",
        )
    (spec,) = inputs
    if image_shape(spec.shape, preprocess.layout) is None:
        raise DataError(
            f"images cannot be fed to the input {listed}",
            where=where,
            valid=("[1, C, H, W]", "[1, H, W, C] with C = 1 or 3"),
            hint="Give an .npz file or a callable that yields arrays of that shape",
        )
    if spec.dtype != np.uint8 and not np.issubdtype(spec.dtype, np.floating):
        raise DataError(
            f"images cannot be fed to an input of type {spec.dtype}",
            where=where,
            valid=("float32", "float16", "uint8"),
            hint="Give an .npz file or a callable that yields arrays of that type",
        )
    return spec


def make_sample(
    item: Any,
    name: str,
    inputs: tuple[TensorSpec, ...],
    preprocess: Preprocess,
    *,
    order: int | None,
    where: str,
) -> Sample:
    """Make a sample of one item of a callable or one row of an array file.

    Args:
        item: An image (uint8 [H, W, 3], [H, W, 1] or [H, W], or a Pillow image), which is preprocessed; or an
            array or a dict of arrays by input name, fed as they are.

    Raises:
        DataError: The item does not fit the inputs.
    """
    if isinstance(item, Mapping):
        return Sample(name, _fit_all(item, inputs, where), order=order)
    if hasattr(item, "convert") and hasattr(item, "getbands"):  # a Pillow image
        item = to_rgb(item)
    if isinstance(item, (str, bytes, tuple, list)) or item is None:
        raise DataError(
            f"a sample is a {type(item).__name__}",
            where=where,
            valid=("an image (uint8 H x W x 3)", "a float array", "a dict of arrays by input name"),
        )
    array = np.asarray(item)
    if is_image(array.dtype, array.shape, inputs, preprocess):
        return image_sample(_three_channels(array), name, inputs[0], preprocess, order=order)
    if len(inputs) != 1:
        raise DataError(
            f"a sample is one array, but the network has {len(inputs)} inputs",
            where=where,
            valid=(f"a dict with the keys {', '.join(spec.name for spec in inputs)}",),
        )
    return Sample(name, {inputs[0].name: fit(array, inputs[0], where, preprocess)}, order=order)


def image_sample(
    image: Array, name: str, spec: TensorSpec, preprocess: Preprocess, *, order: int | None = None
) -> Sample:
    """Preprocess an image (uint8 [H, W, 3], RGB) for the input ``spec``."""
    array, geometry = preprocess.apply(image, spec.shape, spec.dtype)
    return Sample(name, {spec.name: array}, geometry, image, order)


def is_image(
    dtype: np.dtype[Any], shape: tuple[int, ...], inputs: tuple[TensorSpec, ...], preprocess: Preprocess
) -> bool:
    """Whether such an array is an image to preprocess, rather than an input to feed as it is."""
    if dtype != np.uint8 or len(inputs) != 1 or image_shape(inputs[0].shape, preprocess.layout) is None:
        return False
    if inputs[0].dtype == np.uint8 and shape in (inputs[0].shape, inputs[0].shape[1:]):
        return False
    return len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))


def fit(array: Array, spec: TensorSpec, where: str, preprocess: Preprocess | None = None) -> Array:
    """Bring an array to the shape and type of an input: adds a batch axis of 1, widens or narrows within a
    kind.

    Raises:
        DataError: The shape or the type differs otherwise, or a value is not finite.
    """
    shape, where = tuple(array.shape), f"{where}, input '{spec.name}'"
    if shape != spec.shape and (spec.shape[:1] != (1,) or shape != spec.shape[1:]):
        raise DataError(
            f"a sample has the shape {list(shape)}",
            where=where,
            valid=_shapes(spec),
            hint=_shape_hint(shape, spec),
        )
    image_like = preprocess is not None and image_shape(spec.shape, preprocess.layout) is not None
    if image_like and array.dtype == np.uint8 and spec.dtype != np.uint8:
        raise DataError(
            f"a sample is a uint8 array of shape {list(shape)}",
            where=where,
            hint="Give uint8 images [H, W, 3], which are preprocessed, or float arrays, fed as they are",
        )
    fitted = np.ascontiguousarray(_cast(array, spec, where).reshape(spec.shape))
    if np.issubdtype(fitted.dtype, np.floating) and not np.isfinite(fitted).all():
        raise DataError("a sample holds NaN or infinite values", where=where)
    return fitted


def _fit_all(item: Mapping[Any, Any], inputs: tuple[TensorSpec, ...], where: str) -> dict[str, Array]:
    names = {spec.name for spec in inputs}
    if set(item) != names:
        missing, unknown = sorted(names - set(item)), sorted(map(str, set(item) - names))
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has the unknown {', '.join(unknown)}"] if unknown else []
        raise DataError(f"a sample {' and '.join(parts)}", where=where, valid=sorted(names))
    return {spec.name: fit(np.asarray(item[spec.name]), spec, where) for spec in inputs}


def _cast(array: Array, spec: TensorSpec, where: str) -> Array:
    """To the input's type, where no value can be lost but by rounding of floats."""
    if array.dtype == spec.dtype:
        return array
    kinds = array.dtype.kind + np.dtype(spec.dtype).kind
    if kinds in ("ff", "uf", "if", "bf", "bi", "bu", "bb"):
        with np.errstate(over="ignore"):  # what becomes infinite is refused by the caller
            return array.astype(spec.dtype)
    if kinds in ("ii", "iu", "ui", "uu"):
        limits = np.iinfo(spec.dtype)
        if array.size == 0 or (int(array.min()) >= limits.min and int(array.max()) <= limits.max):
            return array.astype(spec.dtype)
        raise DataError(
            f"a sample holds values from {array.min()} to {array.max()}",
            where=where,
            valid=(f"{spec.dtype}: {limits.min} to {limits.max}",),
        )
    raise DataError(f"a sample has the type {array.dtype}", where=where, valid=(spec.dtype,))


def _three_channels(image: Array) -> Array:
    plane = image[..., None] if image.ndim == 2 else image
    return np.ascontiguousarray(np.repeat(plane, 3, axis=2) if plane.shape[2] == 1 else plane)


def _shapes(spec: TensorSpec) -> tuple[list[int], ...]:
    return (list(spec.shape), list(spec.shape[1:])) if spec.shape[:1] == (1,) else (list(spec.shape),)


def _shape_hint(shape: tuple[int, ...], spec: TensorSpec) -> str:
    if len(spec.shape) == 4 and len(shape) in (3, 4):
        c, h, w = spec.shape[1:]
        if shape[-3:] == (h, w, c):
            return "The channels come last: transpose to channels first"
        if shape[-3:] == (w, c, h):
            return "The channels come first: transpose to channels last"
    return ""
