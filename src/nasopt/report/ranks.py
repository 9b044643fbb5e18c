"""The critical-difference diagram (Demšar, JMLR 7, 2006, figure 1) as SVG."""

from __future__ import annotations

from html import escape

from nasopt.analysis.comparison import Ranking

LEFT, WIDTH, TOP, STEP, BAR = 170, 400, 58, 24, 8
"""Pixels: beside the axis, of the axis, above it, between names, between bars."""


def svg(ranking: Ranking) -> str:
    """Mean ranks on an axis, the best on the left. Without a control the critical difference stands above, and a thick bar joins
    strategies that Nemenyi's test does not tell apart."""
    bars = () if ranking.control else ranking.groups
    first = TOP + BAR * len(bars) + 26
    half = (len(ranking.ranks) + 1) // 2
    names = [_name(ranking, k, first + STEP * (k if k < half else len(ranking.ranks) - 1 - k), k < half)
             for k in range(len(ranking.ranks))]
    height = first + STEP * half
    return (f'<svg class="ranks" viewBox="0 0 {2 * LEFT + WIDTH} {height}" role="img">'
            f"<title>{escape(description(ranking))}</title>"
            f"{_axis(ranking)}{'' if ranking.control else _difference(ranking)}"
            f"{''.join(_bar(ranking, g, TOP + 12 + BAR * k) for k, g in enumerate(bars))}{''.join(names)}</svg>")


def description(ranking: Ranking) -> str:
    """The diagram in words, for those who cannot see it."""
    ranks = ", ".join(f"{s} {r:.2f}" for s, r in zip(ranking.strategies, ranking.ranks, strict=True))
    joined = "; ".join(" and ".join(ranking.strategies[k] for k in g) for g in ranking.groups)
    apart = "" if ranking.control else f". Not told apart: {joined or 'none'}; critical difference {ranking.difference:.2f}"
    return f"Mean ranks: {ranks}{apart}"


def position(ranking: Ranking, rank: float) -> float:
    """Where a mean rank stands on the axis from 1 to the number of strategies, in pixels."""
    return LEFT + WIDTH * (rank - 1) / (len(ranking.ranks) - 1)


def _axis(ranking: Ranking) -> str:
    ticks = [(t, f"{position(ranking, t):g}") for t in range(1, len(ranking.ranks) + 1)]
    marks = "".join(f'<path d="M{x} {TOP - 6}V{TOP}"/><text class="tick" x="{x}" y="{TOP - 10}">{t}</text>' for t, x in ticks)
    return f'<path d="M{LEFT} {TOP}H{LEFT + WIDTH}"/>{marks}'


def _difference(ranking: Ranking) -> str:
    end = position(ranking, 1 + ranking.difference)
    return (f'<path d="M{LEFT} 12V20M{LEFT} 16H{end:g}M{end:g} 12V20"/><text x="{end + 8:g}" y="20">critical difference '
            f"{ranking.difference:.2f}</text>")


def _bar(ranking: Ranking, group: tuple[int, ...], y: int) -> str:
    ends = [position(ranking, ranking.ranks[k]) for k in (group[0], group[-1])]
    return f'<path class="same" d="M{ends[0] - 4:g} {y}H{ends[1] + 4:g}"/>'


def _name(ranking: Ranking, k: int, y: int, left: bool) -> str:
    x, edge = position(ranking, ranking.ranks[k]), LEFT - 20 if left else LEFT + WIDTH + 20
    control = " (control)" if ranking.strategies[k] == ranking.control else ""
    side, at = ("left", edge - 6) if left else ("right", edge + 6)
    return (f'<path d="M{x:g} {TOP}V{y}H{edge}"/><text class="{side}" x="{at}" y="{y + 4}">'
            f"{escape(ranking.strategies[k])}{control} {ranking.ranks[k]:.2f}</text>")
