"""Routers on recorded outcomes of real models, beside dull baselines, with intervals.

    python benchmarks/routing.py predictive [--table routellm_mmlu|routellm_gsm8k]
    python benchmarks/routing.py cascades | logs | latency | parity | curve | vectors

`predictive` fits every router in five folds, grouped by question, and scores the pooled out-of-fold predictions;
`cascades` does so for routers that also read the near answer's signals; `logs` sends the least sure quarter of a log
classifier's answers to a recorded model; `latency` times one decision; `parity` compares our figures with another
implementation's (`$NEARFAR_REFERENCE_EVALUATION`, a Python file, needs numpy and pandas); `curve` is the learning
curve of the default; `vectors` embeds the tables' texts by MiniLM into --keep. Features come from the query's text and
the near answer alone. MiniLM is among the embedders where its extra is installed, or where --keep has its vectors.
With --keep FOLDER the vectors, the routers' scores and their figures stay in that folder, by the code that made them,
and a run that was cut off goes on; `--router NAME` makes only that router's scores there.

Writes results/routing_<part>.json. The data folder is $NEARFAR_DATA unless told; where it is missing nothing runs.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.util
import inspect
import json
import math
import os
import random
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from provenance import data_folder, provenance, save

from nearfar.retrieval.embedders import MiniLM, Remembered, StaticEmbedder, is_minilm_installed
from nearfar.router.predictive import PredictiveRouter, RoutingExample, RoutingQuery, make
from nearfar.router.predictive.fitting import fold_numbers
from nearfar.router.routing_evaluation import (
    aiq,
    apgr_difference,
    bootstrap_metrics,
    cost_curve,
    oracle_scores,
    routing_metrics,
)
from nearfar.router.routing_report import load_also
from nearfar.router.routing_table import ANSWER_TEXT, RoutedQuery, load_routed, signal_names
from nearfar.types import Embedder

MIXTRAL, GPT4 = "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"
PAIRS = {"routellm_mmlu": (MIXTRAL, GPT4), "routellm_gsm8k": (MIXTRAL, GPT4)}
LLAMA = ("mmlu_llama3_cascade", "Llama3-8b", "Llama3-70b", ("confidence_msp", "confidence_max_logit"))
MMLU_PRO = (
    "mmlupro_confidence",
    "Meta-Llama-3.1-8B-Instruct-Turbo",
    "Meta-Llama-3.1-405B-Instruct-Turbo",
    ("logit_ppl_conf", "verbal_conf", "tokens_out"),
)
#: Which other table tells what is hard in a cascade's.
OTHERS = {LLAMA[0]: "routellm_mmlu"}
#: From this cosine of their words on, two texts are one question to the benchmark.
NEAR_DUPLICATE = 0.8
#: After the near answer of GSM8K, which has no log-probabilities, its text is all that tells.
GSM8K_ANSWERS = ("routellm_gsm8k", MIXTRAL, GPT4, (ANSWER_TEXT,))
NUM_FOLDS = 5
PACKAGES = ("scikit-learn", "numpy", "wordllama")
DATA = data_folder()
Scores = dict[str, list[float]]


def examples_of(rows: Sequence[RoutedQuery], texts: Mapping[str, str] | None = None) -> list[RoutingExample]:
    """Rows as routers take them."""
    return [RoutingExample(row.text or (texts or {})[row.query_id], row.signals, row.weak, row.strong) for row in rows]


def plain_tfidf(examples: Sequence[RoutingExample]) -> list[float]:
    """The dull baseline: scikit-learn's TF-IDF of words and bigrams, ridge on the gain, out of fold."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge

    folds, found = fold_numbers(examples, NUM_FOLDS), [0.0] * len(examples)
    for fold in range(NUM_FOLDS):
        inside = [i for i, each in enumerate(folds) if each == fold]
        train = [example for example, each in zip(examples, folds, strict=True) if each != fold]
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        matrix = vectorizer.fit_transform([example.text for example in train])
        ridge = Ridge(alpha=3, solver="sparse_cg", tol=1e-3).fit(matrix, [example.gain for example in train])
        predicted = ridge.predict(vectorizer.transform([examples[i].text for i in inside]))
        for i, value in zip(inside, predicted.tolist(), strict=True):
            found[i] = value
    return found


