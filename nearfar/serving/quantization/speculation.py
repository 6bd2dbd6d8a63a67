"""Greedy decoding in which the low planes of a model draft and all of them verify: the same weights, the same cache.

Lossless, every token is the one that plain decoding with all planes gives. Lossy, BiLD's two thresholds decide when
the draft hands over and when it is taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .llama import NestedLlama


@dataclass(frozen=True, slots=True)
class Policy:
    """When to draft on, when to hand over, and what to take of a draft."""

    draft: int  # the precision that drafts
    verify: int  # the precision whose tokens are wanted
    length: int = 4  # most tokens of a draft
    fallback: float = 0.0  # the draft hands over where its likeliest token has less than this probability
    rollback: float | None = None
    """Nats above which a drafted token is taken back, -log p under `verify`. None: whenever it is not the likeliest,
    which loses nothing. BiLD has 5, and says that 2 to 5 work; its fallback is 0.6."""

    def __post_init__(self) -> None:
        """Raises ValueError where nothing could be drafted, or a threshold is none."""
        if self.length < 1:
            raise ValueError(f"length is {self.length!r}; draft at least one token")
        if not 0 <= self.fallback <= 1 or (self.rollback is not None and not self.rollback >= 0):
            raise ValueError(f"fallback is {self.fallback!r} and rollback {self.rollback!r}; a probability and nats")


@dataclass(frozen=True, slots=True)
class Decoded:
    """What was generated, and what it took."""

    tokens: tuple[int, ...]
    margins: tuple[float, ...]  # at each token, by how much the greatest logit of `verify` beats the next one
    num_drafted: int
    num_accepted: int  # of the drafted ones
    num_passes: int  # of `verify`, the prompt's included

    @property
    def acceptance(self) -> float:
        """The share of drafted tokens that stayed, in [0, 1]; 0 where none was drafted."""
        return self.num_accepted / self.num_drafted if self.num_drafted else 0.0


def decode(model: NestedLlama, prompt: Sequence[int], *, max_tokens: int, precision: int) -> Decoded:
    """Plain greedy decoding, one token a pass."""
    tokens: list[int] = []
    margins: list[float] = []
    with torch.inference_mode():
        logits = model(prompt, 0, precision)
        while True:
            _take(logits[-1], tokens, margins)
            if len(tokens) == max_tokens:
                return Decoded(tuple(tokens), tuple(margins), 0, 0, len(tokens))
            logits = model(tokens[-1:], len(prompt) + len(tokens) - 1, precision)


def speculate(model: NestedLlama, prompt: Sequence[int], *, max_tokens: int, policy: Policy) -> Decoded:
    """Greedy decoding with drafts.

    A draft's keys and values go into the places that verifying writes over, so that all that is read of earlier tokens
    is `verify`'s own.

    Raises:
        ValueError: prompt and answer are longer than the model has room for.

    Source: Leviathan et al. 2023, arXiv:2211.17192, greedy case; Kim et al. 2023, arXiv:2302.07863, for the fallback
        and rollback thresholds.
    """
    tokens: list[int] = []
    margins: list[float] = []
    drafted = accepted = 0
    passes = 1
    with torch.inference_mode():
        _take(model(prompt, 0, policy.verify)[-1], tokens, margins)
        while len(tokens) < max_tokens:
            place = len(prompt) + len(tokens) - 1  # of the last token, which no pass has read yet
            draft: list[int] = []
            for step in range(min(policy.length, max_tokens - len(tokens) - 1)):
                logits = model([draft[-1] if draft else tokens[-1]], place + step, policy.draft)[-1]
                if policy.fallback and float(logits.softmax(-1).max()) < policy.fallback:
                    break
                draft.append(int(logits.argmax()))
            verified = model([tokens[-1], *draft], place, policy.verify)
            passes += 1
            drafted += len(draft)
            kept = _kept(verified, draft, policy.rollback)
            accepted += kept
            for step in range(kept):
                _take(verified[step], tokens, margins, draft[step])
            _take(verified[kept], tokens, margins)
    return Decoded(tuple(tokens), tuple(margins), drafted, accepted, passes)


def _kept(verified: torch.Tensor, draft: Sequence[int], rollback: float | None) -> int:
    """How many tokens of the draft stay."""
    for step, token in enumerate(draft):
        if int(verified[step].argmax()) == token:
            continue
        if rollback is None or float(-verified[step].log_softmax(-1)[token]) > rollback:
            return step
    return len(draft)


def _take(logits: torch.Tensor, tokens: list[int], margins: list[float], token: int | None = None) -> None:
    first, second = logits.topk(2).values.tolist()
    tokens.append(int(logits.argmax()) if token is None else token)
    margins.append(first - second)
