"""The page: figures, drawings, tables and sentences put together by one template, all text escaped."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from nasopt.files import write_whole
from nasopt.report import claims, drawing, figures, record
from nasopt.report.record import Network, Results, quantity

OPEN_DRAWINGS = 8
"""So many architectures are shown at once; the others are folded away."""


def render(results: Results) -> str:
    """The report as one HTML page that needs no other file and makes no request.

    Args:
        results: the job's record (results.json). Every part may be missing: then nothing is said about it.
    """
    drawn = (figures.front, figures.hypervolume, figures.predicted, figures.learning, figures.trust, figures.alphas,
             figures.watched)
    panels = [p for draw in drawn if (p := draw(results)) is not None]
    return page(
        "report.html.j2", panels,
        title=str(results.get("title") or "Architecture search"), search=_search(results), claims=_claims(results),
        relaxed=_relaxed(results), table=_table(record.networks(results)), drawings=_drawings(results),
        obtained=_obtained(results), interval_note=str(results.get("interval_note") or ""), open_drawings=OPEN_DRAWINGS)


def page(template: str, panels: Sequence[figures.Panel], **parts: Any) -> str:
    """A template of this folder with its figures and whatever else it names."""
    environment = Environment(loader=PackageLoader("nasopt", "report"), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(
        **parts, panels={p.name: p for p in panels}, figures=[_figure(p) for p in panels],
        plotly=Markup(get_plotlyjs()) if panels else None)


def write(results: Results, path: str | os.PathLike[str]) -> None:
    """Writes the page to ``path``, all of it or nothing: a reader never sees half a file.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    write_page(render(results), path)


def write_page(text: str, path: str | os.PathLike[str]) -> None:
    """Writes a text to ``path``, all of it or nothing.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    write_whole(path, text.encode("utf-8", "backslashreplace"))  # a folder's name in it may be no UTF-8


# -------------------------------------------------------------------------------------------------------------- figures
def _figure(panel: figures.Panel) -> dict[str, Any]:
    """What the page's script needs of a figure, as plain JSON values."""
    figure = json.loads(panel.figure.to_json())
    menus = [{"chosen": m.chosen, "options": [{"traces": o.traces, "layout": o.layout} for o in m.options]}
             for m in panel.menus]
    return {"name": panel.name, "data": figure["data"], "layout": figure["layout"], "menus": menus}


# --------------------------------------------------------------------------------------------------------------- claims
def _claims(results: Results) -> dict[str, Any]:
    trust = record.part(results, "trust")
    return {"summary": claims.summary(results), "target": claims.target(results), "facts": claims.facts(results),
            "trade_off": claims.trade_off(results), "designed": claims.against_designed(results),
            "hypervolume": claims.final_hypervolume(results), "equal_cost": claims.equal_cost(results),
            "agreements": claims.agreements(results), "trust": claims.trust(results), "fallback": trust.get("fallback") is True,
            "checklist": claims.checklist(results), "caveats": claims.caveats(results)}


def _search(results: Results) -> dict[str, Any]:
    """What the hypervolume rests on, in words, and how many trials each search made."""
    search = record.part(results, "search")
    trials = [t for t in record.items(search, "trials") if isinstance(t, Mapping)]
    reference = [n for v in record.items(search, "reference") if (n := record.number(v)) is not None]
    return {"objectives": [quantity(str(o)).label for o in record.items(search, "objectives")],
            "reference": [f"{v:g}" for v in reference], "stopped": str(search.get("stopped") or ""),
            "scale": str(search.get("scale") or ""), "estimator": str(search.get("estimator") or ""),
            "compared": claims.compared(record.part(search, "curves")),
            "trials": [f"{count} by {name}" for name, count in Counter(str(t.get("by") or "?") for t in trials).items()],
            "errors": _counted([str(t["error"]) for t in trials if t.get("error")])}


def _relaxed(results: Results) -> dict[str, Any]:
    """What is said of a gradient search: its name, sentences, and the lines of its certificate."""
    data = record.part(results, "relaxed")
    return {"strategy": str(data.get("strategy") or ""), "alarm": bool(record.items(data, "alarms") or data.get("broken")),
            **{name: [str(s) for s in record.items(data, name)] for name in ("sentences", "certificate")}}


def _counted(errors: Sequence[str]) -> list[tuple[str, int]]:
    """The distinct errors with how often each happened, most frequent first, at most ten."""
    counts = {e: errors.count(e) for e in dict.fromkeys(errors)}
    return sorted(counts.items(), key=lambda pair: -pair[1])[:10]


# ---------------------------------------------------------------------------------------------------------------- table
@dataclass(frozen=True)
class Value:
    """A cell of the table: its text, its interval, and the number it is sorted by."""

    text: str
    interval: str
    order: float | None


def _table(nets: Sequence[Network]) -> dict[str, Any]:
    """One column for every metric that any network has, without a latency's spread where its quartiles are shown."""
    shown = {key.removesuffix("_ms") + "_iqr_ms" for n in nets for key in n.intervals}
    keys = [k for k in record.keys_of(n.metrics for n in nets) if k not in shown]
    return {"columns": [quantity(k).title for k in keys], "files": any(n.files for n in nets),
            "rows": [{"name": n.name, "group": n.group, "kind": record.GROUPS[n.group],
                      "values": [_value(n, k) for k in keys], "files": [(f, link(p)) for f, p in n.files.items()]}
                     for n in nets]}


