"""Drafting with low planes changes no token of greedy decoding, unless a policy says that it may."""

import json

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; `make test-torch` has it")
transformers = pytest.importorskip("transformers", reason="transformers is not installed; `make test-torch` has it")

from nearfar.errors import ConfigError  # noqa: E402
from nearfar.serving.quantization.checkpoint import NestedCheckpoint  # noqa: E402
from nearfar.serving.quantization.evaluation import at_precision, replaced  # noqa: E402
from nearfar.serving.quantization.llama import NestedLlama  # noqa: E402
from nearfar.serving.quantization.quantizer import Options, quantize  # noqa: E402
from nearfar.serving.quantization.speculation import Policy, decode, speculate  # noqa: E402

PROMPT = [3, 141, 59, 26, 53, 58, 97, 93]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A random Llama of two blocks."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("original")
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        rms_norm_eps=1e-5,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def nested(original, tmp_path_factory, group_size):
    """The same as nested planes."""
    folder = tmp_path_factory.mktemp("nested") / "out"
    quantize(original, folder, options=Options(group_size=group_size))
    return folder


@pytest.fixture(scope="module")
def folder(original, tmp_path_factory):
    """In groups that the CPU kernel reads."""
    return nested(original, tmp_path_factory, 32)


@pytest.fixture(scope="module")
def model(folder):
    """In float32."""
    return NestedLlama(folder, max_length=128)


@pytest.mark.parametrize("group_size", [24, 32])
def test_it_computes_what_transformers_does(original, tmp_path_factory, group_size):
    """At every width, prompt and steps; with the kernel up to what rounding activations to int8 does."""
    folder = nested(original, tmp_path_factory, group_size)
    made = NestedLlama(folder, max_length=32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32).eval()
    is_rounded = any(len(block.mlp_in.tensors) == 1 for block in made.blocks)

    for width in (2, 4, 6, 8):
        with torch.inference_mode(), replaced(theirs, at_precision(NestedCheckpoint.open(folder), width)):
            expected = theirs(torch.tensor([PROMPT])).logits[0]
            ours = torch.cat([made(PROMPT[:4], 0, width), made(PROMPT[4:5], 4, width), made(PROMPT[5:], 5, width)])
        error = float((ours - expected[3:]).norm() / expected[3:].norm())
        assert error < (0.1 if is_rounded else 1e-4)
        assert group_size == 32 or not is_rounded


@pytest.mark.parametrize("draft", [2, 4, 6, 8])
@pytest.mark.parametrize("length", [1, 3, 7])
def test_every_token_is_plain_decodings(model, draft, length):
    """Whatever drafts; and the same weights accept all of their own draft."""
    expected = decode(model, PROMPT, max_tokens=40, precision=8)

    made = speculate(model, PROMPT, max_tokens=40, policy=Policy(draft, 8, length=length))

    assert made.tokens == expected.tokens
    assert made.num_passes + made.num_accepted == len(made.tokens)
    if draft == 8:
        assert made.acceptance == 1


@pytest.mark.parametrize("fallback", [0.05, 0.5, 1.0])
def test_handing_over_early_changes_no_token(model, fallback):
    """It saves drafts: with certainty asked for, there are none."""
    expected = decode(model, PROMPT, max_tokens=30, precision=8)

    made = speculate(model, PROMPT, max_tokens=30, policy=Policy(4, 8, fallback=fallback))

    assert made.tokens == expected.tokens
    if fallback == 1:
        assert (made.num_drafted, made.num_passes) == (0, 30)


def test_a_rollback_threshold_trades_tokens_for_passes(model):
    """From none at 0, which only lets the likeliest stay, to all at infinity."""
    exact = speculate(model, PROMPT, max_tokens=40, policy=Policy(2, 8))

    strict = speculate(model, PROMPT, max_tokens=40, policy=Policy(2, 8, rollback=0))
    lax = speculate(model, PROMPT, max_tokens=40, policy=Policy(2, 8, rollback=float("inf")))

    assert strict == exact
    assert (lax.acceptance, lax.num_passes) == (1, 9)
    assert lax.tokens != exact.tokens


def test_a_step_does_not_see_what_is_verified_with_it(model):
    """Keys and values are the same to the last bit, one by one or together."""
    with torch.inference_mode():
        model(PROMPT[:4], 0, 8)
        for place in range(4, 8):
            model(PROMPT[place : place + 1], place, 8)
        alone = model.keys[:, :, :8].clone(), model.values[:, :, :8].clone()
        model(PROMPT[4:], 4, 8)

    assert torch.equal(model.keys[:, :, :8], alone[0])
    assert torch.equal(model.values[:, :, :8], alone[1])


@pytest.mark.parametrize(
    "wrong",
    [{"length": 0}, {"fallback": 1.5}, {"fallback": float("nan")}, {"rollback": -1.0}, {"rollback": float("nan")}],
)
def test_thresholds_that_are_none_are_refused(wrong):
    """Before anything runs."""
    with pytest.raises(ValueError, match="is "):
        Policy(4, 8, **wrong)


def test_what_there_is_no_room_for_is_refused(model):
    """Rather than written past the end."""
    with pytest.raises(ValueError, match="room for"):
        speculate(model, PROMPT, max_tokens=200, policy=Policy(4, 8))


@pytest.mark.parametrize("change", [{"model_type": "qwen3"}, {"attention_bias": True}, {"hidden_act": "gelu"}])
def test_another_architecture_is_refused(folder, tmp_path, change):
    """It would be computed wrongly."""
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | change))

    with pytest.raises(ConfigError, match="serve it with vLLM"):
        NestedLlama(tmp_path)
