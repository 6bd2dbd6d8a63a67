"""Recorded answers are read and scored."""

from __future__ import annotations

import pytest

pytest.importorskip("numpy", reason="needs nearfar[retrieval]")

from hypothesis import given
from hypothesis import strategies as st

from nearfar.agents.evaluation.answers import (
    macro,
    read_answers,
    score_bfcl,
    score_calls,
    score_questions,
)
from nearfar.agents.evaluation.benchmarks import read_apibank, read_questions, read_rows, read_toolalpaca
from nearfar.agents.evaluation.bfcl import read_item
from nearfar.errors import DataError

FUNCTION = {"name": "f", "description": "", "parameters": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}}


def bfcl_item(name, gold):
    """An item with one function."""
    question = [[{"role": "user", "content": "Do."}]]
    return read_item({"id": name, "question": question, "function": [FUNCTION], "ground_truth": gold})


def test_bfcl_is_scored_by_category_and_the_macro_average_weighs_categories_alike():
    """Two of three simple items and one parallel item: the mean of the means, not of the items."""
    gold = [{"f": {"a": [1]}}]
    items = [bfcl_item(f"simple_python_{place}", gold) for place in range(3)]
    items += [bfcl_item("parallel_0", gold), bfcl_item("irrelevance_0", None)]
    answers = read_answers(
        [
            {"id": "simple_python_0", "result": "[f(a=1)]"},
            {"id": "simple_python_1", "calls": [{"f": {"a": 1}}]},
            {"id": "parallel_0", "answer": "f(a=1)"},
            {"id": "irrelevance_0", "result": "none of them"},
        ]
    )

    report = score_bfcl(items, answers)

    assert report.missing == 1
    assert report.figures["macro_ast"].value == pytest.approx((2 / 3 + 1) / 2)
    assert report.figures["accuracy"].value == pytest.approx(0.8)
    assert report.groups["simple_python"][0] == 3
    assert [row["fault"] for row in report.items] == [None, None, "no_answer", None, None]


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=5), min_size=1, max_size=4))
def test_the_interval_holds_the_macro_average(groups):
    """Whatever the groups are."""
    found = macro(groups, resamples=20)

    assert 0 <= found.low <= found.high <= 1
    assert found.value == pytest.approx(sum(sum(group) / len(group) for group in groups) / len(groups))


# The first items of ToolAlpaca's and API-Bank's sets (Apache-2.0), cut.
ALPACA = [
    {
        "id": "sim:AniAPI",
        "function_description": {
            "getCast": "Retrieve cast.\nParameters: "
            '{"animeId": "Required. integer. Which.", "kind": "string. One of: [tv, film]. Kind"}\nOutput: x',
            "components": "",
        },
    },
    {
        "id": "sim:AniAPI:0",
        "split": "sim",
        "instruction": "Who plays in it?",
        "golden": [{"Action": "getCast", "Action_Input": '{"animeId": ${animeId from searchAnime}, "kind": "tv"}'}],
    },
]


def test_toolalpacas_tools_and_gold_calls_are_read():
    """Parameters told in words become a schema; a value that only the run knows is right whatever it is."""
    [item] = read_toolalpaca(ALPACA)

    assert item.tools[0].parameters["required"] == ["animeId"]
    assert item.tools[0].parameters["properties"]["kind"]["enum"] == ["tv", "film"]
    answers = read_answers(
        [{"id": "sim:AniAPI:0", "calls": [{"name": "getCast", "arguments": {"animeId": 7, "kind": "tv"}}]}]
    )
    report = score_calls("toolalpaca", [item], answers)
    assert report.figures["call_accuracy"].value == 1.0
    assert report.figures["hallucination"].value == 0.0


def test_apibank_dialogues_give_calls_and_the_last_answer():
    """The request is what was said before the first call."""
    rows = [
        {
            "id": "GetToken",
            "signature": "GetToken(name: str)",
            "info": "description = 'Gets it.'\ninput_parameters = {'name': {'type': 'str', 'description': 'Who.'}}",
        },
        {
            "id": "lv1:x",
            "level": 1,
            "turns": [
                {"role": "User", "text": "I am Jo."},
                {"role": "API", "api_name": "GetToken", "param_dict": {"name": "Jo"}, "result": {}},
                {"role": "AI", "text": "Your token is 5."},
            ],
        },
    ]

    [item] = read_apibank(rows)
    report = score_calls("apibank", [item], read_answers([{"id": "lv1:x", "calls": [], "answer": "The token is 5."}]))

    assert item.text == "User: I am Jo."
    assert item.tools[0].parameters["required"] == ["name"]
    assert report.figures["plan_accuracy"].value == 0.5
    assert report.figures["argument_f1"].value == 0.0
    assert report.figures["rouge_l"].value == pytest.approx(0.75)


def test_questions_count_tokens_where_they_were_counted():
    """Aliases are right answers; a question without an answer is wrong."""
    rows = [
        {"id": "bamboogle-0", "question": "Who?", "answer": "james madison", "aliases": ["Madison"]},
        {"id": "bamboogle-1", "question": "Where?", "answer": "Paris"},
    ]
    answers = read_answers([{"id": "bamboogle-0", "answer": "Madison.", "tokens": 40, "model_calls": 2}])

    report = score_questions(read_questions(rows), answers)

    assert report.figures["em"].value == 0.5
    assert report.figures["tokens"].value == 40
    assert report.groups["bamboogle"][0] == 2


def test_rows_come_from_lines_lists_and_gzip(tmp_path):
    """JSONL, a JSON list, and either compressed; broken ones are named."""
    import gzip

    (tmp_path / "a.jsonl").write_text('{"id": 1}\n\n{"id": 2}\n')
    (tmp_path / "b.json").write_text('[{"id": 3}]')
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"id": 4}'))
    (tmp_path / "d.jsonl").write_text('{"id": 1}\nno')
    (tmp_path / "e.jsonl").write_text("[1]")

    assert [row["id"] for row in read_rows(tmp_path / name for name in ("a.jsonl", "b.json", "c.jsonl.gz"))] == [
        1,
        2,
        3,
        4,
    ]
    for name, why in (("d.jsonl", "Line 2"), ("e.jsonl", "Row 1"), ("f.jsonl", "Cannot read")):
        with pytest.raises(DataError, match=why):
            list(read_rows([tmp_path / name]))


def test_an_answer_without_id_is_refused():
    """So is one with no answer in it."""
    for row in ({"calls": []}, {"id": "x", "time": 3}):
        with pytest.raises(DataError, match="needs id"):
            read_answers([row])
