"""vLLM's own server over HTTP: a width by the model's name or by the arguments, and 400 for any other."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed; `make test-vllm` has it", allow_module_level=True)

import torch
import transformers

from nearfar.serving.quantization.quantizer import Options, quantize

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a server of a random Llama."""
    torch.manual_seed(0)
    original = tmp_path_factory.mktemp("original")
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(original)
    folder = tmp_path_factory.mktemp("nested") / "out"
    quantize(original, folder, options=Options(widths=(2, 4, 8), group_size=64))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    command += ["--skip-tokenizer-init", "--dtype", "float32", "--block-size", "32", "--max-model-len", "128"]
    command += ["--middleware", "nearfar.serving.quantization.vllm_plugin.PrecisionMiddleware"]
    command += ["--additional-config", json.dumps({"nearfar_salted": True}), "--enable-prompt-tokens-details"]
    log = tmp_path_factory.mktemp("log") / "server.log"
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=os.environ | settings, stdout=output, stderr=output, start_new_session=True
        )
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(600):
                if process.poll() is not None:
                    pytest.fail("The server stopped: " + log.read_text()[-3000:])
                try:
                    urllib.request.urlopen(f"{address}/health", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.5)
            yield address
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ask(server, **changes):
    """Status and page of a completion of 64 tokens' prompt."""
    prompt = [1 + 7 * place % 200 for place in range(64)]
    page = {"model": "tiny", "prompt": prompt, "max_tokens": 6, "temperature": 0, "return_token_ids": True}
    body = changes.pop("body", None) or json.dumps(page | {"ignore_eos": True} | changes).encode()
    request = urllib.request.Request(f"{server}/v1/completions", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as exc:
        return exc.code, json.load(exc)


def tokens(answer):
    """Of an answer that was given."""
    status, page = answer
    assert status == 200, page
    return page["choices"][0]["token_ids"]


def test_a_width_is_asked_for_by_name_or_by_argument(server):
    """To the same answer, and other widths give others."""
    by_name = {bits: tokens(ask(server, model=f"tiny@{bits}")) for bits in (2, 4, 8)}
    by_argument = {bits: tokens(ask(server, vllm_xargs={"bits": bits})) for bits in (2, 4, 8)}

    assert by_name == by_argument
    assert len({tuple(made) for made in by_name.values()}) > 1


def test_a_cached_prefix_belongs_to_one_width(server):
    """Asked again it is read, asked at another width it is not; a client's own salt does not change that."""
    ask(server, model="tiny@2", cache_salt="mine")

    _, again = ask(server, model="tiny@2", cache_salt="mine")
    _, other = ask(server, model="tiny@8", cache_salt="mine")

    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 32
    assert (other["usage"]["prompt_tokens_details"] or {}).get("cached_tokens", 0) in (0, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "A width is missing"),
        ({"model": "tiny@6"}, "bits is 6; this model was stored for 2, 4, 8"),
        ({"vllm_xargs": {"bits": "4"}}, "bits is '4'"),
        ({"model": "tiny@2", "vllm_xargs": {"bits": 4}}, "asks for 2 bits and vllm_xargs for 4"),
        ({"body": b"{"}, "no JSON"),
        ({"body": b"[]"}, "no JSON object"),
    ],
)
def test_a_width_that_is_missing_or_illegal_is_a_400(server, changes, message):
    """With what there is, in the form of the other errors."""
    status, page = ask(server, **changes)

    assert status == 400
    assert message in page["error"]["message"]
