"""Trains an agent's roles in α-UMi's two stages: one backbone on every role's turns, then an adapter for each role.

Source: Shen et al. 2024, arXiv:2401.07324, section 3.3 (GLPFT). Where the paper copies the whole backbone for every
role, here both stages are LoRA adapters of the same shape in the upper layers, so that a role costs a few megabytes:
a role's adapter begins as the backbone's and goes on with the role's own turns, at a lower rate.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nearfar.errors import ConfigError, DataError
from nearfar.types import Message

from .llama_lora import LoraLlama, batches, load_torch, schedule

#: Told after each batch: the stage, batches done, batches in all, the batch's loss in nats.
Progress = Callable[[str, int, int, float], None]

BACKBONE = "backbone"
_SUMMARIZER = "summarizer"

_CHECKPOINT_EVERY = 20  # batches
_WARMUP = 0.1  # share of a stage's batches


@dataclass(frozen=True, slots=True)
class RoleTurn:
    """What a role is told, and what it should say."""

    role: str
    messages: tuple[Message, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class RolesRecipe:
    """How to train; the defaults are those of the published figures (benchmarks/agents_training.py).

    The passes are the paper's: two over all turns, then one for planner and caller and two for the summarizer; so is
    the second stage's rate, a fifth of the first's. The rates themselves are a hundred and fifty times the paper's,
    which trains whole models: adapters take more, and so do short runs.
    """

    rank: int = 8
    alpha: float = 16.0
    layers: int = 8  # from the top
    backbone_epochs: int = 2
    role_epochs: int = 1
    summarizer_epochs: int = 2
    batch_size: int = 8  # conversations
    backbone_rate: float = 1e-3
    role_rate: float = 2e-4
    weight_decay: float = 0.01
    most_tokens: int = 1024  # of a conversation; what comes later is left out
    seed: int = 0

    def epochs(self, stage: str) -> int:
        """Passes of the stage over its turns."""
        return {BACKBONE: self.backbone_epochs, _SUMMARIZER: self.summarizer_epochs}.get(stage, self.role_epochs)


@dataclass(frozen=True, slots=True)
class TrainedStage:
    """What came of a stage."""

    name: str  # backbone, or the role
    gguf: Path  # for llama.cpp
    peft: Path  # a folder, for vLLM and transformers
    gguf_bytes: int
    num_turns: int
    loss: float  # over the last pass: nats per token, each batch counting alike
    validation: Mapping[str, float]  # by role


@dataclass(frozen=True, slots=True)
class TrainedRoles:
    """What came of a call.

    Attributes:
        stages: those that have ended, in order.
        untrained: by role, nats per token of the validation turns before any training.
        num_parameters: of each adapter.
        seconds: of this call.
        is_complete: nothing is left to train.
    """

    stages: tuple[TrainedStage, ...]
    untrained: Mapping[str, float]
    num_parameters: int
    seconds: float
    is_complete: bool


def train_roles(
    base: Path,
    turns: Sequence[RoleTurn],
    out: Path,
    *,
    recipe: RolesRecipe | None = None,
    validation: Sequence[RoleTurn] = (),
    seconds: float | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> TrainedRoles:
    """Trains the backbone and every role's adapter, and writes each to a folder of its name in `out`.

    A run that was stopped goes on where it left off: `out` holds a checkpoint.

    Args:
        base: the GGUF; it is dequantized in memory.
        turns: of all roles, from tasks that went well. Turns of one conversation are computed together.
        out: a folder.
        recipe: how; None: the default.
        validation: turns to measure on after each stage.
        seconds: time after which this call stops, at the end of a batch; None: it trains to the end.
        device: cpu, or cuda.
        progress: told after each batch.

    Raises:
        ConfigError: the `[train]` extra is not installed, the device is not there, the model is no Llama, or `out`
            holds a checkpoint of other data or settings.
        DataError: no turn is short enough.
    """
    started = time.perf_counter()
    recipe = recipe or RolesRecipe()
    torch = load_torch()
    torch.manual_seed(recipe.seed)
    network = LoraLlama.load(base, recipe, device=device)
    texts = _texts(network, turns, recipe.most_tokens)
    if not texts:
        raise DataError(
            f"None of the {len(turns)} turns has at most {recipe.most_tokens} tokens; allow more with most_tokens."
        )
    run = _Run(
        torch,
        network,
        recipe,
        out,
        _fingerprint(base, turns, validation, recipe),
        texts,
        _texts(network, validation, recipe.most_tokens),
        None if seconds is None else started + seconds,
        progress,
    )
    roles = dict.fromkeys(span.role for text in texts for span in text.spans)
    is_complete = run.through((BACKBONE, *roles))
    return TrainedRoles(
        tuple(run.stages),
        run.untrained,
        sum(each.numel() for each in network.trainable()),
        time.perf_counter() - started,
        is_complete,
    )


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, and which of them are answers of which role."""

    messages: tuple[Message, ...]
    said: tuple[tuple[int, str], ...]  # place and role, in order


