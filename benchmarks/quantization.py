"""What nested planes lose at each width, beside dedicated weights of the same method and rounding to nearest.

    python benchmarks/quantization.py --work FOLDER               go on where it was stopped; write the results
    python benchmarks/quantization.py --work FOLDER --minutes 12  stop after so long, to go on later

SmolLM2-135M-Instruct, dequantized once from its GGUF to bfloat16. Calibrated on one half (by a hash) of the public
questions and of the topics of Python's documentation; measured on the other halves and on a speech that calibration
saw nothing of. All run in float32. A dedicated model is the same method with one width alone: the same search of
ranges, the same second moments, one pass, one fit. Rounding to nearest takes the least and the greatest weight of a
group as its range. The group size is the same for all. Intervals are of a paired bootstrap over pieces of 256 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import pydoc_data.topics
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import RESULTS, data_folder, provenance, save
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from nearfar.serving.quantization.checkpoint import Checkpoint, NestedCheckpoint
from nearfar.serving.quantization.evaluation import at_precision, load, predict, replaced
from nearfar.serving.quantization.format import NestedWeights
from nearfar.serving.quantization.quantizer import (
    Blocks,
    Options,
    default_group_size,
    moments,
    quantize,
    samples,
    spread,
)
from nearfar.serving.quantization.rounding import EMPHASIS, round_matrix

WIDTHS = (2, 4, 6, 8)
PIECES, LENGTH = 4, 256  # of each text
OPTIONS = Options(widths=WIDTHS, num_samples=16)
RESAMPLES = 10_000
GGUF = Path.home() / ".cache/nearfar/weights/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class OutOfTime(Exception):
    """The minutes are over; what is done is kept."""


class Clock:
    """Says when to stop."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    def check(self) -> None:
        """Raises OutOfTime once the minutes are over."""
        if time.monotonic() > self.end:
            raise OutOfTime


def original(work: Path, gguf: Path) -> Path:
    """The folder of the dequantized model."""
    folder = work / "original"
    if not (folder / "done").exists():
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.to(torch.bfloat16).save_pretrained(folder)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
        (folder / "done").touch()
    return folder


def texts(data: Path) -> dict[str, str]:
    """What is calibrated on, and the three texts that are measured."""
    import pyarrow.parquet as pq

    questions: set[str] = set()
    for name in ("mmlupro_questions", "routellm_gsm8k", "routellm_mmlu"):
        table = pq.read_table(data / "router" / f"{name}.parquet", columns=["query"])
        questions.update(query for query in table["query"].to_pylist() if query)
    shuffled = sorted(questions)
    random.Random(0).shuffle(shuffled)
    topics = sorted(pydoc_data.topics.topics.items())
    ours = [question for question in shuffled if _half(question) == 0]
    others = [question for question in shuffled if _half(question) == 1]
    return {
        "calibration": "\n\n".join(ours)[:250_000]
        + "\n\n"
        + "\n\n".join(text for name, text in topics if _half(name) == 0)[:150_000],
        "questions": "\n\n".join(others)[:300_000],
        "python_docs": "\n\n".join(text for name, text in topics if _half(name) == 1),
        "sotu_2023": (data / "documents" / "sotu_2023.txt").read_text(),
    }


def _half(key: str) -> int:
    return sha256(key.encode()).digest()[0] % 2


def nested(work: Path, model: Path, calibration: Path, clock: Clock) -> dict[str, Any]:
    """Writes the nested folder, and returns its sizes."""
    noted = work / "nested.json"
    if not noted.exists():
        began = time.monotonic()

        def progress(done: int, blocks: int) -> None:
            print(f"nested: block {done} of {blocks}, {time.monotonic() - began:.0f} s", file=sys.stderr)
            if done < blocks:
                clock.check()

        quantized = quantize(model, work / "nested", calibration=calibration, options=OPTIONS, progress=progress)
        facts = {key: value for key, value in asdict(quantized).items() if key not in ("config", "kept")}
        facts["over_dedicated"] = round(quantized.num_bytes / quantized.dedicated_bytes, 4)
        facts["group_size"] = quantized.config.group_size
        noted.write_text(json.dumps(facts))
    return dict(json.loads(noted.read_text()))


