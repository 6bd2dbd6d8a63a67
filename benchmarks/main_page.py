"""One page out of the main benchmark's figures: self-contained HTML, plots as inline SVG, light and dark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from math import ceil, log10
from typing import Any

Figures = Mapping[str, Any]

_WIDTH, _HEIGHT = 460, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 14, 46

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1a1f27; --soft: #5b6573; --line: #d9dee5;
  --near: #0f7b6c; --far: #4b5fc9; --wrong: #c65a11; --raw: #9a6b00; --tint: #eaf4f2; }
@media (prefers-color-scheme: dark) { :root { --page: #12151a; --card: #1b2027; --ink: #e8ebf0; --soft: #9aa5b4;
  --line: #333b46; --near: #4cc3b0; --far: #93a3ff; --wrong: #f0914c; --raw: #d9b24a; --tint: #17302d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 8px; }
h2 { font-size: 1.3rem; margin: 0 0 4px; }
h3 { font-size: 1rem; margin: 0 0 6px; }
p { margin: 0 0 12px; max-width: 72ch; }
.soft, figcaption, small { color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 24px;
  margin-top: 24px; }
.tiles { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); margin: 16px 0; }
.tile { border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.verdict { background: var(--tint); border-left: 4px solid var(--near); padding: 12px 16px; border-radius: 6px;
  max-width: none; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
.plots th, .plots td { padding: 5px 6px; font-size: .875rem; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 600; font-size: .875rem; }
tr.ours td { font-weight: 650; }
.plots { display: grid; gap: 28px 24px; grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr));
  margin-top: 20px; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .875rem; margin-top: 4px; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .label { fill: var(--ink); }
svg .tag { fill: var(--ink); paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 0; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
code { font-size: .875em; }
@media (max-width: 560px) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 8px; } }
"""


def render(results: Figures) -> str:
    """The page."""
    workloads = results["workloads"].values()
    sections = "\n".join(_workload(workload, results["near"]["title"]) for workload in workloads)
    counts = " and ".join(f"{workload['n']}" for workload in workloads)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>nearfar: the main job, measured</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>What a small local model may answer, and what it should not</h1>
<p>nearfar asks a small model on your own machine first (<em>near</em>), scores its answer, and asks a large model in
somebody's cloud (<em>far</em>) where the score is below a threshold. Here it did so with {counts} real questions. The
near answers were made live; the far answers are recordings of real ones, so nothing was paid for them.</p>
{sections}
{_reading(results["machine"])}
{_origin(results)}
</main>
</body>
</html>
"""


# --- one workload ----------------------------------------------------------------------------------------------------


def _workload(workload: Figures, near_title: str) -> str:
    by_name = {system["name"]: system for system in workload["systems"]}
    cascade, near, far = by_name["cascade"], by_name["near alone"], by_name["far alone"]
    tiles = [
        (_percent(cascade["accuracy"]), f"right with nearfar; {_percent(far['accuracy'])} with the far model alone"),
        (_percent(cascade["share_near"]), "of the questions stayed near"),
        (
            _usd(cascade["usd_per_1000"]),
            f"per 1,000 questions, estimated; {_usd(far['usd_per_1000'])} with the far model alone",
        ),
        (_percent(near["accuracy"]), "right with the near model alone"),
        (
            f"{workload['near_latency_s']['p50']:.2f} s",
            f"per near answer at the median, {workload['near_latency_s']['p95']:.2f} s at the 95th percentile",
        ),
    ]
    tile_html = "".join(f'<div class="tile"><b>{value}</b>{text}</div>' for value, text in tiles)
    return f"""<section>
