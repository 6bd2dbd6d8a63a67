"""How much a model loses at each precision: perplexity on texts, and how often its next token is the original's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nearfar.errors import ConfigError

from .checkpoint import NestedCheckpoint


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a model made of some pieces of text, position by position."""

    nats: torch.Tensor  # (pieces, positions): minus the log-probability of the token that follows
    likeliest: torch.Tensor  # (pieces, positions): the token with the highest probability

    @property
    def perplexity(self) -> float:
        """Over all positions."""
        return math.exp(float(self.nats.double().mean()))

    def agreement(self, other: Predictions) -> float:
        """The share of positions at which both find the same token likeliest, in [0, 1]."""
        return float((self.likeliest == other.likeliest).double().mean())


def load(model: Path) -> Any:
    """The original model in float32.

    Raises:
        ConfigError: transformers is not installed, or does not know the folder.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as exc:
        raise ConfigError(f"Evaluating needs {exc.name}. Install it: pip install 'nearfar[quantize]'") from exc
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True).eval()


def predict(model: Any, pieces: Sequence[torch.Tensor]) -> Predictions:
    """Runs the model over pieces of equal length; the first token of each is only read."""
    nats, likeliest = [], []
    with torch.inference_mode():
        for piece in pieces:
            logprobs = model(piece[None], use_cache=False).logits[0, :-1].float().log_softmax(-1)
            nats.append(-logprobs.gather(1, piece[1:, None])[:, 0])
            likeliest.append(logprobs.argmax(-1))
    return Predictions(torch.stack(nats), torch.stack(likeliest))


@contextmanager
def replaced(model: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[None]:
    """The model with other matrices, for as long as the context lasts."""
    originals: dict[str, torch.Tensor] = {}
    try:
        for name, matrix in weights:
            parameter = model.get_submodule(name).weight
            originals[name] = parameter.data
            parameter.data = matrix
        yield
    finally:
        for name, original in originals.items():
            model.get_submodule(name).weight.data = original


def at_precision(checkpoint: NestedCheckpoint, precision: int) -> Iterator[tuple[str, torch.Tensor]]:
    """All matrices of a folder, as a request at `precision` reads them."""
    for name in checkpoint.config.columns:
        yield name, torch.from_numpy(checkpoint.matrix(name).at(checkpoint.config.width_of(name, precision)))


def compare(
    model: Path,
    checkpoint: NestedCheckpoint,
    pieces: Sequence[torch.Tensor],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Mapping[int | None, tuple[float, float]]:
    """Perplexity and agreement at every precision; the original's stand under None."""
    network = load(model)
    original = predict(network, pieces)
    found: dict[int | None, tuple[float, float]] = {None: (original.perplexity, 1.0)}
    precisions = checkpoint.config.precisions
    for done, precision in enumerate(precisions):
        with replaced(network, at_precision(checkpoint, precision)):
            made = predict(network, pieces)
        found[precision] = (made.perplexity, made.agreement(original))
        if progress is not None:
            progress(done + 1, len(precisions))
    return found
