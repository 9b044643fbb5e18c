"""Renders ``docs/results.md`` from every ``benchmarks/results/*.json``: ``python benchmarks/results.py``.

A record is what `common.write` wrote:

    {"title": "NSGA-II against pymoo",                       a heading
     "text": "What was compared, and how.",                  optional, Markdown
     "tables": [{"caption": "Time of 10,000 evaluations",    a line above the table
                 "columns": ["library", "seconds"],
                 "rows": [["nasopt", 0.2], ["pymoo", 1.5]]}],  numbers, strings, or null for what was not measured
     "name", "command", "seeds", "date", "load", "machine", "versions": provenance, added by `common.write`}

Numbers are printed with four significant digits. `PARTS` says where a record stands. ``--check`` writes nothing and fails if the
page is out of date.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results.md"

PARTS: Mapping[str, Sequence[str]] = {
    "From data to trained networks": ["cifar10-*", "fashionmnist-*", "pneumoniamnist-*", "images-*"],
    "What makes a search fast": ["trainer_speed", "brief", "warm_weights", "differentiable_speed", "extraction",
                                 "strategies_overhead", "loop", "evolution_speed"],
    "Strategies on problems with known answers": ["strategies_*", "fidelity", "progressive", "evolution_*"],
    "Gradients": ["supernet201", "mini", "arrows", "preference"],
    "Predictions and statistics": ["proxies", "statistical_checks"],
    "What survives": ["kill"]}
"""The headings of the page and the records below them, each where the first pattern fits its name."""


def cell(value: float | str | bool | None) -> str:
    """One entry of a table."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value.replace("|", "\\|")


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A Markdown table; columns of numbers are aligned to the right."""
    numeric = [all(not isinstance(row[k], str) for row in rows) for k in range(len(columns))]
    lines = ["| " + " | ".join(columns) + " |", "|" + "|".join("---:" if n else "---" for n in numeric) + "|"]
    return lines + ["| " + " | ".join(cell(v) for v in row) + " |" for row in rows]


def seeds(numbers: Sequence[int]) -> str:
    """Seeds in short: ``0–19`` for a range."""
    whole = len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]}–{numbers[-1]}" if whole else ", ".join(map(str, numbers)) or "none"


def provenance(record: dict[str, Any]) -> str:
    """One line on where the numbers come from."""
    box = record["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    memory = f", {box['memory_gb']:g} GB" if box["memory_gb"] else ""
    load = "" if record["load"] is None else f", load {record['load']:g}"
    return (
        f"<sub>`{record['command']}`, {record['date']}, seeds {seeds(record['seeds'])}; "
        f"{box['cpu']}, {box['cores']} cores"
        f"{memory}{load}; {packages}.</sub>"
    )


def section(record: dict[str, Any]) -> list[str]:
    """One record as Markdown lines."""
    lines = [f"### {record['title']}", ""]
    if record.get("text"):
        lines += [record["text"], ""]
    for t in record["tables"]:
        lines += [f"**{t['caption']}**", "", *table(t["columns"], t["rows"]), ""]
    return [*lines, provenance(record), ""]


def ordered(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The records below their headings.

    Raises:
        ValueError: a record is in no part.
    """
    left = {r["name"]: r for r in sorted(records, key=lambda r: r["name"])}
    parts = {heading: [left.pop(name) for pattern in patterns for name in [*left] if fnmatch(name, pattern)]
             for heading, patterns in PARTS.items()}
    if left:
        raise ValueError(f"{', '.join(left)}: in no part of the page, name it in PARTS of {Path(__file__).name}.")
    return {heading: found for heading, found in parts.items() if found}


def anchor(title: str) -> str:
    """The address of a heading within a page, as GitHub makes it."""
    return "#" + re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def page(records: Sequence[dict[str, Any]]) -> str:
    """The whole page."""
    lines = [
        "# Results",
        "",
        "Every table is written by a script from a record in `benchmarks/results/`; none by hand. "
        "Run the command below a table to measure it anew, then `python benchmarks/results.py`. Of a record that grew over "
        "several calls (`--keep`) it is the last of them.",
        "",
    ]
    parts = ordered(records)
    for heading, found in parts.items():
        lines += [f"* **{heading}**: " + " · ".join(f"[{r['title']}]({anchor(r['title'])})" for r in found)]
    for heading, found in parts.items():
        lines += ["", f"## {heading}", "", *(line for r in found for line in section(r))]
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: Sequence[str]) -> int:
    """Writes the page, or compares it with ``--check``; returns the exit status."""
    text = page([json.loads(p.read_text()) for p in sorted((ROOT / "benchmarks" / "results").glob("*.json"))])
    if "--check" in arguments:
        same = PAGE.exists() and PAGE.read_text() == text
        print("up to date" if same else f"{PAGE.relative_to(ROOT)} is out of date: run python benchmarks/results.py")
        return 0 if same else 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text)
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
