"""The real vLLM serves nested planes: every request at its own width, in one batch, as if it were alone."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed; `make test-vllm` has it", allow_module_level=True)

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}

import torch
import transformers
import vllm
import vllm.exceptions
from safetensors.torch import load_file, save_file
from vllm.lora.request import LoRARequest

from nearfar.serving.quantization.precision import salt
from nearfar.serving.quantization.quantizer import Options, quantize

WIDTHS = (2, 4, 6, 8)
STARTED = {
    "dtype": "float32",
    "enforce_eager": True,
    "skip_tokenizer_init": True,
    "max_model_len": 128,
    "max_num_seqs": 16,
    "block_size": 32,
}

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama of two blocks as nested planes; its columns (128, 224) are not all whole groups."""
    torch.manual_seed(0)
    original = tmp_path_factory.mktemp("original")
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=208,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(original)
    out = tmp_path_factory.mktemp("nested") / "out"
    quantize(original, out, options=Options(widths=WIDTHS, group_size=64))
    return out


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A LoRA adapter that changes every answer."""
    path = tmp_path_factory.mktemp("adapter")
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(2):
        for name, rows, columns in (("self_attn.q_proj", 128, 128), ("mlp.down_proj", 128, 208)):
            start = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{start}.lora_A.weight"] = torch.randn(8, columns, generator=generator)
            tensors[f"{start}.lora_B.weight"] = torch.randn(rows, 8, generator=generator)
    save_file(tensors, path / "adapter_model.safetensors")
    page = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "bias": "none"}
    (path / "adapter_config.json").write_text(json.dumps(page))
    return LoRARequest("adapter", 1, str(path))


@pytest.fixture(scope="module")
def engine(folder):
    """With prefixes cached, long prompts in pieces, and LoRA."""
    return vllm.LLM(
        str(folder),
        **STARTED,
        enable_prefix_caching=True,
        max_num_batched_tokens=48,
        enable_lora=True,
        max_lora_rank=8,
        additional_config={"nearfar_salted": True},
    )


def prompt(number, width):
    """A prompt of 40 to 70 tokens, with the salt of its width."""
    tokens = [1 + (7 * place + 13 * number) % 200 for place in range(40 + 10 * number)]
    return {"prompt_token_ids": tokens, "cache_salt": salt(width)}


def at(width, num_tokens=8, **more):
    """Greedy, at a width."""
    return vllm.SamplingParams(
        temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False, extra_args={"bits": width}, **more
    )


def answers(engine, requests, lora=None):
    """The tokens of each (number, width), all asked at once."""
    made = engine.generate(
        [prompt(*request) for request in requests],
        [at(width, 4 + number * 2) for number, width in requests],
        use_tqdm=False,
        lora_request=lora,
    )
    return [list(answer.outputs[0].token_ids) for answer in made]


def alone(engine, requests, lora=None):
    """The tokens of each (number, width), each asked by itself and with no prefix cached."""
    found = []
    for request in requests:
        assert engine.reset_prefix_cache()
        found += answers(engine, [request], lora)
    return found


REQUESTS = [(number, width) for number in range(4) for width in WIDTHS]


def test_sixteen_requests_of_four_widths_answer_as_each_does_alone(engine):
    """Token for token, in float32; and the widths do not answer alike."""
    expected = alone(engine, REQUESTS)

    assert engine.reset_prefix_cache()
    assert answers(engine, REQUESTS) == expected
    assert answers(engine, REQUESTS[::-1]) == expected[::-1]  # with what is cached now
    by_width = {width: [expected[i] for i, (_, other) in enumerate(REQUESTS) if other == width] for width in WIDTHS}
    assert by_width[2] != by_width[4] != by_width[8]


def test_a_prefix_is_reused_by_its_own_width_alone(engine):
    """What one width has cached, the others compute anew; without the salt they would read it."""
    expected = alone(engine, [(2, 8)])
    assert engine.reset_prefix_cache()
    answers(engine, [(2, 2)])

    again = engine.generate([prompt(2, 2)], [at(2)], use_tqdm=False)[0]
    other = engine.generate([prompt(2, 8)], [at(8)], use_tqdm=False)[0]
    wrong = engine.generate([prompt(2, 2)], [at(8)], use_tqdm=False)[0]

    assert again.num_cached_tokens >= 32
    assert other.num_cached_tokens == 0
    assert list(other.outputs[0].token_ids) == expected[0]
    assert wrong.num_cached_tokens >= 32  # the salt is what keeps them apart


def test_adapters_work_at_every_width(engine, adapter):
    """An adapter changes the answers, and a mixed batch answers as each request does alone."""
    expected = alone(engine, REQUESTS[:8], adapter)

    assert engine.reset_prefix_cache()
    assert answers(engine, REQUESTS[:8], adapter) == expected
    assert expected != alone(engine, REQUESTS[:8])


@pytest.mark.parametrize("extra", [None, {}, {"bits": 5}, {"bits": "4"}, {"bits": True}, {"bits": 4.0}])
def test_a_request_without_a_stored_width_is_refused(engine, extra):
    """Before it is in the batch; the next request is answered."""
    wrong = vllm.SamplingParams(max_tokens=1, detokenize=False, extra_args=extra)

    with pytest.raises(vllm.exceptions.VLLMValidationError, match="2, 4, 6, 8"):
        engine.generate([prompt(0, 4)], [wrong], use_tqdm=False)

    assert len(answers(engine, [(0, 4)])[0]) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"enable_prefix_caching": True}, "Cached prefixes of two widths must not mix"),
        ({"enforce_eager": False}, "--enforce-eager"),
    ],
)
def test_a_combination_that_was_not_tried_is_refused_at_start(folder, arguments, message):
    """With what to start instead."""
    with pytest.raises(Exception, match=message):
        vllm.LLM(str(folder), **(STARTED | {"enable_prefix_caching": False} | arguments))


def test_a_vllm_of_another_version_is_refused_at_start(folder, monkeypatch):
    """With the version that was tested; what it changed may read rows at the wrong width."""
    monkeypatch.setattr(vllm, "__version__", "0.99.1")

    with pytest.raises(Exception, match=r"tested with vLLM 0\.32, and this is 0\.99\.1\. Install that"):
        vllm.LLM(str(folder), **STARTED, enable_prefix_caching=False)


def unscaled(shard):
    """A scale that is not finite, in a file without sums."""
    tensors = load_file(shard)
    tensors["model.layers.0.mlp.up_proj.scales"][0, 0] = torch.inf
    save_file(tensors, shard, metadata={"format": "pt"})


def flipped(shard):
    """The last byte, in one bit."""
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))


@pytest.mark.parametrize(
    ("damage", "message"), [(unscaled, "gate_up_proj' are not finite"), (flipped, "is not what was written")]
)
def test_a_damaged_model_is_refused_at_start(folder, tmp_path, damage, message):
    """Before a request is taken."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damage(tmp_path / "model-00002-of-00003.safetensors")

    with pytest.raises(Exception, match=message):
        vllm.LLM(str(tmp_path), **STARTED, enable_prefix_caching=False)


