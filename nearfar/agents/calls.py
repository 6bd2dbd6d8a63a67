"""Writes calls: chooses the tools that a request may need, has a model write the call, and lets only valid ones out.

A near model is held to the tools' schemas while it writes, so its calls are valid from the start. A far one may not be:
what it writes is checked, shown to it once with what is wrong, and then left to the next tier.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import exp
from typing import Any, Literal, TypeAlias

from nearfar.errors import ConfigError, RequestError, RoutingError, UpstreamError
from nearfar.models.grammar import Node, Repeated, completed, either, gbnf, sequence
from nearfar.models.tool_prompt import call_grammar
from nearfar.router.answer_span import tokens_in
from nearfar.types import (
    Answer,
    Message,
    NamedTool,
    Query,
    ResponseFormat,
    Retriever,
    Signals,
    TokenLogprob,
    ToolCall,
    ToolSpec,
)

from .call_checking import CallChecker
from .refusals import given, refused_for
from .types import Observation, Responder
from .untrusted import disarmed

Way: TypeAlias = Literal["tools", "grammar", "json_schema"]

#: What OpenAI's and Anthropic's APIs take as a tool's name.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9_-]+")

_MAX_CALLS = 8  # that one answer may hold

#: How a tier that is asked by tools is asked where it takes none, in order; and the fields that are then at fault.
_WAYS: tuple[Way, ...] = ("tools", "grammar", "json_schema")
_SHAPES = frozenset({"tools", "response_format"})

_NAME = re.compile(r'"name"\s*:\s*"')
_ARGUMENTS = re.compile(r'\s*,\s*"arguments"\s*:\s*')

_BY_SCHEMA = """\
You can call functions. They are, one JSON object per line:
{tools}
Write a JSON object {{"calls": [{{"name": "<function name>", "arguments": {{…}}}}]}} and nothing else.{none}"""
_NONE = ' Where no function helps, write {"calls": []}.'

_REPAIR = "That call is not valid: {problem}. Write it again, corrected."


@dataclass(frozen=True, slots=True)
class CallTier:
    """Who is asked for a call, and how.

    Attributes:
        model: a model's or a cascade's name.
        least_score: a call that is less sure goes to the next tier, if there is one; in [0, 1].
        asks_by: `tools`: as tools, which near models are held to; `grammar`: as an answer in a grammar of ours, for
            servers that keep grammars (vLLM): it takes no call that does not fit, where a server's own reading of a
            schema may, and what the token limit cuts off is finished; `json_schema`: as an answer of that shape, for
            servers that keep shapes alone. A model that takes no tools is asked by grammar, or else by schema.
        plain_names: give tools names that OpenAI's and Anthropic's APIs take, and translate back.
    """

    model: str
    least_score: float = 0.0
    asks_by: Way = "tools"
    plain_names: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.least_score <= 1:
            raise ConfigError(f"least_score of {self.model!r} is {self.least_score!r}. Set it within [0, 1]")


@dataclass(frozen=True, slots=True)
class WrittenCalls:
    """The calls that were written, how sure the writer is of them, and all that was asked for them.

    Attributes:
        calls: valid, each of them; none where no tool fits, or nobody could write a valid one.
        text: what the model said besides.
        score: geometric mean of the probabilities of the tokens of names and arguments, of the least sure call; 0 where
            the token limit cut it off, so that it was finished by rule; None: the model gives no log-probabilities.
        relevance: probability that the model, left free, would have begun a call; None: unknown.
        signals: `name_mean_logprob`, `name_min_logprob`, `arguments_mean_logprob`, `arguments_min_logprob` (natural
            logarithm, of the least sure call) and `call_logprob`, that of the marker before the first call.
        answers: of every model that was asked, in order.
        tier: whose calls these are.
        offered: the tools that were offered.
        problem: why there is no call, where one was due.
    """

    calls: tuple[ToolCall, ...] = ()
    text: str = ""
    score: float | None = None
    relevance: float | None = None
    signals: Signals = field(default_factory=dict)
    answers: tuple[Answer, ...] = ()
    tier: str | None = None
    offered: tuple[str, ...] = ()
    problem: Observation | None = None


class CallWriter:
    """Has calls written by one tier after another until one is valid and sure enough.

    Each tier writes; what is not valid is shown to it with the reason, `repairs` times; then the next tier is asked.
    The best valid call wins where none is sure enough. Where nobody writes a valid one, that is an observation.

    Whether any tool fits is the model's own choice where `least_relevance` is None; else a call is always written, and
    dropped if the probability of its opening marker, before the model was held to anything, is less than that.

    Args:
        responder: asks the models.
        tiers: who is asked, in order.
        finder: a tool index; its chunks' ids are tool names. None: all tools are offered.
        num_tools: how many tools are offered where there is a finder.
        least_relevance: in [0, 1]; only models that give log-probabilities have a relevance.
        repairs: how often a tier may correct what it wrote.

    Raises:
        ConfigError: there is no tier, or a number is out of range.
    """

    def __init__(
        self,
        responder: Responder,
        tiers: Sequence[CallTier | str],
        *,
        finder: Retriever | None = None,
        num_tools: int = 8,
        least_relevance: float | None = None,
        repairs: int = 1,
    ) -> None:
        if not tiers:
            raise ConfigError("a caller needs a model. Name one")
        if num_tools < 1 or repairs < 0:
            raise ConfigError(f"num_tools is {num_tools!r} and repairs {repairs!r}. Set them to 1 and 0 or more")
        self._responder = responder
        self._tiers = tuple(CallTier(tier) if isinstance(tier, str) else tier for tier in tiers)
        self._finder = finder
        self._num_tools = num_tools
        self._least_relevance = least_relevance
        self._repairs = repairs

    async def write(self, query: Query) -> WrittenCalls:
        """The calls that answer the query.

        Args:
            query: the conversation, all tools, and whether one must be called. Its `model` is not read.

        Raises:
            RequestError: the query itself is not acceptable.
            UpstreamError: every model that was asked failed.
            RoutingError: no model may take it.
        """
        tools = await self._offered(query)
        checker = CallChecker(tools)
        answers: list[Answer] = []
        best: WrittenCalls | None = None
        failure: UpstreamError | RoutingError | None = None
        problem = "the query has no tools" if not tools else "nobody wrote one"
        for tier in self._tiers if tools else ():
            try:
                found = await self._by_tier(tier, replace(query, tools=tools), checker, answers)
            except (UpstreamError, RoutingError) as exc:
                failure = exc
                continue
            if isinstance(found, str):
                problem = found
                continue
            if best is None or (found.score or 0.0) > (best.score or 0.0):
                best = found
            if found.score is None or found.score >= tier.least_score:
                best = found
                break
        if best is None and failure is not None and not answers:
            raise failure
        offered = tuple(tool.name for tool in tools)
        if best is None:
            best = WrittenCalls(problem=Observation(f"no valid call: {problem}", "invalid", attempts=0))
        return replace(best, answers=tuple(answers), offered=offered)

    # --- one tier ----------------------------------------------------------------------------------------------------

    async def _by_tier(
        self, tier: CallTier, query: Query, checker: CallChecker, answers: list[Answer]
    ) -> WrittenCalls | str:
        """What the tier writes, once it is valid; or what is wrong with the last that it wrote.

        A tier that takes no tools is held to the grammar of their calls, or else to their schema.
        """
        *first, last = _WAYS if tier.asks_by == "tools" else (tier.asks_by,)
        for way in first:
            found = await self._in_this_way(replace(tier, asks_by=way), query, checker, answers)
            if found is not None:
                return found
        found = await self._in_this_way(replace(tier, asks_by=last), query, checker, answers, is_last=True)
        assert found is not None  # the last way is refused with an error
        return found

    async def _in_this_way(
        self, tier: CallTier, query: Query, checker: CallChecker, answers: list[Answer], *, is_last: bool = False
    ) -> WrittenCalls | str | None:
        """The same, asked by one way; None: the tier cannot be asked so, and it is not the last."""
        aliases = _aliases(query.tools) if tier.plain_names else {}
        by_alias = {alias: name for name, alias in aliases.items()}
        asked, grammar = _asked(tier, self._forced(query), aliases)
        problem = ""
        for _ in range(1 + self._repairs):
            answer = await self._answer(asked)
            if not is_last and refused_for(answer) & _SHAPES:
                return None
            answers.append(given(answer, "write the call"))
            if grammar is not None:
                answer = _finished(answer, grammar)
            calls, text = _calls(tier, answer, by_alias)
            problems = [found for call in calls if (found := checker.problem(call))]
            if not calls and _must_call(query):
                problems = [f"no function was called, but this was written: {text[:200]!r}"]
            if not problems:
                return self._judged(tier, query, answer, calls, text)
            problem = problems[0]
            asked = replace(asked, prompt=(*asked.messages, *_correction(answer, problem)))
        return problem

    async def _answer(self, query: Query) -> Answer:
        """The model's answer, with log-probabilities where it gives them; or the refusal."""
        try:
            with_logprobs = replace(query, sampling=replace(query.sampling, logprobs=True))
            answer = await self._responder.answer(with_logprobs, door="agent")
        except RequestError as exc:
            if exc.param not in ("logprobs", "top_logprobs"):
                raise
            answer = await self._responder.answer(query, door="agent")
        if "logprobs" in refused_for(answer):
            answer = await self._responder.answer(query, door="agent")
        return answer

    def _judged(
        self, tier: CallTier, query: Query, answer: Answer, calls: tuple[ToolCall, ...], text: str
    ) -> WrittenCalls:
        signals = call_signals(answer)
        relevance = exp(signals["call_logprob"]) if "call_logprob" in signals else None
        sure = 0.0 if answer.signals.get("finished_characters") else call_score(signals)
        least = self._least_relevance
        if least is not None and relevance is not None and relevance < least and not _must_call(query):
            calls = ()
        return WrittenCalls(calls, text, sure, relevance, signals, tier=tier.model)

    def _forced(self, query: Query) -> Query:
        """The query as it is asked: where a threshold decides on relevance, a call is always written."""
        if self._least_relevance is not None and query.tool_choice in (None, "auto"):
            return replace(query, tool_choice="required")
        return query

    async def _offered(self, query: Query) -> tuple[ToolSpec, ...]:
        """The tools that may be called, best first; all of them where nothing tells which fit."""
        if isinstance(query.tool_choice, NamedTool) or self._finder is None or len(query.tools) <= self._num_tools:
            return query.tools
        by_name = {tool.name: tool for tool in query.tools}
        # the index may hold other tools too: ask for enough that these are among what it finds
        hits = await asyncio.to_thread(self._finder.search, query.text, k=max(self._num_tools, len(query.tools)))
        found = [by_name[hit.chunk.id] for hit in hits if hit.chunk.id in by_name][: self._num_tools]
        rest = [tool for tool in query.tools if tool not in found]
        return tuple(found + rest[: self._num_tools - len(found)])


