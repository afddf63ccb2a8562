"""The figures of the Hexagon Tensor Processors, each with its source."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from edgekit.errors import InputError, UnknownNameError
from edgekit.hardware import load_hardware
from edgekit.targets.qnn_htp import profiles
from edgekit.targets.qnn_htp.profiles import HtpProfile, load_htp, load_profiles

_FOLDER = Path(profiles.__file__).parent
_MIB = 2**20


def test_profiles_are_those_of_hardware_toml() -> None:
    hardware = load_hardware(_FOLDER / "hardware.toml")
    assert list(load_profiles()) == list(hardware.profiles) == ["v68", "v69", "v73", "v75", "v79", "v81"]
    assert hardware.default == "v75"
    assert {profile.align for profile in hardware.profiles.values()} == {32}
    assert hardware.scheme is not None
    assert (hardware.scheme.activation, hardware.scheme.weight, hardware.scheme.raised) == (
        "uint8",
        "int8",
        "uint16",
    )


@pytest.mark.parametrize(
    ("name", "soc_model", "part", "vtcm"),
    [
        ("v68", 30, "SM8350", 4),
        ("v69", 36, "SM8450", 8),
        ("v73", 43, "SM8550", 8),
        ("v75", 57, "SM8650", 8),
        ("v79", 69, "SM8750", 8),
        ("v81", 87, "SM8850", 8),
    ],
)
def test_soc_architecture_and_vtcm_are_the_public_ones(
    name: str, soc_model: int, part: str, vtcm: int
) -> None:
    profile = load_htp(name)
    assert (profile.name, profile.arch, profile.soc_model) == (name, int(name[1:]), soc_model)
    assert part in profile.soc
    assert profile.vtcm_bytes == vtcm * _MIB


def test_derived_figures_give_back_the_published_rates() -> None:
    def tops(profile: HtpProfile) -> float:
        return 2 * profile.int8_macs_per_cycle * profile.clock_hz / 1e12

    assert tops(load_htp("v73")) == pytest.approx(45, rel=1e-4)
    assert tops(load_htp("v75")) == pytest.approx(4 * 12.03254, rel=1e-4)
    assert tops(load_htp("v79")) == pytest.approx(1.45 * tops(load_htp("v75")), rel=1e-3)
    assert tops(load_htp("v81")) == pytest.approx(80, rel=1e-3)


def test_a_later_processor_is_never_slower() -> None:
    found = list(load_profiles().values())
    for older, newer in pairwise(found):
        for figure in ("vtcm_bytes", "ddr_bytes_per_s", "vector_units"):
            assert getattr(newer, figure) >= getattr(older, figure)
        assert newer.int8_macs_per_cycle * newer.clock_hz > older.int8_macs_per_cycle * older.clock_hz


def test_every_figure_that_nobody_published_says_how_it_was_derived() -> None:
    for profile in load_profiles().values():
        keys = {text.split(" = ")[0] for text in profile.assumptions}
        assert keys >= {"clock_hz", "int8_macs_per_cycle", "int16_macs_per_cycle"}
        assert keys.isdisjoint({"arch", "soc_model", "vector_bytes", "vtcm_bytes"})


def test_one_soc_model_belongs_to_one_profile() -> None:
    models = [model for profile in load_profiles().values() for model in profile.socs.values()]
    assert len(models) == len(set(models))


def test_another_soc_of_the_architecture_can_be_asked_for() -> None:
    profile = load_htp("v73").for_soc(60)
    assert profile.soc == "Snapdragon X Elite (SC8380XP)"
    assert profile.arch == 73


def test_a_soc_that_the_compiler_answers_otherwise_is_refused() -> None:
    # SM8475 is v69, and the compiler makes v68 of it.
    with pytest.raises(UnknownNameError, match="42 is not one") as caught:
        load_htp("v69").for_soc(42)
    assert "36 (Snapdragon 8 Gen 1 (SM8450))" in str(caught.value)


def test_an_unknown_profile_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="v99") as caught:
        load_htp("v99")
    assert "v81" in str(caught.value)


def _edited(tmp_path: Path, old: str, new: str) -> Path:
    text = (_FOLDER / "htp.toml").read_text()
    assert old in text
    path = tmp_path / "htp.toml"
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("vector_units = 4\n", "vector_units = 4\nspeed = 3\n", "speed"),
        ("[v68.sources]\n", "[v68.sources]\nspeed = 'a guess'\n", "exactly"),
        ("soc_model = 30\n", "soc_model = 31\n", "31 is not one of socs"),
        ("= 35\n", "= 30\n", "twice"),
        ("vtcm_bytes = 4194304\n", "vtcm_bytes = 0\n", "greater than 0"),
        ("[v68]", "[v68", "cannot be used"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_profiles(_edited(tmp_path, old, new))
