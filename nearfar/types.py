"""The values that cross folders, and the protocols that folders meet through.

Everything is frozen and cheap to build; nothing here does I/O.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import Field, asdict, fields, make_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

from msgspec import Struct, field, to_builtins
from msgspec.structs import force_setattr

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

Placement: TypeAlias = Literal["near", "far"]
Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool"]
Modality: TypeAlias = Literal["text", "image", "audio", "file"]
FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "content_filter", "abstained", "refused"]

#: Name to number, read off a query or an answer. A missing signal is absent, never zero.
Signals: TypeAlias = Mapping[str, float]

_TEXT_ONLY: frozenset[Modality] = frozenset()


class _Fields:
    """`dataclasses.fields` of a value's class, made when they are first asked for."""

    def __get__(self, value: object, cls: type[Value]) -> dict[str, Field[Any]]:
        known = _FIELDS.get(cls)
        if known is None:
            twin = make_dataclass(cls.__name__, [(name, Any) for name in cls.__struct_fields__])
            known = _FIELDS[cls] = {each.name: each for each in fields(twin)}
        return known


_FIELDS: dict[type, dict[str, Field[Any]]] = {}


class Value(Struct, frozen=True):
    """A frozen value, made in C: one of 6 to 17 fields costs a sixteenth of a frozen data class to make.

    `dataclasses.replace`, `fields` and `asdict` take it for the data class that it is but for how it is made. What the
    decision log holds leaves out defaults as JSON (`omit_defaults`); `plain` gives every field.
    """

    __dataclass_fields__: ClassVar[Mapping[str, Field[Any]]] = _Fields()  # type: ignore[assignment]  # a descriptor


def plain(value: Value) -> dict[str, Any]:
    """Every field as plain JSON values, defaults too."""
    found: dict[str, Any] = to_builtins(asdict(value))
    return found


# --- what is asked ---------------------------------------------------------------------------------------------------


class ContentPart(Value, frozen=True, omit_defaults=True):
    """One part of a message of several parts, in OpenAI's shape where it is not text."""

    kind: Modality
    text: str = ""
    wire: Mapping[str, Any] = field(default_factory=dict)  # the part as the client sent it; empty for text


class ToolCall(Value, frozen=True):
    """A call that a model wants made."""

    id: str
    name: str
    arguments: str  # JSON text, as the model wrote it


class Message(Value, frozen=True, omit_defaults=True):
    """One turn of a conversation."""

    role: Role
    content: str | tuple[ContentPart, ...] = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None  # on role "tool": the call that this answers
    name: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)  # other wire fields, passed through (reasoning_content …)

    @property
    def text(self) -> str:
        """The message's text parts, joined by newlines."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content if part.kind == "text")

    @property
    def modalities(self) -> frozenset[Modality]:
        """What the message holds besides text."""
        if isinstance(self.content, str):
            return _TEXT_ONLY
        return frozenset(part.kind for part in self.content) - {"text"}


class ToolSpec(Value, frozen=True, omit_defaults=True):
    """A tool that the model may call."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)  # JSON Schema of the arguments object
    strict: bool | None = None


class NamedTool(Value, frozen=True):
    """`tool_choice` that forces one tool."""

    name: str


ToolChoice: TypeAlias = Literal["auto", "none", "required"] | NamedTool


class ResponseFormat(Value, frozen=True, omit_defaults=True):
    """A shape that the answer's text must have."""

    kind: Literal["text", "json_object", "json_schema", "grammar", "choice"]
    schema: Mapping[str, Any] | None = None  # for json_schema
    name: str = "answer"
    strict: bool | None = None
    grammar: str | None = None  # for grammar: GBNF
    choices: tuple[str, ...] = ()  # for choice: the texts that the answer may be; log-probabilities are among them


