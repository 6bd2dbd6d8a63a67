"""How well a 135M model names the worker of a query in one token: zero-shot, calibrated, and with a trained adapter.

    python benchmarks/functional_tokens.py train [--out DIR] [--stop-after EPOCHS]     needs the [train] extra
    python benchmarks/functional_tokens.py minilm [--out DIR]                          needs the [minilm] extra
    python benchmarks/functional_tokens.py collect zero-shot|trained [--out DIR] [--limit N] [--seconds S]
    python benchmarks/functional_tokens.py latency [--out DIR]
    python benchmarks/functional_tokens.py agree zero-shot|trained --url URL --served NAME --dtype D [--limit N]
    python benchmarks/functional_tokens.py report [--out DIR]

The 14 task families of `llmrouter_example` are the workers. A fifth of the queries, by a hash of their text, is held
back: nothing is fitted on it. Another tenth sets the calibration and stops nothing. `train` fits the adapter, `collect`
asks llama.cpp for the distribution of every query of the two parts and can be stopped and run again, `agree` asks a
vLLM of the same weights for those that `collect` came to, `report` reads what is in DIR, adds the dull baselines and
writes results/functional_tokens.json. vLLM's checkpoint is the GGUF dequantized, as tests/support/make_checkpoint.py
writes it, and its adapter the folder `peft` beside adapter.gguf:
    vllm serve CHECKPOINT --served-model-name smollm2 --dtype float32 --enforce-eager --no-enable-chunked-prefill \
        --max-model-len 1024 --enable-lora --max-lora-rank 16 --lora-modules router=DIR/adapter/peft
The data folder is $NEARFAR_DATA unless told; where it is missing nothing runs.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from provenance import data_folder, provenance, save

from nearfar.models.llama_cpp import LlamaCppModel
from nearfar.router.evaluation import expected_calibration_error
from nearfar.router.functional_tokens.chooser import FunctionalTokens
from nearfar.router.functional_tokens.distribution import (
    Distribution,
    LabelCalibration,
    LabelLogprobs,
    contextual,
    distribution,
)
from nearfar.router.functional_tokens.fitting import fit_calibration
from nearfar.router.functional_tokens.graph import Worker, WorkerGraph, free_labels
from nearfar.router.functional_tokens.prompts import CONTENT_FREE, Style, choice_prompt
from nearfar.types import Query, SamplingOptions

DESCRIPTIONS = {
    "agentverse-logicgrid": "logic puzzles about houses in a row and who lives in which",
    "agentverse-mgsm": "math word problems that ask for the final answer in \\boxed{}",
    "arc_challenge": "science questions of school exams",
    "commongen": "a list of words, to be used together in sentences",
    "commonsense_qa": "everyday questions that need common sense",
    "gpqa": "very hard questions of physics, chemistry and biology for experts",
    "gsm8k": "math word problems of primary school",
    "human_eval": "completing a Python function from its signature and docstring",
    "math": "competition mathematics: algebra, geometry, counting, in LaTeX",
    "mbpp": "requests to write a short Python function",
    "mmlu": "exam questions of all subjects, with passages to read",
    "natural_qa": "questions typed into a search engine, without capitals",
    "openbook_qa": "elementary science facts, often a sentence to complete",
    "trivia_qa": "trivia questions of quiz shows",
}
GENERAL = "mmlu"  # the broadest family takes what nobody is chosen for
PACKAGES = ("xllamacpp", "scikit-learn", "numpy")
Part = Literal["fit", "calibration", "held_back"]
Kind = Literal["zero-shot", "trained"]


@dataclass(frozen=True, slots=True)
class Item:
    """A query and the family that it comes from."""

    id: str
    text: str
    worker: str
    part: Part


def items() -> list[Item]:
    """Every query once, with its part."""
    table = pq.read_table(
        data_folder() / "router" / "llmrouter_example.parquet", columns=["dataset", "query_id", "query"]
    )
    found = {}
    for row in table.to_pylist():
        found.setdefault(row["query_id"], Item(row["query_id"], row["query"], row["dataset"], part_of(row["query"])))
    return list(found.values())


def part_of(text: str) -> Part:
    """By a hash of the text without blanks and case, so that copies of a query are in one part."""
    plain = re.sub(r"\s+", " ", text).strip().lower()
    number = int(hashlib.sha256(f"functional tokens {plain}".encode()).hexdigest()[:8], 16) % 100
    return "held_back" if number < 20 else "calibration" if number < 30 else "fit"


def graph() -> WorkerGraph:
    """The families as workers, with the first capital letters as their labels."""
    labels = free_labels((), len(DESCRIPTIONS))
    return WorkerGraph(
        tuple(Worker(name, told, label) for (name, told), label in zip(DESCRIPTIONS.items(), labels, strict=True)),
        GENERAL,
    )


def weights() -> Path:
    """The embedded model's file."""
    from nearfar.models import weights as known

    return known.fetch("smollm2", cache_dir=known.default_cache_dir())


