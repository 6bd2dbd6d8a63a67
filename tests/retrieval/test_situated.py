"""The choice between what a model knows and what it is shown."""

import pytest

from nearfar.errors import ConfigError
from nearfar.retrieval.situated import Situated, choose, fit_margin, says_the_same
from nearfar.testing import ScriptedModel
from nearfar.types import FREE, Answer, Chunk, Hit, ModelCard, Query, TokenLogprob

pytest.importorskip("Stemmer", reason="needs nearfar[retrieval]")

HITS = [Hit(Chunk("The capital of Australia is Sydney.", "wrong.txt"), 1.0)]
ASKED = Query("What is the capital of Australia?")


def sure(text, logprob):
    """An answer whose every token has this log-probability."""
    return Answer(text, logprobs=(TokenLogprob(text, logprob),))


def knowing(own, grounded):
    """A model that says one thing from memory and another with passages."""
    return ScriptedModel([lambda query: grounded if "[1]" in query.text else own], confidence=0.5)


async def test_agreement_needs_no_choice():
    """Two answers that say the same are one."""
    found = await Situated(knowing(sure("Canberra", -1.0), sure("Canberra.", -2.0))).answer(ASKED, HITS)

    assert (found.side, found.text, found.confidence_own) == ("agreed", "Canberra.", None)


@pytest.mark.parametrize(
    ("own", "grounded", "margin", "side"),
    [
        (-0.1, -1.0, 0.0, "own"),
        (-1.0, -0.1, 0.0, "passages"),
        (-0.5, -0.5, 0.0, "passages"),
        (-0.1, -1.0, 0.9, "passages"),
    ],
)
async def test_small_model_goes_by_the_surer_answer(own, grounded, margin, side):
    """The passages' unless its own is surer by more than the margin."""
    model = knowing(sure("Canberra", own), sure("Sydney", grounded))

    found = await Situated(model, margin=margin).answer(ASKED, HITS)

    assert found.side == side
    assert found.text == {"own": "Canberra", "passages": "Sydney"}[side]
    assert found.confidence_own == pytest.approx(2.718281828**own)


async def test_model_without_log_probabilities_is_sampled():
    """Its confidence is how often it says the same again."""
    again = iter(["Canberra", "Canberra", "Melbourne", "Sydney", "Perth", "Hobart", "Canberra", "Sydney"])

    def say(query):
        if "[1]" in query.text:
            return "Sydney" if not query.sampling.temperature else next(replies["grounded"])
        return "Canberra" if not query.sampling.temperature else next(replies["own"])

    replies = {"own": iter(["Canberra", "Canberra", "Perth", "Canberra"]), "grounded": again}
    model = ScriptedModel([say])

    found = await Situated(model, samples=4).answer(ASKED, HITS)

    assert (found.confidence_own, found.confidence_grounded) == (0.75, 0.25)
    assert found.text == "Canberra"


@pytest.mark.parametrize(
    ("judgement", "text", "side"),
    [
        ("I am sure of it. The passage errs.\nAnswer: Canberra", "Canberra", "own"),
        ("Answer: no\nOn reflection.\n**Final answer:** Sydney", "Sydney", "passages"),
        ("Hard to say.", "Sydney", "passages"),
    ],
)
async def test_large_model_decides_itself(judgement, text, side):
    """By its last line; where it has none, the passages' answer stands."""
    card = ModelCard("far", "far", price=FREE)
    model = ScriptedModel(
        [lambda q: judgement if "from memory" in q.text else "Sydney" if "[1]" in q.text else "Canberra"], card=card
    )

    found = await Situated(model).answer(ASKED, HITS)

    assert (found.text, found.side) == (text, side)
    assert found.judgement is not None
    assert found.cost_usd == 0.0


def test_fitted_margin_chooses_best():
    """Of all margins none has more right choices on the labels."""
    own, grounded = [0.9, 0.8, 0.4, 0.3], [0.5, 0.6, 0.5, 0.9]
    own_right, grounded_right = [True, False, True, False], [False, True, False, True]

    margin = fit_margin(own, grounded, own_right, grounded_right)

    def right(m):
        sides = [choose(a, b, m) for a, b in zip(own, grounded, strict=True)]
        return sum(x if s == "own" else y for s, x, y in zip(sides, own_right, grounded_right, strict=True))

    assert right(margin) == max(right(m / 100) for m in range(-100, 101)) == 3


def test_no_labels_fit_no_margin():
    """With a reason."""
    with pytest.raises(ValueError, match="no labelled answers"):
        fit_margin([], [], [], [])


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("Canberra", "The capital of Australia is Canberra.", True),
        ("Canberra", "Sydney", False),
        ("", "Sydney", False),
        ("", "", True),
        ("In 1889", "in 1899", False),
    ],
)
def test_same_answers(a, b, same):
    """Short answers count inside long ones."""
    assert says_the_same(a, b) is same


@pytest.mark.parametrize("options", [{"margin": 2}, {"samples": 0}])
def test_senseless_numbers_are_refused(options):
    """By name."""
    with pytest.raises(ConfigError, match=next(iter(options))):
        Situated(ScriptedModel(["x"]), **options)