class SamplingOptions(Value, frozen=True, omit_defaults=True):
    """How to decode. None leaves the model's default."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[str, float] | None = None
    logprobs: bool = False  # fill Answer.logprobs
    top_logprobs: int | None = None  # alternatives per token, in [0, 20]
    extra: Mapping[str, Any] = field(default_factory=dict)  # wire fields that nearfar does not know


class Query(Value, frozen=True, omit_defaults=True):
    """A request to answer, the same object from every door.

    `Query("Capital of France?")` is one user message; a tuple of messages is a conversation.
    """

    prompt: str | tuple[Message, ...]
    model: str = "auto"  # a cascade's or a model's name
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    budget_usd: float | None = None  # the most that this query may cost
    deadline_s: float | None = None  # seconds from arrival to the end of the answer
    privacy: Literal["any", "near"] = "any"  # near: no far model may see it
    quality: str | None = None  # a policy's name
    session: str | None = None
    when_unsure: Literal["best", "abstain"] = "best"  # out of tiers and still unsure
    metadata: Mapping[str, str] = field(default_factory=dict)
    wants_signals: bool = False  # read every signal that the tier may, also where it decides nothing: for labelling
    docs: str | None = None  # a collection of documents to answer from
    passages: int | None = None  # how many of them; None: the config's
    uses_memory: bool = True  # False: neither answered from a memory nor kept in one
    signals: tuple[str, ...] = ()  # to be read of every answer that it gets, some at the price of further calls

    def __post_init__(self) -> None:
        if isinstance(self.prompt, str):
            force_setattr(self, "prompt", (Message("user", self.prompt),))

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation."""
        return self.prompt  # type: ignore[return-value]  # __post_init__ has made a text a message

    @property
    def text(self) -> str:
        """The last user message's text; the whole conversation's where there is none."""
        for message in reversed(self.messages):
            if message.role == "user":
                return message.text
        return "\n".join(message.text for message in self.messages)

    @property
    def modalities(self) -> frozenset[Modality]:
        """What the conversation holds besides text."""
        found = _TEXT_ONLY
        for message in self.messages:
            if not isinstance(message.content, str):
                found |= message.modalities
        return found


# --- what is answered ------------------------------------------------------------------------------------------------


class TokenLogprob(Value, frozen=True):
    """One generated token, its log-probability and the likeliest alternatives (natural logarithm)."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()  # likeliest first, the chosen token among them where the server says so


class Usage(Value, frozen=True):
    """Tokens of one or more calls."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompt's
    reasoning_tokens: int = 0  # of the completion's
    is_estimated: bool = False

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.is_estimated or other.is_estimated,
        )


class Answer(Value, frozen=True):
    """What a model, or a cascade of models, said."""

    text: str = ""
    model: str = ""  # the model's name in the config
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason = "stop"
    reasoning: str | None = None
    refusal: str | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None  # None: the model gives none, or none were asked for
    usage: Usage | None = None
    cost_usd: float | None = None  # None: unknown, which is not zero
    is_cost_estimated: bool = False
    latency_s: float = 0.0
    is_cached: bool = False
    outcome_only: bool = False  # a replayed row that records correctness and no text
    correct: float | None = None  # known quality in [0, 1], from a replayed row
    extra: Mapping[str, Any] = field(default_factory=dict)  # other wire fields, passed through
    decision: Decision | None = None  # set by the router
    signals: Signals = field(default_factory=dict)  # what the model itself says: a classifier's confidence, say

    @property
    def tier(self) -> str | None:
        """The tier that gave the answer."""
        return self.decision.tier if self.decision else None

    @property
    def score(self) -> float | None:
        """Estimated probability that the answer is good enough."""
        return self.decision.score if self.decision else None

    @property
    def decision_id(self) -> str | None:
        """Key of the decision record; `nearfar explain` takes it."""
        return self.decision.id if self.decision else None


class TextDelta(Value, frozen=True):
    """The next piece of the answer's text."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


class ReasoningDelta(Value, frozen=True):
    """The next piece of the model's reasoning, where the wire shows it."""

    text: str


class ToolCallDelta(Value, frozen=True):
    """The next piece of a tool call; id and name come with its first piece."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


class StreamStart(Value, frozen=True):
    """The first event of a router's stream, once it has committed to a tier; models do not send it."""

    decision_id: str
    tier: str | None
    model: str | None
    score: float | None
    threshold: float | None
    is_calibrated: bool


class StreamEnd(Value, frozen=True):
    """The last event of every stream that did not fail: the whole answer."""

    answer: Answer


StreamEvent: TypeAlias = StreamStart | TextDelta | ReasoningDelta | ToolCallDelta | StreamEnd


