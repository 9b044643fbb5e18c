"""The interactive figures. Texts of the record are escaped here, because Plotly reads markup in its strings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeAlias

import plotly.graph_objects as go

from nasopt.report import record
from nasopt.report.record import Interval, Network, Quantity, Results, quantity

BLUE, ORANGE, GREEN, GREY = "#3b7dd8", "#d9822b", "#2f9e6e", "#8b93a1"
"""Readable on white and on dark grey; Plotly's neutral colours are set in the page from its style sheet."""
RANDOM = "random"
Pair: TypeAlias = tuple[str, float, float]
"""A network's name, a predicted and a measured value."""


@dataclass(frozen=True)
class Option:
    """One entry of a menu: what it changes in the traces and in the layout."""

    label: str
    traces: Mapping[str, Any]
    layout: Mapping[str, Any]


@dataclass(frozen=True)
class Menu:
    """A menu above a figure."""

    label: str
    options: Sequence[Option]
    chosen: int = 0


@dataclass(frozen=True)
class Panel:
    """A figure with its menus."""

    name: str
    description: str
    figure: go.Figure
    menus: Sequence[Menu] = ()


def layout(x: str, y: str, **height: int) -> go.Layout:
    """What every figure shares: axes with these titles, a legend above, no colours of its own."""
    return go.Layout(
        template="none", paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", hovermode="closest",
        height=height.get("height", 460), margin={"l": 64, "r": 16, "t": 16, "b": 56},
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis={"title": {"text": escape(x)}, "automargin": True, "zeroline": False},
        yaxis={"title": {"text": escape(y)}, "automargin": True, "zeroline": False})


# ------------------------------------------------------------------------------------------------------------ the front
@dataclass(frozen=True)
class Series:
    """One kind of points: its name, its look, and of every point the metrics, the intervals and the hover text."""

    name: str
    marker: Mapping[str, Any]
    points: Sequence[tuple[Mapping[str, float], Mapping[str, Interval], str]]
    hidden: bool = False

    def values(self, q: Quantity) -> list[float | None]:
        """The points' coordinates on this quantity's axis, None where not measured."""
        return [metrics[q.key] * q.scale if q.key in metrics else None for metrics, _, _ in self.points]

    def arms(self, q: Quantity, end: int) -> list[float | None]:
        """The lengths of the error bars below (``end`` 0) or above (1) the points, None where there is no interval."""
        return [max(0.0, (metrics[q.key] - spans[q.key][end]) * q.scale * (-1 if end else 1))
                if q.key in metrics and q.key in spans else None for metrics, spans, _ in self.points]

    def trace(self, x: Quantity, y: Quantity) -> go.Scatter:
        """The points as a trace with error bars."""
        barred = any(spans for _, spans, _ in self.points)
        bars = {"type": "data", "symmetric": False, "thickness": 1, "width": 3, "visible": barred}
        return go.Scatter(
            name=self.name, mode="markers", marker=dict(self.marker), x=self.values(x), y=self.values(y),
            error_x={**bars, "array": self.arms(x, 1), "arrayminus": self.arms(x, 0)},
            error_y={**bars, "array": self.arms(y, 1), "arrayminus": self.arms(y, 0)},
            hovertext=[text for _, _, text in self.points], hoverinfo="text",
            visible="legendonly" if self.hidden else True)


def front(results: Results) -> Panel | None:
    """All trained networks on two axes that the reader chooses, with error bars; None without networks."""
    nets = record.networks(results)
    quantities = [quantity(k) for k in record.keys_of(n.metrics for n in nets) if not k.endswith("_iqr_ms")]
    if len(quantities) < 2:
        return None
    keys = [q.key for q in quantities]
    across, up = _first_axes(results, nets, keys)
    kinds = [s for s in (*_trained(nets), _predictions(nets), _trials(results)) if s.points]
    figure = go.Figure([s.trace(quantities[across], quantities[up]) for s in kinds],
                       layout(quantities[across].title, quantities[up].title, height=520))
    menus = [Menu(f"{name} axis", [_axis_option(kinds, q, name[0]) for q in quantities], chosen)
             for name, chosen in (("x", across), ("y", up))]
    return Panel("front", "Trained networks on two chosen metrics", figure, menus)


