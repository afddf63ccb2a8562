"""The scheme that a target states, and what is refused in one."""

from __future__ import annotations

import pytest

from edgekit.errors import UsageError
from edgekit.quantize.scheme import Format, Scheme


@pytest.mark.parametrize(
    ("name", "bits", "limits"),
    [
        ("uint8", 8, (0, 255)),
        ("int8", 8, (-128, 127)),
        ("uint16", 16, (0, 65535)),
        ("int16", 16, (-32768, 32767)),
    ],
)
def test_integer_formats(name: str, bits: int, limits: tuple[int, int]) -> None:
    assert Format(name).bits == bits
    assert Format(name).limits == limits


def test_float_has_no_codes() -> None:
    assert Format.FLOAT32.bits == 32
    with pytest.raises(ValueError, match="no codes"):
        _ = Format.FLOAT32.limits


def test_defaults() -> None:
    scheme = Scheme.load({"ops": {"Conv": {"weight_axis": 0}}}, where="hardware.toml")
    assert (scheme.activation, scheme.weight, scheme.raised) == (Format.UINT8, Format.INT8, Format.FLOAT32)
    assert not scheme.ops["Conv"].moves
    assert scheme.ops["Conv"].fuses == ()


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"ops": {}, "weigth": "int8"}, "weigth"),
        ({"ops": {}, "activation": "int4"}, "activation"),
        ({"ops": {"Conv": {"axis": 0}}}, "ops.Conv.axis"),
        ({"ops": {}, "max_raised": -1}, "max_raised"),
        ({"ops": {}, "weight": "uint8"}, "symmetric"),
        ({"ops": {}, "activation": "float32"}, "integer format"),
        ({}, "ops"),
    ],
)
def test_a_wrong_key_is_named_with_its_file(table: dict[str, object], key: str) -> None:
    with pytest.raises(UsageError, match=key) as caught:
        Scheme.load(table, where="hardware.toml")
    assert caught.value.where == "hardware.toml"
