"""hardware.toml: what is read and what is refused."""

from pathlib import Path

import pytest

from edgekit.errors import InputError, UnknownNameError
from edgekit.hardware import load_hardware

GOOD = """
title = "Toy"
default = "board"
[profiles.board]
title = "Toy board"
threads = 2
memory_bytes = 1024
[profiles.board.sources]
threads = "datasheet, page 1"
memory_bytes = "datasheet, page 2"
"""


def _load(folder: Path, text: str) -> object:
    path = folder / "hardware.toml"
    path.write_text(text, encoding="utf-8")
    return load_hardware(path)


def test_a_profile_is_chosen_by_name_or_by_default(tmp_path: Path) -> None:
    path = tmp_path / "hardware.toml"
    path.write_text(GOOD, encoding="utf-8")
    hardware = load_hardware(path)
    assert hardware.choose(None) == hardware.choose("board")
    assert hardware.choose("board").memory_bytes == 1024
    assert hardware.choose("board").source == "threads: datasheet, page 1; memory_bytes: datasheet, page 2"
    with pytest.raises(UnknownNameError, match="valid: board"):
        hardware.choose("other")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('memory_bytes = "datasheet, page 2"', "", "must name the same keys"),
        ("threads = 2\n", "", "must name the same keys"),
        ("threads = 2", "threads = -1", "threads"),
        ("threads = 2", "threads = 2\ncores = 2", "cores"),
        ('default = "board"', 'default = "other"', "default 'other'"),
        ('title = "Toy"', 'title = "Toy', "cannot be used"),
        ('title = "Toy"', 'title = "Toy"\n[scheme]\nactivation = "int3"\nops = {}', "int3|scheme"),
    ],
)
def test_a_mistake_is_refused_with_the_file_and_the_key(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    assert before in GOOD
    with pytest.raises(InputError, match=message) as caught:
        _load(tmp_path, GOOD.replace(before, after, 1))
    assert "hardware.toml" in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.toml"):
        load_hardware(tmp_path / "nothing.toml")
