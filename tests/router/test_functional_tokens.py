"""Functional tokens: what one token says of the labels, calibrated, and who is chosen."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from math import exp, log
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.weights import smollm2_path

from nearfar.errors import ConfigError, DataError, UpstreamUnavailable
from nearfar.models.llama_cpp import LlamaCppModel
from nearfar.router.functional_tokens.chooser import FunctionalTokens
from nearfar.router.functional_tokens.distribution import (
    LabelCalibration,
    LabelLogprobs,
    contextual,
    distribution,
    read,
)
from nearfar.router.functional_tokens.fitting import MIN_QUERIES, accuracy, fit_calibration
from nearfar.router.functional_tokens.graph import Worker, WorkerGraph, free_labels
from nearfar.router.functional_tokens.policy import TokenPolicy, prompt_sha256
from nearfar.router.functional_tokens.prompts import CONTENT_FREE, HEAD, TAIL, choice_prompt, excerpt
from nearfar.testing import ScriptedModel
from nearfar.types import Answer, ModelCard, Query, TokenLogprob, Usage

LABELS = ("A", "B", "C")
CARD = ModelCard("chooser", "near", supports_logprobs=True, supports_choice=True)
WIRE = replace(CARD, supports_choice=False)

logprob_rows = st.lists(st.floats(-30, 0), min_size=3, max_size=3).map(lambda row: dict(zip(LABELS, row, strict=True)))


def graph(**successors: tuple[str, ...]) -> WorkerGraph:
    """Three workers; `general` takes what nobody is sure of."""
    names = ("general", "code", "math")
    return WorkerGraph(
        tuple(
            Worker(name, f"queries about {name}", label, successors.get(name, ()))
            for name, label in zip(names, LABELS, strict=True)
        ),
        "general",
    )


def saying(shares: Mapping[str, float]) -> Answer:
    """An answer of one token with these probabilities among its alternatives."""
    top = tuple(sorted(((token, log(p)) for token, p in shares.items()), key=lambda pair: -pair[1]))
    return Answer(top[0][0], logprobs=(TokenLogprob(*top[0], top=top),), usage=Usage(20, 1), cost_usd=0.0)


def chooser(*answers: Answer | BaseException, card: ModelCard = CARD, **options: object) -> FunctionalTokens:
    """A router whose model is flat on content-free input and then says `answers`."""
    flat = [saying(dict.fromkeys(LABELS, 1 / 3))] * len(CONTENT_FREE)
    return FunctionalTokens(ScriptedModel([*flat, *answers], card=card), graph(), **options)  # type: ignore[arg-type]


# --- the distribution ------------------------------------------------------------------------------------------------


@given(logprob_rows, st.floats(0.1, 5), logprob_rows)
def test_probabilities_sum_to_one_and_keep_their_order(
    row: dict[str, float], scale: float, bias: dict[str, float]
) -> None:
    """Whatever the correction, a distribution over labels that are all known is one."""
    plain = distribution(LabelLogprobs(row))
    corrected = distribution(LabelLogprobs(row), LabelCalibration(scale, bias))

    assert sum(plain.probabilities.values()) == pytest.approx(1)
    assert sum(corrected.probabilities.values()) == pytest.approx(1)
    assert plain.best is not None
    assert row[plain.best] == pytest.approx(max(row.values()), abs=1e-9)
    assert plain.doubt is None


@given(logprob_rows)
def test_the_measure_of_the_tokens_does_not_matter(row: dict[str, float]) -> None:
    """Probabilities among all tokens and among the labels alone, as servers give them, make one distribution."""
    total = log(sum(map(exp, row.values())))
    constrained = {label: value - total for label, value in row.items()}

    for label, p in distribution(LabelLogprobs(row)).probabilities.items():
        assert distribution(LabelLogprobs(constrained)).probabilities[label] == pytest.approx(p, abs=1e-9)


def test_a_label_that_is_not_shown_is_unknown_and_not_zero() -> None:
    """It may have as much as the least likely alternative that is shown, and no more than what those leave."""
    token = TokenLogprob("A", log(0.6), (("A", log(0.6)), ("the", log(0.2)), ("B", log(0.1))))

    found = read(token, LABELS)
    shares = distribution(found)

    assert found.unknown == ("C",)
    assert exp(found.ceiling) == pytest.approx(0.1)
    assert shares.probabilities["A"] == pytest.approx(0.6 / 0.8)  # less than 0.6 / 0.7, which holds if C has nothing
    assert shares.at_most["C"] == pytest.approx(0.1 / 0.8)
    assert shares.best == "A"
    assert shares.doubt is None


def test_what_the_shown_tokens_leave_bounds_the_unknown_ones() -> None:
    """Three tokens with 99.9 % leave a thousandth, however likely the least of them is."""
    token = TokenLogprob("A", log(0.4), (("A", log(0.4)), ("B", log(0.4)), ("x", log(0.199))))

    assert exp(read(token, LABELS).ceiling) == pytest.approx(0.001)


def test_masked_tokens_of_vllm_are_no_probabilities() -> None:
    """Under a constraint vLLM fills the list with tokens at -9999."""
    token = TokenLogprob("A", log(0.9), (("A", log(0.9)), ("B", log(0.06)), ("C", log(0.04)), ("!", -9999.0)))

    assert read(token, LABELS).unknown == ()


@given(st.lists(st.floats(0.01, 1), min_size=4, max_size=4), st.integers(1, 3))
def test_a_shorter_list_never_says_more_than_a_longer_one(weights: list[float], shown: int) -> None:
    """The least that a known label has is at most what it really has, and an unknown one's most is at least that."""
    labels = ("A", "B", "C", "D")
    total = sum(weights)
    top = sorted(((label, log(w / total)) for label, w in zip(labels, weights, strict=True)), key=lambda pair: -pair[1])
    truth = distribution(LabelLogprobs(dict(top))).probabilities

    partly = distribution(read(TokenLogprob(*top[0], top=tuple(top[:shown])), labels))

    for label, p in partly.probabilities.items():
        assert p <= truth[label] + 1e-9
    for label in partly.at_most:
        assert label not in partly.probabilities
    assert partly.best == top[0][0]


