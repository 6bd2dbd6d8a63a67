"""A whole folder is quantized: all widths beat rounding, what was stopped goes on, and bad folders are named."""

import json
import resource
import shutil

import numpy as np
import pytest

from nearfar.errors import ConfigError, DataError

torch = pytest.importorskip("torch", reason="torch is not installed; `make test-torch` has it")
transformers = pytest.importorskip("transformers", reason="transformers is not installed; `make test-torch` has it")

from safetensors.torch import load_file, save_file  # noqa: E402

from nearfar.serving.quantization.checkpoint import NestedCheckpoint  # noqa: E402
from nearfar.serving.quantization.evaluation import compare  # noqa: E402
from nearfar.serving.quantization.mixing import Sensitivity, mix  # noqa: E402
from nearfar.serving.quantization.quantizer import Options, quantize  # noqa: E402
from nearfar.serving.quantization.rounding import output_error, round_matrix  # noqa: E402

OPTIONS = Options(group_size=32, num_samples=8, sample_tokens=32)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random Llama of three blocks, with a tokenizer of bytes; its columns (48, 80) fill no whole group."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """What is calibrated on."""
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text("The quick brown fox jumps over the lazy dog; 3 + 4 = 7. " * 40)
    return path


@pytest.fixture(scope="module")
def quantized(model, text, tmp_path_factory):
    """The model as nested planes."""
    out = tmp_path_factory.mktemp("nested") / "out"
    return out, quantize(model, out, calibration=text, options=OPTIONS)


def correlated(rows, columns, seed):
    """A matrix, and the second moments of inputs that go together."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=random) / columns**0.5
    inputs = torch.randn(2000, columns, generator=random) @ (mixing + 0.3 * torch.eye(columns))
    return torch.randn(rows, columns, generator=random), inputs.T @ inputs


def nearest(weight, width, group_size):
    """Rounded between the least and the greatest weight of each group."""
    grouped = weight.view(len(weight), -1, group_size)
    low, high = grouped.amin(2, keepdim=True), grouped.amax(2, keepdim=True)
    scale = (high - low) / (2**width - 1)
    return (((grouped - low) / scale).round() * scale + low).view(weight.shape)


@pytest.mark.parametrize("seed", range(3))
def test_one_code_for_all_widths_is_nearly_as_good_as_one_for_each(seed):
    """The layer's outputs lose less than with rounding, and at 4 bits little more than with codes for 4 bits alone."""
    weight, seen = correlated(48, 96, seed)

    nested = round_matrix(weight, seen, widths=(2, 4, 6, 8), group_size=32)
    alone = round_matrix(weight, seen, widths=(4,), group_size=32)

    errors = {width: output_error(weight, torch.from_numpy(nested.at(width)), seen) for width in nested.widths}
    assert errors[2] > errors[4] > errors[6] > errors[8]
    for width in (2, 4):
        assert errors[width] < 0.7 * output_error(weight, nearest(weight, width, 32), seen)
    assert errors[4] < 1.35 * output_error(weight, torch.from_numpy(alone.at(4)), seen)
    assert errors[8] < 0.2 * errors[4]


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(3, 40),
        torch.full((3, 40), -2.5),
        torch.cat([torch.zeros(3, 39), torch.full((3, 1), 1000.0)], 1),
        torch.full((3, 40), 1e-9),
        torch.linspace(5, 6, 120).view(3, 40),
    ],
    ids=["zero", "constant", "one outlier", "tiny", "far from zero"],
)
@pytest.mark.parametrize("is_measured", [True, False])
def test_odd_matrices_come_back_within_a_step(weight, is_measured):
    """No division by a range of nothing, at shapes that fill no whole group either."""
    seen = torch.ones(40, 40) if is_measured else None  # of rank one

    nested = round_matrix(weight, seen, widths=(4, 8), group_size=32)

    step = (weight.max().clamp(min=0) - weight.min().clamp(max=0)) / 255
    assert np.abs(nested.at(8) - weight.numpy()).max() <= 4 * step + 1e-6


@pytest.mark.parametrize(("value", "message"), [(torch.nan, "not finite"), (40_000.0, "larger than 32000")])
def test_a_matrix_that_cannot_be_stored_is_refused(value, message):
    """Rather than rounded to something."""
    with pytest.raises(ValueError, match=message):
        round_matrix(torch.full((2, 8), value), None, widths=(8,), group_size=8)


def test_a_folder_is_quantized_block_by_block(model, quantized):
    """Every linear layer of the blocks is planes; embeddings, norms and the head are as they were."""
    out, report = quantized

    checkpoint = NestedCheckpoint.open(out)

    assert len(checkpoint.config.columns) == 3 * 7
    assert checkpoint.config.columns["model.layers.1.mlp.down_proj"] == 80
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} <= set(report.kept)
    original = load_file(model / "model.safetensors")
    for name in report.kept:
        assert torch.equal(checkpoint.tensors.tensor(name), original[name])
    for name in checkpoint.config.columns:
        there = checkpoint.matrix(name).at(8)
        assert np.abs(there - original[f"{name}.weight"].numpy()).max() < 0.1
    assert report.num_weights == sum(original[f"{name}.weight"].numel() for name in checkpoint.config.columns)