def summary(
    scores: Scores, examples: Sequence[RoutingExample], against: str | None, resamples: int, keeper: Keeper
) -> list[dict[str, Any]]:
    """A row per score: its figures, their intervals and the paired difference to a baseline."""
    weak, strong = [each.weak for each in examples], [each.strong for each in examples]
    rows = []
    for name, found in scores.items():
        other = scores[against] if against and name != against else None
        made = keeper.figures([found, other, weak, strong, resamples], lambda of=(found, other): figures(
            *of, weak, strong, resamples
        ))  # fmt: skip
        difference = made.pop("difference")
        rows.append({"router": name, **made} | ({f"apgr_minus_{against}": difference} if difference else {}))
        low, high = made["intervals"]["apgr"]
        print(f"{name:32s} APGR {made['apgr']:.4f} [{low:.3f}, {high:.3f}]", flush=True)
    return rows


def figures(
    found: Sequence[float],
    other: Sequence[float] | None,
    weak: Sequence[float],
    strong: Sequence[float],
    resamples: int,
) -> dict[str, Any]:
    """A score's figures, and its difference to another's, which is none where there is no other."""
    metrics = routing_metrics(found, weak, strong)
    intervals = bootstrap_metrics(found, weak, strong, resamples=resamples)
    difference = None
    if other is not None:
        gap, interval = apgr_difference(found, other, weak, strong, resamples=resamples)
        difference = [gap, interval.low, interval.high]
    return {
        **{key: getattr(metrics, key) for key in ("apgr", "cpt50", "cpt80", "pgr20", "pgr50", "audc")},
        "intervals": {key: [each.low, each.high] for key, each in intervals.items()},
        "aiq": aiq(cost_curve(found, weak, strong, [0.0] * len(weak), [1.0] * len(weak), is_cascade=False)),
        "difference": difference,
    }


def baselines(examples: Sequence[RoutingExample]) -> Scores:
    """Random, length, TF-IDF ridge and oracle."""
    draw = random.Random(0)
    return {
        "random": [draw.random() for _ in examples],
        "length": [float(len(each.text)) for each in examples],
        "plain tfidf ridge": plain_tfidf(examples),
        "oracle": oracle_scores([each.weak for each in examples], [each.strong for each in examples]),
    }