def test_contextual_calibration_takes_the_bias_away() -> None:
    """A query that says no more than content-free input gets every label with the same probability."""
    biased = {"A": log(0.8), "B": log(0.15), "C": log(0.05)}

    calibration = contextual([LabelLogprobs(biased)] * 3, LABELS)
    shares = distribution(LabelLogprobs(biased), calibration)

    assert all(p == pytest.approx(1 / 3) for p in shares.probabilities.values())
    assert distribution(LabelLogprobs(biased | {"B": log(0.2)}), calibration).best == "B"


# --- fitting ---------------------------------------------------------------------------------------------------------


def labelled(n: int) -> tuple[list[LabelLogprobs], list[str]]:
    """Rows of a model that prefers A by three nats and otherwise knows."""
    wanted = [LABELS[i % 3] for i in range(n)]
    rows = [
        LabelLogprobs({label: -2.0 + 3 * (label == "A") + 1.0 * (label == right) for label in LABELS})
        for right in wanted
    ]
    return rows, wanted


def test_labels_undo_a_preference() -> None:
    """A model that always says A and yet tells the workers apart is right once its bias is fitted."""
    rows, wanted = labelled(90)

    fitted = fit_calibration(rows, LABELS, wanted, start=LabelCalibration())

    assert accuracy(rows, wanted, None) == pytest.approx(1 / 3)
    assert accuracy(rows, wanted, fitted) == 1
    assert fitted.bias["A"] < fitted.bias["B"] - 2


def test_a_label_that_was_never_seen_stays_where_it_was() -> None:
    """Queries of two workers say little of the third: its bias moves away from neither side without a reason."""
    rows, wanted = labelled(99)
    two = [(row, right) for row, right in zip(rows, wanted, strict=True) if right != "C"]
    start = LabelCalibration(1.0, {"C": -4.0})

    fitted = fit_calibration([row for row, _ in two], LABELS, [right for _, right in two], start=start)

    assert fitted.bias["C"] <= -3.5


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["A"] * (MIN_QUERIES - 1), "needs 50 or more"),
        (["A"] * MIN_QUERIES, "All labelled queries"),
        (["A", "Z"] * MIN_QUERIES, "no worker's"),
    ],
)
def test_labels_that_cannot_be_fitted_on_are_refused(wanted: list[str], message: str) -> None:
    """Too few, of one worker alone, or of nobody."""
    rows = [LabelLogprobs(dict.fromkeys(LABELS, -1.0))] * len(wanted)

    with pytest.raises(DataError, match=message):
        fit_calibration(rows, LABELS, wanted, start=LabelCalibration())


