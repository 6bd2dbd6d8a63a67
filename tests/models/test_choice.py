"""A choice among texts, on the real embedded model and on the OpenAI wire."""

import json
from collections.abc import AsyncIterator
from math import exp

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from support.weights import smollm2_path

from nearfar.errors import RequestError, UnsupportedOption
from nearfar.models import gbnf
from nearfar.models.llama_cpp import LlamaCppModel
from nearfar.models.openai_wire import OpenAIWireModel
from nearfar.types import ModelCard, Query, ResponseFormat, SamplingOptions, ToolSpec

LETTERS = ("A", "B", "C", "D")


def choosing(*choices: str, logprobs: bool = True) -> Query:
    """A query whose answer is one of `choices`, in one token."""
    return Query(
        "Which letter comes first?",
        response_format=ResponseFormat("choice", choices=choices),
        sampling=SamplingOptions(max_tokens=1, logprobs=logprobs),
    )


@pytest.fixture(scope="module")
def embedded() -> LlamaCppModel:
    """The embedded model; tests of this module share its memory."""
    return LlamaCppModel(smollm2_path(), name="smollm2", context_window=512, parallel=1)


async def test_every_choice_has_a_probability_and_they_sum_to_one(embedded: LlamaCppModel) -> None:
    """The log-probabilities are those of the choices alone, unlikely ones included."""
    answer = await embedded.complete(choosing(*LETTERS))

    assert answer.text in LETTERS
    assert answer.logprobs is not None
    top = dict(answer.logprobs[0].top)
    assert set(top) == set(LETTERS)
    assert sum(map(exp, top.values())) == pytest.approx(1, abs=1e-4)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 1


async def test_a_choice_that_the_model_would_make_unasked_shows_the_others(embedded: LlamaCppModel) -> None:
    """llama.cpp skips the grammar where the first draw fits it; the other choices have their numbers all the same."""
    told = Query(
        "Say exactly this and nothing else: A",
        response_format=ResponseFormat("choice", choices=LETTERS),
        sampling=SamplingOptions(max_tokens=1, logprobs=True),
    )

    found = [(await embedded.complete(told)).logprobs for _ in range(8)]

    first = dict(found[0][0].top) if found[0] else {}
    assert set(first) == set(LETTERS)
    for logprobs in found:
        assert logprobs is not None
        assert dict(logprobs[0].top) == pytest.approx(first, abs=0.1)  # a cached prompt differs in the last bits


async def test_more_choices_than_the_wire_shows_alternatives(embedded: LlamaCppModel) -> None:
    """Thirty choices all have theirs, though a query may ask for twenty alternatives at most."""
    choices = [chr(ord("A") + i) for i in range(26)] + ["1", "2", "3", "4"]

    answer = await embedded.complete(choosing(*choices))

    assert answer.logprobs is not None
    assert {token for token, _ in answer.logprobs[0].top} == set(choices)


async def test_a_choice_without_logprobs_is_kept(embedded: LlamaCppModel) -> None:
    """The text is one of the choices, special characters and all."""
    choices = ('say "yes"', "não\\nada")

    answer = await embedded.complete(
        Query("?", response_format=ResponseFormat("choice", choices=choices), sampling=SamplingOptions(max_tokens=20))
    )

    assert answer.text in choices


@pytest.mark.parametrize("choices", [(), ("A", "")])
async def test_no_choices_or_an_empty_one_are_refused(embedded: LlamaCppModel, choices: tuple[str, ...]) -> None:
    """There has to be something to choose."""
    with pytest.raises(RequestError, match="texts to choose from"):
        await embedded.complete(choosing(*choices))


async def test_a_choice_beside_tools_is_refused(embedded: LlamaCppModel) -> None:
    """A call is none of the choices."""
    query = Query("?", tools=(ToolSpec("clock"),), response_format=ResponseFormat("choice", choices=LETTERS))

    with pytest.raises(UnsupportedOption, match="tools"):
        await embedded.complete(query)


def test_a_card_that_cannot_choose_says_so() -> None:
    """The option at fault is named."""
    assert "response_format" in ModelCard("plain", "far").unmet(choosing(*LETTERS))


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_any_texts_make_a_grammar(texts: list[str]) -> None:
    """Whatever the texts hold, quotes and line breaks too, the grammar is well formed."""
    gbnf.Grammar(gbnf.choice(texts))


@pytest.fixture
async def server() -> AsyncIterator[tuple[str, list[dict[str, object]]]]:
    """A server that notes what it is sent and answers "A"."""
    bodies: list[dict[str, object]] = []

    async def complete(request: web.Request) -> web.Response:
        bodies.append(json.loads(await request.read()))
        choice = {"index": 0, "message": {"role": "assistant", "content": "A"}, "finish_reason": "stop"}
        return web.json_response({"choices": [choice]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", bodies
    await runner.cleanup()


async def test_the_wire_tells_vllm_and_llama_cpp_of_the_choices(
    server: tuple[str, list[dict[str, object]]],
) -> None:
    """Both servers' own fields are sent; one that has neither is not asked."""
    url, bodies = server
    model = OpenAIWireModel(name="served", url=url, model="m", placement="near", supports_grammar=True)
    plain = OpenAIWireModel(name="plain", url=url, model="m", placement="near")

    answer = await model.complete(choosing("A", "B", logprobs=False))
    with pytest.raises(UnsupportedOption):
        await plain.complete(choosing("A", "B"))

    assert answer.text == "A"
    assert bodies == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "Which letter comes first?"}],
            "max_tokens": 1,
            "grammar": gbnf.choice(("A", "B")),
            "structured_outputs": {"choice": ["A", "B"]},
        }
    ]
    await model.aclose()
    await plain.aclose()
