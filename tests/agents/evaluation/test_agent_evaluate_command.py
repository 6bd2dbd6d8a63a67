"""`nearfar agent evaluate` scores recorded answers without a model."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("numpy", reason="needs nearfar[retrieval]")
pytest.importorskip("langgraph", reason="needs nearfar[agents]")


from nearfar.cli.run import run

ITEM = {
    "id": "simple_python_0",
    "question": [[{"role": "user", "content": "f of one"}]],
    "function": [
        {"name": "f", "description": "", "parameters": {"properties": {"a": {"type": "integer"}}, "required": []}}
    ],
    "ground_truth": [{"f": {"a": [1]}}],
}


@pytest.fixture
def files(tmp_path):
    """An item that has an answer, one that has none, and the answers."""
    items, answers = tmp_path / "items.jsonl", tmp_path / "answers.jsonl"
    items.write_text("\n".join(json.dumps(ITEM | {"id": f"simple_python_{place}"}) for place in range(2)))
    answers.write_text(json.dumps({"id": "simple_python_0", "result": "[f(a=1)]"}))
    return items, answers


def test_recorded_answers_are_scored(files, capsys):
    """Figures, intervals, categories and every verdict; what has no answer is wrong."""
    code = run(["agent", "evaluate", "bfcl", str(files[0]), "--answers", str(files[1]), "--json"])

    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (found["n"], found["missing"], found["accuracy"], found["macro_ast"]) == (2, 1, 0.5, 0.5)
    assert found["groups"]["simple_python"]["n"] == 2
    assert [item["correct"] for item in found["items"]] == [True, False]


def test_the_limit_is_of_each_file(files, capsys):
    """The first items alone."""
    run(["agent", "evaluate", "bfcl", str(files[0]), "--answers", str(files[1]), "-n", "1"])

    shown = capsys.readouterr()
    assert "1.000" in shown.out
    assert "no answer" not in shown.err


def test_files_without_items_are_named(tmp_path, capsys):
    """One line, and exit code 1."""
    (tmp_path / "x.jsonl").write_text('{"id": "multi_turn_base_0"}')

    code = run(["agent", "evaluate", "bfcl", str(tmp_path / "x.jsonl"), "--answers", str(tmp_path / "x.jsonl")])

    assert code == 1
    assert "hold no bfcl items" in capsys.readouterr().err


def test_answers_are_saved_and_scored_again(tmp_path, capsys, monkeypatch):
    """What an agent answers, with how sure it was, is what --answers takes."""
    monkeypatch.setenv("NEARFAR_HOME", str(tmp_path / "home"))
    items, saved = tmp_path / "items.jsonl", tmp_path / "saved.jsonl"
    config = tmp_path / "nearfar.toml"
    items.write_text(json.dumps(ITEM | {"question": [[{"role": "user", "content": "Call f with a = 1"}]]}))
    (tmp_path / "model.py").write_text("def answer(prompt):\n    return '[f(a=1)]'\n")
    config.write_text('[models.mine]\nkind = "python"\ncallable = "model.py:answer"\nplacement = "near"\n')

    code = run(
        ["agent", "evaluate", "bfcl", str(items), "-a", "plain", "-m", "mine", "--save", str(saved), "-c", str(config)]
    )

    assert code == 0, capsys.readouterr().err
    [row] = map(json.loads, saved.read_text().splitlines())
    assert row["answer"] == "[f(a=1)]"
    capsys.readouterr()
    run(["agent", "evaluate", "bfcl", str(items), "--answers", str(saved), "--json"])
    assert json.loads(capsys.readouterr().out)["accuracy"] == 1.0
