"""Documents from every door: the command line, HTTP, Python."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace

import httpx2
import pytest
from support.embeddings_server import EmbeddingsServer
from support.gateway import gateway

from nearfar.app import Nearfar
from nearfar.config import Settings
from nearfar.errors import ConfigError, RequestError
from nearfar.types import Query, StreamEnd
from nearfar.wiring import build

for module in ("numpy", "bm25s", "faiss", "pathspec", "wordllama"):
    pytest.importorskip(module, reason="needs nearfar[retrieval]")

CONFIG = """
[models.parrot]
kind = "python"
callable = "parrot.py:answer"
"""
PARROT = '''
def answer(query):
    """The first passage, cited."""
    if "[1] " not in query.text:
        return "Nobody showed me anything."
    return query.text.split("[1] ", 1)[1].split("\\n\\nQuestion:")[0] + " [1]"
'''


class Desk:
    """A folder with a config, a model that repeats what it is shown, and documents."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = {"NEARFAR_HOME": str(folder / "home")}
        (folder / "nearfar.toml").write_text(CONFIG)
        (folder / "parrot.py").write_text(PARROT)
        (folder / "docs").mkdir()
        (folder / "docs" / "hens.txt").write_text("Weather.\n\n\n" + "It rained. " * 120 + "\n\nHens lay brown eggs.")
        (folder / "docs" / "owls.md").write_text("# Owls\n\nOwls hunt mice at night.\n")

    def run(self, *arguments, code=0):
        """A command's stdout."""
        command = [sys.executable, "-m", "nearfar.cli", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=self.folder, env=os.environ | self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        self.said = done.stderr
        return done.stdout

    def json(self, *arguments, **options):
        """A command's JSON."""
        return json.loads(self.run(*arguments, "--json", **options))

    def num_documents(self, name):
        """How many documents are committed."""
        (path,) = (self.folder / "home").rglob(f"{name}/collection.db")
        with closing(sqlite3.connect(path)) as database:
            tables = database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'documents'").fetchone()
            return database.execute("SELECT count(*) FROM documents").fetchone()[0] if tables[0] else 0

    def settings(self):
        """The config, read here."""
        return Settings.load(self.folder / "nearfar.toml", environ=self.environment)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """With the collection "birds"."""
    desk = Desk(tmp_path_factory.mktemp("desk"))
    report = desk.json("index", "birds", "docs")
    assert (report["added"], report["failures"]) == (2, [])
    return desk


def test_search_names_file_and_line(desk):
    """As text that editors follow, and as JSON."""
    shown = desk.run("search", "birds", "who hunts mice?", "-k", "1")
    hit = desk.json("search", "birds", "brown eggs", "-k", "1")

    assert f"{desk.folder}/docs/owls.md:1" in shown
    assert hit["place"] == f"{desk.folder}/docs/hens.txt:4"
    assert hit["text"].endswith("Hens lay brown eggs.")


def test_search_filters_and_says_when_there_is_nothing(desk):
    """By source and by metadata; no hit is an exit code of 1."""
    hit = desk.json("search", "birds", "eggs mice", "-k", "1", "--where", f"source={desk.folder}/docs/h*")

    assert hit["source"].endswith("hens.txt")
    assert desk.json("search", "birds", "mice", "-k", "1", "--where", "heading=Owls")["text"].startswith("# Owls")
    assert desk.run("search", "birds", "mice", "--where", "heading=Hens", code=1) == ""
    desk.run("search", "birds", "mice", "--where", "heading", code=2)


def test_ask_answers_from_the_documents_and_cites_them(desk):
    """The passage that the answer rests on is named with its line."""
    shown = desk.run("ask", "--docs", "birds", "Which animals hunt mice at night?")
    answer = desk.json("ask", "--docs", "birds", "Which animals hunt mice at night?")

    assert f"[1] {desk.folder}/docs/owls.md:1  Owls" in shown
    assert answer["citations"][0]["number"] == 1
    assert "Owls hunt mice at night." in answer["answer"]
    assert answer["passages"][0]["place"] == f"{desk.folder}/docs/owls.md:1"


def test_ask_asks_nobody_where_the_documents_say_nothing(desk):
    """It abstains, and names what it did not find."""
    answer = desk.json("ask", "--docs", "birds", "Who won the chess tournament in Kemeri?")

    assert (answer["answer"], answer["status"]) == ("I don't know.", "abstained")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ask", "--docs", "fish", "eggs?"), "No collection 'fish'; there are 'birds'"),
        (("ask", "--passages", "3", "eggs?"), "--docs NAME"),
        (("search", "../birds", "eggs"), "is no name for a collection"),
        (("search", "birds", " "), "The query is empty"),
        (("index", "birds", "docs", "--embedder", "bert"), "no embedder 'bert'"),
    ],
)
def test_misuse_is_said_in_a_line(desk, arguments, message):
    """With the fix, and an exit code of 2."""
    desk.run(*arguments, code=2)

    assert message in desk.said


