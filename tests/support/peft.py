"""Writes the smallest LoRA adapter that vLLM takes for SmolLM2-135M."""

import json
import random
import struct
from pathlib import Path

_LAYER = "base_model.model.model.layers.29.mlp.down_proj"
_WIDTH, _INNER = 576, 1536  # embedding and feed-forward sizes


def write_peft(folder: Path, *, seed: int, scale: float) -> Path:
    """A rank-1 adapter of random numbers on the last block's output; `scale` says how much it disturbs."""
    rng = random.Random(seed)
    tensors = {
        f"{_LAYER}.lora_A.weight": ((1, _INNER), [rng.gauss(0, scale) for _ in range(_INNER)]),
        f"{_LAYER}.lora_B.weight": ((_WIDTH, 1), [rng.gauss(0, scale) for _ in range(_WIDTH)]),
    }
    head, data = {}, b""
    for name, (shape, numbers) in tensors.items():
        begin = len(data)
        data += struct.pack(f"<{len(numbers)}f", *numbers)
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(data)]}
    told = json.dumps(head).encode()
    told += b" " * (-len(told) % 8)
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(told)) + told + data)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "smollm2",
        "r": 1,
        "lora_alpha": 1,
        "target_modules": ["down_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
