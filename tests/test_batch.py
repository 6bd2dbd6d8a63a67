"""Batches: order, resuming, budgets, bad records. Kills of the real process are at the end."""

import asyncio
import csv
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.counting_upstream import CountingUpstream

from nearfar.batch import run_batch
from nearfar.errors import ConfigError, DataError, UpstreamUnavailable
from nearfar.router.cascade import Cascade, Tier
from nearfar.router.router import Router
from nearfar.router.scorers import MeanProbability
from nearfar.testing import ScriptedModel
from nearfar.types import (
    FREE,
    Answer,
    Message,
    ModelCard,
    Price,
    Query,
    SamplingOptions,
    TokenLogprob,
    Usage,
)


class Echo(ScriptedModel):
    """Answers every prompt with itself in capitals, the later ones first; some prompts fail as often as told."""

    def __init__(self, *, name="echo", price=FREE, fail=(), fails=1):
        placement = "near" if price == FREE else "far"
        card = ModelCard(name, placement, price=price, max_output_tokens=10, supports_logprobs=True)
        super().__init__(["-"], name=name, card=card)
        self.failures = Counter(dict.fromkeys(fail, fails))
        self.billed_usd = 0.0

    async def complete(self, query):
        self.queries.append(query)
        await asyncio.sleep(0.001 * (len(query.text) % 3))
        if self.failures[query.text] > 0:
            self.failures[query.text] -= 1
            raise UpstreamUnavailable("echo is down", model=self.card.name)
        usage = Usage(len(query.text), 1 + len(query.text) % 10)
        cost = self.card.price.cost_usd(usage)
        self.billed_usd += cost
        logprobs = tuple(TokenLogprob(letter, -0.1) for letter in query.text) if query.sampling.logprobs else None
        return Answer(query.text.upper(), self.card.name, logprobs=logprobs, usage=usage, cost_usd=cost)

    @property
    def asked(self):
        """The prompts, in the order in which they came."""
        return [query.text for query in self.queries]


def router_of(*models):
    """A router with one cascade of these models."""
    tiers = [Tier(model, scorer=MeanProbability()) for model in models]
    return Router({"auto": Cascade(tiers, name="auto")}, {model.card.name: model for model in models})


def write_jsonl(path, records):
    """The records in a JSONL file."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def read_jsonl(path):
    """The records of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


async def test_results_are_in_the_inputs_order(tmp_path):
    """Whatever finishes first, the output has the input's order, ids and kept fields."""
    source = write_jsonl(
        tmp_path / "in.jsonl", [{"id": f"r{i}", "prompt": "x" * (i + 1), "gold": i} for i in range(50)]
    )

    report = await run_batch(router_of(Echo()), source, tmp_path / "out.jsonl", concurrency=7, keep=["gold"])

    results = read_jsonl(tmp_path / "out.jsonl")
    assert [result["answer"] for result in results] == ["X" * (i + 1) for i in range(50)]
    assert [(result["id"], result["gold"], result["line"]) for result in results] == [
        (f"r{i}", i, i + 1) for i in range(50)
    ]
    assert report.counts == {"answered": 50, "abstained": 0, "refused": 0, "failed": 0, "invalid": 0}
    assert not (tmp_path / "out.jsonl.partial").exists()


async def test_a_record_overrides_the_template(tmp_path):
    """What a record sets goes before the options of the batch; its messages come after theirs."""
    model = Echo()
    source = write_jsonl(
        tmp_path / "in.jsonl",
        [
            {"prompt": "a"},
            {"prompt": "b", "max_tokens": 5, "stop": "\n", "system": "Be brief.", "privacy": "near", "session": "s"},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "c"}]}], "temperature": 1.5},
        ],
    )
    template = Query((Message("system", "Be kind."),), sampling=SamplingOptions(max_tokens=3, temperature=0.0))

    await run_batch(router_of(model), source, tmp_path / "out.jsonl", template=template, concurrency=1)

    first, second, third = model.queries
    assert [message.text for message in first.messages] == ["Be kind.", "a"]
    assert (first.sampling.max_tokens, first.sampling.temperature, first.sampling.stop) == (3, 0.0, ())
    assert [message.text for message in second.messages] == ["Be kind.", "Be brief.", "b"]
    assert (second.sampling.max_tokens, second.sampling.stop) == (5, ("\n",))
    assert (second.privacy, second.session) == ("near", "s")
    assert (third.text, third.sampling.temperature) == ("c", 1.5)


