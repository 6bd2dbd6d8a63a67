"""Engines on the stub server, and folders that pass for checkpoints."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path

from nearfar.serving.engine.engine import Engine, Patience
from nearfar.serving.engine.installation import Installation
from nearfar.serving.engine.spec import EngineSpec

STUB = Path(__file__).parent / "stub_vllm"
QUICK = Patience(
    start_s=20, drain_s=5, end_s=5, poll_s=0.02, health_every_s=0.1, health_s=0.3, first_wait_s=0.02, num_restarts=2
)


def safetensors(path: Path, tensors: Mapping[str, tuple[str, list[int]]] | None = None) -> None:
    """Writes a whole file of zeros: tensors of these types and shapes, by name."""
    header, end = {}, 0
    for name, (dtype, shape) in (tensors or {"w": ("U8", [64])}).items():
        start, end = end, end + math.prod(shape) * {"U8": 1, "I8": 1, "F16": 2, "F32": 4}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(end))


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
