"""What was recorded is given again, and nothing else is."""

import csv
import gzip
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from contracts.chat_model import ChatModelContract, assert_joined, collect

from nearfar.errors import ConfigError, DataError, UnsupportedOption, UpstreamRejected
from nearfar.models.replay import OutcomeTable, ReplayModel
from nearfar.types import Message, Price, Query, SamplingOptions, ToolSpec

ROWS = [
    {"query": "Say hello.", "model": "big", "response": "Hello there, dear reader!\n", "correct": 1},
    {"query": "2 + 2?", "model": "big", "response": "5", "correct": 0, "cost": 0.25, "latency_ms": 1200.5},
    {"query": "2 + 2?", "model": "small", "response": None, "correct": 1},
    {"query": "Capital\n of  France?", "model": "big", "response": "Paris", "correct": 1},
    {"query": "Capital of France?", "model": "big", "response": "Lyon", "correct": 0},
    {"query": "Capital of France?", "model": "big", "response": "Nice", "correct": 0},
]
PRICE = Price(10.0, 30.0)


def big(rows=ROWS, **options):
    return ReplayModel(OutcomeTable(rows), **{"name": "far", "model": "big", "placement": "far", **options})


class TestReplayKeepsTheContract(ChatModelContract):
    """As far as a recording can."""

    long_prompt = ChatModelContract.prompt
    unicode_prompt = "Répète 🙂"
    honours_lengths = False

    @pytest.fixture
    async def model(self):
        rows = [*ROWS, {"query": self.unicode_prompt, "model": "big", "response": "naïve 日本語 🙂", "correct": 1}]
        model = big(rows, price=PRICE)
        yield model
        await model.aclose()


class TestOutcomesWithoutTextKeepTheContract(ChatModelContract):
    """Where a table records correctness alone."""

    long_prompt = unicode_prompt = ChatModelContract.prompt
    honours_lengths = False
    outcome_only = True

    @pytest.fixture
    async def model(self):
        return big([{"query": self.prompt, "model": "big", "correct": 1}])


async def test_the_recorded_answer_comes_back_and_says_what_it_is():
    """Text, grade, cost and time as recorded; nothing is waited for."""
    answer = await big(price=PRICE).complete(Query("2 + 2?"))

    assert (answer.text, answer.model, answer.correct) == ("5", "far", 0.0)
    assert (answer.cost_usd, answer.is_cost_estimated) == (0.25, False)
    assert answer.extra == {"recorded": True, "latency_ms": 1200.5}
    assert answer.latency_s < 1
    assert big().card.is_recording


async def test_an_unrecorded_question_is_refused():
    """By name, and not as a failure of the server."""
    with pytest.raises(UpstreamRejected, match=r"'far' replays .*'Who are you\?' is not recorded"):
        await big().complete(Query("Who are you?"))
    with pytest.raises(UpstreamRejected):
        await collect(big().stream(Query("Who are you?")))


async def test_the_last_user_message_is_the_question():
    """Whatever stands before it, and however its lines are broken."""
    turns = (
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Hi"),
        Message("user", " 2  +\n2? "),
    )

    assert (await big().complete(Query(turns))).text == "5"


async def test_repeated_rows_are_one_outcome():
    """The first text, and the mean of the grades."""
    answer = await big().complete(Query("Capital of France?"))

    assert answer.text == "Paris"
    assert answer.correct == pytest.approx(1 / 3)


async def test_a_cost_that_is_not_recorded_is_estimated_and_says_so():
    """At a quarter of the text's bytes; not at all where there is no price."""
    priced = await big(price=PRICE).complete(Query("Say hello."))
    unpriced = await big().complete(Query("Say hello."))

    assert (priced.usage.prompt_tokens, priced.usage.completion_tokens) == (3, 7)
    assert priced.usage.is_estimated
    assert priced.is_cost_estimated
    assert priced.cost_usd == pytest.approx((3 * 10 + 7 * 30) / 1e6)
    assert unpriced.cost_usd is None
    assert not unpriced.is_cost_estimated


