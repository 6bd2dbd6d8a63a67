"""Self-speculation on SmolLM2 with a CPU: is greedy output kept, how much of a draft stays, and what is gained.

    python benchmarks/self_speculation.py --work FOLDER               of benchmarks/quantization.py; goes on where it
                                                                      was stopped, then writes the results
    python benchmarks/self_speculation.py --work FOLDER --minutes 7   stops after so long

Plain decoding at 8 bits, then every draft width and BiLD's lossy thresholds, on questions that the model was not
calibrated on. For each prompt all ways run one after the other, so that the ratios of their times are of one moment;
intervals are of a bootstrap over prompts. Where tokens differ in bfloat16, the first difference of a prompt counts as a
near-tie if plain decoding's two greatest logits are less than epsilon apart there.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import RESULTS, data_folder, provenance, save
from quantization import texts
from transformers import AutoTokenizer

from nearfar.serving.quantization.llama import NestedLlama
from nearfar.serving.quantization.speculation import Decoded, Policy, decode, speculate

PROMPTS, TOKENS, EPSILON, RESAMPLES = 200, 24, 0.25, 2000
FEW = 20  # prompts for the ways that are only looked at
WAYS = {
    "2 bits, 1 drafted": (Policy(2, 8, length=1), FEW),
    "3 bits, 2 drafted": (Policy(3, 8, length=2), FEW),
    "4 bits, 2 drafted": (Policy(4, 8, length=2), PROMPTS),
    "4 bits, 4 drafted": (Policy(4, 8, length=4), FEW),
    "4 bits, up to 4 drafted, fallback 0.6": (Policy(4, 8, length=4, fallback=0.6), FEW),
    "6 bits, 2 drafted": (Policy(6, 8, length=2), FEW),
    "BiLD: 4 bits, fallback 0.6, rollback 5": (Policy(4, 8, length=4, fallback=0.6, rollback=5.0), FEW),
    "BiLD: 4 bits, fallback 0.6, rollback 2": (Policy(4, 8, length=4, fallback=0.6, rollback=2.0), FEW),
}


def timed(run: Any) -> tuple[Decoded, float]:
    """What it made, and the seconds that it took."""
    began = time.perf_counter()
    made = run()
    return made, time.perf_counter() - began


def measure(folder: Path, dtype: str, prompts: list[str], notes: Path, end: float) -> bool:
    """Notes each prompt's outcome on a line of its own; whether all are done."""
    done = len(notes.read_text().splitlines()) if notes.exists() else 0
    if done == len(prompts):
        return True
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = NestedLlama(folder, dtype=getattr(torch, dtype), max_length=512)
    with notes.open("a") as file:
        for number in range(done, len(prompts)):
            if time.monotonic() > end:
                return False
            chat = [{"role": "user", "content": prompts[number]}]
            text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            tokens = tokenizer(text, add_special_tokens=False)["input_ids"][:256]
            plain, plain_s = timed(lambda t=tokens: decode(model, t, max_tokens=TOKENS, precision=8))
            line: dict[str, Any] = {"plain_s": plain_s, "ways": {}}
            for name, (policy, count) in WAYS.items():
                if number >= count or (dtype != "float32" and count < PROMPTS):
                    continue
                made, took = timed(lambda t=tokens, p=policy: speculate(model, t, max_tokens=TOKENS, policy=p))
                differing = [place for place in range(TOKENS) if made.tokens[place] != plain.tokens[place]]
                line["ways"][name] = {
                    "s": took,
                    "drafted": made.num_drafted,
                    "accepted": made.num_accepted,
                    "passes": made.num_passes,
                    "same": TOKENS - len(differing),
                    "margin": plain.margins[differing[0]] if differing else None,
                }
            file.write(json.dumps(line) + "\n")
            file.flush()
    return True


def summary(lines: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Of one way over the prompts that it ran on."""
    pairs = [(line["plain_s"], line["ways"][name]) for line in lines if name in line["ways"]]
    ratios = np.array([plain / way["s"] for plain, way in pairs])
    drawn = np.random.default_rng(0).integers(0, len(pairs), (RESAMPLES, len(pairs)))
    low, high = np.quantile(np.median(ratios[drawn], 1), [0.025, 0.975])
    margins = [way["margin"] for _, way in pairs if way["margin"] is not None]
    drafted = sum(way["drafted"] for _, way in pairs)
    return {
        "prompts": len(pairs),
        "identical": len(pairs) - len(margins),
        "differing_at_near_ties": sum(margin < EPSILON for margin in margins),
        "differing_otherwise": sum(margin >= EPSILON for margin in margins),
        "same_tokens": round(sum(way["same"] for _, way in pairs) / (len(pairs) * TOKENS), 4),
        "acceptance": round(sum(way["accepted"] for _, way in pairs) / max(drafted, 1), 4),
        "tokens_per_pass": round(len(pairs) * TOKENS / sum(way["passes"] for _, way in pairs), 3),
        "speed_over_plain": round(float(np.median(ratios)), 3),
        "interval": [round(float(low), 3), round(float(high), 3)],
    }


def main() -> None:
    """Runs both types, goes on where it was stopped, writes and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--notes", type=Path, help="folder for what is measured so far; default: --work")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    folder = arguments.work / "nested"
    if not (folder / "config.json").exists():
        sys.exit(f"skipped: no nested model in {str(arguments.work)!r}; run benchmarks/quantization.py first")
    questions = [text for text in texts(data_folder())["questions"].split("\n\n") if 40 < len(text) < 500]
    prompts = random.Random(0).sample(questions, PROMPTS)
    end = time.monotonic() + 60 * arguments.minutes
    notes = arguments.notes or arguments.work
    results: dict[str, Any] = {
        **provenance("python benchmarks/self_speculation.py --work FOLDER", ("torch", "transformers")),
        "model": "SmolLM2-135M-Instruct",
        "tokens": TOKENS,
        "threads": torch.get_num_threads(),
        "epsilon": EPSILON,
    }
    for dtype in ("float32", "bfloat16"):
        path = notes / f"self-speculation-{dtype}.jsonl"
        if not measure(folder, dtype, prompts, path, end):
            sys.exit(f"{len(path.read_text().splitlines()) if path.exists() else 0} prompts done; run again to go on")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        results[dtype] = {
            "plain_tokens_per_s": round(statistics.median(TOKENS / line["plain_s"] for line in lines), 1),
            "ways": {name: summary(lines, name) for name in WAYS if any(name in line["ways"] for line in lines)},
        }
        print(f"{dtype}: plain {results[dtype]['plain_tokens_per_s']} tokens/s")
        for name, way in results[dtype]["ways"].items():
            print(
                f"  {name:40} {way['acceptance']:6.1%} kept, {way['speed_over_plain']:.2f} x plain, "
                f"{way['identical']} of {way['prompts']} identical"
            )
    save(results, "self_speculation", arguments.out)


if __name__ == "__main__":
    main()
