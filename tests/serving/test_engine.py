"""A server's life, on a real process that stands in for vLLM and can be told to fail."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.engines import QUICK, starts, stub_engine, stub_spec

from nearfar.errors import ModelLoadError
from nearfar.models.openai_wire import OpenAIWireModel
from nearfar.serving.engine.engine import Engine
from nearfar.serving.engine.process import members
from nearfar.serving.engine.records import Records
from nearfar.serving.engine.spec import EngineSpec
from nearfar.types import Query


async def ask(address, model="near"):
    """What the server at the address answers."""
    wire = OpenAIWireModel(
        name="near", url=f"{address.url}/v1", model=model, placement="near", api_key=address.key, read_timeout_s=20
    )
    try:
        return (await wire.complete(Query("Hi"))).text
    finally:
        await wire.aclose()


OWNER = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.engines import stub_engine, stub_spec

async def main():
    engine = stub_engine(Path(sys.argv[2]), stub_spec(Path(sys.argv[2])))
    engine.begin()
    await engine.ready()
    print(engine.pid, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


def leave_server(tmp_path):
    """Has another process start a server, kills that process, and returns the server's number."""
    tests = Path(__file__).parent.parent
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tests), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    pid = int(owner.stdout.readline())
    owner.kill()
    owner.communicate()
    return pid


async def until(condition):
    """Waits until it holds; the test's own time limit ends it otherwise."""
    while not condition():  # noqa: ASYNC110 - another process's doing
        await asyncio.sleep(0.01)


@pytest.fixture
async def engine_of(tmp_path):
    """Makes engines, and stops them after the test."""
    engines = []

    def make(spec, patience=QUICK):
        engines.append(stub_engine(tmp_path, spec, patience))
        return engines[-1]

    yield make
    for engine in engines:
        await engine.stop(drain_s=0)


async def test_a_server_starts_answers_and_leaves_no_process(tmp_path, engine_of):
    """Stopped, nothing of its process group is left, and neither is its record."""
    engine = engine_of(stub_spec(tmp_path, environment={"STUB_CHILD": "1"}))
    engine.begin()
    address = await engine.ready()
    text = await ask(address)
    pid = engine.pid

    await engine.stop()

    assert text == f"near {pid}"
    assert engine.state == "stopped"
    assert members(pid) == []
    assert Records(tmp_path / "engines").read("near") is None


async def test_a_killed_server_is_restarted(tmp_path, engine_of):
    """After kill -9 its children are gone too, and another process answers at the same address."""
    engine = engine_of(stub_spec(tmp_path, environment={"STUB_CHILD": "1"}))
    engine.begin()
    before = await engine.ready()
    pid = engine.pid

    os.kill(pid, signal.SIGKILL)
    engine.suspect()
    after = await engine.ready()
    text = await ask(after)

    assert after == before
    assert text == f"near {engine.pid}" != f"near {pid}"
    assert engine.restarts == 1
    assert "SIGKILL" in engine.failure.reason
    assert members(pid) == []


async def test_a_hung_server_is_restarted(tmp_path, engine_of):
    """A process that lives and does not answer is killed and started again."""
    engine = engine_of(stub_spec(tmp_path))
    engine.begin()
    await engine.ready()
    pid = engine.pid

    (tmp_path / "state-near" / "hang").touch()
    await until(lambda: engine.restarts == 1)
    (tmp_path / "state-near" / "hang").unlink()
    await engine.ready()

    assert engine.pid != pid
    assert "stopped answering" in engine.failure.reason


async def test_a_server_that_ends_at_its_first_start_is_started_again(tmp_path, engine_of):
    """A passing failure costs a wait and no more."""
    engine = engine_of(stub_spec(tmp_path, fault="crash-once"))

    engine.begin()
    await engine.ready()

    assert starts(tmp_path) == 2


