"""`nearfar evaluate-retrieval` and `nearfar tools`: the doors, with real files and the static embedder."""

import gzip
import json

import pytest

from nearfar.cli.run import run

pytest.importorskip("bm25s", reason="bm25s is not installed")
pytest.importorskip("wordllama", reason="wordllama is not installed")

DOCUMENTS = {
    "1": ("Rivers", "Rivers carry water from the hills to the sea."),
    "2": ("Bread", "Bread is made of flour, water and yeast."),
    "3": ("Owls", "Owls hunt mice at night."),
}
QUERIES = (("who eats mice in the dark", "3"), ("what is dough made of", "2"), ("where does the water go", "1"))
TOOLS = {"weather": "Forecasts for any place.", "stocks": "Prices of shares.", "recipes": "How to cook dishes."}
USES = tuple(
    (said.format(place), tool)
    for place in ("Oslo", "Rome", "Lima", "Cairo", "Perth")
    for tool, said in (("weather", "Rain in {}?"), ("stocks", "The exchange of {}?"), ("recipes", "Lunch in {}?"))
)


def write(path, rows):
    """JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path):
    """Three documents and three queries."""
    write(tmp_path / "corpus.jsonl", [{"id": key, "title": t, "text": text} for key, (t, text) in DOCUMENTS.items()])
    write(tmp_path / "queries.jsonl", [{"id": str(n), "text": q, "qrels": {d: 1}} for n, (q, d) in enumerate(QUERIES)])
    return tmp_path


@pytest.fixture
def tools(tmp_path):
    """Three tools."""
    return write(tmp_path / "tools.jsonl", [{"id": name, "text": text} for name, text in TOOLS.items()])


@pytest.fixture
def uses(tmp_path):
    """Fifteen requests."""
    return write(tmp_path / "uses.jsonl", [{"text": text, "tools": [tool]} for text, tool in USES])


def test_retrieval_is_measured_in_json(folder, capsys):
    """The last stage's figures by their names at the top, every stage below, rankings in a file."""
    ranked = folder / "ranked.jsonl"

    evaluate = ["evaluate-retrieval", str(folder), "--train", str(folder / "queries.jsonl"), "--embedder", "static"]

    code = run([*evaluate, "--resamples", "20", "--rankings", str(ranked), "--json"])

    said = json.loads(capsys.readouterr().out)
    assert code == 0
    assert said["ndcg@10"] == said["recall@1"] == 1
    assert said["stages"][0]["name"] == "bm25"
    assert said["intervals"]["recall@5"] == [1, 1]
    assert (said["queries"], said["documents"], said["train_queries"]) == (3, 3, 3)
    assert json.loads(ranked.read_text().splitlines()[0])["ranked"][0] == "3"


def test_retrieval_is_measured_in_a_table(folder, capsys):
    """With bridges where they are asked for."""
    code = run(["evaluate-retrieval", str(folder), "--embedder", "static", "--multi-hop", "--resamples", "20"])

    said = capsys.readouterr().out
    assert code == 0
    assert "bm25" in said
    assert "bridges" in said


def test_a_missing_folder_is_named(tmp_path, capsys):
    """In one line."""
    assert run(["evaluate-retrieval", str(tmp_path / "none"), "--embedder", "static"]) == 1
    assert "corpus.jsonl" in capsys.readouterr().err


def test_tools_are_indexed_searched_and_changed(tools, uses, tmp_path, capsys):
    """Found by use; added to and removed from without the rest being indexed again."""
    index = ["--index", str(tmp_path / "index"), "--embedder", "static", "--json"]

    assert run(["tools", "index", str(tools), "--examples", str(uses), *index]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "tools": 3, "examples": 15, "is_fitted": False, "folder": str(tmp_path / "index"),
    }  # fmt: skip
    assert run(["tools", "search", "lunch in Bonn", "-k", "1", *index]) == 0
    assert [hit["tool"] for hit in json.loads(capsys.readouterr().out)] == ["recipes"]

    more = write(tmp_path / "more.jsonl", [{"name": "translate", "description": "Words of other languages."}])
    assert run(["tools", "index", str(more), "--add", "--remove", "recipes", *index]) == 0
    capsys.readouterr()
    assert run(["tools", "search", "words of another language", *index]) == 0
    names = [hit["tool"] for hit in json.loads(capsys.readouterr().out)]
    assert names[0] == "translate"
    assert "recipes" not in names


