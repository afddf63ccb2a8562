"""A measurement's process; how one can end badly is in tests/test_child.py."""

from pathlib import Path

import pytest

from edgekit.errors import ToolError
from edgekit.measure.worker import run_worker


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a file ``planted.py`` is the worker."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "planted.py"


def _run(code: str, plant: Path) -> dict[str, object]:
    plant.write_text(
        "import os\n"
        "from edgekit.worker import RefusedError, serve\n"
        f"def do(job, emit):\n    {code}\n"
        "serve(do)\n",
        encoding="utf-8",
    )
    seen: list[tuple[int, int]] = []
    result = run_worker(
        "planted",
        '"the job"',
        threads=3,
        timeout_s=20,
        progress=lambda done, total: seen.append((done, total)),
    )
    return {**result, "seen": seen}


def test_the_job_goes_in_and_the_result_comes_out(plant: Path) -> None:
    code = "emit({'progress': [1, 2]}); return {'job': job, 'omp': os.environ['OMP_NUM_THREADS']}"
    assert _run(code, plant) == {"job": "the job", "omp": "3", "seen": [(1, 2)]}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ValueError('no such op')", "the measurement failed: ValueError: no such op"),
        ("raise RefusedError('no such op')", "the measurement refuses its job: no such op"),
        ("os.abort()", "the measurement was ended by SIGABRT"),
    ],
)
def test_a_failure_is_a_tool_error(code: str, message: str, plant: Path) -> None:
    with pytest.raises(ToolError, match=f"^{message}"):
        _run(code, plant)
