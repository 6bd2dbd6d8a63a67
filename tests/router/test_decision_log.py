"""The decision log on a real SQLite file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from nearfar.errors import RequestError
from nearfar.router.decision_log import DECISIONS, SqliteDecisionLog, redact
from nearfar.router.trail import new_decision_id
from nearfar.store import Store
from nearfar.types import Candidate, Decision, Departure, Message, Query, Step, Usage


def a_decision(**changes: object) -> Decision:
    query = Query((Message("user", "my secret question"),), metadata={"who": "secret me"})
    decision = Decision(
        id=new_decision_id(),
        created_at=time.time(),
        status="answered",
        reason="confident",
        door="python",
        target="auto",
        tier="near",
        model="smollm2",
        score=0.9,
        threshold=0.8,
        is_calibrated=False,
        policy="uncalibrated",
        propensity=1.0,
        candidates=(Candidate("near", "smollm2", "near", True, ""),),
        steps=(
            Step("near", "smollm2", "near", "accepted", "score", 0.9, 0.8, signals={"mean_logprob": -0.1},
                 usage=Usage(3, 4), cost_usd=0.0, text="my secret answer"),
        ),
        departures=(Departure("gpt", 1, 18, "ab" * 32),),
        cost_usd=0.0,
        is_cost_estimated=False,
        latency_s={"total": 0.5},
        request=msgspec.to_builtins(query),
    )  # fmt: skip
    return replace(decision, **changes)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "nearfar.db", [DECISIONS])
    yield store
    store.close()


async def test_a_decision_comes_back_as_it_was_written(store: Store):
    """Every field of a record survives the file."""
    log = SqliteDecisionLog(store)
    decision = a_decision()

    log.submit(decision)
    await log.flush()

    for key in (decision.id, decision.id[:12]):
        assert msgspec.json.encode(await log.get(key)) == msgspec.json.encode(decision)


async def test_an_unknown_id_is_none_and_a_shared_prefix_is_refused(store: Store):
    """A prefix must name one decision."""
    log = SqliteDecisionLog(store)
    for tail in ("a", "b"):
        log.submit(a_decision(id=f"0123456789ab{tail}"))
    await log.flush()

    assert await log.get("ffff") is None
    assert await log.get("") is None
    assert await log.get("0123456789aba") is not None
    with pytest.raises(RequestError, match="Several"):
        await log.get("0123")


async def test_selecting_filters_and_gives_the_newest_first(store: Store):
    """Filters narrow, the limit counts, the newest come first."""
    log = SqliteDecisionLog(store)
    for i in range(10):
        log.submit(a_decision(created_at=1000.0 + i, tier="near" if i % 2 else "far"))
    await log.flush()

    newest = await log.select(limit=3)
    far = await log.select(tier="far", since=1002.0, before=1008.0)

    assert [decision.created_at for decision in newest] == [1009.0, 1008.0, 1007.0]
    assert [decision.created_at for decision in far] == [1006.0, 1004.0, 1002.0]
    assert await log.select(status="failed") == []


async def test_iterating_gives_everything_once_oldest_first(store: Store):
    """Export walks the whole log in batches, and can go on where it stopped."""
    log = SqliteDecisionLog(store)
    for i in range(25):
        log.submit(a_decision(created_at=float(i)))
    await log.flush()

    seen = [(seq, decision.created_at) async for seq, decision in log.iterate(batch=10)]
    rest = [decision.created_at async for _, decision in log.iterate(after=seen[19][0])]

    assert [created_at for _, created_at in seen] == [float(i) for i in range(25)]
    assert rest == [20.0, 21.0, 22.0, 23.0, 24.0]
    assert await log.last_sequence() == seen[-1][0]


@pytest.mark.parametrize("text", ["hash", "drop"])
async def test_redacted_text_never_reaches_the_file(store: Store, text: str):
    """With redaction no byte of prompt, answer or metadata is on disk, and the numbers still are."""
    log = SqliteDecisionLog(store, text=text)  # type: ignore[arg-type]
    decision = a_decision()

    log.submit(decision)
    await log.flush()

    written = b"".join(file.read_bytes() for file in store.path.parent.iterdir())
    assert b"secret" not in written
    kept = await log.get(decision.id)
    assert kept is not None
    assert kept.steps[0].signals == {"mean_logprob": -0.1}
    assert kept.steps[0].text.startswith("sha256:") == (text == "hash")


def test_hashes_tell_equal_texts_from_different_ones():
    """A hashed record can be matched with its text by who has the text."""
    one, other = redact(a_decision(), "hash"), redact(a_decision(), "hash")

    assert one.request["prompt"] == other.request["prompt"]
    assert json.dumps(one.request) != json.dumps(redact(a_decision(), "drop").request)


async def test_old_records_go_and_young_ones_stay(store: Store):
    """Retention deletes by age, on request and as records come in."""
    log = SqliteDecisionLog(store, retention_days=1)
    old, young = a_decision(created_at=time.time() - 2 * 86400), a_decision()
    SqliteDecisionLog(store).submit(old)
    log.submit(young)
    await log.flush()

    assert [decision.id for decision in await log.select()] == [young.id]
    assert await log.purge() == 0


def test_what_was_flushed_survives_kill_9(tmp_path: Path):
    """Killed at any moment, the log has every decision whose flush had returned, and opens again."""
    script = tmp_path / "writer.py"
    script.write_text(
        "import asyncio, sys, time\n"
        "from nearfar.router.decision_log import DECISIONS, SqliteDecisionLog\n"
        "from nearfar.router.router import Router\n"
        "from nearfar.router.cascade import Cascade, Tier\n"
        "from nearfar.store import Store\n"
        "from nearfar.testing import ScriptedModel\n"
        "from nearfar.types import Query\n"
        "async def main():\n"
        "    log = SqliteDecisionLog(Store(sys.argv[1], [DECISIONS]))\n"
        "    router = Router({'auto': Cascade([Tier(ScriptedModel(['a']))], name='auto')}, {}, log=log)\n"
        "    async def ask():\n"
        "        while True:\n"
        "            answer = await router.answer(Query('q'))\n"
        "            print(answer.decision_id, flush=True)\n"
        "    await asyncio.gather(*(ask() for _ in range(8)))\n"
        "asyncio.run(main())\n"
    )
    path = tmp_path / "nearfar.db"
    confirmed: set[str] = set()
    for _ in range(3):
        process = subprocess.Popen([sys.executable, script, path], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(100)]
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.read().split("\n")[:-1]
        process.wait()
        process.stdout.close()
        confirmed |= {line.strip() for line in lines if line.strip()}

    store = Store(path, [DECISIONS])
    written = {id_ for (id_,) in store.read_now(lambda c: c.execute("SELECT id FROM decisions").fetchall())}
    store.close()

    assert len(confirmed) >= 300
    assert confirmed <= written
