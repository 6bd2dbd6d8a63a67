"""Trains a LoRA adapter that makes a small model name a worker in one token, on one CPU core if need be.

The labels are tokens that the tokenizer has; see docs/functional-tokens.md for why no rows are added.
Only the upper layers get an adapter, so the states below them are computed once and not once per epoch.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nearfar.errors import ConfigError, DataError
from nearfar.types import Message

from .llama_lora import LoraLlama, batches, load_torch, schedule

#: Told after each batch: batches done, batches in all, the batch's loss in nats.
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True, slots=True)
class LabelledPrompt:
    """What the choosing model is asked, and the label that it should give."""

    messages: tuple[Message, ...]
    label: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train. The defaults are those of the published adapter; see benchmarks/functional_tokens.py.

    `layers` counts from the top. `epochs` passes in all, with the learning rate on a half cosine down to a tenth.
    """

    rank: int = 16
    alpha: float = 32.0
    layers: int = 4
    epochs: int = 3
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup: float = 0.06  # share of the batches
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of it."""

    gguf: Path  # for llama.cpp
    peft: Path  # a folder, for vLLM and transformers
    num_parameters: int
    gguf_bytes: int
    epochs: int  # done so far
    losses: tuple[float, ...]  # mean per epoch, in nats
    validation_accuracy: float | None  # of the label with the highest logit
    seconds: float  # of this call


def train(
    base: Path,
    examples: Sequence[LabelledPrompt],
    out: Path,
    *,
    labels: Sequence[str],
    recipe: Recipe | None = None,
    validation: Sequence[LabelledPrompt] = (),
    stop_after: int | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Trains an adapter and writes it to `out`, as `adapter.gguf` and as the folder `peft`.

    A run that was stopped goes on where it left off: `out` holds a checkpoint after each epoch.

    Args:
        base: the choosing model's GGUF; it is dequantized in memory.
        examples: what it is asked and what it should say.
        out: a folder.
        labels: every label; the examples' are among them.
        recipe: how; None: the default.
        validation: examples to measure on.
        stop_after: epochs that this call may take; None: to the end.

    Raises:
        ConfigError: the `[train]` extra is not installed, or a label is not one token.
        DataError: there are no examples, or one has a label that is not in `labels`.
    """
    started = time.perf_counter()
    recipe = recipe or Recipe()
    _check(examples, labels)
    torch = load_torch()
    torch.manual_seed(recipe.seed)
    network = LoraLlama.load(base, recipe)
    label_ids = {label: network.label_id(label, examples[0].messages) for label in labels}
    fingerprint = _fingerprint(base, examples, recipe)
    lower = _lower(torch, network, examples, out / "states.pt", fingerprint)
    wanted = [label_ids[example.label] for example in examples]

    optimizer = torch.optim.AdamW(network.trainable(), lr=recipe.learning_rate, weight_decay=0.0)
    checkpoint = out / "checkpoint.pt"
    losses: list[float] = []
    if checkpoint.is_file():
        losses = _resume(torch, checkpoint, network, optimizer, fingerprint)
    first = len(losses)
    last = recipe.epochs if stop_after is None else min(recipe.epochs, first + stop_after)
    per_epoch = math.ceil(len(examples) / recipe.batch_size)
    for epoch in range(first, last):
        total = 0.0
        for i, batch in enumerate(batches([len(each) for each in lower], recipe.batch_size, f"{recipe.seed} {epoch}")):
            done = epoch * per_epoch + i
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * schedule(done, recipe.epochs * per_epoch, recipe.warmup)
            logits = network.upper([lower[at] for at in batch])
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor([wanted[at] for at in batch]))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.trainable(), 1.0)
            optimizer.step()
            total += float(loss) * len(batch)
            if progress is not None:
                progress(done + 1, recipe.epochs * per_epoch, float(loss))
        losses.append(total / len(examples))
        state = {
            "fingerprint": fingerprint,
            "losses": losses,
            "parameters": network.parameters(),
            "optimizer": optimizer.state_dict(),
        }
        torch.save(state, checkpoint)

    if last == recipe.epochs:
        (out / "states.pt").unlink()
    accuracy = _accuracy(network, validation, label_ids, recipe.batch_size) if validation else None
    num_bytes = network.save(out, name="functional tokens")
    return Trained(
        out / "adapter.gguf",
        out / "peft",
        sum(each.numel() for each in network.trainable()),
        num_bytes,
        len(losses),
        tuple(losses),
        accuracy,
        time.perf_counter() - started,
    )


def _check(examples: Sequence[LabelledPrompt], labels: Sequence[str]) -> None:
    if not examples:
        raise DataError("There are no labelled queries to train on.")
    strangers = sorted({example.label for example in examples} - set(labels))
    if strangers:
        raise DataError(f"The label {strangers[0]!r} is no worker's; there are {', '.join(map(repr, labels))}.")


def _accuracy(
    network: LoraLlama, examples: Sequence[LabelledPrompt], label_ids: dict[str, int], batch_size: int
) -> float:
    torch = load_torch()
    ids, right = list(label_ids.values()), 0
    lower = network.lower([network.tokens(example.messages) for example in examples])
    for start in range(0, len(lower), batch_size):
        with torch.no_grad():
            best = network.upper(lower[start : start + batch_size])[:, ids].argmax(1).tolist()
        wanted = examples[start : start + batch_size]
        right += sum(ids[at] == label_ids[example.label] for at, example in zip(best, wanted, strict=True))
    return right / len(examples)


def _lower(
    torch: Any, network: LoraLlama, examples: Sequence[LabelledPrompt], path: Path, fingerprint: str
) -> list[Any]:
    """The states below the adapter: from the file, or computed and kept there until the training has ended."""
    if path.is_file():
        kept = torch.load(path, weights_only=True)
        if kept["fingerprint"] == fingerprint:
            return list(kept["states"])
    states = network.lower([network.tokens(example.messages) for example in examples])
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"fingerprint": fingerprint, "states": states}, path)
    return states


def _resume(torch: Any, path: Path, network: LoraLlama, optimizer: Any, fingerprint: str) -> list[float]:
    state = torch.load(path, weights_only=True)
    if state["fingerprint"] != fingerprint:
        raise ConfigError(f"{str(path)!r} was made with other data or settings; remove it, or name another folder.")
    network.restore(state["parameters"])
    optimizer.load_state_dict(state["optimizer"])
    return list(state["losses"])


def _fingerprint(base: Path, examples: Sequence[LabelledPrompt], recipe: Recipe) -> str:
    """SHA-256 of all that a training depends on: the settings, the examples in order, the weights' size."""
    digest = hashlib.sha256(repr((asdict(recipe), base.stat().st_size)).encode())
    for example in examples:
        digest.update(repr((example.label, [(each.role, each.text) for each in example.messages])).encode())
    return digest.hexdigest()
