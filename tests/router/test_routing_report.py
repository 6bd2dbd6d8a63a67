"""Outcome tables read for routing, and what is reported of a score on them."""

import json
from dataclasses import replace

import pytest

from nearfar.errors import ConfigError, DataError
from nearfar.router.answer_text import ANSWER_TEXT_SIGNALS
from nearfar.router.predictive import make
from nearfar.router.routing_report import load_also, load_with_texts, report, score_by_router, score_by_signal
from nearfar.router.routing_table import ANSWER_TEXT, load_others, load_routed, signal_names

pytest.importorskip("sklearn", reason="routers are fitted with scikit-learn")


def row(query_id, model, correct, **cells):
    """One row of a table."""
    return {
        "dataset": "d",
        "query_id": query_id,
        "query": f"question {query_id}",
        "model": model,
        "correct": correct,
        **cells,
    }


def write(path, rows):
    """A JSONL table."""
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


@pytest.fixture
def table(tmp_path):
    """Sixty questions; the words tell which ones the small model gets wrong, and so does its confidence."""
    rows = []
    for i in range(60):
        is_hard = i % 3 == 0
        text = f"{'prove the theorem' if is_hard else 'name the river'} {'abcdefghij'[i % 10]}{'klmnopqr'[i // 10]}"
        weak = float(not is_hard) if i % 10 else float(is_hard)
        rows.append(row(str(i), "small", weak, query=text, sure=0.3 + 0.6 * weak + i / 1000, cost=1.0))
        rows.append(row(str(i), "large", float(i % 7 > 0), query=text, cost=10.0))
    return write(tmp_path / "table.jsonl", rows)


def test_an_answers_text_gives_signals(tmp_path):
    """Of the weak model's response alone; where the table has no response or no question, that is said."""
    rows = [row("1", "small", 1, response="2 + 2 = 5", query="2 and 2?"), row("1", "large", 1, response="2 + 2 = 4")]

    (found,) = load_routed(write(tmp_path / "t.jsonl", rows), weak="small", strong="large", signals=[ANSWER_TEXT])

    assert tuple(found.signals) == ANSWER_TEXT_SIGNALS
    assert signal_names(["sure", ANSWER_TEXT], [found]) == ("sure",)  # nothing differs in one row
    other = replace(found, signals=found.signals | {"answer_wrong_share": 0.0})
    assert signal_names([ANSWER_TEXT], [found, other]) == ("answer_wrong_share",)
    assert found.signals["answer_wrong_share"] == 1
    for name in ("response", "query"):
        lacking = [{key: cell for key, cell in each.items() if key != name} for each in rows]
        with pytest.raises(DataError, match=f"no column '{name}'"):
            load_routed(write(tmp_path / "t.jsonl", lacking), weak="small", strong="large", signals=[ANSWER_TEXT])


def test_repeated_rows_are_averaged(tmp_path):
    """Two turns of a conversation are one query, and the order is the table's."""
    path = write(
        tmp_path / "t.jsonl",
        [
            row("b", "small", 1, sure=0.2),
            row("b", "large", 1),
            row("a", "small", 0, sure=0.4),
            row("b", "small", 0, sure=0.6),
            row("a", "large", 0.5),
            row("c", "small", 1),
        ],
    )

    b, a = load_routed(path, weak="small", strong="large", signals=["sure"])

    assert (b.query_id, b.weak, b.strong, b.signals) == ("b", 0.5, 1.0, {"sure": pytest.approx(0.4)})
    assert (a.query_id, a.weak, a.strong) == ("a", 0.0, 0.5)


def test_a_dataset_is_chosen_and_ids_are_its_own(tmp_path):
    """The same id in two datasets is two queries."""
    rows = [
        row("1", model, value, dataset=name) for name, value in (("x", 1), ("y", 0)) for model in ("small", "large")
    ]
    path = write(tmp_path / "t.jsonl", rows)

    assert len(load_routed(path, weak="small", strong="large")) == 2
    assert load_routed(path, weak="small", strong="large", dataset="y")[0].weak == 0
    with pytest.raises(DataError, match="'x', 'y'"):
        load_routed(path, weak="small", strong="large", dataset="z")


def test_what_a_table_lacks_is_named(table, tmp_path):
    """A model, a column, a number: each with what there is instead."""
    with pytest.raises(DataError, match="no rows of 'tiny'; it has 'large', 'small'"):
        load_routed(table, weak="tiny", strong="large")
    with pytest.raises(DataError, match="no column 'score'"):
        load_routed(table, weak="small", strong="large", value="score")
    with pytest.raises(ConfigError, match="Name two models"):
        load_routed(table, weak="small", strong="small")
    with pytest.raises(DataError, match="query '1': 'correct' is 'yes'"):
        load_routed(write(tmp_path / "t.jsonl", [row("1", "small", "yes")]), weak="small", strong="large")
    with pytest.raises(DataError, match="no query with"):
        load_routed(
            write(tmp_path / "u.jsonl", [row("1", "small", 1), row("2", "large", 1)]), weak="small", strong="large"
        )


