"""What the CPU kernel's int8 activations lose, at each width, beside the same weights with float32 activations.

    python benchmarks/cpu/int8_activations.py --work FOLDER    of benchmarks/quantization.py, which made the model

SmolLM2-135M-Instruct in float32 on pieces of 256 tokens of two texts that it was not calibrated on; only the linear
layers that are stored as planes differ. Intervals are of a paired bootstrap over pieces.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from provenance import RESULTS, data_folder, provenance, save
from quantization import texts
from transformers import AutoTokenizer

from nearfar.errors import ConfigError
from nearfar.serving.kernels import cpu
from nearfar.serving.quantization.checkpoint import NestedCheckpoint
from nearfar.serving.quantization.evaluation import Predictions, at_precision, load, predict, replaced
from nearfar.serving.quantization.llama import Linear

PIECES, LENGTH, RESAMPLES = 4, 256, 10_000  # pieces of each text


class Packed(nn.Module):
    """A linear layer of the model, read by the kernel."""

    def __init__(self, linear: Linear, width: int) -> None:
        super().__init__()
        self.linear, self.width = linear, width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Its outputs for activations of any shape."""
        return self.linear(x.reshape(-1, x.shape[-1]), self.width).view(*x.shape[:-1], -1)


def with_kernel(model: Any, checkpoint: NestedCheckpoint, width: int, pieces: list[torch.Tensor]) -> Predictions:
    """What the model makes of the pieces with its stored layers read by the kernel."""
    originals = {name: model.get_submodule(name) for name in checkpoint.config.columns}
    for name in originals:
        linear = Linear.load(checkpoint.tensors, checkpoint.config, [name], is_packed=True)
        model.set_submodule(name, Packed(linear, width))
    try:
        return predict(model, pieces)
    finally:
        for name, layer in originals.items():
            model.set_submodule(name, layer)


def main() -> None:
    """Measures, writes, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    work: Path = arguments.work
    if not (work / "nested" / "config.json").exists():
        sys.exit(f"skipped: no nested model in {str(work)!r}; run benchmarks/quantization.py first")
    try:
        cpu.load()
    except ConfigError as exc:
        sys.exit(f"skipped: {exc}")
    found = texts(data_folder())
    tokenizer = AutoTokenizer.from_pretrained(work / "original")
    pieces = []
    for name in ("questions", "sotu_2023"):
        tokens = torch.tensor(tokenizer(found[name][:40_000], add_special_tokens=False)["input_ids"])
        pieces += list(tokens[: PIECES * LENGTH].view(PIECES, LENGTH))
    model, checkpoint = load(work / "original"), NestedCheckpoint.open(work / "nested")
    drawn = np.random.default_rng(0).integers(0, len(pieces), (RESAMPLES, len(pieces)))
    table = {}
    for width in checkpoint.config.widths:
        with replaced(model, at_precision(checkpoint, width)):
            whole = predict(model, pieces)
        rounded = with_kernel(model, checkpoint, width, pieces)
        change = (rounded.nats - whole.nats).double().mean(1).numpy()
        low, high = np.exp(np.quantile(change[drawn].mean(1), [0.025, 0.975]))
        table[str(width)] = {
            "perplexity": round(whole.perplexity, 3),
            "with_int8": round(rounded.perplexity, 3),
            "ratio": round(float(np.exp(change.mean())), 4),
            "interval": [round(float(low), 4), round(float(high), 4)],
            "agreement": round(rounded.agreement(whole), 4),
        }
        print(width, table[str(width)])
    results = {
        **provenance("python benchmarks/cpu/int8_activations.py --work FOLDER", ("torch", "transformers")),
        "model": "SmolLM2-135M-Instruct",
        "pieces": len(pieces),
        "tokens": LENGTH,
        "widths": table,
    }
    save(results, "cpu_int8_activations", arguments.out)


if __name__ == "__main__":
    main()