# --- models ----------------------------------------------------------------------------------------------------------


class Price(Value, frozen=True):
    """What a provider charges, in US dollars per million tokens."""

    prompt_usd_per_mtok: float
    completion_usd_per_mtok: float
    cached_prompt_usd_per_mtok: float | None = None  # None: as the rest of the prompt

    def cost_usd(self, usage: Usage) -> float:
        """The price of `usage`."""
        cached_price = self.cached_prompt_usd_per_mtok
        if cached_price is None:
            cached_price = self.prompt_usd_per_mtok
        fresh = usage.prompt_tokens - usage.cached_tokens
        return (
            fresh * self.prompt_usd_per_mtok
            + usage.cached_tokens * cached_price
            + usage.completion_tokens * self.completion_usd_per_mtok
        ) / 1e6


FREE = Price(0.0, 0.0)


class ModelCard(Value, frozen=True):
    """What a model is and can do, declared and not probed."""

    name: str
    placement: Placement
    context_window: int | None = None  # tokens; None: unknown
    max_output_tokens: int | None = None  # the most it writes; sent as max_tokens where the query names none
    price: Price | None = None  # None: unknown, which is not zero
    supports_logprobs: bool = False
    supports_tools: bool = False
    supports_json_schema: bool = False
    supports_json_object: bool | None = None  # JSON of any shape; None: as supports_json_schema
    supports_grammar: bool = False
    supports_choice: bool = False
    modalities: frozenset[Modality] = frozenset({"text"})
    passes_extra: bool = False  # takes SamplingOptions.extra
    is_recording: bool = False  # replays recorded answers

    def output_bound(self, query: Query) -> int | None:
        """The most tokens that an answer to `query` may have; None: nobody knows."""
        asked, own = query.sampling.max_tokens, self.max_output_tokens
        if asked is None or own is None:
            return own if asked is None else asked
        return min(asked, own)

    def cost_bound_usd(self, query: Query) -> float | None:
        """The most that an answer to `query` may cost; None where the price or the output's length is unknown.

        A prompt has at most one token per UTF-8 byte under every byte-level tokenizer, so the bound holds
        whatever the provider's tokenizer is.
        """
        if self.price == FREE:
            return 0.0
        output_tokens = self.output_bound(query)
        if self.price is None or output_tokens is None:
            return None
        return self.price.cost_usd(Usage(prompt_token_bound(query), output_tokens))

    def unmet(self, query: Query) -> dict[str, str]:
        """What `query` asks for and the model cannot do: the option at fault, and why in words."""
        unmet: dict[str, str] = {}
        shape, sampling = query.response_format, query.sampling
        if query.tools and not self.supports_tools:
            unmet["tools"] = "takes no tools"
        if shape is not None and (flaw := self._unmet_shape(shape)):
            unmet["response_format"] = flaw
        if sampling.logprobs and not self.supports_logprobs:
            unmet["logprobs"] = "gives no log-probabilities"
        if sampling.extra and not self.passes_extra:
            unmet |= {name: f"does not know the option {name!r}" for name in sampling.extra}
        if missing := query.modalities - self.modalities:
            unmet["messages"] = f"takes no {' or '.join(sorted(missing))}"
        return unmet

    def _unmet_shape(self, shape: ResponseFormat) -> str | None:
        if shape.kind == "json_schema" and not self.supports_json_schema:
            return "cannot be held to a JSON schema"
        takes_json = self.supports_json_schema if self.supports_json_object is None else self.supports_json_object
        if shape.kind == "json_object" and not takes_json:
            return "cannot be held to JSON without a schema"
        if shape.kind == "grammar" and not self.supports_grammar:
            return "cannot be held to a grammar"
        if shape.kind == "choice" and not self.supports_choice:
            return "cannot be held to one of several texts"
        return None


#: Tokens that a chat template adds around a message (ChatML: 5) or a request, rounded up.
_TEMPLATE_TOKENS = 16


