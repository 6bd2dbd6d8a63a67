"""Builds the C++ kernel where a compiler is at hand, keeps what was built, and loads it into torch.

What was built is kept under a digest of the sources, the compiler, its flags, the machine and torch, so that nothing
that was built from anything else is ever loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from nearfar.errors import ConfigError

Instructions = Literal["avx512", "avx2"]

_SOURCE = Path(__file__).parent / "source"
_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # the first torch whose stable ABI has all that is used
_COMMON = ("-O3", "-ffp-contract=off", "-std=c++17", "-fPIC", "-fvisibility=hidden", _TARGET)
_FLAGS = {
    "operation.cpp": (),
    "avx2.cpp": ("-mavx2", "-mfma", "-mf16c"),
    "avx512.cpp": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mfma", "-mf16c"),
}
_NUMBERS: dict[Instructions, int] = {"avx2": 1, "avx512": 2}
_BUILD_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Extension:
    """The kernel in this process."""

    path: Path
    library: ctypes.CDLL

    def use(self, instructions: Instructions | None = None) -> Instructions:
        """Runs with `instructions` from now on, or with the best that the processor has; returns which.

        Raises:
            ConfigError: the processor does not have them.
        """
        number = self.library.nearfar_instructions(_NUMBERS[instructions] if instructions else 0)
        found = next(name for name, known in _NUMBERS.items() if known == number)
        if instructions not in (None, found):
            raise ConfigError(f"This processor has no {instructions!r}; it runs with {found!r}.")
        return found


@cache
def load() -> Extension:
    """The kernel, which is built first where it was not yet.

    Raises:
        ConfigError: it cannot run here: another system or processor, an old torch, no compiler, or one that fails.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise ConfigError(
            f"The CPU kernel runs on Linux on x86-64, and this is {platform.system()} on {platform.machine()!r}."
        )
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10):
        raise ConfigError(f"The CPU kernel needs torch 2.10 or newer, and this is {torch.__version__}.")
    path = build(default_folder())
    try:
        library = ctypes.CDLL(str(path))
    except OSError as exc:
        raise ConfigError(f"{str(path)!r} cannot be loaded: {exc}. Delete it, and it is built again.") from exc
    library.nearfar_instructions.argtypes = [ctypes.c_int]
    library.nearfar_instructions.restype = ctypes.c_int
    if not library.nearfar_instructions(0):
        raise ConfigError("The CPU kernel needs a processor with AVX2, FMA and F16C.")
    return Extension(path, library)


def default_folder() -> Path:
    """Where kernels are kept: the user's cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "nearfar" / "kernels"


def build(folder: Path, *, compiler: str | None = None) -> Path:
    """The library in `folder`, compiled where this exact one is not there yet.

    Several processes may build at once: each writes a file of its own and moves it into place whole.

    Args:
        folder: is made where it is missing.
        compiler: a command; default $CXX, else the first of g++, c++ and clang++.

    Raises:
        ConfigError: there is no compiler, it fails, or the folder cannot be written to.
    """
    found = _compiler(compiler)
    path = folder / f"nested-{_digest(found)}.so"
    if path.exists():
        return path
    headers = Path(torch.__file__).parent / "include"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as scratch:
            objects = []
            for name, flags in _FLAGS.items():
                objects.append(str(Path(scratch) / name) + ".o")
                source = str(_SOURCE / name)
                _run([found, *_COMMON, *flags, f"-I{headers}", "-c", source, "-o", objects[-1]])
            made = Path(scratch) / path.name
            libraries = Path(torch.__file__).parent / "lib"
            _run([found, "-shared", *objects, "-o", str(made), f"-L{libraries}", "-ltorch_cpu"])
            made.replace(path)
    except OSError as exc:
        raise ConfigError(
            f"The CPU kernel cannot be kept in {str(folder)!r}: {exc.strerror}. Set XDG_CACHE_HOME."
        ) from exc
    return path


def _compiler(asked: str | None) -> str:
    asked = asked or os.environ.get("CXX")
    found = next(filter(None, map(shutil.which, [asked] if asked else ["g++", "c++", "clang++"])), None)
    if found is None:
        raise ConfigError(
            f"No C++ compiler ({asked!r}); install one, or nested planes run on torch alone."
            if asked
            else "No C++ compiler (g++, c++ or clang++); install one, or nested planes run on torch alone."
        )
    return found


def _run(command: Sequence[str]) -> None:
    try:
        subprocess.run(  # noqa: S603 - the user's own compiler
            command, check=True, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S
        )
    except subprocess.CalledProcessError as exc:
        said = next((line for line in exc.stderr.splitlines() if "error" in line), exc.stderr.strip()[-200:])
        raise ConfigError(
            f"{command[0]!r} could not build the CPU kernel: {said}. Set CXX to g++ 11 or clang++ 14, or newer."
        ) from exc
    except subprocess.TimeoutExpired as exc:
        raise ConfigError(f"{command[0]!r} took more than {_BUILD_TIMEOUT_S} s for the CPU kernel.") from exc


def _digest(compiler: str) -> str:
    """Of all that the library depends on."""
    parts = [torch.__version__, platform.machine(), repr((_COMMON, sorted(_FLAGS.items())))]
    version = subprocess.run(  # noqa: S603 - the user's own compiler
        [compiler, "--version"], check=False, capture_output=True, text=True, timeout=30
    )
    parts += [compiler, version.stdout]
    parts += [path.name + "\n" + path.read_text() for path in sorted(_SOURCE.iterdir())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