<h2>{escape(workload["title"])}</h2>
<p class="soft">{escape(workload["description"])} Near: {escape(near_title)}. Far: {escape(workload["far"]["title"])}.
{workload["n"]} questions, none of them among those that the score was fitted to.</p>
<p class="verdict">{_verdict(workload, cascade, near, far)}</p>
<div class="tiles">{tile_html}</div>
{_systems_table(workload)}
<div class="plots">
{_curve_figure(workload, cascade)}
{_reliability_figure(workload)}
{_histogram_figure(workload)}
<figure><h3>How true the score is, by score</h3>{_reliability_table(workload["score"])}
<figcaption>{_score_line(workload)}</figcaption></figure>
</div>
<p class="soft" style="margin-top:20px">{_calibration_line(workload)}</p>
</section>"""


def _verdict(workload: Figures, cascade: Figures, near: Figures, far: Figures) -> str:
    """What the figures say, in words."""
    kept = cascade["share_near"]
    if near["accuracy"] < far["accuracy"] / 2:
        fitness = (
            f"The near model is not good enough for this work: it is right {_percent(near['accuracy'])} of the time."
        )
    elif near["accuracy"] < far["accuracy"]:
        fitness = f"The near model is right {_percent(near['accuracy'])} of the time, less often than the far one."
    else:
        fitness = "The near model is as good as the far one on this work."
    if workload["calibration"].get("refusal"):
        knows = "There were too few labels to fit a score to, so the default without calibration was used:"
    elif kept < 0.1:
        knows = "The fitted score says so:"
    else:
        knows = "By the fitted score,"
    stays = "nothing stayed near" if kept == 0 else f"{_percent(kept)} of the questions stayed near"
    lost = far["accuracy"] - cascade["accuracy"]
    if abs(lost) < 0.0005:
        price = "and the answers are as good as the far model's"
    else:
        price = (
            f"and the answers are {abs(lost) * 100:.1f} points {'worse' if lost > 0 else 'better'} than the far model's"
        )
    raw = next(system for system in workload["systems"] if system["name"].startswith("cascade, uncal"))
    aside = ""
    if not workload["calibration"].get("refusal") and abs(raw["accuracy"] - cascade["accuracy"]) > 0.02:
        aside = (
            f" Without calibration, the default threshold would have kept {_percent(raw['share_near'])} near and been "
            f"right {_percent(raw['accuracy'])} of the time."
        )
    return f"{fitness} {knows} {stays}, {price}.{aside}{_ranking(workload)}{_wasted(workload, kept)}"


def _ranking(workload: Figures) -> str:
    """Whether the score tells right from wrong; silent where it does."""
    score = workload["score"]
    low, high = score["auroc_interval"]["low"], score["auroc_interval"]["high"]
    if low is not None and low > 0.5:
        return ""
    if high is not None and high < 0.5:
        return " The score ranks its answers the wrong way round."
    return " Which few of its answers are right, the score cannot tell: its ranking may be chance."


def _wasted(workload: Figures, kept: float) -> str:
    """What asking the near model first cost where nothing came of it."""
    if kept > 0:
        return ""
    return (
        f" Asking it first cost {workload['near_latency_s']['p50']:.1f} s a question and gained nothing: for such "
        "work, leave this near model out or take a larger one."
    )


def _systems_table(workload: Figures) -> str:
    is_fitted = not workload["calibration"].get("refusal")
    explained = {
        "cascade": "nearfar, fitted policy" if is_fitted else "nearfar",
        "cascade, uncalibrated default": "nearfar, nothing fitted",
        "near alone": "near model alone",
        "far alone": "far model alone",
        "random at the same share": "chance, as many near",
        "oracle": "oracle: far only where it helps",
    }
    rows = "".join(
        f"<tr{' class=ours' if system['name'] == 'cascade' else ''}><td>{explained[system['name']]}</td>"
        f"<td>{_percent(system['accuracy'])}</td>"
        f"<td>{_range(system['accuracy_interval'])}</td>"
        f"<td>{_percent(system['share_near'])}</td><td>{_usd(system['usd_per_1000'])}</td></tr>"
        for system in workload["systems"]
    )
    return (
        '<div class="wide"><table><thead><tr><th>Who answers</th><th>Right</th><th>95 % interval</th>'
        f"<th>Kept near</th><th>Cost per 1,000, est.</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _reliability_table(score: Figures) -> str:
    rows = "".join(
        f"<tr><td>{row['low']:.1f} to {row['high']:.1f}</td><td>{row['n']}</td><td>{_percent(row['mean_score'])}</td>"
        f"<td>{_percent(row['accuracy'])}</td><td>{_range(row['interval'])}</td></tr>"
        for row in score.get("reliability", [])
    )
    return (
        '<div class="wide"><table><thead><tr><th>Score</th><th>Answers</th><th>Claimed</th><th>Right</th>'
        f"<th>95 % interval</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _score_line(workload: Figures) -> str:
    score, raw = workload["score"], workload["raw_score"]

    def auroc(figures: Figures) -> str:
        if figures.get("auroc") is None:
            return "unknown"
        low, high = figures["auroc_interval"]["low"], figures["auroc_interval"]["high"]
        return f"{figures['auroc']:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")

    return (
        f"A right answer outscores a wrong one with probability {auroc(score)} (AUROC; 0.5 is chance, brackets hold "
        f"95 %). Claimed and observed accuracy differ by {score['ece'] * 100:.1f} points on average (ECE), by "
        f"{raw['ece'] * 100:.1f} for the uncalibrated score, whose AUROC is {auroc(raw)}. Brier score "
        f"{score['brier']:.3f}. {score['num_right']:.0f} of {score['n']} near answers are right, which makes the AUROC "
        "as uncertain as its interval says."
    )


def _calibration_line(workload: Figures) -> str:
    calibration = workload["calibration"]
    labels = f"{calibration['n']} other questions, of which the near model got {calibration['num_right']:.0f} right"
    if calibration.get("refusal"):
        return f"Not calibrated, on {labels}: {escape(calibration['refusal'])}"
    threshold = calibration["threshold"]
    accepts = "accept nothing" if threshold is None else f"accept from a score of {threshold:.3f}"
    held_out = calibration["out_of_fold"]
    return (
        f"Fitted to {labels}: {escape(calibration['method'])} regression on "
        f"{', '.join(f'<code>{escape(signal)}</code>' for signal in calibration['signals'])}; the rule “"
        f"{escape(calibration['rule'])}” said to {accepts}. Out of fold there: AUROC {held_out['auroc']:.2f}, ECE "
        f"{held_out['ece'] * 100:.1f} points. The threshold carries no guarantee."
    )


# --- plots -----------------------------------------------------------------------------------------------------------


class _Axes:
    """Maps data to the picture, and draws the frame."""

    def __init__(self, x_top: float, y_top: float) -> None:
        self.x_top, self.y_top = x_top, y_top

    def x(self, value: float) -> float:
        """Pixels from the left."""
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * value / self.x_top

    def y(self, value: float) -> float:
        """Pixels from the top."""
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / self.y_top

    def frame(self, x_title: str, y_title: str, y_text: Callable[[float], str], x_text: Callable[[float], str]) -> str:
        """Grid lines with their numbers, and what they count."""
        parts = []
        for i in range(5):
            y_value, x_value = self.y_top * i / 4, self.x_top * i / 4
            y, x = self.y(y_value), self.x(x_value)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{y_text(y_value)}</text>')
            below = _HEIGHT - _BOTTOM + 16
            parts.append(f'<text x="{x:.1f}" y="{below}" text-anchor="middle">{x_text(x_value)}</text>')
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        parts.append(f'<text class="label" x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{x_title}</text>')
        upright = (_TOP + _HEIGHT - _BOTTOM) / 2
        parts.append(
            f'<text class="label" transform="translate(12 {upright}) rotate(-90)" text-anchor="middle">{y_title}</text>'
        )
        return "".join(parts)

    def line(self, points: Sequence[tuple[float, float]], colour: str, dashes: str = "", width: float = 2) -> str:
        """A line through the points."""
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        dash = f' stroke-dasharray="{dashes}"' if dashes else ""
        return f'<polyline points="{path}" fill="none" stroke="var(--{colour})" stroke-width="{width}"{dash}/>'


def _figure(title: str, description: str, content: str, legend: Sequence[tuple[str, str]], caption: str) -> str:
    keys = " ".join(
        f'<span style="white-space:nowrap;margin-right:12px"><span style="color:var(--{colour})">{mark}</span></span>'
        for colour, mark in legend
    )
    return (
        f'<figure><h3>{title}</h3><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(description)}">'
        f"{content}</svg><figcaption>{keys}<br>{caption}</figcaption></figure>"
    )


def _curve_figure(workload: Figures, cascade: Figures) -> str:
    axes = _Axes(1.0, 1.0)
    curve = [(point["deferred"], point["quality"]) for point in workload["curve"]]
    oracle = [(point["deferred"], point["quality"]) for point in workload["oracle_curve"]]
    x, y = axes.x(1 - cascade["share_near"]), axes.y(cascade["accuracy"])
    anchor = "end" if x > _WIDTH / 2 else "start"
    content = (
        axes.frame("share of questions sent far", "right answers", _whole_percent, _whole_percent)
        + axes.line(oracle, "soft", "2 4")
        + axes.line([curve[0], curve[-1]], "soft", "7 5", 1.5)
        + axes.line(curve, "near", width=2.5)
        + f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5" fill="var(--near)" stroke="var(--card)" stroke-width="2"/>'
        + f'<text class="tag" x="{x + (-10 if anchor == "end" else 10):.1f}" y="{max(y - 14, _TOP + 10):.1f}" '
        f'text-anchor="{anchor}">the policy, here</text>'
    )
    area = workload["area_under_curve"]
    return _figure(
        "Quality against what is sent far",
        "Share of right answers against the share of questions sent to the far model, for the score, chance and oracle",
        content,
        [("near", "━ by the score"), ("soft", "╌ by chance"), ("soft", "┄ oracle")],
        "Least sure first. Left: all near; right: all far. Mean height "
        f"{area['cascade']:.3f}; chance {area['random']:.3f}; oracle {area['oracle']:.3f}.",
    )


def _reliability_figure(workload: Figures) -> str:
    axes = _Axes(1.0, 1.0)
    content = axes.frame("score: claimed accuracy", "observed accuracy", _whole_percent, _whole_percent)
    content += axes.line([(0, 0), (1, 1)], "soft", "7 5", 1.5)
    for name, colour in (("raw_score", "raw"), ("score", "near")):
        for row in workload[name].get("reliability", []):
            x, y = axes.x(row["mean_score"]), axes.y(row["accuracy"])
            low, high = axes.y(row["interval"]["low"]), axes.y(row["interval"]["high"])
            radius = 3 + 7 * (row["n"] / workload["n"]) ** 0.5
            content += (
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="var(--{colour})" '
                f'stroke-width="1.5"/><circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="var(--{colour})" '
                'fill-opacity=".8"/>'
            )
    return _figure(
        "Is the score true?",
        "Observed accuracy against claimed accuracy, for the fitted score and the uncalibrated one",
        content,
        [("near", "● fitted score"), ("raw", "● uncalibrated score"), ("soft", "╌ perfectly true")],
        "A dot on the line keeps its word; below it, the score promises too much. Larger dots hold more answers; bars "
        "are 95 % intervals.",
    )


def _histogram_figure(workload: Figures) -> str:
    answers = [answer for answer in workload["answers"] if answer["score"] is not None]
    x_top = _nice_top(max((answer["score"] for answer in answers), default=1.0))
    bins = 20
    counts = [[0, 0] for _ in range(bins)]
    for answer in answers:
        counts[min(int(answer["score"] / x_top * bins), bins - 1)][answer["near_correct"] >= 0.5] += 1
    y_top = 4 * ceil(max(max(map(sum, counts)), 4) / 4)
    axes = _Axes(x_top, y_top)
    content = axes.frame("score", "near answers", lambda count: f"{count:.0f}", lambda score: f"{score:.3g}")
    for i, (wrong, right) in enumerate(counts):
        x, width = axes.x(x_top * i / bins) + 1, axes.x(x_top / bins) - axes.x(0) - 2
        for base, count, colour in ((0, right, "near"), (right, wrong, "wrong")):
            if count:
                top, bottom = axes.y(base + count), axes.y(base)
                content += (
                    f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{bottom - top:.1f}" '
                    f'fill="var(--{colour})"/>'
                )
    threshold = workload["threshold"]
    caption = "The policy accepts nothing: no threshold was worth it on the labels."
    if threshold is not None:
        caption = f"The policy accepts from {threshold:.3f} on."
        if threshold <= x_top:
            x = axes.x(threshold)
            content += (
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" stroke="var(--far)" '
                'stroke-width="2" stroke-dasharray="5 4"/>'
            )
            caption += " That is the dashed line."
    return _figure(
        "Scores of right and wrong answers",
        "How many near answers have which score, right and wrong ones",
        content,
        [("near", "■ right"), ("wrong", "■ wrong")],
        caption,
    )


# --- the rest of the page --------------------------------------------------------------------------------------------


def _reading(machine: Figures) -> str:
    is_busy = machine["load_before"] > machine["cores"] / 2
    busy = " Other programs kept the machine busy meanwhile, so it is slower here than by itself." if is_busy else ""
    return f"""<section><h2>How to read this</h2>
