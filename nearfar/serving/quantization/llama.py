"""A Llama whose linear layers are nested planes, for one sequence: any width at any step, on one cache of keys.

Small on purpose: it is what self-speculation needs and vLLM does not let out. Serving is vLLM's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nearfar.errors import ConfigError, DataError
from nearfar.serving.kernels import cpu

from .checkpoint import Checkpoint, check_sums
from .format import TENSORS, ZERO_STEPS, num_groups, pack
from .operation import nested_linear
from .settings import NestedConfig, read_config


@dataclass(frozen=True, slots=True)
class Linear:
    """Matrices above one another that share their input, read at one width per call."""

    tensors: tuple[Tensor, ...]  # the packed one, or the five of the format
    names: tuple[str, ...]
    part_rows: tuple[int, ...]
    config: NestedConfig

    @classmethod
    def load(cls, tensors: Checkpoint, config: NestedConfig, names: Sequence[str], *, is_packed: bool) -> Linear:
        """Out of a folder; packed for the CPU kernel where it can read them."""
        parts = [tensors.nested(name, config) for name in names]
        found = {
            name: torch.from_numpy(np.concatenate([getattr(part, name) for part in parts], axis))
            for name, axis in zip(TENSORS[:-1], (1, 0, 0, 1), strict=True)
        }
        found["ranges"] = torch.from_numpy(np.stack([part.ranges for part in parts]))
        rows = tuple(part.num_rows for part in parts)
        columns = parts[0].num_columns
        if is_packed and cpu.is_supported(columns, config.group_size):
            packed = cpu.pack(
                **found, part_rows=rows, widths=config.widths, group_size=config.group_size, num_columns=columns
            )
            return cls((packed,), tuple(names), rows, config)
        return cls(tuple(found[name] for name in TENSORS), tuple(names), rows, config)

    @classmethod
    def round(cls, matrix: Tensor, config: NestedConfig) -> Linear:
        """A matrix of the model that is not stored as planes, each weight rounded to 8 bits; packed, one width."""
        outputs, inputs = matrix.shape
        groups = num_groups(inputs, config.group_size)
        padded = functional.pad(matrix.float(), (0, groups * config.group_size - inputs)).view(outputs, groups, -1)
        least, most = padded.aminmax(dim=-1)
        # The format's middle is at most half a range from 0, so that the range holds 0 too; and it is in 1/256 of it.
        least, most = least.clamp(max=0), most.clamp(min=0)
        scales = ((most - least) * (1 + 1 / ZERO_STEPS)).clamp(min=1e-6).half()
        zeros = ((most + least) / 2 / scales.float() * ZERO_STEPS).round().clamp(-128, 127).to(torch.int8)
        place = padded / scales.float()[:, :, None] - zeros[:, :, None] / ZERO_STEPS + 0.5
        codes = (place * 256).floor().clamp(0, 255).to(torch.uint8).view(outputs, -1)[:, :inputs]
        packed = cpu.pack(
            torch.from_numpy(pack(codes.numpy(), 8)),
            scales,
            zeros,
            torch.zeros((0, outputs, groups), dtype=torch.uint8),
            torch.zeros((1, 0, 4)),
            part_rows=[outputs],
            widths=[8],
            group_size=config.group_size,
            num_columns=inputs,
        )
        return cls((packed,), (), (outputs,), config)

    def __call__(self, x: Tensor, precision: int) -> Tensor:
        """The outputs of all rows of `x`, at what `precision` gives these matrices."""
        width = self.config.width_of(self.names[0], precision) if self.names else 8
        widths = _same(len(x), width)
        if len(self.tensors) == 1:
            return cpu.packed_linear(x, widths, self.tensors[0], num_outputs=sum(self.part_rows))
        return nested_linear(
            x,
            widths,
            *self.tensors,
            part_rows=self.part_rows,
            widths=self.config.widths,
            group_size=self.config.group_size,
        )


@lru_cache(maxsize=256)
def _same(count: int, width: int) -> Tensor:
    return torch.full((count,), width, dtype=torch.int32)


@dataclass(frozen=True, slots=True)
class Block:
    """One decoder layer's weights."""

    before_attention: Tensor
    attention_in: Linear  # queries, keys, values
    attention_out: Linear
    before_mlp: Tensor
    mlp_in: Linear  # gate, up
    mlp_out: Linear