async def test_recorded_tokens_make_an_exact_cost():
    """Nothing about it is estimated then."""
    rows = [{"query": "q", "model": "big", "correct": 1, "prompt_tokens": 100, "completion_tokens": 50.0}]

    answer = await big(rows, price=PRICE).complete(Query("q"))

    assert answer.outcome_only
    assert not answer.is_cost_estimated
    assert answer.cost_usd == pytest.approx((100 * 10 + 50 * 30) / 1e6)


async def test_an_outcome_without_text_is_marked():
    """Empty, graded, and at a length that is assumed."""
    model = ReplayModel(
        OutcomeTable(ROWS), name="s", model="small", placement="near", price=PRICE, assumed_output_tokens=300
    )

    answer = await model.complete(Query("2 + 2?"))
    events, streamed = await collect(model.stream(Query("2 + 2?")))

    assert (answer.text, answer.outcome_only, answer.correct) == ("", True, 1.0)
    assert answer.usage.completion_tokens == 300
    assert answer.is_cost_estimated
    assert events == []
    assert streamed.outcome_only


async def test_the_card_bounds_the_cost_of_every_recorded_answer():
    """So that a budget can reserve for it."""
    model = big(price=PRICE)

    for question in ("Say hello.", "Capital of France?"):
        query = Query(question)
        assert (await model.complete(query)).cost_usd <= model.card.cost_bound_usd(query)


async def test_a_recording_says_what_it_cannot_do():
    """Tools and log-probabilities were not recorded."""
    for query in (Query("2 + 2?", tools=(ToolSpec("f"),)), Query("2 + 2?", sampling=SamplingOptions(logprobs=True))):
        with pytest.raises(UnsupportedOption, match="replays recorded answers"):
            await big().complete(query)


async def test_every_character_streams():
    """White space at either end too."""
    rows = [{"query": "q", "model": "big", "response": "\n  two  words \t\n", "correct": 1}]

    events, answer = await collect(big(rows).stream(Query("q")))

    assert_joined(events, answer)
    assert len(events) == 3


def test_a_model_that_is_not_in_the_table_is_a_mistake_in_the_config():
    """The message names those that are."""
    with pytest.raises(ConfigError, match="no rows of; it has 'big', 'small'"):
        big(model="huge")


# --- files -----------------------------------------------------------------------------------------------------------