def test_precisions_between_the_widths_cost_what_they_say(model, quantized):
    """Each mix has at most its number of bits on average, and gets nearer to the original as bits are added."""
    out, _ = quantized
    checkpoint = NestedCheckpoint.open(out)
    pieces = [torch.arange(32) + 32 * i for i in range(4)]

    found = compare(model, checkpoint, pieces)

    assert checkpoint.config.precisions == (2, 3, 4, 5, 6, 7, 8)
    for precision in checkpoint.config.mixes:
        widths = [checkpoint.config.width_of(name, precision) for name in checkpoint.config.columns]
        sizes = [checkpoint.matrix(name).num_rows * columns for name, columns in checkpoint.config.columns.items()]
        assert np.average(widths, weights=sizes) <= precision
    agreements = [found[precision][1] for precision in (2, 3, 4, 8)]
    assert agreements == sorted(agreements)
    assert agreements[-1] > 0.6 > agreements[0]


def test_what_was_stopped_goes_on_and_ends_alike(model, text, quantized, tmp_path):
    """After two blocks, in the same folder, to the same tensors."""
    out, _ = quantized

    class Stopped(Exception):
        pass

    def stop(done, _):
        if done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        quantize(model, tmp_path / "again", calibration=text, options=OPTIONS, progress=stop)
    third = tmp_path / "again" / "model-00003-of-00004.safetensors"
    written = third.stat().st_mtime_ns
    quantize(model, tmp_path / "again", calibration=text, options=OPTIONS)

    assert third.stat().st_mtime_ns == written
    names = sorted(path.name for path in out.iterdir())
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == names
    for name in names:
        ours, theirs = tmp_path / "again" / name, out / name
        if name.endswith(".safetensors"):
            tensors = load_file(theirs)
            assert set(load_file(ours)) == set(tensors)
            assert all(torch.equal(tensor, tensors[key]) for key, tensor in load_file(ours).items())
        else:
            assert ours.read_bytes() == theirs.read_bytes()


def test_a_disk_that_is_full_leaves_what_is_done(model, text, tmp_path):
    """The error says that the same command goes on; with room again it does."""
    out = tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_up(done, _):
        if done == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))

    try:
        with pytest.raises(DataError, match=r"cannot be written: .* run the same command again: what is done is kept"):
            quantize(model, out, calibration=text, options=OPTIONS, progress=fill_up)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    left = sorted(path.name for path in out.iterdir())

    quantize(model, out, calibration=text, options=OPTIONS)

    done = ["model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors"]
    assert left == [*done, "quantization_state.json"]
    assert len(NestedCheckpoint.open(out).config.columns) == 21


def test_another_run_does_not_go_on_with_a_folder(model, text, tmp_path):
    """The one that was begun is named by what differs."""

    def stop(done, _):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(model, tmp_path / "out", calibration=text, options=OPTIONS, progress=stop)

    with pytest.raises(ConfigError, match="begun with another calibration"):
        quantize(model, tmp_path / "out", options=OPTIONS)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (shutil.rmtree, ConfigError, "There is no folder"),
        (lambda folder: (folder / "model.safetensors").unlink(), ConfigError, "holds no 'model.safetensors'"),
        (lambda folder: _cut(folder / "model.safetensors"), DataError, "damaged or cut off"),
        (lambda folder: (folder / "config.json").write_text("{}"), ConfigError, "no model that transformers knows"),
        (lambda folder: _config(folder, quantization_config={"quant_method": "awq"}), ConfigError, "quantized already"),
        (lambda folder: _config(folder, num_hidden_layers=4), ConfigError, "should have 4 blocks"),
        (lambda folder: _config(folder, intermediate_size=96), DataError, "does not fit the model's config"),
        (
            lambda folder: _poison(folder / "model.safetensors"),
            DataError,
            "layers.1.mlp.up_proj' cannot be quantized: .* not finite",
        ),
    ],
    ids=[
        "no folder",
        "no weights",
        "cut off",
        "no config",
        "quantized",
        "too few blocks",
        "other shapes",
        "not finite",
    ],
)
def test_a_folder_that_cannot_be_used_is_named(model, tmp_path, damage, error, message):
    """Before anything is served from it."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    damage(folder)

    with pytest.raises(error, match=message):
        quantize(folder, tmp_path / "out", options=OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(widths=(2, 8), precisions=(3, 9)), r"mix of 9 bits cannot be made; .* there are: 3, 4, 5, 6, 7\."),
        (Options(widths=(2, 8), precisions=(2,)), "mix of 2 bits cannot be made"),
        (Options(widths=(7, 8), precisions=(7,)), "there are: none"),
        (Options(group_size=81), "A group has 81 columns, and the widest matrix 80"),
    ],
)
def test_options_that_cannot_be_met_are_refused_before_the_work(model, text, tmp_path, options, message):
    """And no folder is begun."""
    with pytest.raises(ConfigError, match=message):
        quantize(model, tmp_path / "out", calibration=text, options=options)

    assert not (tmp_path / "out").exists()


def test_a_calibration_without_a_tokenizer_is_refused(model, text, tmp_path):
    """With the folder that has none."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((model / name).read_bytes())

    with pytest.raises(ConfigError, match="has no tokenizer that can be loaded"):
        quantize(tmp_path, tmp_path / "out", calibration=text, options=OPTIONS)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_done_is_named_as_such(model, quantized):
    """What was begun goes on; what is done is not written over."""
    out, _ = quantized

    with pytest.raises(ConfigError, match="holds a whole model already; name another folder"):
        quantize(model, out, options=OPTIONS)


