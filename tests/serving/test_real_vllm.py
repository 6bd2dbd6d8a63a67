"""The real vLLM on this machine's CPU, through its whole life; skipped where `make vllm` has not been run."""

import asyncio
import json
import os
import signal
import subprocess
import sys

import httpx2
import pytest
from support.checkpoint import NEEDS_VLLM, VLLM_PYTHON, smollm2_checkpoint

from nearfar.serving.engine.process import members
from nearfar.serving.engine.records import Records
from nearfar.serving.quantization.settings import VERSION

pytestmark = NEEDS_VLLM

CONFIG = """
[engines]
python = "{python}"
memory_gib = {memory_gib}

[models.smol]
kind = "vllm"
model = "{model}"
context_window = 3072
threads = 2
memory_gib = 3.0
drain_timeout_s = 300
loras = {{ red = "{model}/red", green = "{model}/green" }}

[models.other]
kind = "vllm"
model = "{model}"
context_window = 512
threads = 2
memory_gib = 3.0
loras = {{ blue = "{model}/blue" }}

[cascades.auto]
tiers = ["smol"]
"""
WIDTHS = """
[engines]
python = "{python}"

[models.smol]
kind = "vllm"
model = "{model}"
widths = [4, 8]
dtype = "float32"
context_window = 512
threads = 2

[models.far]
kind = "replay"
table = "answers.jsonl"
model = "far"

[cascades.auto]
tiers = [{{ model = "smol@4", threshold = {threshold} }}, {{ model = "smol@8", threshold = {threshold} }}, "far"]

[cascades.narrow]
tiers = [{{ model = "smol@4", threshold = 0.0 }}, "smol@8", "far"]

[cascades.wide]
tiers = [{{ model = "smol@4", threshold = 1.0 }}, {{ model = "smol@8", threshold = 0.0 }}, "far"]

[cascades.beyond]
tiers = [{{ model = "smol@4", threshold = 1.0 }}, {{ model = "smol@8", threshold = 1.0 }}, "far"]
"""
QUANTIZE = """
import sys
from pathlib import Path
from nearfar.serving.quantization.quantizer import Options, quantize
quantize(Path(sys.argv[1]), Path(sys.argv[2]), options=Options(widths=(4, 8), group_size=64))
"""
PRIME = "What is the capital of France?"
QUESTIONS = (PRIME, "What is the chemical symbol of gold?", "What is 2 + 2?")
THRESHOLD = 0.7
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}


#: What a client may ask that no engine can do: each is to be a 400, and the engine is to go on.
HOSTILE = {
    "unknown token": {"logit_bias": {"999999": 1}},
    "only an unknown token": {"allowed_token_ids": [10**9]},
    "unknown end": {"stop_token_ids": [-1], "min_tokens": 2},
    "seed": {"seed": 2**64},
    "length": {"max_tokens": 10**9},
    "penalty": {"repetition_penalty": 0},
    "template": {"chat_template_kwargs": {"chat_template": "{% for i in range(10**9) %}x{% endfor %}"}},
    "expression": {"structured_outputs": {"regex": "((("}},
    "backward range": {"response_format": {"type": "grammar", "grammar": "root ::= [z-a]"}},
    "its own schema": {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}},
    "image": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}]},
    "prompt": {"messages": [{"role": "user", "content": "word " * 3500}]},
}


@pytest.fixture(scope="module")
def checkpoint():
    """SmolLM2 in safetensors with three adapters, made once and kept in the user's cache."""
    return smollm2_checkpoint()


@pytest.fixture(scope="module")
def nested(checkpoint):
    """SmolLM2 as planes of 4 and 8 bits, made once and kept in the user's cache."""
    if subprocess.run([VLLM_PYTHON, "-P", "-c", "import nearfar"], capture_output=True, check=False).returncode:
        pytest.skip("nearfar is not beside vLLM, for its plugin; install it: make vllm")
    folder = checkpoint.parent / f"smollm2-nested-{VERSION}"
    if not (folder / "config.json").exists():  # it is written last, and what was begun goes on
        subprocess.run([VLLM_PYTHON, "-P", "-c", QUANTIZE, checkpoint, folder], check=True, capture_output=True)
    return folder


@pytest.fixture
def home(tmp_path, checkpoint):
    """A config with two models of the same weights, and room for one and a half."""
    (tmp_path / "nearfar.toml").write_text(CONFIG.format(python=VLLM_PYTHON, model=checkpoint, memory_gib=4.5))
    yield tmp_path
    nearfar(tmp_path, "engine", "stop")