def train(out: Path, stop_after: int | None) -> None:
    """Fits the adapter on the fit part; goes on where an earlier call stopped."""
    from nearfar.training.functional_tokens import LabelledPrompt, train

    workers = graph()
    prompts = {
        part: [
            LabelledPrompt(choice_prompt(workers.workers, each.text, "trained"), workers.by_name[each.worker].label)
            for each in items()
            if each.part == part
        ]
        for part in ("fit", "calibration")
    }
    done = train(
        weights(),
        prompts["fit"],
        out / "adapter",
        labels=[worker.label for worker in workers.workers],
        validation=prompts["calibration"] if stop_after != 0 else (),
        stop_after=stop_after,
        progress=lambda at, total, loss: print(f"{at}/{total} {loss:.3f}", flush=True) if at % 10 == 0 else None,
    )
    told = {key: value for key, value in asdict(done).items() if key not in ("gguf", "peft")}
    (out / "adapter" / "training.json").write_text(json.dumps(told))
    print(done)


def model(kind: Kind, out: Path) -> LlamaCppModel:
    """The embedded model, with the adapter for the trained kind."""
    loras = {"router": out / "adapter" / "adapter.gguf"} if kind == "trained" else {}
    base = LlamaCppModel(weights(), name="smollm2", context_window=1024, parallel=1, threads=1, loras=loras)
    return base.with_lora("router") if kind == "trained" else base


async def collect(kind: Kind, out: Path, seconds: float, limit: int | None) -> None:
    """Asks the model for the distribution over the labels, query by query, and keeps each in a file as it comes.

    The order is that of the ids, which are hashes: the first so many are a random sample.
    """
    path = out / f"{kind}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {json.loads(line)["id"] for line in path.read_text().splitlines()} if path.exists() else set()
    style: Style = "trained" if kind == "trained" else "described"
    chooser = FunctionalTokens(model(kind, out), graph(), style=style)
    rows = [(f"content free {i}", text) for i, text in enumerate(CONTENT_FREE)]
    of = sorted((each for each in items() if each.part != "fit"), key=lambda each: each.id)
    rows += [(each.id, each.text) for each in of[:limit]]
    ends = time.monotonic() + seconds
    with path.open("a") as file:
        for i, (identity, text) in enumerate(row for row in rows if row[0] not in done):
            if time.monotonic() > ends:
                print(f"stopped after {i}; run again to go on", flush=True)
                break
            started = time.perf_counter()
            found, answer = await chooser.logprobs(text)
            usage = answer.usage
            assert usage is not None
            row = {
                "id": identity,
                "logprobs": found.known,
                "prompt_tokens": usage.prompt_tokens,
                "cached_tokens": usage.cached_tokens,
                "completion_tokens": usage.completion_tokens,
                "latency_s": time.perf_counter() - started,
            }
            file.write(json.dumps(row) + "\n")
            file.flush()
            if i % 50 == 0:
                print(i, f"{row['latency_s']:.3f} s", flush=True)
    await chooser.model.aclose()


def embed(out: Path) -> None:
    """MiniLM's vector of every query, for the neighbours; needs the [minilm] extra."""
    from nearfar.retrieval.embedders import MiniLM

    found = items()
    np.savez(out / "minilm.npz", ids=[each.id for each in found], vectors=MiniLM().embed([each.text for each in found]))


