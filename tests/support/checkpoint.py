"""SmolLM2 as vLLM serves it, made once and kept in the user's cache."""

import fcntl
import subprocess
from pathlib import Path

import pytest

from nearfar.models.weights import default_cache_dir

from .weights import smollm2_path

#: The environment that has vLLM, where `make vllm` has been run.
VLLM_PYTHON = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"

#: The marks of a file of tests at the real vLLM.
NEEDS_VLLM = [
    pytest.mark.skipif(not VLLM_PYTHON.exists(), reason="there is no vLLM; install it: make vllm"),
    pytest.mark.timeout(900),
]


def smollm2_checkpoint() -> Path:
    """Its folder of safetensors with three adapters; where two processes want it, one makes it and one waits."""
    folder = default_cache_dir() / "checkpoints" / "smollm2"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "smollm2.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            script = Path(__file__).with_name("make_checkpoint.py")
            subprocess.run([VLLM_PYTHON, "-P", script, smollm2_path(), folder], check=True, capture_output=True)
    return folder