def environment(home):
    """With the data in the test's own folder."""
    return os.environ | {"NEARFAR_HOME": str(home / "data")}


def nearfar(home, *arguments):
    """Runs a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "nearfar.cli", *arguments],
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
        check=False,
    )


def status(home):
    """The engines by name."""
    return {each["name"]: each for each in json.loads(nearfar(home, "engine", "status", "--json").stdout)["engines"]}


class Gateway:
    """`nearfar serve` in a process of its own."""

    def __init__(self, home):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nearfar.cli", "serve", "--port", "0"],
            cwd=home,
            env=environment(home),
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in self._process.stderr:
            if "http://" in line:
                self.url = "http://" + line.partition("http://")[2].split("/v1")[0].strip()
                break

    async def ask(self, model, text=PRIME, **options):
        """The reply to one completion."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 24}
        async with httpx2.AsyncClient(timeout=600) as client:
            return await client.post(f"{self.url}/v1/chat/completions", json={**body, **options})

    async def chat(self, model, text=PRIME, **options):
        """One completion, as a client gets it."""
        reply = await self.ask(model, text, **options)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def close(self):
        """Stops it as a service manager does."""
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=120)


@pytest.fixture
def gateway(home):
    """A gateway over the config."""
    gateway = Gateway(home)
    yield gateway
    gateway.close()


async def test_vllm_up_asked_killed_restarted_and_stopped(home, gateway):
    """One server: log-probabilities, a schema, adapters, shut doors, kill -9, draining, and no process left."""
    up = nearfar(home, "engine", "up", "smol")
    assert up.returncode == 0, up.stderr + nearfar(home, "engine", "logs", "smol").stdout[-3000:]
    before = status(home)["smol"]

    plain = await gateway.chat("smol", logprobs=True, top_logprobs=3)
    shaped = await gateway.chat(
        "smol", "Name a city.", response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    )
    adapted = await asyncio.gather(*(gateway.chat(f"smol+{each}", logprobs=True) for each in ("red", "green")))
    long = "word " * 2500  # more than a step reads at once where prompts are read in parts
    drawn = await gateway.chat("smol", long, seed=1, temperature=1.0, max_tokens=4)
    hostile = {name: await gateway.ask("smol", **options) for name, options in HOSTILE.items()}

    tokens = plain["choices"][0]["logprobs"]["content"]
    text = plain["choices"][0]["message"]["content"]
    assert "Paris" in text
    assert "".join(token["token"] for token in tokens).startswith(text)  # vLLM counts the end as a token, too
    assert all(len(token["top_logprobs"]) >= 3 and token["logprob"] <= 0 for token in tokens)
    assert list(json.loads(shaped["choices"][0]["message"]["content"])) == ["city"]
    assert drawn["usage"]["prompt_tokens"] > 2500
    assert {name: reply.status_code for name, reply in hostile.items()} == dict.fromkeys(HOSTILE, 400)
    assert not any("\n" in reply.json()["error"]["message"] for reply in hostile.values())
    assert status(home)["smol"]["pid"] == before["pid"]
    firsts = {reply["choices"][0]["logprobs"]["content"][0]["logprob"] for reply in (plain, *adapted)}
    assert len(firsts) == 3  # the adapters are small, so that the words may be the same

    async with httpx2.AsyncClient() as client:
        doors = ["/invocations", "/v1/load_lora_adapter", "/metrics", "/v1/chat/completions"]
        codes = [(await client.post(before["url"] + door, json={})).status_code for door in doors]
    assert codes == [404, 404, 404, 401]

    asking = [asyncio.create_task(gateway.chat("smol", max_tokens=200)) for _ in range(4)]
    await asyncio.sleep(0.5)
    os.kill(before["pid"], signal.SIGKILL)
    answers = await asyncio.gather(*asking)
    after = status(home)["smol"]
    assert all(each["choices"][0]["message"]["content"] for each in answers)
    assert after["restarts"] == 1
    assert after["pid"] != before["pid"]

    last = asyncio.create_task(gateway.chat("smol", max_tokens=200, ignore_eos=True))
    while not await asyncio.to_thread(lambda: status(home)["smol"]["queue"]):
        assert not last.done()  # it is meant to be stopped in the middle
    stopped = await asyncio.to_thread(nearfar, home, "engine", "stop", "--timeout-s", "400")
    assert stopped.returncode == 0, stopped.stderr
    assert (await last)["usage"]["completion_tokens"] == 200  # it was let end first
    assert members(before["pid"]) == members(after["pid"]) == []
    assert status(home)["smol"]["state"] == "stopped"


