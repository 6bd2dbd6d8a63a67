"""A callable as a model: what it gives, what it may not do, and how a config names it."""

import threading

import pytest
from contracts.chat_model import ChatModelContract
from support.obedient import obedient

from nearfar.errors import ConfigError, UnsupportedOption, UpstreamError
from nearfar.models.python_model import PythonModel, load_callable
from nearfar.types import Answer, Price, Query, SamplingOptions, ToolSpec


class TestPythonModelKeepsTheContract(ChatModelContract):
    """As far as something that is no language model can."""

    @pytest.fixture
    async def model(self):
        model = PythonModel(obedient, name="rule")
        yield model
        await model.aclose()


async def answers(query):
    return f"async {query.text}"


class Classifier:
    """A stand-in for a fitted one: it holds what it has loaded."""

    def __init__(self):
        self.labels = ("error", "info")

    def __call__(self, query):
        return self.labels["ok" in query.text], {"confidence": 0.75}


async def test_texts_signals_and_answers_are_taken():
    """Whatever of the three a callable gives becomes an answer with the model's name, tokens and cost."""
    price = Price(1.0, 1.0)

    plain = await PythonModel(lambda query: query.text.upper(), name="m", price=price).complete(Query("abcd"))
    labelled = await PythonModel(Classifier(), name="m").complete(Query("all ok"))
    whole = await PythonModel(lambda _: Answer("x", cost_usd=0.5), name="m").complete(Query("?"))
    awaited = await PythonModel(answers, name="m").complete(Query("?"))

    assert (plain.text, plain.model, plain.cost_usd) == ("ABCD", "m", 2e-6)
    assert plain.usage.is_estimated
    assert (labelled.text, labelled.signals, labelled.cost_usd) == ("info", {"confidence": 0.75}, 0.0)
    assert whole.cost_usd == 0.5
    assert awaited.text == "async ?"


async def test_a_plain_function_runs_in_a_thread():
    """It may compute without holding up the event loop."""
    answer = await PythonModel(lambda _: threading.current_thread().name, name="m").complete(Query("?"))

    assert answer.text != threading.main_thread().name


def fails(_):
    raise KeyError("no such feature")


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (fails, "no such feature"),
        (lambda _: 3, "gave int"),
        (lambda _: ("x", {"confidence": "high"}), "'high', which is no number"),
        (lambda _: ("x", {"confidence": float("nan")}), "no number"),
    ],
)
async def test_what_is_no_answer_is_the_models_failure(function, says):
    """The cascade goes on to the next tier, as with any model that fails."""
    with pytest.raises(UpstreamError, match=says):
        await PythonModel(function, name="m").complete(Query("?"))


@pytest.mark.parametrize(
    "query",
    [Query("?", tools=(ToolSpec("t"),)), Query("?", sampling=SamplingOptions(logprobs=True))],
)
async def test_what_it_cannot_do_is_refused(query):
    """Tools and log-probabilities are for language models."""
    with pytest.raises(UnsupportedOption):
        await PythonModel(lambda _: "x", name="m").complete(query)


def test_a_config_names_a_module_or_a_file(tmp_path):
    """A class is made once, so that it can load its weights."""
    (tmp_path / "mine.py").write_text("class Rule:\n    def __call__(self, query):\n        return 'rule'\n")

    assert load_callable("mine.py:Rule", tmp_path)(Query("?")) == "rule"
    assert load_callable("builtins:repr", tmp_path) is repr


@pytest.mark.parametrize("path", ["nothing", "no_such_module:f", "none.py:f", "math:pi", "math:nothing", "bad.py:f"])
def test_a_callable_that_is_none_is_refused_at_load(path, tmp_path):
    """One line that names it, before any query."""
    (tmp_path / "bad.py").write_text("1 / 0\n")

    with pytest.raises(ConfigError, match=path.partition(":")[0]):
        load_callable(path, tmp_path)