def tensors_of(engine):
    """What the first layer of an engine's model keeps of its planes."""
    layer = engine.llm_engine.model_executor.driver_worker.model_runner.model.model.layers[0].mlp.down_proj
    return sorted(name for name, _ in [*layer.named_parameters(), *layer.named_buffers()])


WITHOUT_COMPILER = """
import sys
sys.path.insert(0, {tests!r})
import test_nested_vllm as test
import vllm
engine = vllm.LLM({folder!r}, **test.STARTED, enable_prefix_caching=False)
print(test.tensors_of(engine), test.answers(engine, test.REQUESTS))
"""


def test_the_cpu_kernel_keeps_one_packed_tensor(engine):
    """And nothing of what it was packed from, also under LoRA."""
    layer = engine.llm_engine.model_executor.driver_worker.model_runner.model.model.layers[0].self_attn.o_proj

    kept = {name for name, _ in [*layer.base_layer.named_parameters(), *layer.base_layer.named_buffers()]}

    assert kept == {"nearfar_packed"}


def test_without_a_compiler_the_reference_answers(folder, tmp_path):
    """With a warning that says why, and as it does where activations are to stay as they are."""
    exact = vllm.LLM(str(folder), **STARTED, enable_prefix_caching=False, additional_config={"nearfar_exact": True})
    script = WITHOUT_COMPILER.format(tests=str(Path(__file__).parent), folder=str(folder))

    made = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"CXX": "no-such-compiler", "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "planes" in tensors_of(exact)
    assert made.stdout.splitlines()[-1] == f"{tensors_of(exact)} {answers(exact, REQUESTS)}"
    assert "Nested planes run in torch alone, slowly: No C++ compiler ('no-such-compiler')" in made.stderr
