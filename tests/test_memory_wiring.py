"""A memory by the config: in front of the cascades, over documents, and gone with them."""

import asyncio
import json

import openai
import pytest
from support.gateway import gateway_thread
from typer.testing import CliRunner

from nearfar.cli.app import app
from nearfar.config import Settings
from nearfar.errors import ConfigError, DataError
from nearfar.retrieval.matching import LIKENESS, MatchPolicy
from nearfar.types import Query
from nearfar.wiring import build
from nearfar.wiring.gateway import gateway_doors

pytest.importorskip("wordllama", reason="needs nearfar[retrieval]")
pytest.importorskip("bm25s", reason="needs nearfar[retrieval]")

ROWS = [{"query": "What is the capital of France?", "model": "small", "response": "It is Paris.", "correct": 1}]
MODEL = """
[models.near]
kind = "replay"
table = "table.jsonl"
model = "small"
placement = "near"
"""


@pytest.fixture
def load(tmp_path):
    """Loads a config beside a table of recorded answers and a memory's policy."""
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    MatchPolicy(0.5).save(tmp_path / "memory.json")

    def load(text, **variables):
        path = tmp_path / "nearfar.toml"
        path.write_text(text)
        return Settings.load(path, environ={"NEARFAR_HOME": str(tmp_path / "home"), **variables})

    return load


@pytest.fixture
async def wire(load):
    """Builds what a config says, and closes it after the test."""
    built = []

    def wire(text, **variables):
        built.append(build(load(text, **variables)))
        return built[-1]

    yield wire
    for wired in built:
        await wired.aclose()


async def test_memory_stands_in_front_of_the_cascades(wire):
    """Another wording is answered from it, with the policy's threshold in the decision, and across a restart."""
    text = MODEL + '[memory]\nenabled = true\npolicy = "memory.json"\n'
    await wire(text).router.answer(Query("What is the capital of France?"))

    answer = await wire(text).router.answer(Query("what's the capital of france please"))

    assert (answer.text, answer.is_cached, answer.decision.reason) == ("It is Paris.", True, "remembered")
    assert (answer.decision.threshold, answer.decision.is_calibrated) == (0.5, True)


async def test_no_memory_unless_it_is_enabled(wire):
    """Nothing is recalled, and nothing loaded."""
    wired = wire(MODEL)
    await wired.router.answer(Query("What is the capital of France?"))

    assert not (await wired.router.answer(Query("What is the capital of France?"))).is_cached
    assert wired.memory is None


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ('embedder = "nine"', r"memory\.embedder is 'nine'"),
        ('embedder = "none"', r"memory\.embedder is 'none'"),
        (
            'embedder = "cloud"\n[embedders.cloud]\nkind = "openai"\nurl = "https://x/v1"\nmodel = "m"',
            r"memory\.embedder 'cloud' is far",
        ),
        ("ttl_s = 0", r"memory\.ttl_s"),
        ('postgres_url_env = "NF_TEST_URL"', r"\$NF_TEST_URL, which is not set"),
    ],
)
def test_wrong_settings_are_refused(load, section, message):
    """With the setting at fault."""
    with pytest.raises(ConfigError, match=message):
        load(MODEL + f"[memory]\nenabled = true\n{section}\n")


@pytest.mark.parametrize("content", [None, "", "[]", '{"threshold": 2}', '{"threshold": 0.5, "matcher": "old"}'])
def test_policy_that_is_none_is_refused(load, tmp_path, content):
    """With how to make one."""
    if content is None:
        (tmp_path / "memory.json").unlink()
    else:
        (tmp_path / "memory.json").write_text(content)

    with pytest.raises(DataError, match="nearfar memory calibrate"):
        build(load(MODEL + '[memory]\nenabled = true\npolicy = "memory.json"\n'))


def test_secret_of_the_database_is_one(load):
    """It is scrubbed from logs and shown by its variable alone."""
    settings = load(
        MODEL + '[memory]\nenabled = true\npostgres_url_env = "NF_TEST_URL"\n',
        NF_TEST_URL="postgresql://u:hunter2@h/d",
    )

    assert "postgresql://u:hunter2@h/d" in settings.secrets
    assert not any("hunter2" in str(setting.value) for setting in settings.describe())


DOCS = MODEL.replace('model = "small"', 'model = "small"\ndocs = "atlas"') + (
    '[memory]\nenabled = true\npolicy = "memory.json"\n'
)


async def test_answer_from_a_document_goes_with_it(wire, load, tmp_path):
    """A model with documents cites them; what is remembered of it is forgotten once the document changed."""
    from nearfar.retrieval.indexing import index_paths
    from nearfar.wiring.documents import open_collection_writer

    page = tmp_path / "france.txt"

    def index(text):
        page.write_text(text)
        with open_collection_writer(load(DOCS), "atlas") as writer:
            index_paths(writer, [page])

    index("The capital of France is Paris, on the Seine.")
    question = Query("What is the capital of France?")
    shown = load(DOCS)
    prompt = build_prompt(shown, question)
    with (tmp_path / "table.jsonl").open("a") as table:
        table.write(json.dumps({"query": prompt, "model": "small", "response": "It is Paris.", "correct": 1}) + "\n")
    wired = wire(DOCS)

    first = await wired.router.answer(question)
    again = await wired.router.answer(question)

    assert first.extra["citations"][0]["source"] == str(page)
    assert first.decision.steps[0].signals["retrieval_coverage"] == 1.0
    assert (first.is_cached, again.is_cached, again.text) == (False, True, "It is Paris [1].")

    index("Nothing about it any more: the capital of France is unknown.")
    assert await wired.memory.recall(question.text, scope_of(wired, question)) is not None
    assert await wired.router._recall._memory.recall(question.text, scope_of(wired, question)) is None
    assert await wired.memory.recall(question.text, scope_of(wired, question)) is None


