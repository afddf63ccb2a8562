"""Reading COCO annotations and finding the entry of a sample."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from edgekit.data.base import Sample
from edgekit.errors import DataError
from edgekit.objects import is_object_name, load_callable

Entry = dict[str, Any]
# What every entry of each list must have.
_FIELDS = {
    "images": ("id",),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id",),
}
_FORMAT = ("COCO JSON with the lists images, annotations and categories",)

Source = str | Path | Mapping[str, Any] | Callable[[], Mapping[str, Any]]


class Annotations:
    """A COCO data set: images, boxes and categories.

    Attributes:
        where: Where it comes from.
        images: The entries of ``images``, in order.
        boxes: The entries of ``annotations`` that have a box, by image id.
        categories: Category ids, rising: the network's class k is the k-th.
        names: Category names in that order.
    """

    def __init__(self, where: str, data: Mapping[str, Any]) -> None:
        self.where = where
        for key, fields in _FIELDS.items():
            _check_entries(where, key, fields, data.get(key))
        self.images: list[Entry] = data["images"]
        found = sorted(data["categories"], key=lambda category: category["id"])
        self.categories: list[int] = [category["id"] for category in found]
        self.names: list[str] = [str(category.get("name", category["id"])) for category in found]
        self.boxes: dict[Any, list[Entry]] = {}
        known = set(self.categories)
        for entry in data["annotations"]:
            if entry["category_id"] not in known:
                raise DataError(
                    f"a box has the category {entry['category_id']}", where=where, valid=self.categories
                )
            self.boxes.setdefault(entry["image_id"], []).append(entry)
        self._by_name: dict[str, Entry] = {}
        self._by_last: dict[str, list[Entry]] = {}
        self._by_stem: dict[str, list[Entry]] = {}
        for image in self.images:
            self._by_name[str(image["id"])] = image
            if "file_name" in image:
                name = PurePosixPath(str(image["file_name"]).replace("\\", "/"))
                self._by_name[str(name)] = image
                self._by_last.setdefault(name.name, []).append(image)
                self._by_stem.setdefault(name.stem, []).append(image)

    def find(self, sample: Sample) -> Entry | None:
        """The image entry of a sample.

        By path or id, else by file name, else by file name without suffix (images get converted); by
        order where the sample has no name.

        Raises:
            DataError: Several images have the sample's file name.
        """
        if sample.order is not None:
            return self.images[sample.order] if sample.order < len(self.images) else None
        if sample.name in self._by_name:
            return self._by_name[sample.name]
        name = PurePosixPath(sample.name)
        alike = self._by_last.get(name.name) or self._by_stem.get(name.stem) or []
        if len(alike) > 1:
            raise DataError(
                f"several images are called '{name.name}'",
                where=self.where,
                valid=[image["file_name"] for image in alike[:5]],
                hint="Give the folder that these paths start from",
            )
        return alike[0] if alike else None

    def examples(self) -> list[str]:
        """A few image names, for a message."""
        return [str(image.get("file_name", image["id"])) for image in self.images[:3]]


def read_annotations(source: Source, folder: Path | None = None) -> Annotations:
    """Read COCO annotations.

    Args:
        source: A JSON file, its content, a callable that returns the content, or ``package.module:callable``.
        folder: What a relative path and a callable's module are relative to.

    Raises:
        DataError: The file is missing, is not JSON or is not in COCO's format.
        UsageError: The callable cannot be imported.
    """
    if isinstance(source, str) and is_object_name(source):
        return _call(load_callable(source, folder), source)
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser() if folder is None else folder / Path(source).expanduser()
        try:
            return _checked(json.loads(path.read_bytes()), str(source))
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}", where=str(source)) from error
        except ValueError as error:
            raise DataError(f"is not JSON: {error}", where=str(source)) from error
    if isinstance(source, Mapping):
        return _checked(source, "annotations")
    return _call(source, getattr(source, "__qualname__", "annotations"))


def _check_entries(where: str, key: str, fields: tuple[str, ...], entries: Any) -> None:
    if not isinstance(entries, list):
        raise DataError(f"has no list '{key}'", where=where, valid=_FORMAT)
    for entry in entries:
        lacking = [field for field in fields if not isinstance(entry, Mapping) or field not in entry]
        if lacking:
            raise DataError(
                f"an entry of '{key}' lacks {', '.join(lacking)}: {str(entry)[:120]}", where=where
            )
        box = entry.get("bbox", (0, 0, 0, 0))
        if (
            not isinstance(box, (list, tuple))
            or len(box) != 4
            or not all(isinstance(v, (int, float)) for v in box)
        ):
            raise DataError(f"a bbox is {str(box)[:60]}", where=where, valid=("[x, y, width, height]",))


def _call(function: Callable[[], Any], name: str) -> Annotations:
    try:
        data = function()
    # The function is the user's: it may raise anything.
    except Exception as error:
        raise DataError(f"raised {type(error).__name__}: {error}", where=name) from error
    return _checked(data, name)


def _checked(data: Any, where: str) -> Annotations:
    if not isinstance(data, Mapping):
        raise DataError(f"holds a {type(data).__name__}", where=where, valid=_FORMAT)
    return Annotations(where, data)
