"""The conformance kit of the strategy seam: what the search loop, replay and portfolios rely on.

    from nasopt.testing.strategy import check_strategy
    check_strategy(lambda problem, seed: MyStrategy(problem, seed))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from nasopt.protocols import Strategy
from nasopt.seed import integer, rng
from nasopt.space import Cell, Choice, Graph, Product, Repeat, Space, check, everything, key, sample
from nasopt.trial import Ask, Constraint, Metrics, Objective, Problem, Trial

Make: TypeAlias = Callable[[Problem, int], Strategy]
OBJECTIVES = (Objective("error"), Objective("latency_ms", "ms"), Objective("score", minimise=False))
STEPS = (1, 3, 8, 2, 5, 30)
LIMIT = 2000
"""More asks than this on a space of three architectures, and the strategy is taken not to end."""


def example_spaces() -> dict[str, Space]:
    """One space of every kind: flat, conditional, and with cells or graphs that `canonical` merges."""
    flat = Product("", [Choice(f"c{i}", ("a", "b", "c", "d")) for i in range(6)])
    conditional = Product("", [
        Choice("head", {"linear": None, "mlp": Choice("width", ("32", "64", "128"))}),
        Repeat("stage", Product("", [Choice("kernel", ("3", "5")), Choice("expand", ("1", "4", "6"))]), (1, 2, 3))])
    cells = Product("", [Choice("width", ("16", "32")),
                         Cell("cell", 4, ("none", "skip", "conv"), none="none", skip="skip")])
    graphs = Product("", [Choice("width", ("16", "32", "64")),
                          Choice("block", {"plain": None, "graph": Graph("", 5, ("conv", "pool", "skip"), 6)})])
    return {"flat": flat, "conditional": conditional, "cells": cells, "graphs": graphs}


def metrics_of(problem: Problem, ask: Ask) -> dict[str, float]:
    """Made-up metrics in [0, 1) that depend on the architecture alone: every objective, every constraint's metric."""
    number = int(key(ask.arch), 16) >> 1
    names = sorted({o.name for o in problem.objectives} | {c.name for c in problem.constraints})
    return {name: integer(number, k, "conformance") / 2**63 for k, name in enumerate(names)}


def answer(problem: Problem, ask: Ask) -> Trial:
    """A trial as the loop makes it: every eleventh fails, and one that violates a constraint has no other metrics."""
    metrics: Metrics = metrics_of(problem, ask)
    if ask.number % 11 == 10:
        return Trial(ask, {}, 1.0, "made to fail")
    if problem.violation(metrics) > 0:
        metrics = {c.name: metrics[c.name] for c in problem.constraints}
    return Trial(ask, metrics, 1.0)


def check_strategy(make: Make, problem: Problem | None = None) -> None:
    """Runs every check. ``make(problem, seed)`` builds a fresh strategy.

    Args:
        make: builds the strategy under test.
        problem: what to test on, for strategies that need a certain space (at least 40 architectures); None: a flat, a
            conditional, a cell (with a constraint) and a graph space.

    Raises:
        AssertionError: a check failed; the message says which and how.
    """
    if problem is not None:
        problems = {"given": problem}
    else:
        problems = {name: Problem(space, OBJECTIVES, (Constraint("latency_ms", 0.7),) if name == "cells" else ())
                    for name, space in example_spaces().items()}
    for name, each in problems.items():
        check_numbering(make, each, name)
        check_determinism(make, each, name)
        check_replay(make, each, name)
        check_empty_answer(make, each, name)
        check_any_order(make, each, name)
        check_strangers(make, each, name)
        check_failures(make, each, name)
    if problem is None:
        check_end(make)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _ask(strategy: Strategy, problem: Problem, n: int, first: int, seed: int, where: str) -> list[Ask]:
    """Asks and checks the answer for itself: count, numbers, architectures, fidelity, seed, signature."""
    asks = list(strategy.ask(n, first))
    _require(len(asks) <= n, f"{where}: ask({n}, {first}) returned {len(asks)} asks, more than wanted.")
    numbers = [a.number for a in asks]
    _require(numbers == list(range(first, first + len(asks))),
             f"{where}: ask({n}, {first}) numbered its asks {numbers}, not from {first} on.")
    for a in asks:
        try:
            check(problem.space, a.arch)
        except ValueError as reason:
            raise AssertionError(f"{where}: ask {a.number} is not an architecture of the space: {reason}") from None
        _require(0 < a.fidelity <= 1, f"{where}: ask {a.number} has fidelity {a.fidelity}, not in (0, 1].")
        _require(a.seed == seed, f"{where}: ask {a.number} has seed {a.seed}, not {seed}, the one given.")
        _require(bool(a.by), f"{where}: ask {a.number} does not say who proposed it ('by' is empty).")
    return asks


