"""Writes a LoRA adapter as a GGUF file that llama.cpp loads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nearfar.errors import ConfigError

#: A projection's name in transformers' Llama and in GGUF.
_GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

#: The projections that an adapter may change.
PROJECTIONS = tuple(name.rpartition(".")[2] for name in _GGUF_NAMES)

_PARAMETER = re.compile(
    r".*layers\.(?P<layer>\d+)\.(?P<module>[a-z_]+\.[a-z_]+)\.lora_(?P<part>[AB])(\.default)?\.weight"
)


def write_gguf(
    parameters: Mapping[str, Any], path: Path, *, alpha: float, num_heads: int, num_key_value_heads: int, name: str
) -> int:
    """Writes the adapter in half precision and returns its size in bytes.

    GGUF's Llama interleaves the halves of each attention head for its rotary embedding; the rows of the query's and
    the key's B matrices are put in the same order.

    Args:
        parameters: peft's names to torch tensors, two per projection.
        path: the file.
        alpha: LoRA's numerator: B·A is scaled by alpha / rank.
        num_heads: of the query.
        num_key_value_heads: of the key.
        name: what the file calls itself.

    Raises:
        ConfigError: gguf is not installed, or a parameter is none that llama.cpp's Llama takes.

    Source: the names and the order are those of llama.cpp's own converters, `convert_hf_to_gguf.py` (`permute`) and
        `convert_lora_to_gguf.py`.
    """
    try:
        import gguf
        import numpy as np
    except ImportError as exc:
        raise ConfigError("Writing an adapter needs gguf. Install it: pip install 'nearfar[train]'") from exc
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for key, tensor in sorted(parameters.items()):
        match = _PARAMETER.fullmatch(key)
        if match is None or match["module"] not in _GGUF_NAMES:
            raise ConfigError(f"llama.cpp takes no adapter of {key!r}; train {', '.join(PROJECTIONS)}.")
        values = tensor.detach().float().cpu().numpy()
        if match["part"] == "B" and match["module"] in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = num_heads if match["module"] == "self_attn.q_proj" else num_key_value_heads
            values = _interleaved(values, heads)
        target = f"blk.{match['layer']}.{_GGUF_NAMES[match['module']]}.weight.lora_{match['part'].lower()}"
        writer.add_tensor(target, np.ascontiguousarray(values, dtype=np.float16))
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.stat().st_size


def _interleaved(rows: Any, heads: int) -> Any:
    """The rows of each head with their two halves taken in turn."""
    width = rows.shape[0] // heads
    return rows.reshape(heads, 2, width // 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
