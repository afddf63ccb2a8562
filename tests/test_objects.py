import sys
from pathlib import Path

import pytest

from edgekit.errors import UsageError
from edgekit.objects import is_object_name, load_callable


@pytest.fixture(autouse=True)
def restore_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


def write(folder: Path, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def test_finds_functions_classes_and_methods(tmp_path: Path) -> None:
    write(tmp_path / "given_package", "__init__.py", "")
    write(
        tmp_path / "given_package",
        "deep.py",
        "class A:\n    @staticmethod\n    def make(): return 3\ndef f(): return 2\n",
    )
    assert load_callable("given_package.deep:f", tmp_path)() == 2
    assert load_callable("given_package.deep:A.make", tmp_path)() == 3
    assert load_callable("json:loads")("[1]") == [1]


def test_looks_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "found_in_cwd.py", "def f(): return 1\n")
    monkeypatch.chdir(tmp_path)
    assert load_callable("found_in_cwd:f")() == 1


def test_two_projects_may_use_the_same_module_name(tmp_path: Path) -> None:
    for number in (1, 2):
        write(tmp_path / str(number), "same_name.py", f"def f(): return {number}\n")
    assert [load_callable("same_name:f", tmp_path / str(n))() for n in (1, 2, 1)] == [1, 2, 1]


def test_what_a_function_imports_when_called_is_found(tmp_path: Path) -> None:
    write(tmp_path, "late_helper.py", "value = 7\n")
    write(tmp_path, "late_main.py", "def f():\n    import late_helper\n    return late_helper.value\n")
    assert load_callable("late_main:f", tmp_path)() == 7


def test_a_loaded_module_is_never_replaced(tmp_path: Path) -> None:
    write(tmp_path, "json.py", "def f(): return 1\n")
    before = sys.modules["json"] if "json" in sys.modules else __import__("json")
    with pytest.raises(UsageError, match=r"'json'.*Rename"):
        load_callable("json:f", tmp_path)
    assert sys.modules["json"] is before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_colon_here", "not of the form 'package.module:name'"),
        ("data/samples.py:load", r"'data\.samples:load'"),
        (":f", "not of the form"),
        ("absent_module_x:f", "there is no module 'absent_module_x'"),
        ("os.absent:f", "there is no module 'os.absent'"),
        ("user_module:lod", r"has no 'lod' \(valid: load\)"),
        ("user_module:number", "'number' is a int, not a function"),
        ("raises_module:f", "raised ValueError: no luck"),
        ("exits_module:f", "raised SystemExit: 3"),
        ("typo_module:f", "raised SyntaxError"),
        ("needs_module:f", r"failed: No module named 'absent_dependency'.*Install"),
    ],
)
def test_says_what_is_wrong(tmp_path: Path, name: str, message: str) -> None:
    write(tmp_path, "user_module.py", "number = 1\ndef load(): return 1\n")
    write(tmp_path, "raises_module.py", "raise ValueError('no luck')\n")
    write(tmp_path, "exits_module.py", "import sys; sys.exit(3)\n")
    write(tmp_path, "typo_module.py", "def f(:\n")
    write(tmp_path, "needs_module.py", "import absent_dependency\n")
    with pytest.raises(UsageError, match=message):
        load_callable(name, tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"), [("a.b:c", True), ("a:b.c", True), ("C:\\x", False), ("a", False)]
)
def test_is_object_name(text: str, expected: bool) -> None:
    assert is_object_name(text) is expected