<dl>
<dt>score</dt><dd>The probability that the near answer is right, as nearfar claims it from how sure the model was of its
words. It is fitted to labelled answers; the uncalibrated one is the mean probability of the answer's tokens.</dd>
<dt>threshold</dt><dd>The score below which the far model is asked.</dd>
<dt>cost</dt><dd>The far model's list price when it was served, at token counts estimated from the text (the exam
questions' answers: recorded counts). The near model is counted as free: electricity and hardware are not in it.</dd>
<dt>time</dt><dd>Of the near answers only, two at a time. How long the far model took was not recorded.{busy}</dd>
<dt>oracle</dt><dd>The best that any score could do: it knows beforehand where the far answer is better.</dd>
<dt>interval</dt><dd>Where the true figure lies with 95 % confidence, given how few questions were asked: Wilson's for
shares, bootstrap for AUROC.</dd>
</dl></section>"""


def _origin(results: Figures) -> str:
    machine, versions, near = results["machine"], results["versions"], results["near"]
    rows = {
        "command": f"<code>{escape(results['command'])}</code>",
        "made": f"{escape(results['created_at'])}, commit <code>{escape(results['commit'])}</code>, "
        f"{results['wall_s'] / 60:.0f} minutes in all",
        "machine": f"{escape(machine['cpu'])}, {machine['cores']} cores, {escape(machine['system'])}; load average "
        f"{machine['load_before']:.1f} before the start",
        "versions": escape(", ".join(f"{name} {number}" for name, number in versions.items())),
        "near model": f"{escape(near['file'])}, SHA-256 <code>{near['sha256'][:16]}…</code>",
    }
    for workload in results["workloads"].values():
        price = workload["far"]
        rows[workload["title"]] = (
            f"{escape(workload['source'])}. Price: ${price['prompt_usd_per_mtok']:g} and "
            f"${price['completion_usd_per_mtok']:g} per million tokens in and out "
            f'(<a href="{escape(price["price_source"])}">source</a>). '
            f"{workload['decisions_logged']:,} decisions in the log."
        )
    cells = "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in rows.items())
    return f"<section><h2>Where it comes from</h2><dl>{cells}</dl></section>"


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _whole_percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def _range(interval: Figures) -> str:
    return f"{interval['low'] * 100:.1f} to {interval['high'] * 100:.1f}"


def _usd(value: float | None) -> str:
    return "unknown" if value is None else f"${value:,.2f}"


def _nice_top(value: float) -> float:
    """The end of an axis that shows `value`: 1, 2, 4 or 8 times a power of ten, at most 1."""
    power = 10 ** (ceil(log10(max(value, 1e-3))) - 1)
    return min(1.0, next(step * power for step in (1, 2, 4, 8, 10) if step * power >= value))
