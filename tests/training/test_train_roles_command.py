"""`nearfar train roles`: what it takes, and what it refuses before anything is trained."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("langgraph", reason="needs nearfar[agents]")

from support.weights import smollm2_path

from nearfar.cli.run import run

TASK = {
    "task": "What is 7 plus 5?",
    "tools": [{"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}],
    "steps": [{"tool": "add", "arguments": {"a": 7}, "observation": "12"}],
    "answer": "It is 12.",
}
HAS_TORCH = all(importlib.util.find_spec(name) for name in ("torch", "transformers", "peft", "gguf"))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A llama.cpp model, and one that is none."""
    monkeypatch.setenv("NEARFAR_HOME", str(tmp_path / "home"))
    path = tmp_path / "nearfar.toml"
    path.write_text(
        f'[models.small]\nkind = "llama.cpp"\npath = "{smollm2_path()}"\n'
        '[models.far]\nkind = "openai"\nurl = "http://127.0.0.1:1/v1"\nmodel = "far"\nplacement = "near"\n'
    )
    return path


def tasks(folder: Path, n: int) -> Path:
    """So many tasks."""
    path = folder / "tasks.jsonl"
    path.write_text("\n".join(json.dumps(TASK | {"task": f"What is {place} plus 5?"}) for place in range(n)))
    return path


@pytest.mark.parametrize(
    ("n", "model", "message"),
    [(9, "small", "hold 9 tasks"), (10, "far", "'far' is no llama.cpp model"), (10, "none", "'none' is no llama.cpp")],
)
def test_what_cannot_be_trained_is_one_line(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str], n: int, model: str, message: str
) -> None:
    """Too few tasks, or a model that is no GGUF file."""
    command = ["train", "roles", str(tasks(tmp_path, n)), "-o", str(tmp_path / "out"), "-m", model, "-c", str(config)]

    code = run(command)

    assert code != 0
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(HAS_TORCH, reason="torch is here")
def test_without_torch_it_says_what_to_install(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The extra, by name."""
    code = run(
        ["train", "roles", str(tasks(tmp_path, 10)), "-o", str(tmp_path / "out"), "-m", "small", "-c", str(config)]
    )

    assert code != 0
    assert "nearfar[train]" in capsys.readouterr().err


@pytest.mark.skipif(not HAS_TORCH, reason="needs the [train] extra")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.timeout(600)
def test_it_trains_every_role_and_prints_the_config(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it prints has the adapters and the agent's roles."""
    out = tmp_path / "out"

    code = run(
        [
            "train", "roles", str(tasks(tmp_path, 10)), "-o", str(out), "-m", "small", "-c", str(config),
            "--layers", "1", "--rank", "2", "--epochs", "1",
        ]
    )  # fmt: skip

    shown = capsys.readouterr().out.replace("\n", " ")
    assert code == 0
    for role in ("planner", "caller", "summarizer"):
        assert (out / role / "adapter.gguf").is_file()
        assert f'{role} = "small+{role}"' in shown
    assert "[models.small.loras]" in shown