def dedicated(work: Path, model: Path, calibration: Path, clock: Clock) -> None:
    """Writes each block's matrices of every single width, one file a block."""
    folder = work / "dedicated"
    folder.mkdir(exist_ok=True)
    if (folder / "done").exists():
        return
    blocks = Blocks.open(model, Checkpoint.open(model))
    group_size = default_group_size(blocks)
    hidden = blocks.enter(samples(model, calibration, OPTIONS))
    for number in range(len(blocks)):
        clock.check()
        path = folder / f"{number}.safetensors"
        blocks.load(number)
        linears = blocks.linears()
        groups, states = moments(blocks.block, hidden, linears)
        if not path.exists():
            found = {}
            for members, seen in groups:
                stacked = torch.cat([linears[name].weight.detach() for name in members])
                for width in WIDTHS:
                    weights = round_matrix(stacked, seen, widths=(width,), group_size=group_size)
                    names = "+".join(f"{blocks.prefix}.{number}.{name}" for name in members)
                    found |= {
                        f"{width}:{names}:{part}": torch.from_numpy(array) for part, array in weights.tensors().items()
                    }
            partial = path.with_suffix(f".{os.getpid()}")
            save_file(found, partial)
            partial.replace(path)
        hidden.states = states
        print(f"dedicated: block {number + 1} of {len(blocks)}", file=sys.stderr)
    (folder / "done").touch()


def dedicated_at(work: Path, network: Any, width: int, group_size: int) -> Iterator[tuple[str, torch.Tensor]]:
    """All matrices of the dedicated model of one width."""
    for path in sorted((work / "dedicated").glob("*.safetensors")):
        tensors = load_file(path)
        for names in sorted({key.split(":")[1] for key in tensors}):
            members = names.split("+")
            parts = {part: tensors[f"{width}:{names}:{part}"].numpy() for part in NestedWeights.__annotations__
                     if f"{width}:{names}:{part}" in tensors}  # fmt: skip
            columns = network.get_submodule(members[0]).in_features
            matrix = torch.from_numpy(
                NestedWeights(**parts, widths=(width,), group_size=group_size, num_columns=columns).at(width)
            )
            rows = [network.get_submodule(name).out_features for name in members]
            yield from zip(members, matrix.split(rows), strict=True)


def nearest_at(network: Any, names: Sequence[str], width: int, group_size: int) -> Iterator[tuple[str, torch.Tensor]]:
    """All matrices rounded to nearest between the least and the greatest weight of each group."""
    for name in names:
        weight = network.get_submodule(name).weight.data
        grouped = weight.view(len(weight), -1, group_size)
        low, high = grouped.amin(2, keepdim=True).clamp(max=0), grouped.amax(2, keepdim=True).clamp(min=0)
        scale = ((high - low) / (2**width - 1)).half().float().clamp(min=1e-7)
        zero = (-low / scale).round()
        codes = (grouped / scale + zero).round().clamp(0, 2**width - 1)
        yield name, ((codes - zero) * scale).view(weight.shape)