def _first_axes(results: Results, nets: Sequence[Network], keys: Sequence[str]) -> tuple[int, int]:
    """The places of the axes shown first: the error upwards, another objective across."""
    objectives = [a.key for a in record.axes(results, nets)]
    ranked = [k for k in (*objectives, *keys) if k in keys]
    up = next((k for k in ("test_error", "error") if k in keys), ranked[0])
    across = next(k for k in ranked if k not in (up, "error", "test_error") or (len(keys) == 2 and k != up))
    return keys.index(across), keys.index(up)


def _trained(nets: Sequence[Network]) -> list[Series]:
    looks = {record.FRONT: {"color": BLUE, "size": 11, "symbol": "circle"},
             record.DOMINATED: {"color": GREY, "size": 9, "symbol": "x"},
             record.DESIGNED: {"color": ORANGE, "size": 12, "symbol": "square"}}
    points = {group: [(n.metrics, n.intervals, _hover(n.name, n)) for n in nets if n.group == group] for group in looks}
    return [Series(record.GROUPS[group], look, points[group]) for group, look in looks.items()]


def _hover(name: str, net: Network) -> str:
    lines = [f"{quantity(k).label} {net.ranged(k)}" for k in record.keys_of([net.metrics])]
    return "<br>".join([f"<b>{escape(name)}</b>", *map(escape, lines)])


def _predictions(nets: Sequence[Network]) -> Series:
    look = {"color": BLUE, "size": 10, "symbol": "circle-open", "line": {"width": 1.5}}
    return Series("front, as the search predicted it", look,
                  [(_on_test_axis(n.predicted), {}, _estimate_hover(f"{n.name}, as predicted", n.predicted))
                   for n in nets if n.group == record.FRONT and n.predicted])


def _trials(results: Results) -> Series:
    metrics = [record.numbers(record.part(t, "metrics")) for t in record.items(record.part(results, "search"), "trials")
               if isinstance(t, Mapping) and not t.get("error")]
    return Series("all trials (estimates)", {"color": GREY, "size": 4, "symbol": "circle", "opacity": 0.5},
                  [(_on_test_axis(m), {}, _estimate_hover("trial", m)) for m in metrics if m], hidden=True)


def _on_test_axis(estimates: Mapping[str, float]) -> dict[str, float]:
    """Estimates are of the validation error; on the test error's axis they stand for a prediction of it."""
    return {"test_error": estimates["error"], **estimates} if "error" in estimates else dict(estimates)


def _estimate_hover(name: str, estimates: Mapping[str, float]) -> str:
    lines = [f"{quantity(k).label} {quantity(k).text(estimates[k])}" for k in record.keys_of([estimates])]
    return "<br>".join([f"<b>{escape(name)}</b>", *map(escape, lines)])


def _axis_option(kinds: Sequence[Series], q: Quantity, axis: str) -> Option:
    return Option(q.title, {axis: [s.values(q) for s in kinds],
                            f"error_{axis}.array": [s.arms(q, 1) for s in kinds],
                            f"error_{axis}.arrayminus": [s.arms(q, 0) for s in kinds]},
                  {f"{axis}axis.title.text": escape(q.title), f"{axis}axis.autorange": True})


# ---------------------------------------------------------------------------------------------------------- hypervolume
COSTS = {"seconds": "seconds of search", "evaluations": "evaluations"}


def curve(data: Mapping[str, Any], cost: str) -> tuple[list[float], list[float]]:
    """The finite pairs (cost, hypervolume) of one strategy, as two lists."""
    pairs = [(x, y) for a, b in zip(record.items(data, cost), record.items(data, "hypervolume"), strict=False)
             if (x := record.number(a)) is not None and (y := record.number(b)) is not None]
    return [x for x, _ in pairs], [y for _, y in pairs]