class Keeper:
    """Vectors and scores in a folder, so that a run that was cut off goes on; without a folder, nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        code = hashlib.sha256()
        for path in sorted((Path(inspect.getfile(make)).parent).glob("*.py")):
            code.update(path.read_bytes())
        self._code = code.hexdigest()[:12]

    def scores(self, table: str, name: str, score: Callable[[], list[float]]) -> list[float]:
        """What `score` gives, or gave when this code was run before."""
        if self.folder is None:
            return score()
        path = self.folder / f"{table} {name} {self._code}.json"
        if not path.exists():
            found = score()
            path.write_text(json.dumps(found))
        kept: list[float] = json.loads(path.read_text())
        return kept

    def figures(self, of: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `make` gives of these scores and outcomes, or gave when the figures' code was the same."""
        if self.folder is None:
            return make()
        code = Path(inspect.getfile(bootstrap_metrics)).read_bytes()
        path = self.folder / f"figures {hashlib.sha256(json.dumps(of).encode() + code).hexdigest()[:16]}.json"
        if not path.exists():
            path.write_text(json.dumps(make()))
        kept: dict[str, Any] = json.loads(path.read_text())
        return kept

    def out_of_fold(
        self, table: str, name: str, router: Any, examples: Sequence[RoutingExample], only: int | None = None
    ) -> list[float]:
        """The router's pooled predictions, each by a fit without its fold; with `only`, that fold's, 0 elsewhere."""
        folds, found = fold_numbers(examples, NUM_FOLDS), [0.0] * len(examples)
        for fold in range(NUM_FOLDS) if only is None else [only]:
            inside = [i for i, each in enumerate(folds) if each == fold]
            taught = [example for example, each in zip(examples, folds, strict=True) if each != fold]

            def score(taught: Any = taught, inside: Any = inside) -> list[float]:
                predicted: list[float] = router.fit(taught).predict([examples[i] for i in inside])
                return predicted

            for i, value in zip(inside, self.scores(table, f"{name} {fold}", score), strict=True):
                found[i] = value
        return found

    def has(self, table: str, name: str) -> bool:
        """Whether the scores of every fold are kept."""
        folder = self.folder
        return folder is not None and all(
            (folder / f"{table} {name} {fold} {self._code}.json").exists() for fold in range(NUM_FOLDS)
        )

    def minilm(self) -> Embedder | None:
        """MiniLM with the vectors that are kept; None where it is not installed and nothing is kept."""
        path = self.folder / "minilm.npz" if self.folder else None
        if path is not None and path.exists():
            return Kept(path)
        return Remembered(MiniLM()) if is_minilm_installed() else None


class Kept:
    """An embedder's vectors from a file, by text; a text that it has not is an error."""

    def __init__(self, path: Path) -> None:
        kept = np.load(path)
        self.name = str(kept["name"])
        self._vectors = dict(zip(kept["texts"].tolist(), kept["vectors"], strict=True))
        self.dim = len(kept["vectors"][0])

    def embed(self, texts: Sequence[str]) -> Any:
        """One row per text."""
        return np.array([self._vectors[hashlib.sha256(text.encode()).hexdigest()] for text in texts], np.float32)

    embed_queries = embed


def keep_vectors(path: Path, tables: Sequence[str]) -> None:
    """Embeds the tables' texts by MiniLM into a file that `Kept` reads."""
    embedder, texts = MiniLM(), {}
    for table in tables:
        column = pq.read_table(DATA / "router" / f"{table}.parquet", columns=["query"])["query"]
        texts |= {hashlib.sha256(text.encode()).hexdigest(): text for text in column.to_pylist() if text}
    vectors = embedder.embed(list(texts.values()))
    np.savez(path, name=embedder.name, texts=np.array(list(texts)), vectors=vectors)


def predictive(table: str, keeper: Keeper, only: str | None, fold: int | None, resamples: int) -> dict[str, Any] | None:
    """Every router on one table; None where only one router's scores were made, or those of one fold.

    With `only` "kept", the routers whose scores are all kept.
    """
    weak, strong = PAIRS[table]
    examples = examples_of(load_routed(DATA / "router" / f"{table}.parquet", weak=weak, strong=strong))
    routers: dict[str, tuple[str, Embedder | None]] = {
        name: (name, None) for name in ("auto", "tfidf-ridge", "forest", "ridge", "logistic", "boosting")
    }
    for shown, embedder in (("static", Remembered(StaticEmbedder())), ("MiniLM", keeper.minilm())):
        if embedder is not None:
            for name in ("auto", "ridge", "logistic", "knn", "sw-ranking", "matrix-factorization"):
                routers[f"{name} ({shown})"] = (name, embedder)
    if only == "kept":
        routers = {name: router for name, router in routers.items() if keeper.has(table, name)}
        only = None
    if only is not None and only not in routers:
        raise SystemExit(f"No router {only!r}; there are {', '.join(map(repr, routers))}.")
    scores = {} if only else baselines(examples)
    for shown, (name, embedder) in routers.items():
        if only in (None, shown):
            scores[shown] = keeper.out_of_fold(table, shown, make(name, embedder=embedder), examples, fold)
    return measured(table, weak, strong, examples, scores, resamples, keeper) if only is None else None