def test_an_index_of_tools_knows_its_embedder(tools, tmp_path, capsys):
    """Nobody has to name it again; nothing is found for nothing."""
    index = ["--index", str(tmp_path / "index")]
    assert run(["tools", "index", str(tools), *index, "--embedder", "static"]) == 0
    capsys.readouterr()

    assert run(["tools", "search", "cook", "-k", "1", *index, "--json"]) == 0
    found = capsys.readouterr()
    assert [hit["tool"] for hit in json.loads(found.out)] == ["recipes"]
    assert found.err == ""
    assert run(["tools", "search", " ", *index]) == 2


def test_tools_are_measured(tools, uses, capsys):
    """The keys that others read, and a table."""
    evaluate = ["tools", "evaluate", str(tools), str(uses), "--train", str(uses), "--embedder", "static"]

    assert run([*evaluate, "--resamples", "20", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["recall@1"] == said["recall@5"] == said["ndcg@10"] == 1
    assert run([*evaluate, "--resamples", "20"]) == 0
    assert "Tool2Vec" in capsys.readouterr().out


def test_an_unknown_tool_is_named(tools, tmp_path, capsys):
    """With the line."""
    bad = write(tmp_path / "bad.jsonl", [{"text": "x", "tools": ["magic"]}])

    assert run(["tools", "evaluate", str(tools), str(bad), "--embedder", "static"]) == 1
    assert "'magic'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"id": "1", "text": "a"}, {"id": "1", "text": "b"}], "Line 2 of"),
        ([{"id": "1"}], "a document needs `id` and `text`"),
        (["[" * 100_000], "not JSON"),
    ],
)
def test_a_broken_corpus_is_named(folder, lines, message, capsys):
    """A document that is there twice would count twice."""
    said = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "corpus.jsonl").write_text("\n".join(said))

    assert run(["evaluate-retrieval", str(folder), "--embedder", "static"]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}], "there is another tool 'a' before it"),
        ([{"function": "no object"}], "a tool needs"),
    ],
)
def test_a_broken_list_of_tools_is_named(tmp_path, rows, message, capsys):
    """With the line; nothing is written."""
    tools = write(tmp_path / "bad.jsonl", rows)

    assert run(["tools", "index", str(tools), "--index", str(tmp_path / "index"), "--embedder", "static"]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "index").exists()


def test_a_gzipped_file_cut_short_is_named(folder, capsys):
    """As one that cannot be read."""
    packed = gzip.compress((folder / "corpus.jsonl").read_bytes())
    (folder / "corpus.jsonl").unlink()
    (folder / "corpus.jsonl.gz").write_bytes(packed[:12] + b"\xff" * 20)

    assert run(["evaluate-retrieval", str(folder), "--embedder", "static"]) == 1
    assert "Cannot read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"text": " ", "qrels": {"1": 1}}, "a query needs `text`"),
        ({"text": "a", "qrels": {"1": float("inf")}}, "are finite"),
        ({"text": "a", "qrels": {"1": "much"}}, "are numbers"),
    ],
)
def test_a_broken_query_is_named(folder, query, message, capsys):
    """A query without words would find the first document; an endless gain has no share."""
    write(folder / "queries.jsonl", [query])

    assert run(["evaluate-retrieval", str(folder), "--embedder", "static"]) == 1
    assert message in capsys.readouterr().err


def test_learning_what_is_measured_is_remarked(folder, tools, uses, tmp_path, capsys):
    """It is done, and said to be worth nothing."""
    queries = str(folder / "queries.jsonl")
    assert run(["evaluate-retrieval", str(folder), "--train", queries, "--embedder", "static", "--json"]) == 0
    assert "3 of the texts to measure on are learned from" in capsys.readouterr().err
    evaluate = ["tools", "evaluate", str(tools), str(uses), "--embedder", "static", "--json"]
    assert run([*evaluate, "--train", str(uses)]) == 0
    assert "15 of the texts" in capsys.readouterr().err
    assert run(evaluate) == 0
    assert "of the texts" not in capsys.readouterr().err
