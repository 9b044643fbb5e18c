"""The page of a comparison of search strategies: one HTML file that opens offline. Plotly reads markup, so texts are escaped."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup

from nasopt.analysis.comparison import (
    ALPHA,
    EVERYWHERE,
    Analysis,
    Attained,
    Comparison,
    Course,
    Equivalence,
    Measure,
    Pair,
    Subject,
    p_equals,
    p_text,
)
from nasopt.analysis.stats import Interval
from nasopt.report import ranks
from nasopt.report.figures import BLUE, GREEN, GREY, ORANGE, Menu, Option, Panel, layout
from nasopt.report.html import page, write_page

COLOURS = (BLUE, ORANGE, GREEN, "#a05fc4", "#c9493f", "#5f8f3f", "#3fa3b5", "#b5733f", "#7a7fd1", "#d45c9f", "#8c8a2f", "#4d4d4d")


def render(comparison: Comparison) -> str:
    """The comparison as one HTML page that needs no other file and makes no request."""
    attained = [panel for k, s in enumerate(comparison.subjects) if (panel := attainment(comparison, s, f"attained-{k}"))]
    first, *others = comparison.analyses
    return page(
        "comparison.html.j2", [courses(comparison), *attained], title=f"Search strategies: {', '.join(comparison.strategies)}",
        findings=first.findings(), further=[sentence for a in others for sentence in a.findings()],
        analyses=[_analysis(a) for a in comparison.analyses], subjects=comparison.subjects, attained=[p.name for p in attained],
        equivalences=[_equivalence(e) for e in comparison.equivalences], checklist=comparison.checklist, origin=comparison.origin,
        level=f"{100 * ALPHA:g} %")


def write(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Writes the page, all of it or nothing.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    write_page(render(comparison), path)


# -------------------------------------------------------------------------------------------------------------- figures
def courses(comparison: Comparison) -> Panel:
    """Performance over queries of every strategy, with its band, on a problem that the reader chooses."""
    subject = comparison.subjects[0]
    traces = [t for name in comparison.strategies for t in _course(comparison, name, subject.courses[name])]
    best = go.Scatter(name="best possible", x=[1, subject.courses[comparison.strategies[0]].queries[-1]], y=[subject.bound] * 2,
                      mode="lines", line={"color": GREY, "dash": "dot", "width": 1.5}, hoverinfo="skip")
    figure = go.Figure([*traces, best], layout("queries", title(subject.performance)))
    problems = [Option(s.name, _course_data(comparison, s), {"yaxis.title.text": escape(title(s.performance)),
                                                             "xaxis.autorange": True, "yaxis.autorange": True})
                for s in comparison.subjects]
    scales = Menu("queries", [Option("linear", {}, {"xaxis.type": "linear", "xaxis.autorange": True}),
                              Option("logarithmic", {}, {"xaxis.type": "log", "xaxis.autorange": True})])
    menus = [Menu("problem", problems), scales] if len(problems) > 1 else [scales]
    return Panel("courses", "Performance over queries", figure, menus)


def title(measure: Measure) -> str:
    """The measure's name with its unit."""
    return f"{measure.label} ({measure.unit})" if measure.unit else measure.label


def colour(comparison: Comparison, strategy: str) -> str:
    """The colour of a strategy in every figure."""
    return COLOURS[comparison.strategies.index(strategy) % len(COLOURS)]


def _course(comparison: Comparison, name: str, course: Course) -> list[go.Scatter]:
    """The band and the line."""
    shade = colour(comparison, name)
    x, y = _band(course)
    return [go.Scatter(name=f"{escape(name)}, 95 %", x=x, y=y, mode="lines", line={"width": 0}, fill="toself", fillcolor=shade,
                       opacity=0.2, hoverinfo="skip", legendgroup=name, showlegend=False),
            go.Scatter(name=escape(name), x=course.queries, y=course.value, mode="lines", line={"color": shade, "width": 2.5},
                       legendgroup=name)]