BAD_LINES = [
    (b"{broken", "not a JSON object"),
    (b'"text"', "not a JSON object"),
    (b'{"prompt": "caf\xe9"}', "not UTF-8"),
    (b"{}", "neither prompt nor messages"),
    (b'{"prompt": "  "}', "the prompt is empty"),
    (b'{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}', "both prompt and messages"),
    (b'{"prompt": "a", "gold": 1}', "unknown field 'gold'; carry it over with --keep gold"),
    (b'{"prompt": "a", "max_tokens": "ten"}', "max_tokens"),
    (b'{"prompt": "a", "max_tokens": 0}', "max_tokens must be at least 1"),
    (b'{"prompt": "a", "privacy": "secret"}', "privacy"),
    (b'{"prompt": "a", "model": "nobody"}', "no model 'nobody'"),
    (b'{"messages": [{"role": "user", "content": [{"type": "video"}]}]}', "unknown content part 'video'"),
    (b'{"messages": [{"role": "king", "content": "a"}]}', "role"),
]


async def test_bad_records_are_results_too(tmp_path):
    """Every bad record gets its own error with its line number, and the good ones are answered."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\xef\xbb\xbf" + b'{"prompt": "good"}\n\n' + b"\n".join(line for line, _ in BAD_LINES))

    report = await run_batch(router_of(Echo()), source, tmp_path / "out.jsonl")

    good, *bad = read_jsonl(tmp_path / "out.jsonl")
    assert good["answer"] == "GOOD"
    assert report.num_bad == len(bad) == len(BAD_LINES)
    for number, (result, (_, says)) in enumerate(zip(bad, BAD_LINES, strict=True), start=3):
        assert result["status"] == "invalid"
        assert f"line {number}: " in result["error"]
        assert says in result["error"]


async def test_csv_in_and_out(tmp_path):
    """A CSV gives the same results as JSONL: quoted newlines, empty cells, numbers, kept columns."""
    source = tmp_path / "in.csv"
    with source.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(
            [["id", "prompt", "max_tokens", "gold"], ["1", 'two\nlines, "x"', "", "a"], ["2", "é", "4", ""]]
        )
    model = Echo()

    await run_batch(router_of(model), source, tmp_path / "out.csv", keep=["gold"], concurrency=1)

    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["answer"], row["gold"]) for row in rows] == [("1", 'TWO\nLINES, "X"', "a"), ("2", "É", "")]
    assert [query.sampling.max_tokens for query in model.queries] == [None, 4]


async def test_bad_csv_rows_are_results_too(tmp_path):
    """A row that is too short, not UTF-8 or not a number where one is due is one bad result."""
    source = tmp_path / "in.csv"
    source.write_bytes(b"prompt,max_tokens\ngood,1\nshort\ncaf\xe9,1\nbad,ten\n")

    await run_batch(router_of(Echo()), source, tmp_path / "out.jsonl")

    results = read_jsonl(tmp_path / "out.jsonl")
    assert [result["status"] for result in results] == ["answered", "invalid", "invalid", "invalid"]
    assert "fewer cells" in results[1]["error"]
    assert "not UTF-8" in results[2]["error"]


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("question,id", "no column 'prompt'.*--prompt-field"),
        ("prompt,gold", "column 'gold'.*--keep 'gold'"),
        ("", "no column"),
    ],
)
async def test_a_csv_with_the_wrong_columns_is_refused_at_once(tmp_path, header, says):
    """Columns that cannot be records are refused before anything is asked, and leave nothing behind."""
    source = tmp_path / "in.csv"
    source.write_text(f"{header}\na,b\n" if header else "")

    with pytest.raises(DataError, match=says):
        await run_batch(router_of(Echo()), source, tmp_path / "out.jsonl")

    assert list(tmp_path.iterdir()) == [source]


async def test_failed_records_can_be_asked_again(tmp_path):
    """A failed record has its error; asking again asks the failed ones alone."""
    model = Echo(fail=["b", "d"])
    source = write_jsonl(tmp_path / "in.jsonl", [{"prompt": letter} for letter in "abcde"])
    out = tmp_path / "out.jsonl"

    first = await run_batch(router_of(model), source, out)
    failed = [result for result in read_jsonl(out) if result["status"] == "failed"]
    again = await run_batch(router_of(model), source, out)
    asked_before = len(model.queries)
    second = await run_batch(router_of(model), source, out, retry_failed=True)

    assert first.counts["failed"] == again.counts["failed"] == 2
    assert all("echo is down" in result["error"] for result in failed)
    assert asked_before == 5
    assert sorted(model.asked[5:]) == ["b", "d"]
    assert second.counts["answered"] == 5
    assert [result["answer"] for result in read_jsonl(out)] == list("ABCDE")
    assert not (tmp_path / "out.jsonl.partial").exists()


async def test_a_stopped_batch_goes_on_where_it_was(tmp_path):
    """Stopping finishes what is in flight; the next run asks the rest and nothing twice."""
    model = Echo()
    source = write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"p{i}"} for i in range(30)])
    out = tmp_path / "out.jsonl"
    stop = asyncio.Event()

    first = await run_batch(
        router_of(model), source, out, concurrency=3, stop=stop, on_progress=lambda p: p.done >= 10 and stop.set()
    )
    second = await run_batch(router_of(model), source, out)

    assert first.stopped_by == "interrupt"
    assert 10 <= first.done < 30
    assert first.journal is not None
    assert second.resumed == first.done
    assert sorted(model.asked) == sorted(f"p{i}" for i in range(30))
    assert [result["answer"] for result in read_jsonl(out)] == [f"P{i}" for i in range(30)]


async def test_a_changed_input_is_refused(tmp_path):
    """Results of another input are never mixed in; beginning anew is possible."""
    source = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    out = tmp_path / "out.jsonl"
    await run_batch(router_of(Echo(fail=["a"])), source, out)
    write_jsonl(source, [{"prompt": "a"}, {"prompt": "c"}])

    with pytest.raises(DataError, match="input has changed"):
        await run_batch(router_of(Echo()), source, out)
    await run_batch(router_of(Echo()), source, out, force=True)

    assert [result["answer"] for result in read_jsonl(out)] == ["A", "C"]


async def test_other_options_are_refused(tmp_path):
    """A resumed batch with another model or temperature would be two batches in one."""
    source = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}])
    out = tmp_path / "out.jsonl"
    await run_batch(router_of(Echo(fail=["a"])), source, out)

    with pytest.raises(DataError, match=r"other options \(model\)"):
        await run_batch(router_of(Echo()), source, out, template=Query((), model="echo"))


async def test_a_finished_output_is_not_overwritten(tmp_path):
    """An output that is there is left alone unless told otherwise."""
    source = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}])
    out = tmp_path / "out.jsonl"
    out.write_text("mine")

    with pytest.raises(DataError, match="is there already"):
        await run_batch(router_of(Echo()), source, out)

    assert out.read_text() == "mine"
    assert not (tmp_path / "out.jsonl.partial").exists()


async def test_two_batches_on_one_output_are_refused(tmp_path):
    """While one batch works on an output, another on it is refused."""
    source = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    out = tmp_path / "out.jsonl"
    refusals = []

    async def second():
        with pytest.raises(DataError, match="Another process is working"):
            await run_batch(router_of(Echo()), source, out)
        refusals.append(1)

    tasks = []
    await run_batch(
        router_of(Echo()),
        source,
        out,
        concurrency=1,
        on_progress=lambda p: tasks.append(asyncio.ensure_future(second())) if p.done == 1 else None,
    )
    await asyncio.gather(*tasks, return_exceptions=True)

    assert len(refusals) == 1


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        ("none.jsonl", "out.jsonl", "no file"),
        ("in.jsonl", "in.jsonl", "is the input"),
        ("in.jsonl", "no/where.jsonl", "no folder"),
        ("in.jsonl", "out.xlsx", r"Name it \.jsonl or \.csv"),
    ],
)
async def test_impossible_paths_are_refused(tmp_path, source, target, says):
    """Paths that cannot work are refused before anything is asked."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}])

    with pytest.raises(ConfigError, match=says):
        await run_batch(router_of(Echo()), tmp_path / source, tmp_path / target)


