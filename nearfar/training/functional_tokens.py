"""Trains a LoRA adapter that makes a small model name a worker in one token, on one CPU core if need be.

The labels are tokens that the tokenizer has; see docs/functional-tokens.md for why no rows are added.
Only the upper layers get an adapter, so the states below them are computed once and not once per epoch.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nearfar.errors import ConfigError, DataError
from nearfar.types import Message

from .adapters import PROJECTIONS, write_gguf

_LOWER_BATCH = 16

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
    torch = _torch()
    torch.manual_seed(recipe.seed)
    network = _Network.load(base, recipe)
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
        for i, batch in enumerate(_batches(lower, recipe, epoch)):
            done = epoch * per_epoch + i
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * _schedule(done, recipe.epochs * per_epoch, recipe.warmup)
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
    num_bytes = network.save(out, recipe)
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


class _Network:
    """A Llama with an adapter in its upper layers, cut in two below them."""

    def __init__(self, model: Any, tokenizer: Any, first: int) -> None:
        self._torch = _torch()
        self._model = model
        self._decoder = model.get_base_model().model
        self._head = model.get_base_model().lm_head
        self._tokenizer = tokenizer
        self._first = first  # layer with an adapter

    @classmethod
    def load(cls, base: Path, recipe: Recipe) -> _Network:
        """The GGUF's weights in bfloat16, with a fresh adapter in single precision.

        Raises:
            ConfigError: transformers or peft are not installed, it is no Llama, or it has fewer layers.
        """
        torch = _torch()
        try:
            from peft import LoraConfig, get_peft_model
            from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
        except ImportError as exc:
            raise ConfigError(f"Training needs {exc.name}. Install it: pip install 'nearfar[train]'") from exc
        tokenizer = AutoTokenizer.from_pretrained(base.parent, gguf_file=base.name)
        model = AutoModelForCausalLM.from_pretrained(
            base.parent,
            gguf_file=base.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        if model.config.model_type != "llama":
            raise ConfigError(f"{str(base)!r} is a {model.config.model_type!r}; only Llamas can be trained here.")
        depth = model.config.num_hidden_layers
        if not 1 <= recipe.layers <= depth:
            raise ConfigError(f"layers is {recipe.layers}; {str(base)!r} has 1 to {depth} to train.")
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            target_modules=list(PROJECTIONS),
            layers_to_transform=list(range(depth - recipe.layers, depth)),
        )
        return cls(get_peft_model(model, config).eval(), tokenizer, depth - recipe.layers)

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's token ids, up to where the answer begins."""
        turns = [{"role": message.role, "content": message.text} for message in messages]
        text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def label_id(self, label: str, messages: Sequence[Message]) -> int:
        """The token that says `label` at the beginning of an answer.

        Raises:
            ConfigError: it takes several.
        """
        turns = [{"role": message.role, "content": message.text} for message in messages]
        text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        before = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        after = self._tokenizer(text + label, add_special_tokens=False)["input_ids"]
        if len(after) != len(before) + 1 or after[:-1] != before:
            raise ConfigError(f"The label {label!r} is not one token of this model's tokenizer; choose another.")
        return int(after[-1])

    def lower(self, prompts: Sequence[Sequence[int]]) -> list[Any]:
        """The states below the adapter, of shape (tokens, width) each."""
        found: list[Any] = [None] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
        pad = self._torch.nn.utils.rnn.pad_sequence
        for start in range(0, len(order), _LOWER_BATCH):
            batch = order[start : start + _LOWER_BATCH]
            tokens = pad([self._torch.tensor(prompts[at]) for at in batch], batch_first=True)
            with self._torch.no_grad():
                states = self._through(self._decoder.embed_tokens(tokens), self._decoder.layers[: self._first])
            for row, at in enumerate(batch):
                found[at] = states[row, : len(prompts[at])].clone()
        return found

    def upper(self, lower: Sequence[Any]) -> Any:
        """Logits of the token after each prompt, of shape (prompts, vocabulary)."""
        padded = self._torch.nn.utils.rnn.pad_sequence(list(lower), batch_first=True)  # causal: what follows is unseen
        ends = self._torch.tensor([len(each) - 1 for each in lower])
        with self._torch.autocast("cpu", dtype=self._torch.bfloat16):
            states = self._through(padded, self._decoder.layers[self._first :])
            last = self._decoder.norm(states[self._torch.arange(len(lower)), ends])
        return last.float() @ self._head.weight.float().T

    def trainable(self) -> list[Any]:
        """The adapter's matrices."""
        return [each for each in self._model.parameters() if each.requires_grad]

    def parameters(self) -> dict[str, Any]:
        """The adapter's matrices by peft's names."""
        return {name: each.detach() for name, each in self._model.named_parameters() if each.requires_grad}

    def restore(self, parameters: dict[str, Any]) -> None:
        """Puts matrices of `parameters` back."""
        with self._torch.no_grad():
            for name, each in self._model.named_parameters():
                if each.requires_grad:
                    each.copy_(parameters[name])

    def save(self, out: Path, recipe: Recipe) -> int:
        """Writes both forms of the adapter; returns the GGUF's size in bytes."""
        config = self._model.get_base_model().config
        self._model.save_pretrained(out / "peft")
        return write_gguf(
            self.parameters(),
            out / "adapter.gguf",
            alpha=recipe.alpha,
            num_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            name="functional tokens",
        )

    def _through(self, states: Any, layers: Any) -> Any:
        positions = self._torch.arange(states.shape[1])[None]
        rotary = self._decoder.rotary_emb(states, position_ids=positions)
        for layer in layers:
            states = layer(states, attention_mask=None, position_ids=positions, position_embeddings=rotary)
        return states