# --- how sure --------------------------------------------------------------------------------------------------------


def call_signals(answer: Answer) -> dict[str, float]:
    """What the log-probabilities tell of the answer's calls; see `WrittenCalls.signals`. Nothing without any.

    A model's own log-probabilities, from before it was held to anything, tell how far it had to be held: a name that it
    would never have written shows.
    """
    if not answer.logprobs:
        return {}
    whole = "".join(token.token for token in answer.logprobs)
    spans = _spans(whole)
    if not spans:
        return {}
    each: list[dict[str, float]] = []
    for name, arguments in spans:
        signals = {
            **_summed("name", tokens_in(whole, answer.logprobs, *name)),
            **_summed("arguments", tokens_in(whole, answer.logprobs, *arguments)),
        }
        each.append(signals)
    least = min(each, key=lambda signals: call_score(signals) or 0.0)
    before = whole.rfind("{", 0, spans[0][0][0])
    marker = tokens_in(whole, answer.logprobs, 0, max(0, before))
    if marker:
        least["call_logprob"] = sum(token.logprob for token in marker)
    return least


def call_score(signals: Signals) -> float | None:
    """The geometric mean of the probabilities of a call's tokens, its name's and its arguments' weighed alike."""
    means = [signals[key] for key in ("name_mean_logprob", "arguments_mean_logprob") if key in signals]
    return exp(sum(means) / len(means)) if means else None


