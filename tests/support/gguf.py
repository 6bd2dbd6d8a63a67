"""Writes the smallest LoRA adapter that llama.cpp takes for SmolLM2-135M."""

import random
import struct
from pathlib import Path

_ALIGNMENT = 32
_STRING, _FLOAT32 = 8, 6  # GGUF value types


def write_lora(path: Path, *, seed: int, scale: float) -> Path:
    """A rank-1 adapter of random numbers on the last block's output; `scale` says how much it disturbs."""
    rng = random.Random(seed)
    width, inner = 576, 1536  # SmolLM2-135M: embedding and feed-forward sizes
    tensors = {
        "blk.29.ffn_down.weight.lora_a": ((inner, 1), [rng.gauss(0, scale) for _ in range(inner)]),
        "blk.29.ffn_down.weight.lora_b": ((1, width), [rng.gauss(0, scale) for _ in range(width)]),
    }
    values = {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 1.0,
    }
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(values))
    for key, value in values.items():
        head += _string(key)
        if isinstance(value, str):
            head += struct.pack("<I", _STRING) + _string(value)
        else:
            head += struct.pack("<If", _FLOAT32, value)
    data = b""
    for name, (shape, numbers) in tensors.items():
        head += _string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", 0, len(data))
        data += _padded(struct.pack(f"<{len(numbers)}f", *numbers))
    path.write_bytes(_padded(head) + data)
    return path


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