# --- the graph -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "general", "message"),
    [
        ([Worker("a", "does", "A")], "a", "name two or more"),
        ([Worker("a", "does", "A"), Worker("a", "does", "B")], "a", "two workers have the name 'a'"),
        ([Worker("a", "does", "A"), Worker("b", "does", "A")], "a", "two workers have the label 'A'"),
        ([Worker("a", "does", "A"), Worker("b", " ", "B")], "a", "'b' has no description"),
        ([Worker("a", "does", "A"), Worker("b", "does", "")], "a", "empty label"),
        ([Worker("a", "does", "A", ("c",)), Worker("b", "does", "B")], "a", "hands on to 'c'"),
        ([Worker("a", "does", "A", ("a",)), Worker("b", "does", "B")], "a", "hands on to itself"),
        ([Worker("a", "does", "A"), Worker("b", "does", "B")], "c", "general worker 'c'"),
    ],
)
def test_a_graph_that_cannot_be_walked_is_refused(workers: list[Worker], general: str, message: str) -> None:
    """The worker at fault is named."""
    with pytest.raises(ConfigError, match=f"(?i){message}"):
        WorkerGraph(workers, general)


def test_default_labels_are_those_not_taken() -> None:
    """More workers than letters and digits need labels of their own."""
    assert free_labels(["A", "C"], 2) == ["B", "D"]
    with pytest.raises(ConfigError, match="a label each"):
        free_labels((), 63)


@given(st.text(max_size=600))
def test_an_excerpt_keeps_both_ends(text: str) -> None:
    """What a query asks for is said at its beginning or its end."""
    short = excerpt(text)

    assert len(short) <= HEAD + TAIL + 3
    assert short.startswith(text[:HEAD])
    assert short.endswith(text[-TAIL:])


# --- the choice ------------------------------------------------------------------------------------------------------


async def test_the_likeliest_worker_is_chosen() -> None:
    """With every worker's probability, in one token."""
    router = chooser(saying({"A": 0.1, "B": 0.2, "C": 0.7}))

    choice = await router.choose("2 + 2?")

    assert choice.worker == "math"
    assert choice.probabilities == pytest.approx({"general": 0.1, "code": 0.2, "math": 0.7})
    assert choice.cost.calls == 1
    assert choice.cost.usage == Usage(20, 1)


async def test_an_unsure_choice_goes_to_the_general_worker() -> None:
    """Below the threshold nobody is chosen; the reason has the numbers."""
    router = chooser(saying({"A": 0.1, "B": 0.5, "C": 0.4}), abstain_below=0.6)

    choice = await router.choose("hm")

    assert choice.worker == "general"
    assert "0.500 < 0.600" in choice.reason


async def test_workers_that_may_not_take_the_query_are_left_out() -> None:
    """The distribution is over the others."""
    router = chooser(saying({"A": 0.1, "B": 0.2, "C": 0.7}))

    choice = await router.choose("2 + 2?", among=["general", "code"])

    assert choice.worker == "code"
    assert choice.probabilities == pytest.approx({"general": 1 / 3, "code": 2 / 3})


async def test_content_free_input_corrects_the_choice() -> None:
    """A model that says A to nothing at all is not believed when it says A a little less."""
    biased = [saying({"A": 0.9, "B": 0.05, "C": 0.05})] * len(CONTENT_FREE)
    model = ScriptedModel([*biased, saying({"A": 0.7, "B": 0.25, "C": 0.05})], card=CARD)

    choice = await FunctionalTokens(model, graph()).choose("def f():")

    assert choice.worker == "code"