def prompt_token_bound(query: Query) -> int:
    """The most tokens that the query's prompt may have: one per UTF-8 byte, and the chat template's."""
    total = _TEMPLATE_TOKENS
    for message in query.messages:
        total += len(message.text.encode()) + _TEMPLATE_TOKENS
        for call in message.tool_calls:
            total += len(call.name.encode()) + len(call.arguments.encode()) + _TEMPLATE_TOKENS
    for tool in query.tools:
        total += len(f"{tool.name}{tool.description}{tool.parameters}".encode()) + 4 * _TEMPLATE_TOKENS
    if query.response_format and query.response_format.schema:
        total += len(str(query.response_format.schema).encode()) + _TEMPLATE_TOKENS
    return total


def estimate_tokens(text: str) -> int:
    """About how many tokens `text` has: a quarter of its UTF-8 bytes, rounded up, the usual figure for English."""
    return -(-len(text.encode()) // 4)


class ChatModel(Protocol):
    """Anything that can answer a query.

    The contract, tested by `tests/contracts/chat_model.py` on every implementation:
    - the deltas of a stream, joined, are the final answer's text, reasoning and tool calls, and `StreamEnd` is last;
    - an option that the model cannot honour raises `UnsupportedOption`, never passes in silence;
    - every failure is an `UpstreamError` whose `model` is the card's name;
    - cancelling `complete`, or closing the stream's generator, stops the work and frees what it held;
    - many calls may run at once.
    """

    @property
    def card(self) -> ModelCard: ...

    async def complete(self, query: Query) -> Answer:
        """The whole answer."""
        ...

    def stream(self, query: Query) -> AsyncGenerator[StreamEvent, None]:
        """The answer piece by piece."""
        ...

    def unavailable(self) -> str | None:
        """Why the model can take no query just now (an open breaker, weights not there); None: it can."""
        ...

    async def aclose(self) -> None:
        """Frees connections, threads and memory. Twice is fine."""
        ...


# --- text as vectors -------------------------------------------------------------------------------------------------


class Embedder(Protocol):
    """Turns texts into vectors whose products are similarities."""

    @property
    def name(self) -> str:
        """Which model, and which version of it: what was fitted on one embedder's vectors holds for no other's."""
        ...

    @property
    def dim(self) -> int:
        """Length of a vector."""
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[float32]:
        """One row per text, of length 1 (all zeros where the text has no known word), so that products are cosines."""
        ...

    def embed_queries(self, texts: Sequence[str]) -> NDArray[float32]:
        """As `embed`, of texts that search: some models want another prompt for them."""
        ...


# --- retrieval -------------------------------------------------------------------------------------------------------


class Chunk(Value, frozen=True):
    """A passage of a document, and where it stands in it.

    `start` and `end` count characters of the document's text as it was read (the extracted text of a PDF, the file's
    own text of everything else), so that a person can find the passage again.
    """

    text: str
    source: str = ""  # the document: a path, a URL or a name; what deletion and attribution go by
    start: int = 0
    end: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)  # line, page, title, heading …; plain JSON values
    id: str = ""  # given or made of the source, the place and the text: the same passage has the same id

    def __post_init__(self) -> None:
        if not self.id:
            made = hashlib.sha256(f"{self.source}\0{self.start}\0{self.text}".encode(errors="surrogatepass"))
            force_setattr(self, "id", made.hexdigest()[:32])

    @property
    def sha256(self) -> str:
        """Of the text alone."""
        return hashlib.sha256(self.text.encode(errors="surrogatepass")).hexdigest()


class Hit(Value, frozen=True):
    """A chunk that was found, and what speaks for it."""

    chunk: Chunk
    score: float  # higher is better; comparable within one result alone
    signals: Signals = field(default_factory=dict)  # bm25, cosine, bm25_rank, cosine_rank …


#: What a chunk's metadata must say: a field's value, or a sequence of values any of which will do. The field "source"
#: is the chunk's source; one that ends in "*" matches every source that begins so.
Filter: TypeAlias = Mapping[str, Any]


class Retriever(Protocol):
    """Finds the chunks that bear on a query.

    The contract, tested by `tests/contracts/retriever.py` on every implementation:
    - at most `k` hits, best first, each chunk once; ties keep a fixed order;
    - every hit satisfies `filter`, and a filter costs no hit that satisfies it;
    - it may be called from several threads at once.
    """

    def search(self, query: str, *, k: int = 10, filter: Filter | None = None) -> list[Hit]: ...  # noqa: A002