def test_a_report_stands_beside_baselines(table):
    """A good router beats random and is beaten by the oracle; costs are the table's."""
    rows = load_routed(table, weak="small", strong="large")

    found = report(score_by_router(rows, make("auto")), table="t", weak="small", strong="large", resamples=50)

    apgr = {each.name: each.metrics.apgr for each in found.baselines}
    assert set(apgr) == {"random", "length", "tfidf-ridge", "oracle"}
    assert apgr["random"] < found.figures.metrics.apgr < apgr["oracle"]
    assert found.costs == "the table's column 'cost'"
    assert len(found.figures.curve) == 101
    assert found.figures.curve[0].quality == pytest.approx(found.weak_quality)
    assert found.figures.curve[-1].quality == pytest.approx(found.strong_quality)


def test_training_queries_that_are_tested_are_left_out(table):
    """A training table that holds the test's questions is no help; the note says how many were dropped."""
    rows = load_routed(table, weak="small", strong="large")

    found = score_by_router(rows[:10], make("tfidf-ridge"), train=rows)

    assert found.how == "fitted on 50 other queries"
    assert found.notes == ("10 training queries are also in the table and were left out.",)
    with pytest.raises(DataError, match="also in the table"):
        score_by_router(rows, make("tfidf-ridge"), train=rows)


def test_a_signal_defers_the_least_sure(table):
    """The smallest signal goes first, and a query without one before all."""
    rows = load_routed(table, weak="small", strong="large", signals=["sure"])

    found = score_by_signal(rows, "sure")

    assert max(zip(found.scores, rows, strict=True), key=lambda pair: pair[0])[1].signals["sure"] == min(
        each.signals["sure"] for each in rows
    )
    assert found.is_cascade
    with pytest.raises(DataError, match="no column 'doubt'"):
        load_routed(table, weak="small", strong="large", signals=["doubt"])


def test_texts_come_from_a_second_table(tmp_path):
    """Outcomes without texts are joined to their questions by id; without them a router says what is missing."""
    outcomes = [row(str(i), model, (i + len(model)) % 2) for i in range(40) for model in ("small", "largest")]
    for each in outcomes:
        del each["query"]
    path = write(tmp_path / "t.jsonl", outcomes)
    texts = write(tmp_path / "q.jsonl", [{"query_id": str(i), "query": f"text {i}"} for i in range(40)])
    options = {"weak": "small", "strong": "largest", "value": "correct", "dataset": None, "signals": ()}

    assert load_with_texts(path, **options, questions=texts)[3].text == "text 3"
    with pytest.raises(DataError, match="--questions"):
        score_by_router(load_with_texts(path, **options, questions=None), make("auto"))


def test_other_models_count_in_two_halves(tmp_path):
    """The less accurate half of a table's models stands for the weak one, the other for the strong one."""
    right = {"poor": (0, 0, 0), "fair": (1, 0, 0), "good": (1, 1, 0), "best": (1, 1, 1)}
    rows = [
        row(f"q{i}", model, cell, query=f"What is {i}?")
        for model, cells in right.items()
        for i, cell in enumerate(cells)
    ]
    table = write(tmp_path / "others.jsonl", [*rows, row("q3", "best", 1, query="What is 3?")])

    found = load_others(table)

    assert [(each.weak, each.strong) for each in found] == [(0.5, 1.0), (0.0, 1.0), (0.0, 0.5)]
    assert [each.text for each in found] == ["What is 0?", "What is 1?", "What is 2?"]


def test_measured_questions_are_left_out_of_other_tables(tmp_path):
    """The same question in other words of its options, or in another case, is not learned from."""
    rows = [row(f"q{i}", "other", 1, query=f"WHAT is {i}?\nA. x\nB. y") for i in range(4)]
    table = write(tmp_path / "others.jsonl", rows)
    [measured] = load_others(write(tmp_path / "asked.jsonl", [row("a", "near", 0, query="What is 2?")]))

    [kept] = load_also([table], [measured], value="correct")

    assert [each.text[:10] for each in kept] == ["WHAT is 0?", "WHAT is 1?", "WHAT is 3?"]


def test_a_table_without_texts_tells_nothing_of_others(tmp_path):
    """The table is named."""
    with pytest.raises(DataError, match=r"others\.jsonl' has no query with a text and a 'correct'"):
        load_others(write(tmp_path / "others.jsonl", [row("q", "near", 1, query=None)]))