def _summed(prefix: str, tokens: Sequence[TokenLogprob]) -> dict[str, float]:
    if not tokens:
        return {}
    values = [token.logprob for token in tokens]
    return {f"{prefix}_mean_logprob": sum(values) / len(values), f"{prefix}_min_logprob": min(values)}


def _spans(whole: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where the names and the arguments of the calls stand in what the model wrote."""
    spans = []
    decoder = json.JSONDecoder()
    at = 0
    while match := _NAME.search(whole, at):
        at = match.end()
        try:
            _, name_end = decoder.raw_decode(whole, at - 1)
            between = _ARGUMENTS.match(whole, name_end)
            if between is None:
                continue
            _, end = decoder.raw_decode(whole, between.end())
        except ValueError:
            break
        spans.append(((match.end(), name_end - 1), (between.end(), end)))
        at = end
    return spans


# --- how it is asked and read ----------------------------------------------------------------------------------------


def calls_schema(tools: Sequence[ToolSpec], *, least: int = 1, most: int = 1) -> dict[str, Any]:
    """A JSON Schema of `{"calls": [{"name": …, "arguments": …}]}` with calls of these tools.

    Each tool's parameters are a definition of their own, and what they refer to is found there.
    """
    definitions: dict[str, Any] = {}
    options = []
    for i, tool in enumerate(tools):
        where = f"#/$defs/tool{i}"
        parameters = dict(tool.parameters) or {"type": "object", "properties": {}, "additionalProperties": False}
        definitions[f"tool{i}"] = _moved(parameters, where)
        options.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": {"$ref": where}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    items = options[0] if len(options) == 1 else {"anyOf": options}
    return {
        "type": "object",
        "properties": {"calls": {"type": "array", "items": items, "minItems": least, "maxItems": most}},
        "required": ["calls"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def calls_grammar(tools: Sequence[ToolSpec], *, least: int = 1, most: int = 1) -> Node:
    """The same JSON as a grammar, which takes no call that does not fit its tool's schema.

    Raises:
        RequestError: a tool's schema cannot be kept to; the message says which and why.
    """
    call = call_grammar(tools)
    more = [Repeated(sequence(", ", call), 0, most - 1)] if most > 1 else []
    some = sequence('{"calls": [', call, *more, "]}")
    return some if least else either(['{"calls": []}', some])


def _finished(answer: Answer, grammar: Node) -> Answer:
    """The answer, finished in the shortest way where the token limit cut it off; as it is where it left the grammar."""
    text, taken = completed(grammar, answer.text)
    if taken < len(answer.text) or text == answer.text:
        return answer
    return replace(answer, text=text, signals={**answer.signals, "finished_characters": float(len(text) - taken)})


def _moved(schema: Any, where: str) -> Any:
    """The schema with its references to itself pointing below `where`."""
    if isinstance(schema, Mapping):
        return {
            key: f"{where}{value[1:]}"
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, where)
            for key, value in schema.items()
            if key not in ("$schema", "$id")
        }
    return [_moved(item, where) for item in schema] if isinstance(schema, list | tuple) else schema


def _asked(tier: CallTier, query: Query, aliases: Mapping[str, str]) -> tuple[Query, Node | None]:
    """The query in the tier's way, and the grammar that it holds the answer to, where that is ours."""
    tools = tuple(replace(tool, name=aliases.get(tool.name, tool.name)) for tool in query.tools)
    choice = query.tool_choice
    if isinstance(choice, NamedTool):
        choice = NamedTool(aliases.get(choice.name, choice.name))
    query = replace(query, model=tier.model, tools=tools, tool_choice=choice)
    if tier.asks_by == "tools":
        return query, None
    if isinstance(choice, NamedTool):
        tools = tuple(tool for tool in tools if tool.name == choice.name)
    must = _must_call(query)
    most = _MAX_CALLS if query.parallel_tool_calls else 1
    lines = [
        json.dumps(
            {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)},
            ensure_ascii=False,
        )
        for tool in tools
    ]
    prompt = _BY_SCHEMA.format(tools="\n".join(lines), none="" if must else _NONE)
    least = 1 if must else 0
    grammar = calls_grammar(tools, least=least, most=most) if tier.asks_by == "grammar" else None
    form = (
        ResponseFormat("json_schema", schema=calls_schema(tools, least=least, most=most), name="calls")
        if grammar is None
        else ResponseFormat("grammar", grammar=gbnf(grammar))
    )
    return replace(
        query,
        prompt=(Message("system", prompt), *_without_calls(query.messages)),
        tools=(),
        tool_choice=None,
        parallel_tool_calls=None,
        response_format=form,
    ), grammar


