"""A folder of nested weights is one engine and several models, each at its width."""

import json
from pathlib import Path

from nearfar.config import Settings, model_names
from nearfar.serving.engine.spec import EngineSpec


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