def test_index_goes_on_lists_and_removes(tmp_path):
    """A second run does nothing; failures are listed and cost nothing else; a removed document is gone."""
    desk = Desk(tmp_path)
    (tmp_path / "docs" / "bad.pdf").write_bytes(b"%PDF-nothing")

    first = desk.json("index", "birds", "docs", code=1)
    desk.run("index", "birds", "docs", code=1)
    assert "bad.pdf is a broken PDF" in desk.said
    listed = desk.json("index", "birds", "--list")
    removed = desk.json("index", "birds", "--remove", "docs/hens.txt")

    assert (first["added"], len(first["failures"])) == (2, 1)
    assert (listed["documents"], len(listed["failures"])) == (2, 1)
    assert removed["deleted"] == 1
    assert desk.json("index")[0]["documents"] == 1
    desk.run("search", "birds", "brown eggs", "--by", "words", code=1)
    desk.run("index", "birds", "--remove", "docs/hens.txt", code=2)


async def test_http_answers_from_a_collection(desk):
    """With `nearfar.docs`, a chat completion and its stream say which passages were shown."""
    wired = build(desk.settings())
    body = {
        "model": "parrot",
        "messages": [{"role": "user", "content": "Which animals hunt mice at night?"}],
        "nearfar": {"docs": "birds", "passages": 1},
    }
    async with gateway(wired.router) as server, httpx2.AsyncClient(base_url=server.url) as client:
        whole = (await client.post("/v1/chat/completions", json=body)).json()
        streamed = (await client.post("/v1/chat/completions", json=body | {"stream": True})).text
        wrong = await client.post("/v1/chat/completions", json=body | {"nearfar": {"docs": "fish"}})
        plain = (await client.post("/v1/chat/completions", json=body | {"nearfar": {}})).json()
    await wired.aclose()

    assert "Owls hunt mice at night." in whole["choices"][0]["message"]["content"]
    assert [passage["place"] for passage in whole["passages"]] == [f"{desk.folder}/docs/owls.md:1"]
    assert f"{desk.folder}/docs/owls.md:1" in streamed
    assert wrong.status_code == 400
    assert wrong.json()["error"]["param"] == "nearfar.docs"
    assert plain["choices"][0]["message"]["content"] == "Nobody showed me anything."
    assert "passages" not in plain


async def test_responses_answer_from_a_collection(desk):
    """The other wire takes the same option."""
    wired = build(desk.settings())
    body = {"model": "parrot", "input": "Which animals hunt mice at night?", "nearfar": {"docs": "birds"}}
    async with gateway(wired.router) as server, httpx2.AsyncClient(base_url=server.url) as client:
        whole = (await client.post("/v1/responses", json=body)).json()
        streamed = (await client.post("/v1/responses", json=body | {"stream": True})).text
        wrong = await client.post("/v1/responses", json=body | {"nearfar": {"docs": "fish"}})
    await wired.aclose()

    assert "Owls hunt mice at night." in whole["output"][0]["content"][0]["text"]
    assert f"{desk.folder}/docs/owls.md:1" in [passage["place"] for passage in whole["passages"]]
    assert f"{desk.folder}/docs/owls.md:1" in streamed
    assert wrong.status_code == 400
    assert wrong.json()["error"]["param"] == "nearfar.docs"