def _without_calls(messages: Sequence[Message]) -> list[Message]:
    """The conversation with its calls and their results as text: a server that is told of no tools takes neither."""
    turns = []
    for message in messages:
        if message.role == "tool":
            turns.append(Message("user", f"The function gave: {message.text}"))
        elif message.tool_calls:
            told = json.dumps({"calls": [_plain(call) for call in message.tool_calls]}, ensure_ascii=False)
            turns.append(Message("assistant", "\n".join(part for part in (message.text, told) if part)))
        else:
            turns.append(message)
    return turns


def _plain(call: ToolCall) -> dict[str, Any]:
    try:
        return {"name": call.name, "arguments": json.loads(call.arguments or "{}")}
    except ValueError:
        return {"name": call.name, "arguments": call.arguments}


def _calls(tier: CallTier, answer: Answer, by_alias: Mapping[str, str]) -> tuple[tuple[ToolCall, ...], str]:
    """The calls in the answer, by the tools' own names, and its text."""
    if tier.asks_by == "tools":
        calls = tuple(replace(call, name=by_alias.get(call.name, call.name)) for call in answer.tool_calls)
        return calls, answer.text
    try:
        value = json.loads(answer.text)
    except (ValueError, RecursionError):
        return (), answer.text
    found = value.get("calls") if isinstance(value, dict) else None
    if not isinstance(found, list):
        return (), answer.text
    calls = tuple(
        ToolCall(
            f"call_{secrets.token_hex(12)}",
            by_alias.get(name := str(call.get("name", "")), name),
            json.dumps(call.get("arguments", {}), ensure_ascii=False),
        )
        for call in found
        if isinstance(call, dict)
    )
    return calls, ""


