"""Reading recipes: what is accepted, and what each mistake says."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import UsageError
from edgekit.recipe import DistillSection, PruneSection, Recipe, SparsifySection
from edgekit.recipe_file import load_recipe

BASE = """
[model]
source = "net.onnx"
[data]
calibrate = "calib"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.onnx").touch()
    (tmp_path / "calib").mkdir()
    (tmp_path / "val.json").touch()
    return tmp_path


def read(folder: Path, text: str, *overrides: str) -> Recipe:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides)


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        read(folder, text, *overrides)
    return str(caught.value)


def test_the_shortest_recipe_has_defaults_for_the_rest(folder: Path) -> None:
    recipe = read(folder, BASE)
    assert recipe.evaluate is None
    assert recipe.data.preprocess is None
    assert recipe.quantize.enabled
    assert recipe.quantize.calibrator == "auto"
    assert recipe.deploy.targets == ("ort-cpu",)
    assert recipe.budget.latency_ms is None
    assert recipe.folder == folder


def test_every_section_is_read(folder: Path) -> None:
    text = """
    [model]
    source = "net.onnx"
    input_shape = { images = [1, 3, 320, 320] }
    [data]
    calibrate = "calib"
    preprocess = { resize = "stretch", divide = 1 }
    limit = 32
    [evaluate]
    task = "detection"
    images = "calib"
    annotations = "val.json"
    decode = "yolox"
    [quantize]
    calibrator = "percentile"
    percentile = 99.9
    max_drop = 0.01
    [deploy]
    targets = ["null", "ort-cpu:host"]
    [budget]
    latency_ms = 20
    size_mb = 1.5
    max_drop = 0.02
    """
    recipe = read(folder, text)
    assert recipe.model.input_shape == {"images": (1, 3, 320, 320)}
    assert recipe.data.preprocess == {"resize": "stretch", "divide": 1}
    assert recipe.data.limit == 32
    assert recipe.evaluate is not None
    assert recipe.evaluate.annotations == str(folder / "val.json")
    assert (recipe.quantize.percentile, recipe.quantize.max_drop) == (99.9, 0.01)
    assert recipe.deploy.targets == ("null", "ort-cpu:host")
    assert (recipe.budget.latency_ms, recipe.budget.size_mb, recipe.budget.max_drop) == (20.0, 1.5, 0.02)
    deploy = recipe.to_json()["deploy"]
    assert deploy == {"targets": ["null", "ort-cpu:host"], "compare": ["float"], "io": None}


def test_relative_paths_start_at_the_recipes_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    recipe = read(Path(folder.name), BASE)
    assert recipe.model.source == str(folder / "net.onnx")
    assert recipe.data.calibrate == str(folder / "calib")


def test_a_callable_stays_as_it_is(folder: Path) -> None:
    recipe = read(folder, BASE, "model.source=package.module:build", "data.calibrate=samples:draw")
    assert recipe.model.source == "package.module:build"
    assert recipe.data.calibrate == "samples:draw"


def test_overrides_have_toml_types_and_the_last_one_wins(folder: Path) -> None:
    recipe = read(
        folder,
        BASE,
        "quantize.enabled=false",
        "quantize.calibrator=entropy",
        "quantize.calibrator = minmax",
        "budget.latency_ms=3",
        'deploy.targets=["null"]',
    )
    assert not recipe.quantize.enabled
    assert recipe.quantize.calibrator == "minmax"
    assert recipe.budget.latency_ms == 3.0
    assert recipe.deploy.targets == ("null",)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("quantize.calibrater=mse", "unknown key 'calibrater'"),
        ("quantize.calibrator=mse2", "Did you mean 'mse'?"),
        ("quantize", "not of the form section.key=value"),
        ("=1", "not of the form section.key=value"),
        ("quantize..x=1", "not of the form section.key=value"),
        ("deploy.targets=[ort", "is not a TOML value"),
        ("quantize.calibrator=", "the value is empty"),
        ("model.source.x=1", "'model.source' is not a table"),
        ("budget.latency_ms=nan", "finite"),
        ("budget.latency_ms=fast", "number, not 'fast'"),
        ('deploy.targets="ort-cpu"', "a list, not 'ort-cpu'"),
        ("deploy.targets=[]", "deploy.targets"),
    ],
)
def test_a_wrong_override_is_named(folder: Path, override: str, expected: str) -> None:
    message = refusal(folder, BASE, override)
    assert message.startswith(f"--set {override}: ")
    assert expected in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            BASE + "[quantise]",
            ("quantise: unknown section", "valid: model, data", "Did you mean 'quantize'?"),
        ),
        (BASE.replace("calibrate", "calibrat"), ("unknown key 'calibrat'", "Did you mean 'calibrate'?")),
        (BASE + '[quantize]\npercentile = "99"', ("quantize.percentile", "number, not '99'")),
        (BASE + "[quantize]\nenabled = 1", ("quantize.enabled", "boolean, not 1")),
        (BASE + "[quantize]\nmax_drop = -1", ("quantize.max_drop", "greater than or equal to 0")),
        (
            BASE + '[evaluate]\ntask = "tracking"',
            ("evaluate.task", "valid: detection, verification, classification, outputs"),
        ),
        (
            BASE + '[evaluate]\ntask = "detection"\nimages = "calib"',
            ("evaluate", "needs annotations, decode"),
        ),
        (BASE + '[deploy]\ntargets = ["null", "null"]', ("deploy.targets", "named twice: null")),
        (BASE + '[[compress]]\npass = "prune"\nkep = 0.5', ("unknown key 'kep'", "Did you mean 'keep'?")),
        ("[model]\nsource = 'net.onnx'", ("data: is missing", "[data] section")),
        (
            BASE.replace("[data]", "input_shape = {x = [0, 3]}\n[data]"),
            ("model.input_shape.x.0", "greater than or equal to 1"),
        ),
        (BASE.replace('"calib"', '"photos"'), ("data.calibrate: no such file or folder", "recipe's folder")),
    ],
)
def test_a_wrong_recipe_is_explained(folder: Path, text: str, parts: tuple[str, ...]) -> None:
    message = refusal(folder, text)
    assert message.startswith(str(folder / "recipe.toml"))
    for part in parts:
        assert part in message