async def test_an_unknown_label_that_may_be_likelier_means_abstention() -> None:
    """Its bias is large, so its share of what was not shown could win: nobody can tell."""
    flat = {"A": 0.98, "B": 0.019, "C": 0.001}
    answer = saying({"A": 0.6, "x": 0.3, "B": 0.05})
    model = ScriptedModel([*[saying(flat)] * len(CONTENT_FREE), answer], card=WIRE)

    choice = await FunctionalTokens(model, graph()).choose("hm")

    assert choice.worker == "general"
    assert choice.unknown == ("math",)
    assert "'math' was not shown" in choice.reason


async def test_a_failed_choice_goes_to_the_general_worker() -> None:
    """The query is answered all the same."""
    router = chooser(UpstreamUnavailable("gone", model="chooser"))

    choice = await router.choose("2 + 2?")

    assert choice.worker == "general"
    assert choice.cost.missing == "gone"
    assert choice.cost.cost_usd is None


async def test_a_label_of_two_tokens_is_refused_before_the_first_choice() -> None:
    """The model that can be held to the labels does not show it among them."""
    model = ScriptedModel([saying({"A": 0.5, "B": 0.3, "x": 0.2})], card=CARD)

    with pytest.raises(ConfigError, match="label 'C' of worker 'math' is not one token"):
        await FunctionalTokens(model, graph()).check()


@pytest.mark.parametrize("said", ["C", "Sure", ""])
async def test_on_a_plain_wire_a_label_is_told_to_the_model(said: str) -> None:
    """Where nothing can hold it to the labels, only a part of one is proof against it."""
    shown = [saying({"A": 0.5, "B": 0.3, "x": 0.2})] * len(CONTENT_FREE)
    model = ScriptedModel([*shown, Answer(said)], card=WIRE)

    await FunctionalTokens(model, graph()).check()

    assert "exactly this" in model.queries[-1].text


async def test_a_part_of_a_label_is_proof_that_it_has_several_tokens() -> None:
    """Told to write "Code", the model writes "Co" in its one token."""
    workers = (Worker("general", "all", "A"), Worker("code", "code", "Code"))
    model = ScriptedModel([saying({"A": 0.5, "x": 0.5})] * len(CONTENT_FREE) + [Answer("Co")], card=WIRE)

    with pytest.raises(ConfigError, match="label 'Code'"):
        await FunctionalTokens(model, WorkerGraph(workers, "general")).check()


def test_a_model_without_logprobs_cannot_choose() -> None:
    """It is refused when the router is made."""
    with pytest.raises(ConfigError, match="no log-probabilities"):
        FunctionalTokens(ScriptedModel(["A"], card=ModelCard("mute", "far")), graph())


async def test_an_answer_is_handed_on_where_that_is_likelier_than_not() -> None:
    """Labels are those of the successors, and one that says that the answer is complete."""
    flat = [saying(dict.fromkeys(LABELS, 1 / 3))]
    model = ScriptedModel([*flat, saying({"C": 0.8, "A": 0.2}), saying({"A": 0.6, "C": 0.4})], card=CARD)
    router = FunctionalTokens(model, graph(code=("math",)), style="trained")
    await router.check()

    onward = await router.go_on("q", "draft", "code", among=["math"])
    stays = await router.go_on("q", "draft", "code", among=["math"])
    nobody = await router.go_on("q", "draft", "code", among=["general"])

    assert onward.tier == "math"
    assert "0.800" in onward.reason
    assert stays.tier is None
    assert nobody.tier is None
    assert nobody.cost is None


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Answer("Compute 2 + 2."), "Compute 2 + 2."),
        (Answer("  "), "2+2?"),
        (Answer("Compute", finish_reason="length"), "2+2?"),
        (UpstreamUnavailable("gone", model="chooser"), "2+2?"),
    ],
)
async def test_a_rewrite_that_failed_leaves_the_query_as_it_was(answer: Answer | BaseException, text: str) -> None:
    """Nothing, a cut-off text or no answer is no rewrite."""
    router = FunctionalTokens(ScriptedModel([answer], card=CARD), graph())

    assert (await router.rewrite("2+2?", "math")).text == text


# --- policies --------------------------------------------------------------------------------------------------------


