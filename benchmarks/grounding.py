"""What checked citations and thin evidence are worth, on public questions with passages and no model.

    python benchmarks/grounding.py         writes results/grounding.json

- `citations`: sentences of the passages that hold an answer, as an answer would quote them, cited right; cited wrong;
  with a name or a number exchanged for another one of the same kind; and reworded by leaving out a fifth of the words.
  How many citations are kept, moved to the right passage, or dropped.
- `evidence`: each question over its own passages, and over the same number of them without those that support it. How
  well each retrieval signal parts the two (area under the curve), and how often a fixed coverage abstains on both.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Sequence
from typing import Any

from memory import _lines
from provenance import data_folder, provenance, save

from nearfar.retrieval.citations import MIN_SUPPORT, check, sentences
from nearfar.retrieval.grounding import MIN_COVERAGE, retrieval_signals
from nearfar.retrieval.passages import LexicalRetriever
from nearfar.router.evaluation import wilson_interval
from nearfar.types import Chunk

SUPPORTS = (0.4, 0.5, 0.6, 0.7, 0.8)


def chunks_of(row: dict[str, Any]) -> list[Chunk]:
    """The question's passages."""
    return [
        Chunk(passage["text"], f"{number} {passage['title']}", metadata={"title": passage["title"]})
        for number, passage in enumerate(row["passages"])
    ]


def citations(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What becomes of right, wrong, falsified and reworded citations at each level of support."""
    rng = random.Random(5)
    cases: list[tuple[str, str, int, str, list[Chunk], str]] = []
    names = sorted({match for row in rows for p in row["passages"][:3] for match in _NAME.findall(p["text"])})
    for row in rows:
        chunks = chunks_of(row)
        for number, passage in enumerate(row["passages"], 1):
            told = [s for s in sentences(passage["text"]) if row["answer"] and row["answer"].lower() in s.lower()]
            if not passage.get("support") or not told or len(told[0].split()) < 6:
                continue
            sentence = told[0].rstrip(".")
            other = rng.choice([n for n in range(1, len(chunks) + 1) if n != number])
            words = sentence.split()
            short = " ".join(word for word in words if rng.random() > 0.2) or sentence
            cases.append(("right", f"{sentence} [{number}].", number, sentence, chunks, row["question"]))
            cases.append(("wrong passage", f"{sentence} [{other}].", number, sentence, chunks, row["question"]))
            cases.append(
                ("a fifth of the words left out", f"{short} [{number}].", number, short, chunks, row["question"])
            )
            if spots := _NAME.findall(sentence):
                false = sentence.replace(rng.choice(spots), rng.choice(names), 1)
                cases.append(("name exchanged", f"{false} [{number}].", number, false, chunks, row["question"]))
            if spots := re.findall(r"\d+", sentence):
                spot = rng.choice(spots)
                false = sentence.replace(spot, str(int(spot) + rng.randrange(1, 9)), 1)
                cases.append(("number exchanged", f"{false} [{number}].", number, false, chunks, row["question"]))
    page: dict[str, Any] = {}
    for level in SUPPORTS:
        table: dict[str, Any] = {}
        for kind in dict.fromkeys(case[0] for case in cases):
            mine = [case for case in cases if case[0] == kind]
            cited_right = cited_other = 0
            for _, text, number, _, chunks, question in mine:
                found = {c.number for c in check(text, chunks, question=question, min_support=level).citations}
                cited_right += number in found
                cited_other += bool(found - {number})
            low, high = wilson_interval(cited_right, len(mine)).low, wilson_interval(cited_right, len(mine)).high
            table[kind] = {
                "sentences": len(mine),
                "cites_its_passage": cited_right / len(mine),
                "cites_its_passage_95": [low, high],
                "cites_another": cited_other / len(mine),
            }
        page[str(level)] = table
    return page


_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{3,}(?: [A-Z][a-z]{3,})*")


def evidence(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How well each signal tells passages that hold the answer from passages that do not."""
    signals: list[tuple[dict[str, float], dict[str, float]]] = []
    for row in rows:
        chunks = chunks_of(row)
        others = [chunk for chunk, p in zip(chunks, row["passages"], strict=True) if not p.get("support")]
        if len(others) == len(chunks):
            continue
        found = (
            retrieval_signals(row["question"], LexicalRetriever(pool).search(row["question"], k=6))
            for pool in (chunks, others)
        )
        signals.append((next(found), next(found)))
    names = sorted(set.intersection(*(set(have) & set(lack) for have, lack in signals)))
    at = {}
    for level in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
        at[str(level)] = {
            "abstains_with_the_answer": _share(have["retrieval_coverage"] < level for have, _ in signals),
            "abstains_without": _share(lack["retrieval_coverage"] < level for _, lack in signals),
        }
    return {
        "questions": len(signals),
        "area_under_curve": {
            name: _auc([have[name] for have, _ in signals], [lack[name] for _, lack in signals]) for name in names
        },
        "fixed_coverage": at,
    }


def _share(claims: Any) -> float:
    told = list(claims)
    return sum(told) / len(told)


def _auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    wins = sum((a > b) + 0.5 * (a == b) for a in positive for b in negative)
    return wins / (len(positive) * len(negative))


def main() -> None:
    """Measures and writes."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    rows = list(_lines(data_folder() / "multihop" / "qa_with_passages.jsonl.gz"))
    results: dict[str, Any] = provenance("python benchmarks/grounding.py", ["bm25s", "PyStemmer"])
    results |= {"min_support": MIN_SUPPORT, "min_coverage": MIN_COVERAGE}
    results |= {"citations": citations(rows), "evidence": evidence(rows)}
    print(json.dumps({"citations": results["citations"][str(MIN_SUPPORT)], "evidence": results["evidence"]}, indent=1))
    print(save(results, "grounding"))


if __name__ == "__main__":
    main()
