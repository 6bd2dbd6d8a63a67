"""The doors of a server: what the guard lets through, and what the command line and the environment hold."""

import re
import sys
from pathlib import Path

import pytest
from support.engines import adapter, stub_spec

from nearfar.serving.engine.failures import explain, phase
from nearfar.serving.engine.load import read_load
from nearfar.serving.engine.spec import GUARD_FOLDER, EngineSpec


@pytest.fixture
def guard(monkeypatch):
    """The guard as vLLM loads it: by name, from its folder, in front of an app that says 200 to everything."""
    monkeypatch.syspath_prepend(str(GUARD_FOLDER))
    monkeypatch.setenv("VLLM_API_KEY", "right")
    from nearfar_engine_guard import Guard

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    return Guard(app)


async def status(guard, method, path, *authorizations, kind="http"):
    """The first thing that is sent back."""
    sent = []

    async def send(message):
        sent.append(message)

    headers = [(b"authorization", value.encode()) for value in authorizations]
    await guard({"type": kind, "method": method, "path": path, "headers": headers}, None, send)
    return sent[0].get("status", sent[0].get("code"))


@pytest.mark.parametrize(
    ("method", "path", "authorizations", "expected"),
    [
        ("GET", "/health", (), 200),
        ("POST", "/v1/chat/completions", ("Bearer right",), 200),
        ("POST", "/v1/chat/completions", (), 401),
        ("POST", "/v1/chat/completions", ("Bearer wrong",), 401),
        ("POST", "/v1/chat/completions", ("right",), 401),
        ("POST", "/v1/chat/completions", ("Bearer right", "Bearer wrong"), 401),
        ("GET", "/metrics", (), 401),
        ("POST", "/invocations", ("Bearer right",), 404),
        ("POST", "/v1/invocations", ("Bearer right",), 404),
        ("POST", "/v1/load_lora_adapter", ("Bearer right",), 404),
        ("POST", "/v1//chat/completions", ("Bearer right",), 404),
        ("POST", "/collective_rpc", ("Bearer right",), 404),
        ("GET", "/docs", ("Bearer right",), 404),
        ("OPTIONS", "/v1/chat/completions", (), 404),
        ("POST", "/health", (), 404),
    ],
)
async def test_only_the_doors_that_are_used_are_open(guard, method, path, authorizations, expected):
    """By exact method and path, with exactly one right key."""
    assert await status(guard, method, path, *authorizations) == expected


async def test_websockets_are_refused(guard):
    """vLLM has some, and nearfar uses none."""
    assert await status(guard, "GET", "/v1/realtime", "Bearer right", kind="websocket") == 1008


def test_the_key_is_in_the_environment_and_not_on_the_command_line(tmp_path):
    """Command lines are everybody's to read; keys of other providers go nowhere."""
    spec = stub_spec(tmp_path, loras={"red": adapter(tmp_path / "red", rank=10)})
    inherited = {"OPENAI_API_KEY": "far", "HOME": "/h", "AWS_SECRET_ACCESS_KEY": "s", "PYTHONPATH": "/p"}

    command = spec.command(Path(sys.executable), port=1234, on_gpu=False)
    variables = spec.variables(inherited, key="k3y", on_gpu=False)

    assert "k3y" not in " ".join(command)
    assert variables["VLLM_API_KEY"] == "k3y"
    assert "far" not in variables.values()
    assert "s" not in variables.values()
    assert variables["HOME"] == "/h"
    assert variables["PYTHONPATH"].startswith(str(GUARD_FOLDER))
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--max-lora-rank") + 1] == "16"
    assert "--trust-remote-code" not in command
    assert "--enforce-eager" in command
    assert "--no-enable-chunked-prefill" in command
    assert "--no-enable-chunked-prefill" not in spec.command(Path(sys.executable), port=1234, on_gpu=True)


#: What each fault printed: vLLM 0.32 on this project's machine, or its source where it takes a GPU.
@pytest.mark.parametrize(
    ("log", "returncode", "says", "is_passing"),
    [
        ("huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name'", 1, "not found", False),
        ("ModuleNotFoundError: No module named 'nearfar'", 1, "pip install --no-deps nearfar", False),
        ("ModuleNotFoundError: No module named 'nearfarther'", 1, "package is missing .*nearfarther", False),
        ("ImportError: libcudart.so.13: cannot open shared object file: No such file", 1, "libcudart.so.13", False),
        ("RuntimeError: The NVIDIA driver on your system is too old (found version 1)", 1, "driver", False),
        ("ValueError: No available memory for the cache blocks. Try increasing", 1, "out of memory", True),
        ("OSError: [Errno 28] No space left on device", 1, "disk is full", True),
        ("api_server.py: error: unrecognized arguments: --nonsense 3", 2, "--nonsense 3", False),
        (
            "nearfar.errors.ConfigError: Nested planes run on one device so far; start with --tensor-parallel-size 1.",
            1,
            "its nested weights are refused: Nested planes run on one device",
            False,
        ),
        ("ValueError: Couldn't instantiate the backend tokenizer from one of: \n(1) a", 1, "has no tokenizer", False),
        (
            "ValidationError: 1 validation error for ModelConfig\n  Value error, Unknown dtype: float3 [type=value,",
            1,
            "refuses its settings: Unknown dtype: float3. Correct",
            False,
        ),
        ("(EngineCore pid=1) ERROR core.py] ValueError: something new", 1, "something new", True),
        ("", -9, "SIGKILL", True),
        ("", -4, "AVX512", False),
        ("", -15, "SIGTERM", True),
        ("", 3, "code 3", True),
        ("", None, "nearfar engine logs near", True),
    ],
)
def test_an_end_is_explained(log, returncode, says, is_passing):
    """In a sentence with the fact in it."""
    failure = explain(EngineSpec("near", "m"), log, returncode)

    assert re.search(says, failure.reason)
    assert failure.is_passing is is_passing


def test_progress_grows_with_the_log():
    """Each line of a start is at least as far as the one before."""
    lines = [
        "INFO vLLM API server version 0.32.0",
        "INFO Initializing a V1 LLM engine (v0.32.0) with config",
        "INFO Starting to load model",
        "Loading safetensors checkpoint shards:  50% Completed | 1/2",
        "INFO Model loading took 0.25 GiB",
        "INFO CPU KV cache size: 46,592 tokens",
        "INFO Application startup complete.",
    ]
    seen = [phase("\n".join(lines[:n])) for n in range(len(lines) + 1)]

    assert seen[0] == ("starting Python", 0.0)
    assert seen[4][0] == "loading weights 50 %"
    assert [share for _, share in seen] == sorted(share for _, share in seen)
    assert seen[-1] == ("answering a first request", 0.95)


def test_speed_is_tokens_over_time_and_forgives_a_restart():
    """A counter that went back belongs to another process, and says nothing of the speed."""
    page = 'vllm:generation_tokens_total{model_name="a"} %d.0\nvllm:num_requests_waiting{model_name="a"} 2.0\n'
    first = read_load(page % 100, at=10.0)
    second = read_load(page % 160, at=12.0, before=first)
    third = read_load(page % 5, at=13.0, before=second)

    assert first.tokens_per_s is None
    assert (second.tokens_per_s, second.waiting) == (30.0, 2)
    assert third.tokens_per_s == 30.0
