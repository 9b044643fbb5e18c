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
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nasopt import graphs
from nasopt import space as spaces
from nasopt.errors import InputError, unknown
from nasopt.space import Arch, Choice, Graph, Layout, Product, Rows, Space
from nasopt.trial import Ask, Constraint, Metrics, Objective, Problem, nondominated

Floats = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]

CHUNK = 8192
"""Architectures that are named together."""


@dataclass(frozen=True, eq=False)
class Column:
    """One quantity of every architecture: values (n,), its unit, and whether small ones are good. NaN: there is none."""

    values: Floats
    unit: str = ""
    minimise: bool = True


@dataclass(frozen=True, eq=False)
class Table:
    """Architectures and what was measured of them. Of several that differ in isomorphic graphs alone, and of equal ones, the
    first counts.

    Attributes:
        name: what it is called in results.
        space: where they are from; it may hold more than the table does.
        archs: the architectures as rows of the space's layout, (n, columns), of any integer type.
        columns: what is known of them.
    """

    name: str
    space: Space
    archs: NDArray[np.signedinteger[Any]]
    columns: Mapping[str, Column]
    _names: graphs.Hashes = field(init=False, repr=False)
    _order: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        names = _names(spaces.layout(self.space), self.archs)
        object.__setattr__(self, "_names", names)
        object.__setattr__(self, "_order", names.argsort(kind="stable"))

    def _find(self, names: graphs.Hashes) -> NDArray[np.int64]:
        """The places of architectures by their names, (n,); -1: the table does not hold them."""
        at = np.searchsorted(self._names, names, sorter=self._order)
        places = self._order[np.minimum(at, len(self._order) - 1)]
        return np.where(self._names[places] == names, places, -1)

    def row(self, arch: Arch) -> int:
        """The place of an architecture.

        Raises:
            InputError: the table does not hold it.
        """
        lay = spaces.layout(self.space)
        place = int(self._find(_names(lay, lay.rows([arch])))[0])
        if place < 0:
            raise InputError(f"{self.name} does not hold the architecture {spaces.labels(self.space, arch)}: "
                             "search among those that it holds.")
        return place

    def hints(self, names: Sequence[str]) -> Callable[[Rows], Floats]:
        """The named columns of rows of the space's layout, (n, names), for strategies that know them beforehand; NaN where the
        table does not hold an architecture.

        Raises:
            InputError: an unknown column.
        """
        lay, values = spaces.layout(self.space), np.stack([self.column(name).values for name in names], axis=1)

        def look(rows: Rows) -> Floats:
            places = self._find(_names(lay, rows))
            return np.where(places[:, None] < 0, np.nan, values[places])

        return look

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
        """Which architectures are found under their canonical form, (n,)."""
        lay = spaces.layout(self.space)
        names = _names(lay, lay.canonical(self.archs.astype(np.int64))) if lay.cells else self._names  # graphs have one name each
        return np.asarray(self._find(names) == np.arange(len(names)))


def _names(layout: Layout, rows: NDArray[np.signedinteger[Any]]) -> graphs.Hashes:
    """A 64-bit hash of every architecture, (n,), of its graphs' isomorphism classes and all other options."""
    names = np.empty(len(rows), dtype=np.uint64)
    inside = [k for w in layout.graphs for k in w.edges + w.ops]
    rest = [k for k in range(len(layout.genes)) if k not in inside]
    for start in range(0, len(rows), CHUNK):
        some = layout.silence(rows[start:start + CHUNK].astype(np.int64))
        parts = [*some[:, rest].astype(np.uint64).T, *(graphs.hashes(w.wires(some), some[:, w.ops]) for w in layout.graphs)]
        name = np.zeros(len(some), dtype=np.uint64)
        for part in parts:
            name = graphs.mix(name ^ part)
        names[start:start + CHUNK] = name
    return names


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
    path = file_of(Path(path))
    read = KNOWN.get(path.stem, _own)
    return read(path)


def file_of(path: Path) -> Path:
    """The file of a table whose name may lack ``.npz``."""
    return path if path.suffix == ".npz" else path.with_name(path.name + ".npz")


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
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as problem:
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
        lay, rows = spaces.layout(space), found["archs"].astype(np.int64)
        if rows.shape[1:] != (len(lay.genes),):
            raise ValueError(f"archs have shape {rows.shape}, but the space has {len(lay.genes)} choices")
        for arch in lay.archs(rows):
            spaces.check(space, arch)
        columns = _columns(path, found, len(rows), [name for name in found if name not in ("space", "archs", "about")])
        if strange := sorted(set(about) - set(columns)):
            raise ValueError(f"it says something about {strange[0]!r}, which is none of its columns")
        columns = {name: Column(c.values, **about.get(name, {})) for name, c in columns.items()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as problem:
        if isinstance(problem, InputError):
            raise
        raise InputError(f"table {str(path)!r} does not describe its space and architectures ({problem}): "
                         "write them as the documentation of nasopt.benchmarks.tables says.") from None
    return Table(path.stem, space, rows, columns)


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


NB101 = Graph("", 7, ("conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3"), 9)
"""The space of NAS-Bench-101 (Ying et al., ICML 2019): 423,624 networks."""


def _nb101(path: Path) -> Table:
    """``test108`` is the mean accuracy of three trainings of 108 epochs on the **test** images: a search that sees it is an
    oracle and only to be compared with others that do."""
    found = arrays(path, ("num_vertices", "adj_bits", "adj_bit_pos", "ops", "op_names", "test108_mean", "test108_denominator"))
    n, nodes = len(found["ops"]), NB101.nodes
    own = [name.decode() for name in found["op_names"]]
    if sorted(own) != sorted(NB101.operations) or found["ops"].shape != (n, nodes - 2) or found["adj_bits"].shape != (n,):
        raise InputError(f"table {str(path)!r} is not that of NAS-Bench-101: get it again.")
    wires = np.zeros((n, nodes, nodes), dtype=bool)
    for bit, (i, j) in enumerate(found["adj_bit_pos"]):
        last = found["num_vertices"] - 1 == j  # a smaller cell's output becomes the last vertex
        wires[np.arange(n), i, np.where(last, nodes - 1, j)] |= (found["adj_bits"] >> bit & 1).astype(bool)
    ops = np.array([NB101.operations.index(name) for name in own])[np.maximum(found["ops"], 0)]
    columns = {"test108": Column(100.0 * found["test108_mean"] / found["test108_denominator"], "%", minimise=False)}
    columns |= _columns(path, found, n, ["params"]) | _columns(path, found, n, ["macs_m"], "M")
    if (beside := path.with_name("nb101_energy_ec.npz")).is_file():
        energy, measured = np.full(n, np.nan), arrays(beside, ("nb101_index", "energy_kwh"))
        energy[measured["nb101_index"]] = measured["energy_kwh"]
        columns["energy_kwh"] = Column(energy, "kWh")
    return Table("nb101", NB101, np.hstack([graphs.flags_of(wires), ops]).astype(np.int8), columns)


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


KNOWN: Mapping[str, Callable[[Path], Table]] = {"nb101": _nb101, "nb201": _nb201, "nbmacro_c10": _nbmacro,
                                                "fbnet_latency": _fbnet}
"""Published tables by the stem of their file: NAS-Bench-101 (test accuracies only) with the training energies of EC-NAS (ICASSP
2024; 4,310 networks) if they lie beside it, NAS-Bench-201 with the hardware columns of HW-NAS-Bench, HELP and LatBench and the
zero-cost proxies that lie beside it, NAS-Bench-Macro, and the latencies of FBNet's space."""
