"""Number formats as further profiles of a target."""

from pathlib import Path

import pytest

from edgekit.errors import InputError, UnknownNameError
from edgekit.formats import profile_names, split_profile
from edgekit.hardware import load_hardware
from edgekit.quantize.scheme import Format

TEXT = """
title = "Toy"
default = "v1"
[profiles.v1]
title = "Toy v1"
[profiles.v2]
title = "Toy v2"
[scheme]
activation = "uint8"
raised = "uint16"
[scheme.ops]
Conv = { weight_axis = 0 }
[formats.a16w8]
title = "16-bit activations"
activation = "uint16"
raised = "float32"
"""


def _file(folder: Path, text: str = TEXT) -> Path:
    path = folder / "hardware.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_each_format_makes_another_profile_of_every_profile(tmp_path: Path) -> None:
    hardware = load_hardware(_file(tmp_path))
    assert list(hardware.describe("v1")["profiles"]) == ["v1", "v1-a16w8", "v2", "v2-a16w8"]
    chosen = hardware.choose("v2-a16w8")
    assert (chosen.name, chosen.title) == ("v2-a16w8", "Toy v2, 16-bit activations")
    with pytest.raises(UnknownNameError, match="v1, v1-a16w8, v2, v2-a16w8"):
        hardware.choose("v1-a4")


def test_a_format_replaces_keys_of_the_scheme(tmp_path: Path) -> None:
    hardware = load_hardware(_file(tmp_path))
    usual, other = hardware.scheme_of("v1"), hardware.scheme_of("v1-a16w8")
    assert usual is not None
    assert other is not None
    assert (usual.activation, usual.raised) == (Format.UINT8, Format.UINT16)
    assert (other.activation, other.raised) == (Format.UINT16, Format.FLOAT32)
    assert other.ops == usual.ops
    assert hardware.describe("v1-a16w8")["scheme"]["activation"] == "uint16"


def test_a_format_that_is_no_scheme_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="int3"):
        load_hardware(_file(tmp_path, TEXT.replace('activation = "uint16"', 'activation = "int3"')))


def test_names_are_read_without_loading_the_rest() -> None:
    content = {"profiles": {"a": {"title": "A"}, "b": {}}, "formats": {"x": {"title": "X"}}}
    assert profile_names(content) == {"a": "A", "a-x": "A, X", "b": "b", "b-x": "b, X"}
    assert split_profile("b-x", content["formats"]) == ("b", "x")
    assert split_profile("b", content["formats"]) == ("b", "")