def conversations(turns: Sequence[RoleTurn]) -> list[Conversation]:
    """The turns as few conversations: one that another goes on from is part of it, and is computed with it.

    A model sees nothing of what comes later, so that it learns the same as from the turns one by one.
    """
    whole: dict[tuple[tuple[str, str], ...], int] = {}  # beginning → the conversation that it is of
    found: list[tuple[tuple[Message, ...], dict[int, str]]] = []
    for turn in sorted(turns, key=lambda turn: -len(turn.messages)):
        messages = (*turn.messages, Message("assistant", turn.answer))
        told = tuple((message.role, message.text) for message in messages)
        if told not in whole:
            found.append((messages, {}))
            for end in range(1, len(told) + 1):
                whole.setdefault(told[:end], len(found) - 1)
        found[whole[told]][1][len(turn.messages)] = turn.role
    return [Conversation(messages, tuple(sorted(said.items()))) for messages, said in found]


# --- what is trained on ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Span:
    role: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Text:
    tokens: list[int]
    spans: list[_Span]

    def of(self, roles: Collection[str]) -> list[tuple[int, int]]:
        return [(span.start, span.end) for span in self.spans if span.role in roles]


def _texts(network: LoraLlama, turns: Sequence[RoleTurn], most_tokens: int) -> list[_Text]:
    """The conversations' tokens, without answers that end too late."""
    texts = []
    for conversation in conversations(turns):
        tokens, places = network.answered(conversation.messages, [place for place, _ in conversation.said])
        spans = [
            _Span(role, *place)
            for (_, role), place in zip(conversation.said, places, strict=True)
            if place[1] <= most_tokens
        ]
        if spans:
            texts.append(_Text(tokens[: spans[-1].end], spans))
    return texts


def _fingerprint(base: Path, turns: Sequence[RoleTurn], validation: Sequence[RoleTurn], recipe: RolesRecipe) -> str:
    """SHA-256 of all that a training depends on: the settings, the turns in order, the weights' size."""
    digest = hashlib.sha256(repr((asdict(recipe), base.stat().st_size, len(turns))).encode())
    for turn in (*turns, *validation):
        told = [(each.role, each.text) for each in turn.messages]
        digest.update(repr((turn.role, told, turn.answer)).encode())
    return digest.hexdigest()


