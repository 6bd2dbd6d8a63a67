"""Kinds of machines: what they cost, and how long their steps take."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any

from nearfar.errors import DataError

from .workload import Shape


@dataclass(frozen=True, slots=True)
class Target:
    """What an answer may take; `quantile` of the requests have to keep both."""

    ttft_s: float  # from arrival to the first token, waiting included
    tpot_s: float  # mean time between two tokens after the first
    quantile: float = 0.99


@dataclass(frozen=True, slots=True)
class Machine:
    """A kind of machine with a model on it, by the times of a server that batches continuously.

    A step decodes one token of every running request and takes `step_s`, `per_sequence_s` for each of them and
    `per_context_token_s` for each token that they have so far; a prompt's tokens take `per_prompt_token_s` each, in
    pieces of at most `prompt_chunk` beside the decoding.
    """

    name: str
    usd_per_hour: float
    step_s: float  # a step's fixed time: the weights are read once
    per_sequence_s: float
    per_context_token_s: float
    per_prompt_token_s: float
    kv_tokens: int  # that the KV cache holds
    max_sequences: int = 256  # at once
    prompt_chunk: int = 2048
    most: int | None = None  # how many there are to rent; None: any number
    source: str = ""  # measured how, or modelled from what

    def decode_s(self, sequences: int, context_tokens: float) -> float:
        """The time of a step that decodes so many sequences with so much context in all."""
        return self.step_s + self.per_sequence_s * sequences + self.per_context_token_s * context_tokens

    def requests_per_s(self, shape: Shape, target: Target, *, load: float = 1.0) -> float:
        """The rate of requests of this shape at which the machine keeps the target; 0: at none.

        In a steady state with n requests running, a request lives for its tokens' steps and the prompts of the n
        requests that begin meanwhile, its own among them: life = steps + n · prompt, and the rate is n / life. The
        time per token is that without its own prompt, which belongs to the first token; that one takes a step for
        each chunk of the prompt.

        Args:
            shape: the requests.
            target: what they may take.
            load: the share of the machine's time that is planned for; the rest is for bursts.

        Source: MaxTput in Griggs et al. 2024, arXiv:2404.14527, from a model of the steps.
        """
        prompt_s = self.per_prompt_token_s * shape.prompt_tokens
        steps = max(1, shape.completion_tokens)
        chunks = -(-shape.prompt_tokens // self.prompt_chunk)
        context = shape.prompt_tokens + shape.completion_tokens / 2
        best = 0.0
        low = 1
        high = min(self.max_sequences, int(self.kv_tokens // (shape.prompt_tokens + shape.completion_tokens)))
        while low <= high:  # both times grow with the batch, and so does the rate
            n = (low + high) // 2
            step_s = self.decode_s(n, n * context)
            keeps_first = chunks * step_s + prompt_s <= target.ttft_s
            if keeps_first and step_s + (n - 1) * prompt_s / steps <= target.tpot_s:
                best = n / (steps * step_s + n * prompt_s)
                low = n + 1
            else:
                high = n - 1
        return best * load


def read_machines(path: Path) -> list[Machine]:
    """The machines of a TOML file, a table `[machines.NAME]` each with the fields of `Machine`.

    Raises:
        DataError: it cannot be read, or a field is missing, unknown or out of range.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8")).get("machines")
    except OSError as exc:
        raise DataError(f"Cannot read the machines {str(path)!r}: {exc.strerror or exc}.", path=str(path)) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise DataError(f"{str(path)!r} is not valid TOML: {exc}.", path=str(path)) from exc
    if not isinstance(tables, dict) or not tables:
        raise DataError(f"{str(path)!r} has no table [machines.NAME]; see docs/capacity.md.", path=str(path))
    return [_machine(name, table, path) for name, table in tables.items()]


_REQUIRED = ("usd_per_hour", "step_s", "per_sequence_s", "per_context_token_s", "per_prompt_token_s", "kv_tokens")


def _machine(name: str, table: Any, path: Path) -> Machine:
    place = f"{str(path)!r}, [machines.{name}]"
    if not isinstance(table, dict):
        raise DataError(f"{place} is no table.", path=str(path))
    known = [each.name for each in fields(Machine) if each.name != "name"]
    for key in table:
        if key not in known:
            raise DataError(f"{place} has an unknown key {key!r}; valid ones: {', '.join(known)}.", path=str(path))
    for key in _REQUIRED:
        if key not in table:
            raise DataError(f"{place} lacks {key!r}; set it.", path=str(path))
    for key, value in table.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if key == "source" and isinstance(value, str):
            continue
        least = 1 if key in ("kv_tokens", "max_sequences", "prompt_chunk", "most") else 0
        if not is_number or not isfinite(value) or value < least or (least == 1 and value != int(value)):
            kind = "a whole number from 1 up" if least else "a number from 0 up"
            raise DataError(f"{place}: {key} must be {kind}, not {value!r}.", path=str(path))
    machine = Machine(name=name, **table)
    if machine.usd_per_hour == 0 or machine.step_s == 0:
        raise DataError(f"{place}: usd_per_hour and step_s must be above 0.", path=str(path))
    return machine