async def latency(out: Path) -> None:
    """Times the choice beside the same prompt's first token without one, and beside a prompt that is all computed."""
    rows = []
    for kind in ("zero-shot", "trained"):
        if kind == "trained" and not (out / "adapter" / "adapter.gguf").exists():
            continue
        style: Style = "trained" if kind == "trained" else "described"
        chooser = FunctionalTokens(model(kind, out), graph(), style=style)
        await chooser.check()
        plain = SamplingOptions(max_tokens=1, temperature=0.0)
        for each in [each for each in items() if each.part == "held_back"][:8]:
            prompt = Query(choice_prompt(chooser.graph.workers, each.text, style), sampling=plain)
            first = await chooser.model.complete(Query("Hello.", sampling=plain))  # takes the slot's cache away …
            whole = await timed(chooser.model.complete(prompt))  # … so that this computes the prompt, and one token
            choice = await timed(chooser.logprobs(each.text))  # the prompt is there: one decode step and the choice
            again = await timed(chooser.model.complete(prompt))  # the prompt is there: one decode step
            assert first.usage is not None
            rows.append((kind, whole, again, choice))
        await chooser.model.aclose()
    (out / "latency.json").write_text(json.dumps({"load_average": os.getloadavg()[0], "rows": rows}))


async def agree(kind: Kind, out: Path, url: str, served: str, dtype: str, limit: int | None) -> None:
    """Compares a vLLM's distributions with those that llama.cpp gave, query by query, and each with its calibration."""
    from nearfar.models.openai_wire import OpenAIWireModel

    wire = OpenAIWireModel(name="served", url=url, model=served, placement="near", supports_grammar=True)
    workers = graph()
    chooser = FunctionalTokens(wire, workers, style="trained" if kind == "trained" else "described")
    await chooser.check()
    kept = rows_of(kind, out)
    held = [each for each in items() if each.part == "held_back" and each.id in kept]
    ours, theirs = [], []
    for each in held[:limit]:
        theirs.append((await chooser.logprobs(each.text))[0])
        ours.append(LabelLogprobs(kept[each.id]["logprobs"]))
    await wire.aclose()
    shares = [(distribution(a), distribution(b)) for a, b in zip(ours, theirs, strict=True)]
    gaps = [total_variation(a, b) for a, b in shares]
    right = [workers.by_name[each.worker].label for each in held[:limit]]
    told = {
        "n": len(gaps),
        "server": f"vLLM {version_of(url)}, {dtype}",
        "same_worker": round(fmean(a.best == b.best for a, b in shares), 4),
        "accuracy": [round(fmean(each[i].best == label for each, label in zip(shares, right, strict=True)), 4)
                     for i in (0, 1)],
        "total_variation_mean": round(fmean(gaps), 4),
        "total_variation_p95": round(float(np.quantile(gaps, 0.95)), 4),
        "total_variation_max": round(max(gaps), 4),
        "labels_not_shown": sum(len(each.unknown) for each in theirs),
        # Of the worker that llama.cpp chose, where vLLM chose another: how sure it was.
        "lead_where_different": sorted(
            round(a.probabilities[a.best] - a.probabilities.get(b.best, 0.0), 4)
            for a, b in shares if a.best and b.best and a.best != b.best
        ),
    }  # fmt: skip
    (out / f"agree_{kind}_{dtype}.json").write_text(json.dumps(told))
    print(told)


def total_variation(one: Distribution, other: Distribution) -> float:
    """Half the sum of the differences of all labels' probabilities, in [0, 1]."""
    labels = {*one.probabilities, *other.probabilities}
    return sum(abs(one.probabilities.get(each, 0.0) - other.probabilities.get(each, 0.0)) for each in labels) / 2


def version_of(url: str) -> str:
    """What the server says of itself."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/version", timeout=30) as reply:
        told: dict[str, str] = json.load(reply)
    return told["version"]


async def timed(work: Awaitable[object]) -> float:
    """Seconds that it took."""
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


def rows_of(kind: Kind, out: Path) -> dict[str, dict[str, Any]]:
    """What `collect` has kept, by query."""
    path = out / f"{kind}.jsonl"
    return {row["id"]: row for row in map(json.loads, path.read_text().splitlines())} if path.exists() else {}


def label_rows(rows: Mapping[str, dict[str, Any]], ids: Sequence[str]) -> list[LabelLogprobs]:
    """The labels' log-probabilities of these queries."""
    return [LabelLogprobs(rows[each]["logprobs"]) for each in ids]