# --- the stages ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Run:
    """A training under way."""

    torch: Any
    network: LoraLlama
    recipe: RolesRecipe
    out: Path
    fingerprint: str
    texts: list[_Text]
    held: list[_Text]
    ends: float | None
    progress: Progress | None
    stages: list[TrainedStage] = field(default_factory=list)
    untrained: dict[str, float] = field(default_factory=dict)
    backbone: dict[str, Any] = field(default_factory=dict)
    states: dict[int, Any] = field(default_factory=dict)  # below the adapter, by text; as they come to be needed
    held_states: list[Any] = field(default_factory=list)

    def through(self, names: Sequence[str]) -> bool:
        """Trains the stages of these names; whether all have ended."""
        current = self._resume()
        if self.held and not self.untrained:
            self.untrained = self._validation()
        for name in names[len(self.stages) :]:
            if current is None and self.backbone:
                self.network.restore(self.backbone)
            if not self._stage(name, current):
                self.torch.save((self.states, self.held_states), self.out / "states.pt")
                return False
            current = None
        (self.out / "states.pt").unlink(missing_ok=True)
        return True

    def _stage(self, name: str, current: dict[str, Any] | None) -> bool:
        """Trains one stage from where it stopped; whether it has ended."""
        recipe, network = self.recipe, self.network
        roles = {span.role for text in self.texts for span in text.spans} if name == BACKBONE else {name}
        own = [at for at, text in enumerate(self.texts) if text.of(roles)]
        order = [
            [own[at] for at in batch]
            for epoch in range(recipe.epochs(name))
            for batch in batches(
                [len(self.texts[at].tokens) for at in own], recipe.batch_size, f"{recipe.seed} {name} {epoch}"
            )
        ]
        rate = recipe.backbone_rate if name == BACKBONE else recipe.role_rate
        optimizer = self.torch.optim.AdamW(network.trainable(), lr=rate, weight_decay=recipe.weight_decay)
        losses: list[float] = []
        if current is not None:
            optimizer.load_state_dict(current["optimizer"])
            losses = list(current["losses"])
        for done in range(len(losses), len(order)):
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule(done, len(order), _WARMUP)
            loss = self._loss(order[done], roles)
            optimizer.zero_grad()
            loss.backward()
            self.torch.nn.utils.clip_grad_norm_(network.trainable(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            if self.progress is not None:
                self.progress(name, done + 1, len(order), losses[-1])
            is_over = self.ends is not None and time.perf_counter() >= self.ends
            if is_over or (done + 1) % _CHECKPOINT_EVERY == 0:
                self._save({"optimizer": optimizer.state_dict(), "losses": losses, "parameters": network.parameters()})
            if is_over and done + 1 < len(order):
                return False
        last = losses[-math.ceil(len(order) / recipe.epochs(name)) :]
        self._finish(name, sum(len(self.texts[at].of(roles)) for at in own), sum(last) / len(last))
        return True

    def _loss(self, batch: Sequence[int], roles: Collection[str]) -> Any:
        missing = [at for at in batch if at not in self.states]
        self.states |= zip(missing, self.network.lower([self.texts[at].tokens for at in missing]), strict=True)
        lower, tokens, spans = [], [], []
        for at in batch:
            own = self.texts[at].of(roles)
            lower.append(self.states[at][: own[-1][1]])  # what comes after the last answer is not needed
            tokens.append(self.texts[at].tokens)
            spans.append(own)
        return self.network.answer_loss(lower, tokens, spans)

    def _finish(self, name: str, num_turns: int, loss: float) -> None:
        """Writes the stage's adapter and remembers that it has ended."""
        folder = self.out / name
        size = self.network.save(folder, name=name)
        validation = self._validation() if self.held else {}
        stage = TrainedStage(name, folder / "adapter.gguf", folder / "peft", size, num_turns, loss, validation)
        self.stages.append(stage)
        if name == BACKBONE:
            self.backbone = {key: value.clone() for key, value in self.network.parameters().items()}
        self._save(None)

    def _validation(self) -> dict[str, float]:
        """By role, nats per token of its answers that were held back."""
        found = {}
        if not self.held_states:
            self.held_states = self.network.lower([text.tokens for text in self.held])
        for role in dict.fromkeys(span.role for text in self.held for span in text.spans):
            total, count = 0.0, 0
            for text, states in zip(self.held, self.held_states, strict=True):
                spans = text.of({role})
                if spans:
                    with self.torch.no_grad():
                        loss = self.network.answer_loss([states[: spans[-1][1]]], [text.tokens], [spans])
                    length = sum(end - start for start, end in spans)
                    total, count = total + float(loss) * length, count + length
            found[role] = total / count
        return found

    # --- stopping and going on ---------------------------------------------------------------------------------------

    def _save(self, current: dict[str, Any] | None) -> None:
        """The checkpoint; `current` is what the stage under way needs, None between stages."""
        self.out.mkdir(parents=True, exist_ok=True)
        stages = [
            {key: value for key, value in asdict(stage).items() if key not in ("gguf", "peft")} for stage in self.stages
        ]
        state = {
            "fingerprint": self.fingerprint,
            "stages": stages,
            "untrained": self.untrained,
            "backbone": self.backbone,
            "current": current,
        }
        partial = self.out / "checkpoint.part"
        self.torch.save(state, partial)
        partial.replace(self.out / "checkpoint.pt")

    def _resume(self) -> dict[str, Any] | None:
        """Goes on from the checkpoint, where there is one; what the stage under way needs."""
        path = self.out / "checkpoint.pt"
        if not path.is_file():
            return None
        state = self.torch.load(path, weights_only=True, map_location="cpu")
        if state["fingerprint"] != self.fingerprint:
            raise ConfigError(f"{str(path)!r} was made with other data or settings; remove it, or name another folder.")
        for kept in state["stages"]:
            folder = self.out / kept["name"]
            self.stages.append(TrainedStage(gguf=folder / "adapter.gguf", peft=folder / "peft", **kept))
        self.untrained, self.backbone = state["untrained"], state["backbone"]
        states = self.out / "states.pt"
        if states.is_file():
            self.states, self.held_states = self.torch.load(states, weights_only=True, map_location="cpu")
        current: dict[str, Any] | None = state["current"]
        if current is not None:
            self.network.restore(current["parameters"])
        return current
