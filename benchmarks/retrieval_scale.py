"""How a collection's dense search grows from 10,000 to 1,000,000 chunks: time, size, recall and memory.

    python benchmarks/retrieval_scale.py vectors             embed real texts; needs sentence-transformers
    python benchmarks/retrieval_scale.py build SIZE          make the collection; goes on where it was stopped
    python benchmarks/retrieval_scale.py measure SIZE        search it in a fresh process
    python benchmarks/retrieval_scale.py open SIZE           open it in nine fresh processes, and keep the median
    python benchmarks/retrieval_scale.py report              benchmarks/results/retrieval_scale.json

The vectors are real: MiniLM's (384 numbers) of SciFact's abstracts and of the multi-hop passages, tiled to the size
with noise of half their length, so that a copy has a cosine of about 0.8 to another of the same text. The queries are
the abstracts' titles, which are not among the texts. Each chunk's text is the first words of its passage and a number.
Everything runs on one thread (OMP_NUM_THREADS=1); memory is the fresh process's highest resident set as the kernel
counted it, mapped pages of the index included. Every query is asked in each of five rounds: `search_ms` is over all of
them as the wall clock saw it, others' load included; `search_best_ms` over the queries' fastest rounds; `search_cpu_ms`
the time that the thread itself ran, per search.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from provenance import ROOT, data_folder, provenance, save

SIZES = (10_000, 100_000, 1_000_000)
DIM = 384
NOISE = 0.5
_PER_DOCUMENT = 100
_NUM_QUERIES = 500
_ROUNDS = 5
_BLOCK = 10_000


def main() -> None:
    """Runs one stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=["vectors", "build", "measure", "open", "report"])
    parser.add_argument("size", nargs="?", type=int, choices=SIZES)
    parser.add_argument("--work", type=Path, default=ROOT / ".benchmarks" / "retrieval_scale", help="scratch folder")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop a build after so long")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.stage == "vectors":
        embed(given.work)
    elif given.stage == "report":
        report(given.work)
    elif given.size is None:
        parser.error(f"{given.stage} needs a SIZE")
    elif given.stage == "build":
        build(given.work, given.size, given.seconds)
    elif given.stage == "open":
        reopen(given.work, given.size)
    else:
        measure(given.work, given.size)


def embed(work: Path) -> None:
    """Writes the real vectors, the queries' and the first words of the texts."""
    from nearfar.retrieval.embedders import MiniLM

    folder = data_folder()
    with gzip.open(folder / "retrieval" / "scifact" / "corpus.jsonl.gz", "rt") as file:
        abstracts = [json.loads(line) for line in file]
    with gzip.open(folder / "multihop" / "qa_with_passages.jsonl.gz", "rt") as file:
        questions = [json.loads(line) for line in file]
    passages = [str(passage.get("text")) for question in questions for passage in question["passages"]]
    texts = list(dict.fromkeys([abstract["text"][:600] for abstract in abstracts] + passages))[:6_000]
    titles = list(dict.fromkeys(abstract["title"] for abstract in abstracts))[:_NUM_QUERIES]
    minilm = MiniLM()
    np.savez(work / "vectors.npz", base=minilm.embed(texts), queries=minilm.embed_queries(titles))
    (work / "texts.json").write_text(json.dumps([" ".join(text.split()[:12]) for text in texts]))


