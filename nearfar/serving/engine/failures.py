"""Why a vLLM server did not start or went away, in a line that says what to do."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from .spec import EngineSpec


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong."""

    reason: str  # a sentence without the engine's name, with the fix
    is_passing: bool  # whether another start may succeed


#: In order: the first pattern that the log holds explains it. Checked against the logs of vLLM 0.32.
_PATTERNS: tuple[tuple[str, str, bool], ...] = (
    (
        r"No module named '?nearfar\b|(?:Unknown|Invalid) quantization method[^\n]*nearfar_nested",
        "nearfar is not in vLLM's environment, which nested weights need. Run there: pip install --no-deps nearfar",
        False,
    ),
    (
        r"nearfar\.errors\.\w+: (?P<what>[^\n]+?)\.?(?=\n|$)",
        "its nested weights are refused: {what}",
        False,
    ),
    (
        r"No module named '?(?P<what>[\w.]+)|cannot import name '(?P<name>\w+)'",
        "a Python package is missing or does not fit ({what}). Install vLLM's dependencies: docs/engine.md",
        False,
    ),
    (
        r"(?P<what>lib[\w.+-]+\.so[\w.]*): cannot open shared object file",
        "the library {what} is missing. Install it, or a vLLM that fits this machine",
        False,
    ),
    (
        (
            r"(?P<what>driver version is insufficient|Driver/library version mismatch|no kernel image is available"
            r"|The NVIDIA driver on your system is too old)"
        ),
        "the GPU's driver does not fit this vLLM ({what}). Update the driver, or install another build",
        False,
    ),
    (
        r"(?P<what>Address already in use|address already in use)",
        "its port is taken. Set another port, or none, so that a free one is found",
        True,
    ),
    (
        r"(trust_remote_code=True|trust-remote-code|contains custom code which must be executed)",
        "its checkpoint comes with Python code of its own. Read it, and if you trust it set trust_remote_code = true",
        False,
    ),
    (
        (
            r"(?P<what>out of memory|OutOfMemoryError|Cannot allocate memory|MemoryError|can't allocate memory"
            r"|No available memory for the cache blocks|is less than desired (?:GPU|device) memory utilization)"
        ),
        (
            "it ran out of memory ({what}). Lower context_window, kv_cache_gib or gpu_share, take fewer bits, or stop "
            "another engine"
        ),
        True,
    ),
    (
        r"(?P<what>larger than the (?:available KV cache memory|maximum number of tokens)[^\n]*)",
        "its KV cache does not hold one whole context. Lower context_window, or raise kv_cache_gib or gpu_share",
        False,
    ),
    (
        (
            r"(?P<what>is not a local folder and is not a valid model identifier|Repository Not Found"
            r"|RepositoryNotFoundError|Repo id must be"
            r"|Invalid repository ID|LocalEntryNotFoundError|OfflineModeIsEnabled"
            r"|Revision Not Found)"
        ),
        "its model, or that revision of it, was not found. Correct model and revision, or fetch it first",
        False,
    ),
    (
        (
            r"(?P<what>Unknown quantization method[^\n]*|Invalid quantization method[^\n]*"
            r"|Quantization method specified in the model config[^\n]*)"
        ),
        "vLLM cannot use its quantization: {what}. Leave quantization out, or convert the model",
        False,
    ),
    (
        r"(?P<what>Model architectures? \[[^\n]*?(?:not supported|failed to be inspected)[^\n]*)",
        "vLLM does not know its architecture: {what}. Take a newer vLLM or another model",
        False,
    ),
    (
        r"Couldn't instantiate the backend tokenizer|Can't load tokenizer for|Unable to load vocabulary from file",
        "its folder has no tokenizer that transformers can load. Add the tokenizer's files, tokenizer.json say",
        False,
    ),
    (
        r"validation errors? for \w+\s[\s\S]*?(?:Value|Assertion) error, (?P<what>[^\n]*?)(?: \[type=|\n|$)",
        "vLLM refuses its settings: {what}. Correct the model's settings",
        False,
    ),
    (
        r"(?P<what>SafetensorError[^\n]*|HeaderTooLarge|InvalidHeader[^\n]*|incomplete metadata[^\n]*)",
        "its weights are broken ({what}). Fetch them again",
        False,
    ),
    (
        r"(?P<what>No space left on device)",
        "the disk is full. Free some space",
        True,
    ),
    (
        r"error: (?P<what>(?:unrecognized arguments|argument )[^\n]*)",
        "vLLM refuses its command line: {what}. Correct the model's arguments",
        False,
    ),
)

#: The last line of a Python traceback or of vLLM's own error log: `ValueError: …`.
_LAST_ERROR = re.compile(r"^(?:.*?\] )?(?P<what>[A-Za-z_.]+(?:Error|Exception)): ?(?P<why>[^\n]*)$", re.MULTILINE)


def explain(spec: EngineSpec, log: str, returncode: int | None) -> Failure:
    """Why the server ended.

    Args:
        spec: what it was to be.
        log: the end of what it printed in this run.
        returncode: as `subprocess` has it; None: unknown, since the server was adopted.
    """
    for pattern, reason, is_passing in _PATTERNS:
        if match := re.search(pattern, log):
            what = next((value for value in match.groupdict().values() if value), "")
            return Failure(reason.format(what=_short(what)), is_passing)
    if returncode is not None and returncode == -signal.SIGILL:
        return Failure("this CPU lacks instructions that the build needs (AVX512, say). Install another build", False)
    if returncode is not None and returncode == -signal.SIGKILL:
        return Failure("it was killed (SIGKILL), by the kernel for want of memory or by somebody. See dmesg", True)
    if returncode is not None and returncode < 0:
        return Failure(f"it was ended by the signal {signal.Signals(-returncode).name}", True)
    if errors := _LAST_ERROR.findall(log):
        what, why = next((each for each in errors if "EngineCore" not in each[0]), errors[0])
        return Failure(f"it ended with {what}: {_short(why)}. See its log: nearfar engine logs {spec.name}", True)
    code = "" if returncode is None else f" with code {returncode}"
    return Failure(f"it ended{code}. See its log: nearfar engine logs {spec.name}", True)


#: What vLLM prints on its way up, in its order, and what that means.
_PHASES: tuple[tuple[str, str, float], ...] = (
    (r"", "starting Python", 0.0),
    (r"vLLM API server version|non-default args", "reading the model's facts", 0.15),
    (r"Initializing a V1 LLM engine|Waiting for init message|EngineCore", "starting the engine", 0.3),
    (r"Starting to load model|Loading weights|Loading safetensors", "loading weights", 0.45),
    (r"Loading weights took|Model loading took", "measuring memory", 0.65),
    (r"GPU KV cache size|CPU KV cache size|KV cache size|# GPU blocks|Maximum concurrency", "making room", 0.75),
    (r"Capturing CUDA graphs|Compiling a graph|Warming up|warming up", "warming up", 0.8),
    (r"init engine .* took", "opening its doors", 0.9),
    (r"Application startup complete", "answering a first request", 0.95),
)
_SHARDS = re.compile(r"Loading safetensors[^\n\r]*?(\d+)% Completed")


def phase(log: str) -> tuple[str, float]:
    """How far a start has come, by its log: what it does in words, and a share in [0, 1]."""
    words, share = next((words, share) for pattern, words, share in reversed(_PHASES) if re.search(pattern, log))
    if words == "loading weights" and (shards := _SHARDS.findall(log)):
        return f"loading weights {shards[-1]} %", share + 0.2 * int(shards[-1]) / 100
    return words, share


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:199]}…"