class _Driver:
    """Drives one strategy and remembers every call, so that another can be driven the same way."""

    def __init__(self, make: Make, problem: Problem, where: str, seed: int = 3) -> None:
        self.strategy, self.problem, self.where, self.seed = make(problem, seed), problem, where, seed
        self.calls: list[tuple[int, int] | list[Trial]] = []
        self.asked: list[Ask] = []
        self.answers: list[list[Ask]] = []
        self.pending: list[Ask] = []

    def ask(self, n: int) -> list[Ask]:
        first = len(self.asked)
        asks = _ask(self.strategy, self.problem, n, first, self.seed, self.where)
        self.calls.append((n, first))
        self.answers.append(asks)
        self.asked += asks
        self.pending += asks
        return asks

    def tell(self, trials: Sequence[Trial]) -> None:
        self.calls.append(list(trials))
        told = {t.ask.number for t in trials}
        self.pending = [a for a in self.pending if a.number not in told]
        self.strategy.tell(trials)

    def tell_pending(self) -> None:
        self.tell([answer(self.problem, a) for a in self.pending])

    def run(self, steps: Sequence[int] = STEPS) -> None:
        """Asks in batches of odd sizes and tells about two thirds of what is pending after each."""
        for n in steps:
            self.ask(n)
            if not self.pending:
                raise AssertionError(
                    f"{self.where}: ask({n}, {len(self.asked)}) returned nothing although nothing is pending "
                    f"and the space is not exhausted."
                )
            self.tell([answer(self.problem, a) for a in self.pending[: max(1, 2 * len(self.pending) // 3)]])

    def repeat(self, calls: Sequence[tuple[int, int] | list[Trial]]) -> None:
        """Makes another driver's calls."""
        for call in calls:
            if isinstance(call, list):
                self.tell(call)
            else:
                self.ask(call[0])


def check_numbering(make: Make, problem: Problem, where: str = "problem") -> None:
    """Asks are numbered from ``first``, at most ``n``, with valid architectures; the search goes on after tells."""
    driver = _Driver(make, problem, f"{where}, numbering")
    driver.run()
    driver.tell_pending()
    asks = _ask(driver.strategy, problem, 4, 1000, driver.seed, f"{where}, numbering after a gap")
    _require(bool(asks), f"{where}, numbering: ask(4, 1000) returned nothing although nothing is pending.")


def check_determinism(make: Make, problem: Problem, where: str = "problem") -> None:
    """The same calls get the same answers."""
    one, two = _Driver(make, problem, f"{where}, determinism"), _Driver(make, problem, f"{where}, determinism")
    one.run()
    two.repeat(one.calls)
    _require(
        one.answers == two.answers, f"{where}, determinism: strategies of one seed answered the same calls differently."
    )


def check_replay(make: Make, problem: Problem, where: str = "problem") -> None:
    """A run that is cut anywhere, even inside a batch, and replayed from its log goes on as the uncut one."""
    whole = _Driver(make, problem, f"{where}, replay")
    whole.run()
    for cut in range(1, len(whole.calls)):
        again = _Driver(make, problem, f"{where}, replay")
        again.repeat(whole.calls[:cut])
        rng(0, cut, "elsewhere").random(3)
        again.repeat(whole.calls[cut:])
        _require(
            again.asked == whole.asked,
            f"{where}, replay: cut after {cut} calls, the asks are not those of the uncut run.",
        )


def check_empty_answer(make: Make, problem: Problem, where: str = "problem") -> None:
    """An answer of [] leaves the state unchanged: a twin that was not asked then goes on alike."""
    where = f"{where}, empty answer"
    driver, twin = _Driver(make, problem, where), _Driver(make, problem, where)
    for _ in range(3):
        for n in (40, 40, 1, 7):
            if driver.ask(n):
                twin.ask(n)
                _require(driver.asked == twin.asked, f"{where}: an ask answered with [] changed the next asks.")
        driver.tell_pending()
        twin.tell_pending()
    driver.ask(5)
    twin.ask(5)
    _require(driver.asked == twin.asked, f"{where}: an ask answered with [] changed the asks after the next tell.")


def check_any_order(make: Make, problem: Problem, where: str = "problem") -> None:
    """Trials may be told in any order, one by one, or none at all in a call."""
    driver = _Driver(make, problem, f"{where}, any order")
    driver.tell([])
    for n in STEPS:
        driver.ask(n)
        for ask in reversed(driver.pending.copy()):
            driver.tell([answer(problem, ask)])
        driver.tell([])
    _require(
        bool(driver.ask(1)), f"{where}, any order: nothing was asked after all trials had been told in reverse order."
    )


def check_strangers(make: Make, problem: Problem, where: str = "problem") -> None:
    """Trials of other strategies are accepted at any time, before the first ask and at other fidelities included."""
    driver = _Driver(make, problem, f"{where}, others' trials")

    def strangers(start: int) -> list[Trial]:
        asks = [
            Ask(start + k, sample(problem.space, rng(7, start + k, "stranger")), 1.0 if k % 2 else 0.25, 3, "stranger")
            for k in range(5)
        ]
        return [answer(problem, a) for a in asks]

    driver.tell(strangers(10_000))
    for n in STEPS:
        driver.ask(n)
        driver.tell(strangers(10_000 + 100 * n))
        driver.tell_pending()
    _require(bool(driver.ask(1)), f"{where}, others' trials: nothing was asked after they had been told.")


def check_failures(make: Make, problem: Problem, where: str = "problem") -> None:
    """Failed trials, trials without dear objectives (a constraint is violated) and NaN are data, even if all are so."""
    bound = problem.objectives[-1]
    strict = Problem(problem.space, problem.objectives, (*problem.constraints, Constraint("bound", 0.5)))
    kinds: dict[str, Callable[[Ask], Trial]] = {
        "failed": lambda a: Trial(a, {}, 1.0, "out of memory"),
        "violating": lambda a: Trial(a, {"bound": 1.0 + a.number}, 1.0),
        "NaN": lambda a: Trial(a, {**metrics_of(strict, a), "bound": 0.1, bound.name: float("nan")}, 1.0)}
    for kind, trial in kinds.items():
        driver = _Driver(make, strict, f"{where}, {kind} trials")
        for n in STEPS:
            driver.ask(n)
            driver.tell([trial(a) for a in driver.pending])
        _require(bool(driver.ask(1)), f"{where}, {kind} trials: nothing was asked after they had been told.")


def check_end(make: Make) -> None:
    """On spaces of one and three architectures the search asks every one and ends: [], nothing pending, for good."""
    for options in (1, 3):
        problem = Problem(Choice("only", [f"o{k}" for k in range(options)]), OBJECTIVES)
        driver = _Driver(make, problem, f"space of {options}, end")
        while driver.ask(2):
            driver.tell([answer(problem, a) for a in driver.pending])
            _require(
                len(driver.asked) <= LIMIT,
                f"{driver.where}: after {len(driver.asked)} asks on a space of {options} the strategy still goes on.",
            )
        missed = {key(a) for a in everything(problem.space)} - {key(a.arch) for a in driver.asked}
        _require(not missed, f"{driver.where}: it ended without having asked {len(missed)} of {options} architectures.")
        driver.tell([])
        _require(not driver.ask(3), f"{driver.where}: it had ended and asked again.")
