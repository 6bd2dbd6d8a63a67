"""The page of `nearfar evaluate --html`: one file, plots as SVG, no script and nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nearfar.router.routing_report import Figures, RoutingReport

_WIDTH, _HEIGHT, _MARGIN = 640, 380, 56
_COLOURS = {"random": "#9aa0a6", "length": "#b58900", "tfidf-ridge": "#2a7f62", "oracle": "#c9c9c9"}
_OURS = "#1a56db"

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#1c1e21}
div{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{padding:.35rem .6rem;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left}tr.ours{font-weight:600}p.big{font-size:1.25rem}
svg{width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:#444}footer{color:#666;font-size:.9rem}
"""


def render(report: RoutingReport) -> str:
    """The whole page as HTML."""
    ours = report.figures
    curves = [(each.name, _COLOURS.get(each.name, "#888"), each) for each in report.baselines]
    plot = _plot(report, [*curves, (ours.name, _OURS, ours)])
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(ours.name)} on {escape(report.table)}</title><style>{_STYLE}</style></head><body>
<h1>{escape(ours.name)} on {escape(report.table)}</h1>
<p class="big">{_headline(report)}</p>
<p>{report.n:,} recorded questions. <b>{escape(report.weak)}</b> alone reaches {report.weak_quality:.1%},
<b>{escape(report.strong)}</b> alone {report.strong_quality:.1%}. Scores: {escape(report.how)}.</p>
{plot}
<p>Left: every question goes to the cheaper model; right: every question goes to the better one. The higher a line
runs, the more quality the same number of expensive calls buys. A random choice runs straight; no choice can beat the
oracle, which knows the outcomes.</p>
<h2>Figures</h2>
{_table(report)}
<p>APGR is the share of the gap between the two models that is recovered, averaged over all shares of strong calls.
CPT50 and CPT80 are the percentages of strong calls that recover 50 % and 80 % of the gap; lower is better. Ranges are
95 % bootstrap intervals.</p>
<h2>Cost at matched quality</h2>
{_matched(report)}
<p>Cost: {escape(report.costs)}.</p>
{f"<h2>Notes</h2><ul>{notes}</ul>" if notes else ""}
<footer>Made by nearfar evaluate.</footer></body></html>
"""


def _headline(report: RoutingReport) -> str:
    differences = [each for each in report.differences if each.to == "tfidf-ridge"] or list(report.differences)
    if not differences or report.figures.metrics.apgr != report.figures.metrics.apgr:
        return "The two models are equally good here, so there is no gap to recover."
    difference = differences[-1]
    if difference.interval.low > 0:
        verdict = f"better than {escape(difference.to)}, beyond what chance explains"
    elif difference.interval.high < 0:
        verdict = f"worse than {escape(difference.to)}"
    else:
        verdict = f"not told apart from {escape(difference.to)} on this many questions"
    half = report.figures.metrics.pgr50
    return f"Sending half of the questions to the better model keeps {half:.0%} of its advantage: {verdict}."


def _plot(report: RoutingReport, curves: Sequence[tuple[str, str, Figures]]) -> str:
    qualities = [point.quality for _, _, figures in curves for point in figures.curve]
    low, high = min(qualities), max(qualities)
    span = (high - low) or 1.0

    def x(share: float) -> float:
        return _MARGIN + share * (_WIDTH - _MARGIN - 110)

    def y(quality: float) -> float:
        return _HEIGHT - _MARGIN - (quality - low) / span * (_HEIGHT - _MARGIN - 20)

    marks = [
        f'<line x1="{x(0):.1f}" y1="{y(q):.1f}" x2="{x(1):.1f}" y2="{y(q):.1f}" stroke="#eee"></line>'
        f'<text x="{x(0) - 6:.1f}" y="{y(q) + 4:.1f}" text-anchor="end">{q:.1%}</text>'
        for q in (low + span * i / 4 for i in range(5))
    ]
    marks += [
        f'<text x="{x(share):.1f}" y="{_HEIGHT - _MARGIN + 18}" text-anchor="middle">{share:.0%}</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    marks.append(
        f'<text x="{x(0.5):.1f}" y="{_HEIGHT - 14}" text-anchor="middle">share of questions sent to '
        f"{escape(report.strong)}</text>"
    )
    for i, (name, colour, figures) in enumerate(curves):
        points = " ".join(f"{x(point.deferred):.1f},{y(point.quality):.1f}" for point in figures.curve)
        width = 3 if figures is report.figures else 1.5
        at = 24 + 18 * i
        marks.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}"></polyline>')
        marks.append(
            f'<line x1="{x(1) + 8:.1f}" y1="{at}" x2="{x(1) + 24:.1f}" y2="{at}" stroke="{colour}" '
            f'stroke-width="{width}"></line><text x="{x(1) + 28:.1f}" y="{at + 4}">{escape(name)}</text>'
        )
    label = f"Quality by share of strong calls: {report.figures.name} and its baselines"
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(marks)}</svg>'


def _table(report: RoutingReport) -> str:
    rows = []
    for figures in (report.figures, *report.baselines):
        metrics, interval = figures.metrics, figures.intervals["apgr"]
        cells = [
            escape(figures.name),
            _number(metrics.apgr, ".3f"),
            f"{_number(interval.low, '.3f')} – {_number(interval.high, '.3f')}",
            _number(metrics.cpt50, ".1f"),
            _number(metrics.cpt80, ".1f"),
            _number(metrics.audc, ".4f"),
            _number(figures.aiq, ".4f"),
        ]
        kind = ' class="ours"' if figures is report.figures else ""
        rows.append(f"<tr{kind}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = "".join(f"<th>{head}</th>" for head in ("", "APGR", "95 %", "CPT50", "CPT80", "AUDC", "AIQ"))
    return f"<div><table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _matched(report: RoutingReport) -> str:
    rows = "".join(
        f"<tr><td>{each.share:.0%} of the better model's quality</td><td>{_number(each.cost, '.4g')}</td>"
        f"<td>{_number(each.saved, '.0%')}</td></tr>"
        for each in report.figures.matched
    )
    heads = "<th></th><th>mean cost per question</th><th>spared against always asking the better model</th>"
    return f"<div><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"


def _number(value: float, form: str) -> str:
    return "–" if value != value else format(value, form)