def write(path, rows):
    """The rows in the format of the file's name."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8", newline="") as file:
        if kind == "jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list({key: None for row in rows for key in row}))
            writer.writeheader()
            writer.writerows(rows)
    return path


FORMATS = ["t.parquet", "t.jsonl", "t.jsonl.gz", "t.csv", "t.csv.gz"]
FULL = [{"cost": None, "latency_ms": None, **row} for row in ROWS]


@pytest.mark.parametrize("name", FORMATS)
async def test_every_format_gives_the_same_table(tmp_path, name):
    """Parquet, JSON lines and CSV, the last two packed or not."""
    table = OutcomeTable.load(write(tmp_path / name, FULL))

    assert table.models == ("big", "small")
    assert len(table) == 4
    found = table.find("big", "2 + 2?")
    assert (found.response, found.correct, found.cost_usd, found.latency_ms) == ("5", 0.0, 0.25, 1200.5)
    assert table.find("big", "Capital of France?").correct == pytest.approx(1 / 3)
    assert table.find("small", "2 + 2?").correct == 1.0
    assert table.find("small", "Say hello.") is None


@pytest.mark.parametrize("name", FORMATS)
def test_columns_of_other_names_are_mapped(tmp_path, name):
    """Ours to the table's."""
    rows = [{"question": "q", "llm": "big", "score": 0.5, "usd": 0.1}]
    columns = {"query": "question", "model": "llm", "correct": "score", "cost": "usd"}

    found = OutcomeTable.load(write(tmp_path / name, rows), columns).find("big", "q")

    assert (found.correct, found.cost_usd, found.response) == (0.5, 0.1, None)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("row", "columns", "missing"),
    [
        ({"question": "q", "llm": "m", "correct": 1}, {}, "query, model; it has question, llm, correct"),
        ({"query": "q", "model": "m"}, {}, "response or correct; it has query, model"),
        ({"query": "q", "model": "m", "correct": 1}, {"cost": "usd"}, "usd; it has query, model, correct"),
    ],
)
def test_missing_columns_are_named_with_those_that_are_there(tmp_path, name, row, columns, missing):
    """And the message says how to map them."""
    with pytest.raises(DataError, match=f"has no column {missing}. Map the names") as caught:
        OutcomeTable.load(write(tmp_path / name, [row]), columns)

    assert caught.value.path == str(tmp_path / name)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"query": "q", "model": "m", "correct": 7}, r"Row 2 of '.*': correct must be in \[0, 1\], not 7"),
        ({"query": "q", "model": "m", "correct": "maybe"}, "Row 2 of '.*': correct must be a number, not 'maybe'"),
        ({"query": "q", "model": "m", "correct": 1, "cost": -1}, "Row 2 of '.*': cost must be a number ≥ 0"),
        ({"query": None, "model": "m", "correct": 1}, "Row 2 of '.*': query and model must be texts"),
        ({"query": "q", "model": "m", "correct": 1, "response": 5}, "Row 2 of '.*': response must be a text"),
    ],
)
def test_a_broken_row_is_named(tmp_path, row, fault):
    """By its number."""
    good = {"query": "a", "model": "m", "response": "x", "correct": True, "cost": 1.0}

    with pytest.raises(DataError, match=fault):
        OutcomeTable.load(write(tmp_path / "t.jsonl", [good, row]))


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("t.jsonl", b'{"query": 1\n', "Line 1 of .* is no JSON object"),
        ("t.jsonl", b"\n[1]\n", "Line 2 of .* is no JSON object"),
        ("t.jsonl.gz", b"not gzip", "Cannot read .*Not a gzipped file"),
        (
            "t.jsonl.gz",
            gzip.compress(b'{"query": "q", "model": "m", "correct": 1}' * 99, mtime=0)[:-9],
            "is broken: Compressed file",
        ),
        ("t.csv", b"query,model,correct\n\xff\xfe,m,1\n", "is not UTF-8"),
        ("t.csv", b"", "has no column query, model; it has none"),
        ("t.parquet", b"not parquet", "is not a parquet file"),
        ("t.xlsx", b"", "is no outcome table: name a .parquet, .jsonl or .csv file"),
    ],
)
def test_a_broken_file_is_named_with_the_fix(tmp_path, name, content, fault):
    """In one line."""
    (tmp_path / name).write_bytes(content)

    with pytest.raises(DataError, match=fault) as caught:
        OutcomeTable.load(tmp_path / name)

    assert "\n" not in str(caught.value)
    assert caught.value.path == str(tmp_path / name)


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_file_is_named(tmp_path, name):
    """As such."""
    with pytest.raises(DataError, match=r"Cannot read .*No such file"):
        OutcomeTable.load(tmp_path / name)


def test_a_column_that_we_do_not_have_cannot_be_mapped(tmp_path):
    """A typo in the config is found at once."""
    with pytest.raises(ConfigError, match="columns has 'qeury'; it can map query, model"):
        OutcomeTable.load(write(tmp_path / "t.jsonl", ROWS), {"qeury": "question"})


def test_parquet_without_pyarrow_says_what_to_install(tmp_path):
    """In an interpreter that cannot import it; the other formats need nothing."""
    parquet, jsonl = write(tmp_path / "t.parquet", FULL), write(tmp_path / "t.jsonl", FULL)
    script = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from nearfar.errors import ConfigError\n"
        "from nearfar.models.replay import OutcomeTable\n"
        "print(len(OutcomeTable.load(sys.argv[2])))\n"
        "try: OutcomeTable.load(sys.argv[1])\n"
        "except ConfigError as exc: print(exc)\n"
    )

    done = subprocess.run([sys.executable, "-c", script, parquet, jsonl], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[0] == "4"
    assert "pip install 'nearfar[fit]'" in done.stdout