CLOUD = """
[models.reader]
kind = "python"
callable = "parrot.py:answer"
docs = "birds"

[embedders.cloud]
kind = "openai"
url = "{url}"
model = "bge-m3"
placement = "{placement}"
"""


async def test_models_are_shown_what_the_question_needs(tmp_path):
    """By the model's own documents and by those that a query names; the citation is of the whole passage."""
    desk = Desk(tmp_path)
    desk.run("index", "birds", "docs")
    config = CONFIG + '\n[models.reader]\nkind = "python"\ncallable = "parrot.py:answer"\n'
    few = config + 'docs = "birds"\npassage_tokens = 12\n\n[retrieval]\npassage_tokens = 12\n'
    (tmp_path / "nearfar.toml").write_text(few)
    question = "Which eggs do hens lay when it rained?"

    async with Nearfar(build(desk.settings())) as nearfar:
        own = await nearfar.answer(Query(question, model="reader"))
        named = await nearfar.answer(Query(question, model="parrot", docs="birds"))
    (tmp_path / "nearfar.toml").write_text(config + "passage_tokens = 12\n")

    for answer in (own, named):
        assert "Hens lay brown eggs" in answer.text
        assert answer.text.count("rained") < 5
    assert own.extra["citations"][0]["source"].endswith("hens.txt")
    with pytest.raises(ConfigError, match=r"models.reader.passage_tokens is of passages; name their collection: docs"):
        desk.settings()


def told(server):
    """Every text that the server has seen."""
    return [text for body in server.bodies for text in body["input"]]


@pytest.mark.parametrize("placement", ["far", "near"])
async def test_a_private_question_goes_to_no_far_embedder(tmp_path, placement):
    """It is refused before it is embedded, through every door and by a model with documents of its own."""
    question = "Which animals hunt mice at night?"
    with EmbeddingsServer() as embeddings:
        desk = Desk(tmp_path)
        (tmp_path / "nearfar.toml").write_text(CONFIG + CLOUD.format(url=embeddings.url, placement=placement))
        desk.run("index", "birds", "docs", "--embedder", "cloud")
        async with Nearfar(build(desk.settings())) as nearfar:
            for query in (Query(question, model="parrot", docs="birds"), Query(question, model="reader")):
                private = replace(query, privacy="near")
                if placement == "far":
                    with pytest.raises(RequestError, match=r"may not leave this machine.*--reembed") as caught:
                        await nearfar.answer(private)
                    assert caught.value.param == "privacy"
                    assert question not in told(embeddings)
                else:
                    assert "[1]" in (await nearfar.answer(private)).text
            for query in (Query(question, model="parrot", docs="birds"), Query(question, model="reader")):
                assert "[1]" in (await nearfar.answer(query)).text
        assert question in told(embeddings)


