"""A folder of nested weights is one engine and several models, each at its width."""

import json
from pathlib import Path

import pytest
from support.engines import checkpoint, safetensors

from nearfar.config import Settings
from nearfar.config.models import model_names
from nearfar.errors import ConfigError
from nearfar.serving.engine.spec import EngineSpec
from nearfar.serving.quantization.settings import NestedConfig

NESTED = NestedConfig((2, 4, 8), 64, {"layer": 128}, {3: {"layer": 2}}).to_json()


def folder(path, quant_method):
    """A model folder that says how it is stored."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": quant_method}}))
    return str(path)


def test_nested_weights_are_started_with_their_middleware_inside_the_guard(tmp_path):
    """Others are started without it; vLLM puts the middleware that is named last around the others."""
    nested = EngineSpec("tiny", folder(tmp_path / "nested", "nearfar_nested"))
    other = EngineSpec("tiny", folder(tmp_path / "other", "awq"))

    command = nested.command(Path("python"), port=1, on_gpu=True)

    named = [command[place + 1] for place, part in enumerate(command) if part == "--middleware"]
    assert [name.rpartition(".")[2] for name in named] == ["PrecisionMiddleware", "Guard"]
    assert json.loads(command[command.index("--additional-config") + 1]) == {"nearfar_salted": True}
    assert "--enforce-eager" in command
    assert "PrecisionMiddleware" not in " ".join(other.command(Path("python"), port=1, on_gpu=True))
    leave = nested.command(Path("python"), port=1, on_gpu=True, is_tested=False)
    assert json.loads(leave[leave.index("--additional-config") + 1])["nearfar_any_vllm"]


@pytest.mark.parametrize(
    ("stored", "widths", "message"),
    [
        (NESTED, (4, 6), r"widths has 6, and .* was stored for 2, 3, 4, 8"),
        (NESTED, (4, 8, 4), r"widths names one twice: 4, 8, 4\."),
        (NESTED, (), r"holds nested weights\. Set widths to the bits to read: 2, 3, 4, 8"),
        (NESTED | {"version": 2}, (4,), r"format version 2; this nearfar reads 1"),
        ({key: NESTED[key] for key in ("quant_method", "version")}, (4,), r"has or lacks 'columns'"),
        ({"quant_method": "awq"}, (4,), r"holds no nested weights"),
    ],
    ids=["not stored", "twice", "none asked for", "another version", "broken", "not nested"],
)
def test_widths_that_cannot_be_read_are_refused_before_anything_starts(tmp_path, stored, widths, message):
    """With those that can."""
    spec = EngineSpec("tiny", str(checkpoint(tmp_path / "m", quantization_config=stored)), widths=widths)

    with pytest.raises(ConfigError, match=message):
        spec.check()


def whole(path):
    """A folder with one matrix of 3 by 128."""
    made = checkpoint(path, quantization_config=NESTED)
    tensors = {"planes": ("U8", [4, 3, 32]), "scales": ("F16", [3, 2]), "zeros": ("I8", [3, 2])}
    tensors |= {"refits": ("U8", [2, 3, 2]), "ranges": ("F32", [2, 4])}
    safetensors(made / "model.safetensors", {f"layer.{name}": described for name, described in tensors.items()})
    return made


def test_widths_that_were_stored_pass(tmp_path):
    """Mixes of widths, too."""
    EngineSpec("tiny", str(whole(tmp_path / "m")), widths=(3, 8)).check()


def test_a_draft_model_beside_nested_weights_is_refused(tmp_path):
    """vLLM runs no logits processor with one, and every row would be read at the widest width."""
    with pytest.raises(ConfigError, match="without a draft model"):
        EngineSpec("tiny", str(whole(tmp_path / "m")), widths=(8,), draft="small").check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_size": 32}, r"'layer\.scales' is F16 of shape \(3, 2\), and config\.json asks for .*\(3, 4\)"),
        ({"widths": [4, 8], "mixes": {}}, r"'layer\.refits' is U8 of shape \(2, 3, 2\)"),
        ({"columns": {"layer": 128, "other": 64}, "mixes": {}}, r"lack 'other\.planes', which config\.json names"),
    ],
)
def test_tensors_that_do_not_fit_their_config_are_refused_before_anything_starts(tmp_path, change, message):
    """By name, off the heads of the files."""
    made = whole(tmp_path / "m")
    (made / "config.json").write_text(json.dumps({"quantization_config": NESTED | change}))

    with pytest.raises(ConfigError, match=message):
        EngineSpec("tiny", str(made), widths=(8,)).check()


def test_each_width_is_a_model_of_its_own(tmp_path):
    """By the name that a cascade's tiers take."""
    path = tmp_path / "nearfar.toml"
    path.write_text(
        f"""
        [models.tiny]
        kind = "vllm"
        model = {folder(tmp_path / "nested", "nearfar_nested")!r}
        widths = [4, 8]

        [cascades.auto]
        tiers = ["tiny@4", "tiny@8"]
        """
    )

    settings = Settings.load(path, needs_keys=False)

    assert {"tiny", "tiny@4", "tiny@8"} <= set(model_names(settings.models))