class Reranker(Protocol):
    """Says how well passages answer a query."""

    def scores(self, query: str, texts: Sequence[str]) -> Sequence[float]:
        """One score per text, higher is better."""
        ...


# --- memory ----------------------------------------------------------------------------------------------------------


class Scope(Value, frozen=True):
    """Whose memory it is: what is learned in one scope is never told in another."""

    user: str = ""  # "": nobody in particular
    policy: str = ""  # the cascade and the policy that answered: another policy makes another promise
    privacy: Literal["any", "near"] = "any"


class Memo(Value, frozen=True):
    """A question that was answered, and what the answer rests on."""

    question: str
    answer: str
    model: str = ""  # who answered
    sources: Mapping[str, str] = field(default_factory=dict)  # source → the version of it that was read
    decision_id: str | None = None


class Recollection(Value, frozen=True):
    """A memo that answers a question which is near enough to its own."""

    memo: Memo
    score: float  # how sure it is that both ask the same, in [0, 1]
    threshold: float  # what the score had to reach
    is_calibrated: bool  # whether the threshold was fitted to observed outcomes
    age_s: float


class Memory(Protocol):
    """Answers given before. The contract, tested by `tests/contracts/memory.py` on every implementation:

    - nothing crosses a scope;
    - what has expired, was forgotten, or rests on a source that changed is never recalled;
    - a memo that was remembered is recalled by the very same question until then.
    """

    async def recall(self, question: str, scope: Scope) -> Recollection | None:
        """What answers the question, if anything is near enough."""
        ...

    async def remember(self, memo: Memo, scope: Scope) -> None:
        """Keeps the memo; a later one to the same question takes its place."""
        ...


class ErrorCase(Value, frozen=True):
    """A query that a model got wrong."""

    question: str
    wrong: str  # what the model said
    right: str  # what would have been right
    reason: str = ""  # why it went wrong, in words
    model: str = ""  # who erred


class ErrorCases(Protocol):
    """Past mistakes, by likeness of their questions."""

    async def similar(self, question: str, k: int) -> Sequence[tuple[ErrorCase, float]]:
        """At most `k` cases with the cosine of their questions to this one, likest first."""
        ...


class Library(Protocol):
    """Puts passages before queries that name a collection."""

    async def ground(self, query: Query) -> tuple[Query, Sequence[Mapping[str, Any]]]:
        """The query with numbered passages of `query.docs` before its question, and the passages as plain JSON values.

        Raises:
            RequestError: there is no such collection, or the query has no text to search for.
        """
        ...


# --- decisions -------------------------------------------------------------------------------------------------------


class Candidate(Value, frozen=True, omit_defaults=True):
    """A tier that was thought of, and what became of it before any call."""

    tier: str
    model: str
    placement: Placement
    is_eligible: bool
    reason: str  # why it was dropped; "" where eligible
    cost_bound_usd: float | None = None
    param: str | None = None  # the query's field that it was dropped for, where there is one


Verdict: TypeAlias = Literal["accepted", "deferred", "failed", "cancelled"]


class SignalCost(Value, frozen=True, omit_defaults=True):
    """What a signal took that is not free, besides the answer itself."""

    name: str
    calls: int
    usage: Usage | None = None  # of those calls that told
    cost_usd: float | None = 0.0  # None: unknown
    is_cost_estimated: bool = False
    latency_s: float = 0.0
    missing: str | None = None  # why there is no such signal; None: there is


class Step(Value, frozen=True, omit_defaults=True):
    """One try of one tier."""

    tier: str
    model: str
    placement: Placement
    verdict: Verdict
    reason: str  # in words, with the numbers
    score: float | None = None  # in [0, 1]
    threshold: float | None = None
    is_calibrated: bool = False
    signals: Signals = field(default_factory=dict)
    usage: Usage | None = None
    cost_usd: float | None = None  # None: unknown
    is_cost_estimated: bool = False
    latency_s: float = 0.0
    first_token_s: float | None = None  # from the start of the try
    is_cached: bool = False
    text: str = ""  # what the tier said
    signal_costs: tuple[SignalCost, ...] = ()  # part of cost_usd and latency_s, not of usage