def test_layers_that_are_not_linear_stay_as_they_are_and_are_named(tmp_path):
    """A convolution beside linear layers, and tensors of no layer."""
    config = transformers.MambaConfig(
        vocab_size=64, hidden_size=32, state_size=4, num_hidden_layers=2, intermediate_size=64, time_step_rank=8
    )
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path / "model")

    made = quantize(tmp_path / "model", tmp_path / "out", options=Options(group_size=32))

    checkpoint = NestedCheckpoint.open(tmp_path / "out")
    original = load_file(tmp_path / "model" / "model.safetensors")
    assert "backbone.layers.1.mixer.in_proj" in checkpoint.config.columns
    kept = {"backbone.layers.1.mixer.conv1d.weight", "backbone.layers.1.mixer.A_log"}
    assert kept <= set(made.kept)
    assert all(torch.equal(checkpoint.tensors.tensor(name), original[name]) for name in kept)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}, "no linear layers .*Conv1D"),
        (
            "Qwen3Moe",
            {"hidden_size": 32, "moe_intermediate_size": 32, "num_hidden_layers": 2, "num_experts": 4},
            "no 'model.layers.0.mlp.experts.down_proj', but 'model.layers.0.mlp.experts.0.down_proj.weight'",
        ),
    ],
)
def test_a_model_that_planes_cannot_hold_is_refused(tmp_path, kind, options, message):
    """With the layers at fault."""
    config = getattr(transformers, f"{kind}Config")(vocab_size=64, **options)
    getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config).save_pretrained(
        tmp_path / "model"
    )

    with pytest.raises(ConfigError, match=message):
        quantize(tmp_path / "model", tmp_path / "out", options=OPTIONS)

    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("config.json"))


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def _config(folder, **changes):
    page = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(page | changes))


def _poison(path):
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.inf
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_checkpoint_that_was_cut_off_is_named(quantized, tmp_path):
    """With the file, before a matrix is read."""
    out, _ = quantized
    for path in out.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    _cut(tmp_path / "model-00002-of-00004.safetensors")

    with pytest.raises(DataError, match=r"model-00002-of-00004\.safetensors' is damaged"):
        NestedCheckpoint.open(tmp_path)


@pytest.mark.parametrize("place", [100, 20_000, -1])
def test_a_changed_byte_is_named(quantized, tmp_path, place):
    """A flipped bit of a plane is a number like any other: only the sums tell."""
    out, _ = quantized
    for path in out.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = tmp_path / "model-00003-of-00004.safetensors"
    whole = bytearray(shard.read_bytes())
    start = 8 + int.from_bytes(whole[:8], "little")
    whole[place if place < 0 else start + place] ^= 1
    shard.write_bytes(whole)

    with pytest.raises(DataError, match=r"'model\.layers\.1\..*-00003-of-00004\.safetensors' is not what was written"):
        NestedCheckpoint.open(tmp_path)


def test_a_missing_shard_is_named(quantized, tmp_path):
    """With the folder."""
    out, _ = quantized
    for path in out.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model-00003-of-00004.safetensors").unlink()

    with pytest.raises(DataError, match=r"lacks 'model-00003-of-00004\.safetensors'"):
        NestedCheckpoint.open(tmp_path)


def test_a_mix_widens_what_loses_most():
    """Under the mean that was asked for, the layer that suffers gets the bits."""
    calm = Sensitivity(("calm",), 100, {2: 0.02, 4: 0.01, 8: 0.0})
    frail = Sensitivity(("q", "k"), 100, {2: 5.0, 4: 0.5, 8: 0.0})

    assert mix([calm, frail], mean_bits=3, widths=(2, 4, 8)) == {"calm": 2, "q": 4, "k": 4}
    assert mix([calm, frail], mean_bits=5, widths=(2, 4, 8)) == {"calm": 2, "q": 8, "k": 8}
    with pytest.raises(ValueError, match="lowest width is 2"):
        mix([calm], mean_bits=1, widths=(2, 4, 8))
