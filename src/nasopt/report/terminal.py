"""A comparison of search strategies for the terminal: the same words and numbers as on its page."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from nasopt.analysis.comparison import Analysis, Comparison, p_text


def tables(comparison: Comparison) -> Group:
    """What was found, the tests of every measure, and what remains unknown."""
    parts: list[Table | Text] = []
    for analysis in comparison.analyses:
        parts += [*_analysis(analysis), *(Text(sentence) for sentence in analysis.findings()), Text()]
    if comparison.equivalences:
        parts += [_equivalences(comparison), Text()]
    unknown = [question for question, answer in comparison.checklist if answer.startswith("not known")]
    parts.append(Text(f"Of the checklist of Lindauer and Hutter (2020) the records do not tell: {'; '.join(unknown).lower()}."))
    return Group(*parts)


def _analysis(analysis: Analysis) -> list[Table | Text]:
    """The test of one measure: ranks where problems are many, and every pair."""
    title = f"{analysis.measure.label}{f' ({analysis.measure.unit})' if analysis.measure.unit else ''}"
    parts: list[Table | Text] = [Text(analysis.test)]
    if analysis.ranking:
        ranks = Table("strategy", "mean rank", title=f"{title}: ranks over {analysis.ranking.problems} problems",
                      title_justify="left")
        for name, rank in zip(analysis.ranking.strategies, analysis.ranking.ranks, strict=True):
            ranks.add_row(name, f"{rank:.2f}")
        parts.append(ranks)
    if analysis.pairs:
        pairs = Table("problem", "first", "second", "pairs", "shift [95 %]", "A12", "p after Holm", "verdict", title=title,
                      title_justify="left")
        for p in analysis.pairs:
            pairs.add_row(p.problem, p.a, p.b, str(p.n), f"{p.shift:.3g} [{p.low:.3g}, {p.high:.3g}]", f"{p.better:.2f}",
                          p_text(p.adjusted), analysis.verdict(p))
        parts.append(pairs)
    return parts


def _equivalences(comparison: Comparison) -> Table:
    first = comparison.equivalences[0]
    table = Table("measure", "problem", "first", "second", "first better", "equivalent", "second better",
                  title=f"Bayesian signed-rank test, region of practical equivalence ±{first.rope:g}", title_justify="left")
    for e in comparison.equivalences:
        table.add_row(e.measure.label, e.problem, e.a, e.b, f"{e.better:.3f}", f"{e.equivalent:.3f}", f"{e.worse:.3f}")
    return table