def tfidf(fit: Sequence[Item], test: Sequence[Item]) -> list[str]:
    """Words and pairs of words, with logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    matrix = vectorizer.fit_transform([each.text for each in fit])
    fitted = LogisticRegression(C=10, max_iter=300).fit(matrix, [each.worker for each in fit])
    return list(fitted.predict(vectorizer.transform([each.text for each in test])))


def neighbours(out: Path, fit: Sequence[Item], test: Sequence[Item], tune: Sequence[Item]) -> list[str] | None:
    """The vote of the nearest by MiniLM, how many as does best on the calibration part; None: no vectors are there."""
    from sklearn.neighbors import KNeighborsClassifier

    if not (out / "minilm.npz").exists():
        return None
    kept = np.load(out / "minilm.npz")
    at = {identity: i for i, identity in enumerate(kept["ids"].tolist())}
    vectors = {part: kept["vectors"][[at[each.id] for each in of]] for part, of in
               (("fit", fit), ("test", test), ("tune", tune))}  # fmt: skip
    workers = [each.worker for each in fit]

    def of(k: int) -> Any:
        return KNeighborsClassifier(k, metric="cosine", weights="distance").fit(vectors["fit"], workers)

    best = max((5, 10, 20, 40), key=lambda k: of(k).score(vectors["tune"], [each.worker for each in tune]))
    return list(of(best).predict(vectors["test"]))


def figures(right: Sequence[bool], against: Sequence[bool] | None) -> dict[str, Any]:
    """Accuracy with its bootstrap interval, and the paired difference to a baseline."""
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(right), (2000, len(right)))
    values = np.array(right, float)
    row: dict[str, Any] = {"accuracy": values.mean(), "interval": np.quantile(values[draws].mean(1), [0.025, 0.975])}
    if against is not None:
        gain = values - np.array(against, float)
        row["minus_tfidf"] = [gain.mean(), *np.quantile(gain[draws].mean(1), [0.025, 0.975])]
    return {key: np.round(value, 4).tolist() for key, value in row.items()}


def report(out: Path) -> None:
    """Writes results/functional_tokens.json and prints the table.

    The baselines are measured on every query that was held back, the model on those that `collect` came to, and the
    difference of the two on the latter.
    """
    found = items()
    parts = {part: [each for each in found if each.part == part] for part in ("fit", "calibration", "held_back")}
    fit, tune, held = parts["fit"], parts["calibration"], parts["held_back"]
    workers = graph()
    name_of = {worker.label: worker.name for worker in workers.workers}
    labels = list(name_of)
    kept = {kind: rows_of(kind, out) for kind in ("zero-shot", "trained")}

    most = Counter(each.worker for each in fit).most_common(1)[0][0]
    plain = tfidf(fit, held)
    base = {each.id: a == each.worker for each, a in zip(held, plain, strict=True)}
    chosen: dict[str, tuple[list[Item], list[str]]] = {
        "majority": (held, [most] * len(held)),
        "TF-IDF + logistic regression": (held, plain),
    }
    near = neighbours(out, fit, held, tune)
    if near is not None:
        chosen["MiniLM kNN"] = (held, near)
    costs: dict[str, Any] = {}
    sure: dict[str, Any] = {}
    for kind, rows in kept.items():
        if not rows:
            continue
        test, tuned = [[each for each in of if each.id in rows] for of in (held, tune)]
        readings = {"as it is": LabelCalibration()}
        if kind == "zero-shot":
            free = label_rows(rows, [f"content free {i}" for i in range(len(CONTENT_FREE))])
            readings["contextual"] = contextual(free, labels)
        told = [workers.by_name[each.worker].label for each in tuned]
        start = list(readings.values())[-1]
        fitted = fit_calibration(label_rows(rows, [each.id for each in tuned]), labels, told, start=start)
        readings[f"calibrated on {len(tuned)} labels"] = fitted
        for how, calibration in readings.items():
            shares = [distribution(row, calibration) for row in label_rows(rows, [each.id for each in test])]
            answers = [name_of[share.best or labels[0]] for share in shares]
            chosen[f"SmolLM2 {kind}, {how}"] = (test, answers)
            sure[f"{kind}, {how}"] = sureness(shares, [a == each.worker for a, each in zip(answers, test, strict=True)])
        of = [rows[each.id] for each in test]
        costs[kind] = {
            "completion_tokens": sorted({row["completion_tokens"] for row in of}),
            "labels_shown": min(len(row["logprobs"]) for row in of),
            "mean_prompt_tokens": round(fmean(row["prompt_tokens"] for row in of), 1),
            "mean_tokens_computed": round(fmean(row["prompt_tokens"] - row["cached_tokens"] for row in of), 1),
        }
    table = {}
    for name, (test, answers) in chosen.items():
        right = [a == each.worker for a, each in zip(answers, test, strict=True)]
        table[name] = {"n": len(test)} | figures(right, None if answers is plain else [base[each.id] for each in test])
        row = table[name]
        print(f"{name:45s} {row['accuracy']:.3f} {row['interval']} n {row['n']}")
    adapter = out / "adapter"
    timings: dict[str, Any] = {}
    if (out / "latency.json").exists():
        kept_times = json.loads((out / "latency.json").read_text())
        times = kept_times["rows"]
        for kind in sorted({row[0] for row in times}):
            names = ("prompt_and_one_token_s", "one_token_s", "choice_s")
            timings[kind] = {
                name: round(median(row[i] for row in times if row[0] == kind), 4) for i, name in enumerate(names, 1)
            } | {"load_average": round(kept_times["load_average"], 1)}
    result = provenance("python benchmarks/functional_tokens.py report", PACKAGES) | {
        "n": {part: len(of) for part, of in parts.items()},
        "accuracy": table,
        "sureness": sure,
        "cost": costs,
        "latency_median_s": timings,
        "agreement_with_vllm": {
            path.stem.removeprefix("agree_"): json.loads(path.read_text()) for path in sorted(out.glob("agree_*.json"))
        },
        "adapter": {
            **(json.loads((adapter / "training.json").read_text()) if (adapter / "training.json").exists() else {}),
            "gguf_bytes": (adapter / "adapter.gguf").stat().st_size if (adapter / "adapter.gguf").exists() else None,
        },
    }
    print(save(result, "functional_tokens"))


def sureness(shares: Sequence[Distribution], right: Sequence[bool]) -> dict[str, Any]:
    """How well the probability of the chosen worker tells right from wrong, and what abstention leaves."""
    p = [share.probabilities[share.best] if share.best else 0.0 for share in shares]
    found: dict[str, Any] = {"ece": round(expected_calibration_error(p, [float(each) for each in right]), 4)}
    for threshold in (0.5, 0.7, 0.9):
        kept = [each for each, value in zip(right, p, strict=True) if value >= threshold]
        share = round(len(kept) / len(right), 4)
        found[f"at_least_{threshold}"] = {"share": share, "accuracy": round(fmean(kept), 4) if kept else None}
    return found


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["train", "minilm", "collect", "latency", "agree", "report"])
    parser.add_argument("kind", nargs="?", choices=["zero-shot", "trained"], default="zero-shot")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("TMPDIR", "/tmp")) / "functional_tokens")
    parser.add_argument("--stop-after", type=int, default=None, help="train: epochs of this call")
    parser.add_argument("--seconds", type=float, default=600.0, help="collect: time of this call")
    parser.add_argument("--limit", type=int, default=None, help="collect, agree: queries")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="agree: the server")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="agree: the server's")
    parser.add_argument("--served", default="smollm2", help="agree: what it calls the model or the adapter")
    options = parser.parse_args()
    match options.part:
        case "train":
            train(options.out, options.stop_after)
        case "minilm":
            embed(options.out)
        case "collect":
            asyncio.run(collect(options.kind, options.out, options.seconds, options.limit))
        case "latency":
            asyncio.run(latency(options.out))
        case "agree":
            asyncio.run(agree(options.kind, options.out, options.url, options.served, options.dtype, options.limit))
        case _:
            report(options.out)


if __name__ == "__main__":
    sys.exit(main())