def _must_call(query: Query) -> bool:
    return query.tool_choice == "required" or isinstance(query.tool_choice, NamedTool)


def _correction(answer: Answer, problem: str) -> tuple[Message, Message]:
    """What was written, and what is wrong with it; a schema's words may be from outside, so they are disarmed."""
    told = "\n".join(f"{call.name} {call.arguments}" for call in answer.tool_calls)
    wrote = "\n".join(part for part in (answer.text, told) if part) or "(nothing)"
    return Message("assistant", disarmed(wrote)), Message("user", _REPAIR.format(problem=disarmed(problem)))


def _aliases(tools: Sequence[ToolSpec]) -> dict[str, str]:
    """Plain names for the tools that have others, each its own."""
    taken = {tool.name for tool in tools if _PLAIN_NAME.fullmatch(tool.name)}
    aliases: dict[str, str] = {}
    for tool in tools:
        if _PLAIN_NAME.fullmatch(tool.name):
            continue
        number = hashlib.sha256(tool.name.encode()).hexdigest()
        plain = _NOT_PLAIN.sub("_", tool.name)[:50].strip("_")
        alias = plain if plain and plain not in taken else f"{plain or 'tool'}_{number[:8]}"
        taken.add(alias)
        aliases[tool.name] = alias
    return aliases
