"""The wheel, installed where the sources cannot be seen, does the main job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CONFIG = """
[models.near]
kind = "replay"
table = "answers.jsonl"
model = "small"
placement = "near"

[models.far]
kind = "replay"
table = "answers.jsonl"
model = "large"
placement = "far"
price = { prompt_usd_per_mtok = 1.0, completion_usd_per_mtok = 2.0 }

[cascades.auto]
tiers = ["near", "far"]
"""

ROWS = [
    {"query": "Capital of France?", "model": "small", "response": "Lyon", "correct": 0},
    {"query": "Capital of France?", "model": "large", "response": "Paris", "correct": 1},
]


def _run(*command: str | Path, cwd: Path, **environment: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "NEARFAR", "VIRTUAL"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.timeout(600)
def test_the_wheel_works_on_its_own(tmp_path: Path):
    """Built, installed with its declared dependencies alone, it routes and answers, and is what was built."""
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=ROOT)
    [wheel] = tmp_path.glob("*.whl")
    environment = tmp_path / "environment"
    _run(sys.executable, "-m", "venv", environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    _run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel, cwd=tmp_path)
    (tmp_path / "nearfar.toml").write_text(CONFIG)
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = environment / "bin" / "nearfar"
    home = str(tmp_path / "home")

    names = zipfile.ZipFile(wheel).namelist()
    where = _run(python, "-c", "import nearfar; print(nearfar.__file__)", cwd=tmp_path)
    version = _run(command, "--version", cwd=tmp_path)
    answer = json.loads(_run(command, "ask", "--json", "Capital of France?", cwd=tmp_path, HOME=home))

    assert "nearfar/py.typed" in names
    assert "nearfar/models/catalogue.toml" in names
    assert "nearfar/serving/kernels/cpu/source/avx512.cpp" in names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "docs"))]
    assert Path(where.strip()).is_relative_to(environment)
    assert version.strip().startswith("nearfar 0.")
    assert (answer["answer"], answer["tier"]) == ("Paris", "far")
