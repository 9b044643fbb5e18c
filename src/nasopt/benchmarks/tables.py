"""Tables of architectures that others have trained and measured, as problems that are searched in microseconds.

A table is a ``.npz`` file (no pickles). The published ones are known by their file names, see `KNOWN`; a file of any other name
is read by this format, which a user can write in ten lines:

* ``space``: the space, `nasopt.space.to_json` as text;
* ``archs``: integers (n, columns), the architectures as rows of `nasopt.space.layout`;
* ``about`` (optional): text, JSON of column -> {"unit": "ms", "minimise": true};
* every other array of n numbers is a column. NaN: not measured, or impossible.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nasopt import space as spaces
from nasopt.errors import InputError, unknown
from nasopt.space import Arch, Choice, Product, Rows, Space
from nasopt.trial import Ask, Constraint, Metrics, Objective, Problem, nondominated

Floats = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Column:
    """One quantity of every architecture: values (n,), its unit, and whether small ones are good. NaN: there is none."""

    values: Floats
    unit: str = ""
    minimise: bool = True


@dataclass(frozen=True, eq=False)
class Table:
    """Architectures and what was measured of them.

    Attributes:
        name: what it is called in results.
        space: where they are from; it may hold more than the table does.
        archs: the architectures as rows of the space's layout, (n, columns).
        columns: what is known of them.
    """

    name: str
    space: Space
    archs: Rows
    columns: Mapping[str, Column]
    _place: dict[bytes, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rows = np.ascontiguousarray(spaces.layout(self.space).silence(self.archs))
        object.__setattr__(self, "_place", {row.tobytes(): k for k, row in reversed(list(enumerate(rows)))})

    def row(self, arch: Arch) -> int:
        """The place of an architecture.

        Raises:
            InputError: the table does not hold it.
        """
        try:
            return self._place[spaces.layout(self.space).rows([arch])[0].tobytes()]
        except KeyError:
            raise InputError(f"{self.name} does not hold the architecture {spaces.labels(self.space, arch)}: "
                             "search among those that it holds.") from None

    def column(self, name: str) -> Column:
        """A column by its name.

        Raises:
            InputError: there is none; the message names the nearest.
        """
        if name not in self.columns:
            raise unknown(f"column of {self.name}", name, self.columns)
        return self.columns[name]

    def problem(self, objectives: Sequence[str], constraints: Sequence[Constraint] = ()) -> Problem:
        """The problem of these columns.

        Raises:
            InputError: an unknown column, or constraints that no architecture meets.
        """
        aims = tuple(Objective(name, self.column(name).unit, self.column(name).minimise) for name in objectives)
        found = Problem(self.space, aims, tuple(constraints))
        for c in constraints:
            least = np.nanmin(self.column(c.name).values)
            if least > c.upper:
                raise InputError(f"no architecture of {self.name} meets {c}: the best has {least:.4g}; relax it.")
        if constraints and not self.feasible(found).any():
            raise InputError(f"no architecture of {self.name} meets {' and '.join(map(str, constraints))} together: relax one.")
        return found

    def feasible(self, problem: Problem) -> NDArray[np.bool_]:
        """Which architectures have all objectives and meet all constraints, (n,)."""
        with np.errstate(invalid="ignore"):
            met = [self.column(c.name).values <= c.upper for c in problem.constraints]
        return np.asarray(np.all([np.isfinite(self.values(problem)).all(axis=1), *met], axis=0))

    def values(self, problem: Problem) -> Floats:
        """The objectives of every architecture as numbers to minimise, (n, objectives); NaN where there is none."""
        columns = [self.column(o.name).values * (1 if o.minimise else -1) for o in problem.objectives]
        return np.column_stack(columns)

    def front(self, problem: Problem) -> Floats:
        """The true front, (points, objectives), to be minimised: what a search can find, of isomorphic cells the one that
        `space.canonical` keeps."""
        values = np.unique(self.values(problem)[self.feasible(problem) & self.representative], axis=0)
        return values[nondominated(values)]

    @property
    def representative(self) -> NDArray[np.bool_]:
        """Which architectures are their own canonical form, (n,)."""
        lay = spaces.layout(self.space)
        if not lay.cells:
            return np.ones(len(self.archs), dtype=bool)
        return np.array([spaces.key(spaces.canonical(self.space, a)) == spaces.key(a) for a in lay.archs(self.archs)])


@dataclass(frozen=True, eq=False)
class Lookup:
    """The estimator of a table: the named columns of an architecture, NaN left out."""

    table: Table
    names: Sequence[str]

    def __post_init__(self) -> None:
        for name in self.names:
            self.table.column(name)

    def __call__(self, ask: Ask, /) -> Metrics:
        k = self.table.row(ask.arch)
        found = {name: float(self.table.columns[name].values[k]) for name in self.names}
        return {name: value for name, value in found.items() if not np.isnan(value)}


@dataclass(frozen=True, eq=False)
class Fidelities:
    """The estimator of a table that holds an objective at several fidelities, such as after 12 and after 200 epochs: at
    fidelity f a metric is the column of the highest level up to f.

    Attributes:
        table: the table.
        columns: metric -> {level: column}; every metric has a column of level 1.

    Raises:
        InputError: an unknown column, a level outside (0, 1], none of 1; (when called) a fidelity below the lowest level.
    """

    table: Table
    columns: Mapping[str, Mapping[float, str]]

    def __post_init__(self) -> None:
        for metric, levels in self.columns.items():
            if 1 not in levels or not all(0 < level <= 1 for level in levels):
                raise InputError(f"{metric} has columns of the levels {sorted(levels)}: give shares up to 1, and one of 1.")
            for name in levels.values():
                self.table.column(name)

    def __call__(self, ask: Ask, /) -> Metrics:
        k, found = self.table.row(ask.arch), dict[str, float]()
        for metric, levels in self.columns.items():
            able = [level for level in levels if level <= ask.fidelity]
            if not able:
                raise InputError(f"{metric} has no column of fidelity {ask.fidelity:g} or less: ask for {min(levels):g} or more.")
            found[metric] = float(self.table.columns[levels[max(able)]].values[k])
        return {name: value for name, value in found.items() if not np.isnan(value)}


# --------------------------------------------------------------------------------------------------------------- reading
def load(path: str | Path) -> Table:
    """Reads a table.

    Raises:
        InputError: no such file, a damaged one, or one without the arrays of its format.
    """
    path = Path(path)
    if path.suffix != ".npz":
        path = path.with_name(path.name + ".npz")
    read = KNOWN.get(path.stem, _own)
    return read(path)


def arrays(path: Path, needed: Sequence[str] = ()) -> Arrays:
    """The arrays of a file.

    Raises:
        InputError: it is missing or damaged, holds pickles, or lacks one that is needed.
    """
    if not path.is_file():
        raise InputError(f"table {str(path)!r} does not exist: give the folder of the tables with --tables or NASOPT_TABLES.")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as problem:
        raise InputError(f"table {str(path)!r} is damaged or no .npz file without pickles ({problem}): get it again.") from None
    for name in needed:
        if name not in found:
            raise InputError(f"table {str(path)!r} has no array {name!r}: get it again.")
    return found


def _columns(path: Path, found: Arrays, n: int, names: Sequence[str], unit: str = "", minimise: bool = True) -> dict[str, Column]:
    columns = {}
    for name in names:
        if found[name].shape != (n,):
            raise InputError(f"array {name!r} of {str(path)!r} has shape {found[name].shape} instead of ({n},): get it again.")
        columns[name] = Column(found[name].astype(float), unit, minimise)
    return columns


def _own(path: Path) -> Table:
    found = arrays(path, ("space", "archs"))
    try:
        space, about = spaces.from_json(json.loads(str(found["space"]))), json.loads(str(found.get("about", "{}")))
        rows = found["archs"].astype(np.int64)
        for arch in spaces.layout(space).archs(rows):
            spaces.check(space, arch)
    except (ValueError, KeyError, TypeError, IndexError) as problem:
        raise InputError(f"table {str(path)!r} does not describe its space and architectures ({problem}): "
                         "write them as the documentation of nasopt.benchmarks.tables says.") from None
    names = [name for name in found if name not in ("space", "archs", "about")]
    columns = _columns(path, found, len(rows), names)
    return Table(path.stem, space, rows, {name: Column(c.values, **about.get(name, {})) for name, c in columns.items()})


def _nb201(path: Path) -> Table:
    from nasopt.spaces.nb201 import OPERATIONS, SPACE

    found = arrays(path, ("ops", "op_names", "test200_c10"))
    own = [name.decode() for name in found["op_names"]]
    if sorted(own) != sorted(OPERATIONS) or found["ops"].shape != (len(OPERATIONS)**6, 6):
        raise InputError(f"table {str(path)!r} is not that of NAS-Bench-201: get it again.")
    rows = np.array([OPERATIONS.index(name) for name in own])[found["ops"]]
    n = len(rows)
    accuracy = [k for k in found if k.startswith(("test", "val", "split"))]
    columns = _columns(path, found, n, accuracy, "%", minimise=False)
    columns |= _columns(path, found, n, [k for k in found if k.startswith("params_m")], "M")
    columns |= _columns(path, found, n, [k for k in found if k.startswith("flops_m")], "M")
    beside: dict[str, Callable[[str], tuple[str, bool]]] = {
        "nb201_hwnasbench": lambda k: ("mJ" if "energy" in k else "ms", True),
        "nb201_latency_help": lambda k: ("ms", True),
        "nb201_latency_latbench": lambda k: ("ms", True),
        "nb201_zerocost": lambda k: ("s" if k.endswith("time_s") else "", k.endswith("time_s")),
    }
    for stem, kind in beside.items():
        if path.with_name(f"{stem}.npz").is_file():
            columns |= _beside(path.with_name(f"{stem}.npz"), n, kind)
    return Table("nb201", SPACE, rows.astype(np.int64), columns)


def _beside(path: Path, n: int, kind: Callable[[str], tuple[str, bool]]) -> dict[str, Column]:
    """Columns of a file that has the rows of another table."""
    found, columns = arrays(path), dict[str, Column]()
    for name in found:
        if name == "ops" or name.startswith("oneproxy"):
            continue
        (column,) = _columns(path, found, n, [name], *kind(name)).values()
        values = column.values
        if name.endswith("edgetpu_latency"):  # -1: it cannot be deployed there
            columns[name.replace("latency", "undeployable")] = Column((values < 0).astype(float))
            values = np.where(values < 0, np.nan, values)
        failed = np.isinf(values) | (values <= -1e8)  # how the sources mark a proxy that failed
        columns[name] = Column(np.where(failed, np.nan, values), column.unit, column.minimise)
    return columns


def _nbmacro(path: Path) -> Table:
    found = arrays(path, ("arch", "test_acc", "params", "flops"))
    rows = found["arch"].astype(np.int64)
    space = Product("", [Choice(f"layer {k}", ("identity", "mbconv_3x3_e3", "mbconv_5x5_e6")) for k in range(rows.shape[1])])
    columns = _columns(path, found, len(rows), ["params", "flops"])
    columns["test_acc"] = Column(found["test_acc"].mean(axis=1).astype(float), "%", minimise=False)
    columns |= {f"test_acc_seed{k}": Column(found["test_acc"][:, k].astype(float), "%", minimise=False)
                for k in range(found["test_acc"].shape[1])}
    return Table("nbmacro_c10", space, rows, columns)


def _fbnet(path: Path) -> Table:
    found = arrays(path, ("arch", "op_names"))
    rows, names = found["arch"].astype(np.int64), [name.decode() for name in found["op_names"]]
    space = Product("", [Choice(f"layer {k}", names) for k in range(rows.shape[1])])
    return Table("fbnet_latency", space, rows,
                 _columns(path, found, len(rows), [k for k in found if k not in ("arch", "op_names")], "ms"))


KNOWN: Mapping[str, Callable[[Path], Table]] = {"nb201": _nb201, "nbmacro_c10": _nbmacro, "fbnet_latency": _fbnet}
"""Published tables by the stem of their file: NAS-Bench-201 with the hardware columns of HW-NAS-Bench, HELP and LatBench and the
zero-cost proxies that lie beside it, NAS-Bench-Macro, and the latencies of FBNet's space."""
