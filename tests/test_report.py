"""The report: what it says, what it escapes, that it asks for nothing from outside, that every part may be missing."""

from __future__ import annotations

import copy
import json
import math
import os
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nasopt.report import claims, drawing, figures, html, record

EVIL = "<script>alert(1)</script>"
OPERATIONS = ("none", "skip_connect", "conv_1x1", "conv_3x3", "avg_pool_3x3")
EDGES = ("0-1", "0-2", "1-2", "0-3", "1-3", "2-3")


# ----------------------------------------------------------------------------------------------------------- an example
def example() -> dict[str, Any]:
    """A record as a job writes it: eight networks on the front of a space of cells, made up but plausible."""
    rng = np.random.default_rng(0)
    front = [found(f"net-{k}", 0.052 + 0.012 * k, 2.4 - 0.27 * k, rng) for k in range(8)]
    dominated = [found(f"other-{k}", 0.09 + 0.02 * k, 2.5 - 0.2 * k, rng) for k in range(3)]
    trials = [{"by": "nsga2", "metrics": {"error": float(e), "latency_ms": float(t)}, "error": None}
              for e, t in zip(rng.uniform(0.08, 0.4, 120), rng.uniform(0.4, 3, 120), strict=True)]
    trials.append({"by": "nsga2", "metrics": {}, "error": "the loss is not a number"})
    return {
        "title": "Ten digits, small and fast", "command": "nasopt run digits --latency 2.5ms --budget 15min --seed 3",
        "data": {"source": "folder digits/", "classes": [str(k) for k in range(10)], "input_shape": [1, 28, 28],
                 "train": 4200, "val": 900, "test": 900, "notes": ["Two unreadable files were left out."]},
        "space": {"name": "cells", "size": 15625 * 16, "description": "one cell in two stages, width and depth"},
        "seed": 3, "constraints": ["latency_ms <= 2.5 ms"],
        "objectives": [{"name": name, "unit": unit, "minimise": True}
                       for name, unit in (("error", ""), ("latency_ms", "ms"), ("memory_mb", "MB"))],
        "front": front, "dominated": dominated,
        "designed": [designed("small ResNet", 0.081, 1.93, 2.9), designed("MobileNet-like", 0.1, 0.3, 0.45)],
        "search": {"reference": [1.0, 10.0, 20.0], "objectives": ["error", "latency_ms", "memory_mb"],
                   "curves": {"nsga2": rise(rng, 0.86), "random": rise(rng, 0.8)},
                   "front_hypervolume": {"found": 0.84, "designed": 0.7}, "trials": trials,
                   "stopped": "the budget of 300 s was spent", "estimator": "one-shot"},
        "trust": {"statistic": "Kendall tau", "value": 0.57, "interval": [0.12, 0.86], "n": 8, "threshold": 0.5,
                  "pairs": [[0.3 + 0.02 * k + float(rng.normal(0, 0.02)), 0.06 + 0.01 * k] for k in range(8)],
                  "fallback": False, "sentence": "Kendall tau of 0.57 over 8 architectures."},
        "provenance": {"versions": {"nasopt": "0.1.0", "torch": "2.13.0"},
                       "machine": {"cpu": "a laptop's CPU", "cores": 2, "memory_gb": 8},
                       "started": "2030-01-01T10:00:00+00:00", "total_seconds": 913.0,
                       "peak_memory_mb": {"search": {"cpu": 1234.5}},
                       "phases": {"supernet": 180.0, "trust": 95.0, "search": 210.0, "random search": 208.0,
                                  "final training": 190.0, "measure and export": 30.0},
                       "warnings": ["The latency varied by 12 % between repeats: the machine was busy."]}}