def hypervolume(results: Results) -> Panel | None:
    """Hypervolume against cost for every strategy; None without curves."""
    curves = {str(k): v for k, v in record.part(results, "search", "curves").items() if isinstance(v, Mapping)}
    costs = [c for c in COSTS if any(curve(v, c)[0] for v in curves.values())]
    if not costs:
        return None
    paint = dict(zip([k for k in curves if k != RANDOM], (BLUE, GREEN, "#a05fc4", "#c9493f"), strict=False))
    traces = [go.Scatter(name="random search" if name == RANDOM else escape(name), mode="lines",
                         line={"shape": "hv", "width": 2.5, "color": paint.get(name, GREY),
                               "dash": "dash" if name == RANDOM else "solid"},
                         x=curve(data, costs[0])[0], y=curve(data, costs[0])[1]) for name, data in curves.items()]
    options = [Option(COSTS[c], {"x": [curve(v, c)[0] for v in curves.values()], "y": [curve(v, c)[1] for v in curves.values()]},
                      {"xaxis.title.text": COSTS[c], "xaxis.autorange": True}) for c in costs]
    figure = go.Figure(traces, layout(COSTS[costs[0]], "hypervolume"))
    names = ["random search" if name == RANDOM else name for name in curves]
    return Panel("hypervolume", f"Hypervolume against cost, {' and '.join(names)}", figure, [Menu("cost in", options)])


# ------------------------------------------------------------------------------------------------------ learning curves
PROGRESS = {"epochs": "epochs", "seconds": "seconds of training"}

DASHES = ("solid", "dash", "dot", "dashdot")
"""Kinds of lines, one after the other where there are more than colours."""

PLOTLY = 10
"""Colours that plotly gives to curves before it begins again."""