def _value(net: Network, key: str) -> Value:
    if key not in net.metrics:
        return Value("–", "", None)
    q, span = quantity(key), net.intervals.get(key)
    return Value(q.plain(net.metrics[key]), "" if span is None else q.span(span), net.metrics[key])


def link(path: str) -> str | None:
    """A link to a file beside the report, or None for anything but a relative path (a scheme, a host, the root)."""
    parts = urlsplit(path.replace("\\", "/"))
    if parts.scheme or parts.netloc or path.startswith(("/", "\\")):
        return None
    return "./" + quote(path)


# ------------------------------------------------------------------------------------------------------------- drawings
def _drawings(results: Results) -> list[dict[str, Any]]:
    """The architectures that are known, those on the front first."""
    return [{"name": n.name, "kind": record.GROUPS[n.group], "facts": _line(n),
             "cells": [(c.names, Markup(drawing.svg(c))) for c in drawing.cells(n.architecture)],
             "blocks": drawing.blocks(n.architecture)}
            for n in record.networks(results) if n.architecture]


def _line(net: Network) -> str:
    keys = [k for k in ("test_error", "error") if k in net.metrics][:1]
    keys += [k for k in ("latency_ms", "memory_mb", "params") if k in net.metrics]
    return ", ".join(f"{quantity(k).label} {net.ranged(k)}" for k in keys)


# ------------------------------------------------------------------------------------------------------ how it was done
def _obtained(results: Results) -> dict[str, Any]:
    data, origin = record.part(results, "data"), record.part(results, "provenance")
    return {"rows": [row for row in (*_data_rows(data), *_search_rows(results), *_machine_rows(origin)) if row[1]],
            "notes": [str(n) for n in record.items(data, "notes")], "phases": _phases(origin),
            "warnings": [str(w) for w in record.items(origin, "warnings")],
            "versions": [(str(k), str(v)) for k, v in record.part(origin, "versions").items()],
            "command": str(results.get("command") or "")}


def _data_rows(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    classes = [str(c) for c in record.items(data, "classes")]
    sizes = [f"{name} {n:,.0f}" for name, key in (("training", "train"), ("validation", "val"), ("test", "test"))
             if (n := record.number(data.get(key))) is not None]
    tested = "; the test part was used once a network, at the end" if record.number(data.get("test")) else ""
    return [("Data", str(data.get("source") or "")),
            ("Classes", f"{len(classes)}: {', '.join(classes)}" if classes else ""),
            ("Input", " × ".join(str(n) for n in record.items(data, "input_shape"))),
            ("Split", f"{', '.join(sizes)}{tested}" if sizes else "")]


def _search_rows(results: Results) -> list[tuple[str, str]]:
    space = record.part(results, "space")
    size = space.get("size")
    sized = f"{size:,}" if isinstance(size, int) else str(size or "")
    count = f"{sized} architectures" if sized else ""
    names = [str(space.get("name") or ""), count, str(space.get("description") or "")]
    objectives = [f"{quantity(str(record.part(o).get('name', ''))).title}, "
                  f"{'lower' if record.part(o).get('minimise', True) else 'higher'} is better"
                  for o in record.items(results, "objectives")]
    seed, searched = results.get("seed"), [str(n) for n in record.items(record.part(results, "search"), "objectives")]
    differs = searched != [record.part(o).get("name") for o in record.items(results, "objectives")]
    return [("Search space", "; ".join(n for n in names if n)), ("Objectives", "; ".join(objectives)),
            ("Searched for", record.joined([quantity(n).label for n in searched]) if differs else ""),
            ("Constraints", "; ".join(str(c) for c in record.items(results, "constraints"))),
            ("Seed", str(seed) if isinstance(seed, int) else "")]


def _machine_rows(origin: Mapping[str, Any]) -> list[tuple[str, str]]:
    machine = record.part(origin, "machine")
    words = {"cores": "{} cores", "memory_gb": "{} GB memory"}
    listed = [words.get(str(k), "{}" if k == "cpu" else f"{k}: {{}}").replace("{}", str(v)) for k, v in machine.items()]
    threads, bf16 = record.number(origin.get("threads")), origin.get("bf16")
    trained = [str(origin.get("device") or ""), f"{threads:g} threads" if threads else "",
               ("bf16" if bf16 else "fp32") if isinstance(bf16, bool) else ""]
    return [("Machine", ", ".join(listed)), ("Trained on", ", ".join(t for t in trained if t)),
            ("Started", str(origin.get("started") or ""))]


def _phases(origin: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """(phase, duration and peaks of memory, share of the longest phase in percent) and the total last, without a bar."""
    seconds = record.numbers(record.part(origin, "phases"))
    peaks = {name: record.numbers(record.part(origin, "peak_memory_mb", name)) for name in seconds}
    chips = {"cpu": "GB", "cuda": "GB of the GPU"}
    longest = max(seconds.values(), default=0.0) or 1.0
    rows = [(name, ", ".join([record.duration(s), *(f"{peaks[name][chip] / 1e3:.1f} {unit}" for chip, unit in chips.items()
                                                   if chip in peaks[name])]), 100 * s / longest)
            for name, s in seconds.items()]
    total = record.number(origin.get("total_seconds"))
    return rows if total is None else [*rows, ("total", record.duration(total), 0.0)]