class NestedLlama:
    """The model and the keys and values of one sequence."""

    def __init__(self, folder: Path, *, dtype: torch.dtype = torch.float32, max_length: int = 1024) -> None:
        """Loads a folder of nested planes.

        Args:
            folder: a Llama, as `nearfar quantize` writes it.
            dtype: of activations between the layers, norms and embeddings. Where the CPU kernel runs, the head is
                rounded to 8 bits, which every precision reads: in full it would take as long as all other matrices.
            max_length: tokens of the longest sequence, prompt and answer.

        Raises:
            ConfigError: it is no Llama, or one with biases, another activation or scaled positions.
            DataError: a file is missing or damaged.
        """
        self.config = read_config(folder)
        page = json.loads((folder / "config.json").read_text())
        _check(folder, page)
        try:
            cpu.load()
        except ConfigError:
            self.is_packed = False
        else:
            self.is_packed = True
        tensors = Checkpoint.open(folder)
        check_sums(folder)
        self.num_heads, self.num_kv_heads = page["num_attention_heads"], page["num_key_value_heads"]
        self.head_size = page.get("head_dim") or page["hidden_size"] // self.num_heads
        self.epsilon = page["rms_norm_eps"]

        def whole(name: str) -> Tensor:
            return tensors.tensor(name).to(dtype)

        def linear(*names: str) -> Linear:
            return Linear.load(tensors, self.config, names, is_packed=self.is_packed)

        self.embeddings = whole("model.embed_tokens.weight")
        head = self.embeddings if page["tie_word_embeddings"] else whole("lm_head.weight")
        self.head: Tensor | Linear = head
        if self.is_packed and cpu.is_supported(head.shape[1], self.config.group_size):
            self.head = Linear.round(head, self.config)
        self.last_norm = whole("model.norm.weight")
        self.blocks = []
        for layer in range(page["num_hidden_layers"]):
            at = f"model.layers.{layer}"
            self.blocks.append(
                Block(
                    whole(f"{at}.input_layernorm.weight"),
                    linear(*(f"{at}.self_attn.{name}_proj" for name in "qkv")),
                    linear(f"{at}.self_attn.o_proj"),
                    whole(f"{at}.post_attention_layernorm.weight"),
                    linear(f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj"),
                    linear(f"{at}.mlp.down_proj"),
                )
            )
        shape = (len(self.blocks), self.num_kv_heads, max_length, self.head_size)
        self.keys, self.values = torch.zeros(shape), torch.zeros(shape)
        theta = page.get("rope_theta") or page["rope_parameters"]["rope_theta"]
        frequencies = 1.0 / theta ** (torch.arange(0, self.head_size, 2) / self.head_size)
        angles = torch.outer(torch.arange(max_length).float(), frequencies)
        self.cosines, self.sines = angles.cos(), angles.sin()

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence."""
        return int(self.keys.shape[2])

    def __call__(self, tokens: Sequence[int], start: int, precision: int) -> Tensor:
        """Logits in float32 after each of some tokens at the places from `start` on: (tokens, vocabulary).

        What the cache holds before `start` is read, what it holds from there on is written over. At the start of a
        sequence only the last token's logits are returned.

        A token's hidden state does not depend on the tokens behind it in the same call, to the last bit: linear layers
        are the kernel's, and attention runs row by row over exactly the keys that it may see.
        """
        count = len(tokens)
        if start + count > self.max_length:
            raise ValueError(f"{start + count} tokens are more than the {self.max_length} that there is room for")
        hidden = self.embeddings[torch.tensor(tokens)]
        for layer, block in enumerate(self.blocks):
            normed = self._normed(hidden, block.before_attention)
            attended = self._attend(layer, block.attention_in(normed, precision), start)
            hidden = hidden + block.attention_out(attended, precision)
            normed = self._normed(hidden, block.before_mlp)
            gate, up = block.mlp_in(normed, precision).chunk(2, -1)
            hidden = hidden + block.mlp_out(functional.silu(gate) * up, precision)
        if start == 0:
            hidden = hidden[-1:]
        normed = self._normed(hidden, self.last_norm)
        if isinstance(self.head, Linear):
            return self.head(normed.float(), precision)
        return functional.linear(normed, self.head).float()

    def _normed(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Source: Zhang and Sennrich, arXiv:1910.07467; in float32, as Llama has it."""
        whole = hidden.float()
        return (whole * torch.rsqrt(whole.square().mean(-1, keepdim=True) + self.epsilon)).to(hidden.dtype) * weight

    def _attend(self, layer: int, made: Tensor, start: int) -> Tensor:
        """In float32."""
        count = len(made)
        heads, kv_heads, size = self.num_heads, self.num_kv_heads, self.head_size
        split = made.float().view(count, -1, size)
        turned = self._turn(split[:, : heads + kv_heads], start)
        end = start + count
        self.keys[layer, :, start:end] = turned[:, heads:].transpose(0, 1)
        self.values[layer, :, start:end] = split[:, heads + kv_heads :].transpose(0, 1)
        queries = turned[:, :heads].reshape(count, kv_heads, heads // kv_heads, size)
        if start == 0:
            every = queries.permute(1, 2, 0, 3)  # (kv heads, heads of each, tokens, size)
            keys, values = self.keys[layer, :, None, :end], self.values[layer, :, None, :end]
            shape = (kv_heads, heads // kv_heads, end, size)
            out = functional.scaled_dot_product_attention(
                every, keys.expand(shape), values.expand(shape), is_causal=True
            )
            return out.permute(2, 0, 1, 3).reshape(count, -1).to(made.dtype)
        queries = queries * size**-0.5
        keys, values = self.keys[layer].transpose(1, 2), self.values[layer]
        rows = [
            torch.bmm(torch.bmm(queries[row], keys[:, :, :seen]).softmax(-1), values[:, :seen])
            for row, seen in enumerate(range(start + 1, end + 1))
        ]
        return torch.cat(rows).view(count, -1).to(made.dtype)

    def _turn(self, x: Tensor, start: int) -> Tensor:
        """Rotary positions, halves of a head together. Source: Su et al., arXiv:2104.09864, as Llama lays them out."""
        cosine, sine = self.cosines[start : start + len(x), None], self.sines[start : start + len(x), None]
        first, second = x.chunk(2, -1)
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


def _check(folder: Path, page: dict[str, Any]) -> None:
    scaling = page.get("rope_scaling") or {
        key: value for key, value in page.get("rope_parameters", {}).items() if key not in ("rope_theta", "rope_type")
    }
    is_plain = (
        page.get("model_type") == "llama"
        and page.get("hidden_act") == "silu"
        and not page.get("attention_bias")
        and not page.get("mlp_bias")
        and not scaling
    )
    if not is_plain:
        raise ConfigError(
            f"{str(folder)!r} is no plain Llama (silu, no biases, unscaled positions); serve it with vLLM."
        )
    if "num_key_value_heads" not in page or "rms_norm_eps" not in page:
        raise DataError(f"{str(folder / 'config.json')!r} is incomplete; quantize the model again.", path=str(folder))