def learning(results: Results) -> Panel | None:
    """Every final training's learning curve, one metric at a time; None without curves."""
    records = [data for group in record.GROUPS for data in record.items(results, group) if isinstance(data, Mapping)]
    found = {str(data.get("name") or data.get("id")): record.items(data, "curve") for data in records}
    curves = {name: [record.numbers(p) for p in points if isinstance(p, Mapping)] for name, points in found.items() if points}
    keys = [k for k in record.keys_of(p for points in curves.values() for p in points) if k not in PROGRESS]
    if not keys:
        return None

    def values(key: str) -> list[list[float | None]]:
        q = quantity(key)
        return [[p[key] * q.scale if key in p else None for p in points] for points in curves.values()]

    traces = [go.Scatter(name=escape(name), mode="lines+markers", x=x, y=y, line={"dash": DASHES[k // PLOTLY % len(DASHES)]})
              for k, (name, x, y) in enumerate(zip(curves, values("epochs"), values(keys[0]), strict=True))]
    menus = [Menu("metric", [Option(quantity(k).title, {"y": values(k)}, {"yaxis.title.text": escape(quantity(k).title)})
                             for k in keys]),
             Menu("against", [Option(title, {"x": values(k)}, {"xaxis.title.text": title}) for k, title in PROGRESS.items()])]
    figure = go.Figure(traces, layout("epochs", quantity(keys[0]).title))
    return Panel("learning", "Learning curves of the final trainings", figure, menus)


# ------------------------------------------------------------------------------------------------ predictions and trust
ERRORS = {"error": ["test_error"], "expected_error": ["error", "test_error"]}
"""What predictions of an error are compared with, if it is not measured itself."""


def counterpart(key: str, net: Network) -> str | None:
    """The measured metric that a prediction is compared with: its own; for an error also the validation or the test error."""
    return next((k for k in (key, *ERRORS.get(key, ())) if k in net.metrics), None)


def pairs_of(nets: Sequence[Network], key: str) -> list[Pair]:
    """(name, predicted, measured) of every network that has both."""
    return [(n.name, n.predicted[key], n.metrics[other]) for n in nets
            if key in n.predicted and (other := counterpart(key, n)) is not None]


def measured_as(nets: Sequence[Network], key: str) -> Quantity:
    """What the predictions of a metric are compared with."""
    found = (other for n in nets if key in n.predicted and (other := counterpart(key, n)) is not None)
    return quantity(next(found, key))


def predicted(results: Results) -> Panel | None:
    """What the search believed against what was measured, one metric at a time; None without such pairs."""
    nets = record.networks(results)
    found = {key: pairs for key in record.keys_of(n.predicted for n in nets) if (pairs := pairs_of(nets, key))}
    if not found:
        return None
    options = [_pair_option(quantity(key), measured_as(nets, key), pairs) for key, pairs in found.items()]
    key, pairs = next(iter(found.items()))
    q = quantity(key)
    figure = _pair_figure(q, pairs, f"predicted {q.title}", f"measured {measured_as(nets, key).title}")
    return Panel("predicted", "Predicted against measured metrics", figure, [Menu("metric", options)])


def trust(results: Results) -> Panel | None:
    """The supernet's error against the stand-alone error of the same architectures; None without pairs."""
    spans = [s for p in record.items(record.part(results, "trust"), "pairs") if (s := _pair(p)) is not None]
    if not spans:
        return None
    points = [(f"pair {k + 1}", x, y) for k, (x, y) in enumerate(spans)]
    figure = _pair_figure(quantity("error"), points, "error with the supernet's weights (%)",
                          "error when trained alone (%)", diagonal=False)
    return Panel("trust", "Supernet error against stand-alone error", figure)


def _pair(value: object) -> tuple[float, float] | None:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    x, y = record.number(value[0]), record.number(value[1])
    return None if x is None or y is None else (x, y)


def _pair_figure(q: Quantity, pairs: Sequence[Pair], x: str, y: str, diagonal: bool = True) -> go.Figure:
    points = go.Scatter(x=[a * q.scale for _, a, _ in pairs], y=[b * q.scale for _, _, b in pairs], name="networks",
                        mode="markers", marker={"color": BLUE, "size": 10}, hoverinfo="text",
                        hovertext=_pair_texts(q, pairs))
    line = go.Scatter(x=_extent(q, pairs), y=_extent(q, pairs), mode="lines", name="equal", hoverinfo="skip",
                      line={"color": GREY, "dash": "dot", "width": 1.5})
    figure = go.Figure([points, line] if diagonal else [points], layout(x, y, height=400))
    return figure.update_layout(showlegend=diagonal)


def _pair_texts(q: Quantity, pairs: Sequence[Pair]) -> list[str]:
    return [f"<b>{escape(name)}</b><br>{escape(q.text(a))} → {escape(q.text(b))}" for name, a, b in pairs]


def _extent(q: Quantity, pairs: Sequence[Pair]) -> list[float]:
    values = [v * q.scale for _, a, b in pairs for v in (a, b)]
    return [min(values), max(values)]


def _pair_option(q: Quantity, measured: Quantity, pairs: Sequence[Pair]) -> Option:
    return Option(q.label, {"x": [[a * q.scale for _, a, _ in pairs], _extent(q, pairs)],
                            "y": [[b * q.scale for _, _, b in pairs], _extent(q, pairs)],
                            "hovertext": [_pair_texts(q, pairs), []]},
                  {"xaxis.title.text": escape(f"predicted {q.title}"), "xaxis.autorange": True,
                   "yaxis.title.text": escape(f"measured {measured.title}"), "yaxis.autorange": True})


# ------------------------------------------------------------------------------------------------------ gradient search
WATCHED = {"entropy": ("entropy of softmax(α), share of the largest", ("entropy",)),
           "gradient": ("norm of the hypergradient", ("gradient",)),
           "eigenvalues": ("extreme eigenvalues of the Hessian in α", ("high", "low")),
           "bias": ("‖b‖, estimated from two truncation depths", ("bias",)),
           "residual": ("inner residual", ("residual",)),
           "skips": ("share of the rows in which the skip connection leads", ("skips",)),
           "ranks": ("rank correlation with measured accuracy", ("ranks",)),
           "loss": ("mean training loss", ("loss",))}
"""What is drawn over the slices of a gradient search: the axis, and one or two columns of its record."""


def alphas(results: Results) -> Panel | None:
    """softmax(α) after every slice as a heat map, one group of choices at a time; None without one."""
    data = record.part(results, "relaxed")
    pairs = zip(record.items(data, "groups"), record.items(data, "shares"), strict=False)
    maps = [(str(group.get("path", "")), *found) for group, slices in pairs
            if isinstance(group, Mapping) and (found := _heat(group, slices)) is not None]
    if not maps:
        return None
    _, labels, shares = maps[0]
    trace = go.Heatmap(z=shares, y=labels, x=_slices(shares), zmin=0, zmax=1, xgap=1, ygap=1, hoverongaps=False,
                       colorscale=[[0, "rgba(59,125,216,0)"], [1, BLUE]], colorbar={"title": {"text": "share"}},
                       hovertemplate="%{y}, slice %{x}: %{z:.3f}<extra></extra>")
    options = [Option(n, {"z": [z], "y": [y], "x": [_slices(z)]}, {"height": _tall(y), "yaxis.autorange": "reversed"})
               for n, y, z in maps]
    figure = go.Figure([trace], layout("slice", "", height=_tall(labels))).update_layout(yaxis_autorange="reversed")
    return Panel("alphas", "Shares that the mixture gives to its options, slice by slice", figure, [Menu("choice", options)])


def _heat(group: Mapping[str, Any], slices: object) -> tuple[list[str], list[list[float | None]]] | None:
    """The labels and the shares (rows times options, slices) of one group; None where they do not fit together."""
    names = [f"{escape(str(row))}: {escape(str(label))}" if len(record.items(group, "rows")) > 1 else escape(str(label))
             for row in record.items(group, "rows") for label in record.items(group, "labels")]
    parts = slices if isinstance(slices, list) else []
    if not all(isinstance(p, list) and all(isinstance(row, list) for row in p) for p in parts):
        return None
    flat = [[record.number(share) for row in part for share in row] for part in parts]
    if not names or not flat or any(len(column) != len(names) for column in flat):
        return None
    return names, [list(row) for row in zip(*flat, strict=True)]


def _slices(shares: Sequence[Sequence[object]]) -> list[int]:
    return list(range(1, len(shares[0]) + 1))


def _tall(labels: Sequence[str]) -> int:
    """Pixels of a heat map of so many lines."""
    return 140 + 20 * len(labels)


def watched(results: Results) -> Panel | None:
    """What was watched over the slices, one quantity at a time; None without any."""
    slices = [s for s in record.items(record.part(results, "relaxed"), "slices") if isinstance(s, Mapping)]
    courses = {title: [[record.number(s.get(key)) for s in slices] for key in keys] for title, keys in WATCHED.values()}
    courses = {title: lines for title, lines in courses.items() if any(v is not None for line in lines for v in line)}
    if not courses:
        return None
    options = [Option(title, {"y": [*lines, []][:2], "x": [list(range(1, len(slices) + 1))] * 2,
                              "visible": [True, len(lines) > 1]},
                      {"yaxis.title.text": title, "yaxis.autorange": True}) for title, lines in courses.items()]
    traces = [go.Scatter(x=x, y=y, name=name, mode="lines+markers", connectgaps=True, line={"color": color}, visible=shown)
              for x, y, name, color, shown in zip(options[0].traces["x"], options[0].traces["y"], ("largest", "least"),
                                                  (BLUE, ORANGE), options[0].traces["visible"], strict=True)]
    figure = go.Figure(traces, layout("slice", next(iter(courses)), height=360)).update_layout(showlegend=False)
    return Panel("watched", "What was watched of the gradient search", figure, [Menu("quantity", options)])