class Routing(Value, frozen=True, omit_defaults=True):
    """Which tier a predictive router, or a bandit, chose before any call."""

    by: str  # whose choice, and which version of it
    tier: str  # the chosen one
    propensity: float  # probability with which it was chosen, in (0, 1]
    propensities: Mapping[str, float]  # of every tier that it could have chosen
    score: float | None = None  # of a router: expected gain of the stronger model
    threshold: float | None = None
    signals: Signals = field(default_factory=dict)  # of the query, which a bandit learns from
    reason: str = ""  # in words
    probabilities: Mapping[str, float] = field(default_factory=dict)  # of each worker, as a model named it by a token
    rewritten: str | None = None  # what the tier is asked in place of the query's last message
    costs: tuple[SignalCost, ...] = ()  # of the calls that the choice took; part of the decision's cost


class Departure(Value, frozen=True):
    """What was sent to a far model."""

    model: str
    messages: int
    characters: int
    sha256: str  # of the messages' text, so that a redacted record still proves what left


Status: TypeAlias = Literal["answered", "abstained", "refused", "failed", "cancelled"]
DecisionReason: TypeAlias = Literal[
    "confident",  # the score reached the threshold
    "last_tier",  # nobody further to ask
    "remembered",  # a memory holds the answer to a question that asks the same
    "abstained_early",  # so unsure that no further tier was asked
    "named",  # the query named this model
    "out_of_budget",
    "out_of_time",
    "upstream_failed",  # a later tier failed; the best earlier answer was given
    "no_tier",  # nobody may or can take it
    "cancelled",
]


class Decision(Value, frozen=True, omit_defaults=True):
    """Why a query ended where it did; one per query, written before the answer is complete."""

    id: str
    created_at: float  # Unix time in seconds
    status: Status
    reason: DecisionReason
    door: str  # python, cli, http, batch
    target: str  # the model or cascade that the query named
    tier: str | None  # the tier that gave the answer
    model: str | None
    score: float | None  # in [0, 1]
    threshold: float | None
    is_calibrated: bool
    policy: str  # name@version, or "uncalibrated"
    propensity: float  # probability with which the policy chose this path
    candidates: tuple[Candidate, ...]
    steps: tuple[Step, ...]
    departures: tuple[Departure, ...]  # what left the machine
    cost_usd: float | None  # None: a step's cost is unknown
    is_cost_estimated: bool
    latency_s: Mapping[str, float]  # by stage: plan, tier names, total
    request: Mapping[str, Any]  # the query as plain JSON values, without its defaults: enough to ask it again
    error: str | None = None
    routing: Routing | None = None  # None: the tiers were tried in the cascade's order

    @property
    def escalations(self) -> int:
        """How many tiers were tried and did not give the answer."""
        return max(0, len(self.steps) - 1)


class DecisionLog(Protocol):
    """Where decisions are written."""

    def submit(self, decision: Decision) -> None:
        """Queues the record; never blocks. The record survives the process once `flush` has returned."""
        ...

    async def flush(self) -> None:
        """Waits until everything submitted so far is written.

        Raises:
            DataError: the store cannot be written (full disk, read-only).
        """
        ...


# --- scoring ---------------------------------------------------------------------------------------------------------


class Scorer(Protocol):
    """Turns signals into the probability that the answer is good enough."""

    @property
    def is_calibrated(self) -> bool:
        """Whether the scores were fitted to observed outcomes."""
        ...

    def score(self, signals: Signals) -> float | None:
        """A score in [0, 1]; None where the signals that it needs are missing."""
        ...


class Threshold(Value, frozen=True):
    """What a threshold fitter found."""

    value: float | None  # accept where score ≥ value; None: nothing may be accepted
    n: int  # labelled outcomes used
    coverage: float  # share of them accepted
    accepted_accuracy: float | None  # among the accepted; None where none is
    guarantee: Mapping[str, Any] | None = None  # what is promised, with which confidence; None: nothing


class ThresholdFitter(Protocol):
    """Fits a threshold, and the guarantee that it carries, to scores and outcomes."""

    def fit(self, scores: Sequence[float], outcomes: Sequence[float]) -> Threshold: ...