PRICE = Price(100.0, 1000.0)  # dear, so that a batch reaches its budget


def cost_bound(prompt):
    """The most that one record of these tests may cost."""
    card = ModelCard("echo", "far", price=PRICE, max_output_tokens=10)
    bound = card.cost_bound_usd(Query(prompt))
    assert bound is not None
    return bound


async def test_a_batch_stops_at_its_budget_and_goes_on_with_more(tmp_path):
    """Never more than the budget is spent, the stop is clean, and a larger budget goes on."""
    source = write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"p{i}"} for i in range(20)])
    out = tmp_path / "out.jsonl"
    model = Echo(price=PRICE)
    budget = 4 * cost_bound("p0")

    first = await run_batch(router_of(model), source, out, budget_usd=budget)
    second = await run_batch(router_of(model), source, out, budget_usd=100.0)

    assert first.stopped_by == "budget"
    assert 4 <= first.done < 20
    assert 0 < first.cost_usd <= budget
    assert second.counts["answered"] == 20
    assert sorted(model.asked) == sorted(f"p{i}" for i in range(20))
    assert second.cost_usd == pytest.approx(sum(r["cost_usd"] for r in read_jsonl(out)))


async def test_a_free_model_needs_no_budget(tmp_path):
    """A budget of nothing stops nothing that costs nothing."""
    source = write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"p{i}"} for i in range(5)])
    free = ScriptedModel(["yes"], confidence=0.9)

    report = await run_batch(router_of(free), source, tmp_path / "out.jsonl", budget_usd=0.0)

    assert report.counts["answered"] == 5


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=25),
    share=st.floats(0, 1.2),
    concurrency=st.integers(1, 9),
    fails=st.sets(st.integers(0, 24)),
)
def test_no_batch_passes_its_budget(tmp_path_factory, lengths, share, concurrency, fails):
    """Whatever the records, their number in flight and their failures, the model's bills stay within the budget."""
    folder = tmp_path_factory.mktemp("batch")
    prompts = [f"{i:02}" + "x" * length for i, length in enumerate(lengths)]
    source = write_jsonl(folder / "in.jsonl", [{"prompt": prompt} for prompt in prompts])
    budget = share * sum(cost_bound(prompt) for prompt in prompts)
    model = Echo(price=PRICE, fail=[prompts[i] for i in fails if i < len(prompts)])

    report = asyncio.run(
        run_batch(router_of(model), source, folder / "out.jsonl", budget_usd=budget, concurrency=concurrency)
    )

    assert model.billed_usd <= budget + 1e-9
    assert model.billed_usd <= report.cost_usd + 1e-9
    assert report.cost_usd <= budget + 1e-9
    assert report.done == len(prompts) or report.stopped_by == "budget"