async def test_a_server_is_ready_once_it_has_answered(tmp_path, engine_of):
    """What the first request costs is paid before anybody may ask, and those who share the server wait for it, too."""
    spec = stub_spec(tmp_path)
    (tmp_path / "state-near" / "slow").touch()
    first, second = engine_of(spec), engine_of(spec)
    first.begin()
    await until(lambda: first.pid is not None)
    second.begin()

    async def paths_when_ready(engine):
        await engine.ready()
        answers = tmp_path / "state-near" / "answers"
        return [line.split()[0] for line in answers.read_text().splitlines()] if answers.exists() else []

    assert await asyncio.gather(paths_when_ready(second), paths_when_ready(first)) == [["/v1/completions"]] * 2
    assert not second.is_owner


async def test_a_server_that_its_first_request_kills_is_started_again(tmp_path, engine_of):
    """Before it counts as ready, so that no query meets it."""
    engine = engine_of(stub_spec(tmp_path, fault="crash-asked"))

    engine.begin()
    await engine.ready()

    assert starts(tmp_path) == 2
    assert engine.restarts == 1


async def test_a_server_can_be_stopped_at_its_first_request(tmp_path, engine_of):
    """A stop does not wait for the answer."""
    engine = engine_of(stub_spec(tmp_path))
    (tmp_path / "state-near" / "slow").touch()
    engine.begin()
    await until(lambda: engine._warming is not None)
    pid = engine.pid

    Records(tmp_path / "engines").request_stop("near")
    await until(lambda: engine.state == "stopped")

    assert members(pid) == []
    assert not (tmp_path / "state-near" / "answers").exists()


@pytest.mark.parametrize(
    ("fault", "says", "num_starts"),
    [
        ("oom", "out of memory", 3),
        ("import", "xgrammar", 1),
        ("remote", "trust_remote_code = true", 1),
        ("model", "was not found", 1),
        ("port", "port is taken", 3),
    ],
)
async def test_a_failure_is_explained(tmp_path, engine_of, fault, says, num_starts):
    """What the log says becomes one sentence; only what may pass is tried again."""
    engine = engine_of(stub_spec(tmp_path, fault=fault))
    engine.begin()

    with pytest.raises(ModelLoadError, match=says):
        await engine.ready()

    assert starts(tmp_path) == num_starts


async def test_a_start_that_takes_too_long_says_where_it_was(tmp_path, engine_of):
    """The time limit ends the process and names the phase."""
    patience = QUICK.__class__(start_s=0.3, poll_s=0.02, num_restarts=0, health_s=0.2)
    engine = engine_of(stub_spec(tmp_path, fault="never"), patience)
    engine.begin()

    with pytest.raises(ModelLoadError, match=r"not ready after .* while starting Python"):
        await engine.ready()


async def test_a_server_left_behind_is_adopted(tmp_path, engine_of):
    """The server of a process that was killed is taken over where its spec is the same, and ended by its heir."""
    pid = leave_server(tmp_path)

    second = engine_of(stub_spec(tmp_path))
    second.begin()
    address = await second.ready()
    text = await ask(address)
    await second.stop()

    assert text == f"near {pid}"
    assert starts(tmp_path) == 1
    assert members(pid) == []


async def test_two_engines_share_one_server(tmp_path, engine_of):
    """The one that came second uses the server, does not stop it, and takes over when the first is gone."""
    spec = stub_spec(tmp_path)
    first, second = engine_of(spec), engine_of(spec)
    first.begin()
    address = await first.ready()
    second.begin()

    assert await second.ready() == address
    await second.stop()
    assert await ask(address) == f"near {first.pid}"

    second.begin()
    await second.ready()
    await first.stop()
    second.suspect()
    assert await ask(await second.ready()) == f"near {second.pid}"
    assert second.is_owner