def measured(
    table: str,
    weak: str,
    strong: str,
    examples: Sequence[RoutingExample],
    scores: Scores,
    resamples: int,
    keeper: Keeper,
) -> dict[str, Any]:
    """The scores of one table with their figures."""
    return {
        "table": table,
        "weak": weak,
        "strong": strong,
        "n": len(examples),
        "num_folds": NUM_FOLDS,
        "rows": summary(scores, examples, "plain tfidf ridge", resamples, keeper),
    }


def curve(table: str, keeper: Keeper, resamples: int, shares: Sequence[float]) -> dict[str, Any]:
    """The default's APGR, pooled out of fold, fitted to ever larger parts of each fold's rest.

    The whole of it is what `predictive` fits, whose scores are taken where they are kept.
    """
    near, far = PAIRS[table]
    examples = examples_of(load_routed(DATA / "router" / f"{table}.parquet", weak=near, strong=far))
    folds = fold_numbers(examples, NUM_FOLDS)
    points = []
    for share in shares:
        found, sizes = [0.0] * len(examples), []
        for fold in range(NUM_FOLDS):
            train = [each for each, at in zip(examples, folds, strict=True) if at != fold]
            if share < 1:
                train = random.Random(fold).sample(train, max(60, round(share * len(train))))
            name = f"curve {share} {fold}" if share < 1 else f"auto {fold}"
            sizes.append(len(train))
            inside = [i for i, at in enumerate(folds) if at == fold]

            def score(train: Any = train, inside: Any = inside) -> list[float]:
                predicted: list[float] = make("auto").fit(train).predict([examples[i] for i in inside])
                return predicted

            for i, value in zip(inside, keeper.scores(table, name, score), strict=True):
                found[i] = value
        weak, strong = [each.weak for each in examples], [each.strong for each in examples]
        interval = bootstrap_metrics(found, weak, strong, resamples=resamples)["apgr"]
        points.append(
            {
                "n": round(statistics.fmean(sizes)),
                "apgr": routing_metrics(found, weak, strong).apgr,
                "interval": [interval.low, interval.high],
            }
        )
        print(points[-1], flush=True)
    return {"table": table, "router": "auto", "points": points}


def cascade(
    spec: tuple[str, str, str, tuple[str, ...]], texts: Mapping[str, str] | None, keeper: Keeper, resamples: int
) -> dict[str, Any]:
    """Routers that judge the near answer, beside its signals alone."""
    table, weak, strong, columns = spec
    rows = load_routed(DATA / "router" / f"{table}.parquet", weak=weak, strong=strong, signals=columns)
    signals = signal_names(columns, rows)
    examples = examples_of(rows, texts)
    scores = baselines(examples)
    for name in signals if ANSWER_TEXT not in columns else ["answer_is_marked"]:
        scores[f"{name} alone"] = [-each.signals.get(name, math.nan) for each in examples]
    against = f"{signals[0]} alone" if ANSWER_TEXT not in columns else "auto (text alone)"
    made = {"auto (text alone)": make("auto"), "hybrid": make("hybrid", signals=signals)}
    embedders: dict[str, Embedder | None] = {"": None}
    minilm = keeper.minilm()
    if minilm is not None and texts is None:
        made["hybrid (MiniLM)"] = make("hybrid", signals=signals, embedder=minilm)
        embedders[" (MiniLM)"] = minilm
    if table in OTHERS:
        [others] = load_also([DATA / "router" / f"{OTHERS[table]}.parquet"], rows, value="correct")
        others = apart(others, examples)
        for shown, embedder in embedders.items():
            name = f"hybrid --also {OTHERS[table]}{shown}"
            made[name] = make("hybrid", signals=signals, embedder=embedder, also=[others])
    for name, router in made.items():
        scores[name] = keeper.out_of_fold(table, name, router, examples)
    return {
        "table": table,
        "weak": weak,
        "strong": strong,
        "signals": signals,
        "n": len(examples),
        "against": against,
        "rows": summary(scores, examples, against, resamples, keeper),
    }