async def test_python_answers_from_a_collection(desk):
    """A query names it; the answer has the passages."""
    query = Query("Which animals hunt mice at night?", docs="birds", passages=1)
    async with Nearfar(build(desk.settings())) as nearfar:
        answer = await nearfar.answer(query)
        events = [event async for event in nearfar.stream(query)]
        with pytest.raises(RequestError, match="No collection 'fish'"):
            await nearfar.answer(Query("eggs?", docs="fish"))

    assert answer.extra["passages"][0]["source"].endswith("owls.md")
    assert isinstance(events[-1], StreamEnd)
    assert events[-1].answer.extra["passages"] == answer.extra["passages"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[retrieval]\nembedder = "bert"', 'the embedders are "none", "static"'),
        ('[embedders.static]\nkind = "openai"\nmodel = "x"', "built-in"),
        ('[embedders.x]\nkind = "opneai"\nmodel = "x"', "did you mean 'openai'"),
        ('[embedders.x]\nkind = "openai"\nmodel = "x"', r"\$OPENAI_API_KEY"),
        ('[embedders.x]\nkind = "llama.cpp"', "path is missing"),
        ("[retrieval]\npassages = 0", "passages"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, text, message):
    """Before anything is built."""
    (tmp_path / "nearfar.toml").write_text(text)

    with pytest.raises(ConfigError, match=message):
        Settings.load(tmp_path / "nearfar.toml", environ={})


def test_a_wrong_path_makes_no_collection(tmp_path):
    """And an empty collection is called empty."""
    desk = Desk(tmp_path)
    (tmp_path / "nothing").mkdir()

    desk.run("index", "birds", "docs/none.txt", code=1)
    assert desk.json("index") == []
    desk.run("index", "none", "nothing")
    desk.run("search", "none", "eggs", code=1)
    assert "'none' is empty" in desk.said


def test_a_damaged_collection_hides_no_other(tmp_path):
    """It is named with what to do; the list goes on."""
    desk = Desk(tmp_path)
    desk.run("index", "birds", "docs")
    (path,) = (tmp_path / "home").rglob("birds/collection.db")
    desk.run("index", "more", "docs")
    path.write_bytes(b"no database at all")

    assert "more" in desk.run("index", code=1)
    assert "'birds' is damaged" in desk.said
    listed = {page["collection"]: page for page in desk.json("index", code=1)}
    assert listed["more"]["documents"] == 2
    assert "damaged" in listed["birds"]["error"]
    desk.run("search", "birds", "eggs", code=1)


def test_names_steer_no_terminal(tmp_path):
    """Escapes of either kind, marks of direction and newlines in a file's name and text."""
    desk = Desk(tmp_path)
    name = "a\n1. fake \x1b[31m\x9b31m\u202etxt"
    (tmp_path / "docs" / name).write_text("Storks \x9b2J nest \u202eon chimneys.")

    desk.run("index", "birds", "docs")
    first, *text = desk.run("search", "birds", "Storks nest on chimneys", "-k", "1").splitlines()

    assert first.endswith("docs/a 1. fake [31m31mtxt:1")
    assert text[0] == "   Storks 2J nest on chimneys."


def test_an_interrupted_run_keeps_what_it_did(tmp_path):
    """Ctrl-C in the middle: a line that says so, exit code 130, and the same command goes on."""
    desk = Desk(tmp_path)
    for number in range(1500):
        (tmp_path / "docs" / f"{number}.txt").write_text(f"Entry {number} speaks of word{number}.")
    command = [sys.executable, "-m", "nearfar.cli", "index", "birds", "docs"]

    with subprocess.Popen(command, cwd=tmp_path, env=os.environ | desk.environment, stderr=subprocess.PIPE) as child:
        while not list((tmp_path / "home").rglob("birds/collection.db-wal")):
            time.sleep(0.01)
        while not desk.num_documents("birds"):
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        said = child.stderr.read().decode()

    assert child.returncode == 130
    assert "what is in 'birds' is kept" in said
    kept = desk.num_documents("birds")
    assert 0 < kept < 1502
    again = desk.json("index", "birds", "docs")
    assert (again["added"], again["unchanged"]) == (1502 - kept, kept)


def test_a_collection_whose_embedder_was_not_there_is_begun_anew(tmp_path):
    """It has no vectors yet, and takes the config's embedder, not none."""
    desk = Desk(tmp_path)
    away = '[embedders.away]\nkind = "openai"\nurl = "http://127.0.0.1:9/v1"\nmodel = "x"\ndim = 8\n'
    (tmp_path / "nearfar.toml").write_text(CONFIG + away)

    desk.run("index", "birds", "docs", "--embedder", "away", code=1)
    assert "cannot be reached" in desk.said
    desk.run("index", "birds", "docs")

    assert desk.json("index")[0]["embedder"].startswith("wordllama")