async def test_a_torn_line_is_asked_again(tmp_path):
    """A journal that a kill has cut off anywhere goes on: around every line's end, and here and there within."""
    source = write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"p{i}"} for i in range(3)])
    out, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    await run_batch(router_of(Echo(fail=["p2"])), source, out)
    whole = journal.read_bytes()
    out.unlink()

    ends = [i for i, byte in enumerate(whole) if byte == 10]
    for length in sorted({0, *range(5, len(whole), 41), *(end + step for end in ends for step in (-1, 0, 1))}):
        journal.write_bytes(whole[:length])
        finished = {json.loads(line).get("index") for line in whole[:length].split(b"\n")[1:-1]}
        model = Echo(fail=["p2"], fails=0)
        report = await run_batch(router_of(model), source, out, retry_failed=True)
        assert report.counts["answered"] == 3
        assert {f"p{index}" for index in finished - {2}}.isdisjoint(model.asked)
        out.unlink()


async def test_a_damaged_journal_is_refused(tmp_path):
    """A journal that is not one is named, and not overwritten."""
    source = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}])
    journal = tmp_path / "out.jsonl.partial"
    journal.write_text("something else\n")

    with pytest.raises(DataError, match=r"not a batch journal.*--force"):
        await run_batch(router_of(Echo()), source, tmp_path / "out.jsonl")

    assert journal.read_text() == "something else\n"


async def test_signals_go_along_for_calibration(tmp_path):
    """Asked for, the first tier's signals are in every result, as `nearfar calibrate` reads them."""
    source = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "a b c", "correct": True}])
    out = tmp_path / "out.jsonl"

    await run_batch(router_of(Echo()), source, out, has_signals=True, keep=["correct"])

    (result,) = read_jsonl(out)
    assert result["signals"]["mean_logprob"] < 0
    assert result["correct"] is True