def build_prompt(settings, question):
    """What the model is asked: the question with its passages."""
    from nearfar.retrieval.grounding import PASSAGE_TOKENS, PASSAGES, fit_passages, grounded_messages
    from nearfar.wiring.documents import open_collection

    collection = open_collection(settings, "atlas")
    hits = fit_passages(collection.search(question.text, k=PASSAGES), PASSAGE_TOKENS)
    collection.close()
    return grounded_messages(question, hits)[-1].text


def scope_of(wired, question):
    """Whose memory the question is answered from."""
    return wired.router._recall.scope(question, wired.cascades["auto"])


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, load):
    """Runs `nearfar memory …` over the config."""
    load(MODEL + '[memory]\nenabled = true\npolicy = "memory.json"\n')

    def run(*words, config=True):
        extra = ["--config", str(tmp_path / "nearfar.toml")] if config else []
        env = {"NEARFAR_HOME": str(tmp_path / "home")}
        return CliRunner(env=env).invoke(app, ["memory", *words, *extra], standalone_mode=False)

    return run


def test_command_shows_and_forgets(run, tmp_path):
    """By user, or all; nothing without saying what."""
    shown = run("show", "--json")
    assert json.loads(shown.stdout) == {"memos": 0, "scopes": 0, "sources": 0}

    assert json.loads(run("forget", "--user", "ann", "--json").stdout) == {"forgotten": 0}
    assert "0 answers forgotten" in run("forget", "--all").stdout
    for words in ([], ["--all", "--user", "ann"]):
        assert "Say what to forget" in str(run("forget", *words).exception)


def test_command_fits_a_threshold(run, tmp_path):
    """On labelled pairs; the file is what the config names."""
    pairs = tmp_path / "pairs.jsonl"
    rows = []
    for number in range(120):
        city = f"Town{chr(65 + number % 26)}{number // 26}ville"
        question = f"Who is the mayor of {city} in the north?"
        rows.append(
            {
                "question": f"please tell me who is the mayor of {city.lower()} in the north",
                "remembered": question,
                "same": True,
            }
        )
        rows.append({"question": question.replace("north", "south"), "remembered": question, "same": False})
        rows.append({"question": question.replace("mayor", "sheriff"), "remembered": question, "same": False})
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "fitted.json"

    result = run("calibrate", str(pairs), "--alpha", "0.05", "--out", str(out), "--json", config=False)

    fitted = json.loads(result.stdout)
    assert fitted["matcher"] == LIKENESS
    assert fitted["accuracy"] >= 0.95
    assert fitted["guarantee"]["target"] == "accepted-error"
    assert MatchPolicy.load(out).threshold == fitted["threshold"] > 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "a"}', "line 1"),
        ('{"question": "a", "remembered": "b", "same": 2}', "line 1"),
        ("\n[]", "line 2"),
        ("", "0 labelled answers are too few"),
        ('{"question": "a", "remembered": "a", "same": true}', "too few"),
    ],
)
def test_command_refuses_pairs_that_are_none(run, tmp_path, content, message):
    """With the line at fault."""
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(content)

    result = run("calibrate", str(pairs), "--out", str(tmp_path / "x.json"), config=False)

    assert isinstance(result.exception, DataError)
    assert message in str(result.exception)


# --- over HTTP -------------------------------------------------------------------------------------------------------


async def test_clients_get_remembered_answers_vectors_and_ranks(wire):
    """Whole and streamed, with the tier in the headers; the embedders and rerankers are the config's."""
    wired = wire(MODEL + '[memory]\nenabled = true\npolicy = "memory.json"\n')

    def ask() -> None:
        with (
            gateway_thread(wired.router, doors=gateway_doors(wired.settings)) as url,
            openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        ):
            say = client.chat.completions.with_raw_response.create
            first = say(model="auto", messages=[{"role": "user", "content": "What is the capital of France?"}])
            other = [{"role": "user", "content": "what's the capital of france"}]
            second = say(model="auto", messages=other)
            stream = list(client.chat.completions.create(model="auto", messages=other, stream=True))
            afresh = {"nearfar": {"memory": False}}
            with pytest.raises(openai.APIStatusError):  # the recorded model does not know this wording
                client.chat.completions.create(model="auto", messages=other, extra_body=afresh)
            vector = client.embeddings.create(model="default", input="hello").data[0].embedding
            body = {"query": "mice", "documents": ["Dogs bark.", "Cats hunt mice."]}
            ranked = client.post("/rerank", body=body, cast_to=object)

        assert first.headers["x-nearfar-tier"] == "near"
        assert second.headers["x-nearfar-tier"] == "memory"
        assert second.parse().choices[0].message.content == "It is Paris."
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == "It is Paris."
        assert len(vector) == 256
        assert ranked["results"][0]["index"] == 1

    await asyncio.to_thread(ask)