def _band(course: Course) -> tuple[list[float], list[float]]:
    """The outline of the band."""
    return [*course.queries, *reversed(course.queries)], [*course.high, *reversed(course.low)]


def _course_data(comparison: Comparison, subject: Subject) -> dict[str, Any]:
    """What the figure's traces become on another problem."""
    own = [subject.courses[name] for name in comparison.strategies]
    pairs = [p for c in own for p in (_band(c), (list(c.queries), list(c.value)))]
    pairs.append(([1, own[0].queries[-1]], [subject.bound or 0.0] * 2))
    return {"x": [x for x, _ in pairs], "y": [y for _, y in pairs]}


def attainment(comparison: Comparison, subject: Subject, name: str) -> Panel | None:
    """The surfaces that a share of the runs attains, beside the true front; None unless there are two objectives."""
    found = subject.attained
    if found is None:
        return None
    shares = list(found.surfaces[comparison.strategies[0]])
    shown = shares[len(shares) // 2]
    traces = [go.Scatter(name=escape(s), mode="lines", line={"shape": "hv", "color": colour(comparison, s), "width": 2},
                         **_surface(found, s, shown)) for s in comparison.strategies]
    front = go.Scatter(name="true front", mode="markers", marker={"color": GREY, "size": 5}, x=[p[0] for p in found.front],
                       y=[p[1] for p in found.front])
    options = [Option(share, {axis: [*(_surface(found, s, share)[axis] for s in comparison.strategies),
                                     [p[k] for p in found.front]] for k, axis in enumerate("xy")}, {}) for share in shares]
    figure = go.Figure([*traces, front], layout(*found.objectives))
    return Panel(name, f"Empirical attainment on {subject.name}", figure, [Menu("attained by", options, len(shares) // 2)])


def _surface(found: Attained, strategy: str, share: str) -> dict[str, list[float]]:
    points = found.surfaces[strategy][share]
    return {"x": [p[0] for p in points], "y": [p[1] for p in points]}


# --------------------------------------------------------------------------------------------------------------- tables
def _analysis(analysis: Analysis) -> dict[str, Any]:
    """One measure as texts."""
    ranking, strategies = analysis.ranking, list(next(iter(analysis.typical.values())))
    return {
        "title": title(analysis.measure), "key": analysis.measure.key, "test": analysis.test, "refusal": analysis.refusal,
        "better": "lower" if analysis.measure.minimise else "higher",
        "strategies": strategies,
        "typical": [(problem, [ranged(row[s]) for s in strategies]) for problem, row in analysis.typical.items()],
        "pairs": [_pair(analysis, p) for p in analysis.pairs],
        "ranks": Markup(ranks.svg(ranking)) if ranking else "",
        "friedman": f"Iman and Davenport's F = {ranking.f:.3f}, {p_equals(ranking.f_p)}; Friedman's chi-squared = "
                    f"{ranking.chi2:.3f}." if ranking else "",
        "after": [(a, b, p_text(p)) for a, b, p in ranking.p] if ranking else [],
        "iqm": [(s, ranged(i)) for s, i in analysis.iqm.items()],
        "improvement": [(a, b, ranged(i)) for a, b, i in analysis.improvement]}


def ranged(interval: Interval) -> str:
    """``0.21 [0.08, 0.35]``."""
    return f"{interval.value:.4g} [{interval.low:.4g}, {interval.high:.4g}]"


def _pair(analysis: Analysis, pair: Pair) -> Sequence[str]:
    span = f"{pair.shift:.3g} [{pair.low:.3g}, {pair.high:.3g}]"
    over = " (normalised)" if pair.problem == EVERYWHERE else ""
    return (pair.problem, pair.a, pair.b, str(pair.n), span + over, f"{pair.better:.2f}", p_text(pair.p), p_text(pair.adjusted),
            analysis.verdict(pair))


def _equivalence(e: Equivalence) -> Sequence[str]:
    return (e.measure.label, e.problem, e.a, e.b, f"{e.rope:g}", f"{e.better:.3f}", f"{e.equivalent:.3f}", f"{e.worse:.3f}")