# --- the real process, killed ----------------------------------------------------------------------------------------

RECORDS = 150
CONCURRENCY = 6


def command(folder):
    """The command that runs the batch."""
    return [
        *(sys.executable, "-m", "nearfar.cli", "batch", "in.jsonl", "out.jsonl"),
        *("--concurrency", str(CONCURRENCY), "--budget-usd", "1000"),
    ]


@pytest.fixture
def folder(tmp_path):
    """A folder with a config and an input; what the child's environment is."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"prompt {i}"} for i in range(RECORDS)])
    return tmp_path


def environment(folder):
    """An environment with nothing of the developer's in it."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "PYTHONPATH"}}
    return {**kept, "HOME": str(folder), "NEARFAR_HOME": str(folder / "data")}


def write_config(folder, url):
    """A config whose only model is the upstream."""
    (folder / "nearfar.toml").write_text(
        f'[models.up]\nkind = "openai"\nurl = "{url}"\nmodel = "m"\nmax_output_tokens = 20\nsupports_logprobs = false\n'
        "price = { prompt_usd_per_mtok = 10, completion_usd_per_mtok = 10 }\n"
    )


def finished(folder):
    """The prompts that the journal holds results of."""
    journal = folder / "out.jsonl.partial"
    if not journal.exists():
        return set()
    lines = journal.read_bytes().split(b"\n")[1:-1]
    return {f"prompt {entry['index']}" for entry in map(json.loads, lines) if entry.get("status")}


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_nothing_is_paid_for_twice(folder, seed):
    """kill -9 at random moments, again and again: no finished record is ever asked again, and all get answered."""
    rng = random.Random(seed)
    with CountingUpstream(delay_s=0.004) as upstream:
        write_config(folder, upstream.url)
        kills = 0
        while True:
            child = subprocess.Popen(command(folder), cwd=folder, env=environment(folder), stderr=subprocess.DEVNULL)
            if kills < 6:
                upstream.wait_for(len(upstream.prompts) + rng.randint(1, RECORDS // 8), child)
                child.send_signal(signal.SIGKILL)
            code = child.wait(timeout=60)
            if code == 0:
                break
            assert code == -signal.SIGKILL
            kills += 1
            upstream.mark(finished(folder))

    results = read_jsonl(folder / "out.jsonl")
    assert kills == 6
    assert upstream.asked_after_mark == []
    assert [result["index"] for result in results] == list(range(RECORDS))
    assert all(result["answer"] == f"echo: prompt {i}" for i, result in enumerate(results))
    assert len(upstream.prompts) <= RECORDS + kills * CONCURRENCY


def test_a_kill_does_not_make_calls_free(folder):
    """What was in flight at a kill counts against the budget, at the most that it may have cost."""
    with CountingUpstream(delay_s=30.0) as upstream:
        write_config(folder, upstream.url)
        child = subprocess.Popen(command(folder), cwd=folder, env=environment(folder), stderr=subprocess.DEVNULL)
        upstream.wait_for(CONCURRENCY, child)
        child.kill()
        child.wait(timeout=60)
        upstream.delay_s = 0.0
        done = subprocess.run([*command(folder), "--json"], cwd=folder, env=environment(folder), capture_output=True)

    report = json.loads(done.stdout)
    paid = sum(result["cost_usd"] for result in read_jsonl(folder / "out.jsonl"))
    assert done.returncode == 0
    assert report["cost_usd"] > paid


def test_ctrl_c_finishes_what_is_in_flight(folder):
    """The first Ctrl-C exits with 130 and the way to go on; nothing that was paid for is lost."""
    with CountingUpstream(delay_s=0.01) as upstream:
        write_config(folder, upstream.url)
        child = subprocess.Popen(
            command(folder), cwd=folder, env=environment(folder), stderr=subprocess.PIPE, text=True
        )
        upstream.wait_for(20, child)
        child.send_signal(signal.SIGINT)
        _, stderr = child.communicate(timeout=60)
        asked = set(upstream.prompts)

        assert child.returncode == 130
        assert "run the same command to go on" in stderr
        assert "Traceback" not in stderr
        assert finished(folder) == asked
        assert not Path(folder / "out.jsonl").exists()
