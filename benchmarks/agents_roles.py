"""Whether the planner knows when it is wrong: its score against gold plans, and what escalating the least sure gains.

    python benchmarks/agents_roles.py

A plan is right where it calls gold's tools, each as often as gold does. BFCL: the half of the public items that set no
rule (`benchmarks/bfcl.py`), all categories with gold calls. ToolAlpaca: all public items; nothing was set on them. The
least sure quarter of the plans is replaced by recorded gold ones, as a perfect far planner would, and compared with a
random quarter (the mean over all draws: accuracy + a quarter of what is wrong). Writes results/agents_roles.json.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from typing import Any

import numpy as np
from bfcl import is_reported
from provenance import data_folder, provenance, save

from nearfar.agents.evaluation.benchmarks import beside, read_rows, read_toolalpaca
from nearfar.agents.evaluation.bfcl import AST_CATEGORIES, read_item
from nearfar.agents.evaluation.bfcl_tools import tool_spec
from nearfar.agents.evaluation.request_plan import planned
from nearfar.retrieval.embedders import Remembered, find_embedder

RESAMPLES = 2000
SHARE = 0.25
EMBEDDER = Remembered(find_embedder("static"))


def judged(text: str, tools: Any, gold: Counter[str]) -> tuple[float, bool]:
    """How sure the plan is, and whether it is right."""
    plan = planned(text, tools, EMBEDDER)
    return plan.score, Counter(step.tool for step in plan.steps) == gold


def bfcl_plans() -> dict[str, list[tuple[float, bool]]]:
    """Plans for BFCL's reported half, by category."""
    found: dict[str, list[tuple[float, bool]]] = {}
    for category in AST_CATEGORIES:
        found[category] = []
        with gzip.open(data_folder() / "bfcl" / f"{category}.jsonl.gz", "rt", encoding="utf-8") as file:
            for row in map(json.loads, file):
                item = read_item(row)
                if item is not None and is_reported(item.id):
                    gold = Counter(call.name for call in item.gold)
                    tools = [tool_spec(function) for function in item.functions]
                    found[category].append(judged(item.text, tools, gold))
    return found


def toolalpaca_plans() -> list[tuple[float, bool]]:
    """Plans for ToolAlpaca's instructions."""
    path = data_folder() / "tools" / "toolalpaca" / "eval.jsonl"
    items = read_toolalpaca(read_rows(beside([path], "apis.jsonl")))
    return [
        judged(item.text, list(item.tools), Counter(call.name for call in item.gold)) for item in items if item.tools
    ]


def figures(plans: list[tuple[float, bool]]) -> dict[str, Any]:
    """Accuracy, AUROC, and accuracy after escalating a quarter, with 95 % bootstrap intervals."""
    scores = np.array([score for score, _ in plans])
    right = np.array([is_right for _, is_right in plans], float)
    draw = np.random.default_rng(0)
    samples = [draw.integers(len(plans), size=len(plans)) for _ in range(RESAMPLES)]
    measures = {
        "accuracy": lambda s, r: r.mean(),
        "auroc": auroc,
        "escalated_least_sure": escalated,
        "escalated_random": lambda s, r: r.mean() + SHARE * (1 - r.mean()),
        "gain_over_random": lambda s, r: escalated(s, r) - (r.mean() + SHARE * (1 - r.mean())),
    }
    found: dict[str, Any] = {"n": len(plans)}
    for name, measure in measures.items():
        values = [measure(scores[sample], right[sample]) for sample in samples]
        low, high = np.nanquantile(values, (0.025, 0.975))
        value = float(measure(scores, right))
        found[name] = {"value": round(value, 4), "interval": [round(float(low), 4), round(float(high), 4)]}
    return found


def auroc(scores: Any, right: Any) -> float:
    """The probability that a right plan is surer than a wrong one; ties count half."""
    good, bad = scores[right == 1], scores[right == 0]
    if not len(good) or not len(bad):
        return float("nan")
    difference = good[:, None] - bad[None, :]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def escalated(scores: Any, right: Any) -> float:
    """Accuracy once the least sure quarter is right; of equally sure plans each has its share."""
    left = SHARE * len(scores)
    gained = 0.0
    for score in np.unique(scores):
        tied = scores == score
        share = min(1.0, left / tied.sum())
        gained += share * (1 - right[tied]).sum()
        left -= share * tied.sum()
        if left <= 0:
            break
    return float((right.sum() + gained) / len(scores))


def main() -> None:
    """Measures and writes."""
    plans = bfcl_plans()
    several = [each for category in AST_CATEGORIES if "multiple" in category for each in plans[category]]
    every = [each for category in AST_CATEGORIES for each in plans[category]]
    results = provenance("python benchmarks/agents_roles.py", ("wordllama", "numpy")) | {
        "share_escalated": SHARE,
        "sets": {
            "bfcl_several_tools": figures(several),
            "bfcl_all": figures(every),
            "toolalpaca": figures(toolalpaca_plans()),
        },
        "bfcl_categories": {
            category: {"n": len(found), "accuracy": round(sum(ok for _, ok in found) / len(found), 4)}
            for category, found in plans.items()
        },
    }
    print(json.dumps(results["sets"], indent=1))
    save(results, "agents_roles")


if __name__ == "__main__":
    main()
