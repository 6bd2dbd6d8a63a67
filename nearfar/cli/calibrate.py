"""`nearfar calibrate`: from labelled answers to a policy."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.errors import ConfigError

from . import options as opt
from .console import remark, stdout, table, write_json
from .promise import MissingChoice, TargetChoice, promise
from .run import DONE

if TYPE_CHECKING:
    from nearfar.router.calibration import CalibrationReport


_PROMISE = "A promise, on a table of both models' outcomes"


class MethodChoice(StrEnum):
    """What is fitted."""

    logistic = "logistic"
    boosting = "boosting"
    isotonic = "isotonic"
    temperature = "temperature"
    beta = "beta"


def calibrate(
    source: Annotated[
        Path, typer.Argument(metavar="TABLE", help="JSONL, CSV or parquet: `correct` and signals, one row an answer.")
    ],
    tier: Annotated[
        str | None, typer.Option("--tier", help="The tier that gave the answers (default: the first).")
    ] = None,
    cascade: Annotated[str, typer.Option("--cascade", help="The cascade that the tier is in.")] = "auto",
    method: Annotated[MethodChoice, typer.Option("--method", help="What is fitted.")] = MethodChoice.logistic,
    signal: Annotated[list[str] | None, typer.Option("--signal", help="A signal to read (repeatable).")] = None,
    column: Annotated[
        list[str] | None, typer.Option("--column", help="OURS=THEIRS, for `correct`, `far_correct`, `signals`.")
    ] = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option("--min-accuracy", min=0, max=1, help="What accepted answers must reach on the table."),
    ] = None,
    near: Annotated[
        str | None,
        typer.Option("--near", help="The near model in the table's `model`.", rich_help_panel=_PROMISE),
    ] = None,
    far: Annotated[
        str | None, typer.Option("--far", help="The far model in the table's `model`.", rich_help_panel=_PROMISE)
    ] = None,
    chain: Annotated[
        list[str] | None,
        typer.Option(
            "--chain",
            metavar="MODEL=SIGNAL",
            help="In place of --near, --far and --signal: the tiers of a chain, cheapest first, the last a MODEL alone "
            "(repeatable).",
            rich_help_panel=_PROMISE,
        ),
    ] = None,
    target: Annotated[
        TargetChoice, typer.Option("--target", help="What is promised.", rich_help_panel=_PROMISE)
    ] = TargetChoice.accepted_error,
    alpha: Annotated[
        float, typer.Option("--alpha", help="The largest error, loss or cost.", rich_help_panel=_PROMISE)
    ] = 0.05,
    delta: Annotated[
        float,
        typer.Option("--delta", help="The probability with which the promise may fail.", rich_help_panel=_PROMISE),
    ] = 0.1,
    abstention_value: Annotated[
        float | None,
        typer.Option(
            "--abstention-value",
            min=0,
            max=1,
            help='What an "I don\'t know" is worth; with it a chain may give up early.',
            rich_help_panel=_PROMISE,
        ),
    ] = None,
    missing: Annotated[
        MissingChoice,
        typer.Option(
            "--missing", help="A near answer without the signal: refused, or deferred.", rich_help_panel=_PROMISE
        ),
    ] = MissingChoice.refuse,
    name: Annotated[str, typer.Option("--name", help="The policy's name.")] = "calibrated",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The policy's file (default: NAME.policy.json).")
    ] = None,
    as_json: opt.JsonOption = False,
    config: opt.ConfigOption = None,
) -> int:
    """Fit scores and a threshold to labelled answers, as a policy.

    `nearfar batch … --signals` makes such a table; add a `correct` to each of its records.

    With --near and --far, TABLE has a row per query and model (`query_id`, `model`, `correct`, the signal), and the
    threshold on that one signal keeps a promise with confidence 1 − delta, or says how many labels would be needed.
    With --chain the thresholds of several tiers are fitted together, for the least cost that keeps the promise.
    """
    if chain:
        if near is not None or far is not None or signal or tier is not None:
            raise ConfigError("--chain names models and signals itself: leave --near, --far, --signal and --tier out.")
        from .chain import fit_chain

        return fit_chain(
            source,
            chain,
            target=target,
            alpha=alpha,
            delta=delta,
            abstention_value=abstention_value,
            columns=_columns(column or []),
            name=name,
            out=out,
            as_json=as_json,
        )
    if abstention_value is not None:
        raise ConfigError("--abstention-value is a chain's: name one with --chain.")
    if near is not None or far is not None:
        if near is None or far is None or len(signal or ()) != 1:
            raise ConfigError("A promise needs --near, --far and one --signal.")
        return promise(
            source,
            near=near,
            far=far,
            signal=(signal or [""])[0],
            target=target,
            alpha=alpha,
            delta=delta,
            missing=missing.value,
            columns=_columns(column or []),
            tier=tier,
            name=name,
            out=out,
            as_json=as_json,
        )
    from nearfar.config import Settings
    from nearfar.router.calibration import calibrate as fit
    from nearfar.router.labels import load_examples
    from nearfar.router.policies import Policy

    settings = Settings.load(config, needs_keys=False)
    chosen = _tier(settings.cascades, cascade, tier)
    path = out or Path(f"{name}.policy.json")
    version = Policy.load(path).version + 1 if path.exists() else 1
    examples = load_examples(source, _columns(column or []), signals=signal)
    policy, report = fit(
        examples,
        tier=chosen.name or chosen.model,
        model=chosen.model,
        method=method.value,
        signals=signal,
        min_accuracy=min_accuracy,
        name=name,
        version=version,
    )
    policy.save(path)
    if as_json:
        write_json({"policy": policy.label, "path": str(path), **_as_json(report)})
        return DONE
    _print(report)
    remark(f'\n{policy.label} written to {path}. Use it: under [cascades.{cascade}] write policy = "{path}"', style="")
    return DONE


def _tier(cascades: Any, cascade: str, tier: str | None) -> Any:
    if cascade not in cascades:
        raise ConfigError(f"There is no cascade {cascade!r}; there are {', '.join(map(repr, cascades))}.")
    tiers = cascades[cascade].tiers
    if tier is None:
        return tiers[0]
    found = next((each for each in tiers if (each.name or each.model) == tier), None)
    if found is None:
        names = ", ".join(repr(each.name or each.model) for each in tiers)
        raise ConfigError(f"The cascade {cascade!r} has no tier {tier!r}; it has {names}.")
    return found


def _columns(pairs: list[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        ours, sign, theirs = pair.partition("=")
        if not (ours and sign and theirs):
            raise ConfigError(f"--column takes OURS=THEIRS, such as correct=is_right, not {pair!r}.")
        found[ours] = theirs
    return found


def _as_json(report: CalibrationReport) -> dict[str, Any]:
    import msgspec

    shown: dict[str, Any] = msgspec.to_builtins(report)
    shown.pop("out_of_fold_scores", None)
    return shown


def _print(report: CalibrationReport) -> None:
    console = stdout()
    low, high = report.auroc_interval.low, report.auroc_interval.high
    threshold = report.threshold
    console.print(f"{report.method} over {', '.join(report.signals)}, on {report.n:,} labelled answers\n", markup=False)
    facts = [
        ("accuracy of the tier alone", f"{report.accuracy:.1%}"),
        ("AUROC, out of fold", f"{report.auroc:.3f}  (95 %: {low:.3f} to {high:.3f})"),
        ("calibration error", f"{report.ece:.3f}"),
        ("Brier score", f"{report.brier:.3f}"),
        ("threshold", "none is good enough" if threshold.value is None else f"{threshold.value:.3f}  ({report.rule})"),
        ("accepts", f"{threshold.coverage:.1%} of the answers"),
    ]
    if threshold.accepted_accuracy is not None:
        facts.append(("right among the accepted", f"{threshold.accepted_accuracy:.1%}"))
    for label, value in facts:
        console.print(f"[dim]{label:<27}[/]{value}")
    rows = [
        [f"{each.low:.1f} – {each.high:.1f}", f"{each.n:,}", f"{each.mean_score:.3f}", f"{each.accuracy:.3f}"]
        for each in report.reliability
        if each.n
    ]
    console.print()
    table(["score", "answers", "mean score", "accuracy"], rows, right=["answers", "mean score", "accuracy"])
    for warning in report.warnings:
        console.print(f"[yellow]note[/] {warning}")
