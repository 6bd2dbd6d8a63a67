"""Engines on the stub server, and folders that pass for checkpoints."""

import json
import sys
from pathlib import Path

from nearfar.serving.engine.engine import Engine, Patience
from nearfar.serving.engine.installation import Installation
from nearfar.serving.engine.spec import EngineSpec

STUB = Path(__file__).parent / "stub_vllm"
QUICK = Patience(
    start_s=20, drain_s=5, end_s=5, poll_s=0.02, health_every_s=0.1, health_s=0.3, first_wait_s=0.02, num_restarts=2
)


def safetensors(path: Path, *, num_bytes: int = 64) -> None:
    """Writes a whole file with one tensor."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(num_bytes))


def checkpoint(folder: Path, **config: object) -> Path:
    """A model's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    safetensors(folder / "model.safetensors")
    return folder


def adapter(folder: Path, *, rank: int = 8) -> Path:
    """A LoRA adapter's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
    safetensors(folder / "adapter_model.safetensors")
    return folder


def stub_spec(tmp_path: Path, name: str = "near", *, fault: str = "", **options: object) -> EngineSpec:
    """A spec that runs the stub."""
    state = tmp_path / f"state-{name}"
    state.mkdir(exist_ok=True)
    environment = {"PYTHONPATH": str(STUB), "STUB_STATE": str(state), "STUB_FAULT": fault}
    environment |= options.pop("environment", {})  # type: ignore[arg-type]
    model = str(checkpoint(tmp_path / f"model-{name}"))
    return EngineSpec(name, model, environment=environment, **options)  # type: ignore[arg-type]


def stub_engine(
    tmp_path: Path, spec: EngineSpec, patience: Patience = QUICK, *, gpu_bytes: int | None = None
) -> Engine:
    """An engine whose vLLM is the stub."""
    found = Installation(Path(sys.executable), "0.32.0", gpu_bytes)
    return Engine(spec, home=tmp_path / "engines", find=lambda: found, patience=patience)


def starts(tmp_path: Path, name: str = "near") -> int:
    """How often the stub was started."""
    path = tmp_path / f"state-{name}" / "starts"
    return len(path.read_text().splitlines()) if path.exists() else 0