@pytest.fixture
def widths_home(tmp_path, nested):
    """A config with one model at two widths, and recorded answers beyond them."""
    (tmp_path / "nearfar.toml").write_text(WIDTHS.format(python=VLLM_PYTHON, model=nested, threshold=THRESHOLD))
    rows = [{"query": text, "model": "far", "response": f"far: {text}", "correct": True} for text in QUESTIONS]
    (tmp_path / "answers.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    yield tmp_path
    nearfar(tmp_path, "engine", "stop")


async def test_two_widths_of_one_model_are_two_tiers(widths_home):
    """From 4 bits to 8 to recorded answers over HTTP: one server, and every decision names the width that answered."""
    gateway = Gateway(widths_home)
    try:
        asked = {"max_tokens": 8, "logprobs": True}
        alone = {name: await gateway.chat(name, **asked) for name in ("smol@4", "smol@8")}
        narrow, wide = [await gateway.chat(name, **asked) for name in ("narrow", "wide")]
        beyond = await gateway.chat("beyond", max_tokens=8)
        routed = await asyncio.gather(*(gateway.chat("auto", text, max_tokens=8) for text in QUESTIONS))
        running = [each for each in status(widths_home).values() if each["pid"]]
        lines = nearfar(widths_home, "decisions", "--json", "-n", "100").stdout.splitlines()
    finally:
        gateway.close()

    decisions = {each["id"]: each for each in map(json.loads, lines)}
    assert len(running) == 1
    assert words(narrow) == words(alone["smol@4"])
    assert words(wide) == words(alone["smol@8"])
    assert [log_probability(reply) for reply in (narrow, wide)] == [log_probability(reply) for reply in alone.values()]
    assert log_probability(narrow) != log_probability(wide)
    assert models(decisions[narrow["nearfar"]["decision_id"]]) == ["smol@4"]
    assert models(decisions[wide["nearfar"]["decision_id"]]) == ["smol@4", "smol@8"]
    assert models(decisions[beyond["nearfar"]["decision_id"]]) == ["smol@4", "smol@8", "far"]
    assert words(beyond) == f"far: {PRIME}"
    for text, reply in zip(QUESTIONS, routed, strict=True):
        decision = decisions[reply["nearfar"]["decision_id"]]
        scores = [step["score"] for step in decision["steps"]]
        assert models(decision) == ["smol@4", "smol@8", "far"][: len(scores)]
        assert all(score < THRESHOLD for score in scores[:-1])
        assert decision["model"] == "far" or scores[-1] >= THRESHOLD
        assert (words(reply) == f"far: {text}") == (decision["model"] == "far")


def words(reply):
    """What was answered."""
    return reply["choices"][0]["message"]["content"]


def log_probability(reply):
    """Of the first token."""
    return reply["choices"][0]["logprobs"]["content"][0]["logprob"]


def models(decision):
    """Those that were asked, in their order."""
    return [step["model"] for step in decision["steps"]]


@pytest.mark.soak
async def test_two_models_and_three_adapters_in_room_for_one_and_a_half(home, gateway, record_property):
    """Requests to all five at once are answered, and so is one for the model that had to go; two never run at once."""
    names = ["smol", "smol+red", "smol+green", "other", "other+blue"]
    asked = [name for name in names for _ in range(3)]
    turns = []  # whose process ran, whenever that changed

    async def watch():
        records = Records(home / "data" / "engines")
        while True:
            running = tuple(each.name for each in records.all() if each.is_running())
            if running and turns[-1:] != [running]:
                turns.append(running)
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    replies = await asyncio.gather(*(gateway.chat(name, max_tokens=8) for name in asked))
    late = await gateway.chat("smol+red", max_tokens=8)
    watching.cancel()
    logs = [nearfar(home, "engine", "logs", name, "-n", "10000").stdout for name in ("smol", "other")]

    assert [reply["nearfar"]["model"] for reply in replies] == asked
    assert all(words(reply) for reply in replies)
    assert late["nearfar"]["model"] == "smol+red"
    assert turns == [("smol",), ("other",), ("smol",)]
    assert [log.count("Application startup complete") for log in logs] == [2, 1]
    record_property("requests", len(replies) + 1)
    record_property("turns", [name for (name,) in turns])