def apart(others: Sequence[RoutingExample], examples: Sequence[RoutingExample]) -> list[RoutingExample]:
    """The others that are no near duplicate of an example."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer=lambda query: query.grams, min_df=2, binary=True)
    mine, theirs = vectorizer.fit_transform(examples), vectorizer.transform(others)
    found = []
    for start in range(0, len(others), 500):
        closest = (theirs[start : start + 500] @ mine.T).max(axis=1).toarray().ravel()
        found += [others[start + i] for i in np.flatnonzero(closest < NEAR_DUPLICATE)]
    return found


# --- AdaptiveLog -----------------------------------------------------------------------------------------------------


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a gzipped JSONL file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def parsed(text: str, labels: Sequence[str]) -> str | None:
    """The label that a recorded answer names: after its last "Output:" or "Label:", else the last one in its text."""
    tail = re.split(r"(?:Output|Label|module name)\W*(?:is)?\W*", text)[-1]
    for part in (tail, text):
        found = [each for each in re.findall(r"[A-Za-z0-9_]+", part) if each in labels]
        if found:
            return found[0] if part is tail else found[-1]
    return None


def logs() -> dict[str, Any]:
    """A small classifier of log lines near, recorded gpt-3.5-turbo far, the least sure quarter sent on.

    The classifier learns from all vendors' lines, its own vendor's counting three times. The recorded answer is
    that of the prompt with the likest past mistakes of a small model (error cases) where the paper recorded one, which
    it did for the lines that it routed, else that of the plain prompt; "plain" takes the plain one always. Where it and
    the classifier disagree, a logistic regression on the gap between the classifier's log-probabilities of the two
    labels, fitted to the other four of five folds of all vendors' lines sent on, the own vendor's counting ten times,
    says whom to follow; counting once or three times, the log level's mean is the same within .001, and one vendor's
    modules lose one line. "replaced" follows the plain prompt's answer blindly.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_union

    recorded = read_jsonl(DATA / "cascade" / "adaptivelog_recorded.jsonl.gz")
    labelled = read_jsonl(DATA / "cascade" / "adaptivelog_train.jsonl.gz")
    rows = []
    for task in ("lp", "mc"):
        tested = {each["text"] for each in recorded if each["task"] == task}
        train = [each for each in labelled if each["task"] == task and each["text"] not in tested]
        names = {0: "Info", 1: "Error"} if task == "lp" else {}
        labels = [str(names.get(each["label"], each["label"])) for each in train]
        features = make_union(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"[A-Za-z0-9]+"),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2),
        )
        matrix = features.fit_transform([log_text(each) for each in train])
        parts = []
        for system in ("csrouters", "csswitch", "hwrouters", "hwswitch"):
            weights = [3.0 if each["system"] == system else 1.0 for each in train]
            model = LogisticRegression(C=30, max_iter=300).fit(matrix, labels, sample_weight=weights)
            test = [each for each in recorded if (each["task"], each["system"]) == (task, system)]
            probabilities = model.predict_proba(features.transform([log_text(each) for each in test]))
            parts.append(LogPart(task, system, test, [str(each) for each in model.classes_], probabilities.tolist()))
        for part in parts:
            rows.append(log_cascade(part, parts))
            print(rows[-1], flush=True)
    levels = [row for row in rows if row["task"] == "lp" and row["num_recorded"] == row["n"]]
    return {
        "rows": rows,
        "log_level_mean_full_recordings": {
            name: statistics.fmean(row[name] for row in levels)
            for name in ("small_alone", "cascade", "cascade_plain", "cascade_replaced")
        },
    }