def test_further_mistakes_are_listed(folder: Path) -> None:
    message = refusal(folder, BASE + "[quantize]\nenabled = 1\nmax_drop = -1")
    assert "Also wrong: quantize.max_drop" in message


def test_compress_steps_are_read(folder: Path) -> None:
    text = """
    [[compress]]
    pass = "prune"
    keep = 0.5
    exclude = ["head*"]
    saved = "plan.json"
    [[compress]]
    pass = "distill"
    epochs = 3
    teacher = "net.onnx"
    [[compress]]
    pass = "sparsify"
    pattern = "2:4"
    """
    prune, distill, sparsify = read(folder, BASE + text).compress
    assert isinstance(prune, PruneSection)
    assert (prune.keep, prune.exclude, prune.saved) == (0.5, ("head*",), str(folder / "plan.json"))
    assert isinstance(distill, DistillSection)
    assert (distill.epochs, distill.teacher) == (3, str(folder / "net.onnx"))
    assert isinstance(sparsify, SparsifySection)
    assert sparsify.pattern == "2:4"


def compress(text: str) -> str:
    return BASE + f"[[compress]]\n{text}"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            'pass = "prun"',
            ("compress.0: unknown pass 'prun'", "distill, prune, qat, sparsify", "Did you mean 'prune'?"),
        ),
        ("keep = 0.5", ("compress.0: does not say which pass it is",)),
        ('pass = "prune"', ("compress.0: needs one aim out of keep, macs", "none is given")),
        ('pass = "prune"\nkeep = 0.5\nmacs = 0.5', ("not keep and macs",)),
        ('pass = "prune"\nkeep = 1.5', ("compress.0.keep: should be less than or equal to 1",)),
        ('pass = "prune"\nkeep = 0.5\nepochs = 1', ("unknown key 'epochs'", "valid: pass, keep, macs")),
        ('pass = "distill"\nkeep = 0.5', ("unknown key 'keep'", "valid: pass, epochs, seconds")),
        ('pass = "distill"\nteacher = "other.onnx"', ("compress.0.teacher: no such file",)),
        ('pass = "sparsify"\npattern = "half"', ("compress.0.pattern",)),
    ],
)
def test_a_wrong_compress_step_is_explained(folder: Path, text: str, parts: tuple[str, ...]) -> None:
    message = refusal(folder, compress(text))
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "line"),
    [(BASE + "[quantize]\ncalibrator = mse", 7), (BASE + "[a", 6), (BASE + "[data]", 6), (BASE + "x = [", 6)],
)
def test_bad_toml_is_located(folder: Path, text: str, line: int) -> None:
    message = refusal(folder, text)
    assert message.startswith(f"{folder / 'recipe.toml'}:{line}: is not valid TOML")


def test_a_recipe_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(UsageError, match="no such recipe"):
        load_recipe(folder / "none.toml")
    with pytest.raises(UsageError, match="cannot read the recipe"):
        load_recipe(folder)
    (folder / "latin.toml").write_bytes(b'[model]\nsource = "caf\xe9"')
    with pytest.raises(UsageError, match="not a UTF-8 text file"):
        load_recipe(folder / "latin.toml")


def test_a_recipe_cannot_be_changed(folder: Path) -> None:
    recipe = read(folder, BASE)
    with pytest.raises(ValueError, match="frozen"):
        recipe.quantize.enabled = False