async def test_a_stop_that_somebody_asks_for_is_no_reason_to_take_over(tmp_path, engine_of):
    """Whoever uses the server beside its owner lets it be stopped, and may start it anew later."""
    first, second = engine_of(stub_spec(tmp_path)), engine_of(stub_spec(tmp_path))
    first.begin()
    await first.ready()
    second.begin()
    await second.ready()

    Records(tmp_path / "engines").request_stop("near")
    second.suspect()
    await until(lambda: first.state == second.state == "stopped")
    assert Records(tmp_path / "engines").read("near") is None

    second.begin()
    assert await ask(await second.ready()) == f"near {second.pid}"
    await second.stop()
    first.begin()
    await first.ready()
    os.kill(first.pid, signal.SIGKILL)
    first.suspect()
    await first.ready()
    assert first.restarts == 1  # what was asked for before is no reason not to start again


async def test_other_settings_replace_a_server_left_behind(tmp_path, engine_of):
    """A server that was started to be something else is ended first."""
    pid = leave_server(tmp_path)

    second = engine_of(stub_spec(tmp_path, context_window=512))
    second.begin()
    await second.ready()

    assert second.pid != pid
    assert members(pid) == []


async def test_a_stop_that_somebody_asks_for_ends_the_server(tmp_path, engine_of):
    """A request in the folder is honoured by the owner, whichever process that is."""
    engine = engine_of(stub_spec(tmp_path))
    engine.begin()
    await engine.ready()
    pid = engine.pid

    Records(tmp_path / "engines").request_stop("near")
    await until(lambda: engine.state == "stopped")

    assert members(pid) == []


async def test_a_stop_that_somebody_asks_for_before_a_restart_is_honoured(tmp_path, engine_of):
    """While it waits to start a server again, too; no server comes after it, and the record is gone."""
    engine = engine_of(stub_spec(tmp_path), replace(QUICK, first_wait_s=60.0))
    engine.begin()
    await engine.ready()
    os.kill(engine.pid, signal.SIGKILL)
    engine.suspect()
    await until(lambda: engine.state == "waiting")

    Records(tmp_path / "engines").request_stop("near")
    await until(lambda: engine.state == "stopped")

    assert engine.restarts == 0
    assert Records(tmp_path / "engines").read("near") is None
    Records(tmp_path / "engines").claim("near").release()  # anybody may start it again


async def test_requests_in_flight_end_before_the_server_does(tmp_path, engine_of):
    """Draining waits for the answer."""
    engine = engine_of(stub_spec(tmp_path))
    (tmp_path / "state-near" / "slow").touch()
    engine.begin()
    address = await engine.ready()
    pid = engine.pid

    asking = asyncio.create_task(ask(address))
    await asyncio.sleep(0.2)
    await engine.stop()

    assert await asking == f"near {pid}"


async def test_the_load_is_read_off_the_metrics(tmp_path, engine_of):
    """Queue, cache and speed come from the server's own page."""
    engine = engine_of(stub_spec(tmp_path))
    engine.begin()
    address = await engine.ready()

    await ask(address)
    await until(lambda: engine.load is not None and engine.load.tokens_per_s is not None)

    signals = engine.load.signals()
    assert signals["engine_kv_cache_use"] == 0.25
    assert signals["engine_queue"] == 0
    assert signals["engine_tokens_per_s"] > 0


async def test_a_server_of_somebody_else_is_used_and_left_alone(tmp_path, engine_of):
    """Attached to an address, the engine waits for it, reads its load, and stops nothing."""
    owner = engine_of(stub_spec(tmp_path))
    owner.begin()
    address = await owner.ready()
    guest = Engine(
        EngineSpec("guest", "near"), home=tmp_path / "other", find=owner._find, patience=QUICK, attach=address
    )

    guest.begin()
    text = await ask(await guest.ready())
    await until(lambda: guest.load is not None)
    await guest.stop()

    assert text == f"near {owner.pid}"
    assert await ask(address) == text
    assert not (tmp_path / "other").exists()


async def test_a_taken_port_is_named_before_anything_starts(tmp_path, engine_of):
    """With the way out: another port, or url."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        engine = engine_of(stub_spec(tmp_path, port=port))
        engine.begin()

        with pytest.raises(ModelLoadError, match=rf"port {port} is taken"):
            await engine.ready()

    assert starts(tmp_path) == 0