def found(name: str, error: float, latency: float, rng: np.random.Generator) -> dict[str, Any]:
    cell = {f"stage[*]/cell/{e}": OPERATIONS[int(o)] for e, o in zip(EDGES, rng.integers(0, 5, 6), strict=True)}
    metrics = {"test_error": error, "error": error + 0.004, "latency_ms": latency, "latency_iqr_ms": 0.06,
               "latency_onnx_ms": 0.7 * latency, "memory_mb": 0.5 + latency, "params": 90_000 * latency,
               "flops": 9e6 * latency, "size_mb": 0.36 * latency}
    macro = {"stem/width": "16", "stem/kernel": "3", "stage": "2"}
    return {"id": name, "architecture": {**macro, **cell, "head/width": "64"}, "metrics": metrics,
            "intervals": {"test_error": [error - 0.015, error + 0.018],
                          "latency_ms": [latency - 0.02, latency + 0.04]},
            "predicted": {"error": error + 0.08 + float(rng.normal(0, 0.01)), "latency_ms": latency * 1.05,
                          "memory_mb": 0.5 + latency},
            "files": {"onnx": f"models/{name}/model.onnx", "torch": f"models/{name}/model.pt"},
            "training_seconds": 23.7}


def designed(name: str, error: float, latency: float, memory: float) -> dict[str, Any]:
    return {"name": name, "metrics": {"test_error": error, "error": error, "latency_ms": latency, "memory_mb": memory,
                                      "params": 175_000, "size_mb": 0.7},
            "intervals": {"test_error": [error - 0.017, error + 0.02]}, "files": {"onnx": f"models/{name}/model.onnx"}}


def rise(rng: np.random.Generator, level: float) -> dict[str, list[float]]:
    seconds = np.linspace(4, 208, 60)
    reached = level - 0.4 * np.exp(-seconds / 40) - rng.uniform(0, 0.02, 60)
    return {"seconds": seconds.tolist(), "evaluations": [float(2 * k + 2) for k in range(60)],
            "hypervolume": np.maximum.accumulate(reached).tolist()}