def log_text(line: Mapping[str, Any]) -> str:
    """A log line with its compound words apart, and its vendor."""
    apart = re.sub(r"([a-z])([A-Z])", r"\1 \2", line["text"].replace("_", " "))
    return f"{apart} SYSTEM{line['system']}"


@dataclass
class LogPart:
    """One vendor's lines of one task, and what the classifier and the recorded model say of them."""

    task: str
    system: str
    test: Sequence[Mapping[str, Any]]
    classes: Sequence[str]
    probabilities: list[list[float]]

    def __post_init__(self) -> None:
        self.gold = [str(each["gold"]) for each in self.test]
        self.near = [self.classes[row.index(max(row))] for row in self.probabilities]
        recorded = (i for i in range(len(self.test)) if self.test[i]["llm_icl"] is not None)
        self.order = sorted(recorded, key=lambda i: max(self.probabilities[i]))
        self.sent = self.order[: len(self.test) // 4]
        queries = [RoutingQuery(self.test[i]["text"]) for i in self.sent]
        self.folds = dict(zip(self.sent, fold_numbers(queries, NUM_FOLDS), strict=True))
        self.plain = {i: parsed(self.test[i]["llm_icl"], self.classes) for i in self.sent}
        self.shown = {
            i: parsed(self.test[i]["llm_ecr"], self.classes) for i in self.sent if self.test[i].get("llm_ecr")
        }
        self.votes = {i: self.shown.get(i) or self.plain[i] for i in self.sent}

    def gaps(self, votes: Mapping[int, str | None]) -> dict[int, float]:
        """Log-probability of the classifier's label less that of the vote, where they disagree."""
        return {
            i: math.log(max(max(row), 1e-4) / max(row[self.classes.index(vote)], 1e-4))
            for i, vote in votes.items()
            if vote is not None and vote != self.near[i]
            for row in [self.probabilities[i]]
        }


def log_cascade(part: LogPart, parts: Sequence[LogPart]) -> dict[str, Any]:
    """The small model alone, and with the recorded one on the least sure quarter."""
    gold, sent, plain, shown = part.gold, part.sent, part.plain, part.shown
    near = [label == right for label, right in zip(part.near, gold, strict=True)]
    joined = [label == right for label, right in zip(judged(part, parts, "votes"), gold, strict=True)]
    by_plain = [label == right for label, right in zip(judged(part, parts, "plain"), gold, strict=True)]
    replaced = [plain[i] == gold[i] if i in plain else near[i] for i in range(len(gold))]
    both = [i for i in sent if shown.get(i) is not None]
    paired = [float(after) - float(before) for before, after in zip(near, joined, strict=True)]
    return {
        "task": part.task,
        "system": part.system,
        "n": len(gold),
        "num_recorded": len(part.order),
        "sent": len(sent) / len(gold),
        "small_alone": statistics.fmean(near),
        "cascade": statistics.fmean(joined),
        "cascade_plain": statistics.fmean(by_plain),
        "cascade_replaced": statistics.fmean(replaced),
        "difference": statistics.fmean(paired),
        "difference_se": statistics.pstdev(paired) / math.sqrt(len(paired)),
        "small_on_sent": statistics.fmean(near[i] for i in sent),
        "plain_on_sent": statistics.fmean(plain[i] == gold[i] for i in sent),
        "num_with_error_cases": len(both),
        "error_cases_where_recorded": statistics.fmean(shown[i] == gold[i] for i in both),
        "plain_where_error_cases_recorded": statistics.fmean(plain[i] == gold[i] for i in both),
    }


def judged(part: LogPart, parts: Sequence[LogPart], which: str) -> list[str]:
    """The label of each line: the classifier's, or that of the recorded vote where it is likelier to be right."""
    from sklearn.linear_model import LogisticRegression

    votes: dict[int, str | None] = getattr(part, which)
    gaps, chosen = part.gaps(votes), list(part.near)
    for fold in range(NUM_FOLDS):
        inside = [i for i in gaps if part.folds[i] == fold]
        known: list[tuple[float, bool, float]] = []  # gap, whether the vote is right, weight
        for other in parts:
            told = getattr(other, which)
            # A line on which both are wrong says nothing about whom to follow.
            known += [
                (gap, told[i] == other.gold[i], 10.0 if other is part else 1.0)
                for i, gap in other.gaps(told).items()
                if other.folds[i] != fold and other.gold[i] in (told[i], other.near[i])
            ]
        model = LogisticRegression().fit(
            [[gap] for gap, _, _ in known], [is_right for _, is_right, _ in known], [weight for *_, weight in known]
        )
        for i in inside:
            if model.predict([[gaps[i]]])[0]:
                chosen[i] = votes[i] or part.near[i]
    return chosen


# --- latency, parity -------------------------------------------------------------------------------------------------


def latency() -> dict[str, Any]:
    """Milliseconds of one decision, each query new: processor time and wall time.

    A router that embeds is timed in turns with its embedding alone, so that both had the same machine.
    """
    rows = []
    embedders: dict[str, Embedder] = {"static": StaticEmbedder()}
    if is_minilm_installed():
        embedders["MiniLM"] = MiniLM()
    for table, (weak, strong) in PAIRS.items():
        examples = examples_of(load_routed(DATA / "router" / f"{table}.parquet", weak=weak, strong=strong))
        texts = [each.text for each in examples[-500:]]
        found = [("auto", timed([deciding(make("auto").fit(examples[:4000]))], texts)[0])]
        for shown, embedder in embedders.items():
            # Each fit of a fold would embed anew; a text that the fit has not seen is embedded when it is routed.
            router = make("auto", embedder=Remembered(embedder)).fit(examples[:500])
            alone, routed = timed(
                [lambda text, e=embedder: e.embed([text]), deciding(router)],
                texts if shown == "static" else texts[:200],
            )
            ratio = {"times_the_embedding": routed["median_ms"] / alone["median_ms"]}
            found += [(f"the {shown} embedding alone", alone), (f"auto ({shown})", routed | ratio)]
        dense = make("matrix-factorization", embedder=embedders["static"]).fit(examples[:500])
        found.append(("matrix-factorization (static)", timed([deciding(dense)], texts)[0]))
        rows += [{"table": table, "router": name, **figures} for name, figures in found]
        for row in rows[-len(found) :]:
            print(row, flush=True)
    return {"load_average": os.getloadavg()[0], "rows": rows}


def deciding(router: PredictiveRouter) -> Callable[[str], Any]:
    """What decides one query."""
    return lambda text: router.predict([RoutingQuery(text)])


def timed(works: Sequence[Callable[[str], Any]], texts: Sequence[str]) -> list[dict[str, float]]:
    """Median, mean and 95th percentile of each of several, done in turns for each text."""
    took: list[list[tuple[float, float]]] = [[] for _ in works]
    for text in texts:
        for work, times in zip(works, took, strict=True):
            start, start_processor = time.perf_counter(), time.process_time()
            work(text)
            times.append((1e3 * (time.perf_counter() - start), 1e3 * (time.process_time() - start_processor)))
    return [
        {
            "n": len(times),
            "median_ms": statistics.median(wall for wall, _ in times),
            "p95_ms": sorted(wall for wall, _ in times)[round(0.95 * (len(times) - 1))],
            "mean_processor_ms": statistics.fmean(processor for _, processor in times),
        }
        for times in took
    ]


def parity() -> dict[str, Any]:
    """The largest differences between our figures and another implementation's, on every pair named here."""
    path = Path(os.environ["NEARFAR_REFERENCE_EVALUATION"])
    spec = importlib.util.spec_from_file_location("reference_evaluation", path)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    rows = []
    pairs = [(table, *pair) for table, pair in PAIRS.items()] + [LLAMA[:3], MMLU_PRO[:3]]
    for table, weak_model, strong_model in pairs:
        source = DATA / "router" / f"{table}.parquet"
        ours = load_routed(source, weak=weak_model, strong=strong_model)
        theirs = reference.load_pair(source, weak_model, strong_model)
        weak, strong = [row.weak for row in ours], [row.strong for row in ours]
        same = weak == theirs.weak.tolist() and strong == theirs.strong.tolist()
        draw = random.Random(1)
        for name, scores in (
            ("length", [float(len(row.text)) for row in ours]),
            ("ties", [float(draw.randrange(7)) for _ in ours]),
            ("gain and noise", [b - a + draw.gauss(0, 2) for a, b in zip(weak, strong, strict=True)]),
        ):
            metrics, other = routing_metrics(scores, weak, strong), reference.metrics(scores, weak, strong)
            costs = [draw.random() for _ in ours], [10 * draw.random() for _ in ours]
            points = cost_curve(scores, weak, strong, *costs, is_cascade=True)
            rows.append(
                {
                    "table": table,
                    "scores": name,
                    "n": len(ours),
                    "same_outcomes": same,
                    **{
                        key: abs(getattr(metrics, key.lower()) - other[key])
                        for key in ("APGR", "CPT50", "CPT80", "AUDC")
                    },
                    "AIQ": abs(aiq(points) - reference.aiq(*reference.cost_curve(scores, weak, strong, *costs, True))),
                }
            )
            print(rows[-1], flush=True)
    return {"rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["predictive", "cascades", "logs", "latency", "parity", "curve", "vectors"])
    parser.add_argument("--table", choices=[*PAIRS, LLAMA[0], MMLU_PRO[0]])
    parser.add_argument("--router", help="keep this router's scores, and measure none; kept: measure those")
    parser.add_argument("--resamples", type=int, default=300, help="of the bootstrap")
    parser.add_argument("--fold", type=int, choices=range(NUM_FOLDS), help="and of this fold alone")
    parser.add_argument("--keep", type=Path, help="a folder for vectors and scores")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.1, 0.2, 0.4, 0.7, 1.0], help="of the training part, for curve"
    )
    options = parser.parse_args()
    if options.router and not options.keep:
        parser.error("--router needs --keep")
    keeper = Keeper(options.keep)
    tables = [options.table] if options.table else list(PAIRS)
    named = f" --table {options.table}" if options.table else ""
    head = provenance(f"python benchmarks/routing.py {options.part}{named}", PACKAGES)
    start = time.perf_counter()
    if options.part == "vectors":
        keep_vectors(options.keep / "minilm.npz", tables)
        return
    if options.part == "cascades":
        questions = pq.read_table(DATA / "router" / "mmlupro_questions.parquet", columns=["query_id", "query"])
        texts = dict(zip(questions["query_id"].to_pylist(), questions["query"].to_pylist(), strict=True))
        for each, known in ((LLAMA, None), (MMLU_PRO, texts), (GSM8K_ANSWERS, None)):
            if options.table in (None, each[0]):
                started = time.perf_counter()
                figures = cascade(each, known, keeper, options.resamples)
                save({**head, **figures, "took_s": time.perf_counter() - started}, f"routing_cascade_{each[0]}")
        return
    if options.part in ("predictive", "curve"):
        for table in tables:
            started = time.perf_counter()
            figures = (
                predictive(table, keeper, options.router, options.fold, options.resamples)
                if options.part == "predictive"
                else curve(table, keeper, options.resamples, options.shares)
            )
            if figures is not None:
                save({**head, **figures, "took_s": time.perf_counter() - started}, f"routing_{options.part}_{table}")
        return
    found: Any = {"logs": logs, "latency": latency, "parity": parity}[options.part]()
    save({**head, **found, "took_s": time.perf_counter() - start}, f"routing_{options.part}")


if __name__ == "__main__":
    main()