def evaluate(work: Path, model: Path, found: dict[str, str], clock: Clock) -> None:
    """Writes the predictions of every model on every text, one file a model."""
    folder = work / "predictions"
    folder.mkdir(exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(model)
    pieces = [
        piece
        for name in ("questions", "python_docs", "sotu_2023")
        for piece in spread(
            torch.tensor(tokenizer(found[name], add_special_tokens=False, verbose=False)["input_ids"]),
            PIECES,
            LENGTH,
            name=name,
        )
    ]
    network = load(model)
    nested = NestedCheckpoint.open(work / "nested")
    names, size = list(nested.config.columns), nested.config.group_size
    kinds: dict[str, Any] = {"original": list}
    for width in sorted(WIDTHS, key=lambda width: (width != 4, width)):
        kinds[f"nested-{width}"] = lambda width=width: at_precision(nested, width)
        kinds[f"dedicated-{width}"] = lambda width=width: dedicated_at(work, network, width, size)
        kinds[f"nearest-{width}"] = lambda width=width: nearest_at(network, names, width, size)
    for precision in nested.config.mixes:
        kinds[f"nested-{precision}"] = lambda precision=precision: at_precision(nested, precision)
    for kind, weights in kinds.items():
        path = folder / f"{kind}.safetensors"
        if path.exists() or (kind.startswith("dedicated") and not (work / "dedicated" / "done").exists()):
            continue
        clock.check()
        with replaced(network, list(weights())):
            made = predict(network, pieces)
        save_file({"nats": made.nats, "likeliest": made.likeliest}, path)
        print(f"evaluated: {kind} {made.perplexity:.3f}", file=sys.stderr)


def report(work: Path, quantized: dict[str, Any], out: Path) -> None:
    """Puts the predictions together, and writes the table."""
    made = {path.stem: load_file(path) for path in sorted((work / "predictions").glob("*.safetensors"))}
    truth = made["original"]["likeliest"]
    sets = {
        "questions": slice(0, PIECES),
        "python_docs": slice(PIECES, 2 * PIECES),
        "sotu_2023": slice(2 * PIECES, None),
    }
    sets["all"] = slice(None)
    table: dict[str, Any] = {}
    for kind, tensors in made.items():
        table[kind] = {
            name: {
                "perplexity": round(float(tensors["nats"][part].double().mean().exp()), 4),
                "agreement": round(float((tensors["likeliest"][part] == truth[part]).double().mean()), 4),
            }
            for name, part in sets.items()
        }
    compared = {
        str(width): {
            f"over_{other}": {
                name: _ratio(made[f"nested-{width}"]["nats"][part], made[f"{other}-{width}"]["nats"][part])
                for name, part in sets.items()
            }
            for other in ("dedicated", "nearest")
            if f"{other}-{width}" in made
        }
        for width in WIDTHS
    }
    results = {
        **provenance("python benchmarks/quantization.py --work FOLDER", ("torch", "transformers", "safetensors")),
        "model": {"name": GGUF.name, "weights": "dequantized to bfloat16"},
        "pieces": {"of_each_text": PIECES, "tokens": LENGTH},
        "calibration": {"pieces": OPTIONS.num_samples, "tokens": OPTIONS.sample_tokens},
        "emphasis": {str(width): EMPHASIS[width] for width in WIDTHS},
        "memory": quantized,
        "perplexity": table,
        "nested_perplexity_over": compared,
    }
    save(results, "quantization", out)
    for kind, row in table.items():
        print(f"{kind:12} {row['all']['perplexity']:12.3f} {row['all']['agreement']:.3f}")


def _ratio(ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, Any]:
    """exp of the mean difference in nats, with its 95 % interval over pieces."""
    gaps = (ours - theirs).double().mean(1).numpy()
    draws = np.random.default_rng(0).integers(0, len(gaps), (RESAMPLES, len(gaps)))
    low, high = np.quantile(np.exp(gaps[draws].mean(1)), (0.025, 0.975))
    return {"ratio": round(float(np.exp(gaps.mean())), 4), "interval": [round(float(low), 4), round(float(high), 4)]}


def main() -> None:
    """Goes through the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where models and predictions are kept")
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--dedicated", action="store_true", help="make the dedicated models alone, beside another run")
    parser.add_argument("--report", action="store_true", help="write the results of what is there")
    parser.add_argument("--gguf", type=Path, default=GGUF)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found = texts(data_folder())
    work, clock = arguments.work, Clock(arguments.minutes)
    work.mkdir(parents=True, exist_ok=True)
    if arguments.report:
        report(work, json.loads((work / "nested.json").read_text()), arguments.out)
        return
    if not arguments.gguf.is_file():
        sys.exit(f"skipped: no weights at {arguments.gguf.name!r}; fetch them: nearfar models pull smollm2")
    try:
        model = original(work, arguments.gguf)
        calibration = work / "calibration.txt"
        if not calibration.exists():
            calibration.write_text(found["calibration"])
        if arguments.dedicated:
            dedicated(work, model, calibration, clock)
            return
        facts = nested(work, model, calibration, clock)
        evaluate(work, model, found, clock)  # what is there
        dedicated(work, model, calibration, clock)
        evaluate(work, model, found, clock)
    except OutOfTime:
        print("stopped; run it again to go on", file=sys.stderr)
        return
    report(work, facts, arguments.out)


if __name__ == "__main__":
    main()