class Page(HTMLParser):
    """The parsed page: tags with attributes, the text outside scripts and styles, the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.open.append(tag)
            self.scripts += [""] * (tag == "script")

    def handle_endtag(self, tag: str) -> None:
        if self.open and tag == self.open[-1]:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open:
            self.text += data
        elif self.open[-1] == "script":
            self.scripts[-1] += data


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(html.render(example()))


def shown(results: Mapping[str, Any]) -> str:
    return " ".join(Page(html.render(results)).text.split())


def data_of(page: Page) -> list[dict[str, Any]]:
    out = json.loads(page.scripts[0])
    assert isinstance(out, list)
    return out


# ------------------------------------------------------------------------------------------------------------- the page
def test_the_page_is_complete_and_makes_no_request(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        for name in ("src", "href", "action", "srcset", "poster", "data"):
            assert not re.match(r"(?i)\s*([a-z]+:|//)", attributes.get(name) or ""), (tag, attributes)
    own = [s for s in page.scripts if "plotly.js" not in s[:200]]
    assert len(own) == 2 and len(page.scripts) == 3, "the data, plotly.js once, the page's script"
    assert "showSendToCloud: false" in own[1], "plotly.js offers by default to send the figure to a server"
    assert not any(re.search(r"https?:|\bimport\b|fetch\(|XMLHttpRequest", s) for s in own)
    policy = [a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policy and (policy[0] or "").startswith("default-src 'none'")
    assert "http" not in (policy[0] or "")


def test_styles_ask_for_nothing() -> None:
    style = re.findall(r"<style>(.*?)</style>", html.render(example()), re.DOTALL)
    assert len(style) == 1 and not re.search(r"url\(|@import|https?:", style[0])


def test_every_section_of_a_full_record_is_there(page: Page) -> None:
    text = " ".join(page.text.split())
    for words in ("The search found 8 trained networks", "under latency_ms <= 2.5 ms", "The front", "All networks",
                  "The architectures", "The search against random search", "Predicted and measured",
                  "Can the supernet be trusted?", "How it was obtained", "Caveats", "test part was used once",
                  "training 4,200, validation 900, test 900", "250,000 architectures", "torch 2.13.0", "15 min 13 s",
                  "3 min 30 s, 1.2 GB",
                  "1 failed: the loss is not a number", "nasopt run digits --latency 2.5ms", "the machine was busy"):
        assert words in text, words
    assert [f["name"] for f in data_of(page)] == ["front", "hypervolume", "predicted", "trust"]


def test_a_spread_is_a_column_where_no_quartiles_are_shown() -> None:
    results = example()
    for net in (*results["front"], *results["dominated"]):
        net["metrics"]["latency_onnx_iqr_ms"] = 0.05
    columns = [[c for c in html._table(record.networks(results))["columns"] if "IQR" in c or "iqr" in c]]
    for net in (*results["front"], *results["dominated"]):
        net["intervals"]["latency_onnx_ms"] = [0.1, 0.2]
    columns += [[c for c in html._table(record.networks(results))["columns"] if "IQR" in c or "iqr" in c]]
    assert [len(c) for c in columns] == [1, 0]


def test_links_lead_to_the_files_and_nowhere_else(page: Page) -> None:
    links = [a["href"] for t, a in page.tags if t == "a"]
    assert "./models/net-0/model.onnx" in links and "./models/small%20ResNet/model.onnx" in links
    for bad in ("javascript:alert(1)", "https://example.org/x", "//example.org/x", "/root/x", "\\\\host\\x", "data:x"):
        assert html.link(bad) is None
    assert html.link('a b/"q".onnx') == "./a%20b/%22q%22.onnx"


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all parts of a JSON value below the root."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for k, v in inner for p in ((*path, k), *leaves(v, (*path, k)))]


def poisoned(value: Any) -> Any:
    """The record with every text, and every key that a user may name, made hostile."""
    if isinstance(value, dict):
        names = ("architecture", "files", "curves", "phases", "versions", "machine")
        return {k: {EVIL + i + "</style>\u2028": poisoned(v) for i, v in x.items()} if k in names else poisoned(x)
                for k, x in value.items()}
    if isinstance(value, list):
        return [poisoned(v) for v in value]
    return f'{EVIL}</script><!--"\'{{{{7*7}}}}{value}' if isinstance(value, str) else value


def test_hostile_text_stays_text() -> None:
    results = example()
    objectives, search = results["objectives"], results["search"]["objectives"]
    results = poisoned(results)
    results["objectives"], results["search"]["objectives"] = objectives, search
    results["front"][0]["metrics"][EVIL] = 1.0
    results["front"][1]["architecture"] = {f"{EVIL}/0-1": EVIL}
    text = html.render(results)
    evil = Page(text)
    assert not any("alert(1)" in s for s in evil.scripts[1:]) and len(evil.scripts) == 3
    assert EVIL not in text and "{{7*7}}" in evil.text and "<script" not in evil.scripts[0].lower()
    assert evil.text.count("alert(1)") > 100
    assert {t for t, _ in evil.tags} <= {t for t, _ in Page(html.render(example())).tags}
    for figure in data_of(evil):
        for trace in figure["data"]:
            for words in [trace.get("name", ""), *trace.get("hovertext", [])]:
                assert not set(re.findall(r"<[^>]*>", words)) - {"<b>", "</b>", "<br>"}


@pytest.mark.parametrize("absent", [None, [], {}, ""])
def test_an_empty_record_claims_nothing(absent: Any) -> None:
    text = shown({})
    assert "nothing is claimed" in text and len(html.render({})) < 50_000
    assert shown(dict.fromkeys(example(), absent)) == text


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_part_may_be_missing(data: st.DataObject) -> None:
    results = example()
    for path in data.draw(st.lists(st.sampled_from(leaves(results)), min_size=1, max_size=25)):
        here: Any = results
        for key in path[:-1]:
            here = here.get(key) if isinstance(here, dict) else here[key] if here and key < len(here) else None
            if here is None:
                break
        if isinstance(here, dict):
            here.pop(path[-1], None)
        elif isinstance(here, list) and path[-1] < len(here):
            here[path[-1]] = data.draw(st.sampled_from([None, math.nan, {}, []]))
    text = html.render(results)
    values = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', text, re.DOTALL)
    assert text.endswith("</html>") and ">nan" not in text[:text.find("<script")].lower()
    assert not any("NaN" in v or "Infinity" in v for v in values)


def test_names_that_are_no_utf8_do_not_prevent_a_report(tmp_path: Path) -> None:
    """As `Path.name` gives them, of a folder from an old archive."""
    html.write({"title": b"caf\xe9".decode("utf-8", "surrogateescape")}, tmp_path / "report.html")
    assert "caf\\udce9" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_write_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    html.write({"title": "first"}, target)
    assert "first" in target.read_text(encoding="utf-8")

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="full"):
        html.write({"title": "second"}, target)
    assert "first" in target.read_text(encoding="utf-8") and os.listdir(tmp_path) == ["report.html"]


# --------------------------------------------------------------------------------------------------------------- claims
def test_the_headline_holds_numbers_and_intervals() -> None:
    best, fast, small = claims.facts(example())
    assert (best.value, best.interval) == ("5.20 %", "[3.70, 7.00]") and "net-0" in best.note
    assert fast.value == "0.510 ms" and "test error 13.6 % [12.1, 15.4]" in fast.note
    assert small.value == "45.9 thousand"
    assert "the latency goes from 2.40 ms [2.38, 2.44] to 0.510 ms [0.490, 0.550]" in claims.trade_off(example())


def test_the_most_accurate_network_is_not_chosen_by_its_test_error() -> None:
    results = example()
    results["front"][3]["metrics"]["test_error"] = 0.001
    assert claims.facts(results)[0].note.startswith("net-0")


def test_hand_designed_networks_are_compared_in_numbers() -> None:
    resnet, mobile = claims.against_designed(example())
    # net-2: error 7.6 %, 1.86 ms, 2.36 MB against 8.1 %, 1.93 ms, 2.9 MB; net-0, net-1 are slower, net-3 errs more
    assert "is dominated by 1 of the 8 found networks, and dominates 0 of them" in resnet
    assert "net-2 against it: test error 0.50 points lower (7.60 % [6.10, 9.40]; the intervals overlap)" in resnet
    assert "latency 4 % lower" in resnet and "peak memory 19 % lower" in resnet
    # 10 % at .3 ms and .45 MB: better in all three than net-5, net-6 and net-7 (11.2, 12.4 and 13.6 %; .5 ms and more)
    assert "is dominated by 0 of the 8 found networks, and dominates 4 of them" in mobile
    assert "It dominates net-4, net-5, net-6 and net-7" in mobile


def test_a_hand_designed_network_that_breaks_a_bound_is_said_to() -> None:
    results = example()
    results["designed"][0]["breaks"] = ["latency_ms <= 1 ms", "params <= 10"]
    resnet, mobile = claims.against_designed(results)
    assert ") breaks latency_ms <= 1 ms and params <= 10, and is dominated by 1 of" in resnet and "breaks" not in mobile


def test_dominance_keeps_to_the_definition_and_the_direction() -> None:
    def net(**metrics: float) -> record.Network:
        return record.network({"metrics": metrics}, record.FRONT, 0)

    on = [record.Axis("a"), record.Axis("b", minimise=False)]
    assert record.dominates(net(a=1, b=2), net(a=1, b=1), on) and not record.dominates(net(a=1, b=1), net(a=1, b=2), on)
    assert not record.dominates(net(a=1, b=1), net(a=1, b=1), on), "equal networks do not dominate each other"
    assert not record.dominates(net(a=0, b=0), net(a=1, b=1), on) and not record.dominates(net(a=0), net(a=1, b=1), on)
    assert not record.dominates(net(a=0), net(a=1), []), "on no objective nothing is claimed"


def test_no_comparison_without_common_objectives() -> None:
    results = example()
    results["designed"] = [{"name": "x", "metrics": {"params": 3}}]
    assert "no comparison is made" in claims.against_designed(results)[0]


def test_equal_cost_takes_the_shorter_run() -> None:
    long = {"seconds": [1, 5, 20], "evaluations": [1, 2, 3], "hypervolume": [0.1, 0.4, 0.9]}
    short = {"seconds": [2, 10], "evaluations": [4, 8], "hypervolume": [0.2, 0.5]}
    out = claims.equal_cost({"search": {"curves": {"nsga2": long, "random": short}}})
    assert out == ["After 10.0 s of each, nsga2 had reached a hypervolume of 0.400 and random search 0.500 "
                   "(nsga2 20.0 % lower)."], "after 3 evaluations random search has none yet"
    assert claims.equal_cost({"search": {"curves": {"nsga2": long}}}) == []


@pytest.mark.parametrize(("curves", "compared"), [(("nsga2", "random"), True), (("random",), False), (("hybrid",), False)])
def test_a_comparison_with_random_search_is_announced_where_there_is_one(curves: tuple[str, ...], compared: bool) -> None:
    results = example()
    rise = results["search"]["curves"]["random"]
    results["search"]["curves"] = dict.fromkeys(curves, rise)
    text = html.render(results)
    assert ("<h2>The search against random search</h2>" in text) == compared and ("<h2>The search</h2>" in text) != compared
    points = dict(claims.checklist(results))
    said = {"nsga2": "shown", "random": "nothing else was run", "hybrid": "not run"}[curves[0]]
    assert points["Random search in the same space at equal cost"] == said
    panel = figures.hypervolume(results)
    assert panel is not None and ("and random search" in panel.description) == compared


def test_trials_are_counted_by_who_asked_and_hypervolumes_name_their_scale() -> None:
    results = example()
    results["search"]["trials"] += [{"by": "random", "metrics": {}, "error": None}] * 4
    results["search"]["scale"] = "natural logarithm of every objective"
    text = html.render(results)
    assert "<dt>Trials</dt><dd>121 by nsga2, 4 by random; 1 failed: the loss is not a number</dd>" in text
    assert "peak memory, natural logarithm of every objective, from the reference point" in text


def test_predictions_are_compared_with_what_was_measured() -> None:
    results = example()
    named = {a.metric for a in claims.agreements(results)}
    for data in (*results["front"], *results["dominated"], *results["designed"]):
        data["metrics"].pop("error", None)
    panel, before = figures.predicted(results), figures.predicted(example())
    assert panel is not None and before is not None
    titles = [p.menus[0].options[0].layout["yaxis.title.text"] for p in (before, panel)]
    assert titles == ["measured validation error (%)", "measured test error (%)"]
    assert panel.figure.layout.yaxis.title.text == titles[1]
    assert "validation error" in named
    assert "validation error, against the test error" in {a.metric for a in claims.agreements(results)}


def test_final_hypervolume_has_its_baselines() -> None:
    text = claims.final_hypervolume(example())
    assert text.startswith("Hypervolume of the trained networks, on logarithms of the measured metrics: found 0.840")
    assert "hand-designed networks 0.700 (found 20.0 % higher)" in text
    assert claims.final_hypervolume({"search": {"front_hypervolume": {"designed": 1.0}}}) == ""


def test_agreement_against_hand_computed_values() -> None:
    out = claims.agreement("m", [1, 2, 3, 4, 5, 6], [2, 1, 4, 3, 6, 5])
    # squared rank differences sum to 6: rho = 1 - 6*6/(6*35); relative errors 1/2, 1, 1/4, 1/3, 1/6, 1/5
    assert out.spearman == f"{1 - 36 / 210:.2f}" and out.median_error == "29.2 %" and out.count == 6
    assert claims.agreement("m", [1, 2], [1, 2]).spearman == "–", "two pairs order nothing"
    assert claims.agreement("m", [1, 1, 1, 1, 1], [1, 2, 3, 4, 5]).spearman == "–", "no variation, no correlation"
    assert claims.agreement("m", [1.0], [0.0]).median_error == "–", "relative to zero nothing is said"


def test_the_interval_covers_the_true_correlation() -> None:
    rng = np.random.default_rng(1)
    r, n, runs = 0.6, 20, 1000
    truth = 6 / math.pi * math.asin(r / 2)  # Spearman's correlation of a bivariate normal
    hits = 0
    for _ in range(runs):
        x, z = rng.normal(size=n), rng.normal(size=n)
        span = claims.spearman_interval(float(stats.spearmanr(x, r * x + math.sqrt(1 - r * r) * z).statistic), n)
        assert span is not None
        hits += span[0] <= truth <= span[1]
    assert 0.93 <= hits / runs <= 0.97
    assert claims.spearman_interval(0.5, 4) is None and claims.spearman_interval(1.0, 9) is None
    assert claims.spearman_interval(math.nan, 9) is None


def test_trust_says_what_the_interval_leaves_open() -> None:
    out = " ".join(claims.trust(example()))
    assert "0.57, interval [0.12, 0.86], over 8 architectures" in out and "the interval contains the threshold" in out
    results = example()
    results["trust"].update(value=0.2, interval=[0.0, 0.4], fallback=True)
    out = " ".join(claims.trust(results))
    assert "stays below the threshold of 0.5" in out and "contains" not in out and "each architecture alone" in out
    results["trust"]["costs"] = "Costs as sums."
    assert claims.trust(results)[-1] == "Costs as sums."


# -------------------------------------------------------------------------------------------------------------- figures
def test_the_front_distinguishes_kinds_and_follows_the_menus() -> None:
    panel = figures.front(example())
    assert panel is not None
    traces = panel.figure.data
    assert [t.name for t in traces] == ["on the front", "not on the front", "designed by hand",
                                        "front, as the search predicted it", "all trials (estimates)"]
    assert len({(t.marker.symbol, t.marker.color) for t in traces}) == 5
    assert traces[0].y[0] == pytest.approx(5.2) and traces[0].error_y.array[0] == pytest.approx(1.8)
    assert traces[0].error_y.arrayminus[0] == pytest.approx(1.5) and traces[3].y[0] == pytest.approx(
        100 * example()["front"][0]["predicted"]["error"])
    across = panel.menus[0]
    assert across.options[across.chosen].traces["x"] == [list(t.x) for t in traces]
    memory = next(o for o in across.options if o.label == "peak memory (MB)")
    assert memory.traces["x"][0][0] == pytest.approx(2.9) and memory.layout["xaxis.title.text"] == "peak memory (MB)"
    assert memory.traces["error_x.array"][0][0] is None, "memory has no interval"


def test_the_hypervolume_figure_has_its_baseline() -> None:
    panel = figures.hypervolume(example())
    assert panel is not None and [t.name for t in panel.figure.data] == ["nsga2", "random search"]
    seconds, evaluations = panel.menus[0].options
    assert seconds.traces["x"][0] == list(panel.figure.data[0].x) and evaluations.traces["x"][1][-1] == 120.0


def test_figures_are_absent_without_data() -> None:
    for make in (figures.front, figures.hypervolume, figures.predicted, figures.learning, figures.trust):
        assert make({}) is None


def test_learning_curves_are_drawn_where_there_are_any() -> None:
    results = example()
    assert figures.learning(results) is None and "Learning curves" not in html.render(results)
    results["front"][1]["curve"] = [{"epochs": 2.0, "seconds": 30.0, "loss": 1.5, "error": 0.3},
                                    {"epochs": 4.0, "seconds": 60.0, "loss": 0.9, "error": 0.1}]
    results["designed"][0]["curve"] = [{"epochs": 3.0, "seconds": 10.0, "loss": 1.2}]
    panel = figures.learning(results)
    assert panel is not None and "Learning curves" in html.render(results)
    assert [t.name for t in panel.figure.data] == ["net-1", "small ResNet"]
    metric, against = panel.menus
    assert [o.label for o in metric.options] == ["validation error (%)", "training loss"]
    assert metric.options[0].traces["y"] == [pytest.approx([30.0, 10.0]), [None]] and metric.options[1].traces["y"][1] == [1.2]
    assert against.options[1].traces["x"] == [[30.0, 60.0], [10.0]]


def test_an_expected_error_is_compared_with_the_validation_error() -> None:
    known = {"id": "a", "metrics": {"error": 0.06, "test_error": 0.07}, "predicted": {"expected_error": 0.05}}
    net = record.network(known, "front", 0)
    assert figures.pairs_of([net], "expected_error") == [("a", 0.05, 0.06)]


def test_a_front_of_two_errors_still_has_two_axes() -> None:
    panel = figures.front({"front": [{"metrics": {"error": 0.1, "test_error": 0.2}}]})
    assert panel is not None and {m.chosen for m in panel.menus} == {0, 1}


# ------------------------------------------------------------------------------------------------------------- drawings
CELL = {"0-1": "conv_3x3", "0-2": "none", "1-2": "none", "0-3": "skip_connect", "1-3": "none", "2-3": "avg_pool_3x3"}


def routes(edges: set[tuple[int, int]], here: int, last: int) -> list[list[tuple[int, int]]]:
    """All paths from one node to another, as lists of edges."""
    if here == last:
        return [[]]
    return [[(i, j), *rest] for i, j in edges if i == here for rest in routes(edges, j, last)]


def test_dead_edges_by_enumeration() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        nodes = int(rng.integers(2, 6))
        edges = {(i, j): OPERATIONS[int(rng.integers(0, 2))] for j in range(nodes) for i in range(j)}
        drawn = {e for e, label in edges.items() if label != "none"}

        assert drawing.live(edges) == {e for route in routes(drawn, 0, nodes - 1) for e in route}


def test_cells_and_blocks_of_an_architecture() -> None:
    arch = {"stem/width": "16", "stem/kernel": "3", "depth": "2", **{f"stage[0]/cell/{e}": o for e, o in CELL.items()},
            **{f"stage[1]/cell/{e}": o for e, o in CELL.items()}, "head=mlp/width": "64"}
    (cell,) = drawing.cells(arch)
    assert cell.names == ("stage[0]/cell", "stage[1]/cell") and cell.edges[0, 3] == "skip_connect"
    assert [(b.name, dict(b.choices)) for b in drawing.blocks(arch)] == [
        ("stem", {"width": "16", "kernel": "3"}), ("", {"depth": "2"}), ("head=mlp", {"width": "64"})]


def test_the_drawing_omits_removed_edges_and_fades_dead_ones() -> None:
    (cell,) = drawing.cells({f"c/{e}": o for e, o in CELL.items()})
    svg = drawing.svg(cell)
    assert svg.count("<path") == 3 and svg.count("<circle") == 4 and "none" not in svg
    assert svg.count('class="op conv dead"') == svg.count('class="op pool dead"') == 2 and 'class="op skip"' in svg
    assert "0 to 1 conv_3x3 (dead), 0 to 3 skip_connect, 2 to 3 avg_pool_3x3 (dead)" in drawing.description(cell)


@pytest.mark.parametrize("nodes", range(2, 9))
def test_no_two_labels_of_a_full_cell_touch(nodes: int) -> None:
    edges = {f"c/{i}-{j}": "conv" for j in range(nodes) for i in range(j)}
    svg = drawing.svg(drawing.cells(edges)[0])
    places = [(float(x), float(y)) for x, y in re.findall(r'<text class="op[^>]* x="([\d.]+)" y="([\d.-]+)"', svg)]
    width, height = map(float, re.findall(r'viewBox="0 0 (\d+) (\d+)"', svg)[0])
    assert len(set(places)) == len(edges) and all(0 < x < width and 8 < y < height for x, y in places)
    for k, (x, y) in enumerate(places):
        assert not any(abs(x - u) < 40 and abs(y - v) < 12 for u, v in places[:k])


# -------------------------------------------------------------------------------------------------------------- numbers
@pytest.mark.parametrize(("value", "text"), [
    (0.0, "0"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (1234.6, "1,235"), (0.01234, "0.0123"),
    (-2.5, "-2.50"), (1e-9, "1.00e-09")])
def test_digits(value: float, text: str) -> None:
    assert record.digits(value) == text


def test_durations_and_units() -> None:
    assert [record.duration(s) for s in (4.2, 59.99, 61, 3600, 7830)] == [
        "4.20 s", "60.0 s", "1 min 1 s", "1 h 0 min", "2 h 10 min"]
    assert record.quantity("energy_mj").title == "energy (mJ)" and record.quantity("margin").title == "margin"
    assert record.interval([2, 1]) is None and record.interval([1, math.inf]) is None and record.number(True) is None


def test_the_record_is_not_changed() -> None:
    results = example()
    before = copy.deepcopy(results)
    html.render(results)
    assert results == before