def policy(**changes: object) -> TokenPolicy:
    """A calibration of `graph()` for the model "chooser"."""
    facts: dict[str, object] = {
        "name": "domain",
        "created_at": datetime(2026, 11, 21, tzinfo=UTC),
        "nearfar_version": "0",
        "model": "chooser",
        "style": "described",
        "labels": {"general": "A", "code": "B", "math": "C"},
        "prompt_sha256": prompt_sha256(graph(), "described"),
        "scale": 1.5,
        "bias": {"general": -1.0, "code": 0.5, "math": 0.0},
        "n": 100,
        "data_sha256": "0" * 64,
    }
    return TokenPolicy(**facts | changes)  # type: ignore[arg-type]


def test_a_policy_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Save and load are inverse."""
    policy().save(tmp_path / "deep" / "domain.json")

    assert TokenPolicy.load(tmp_path / "deep" / "domain.json") == policy()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "other"}, "fitted on choices of 'other'"),
        ({"prompt_sha256": "0"}, "other workers, labels or descriptions"),
        ({"labels": {"general": "A"}}, "other workers, labels or descriptions"),
        ({"style": "trained"}, "other workers, labels or descriptions"),
    ],
)
def test_a_policy_of_something_else_is_refused(changes: dict[str, object], message: str) -> None:
    """It holds for one model, its workers and their descriptions."""
    with pytest.raises(ConfigError, match=message):
        chooser(policy=policy(**changes))


async def test_a_policy_takes_the_place_of_contextual_calibration() -> None:
    """One check of the labels is all that is asked before the first choice."""
    model = ScriptedModel([saying({"A": 0.5, "B": 0.3, "C": 0.2})], card=CARD)
    router = FunctionalTokens(model, graph(), policy=policy())

    choice = await router.choose("x")

    weights = {"general": 0.5**1.5 * exp(-1), "code": 0.3**1.5 * exp(0.5), "math": 0.2**1.5}
    total = sum(weights.values())
    assert choice.probabilities == pytest.approx({name: w / total for name, w in weights.items()})
    assert len(model.queries) == 2
    assert "domain@1" in router.label


def test_broken_policies_are_named(tmp_path: Path) -> None:
    """Not there, not a policy, or of a later format."""
    (tmp_path / "bad.json").write_text("{}")
    policy(format_version=2).save(tmp_path / "new.json")

    with pytest.raises(ConfigError, match="no policy"):
        TokenPolicy.load(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read"):
        TokenPolicy.load(tmp_path / "bad.json")
    with pytest.raises(DataError, match="format 2"):
        TokenPolicy.load(tmp_path / "new.json")


# --- on the real model -----------------------------------------------------------------------------------------------


async def test_the_embedded_model_chooses_in_one_decode_step() -> None:
    """One completion token a choice, a probability for every worker, and the prompt's beginning from the cache."""
    model = LlamaCppModel(smollm2_path(), name="smollm2", context_window=1024, parallel=1)
    router = FunctionalTokens(model, graph())

    first = await router.choose("Write a function that adds two numbers.")
    again = await router.choose("What is 3 times 4?")
    await model.aclose()

    for choice in (first, again):
        assert set(choice.probabilities) == {"general", "code", "math"}
        assert sum(choice.probabilities.values()) == pytest.approx(1)
        assert choice.cost.usage is not None
        assert choice.cost.usage.completion_tokens == 1
        assert choice.cost.usage.cached_tokens > 20


async def test_a_label_of_several_tokens_is_refused_by_the_embedded_model() -> None:
    """Its own tokenizer decides."""
    model = LlamaCppModel(smollm2_path(), name="smollm2", context_window=512, parallel=1)
    workers = (Worker("a", "this", "A"), Worker("b", "that", "Bureaucratically"))

    with pytest.raises(ConfigError, match="'Bureaucratically' of worker 'b'"):
        await FunctionalTokens(model, WorkerGraph(workers, "a")).check()
    await model.aclose()


def test_the_prompt_tells_every_worker_and_ends_with_the_query() -> None:
    """What is the same for every query comes first, so that it is computed once."""
    one, other = (choice_prompt(graph().workers, text, "described") for text in ("first", "second"))

    assert one[0] == other[0]
    assert "B: queries about code" in one[0].text
    assert "first" in one[-1].text
    assert Query(one).text == one[-1].text