class Tiled:
    """The vectors of the numbered chunks: real ones with noise that the number alone decides."""

    name = f"all-MiniLM-L6-v2-tiled-{NOISE}"
    dim = DIM

    def __init__(self, work: Path) -> None:
        stored = np.load(work / "vectors.npz")
        self._base, self.queries = stored["base"], stored["queries"]

    def block(self, number: int) -> np.ndarray:
        """The vectors of the chunks from number * _BLOCK on."""
        random = np.random.default_rng(number)
        rows = self._base[np.arange(number * _BLOCK, (number + 1) * _BLOCK) % len(self._base)]
        rows = rows + NOISE / np.sqrt(DIM) * random.standard_normal((_BLOCK, DIM), dtype=np.float32)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """By the number at the end of each text; blocks are made once in a row."""
        rows = []
        for text in texts:
            block, place = divmod(int(text.rsplit(" ", 1)[1]), _BLOCK)
            if getattr(self, "_held", None) != block:
                self._held, self._rows = block, self.block(block)
            rows.append(self._rows[place])
        return np.array(rows)

    def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Of the queries by number."""
        return np.array([self.queries[int(text)] for text in texts])


def build(work: Path, size: int, seconds: float) -> None:
    """Puts what is not there yet, then makes the indexes; adds its time to what earlier runs took."""
    from nearfar.retrieval.database import DocumentRecord
    from nearfar.retrieval.writing import CollectionWriter
    from nearfar.types import Chunk

    started = time.monotonic()
    words = json.loads((work / "texts.json").read_text())
    is_done = True
    with CollectionWriter(work / f"c{size}", Tiled(work)) as writer:
        for first in range(len(writer.sources()) * _PER_DOCUMENT, size, _PER_DOCUMENT):
            if time.monotonic() - started > seconds:
                is_done = False
                break
            source = f"document {first:09}"
            numbers = range(first, first + _PER_DOCUMENT)
            writer.put(
                DocumentRecord(source, ""),
                [Chunk(f"{words[number % len(words)]} {number}", source, number - first) for number in numbers],
            )
        writer.flush()
        put_s = time.monotonic() - started
        if is_done:
            writer.finish()
    used = resource.getrusage(resource.RUSAGE_SELF)
    note(
        work,
        size,
        "build",
        {
            "is_done": is_done,
            "put_s": put_s,
            "index_s": time.monotonic() - started - put_s,
            "cpu_s": used.ru_utime + used.ru_stime,
            "peak_rss_mb": used.ru_maxrss / 1000,
        },
    )


def measure(work: Path, size: int) -> None:
    """Searches in a fresh process, and compares with every vector in this one."""
    script = [sys.executable, __file__, "measure", str(size), "--work", str(work)]
    if "NEARFAR_BENCH_SEARCH" not in os.environ:
        environment = os.environ | {"NEARFAR_BENCH_SEARCH": "1", "OMP_NUM_THREADS": "1"}
        said = subprocess.run(script, env=environment, capture_output=True, text=True, check=True).stdout
        found = json.loads(said)
        truth = exact(Tiled(work), size)
        hits = found.pop("hits")
        shares = np.array([len(set(ours) & set(theirs)) / 10 for ours, theirs in zip(hits, truth, strict=True)])
        means = np.random.default_rng(0).choice(shares, (2000, len(shares))).mean(axis=1)
        found["recall_at_10"] = float(shares.mean())
        found["recall_at_10_interval"] = [float(bound) for bound in np.percentile(means, [2.5, 97.5])]
        note(work, size, "measure", found)
        return
    from nearfar.retrieval.collection import Collection

    embedder = Tiled(work)
    started = time.perf_counter()
    collection = Collection(work / f"c{size}", embedder)
    opened_s = time.perf_counter() - started
    for query in range(20):
        collection.search(str(query), mode="vectors")
    hits = []
    for query in range(_NUM_QUERIES):
        found = collection.search(str(query), k=10, mode="vectors")
        hits.append([int(hit.chunk.text.rsplit(" ", 1)[1]) for hit in found])

    def ask_index(query: int) -> None:
        for searched in collection._view.parts["dense"]:
            searched.part.index.top(embedder.queries[query], 10)

    search = timed(lambda query: collection.search(str(query), k=10, mode="vectors"), "search")
    index = timed(ask_index, "index")
    folder = work / f"c{size}"
    sizes = {
        kind: sum(file.stat().st_size for file in folder.glob(pattern) if file.is_file()) / 1e6
        for kind, pattern in (("database", "*.db"), ("vectors", "parts/dense-*/*"), ("words", "parts/bm25-*/*"))
    }
    print(
        json.dumps(
            {
                "open_s": opened_s,
                **search,
                **index,
                "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
                "disk_mb": sizes,
                "parts": sorted(
                    f"{type(searched.part.index._index).__name__} of {len(searched.part.ids):,}"
                    for searched in collection._view.parts["dense"]
                ),
                "hits": hits,
            }
        )
    )


def reopen(work: Path, size: int) -> None:
    """Opens it again and again, each time in a process that has opened nothing before."""
    if "NEARFAR_BENCH_OPEN" in os.environ:
        from nearfar.retrieval.collection import Collection

        embedder = Tiled(work)
        started = time.perf_counter()
        Collection(work / f"c{size}", embedder)
        print(time.perf_counter() - started)
        return
    script = [sys.executable, __file__, "open", str(size), "--work", str(work)]
    environment = os.environ | {"NEARFAR_BENCH_OPEN": "1", "OMP_NUM_THREADS": "1"}
    took = [
        float(subprocess.run(script, env=environment, capture_output=True, text=True, check=True).stdout)
        for _ in range(9)
    ]
    path = work / f"{size}.json"
    facts = json.loads(path.read_text())["measure"]
    note(work, size, "measure", facts | {"open_s": float(np.median(took)), "open_s_each": took})


def timed(ask: Callable[[int], object], name: str) -> dict[str, Any]:
    """How long the queries take: over all rounds, over each query's fastest, and by the thread's own clock."""
    took = np.zeros((_ROUNDS, _NUM_QUERIES))
    cpu_started = time.thread_time()
    for number in range(_ROUNDS):
        for query in range(_NUM_QUERIES):
            started = time.perf_counter()
            ask(query)
            took[number, query] = time.perf_counter() - started
    cpu_s = time.thread_time() - cpu_started

    def percentiles(seconds: np.ndarray) -> dict[str, float]:
        return {f"p{p}": float(np.percentile(seconds, p) * 1e3) for p in (50, 95, 99)}

    return {
        f"{name}_ms": percentiles(took.ravel()),
        f"{name}_best_ms": percentiles(took.min(axis=0)),
        f"{name}_cpu_ms": cpu_s * 1e3 / took.size,
    }


def exact(tiled: Tiled, size: int) -> list[list[int]]:
    """The true ten of every query, by comparing with every vector."""
    scores = np.full((_NUM_QUERIES, 10), -2, np.float32)
    numbers = np.zeros((_NUM_QUERIES, 10), np.int64)
    for block in range(size // _BLOCK):
        products = tiled.queries @ tiled.block(block).T
        best = np.argpartition(-products, 10, axis=1)[:, :10]
        both = np.hstack([scores, np.take_along_axis(products, best, 1)])
        ids = np.hstack([numbers, best + block * _BLOCK])
        order = np.argsort(-both, axis=1)[:, :10]
        scores, numbers = np.take_along_axis(both, order, 1), np.take_along_axis(ids, order, 1)
    found: list[list[int]] = numbers.tolist()
    return found


def note(work: Path, size: int, stage: str, facts: dict[str, Any]) -> None:
    """Adds a stage's facts to what is known of the size."""
    path = work / f"{size}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    if stage == "build" and (earlier := known.get("build")) and not earlier["is_done"]:
        for name in ("put_s", "index_s", "cpu_s"):
            facts[name] += earlier[name]
        facts["peak_rss_mb"] = max(facts["peak_rss_mb"], earlier["peak_rss_mb"])
    known[stage] = facts
    path.write_text(json.dumps(known))
    print(json.dumps(facts))


def report(work: Path) -> None:
    """Writes what is known of every size."""
    sizes = {
        str(size): json.loads((work / f"{size}.json").read_text()) for size in SIZES if (work / f"{size}.json").exists()
    }
    facts = provenance(
        "python benchmarks/retrieval_scale.py vectors|build|measure|report", ["faiss-cpu", "bm25s", "numpy"]
    )
    facts |= {"dim": DIM, "noise": NOISE, "queries": _NUM_QUERIES, "rounds": _ROUNDS, "threads": 1, "sizes": sizes}
    save(facts, "retrieval_scale")


if __name__ == "__main__":
    main()