def _torch() -> Any:
    try:
        import torch
    except ImportError as exc:
        raise ConfigError(
            "Training needs torch. Install it, then the rest: pip install torch==2.13.0 && pip install 'nearfar[train]'"
        ) from exc
    return torch


def _check(examples: Sequence[LabelledPrompt], labels: Sequence[str]) -> None:
    if not examples:
        raise DataError("There are no labelled queries to train on.")
    strangers = sorted({example.label for example in examples} - set(labels))
    if strangers:
        raise DataError(f"The label {strangers[0]!r} is no worker's; there are {', '.join(map(repr, labels))}.")


def _batches(lower: Sequence[Any], recipe: Recipe, epoch: int) -> Iterator[list[int]]:
    """Indices in random batches of similar lengths, so that little is computed for padding."""
    rng = random.Random(f"{recipe.seed} {epoch}")  # noqa: S311 - an order, no secret
    order = sorted(range(len(lower)), key=lambda at: len(lower[at]) + rng.uniform(-8, 8))
    batches = [order[at : at + recipe.batch_size] for at in range(0, len(order), recipe.batch_size)]
    rng.shuffle(batches)
    yield from batches


def _schedule(done: int, total: int, warmup: float) -> float:
    """The share of the learning rate: up in a line, then down to a tenth on a half cosine.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, without restarts.
    """
    rising = max(1, round(total * warmup))
    if done < rising:
        return (done + 1) / rising
    return 0.1 + 0.9 * (1 + math.cos(math.pi * (done - rising) / max(1, total - rising))) / 2


def _accuracy(
    network: _Network, examples: Sequence[LabelledPrompt], label_ids: dict[str, int], batch_size: int
) -> float:
    torch = _torch()
    ids, right = list(label_ids.values()), 0
    lower = network.lower([network.tokens(example.messages) for example in examples])
    for start in range(0, len(lower), batch_size):
        with torch.no_grad():
            best = network.upper(lower[start : start + batch_size])[:, ids].argmax(1).tolist()
        wanted = examples[start : start + batch_size]
        right += sum(ids[at] == label_ids[example.label] for at, example in zip(best, wanted, strict=True))
    return right / len(examples)


def _lower(
    torch: Any, network: _Network, examples: Sequence[LabelledPrompt], path: Path, fingerprint: str
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


def _resume(torch: Any, path: Path, network: _Network, optimizer: Any, fingerprint: str) -> list[float]:
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
