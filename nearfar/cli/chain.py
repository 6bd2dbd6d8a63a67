"""`nearfar calibrate --chain …`: thresholds of several tiers, fitted together, and the policy of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearfar.errors import ConfigError

from .console import remark, stdout, table, write_json
from .promise import TargetChoice
from .run import DONE

if TYPE_CHECKING:
    from nearfar.router.chain_tables import ChainTable
    from nearfar.router.chains import ChainFit, ChainTarget


def fit_chain(
    source: Path,
    links: Sequence[str],
    *,
    target: TargetChoice,
    alpha: float,
    delta: float,
    abstention_value: float | None,
    columns: dict[str, str],
    name: str,
    out: Path | None,
    as_json: bool,
) -> int:
    """Fits, prints, and writes a policy where a file was named and there is something to write."""
    from nearfar.router.chain_tables import chain_table_policy, load_chain
    from nearfar.router.chains import ChainFitter
    from nearfar.router.policies import Policy

    if target is TargetChoice.cost:
        raise ConfigError(
            "A chain is fitted for the least cost at a quality; promise accepted-error or quality-loss, not cost."
        )
    limit: ChainTarget = "accepted-error" if target is TargetChoice.accepted_error else "quality-loss"
    fitter = ChainFitter(alpha, limit, delta, abstention_value)
    rows = load_chain(source, links, columns=columns)
    fit = fitter.fit(rows.tiers)
    facts = _facts(rows, fit)
    label = None
    if out is not None and fit.setting is not None:
        version = Policy.load(out).version + 1 if out.exists() else 1
        policy = chain_table_policy(rows, fit, name=name, version=version)
        policy.save(out)
        label = policy.label
    if as_json:
        write_json(facts | ({"policy": label, "path": str(out)} if label else {}))
        return DONE
    _print(facts)
    if label is not None:
        remark(f'\n{label} written to {out}. Use it: under [cascades.NAME] write policy = "{out}"', style="")
    elif out is not None:
        remark(f"\nNothing is written to {out}: there is no policy that keeps the promise", style="yellow")
    return DONE


def _facts(rows: ChainTable, fit: ChainFit) -> dict[str, Any]:
    guarantee = dict(fit.guarantee or {})
    thresholds: Sequence[float | None] = fit.setting.thresholds if fit.setting else [None] * len(rows.signals)
    bounds: Sequence[float | None] = fit.setting.abstain_below if fit.setting else [None] * len(rows.signals)
    n = rows.n
    chain = [
        {
            "model": tier.name,
            "signal": signal,
            "threshold": threshold,
            "abstain_below": bound,
            "keeps": kept,
            "quality_alone": sum(tier.outcomes) / n,
            "cost_alone": sum(tier.costs) / n,
        }
        for tier, signal, threshold, bound, kept in zip(
            rows.tiers,
            [*rows.signals, None],
            [*thresholds, None],
            [*bounds, None],
            fit.kept or [None] * len(rows.tiers),
            strict=True,
        )
    ]
    return {
        "target": guarantee["target"],
        "alpha": guarantee["alpha"],
        "delta": guarantee["delta"],
        "chain": chain,
        "is_feasible": guarantee["is_feasible"],
        "promise": guarantee["promise"],
        "n": n,
        "n_tested": guarantee["n_tested"],
        "num_left_out": rows.num_left_out,
        "needed_n": guarantee["needed_n"],
        "quality": fit.quality if fit.setting else None,
        "cost": fit.cost if fit.setting else None,
        "cost_unit": "as in the table" if rows.has_costs else "calls",
        "abstains": fit.abstained if fit.setting else None,
        "method": guarantee["method"],
        "assumptions": guarantee["assumptions"],
        "data_sha256": rows.sha256,
    }


def _print(facts: dict[str, Any]) -> None:
    console = stdout()
    told = [("promise", f"{facts['promise']}, with confidence {1 - facts['delta']:.4g}")]
    if not facts["is_feasible"]:
        told += [
            ("thresholds", "none: no setting of the chain passes"),
            ("labels needed", f"{facts['needed_n']:,} or more; there are {facts['n']:,}"),
        ]
    else:
        told += [
            ("quality", f"{facts['quality']:.1%} on the labels that chose"),
            ("cost per query", f"{facts['cost']:.4g} ({facts['cost_unit']})"),
        ]
        if facts["abstains"]:
            told.append(("gives up on", f"{facts['abstains']:.1%}"))
    told.append(("labelled", f"{facts['n']:,} queries; {facts['num_left_out']:,} that some model lacks are left out"))
    told += [("by", facts["method"]), ("provided that", "; ".join(facts["assumptions"]))]
    for label, value in told:
        console.print(f"[dim]{label:<18}[/]", end="")
        console.print(value, markup=False)
    rows = [
        [
            each["model"],
            _accepts(each, is_last=each["signal"] is None),
            "–" if each["keeps"] is None else f"{each['keeps']:.1%}",
            f"{each['quality_alone']:.1%}",
            f"{each['cost_alone']:.4g}",
        ]
        for each in facts["chain"]
    ]
    console.print()
    table(["tier", "accepts where", "answers", "right alone", "cost alone"], rows, right=["answers", "right alone"])


def _accepts(tier: dict[str, Any], *, is_last: bool) -> str:
    if is_last:
        return "what reaches it"
    if tier["threshold"] is None:
        return "never"
    accepts = f"{tier['signal']} ≥ {tier['threshold']:.6g}"
    bound = tier["abstain_below"]
    return accepts if bound is None else f"{accepts}; gives up below {bound:.6g}"
