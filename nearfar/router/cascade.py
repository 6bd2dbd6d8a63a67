"""What a cascade is: tiers in order, each with a scorer and a threshold, and when it commits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from nearfar.errors import ConfigError
from nearfar.types import Answer, ChatModel, Message, ModelCard, Query, Routing, Scorer, SignalCost, Signals

if TYPE_CHECKING:
    from .sampled_signals import Probe

#: Where a tier has a scorer and nobody has fitted its threshold. Of geometric-mean token probabilities, which is what
#: the uncalibrated scorer gives; see docs/decisions/0005-uncalibrated-default.md.
UNCALIBRATED_THRESHOLD = 0.8


#: What a choice before any call does to the cascade's order. The chosen tier and those after it come first; "order"
#: keeps the tiers before it in case that those fail, "skip" drops them, and "pick" drops all but the chosen one.
Use: TypeAlias = Literal["order", "skip", "pick"]


class Chooser(Protocol):
    """Picks the tier that a query begins at."""

    @property
    def is_slow(self) -> bool:
        """Whether a choice takes more than about a millisecond, so that an event loop should not wait for it."""
        ...

    def choose(self, query: Query, tiers: Sequence[Tier]) -> Routing | None:
        """The choice among the tiers that may take the query, in the cascade's order; None: there is none to make."""
        ...


class Guide(Protocol):
    """Asks a model which tier a query is for, and whether another tier should go on with an answer."""

    @property
    def card(self) -> ModelCard:
        """The model that is asked."""
        ...

    @property
    def fallback(self) -> str:
        """The tier that answers where the chosen one fails."""
        ...

    async def choose(self, query: Query, tiers: Sequence[Tier]) -> Routing:
        """The choice among the tiers that may take the query; where the model fails, a choice all the same."""
        ...

    def may_go_on(self, tier: Tier, tiers: Sequence[Tier], *, hops: int) -> bool:
        """Whether one of `tiers` could be told to go on with the answer of `tier`, after so many handovers."""
        ...

    async def go_on(self, query: Query, answer: Answer, tier: Tier, tiers: Sequence[Tier]) -> Onward:
        """Who of `tiers` should go on with the answer of `tier`."""
        ...


@dataclass(frozen=True, slots=True)
class Onward:
    """Who goes on with an answer; None: it stands."""

    tier: str | None
    reason: str  # in words
    cost: SignalCost | None  # None: nothing was asked


class Guard(Protocol):
    """Watches a tier while it is used."""

    def see(self, signals: Signals) -> None:
        """Notes the signals of one of its answers."""
        ...

    def objection(self) -> str | None:
        """Why its answers are not to be trusted just now; None: they are."""
        ...


class Tier:
    """One step of a cascade.

    Args:
        model: who answers.
        name: unique in the cascade; the model's unless told.
        scorer: how sure the answer is; None: it has no score, and every tier but the last defers.
        threshold: the score below which the tier defers, in [0, 1]; None with a scorer: the uncalibrated default.
        accepts_nothing: fitted, and no threshold was good enough: the tier always defers.
        wants_draft: the best answer so far goes along, to be corrected.
        deadline_s: the longest that this tier may take.
        probes: find out more about the answer before it is judged; see `sampled_signals`.
        abstain_below: a score below which no further tier is asked, where the query takes abstention; at most the
            threshold.
        guard: watches the answers, and may object to all of them.
    """

    __slots__ = (
        "abstain_below",
        "accepts_nothing",
        "deadline_s",
        "guard",
        "model",
        "name",
        "probes",
        "scorer",
        "threshold",
        "wants_draft",
    )

    def __init__(
        self,
        model: ChatModel,
        *,
        name: str | None = None,
        scorer: Scorer | None = None,
        threshold: float | None = None,
        accepts_nothing: bool = False,
        wants_draft: bool = False,
        deadline_s: float | None = None,
        probes: Sequence[Probe] = (),
        abstain_below: float | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.model = model
        self.name = name or model.card.name
        if threshold is not None and not 0 <= threshold <= 1:
            raise ConfigError(f"The threshold of tier {self.name!r} must be in [0, 1], not {threshold!r}.")
        if deadline_s is not None and deadline_s <= 0:
            raise ConfigError(f"deadline_s of tier {self.name!r} must be more than 0, not {deadline_s!r}.")
        self.scorer = scorer
        self.threshold = UNCALIBRATED_THRESHOLD if threshold is None and scorer is not None else threshold
        self.accepts_nothing = accepts_nothing
        self.wants_draft = wants_draft
        self.deadline_s = deadline_s
        self.probes = tuple(probes)
        if abstain_below is not None and not 0 <= abstain_below <= (1.0 if self.threshold is None else self.threshold):
            raise ConfigError(
                f"abstain_below of tier {self.name!r} must be in [0, its threshold], not {abstain_below!r}."
            )
        self.abstain_below = abstain_below
        self.guard = guard


@dataclass(frozen=True, slots=True)
class Cascade:
    """Tiers tried in order until one is sure enough.

    `commit` says when a stream may begin: "answer" once a tier's whole answer has been judged, "prefix" once its first
    `prefix_tokens` tokens have. Nothing is sent that may be taken back.

    Raises:
        ConfigError: no tiers, or two of the same name.
    """

    tiers: Sequence[Tier]
    name: str
    commit: Literal["answer", "prefix"] = "answer"
    prefix_tokens: int = 16
    policy: str = "uncalibrated"  # name@version
    variants: Mapping[str, Cascade] = field(default_factory=dict)  # by policy name, for queries that name a quality
    chooser: Chooser | None = None  # picks the tier to begin at; None: the first
    use: Use = "order"  # what its choice does to the order
    guide: Guide | None = None  # names the one tier to ask, and the others that may go on with its answer

    def __post_init__(self) -> None:
        if not self.tiers:
            raise ConfigError(f"Cascade {self.name!r} has no tiers; give it at least one model.")
        names = [tier.name for tier in self.tiers]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ConfigError(f"Cascade {self.name!r} has two tiers named {twice!r}; name each once.")
        if self.prefix_tokens < 1:
            raise ConfigError(f"prefix_tokens of cascade {self.name!r} must be at least 1, not {self.prefix_tokens!r}.")


def with_draft(query: Query, draft: Answer) -> tuple[Message, ...]:
    """The query's messages, with the draft of a smaller model for the next one to correct."""
    note = (
        "A smaller model drafted the answer below and may be wrong. Use what is right in it, correct the rest, and "
        f"answer in full without mentioning the draft.\n\n<draft>\n{draft.text}\n</draft>"
    )
    return (*query.messages, Message("user", note))


def handed_on(query: Query, answer: Answer) -> tuple[Message, ...]:
    """The query's messages, with another worker's answer for the next one to go on from."""
    note = (
        "Another worker's answer is below; it may be wrong or incomplete. Go on from it, and answer in full without "
        f"mentioning it.\n\n<answer>\n{answer.text}\n</answer>"
    )
    return (*query.messages, Message("user", note))


def rewritten(query: Query, text: str) -> tuple[Message, ...]:
    """The query's messages, the last one of the user in other words."""
    at = max((i for i, message in enumerate(query.messages) if message.role == "user"), default=None)
    if at is None:
        return query.messages
    return (*query.messages[:at], replace(query.messages[at], content=text), *query.messages[at + 1 :])


def continuation(query: Query, begun: str) -> tuple[Message, ...]:
    """The query's messages, with the part of an answer that was sent before its model broke off."""
    note = "Your answer broke off. Continue it exactly where it stops. Repeat nothing and add no preface."
    return (*query.messages, Message("assistant", begun), Message("user", note))
