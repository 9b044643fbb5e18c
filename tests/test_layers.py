"""The rooms: imports point down, and never in a circle. Every module must have its room here before it can be used."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "nasopt"

LEVELS = (
    ("space", "trial", "protocols", "seed", "errors", "files", "goals", "machine", "graphs"),
    ("nets", "cost", "analysis", "testing", "surrogates"),
    ("spaces", "tasks", "benchmarks"),
    ("strategies", "estimators"),
    ("run", "report"),
    ("pipeline", "job", "bench", "compare"),
    ("cli", "__main__"),
)
LEVEL: Mapping[str, int] = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
ONLY_L0 = ("cost", "analysis", "testing", "run")
"""Rooms that may import themselves and L0, whatever their level."""


FACE = ("nasopt", "nasopt.job")
"""The one import of an ``__init__``: the package forwards ``nasopt.search`` to the job when it is first asked for."""


def room(module: str) -> str:
    """The room of ``nasopt.room.leaf``; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


def modules(root: Path) -> dict[str, Path]:
    """The name and file of every module below ``root``, the folder of the package nasopt."""
    found = {}
    for file in sorted(root.rglob("*.py")):
        parts = ("nasopt", *file.relative_to(root).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(name: str, file: Path) -> Iterator[str]:
    """Every module named by an import statement of a file, wherever it is; `a` and `a.b` for ``from a import b``."""
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def arrows(root: Path) -> dict[str, set[str]]:
    """Which modules of the package each module imports (the package's own empty roof left out)."""
    known = modules(root)
    return {name: {m for m in imported(name, file) if m in known} - {name, "nasopt"} for name, file in known.items()}


def faults(root: Path) -> list[str]:
    """Every breach of the layering below ``root``, as a sentence."""
    graph = arrows(root)
    out = [f"{m} has no room: place it in LEVELS" for m in graph if room(m) and room(m) not in LEVEL]
    for source, targets in graph.items():
        out += [f"{source} imports {t} upwards" for t in sorted(targets) if not allowed(room(source), room(t))]
    out += [f"{name}/__init__.py imports {t}" for name, file in modules(root).items() if file.name == "__init__.py"
            for t in sorted(graph[name]) if (name, t) != FACE]
    circle = cycle(graph)
    return [*out, *([f"imports in a circle: {' -> '.join(circle)}"] if circle else [])]


def allowed(source: str, target: str) -> bool:
    """Whether an arrow between two rooms points down or sideways, and not out of a room that knows L0 alone."""
    if source not in LEVEL or target not in LEVEL:
        return True  # reported as a module without a room
    return source == target or LEVEL[target] == 0 or (source not in ONLY_L0 and LEVEL[target] <= LEVEL[source])


def cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """One circle in the graph, or []: depth first, a node met again on the way down closes one."""
    done: set[str] = set()

    def down(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node):], node]
        if node in done:
            return []
        for target in sorted(graph[node]):
            found = down(target, [*path, node])
            if found:
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := down(node, []))), [])


def test_the_package_is_layered() -> None:
    assert faults(SOURCE) == []


def test_level_0_needs_numpy_only() -> None:
    import sys

    for name, file in modules(SOURCE).items():
        if LEVEL.get(room(name)) == 0:
            tops = {m.split(".")[0] for m in imported(name, file)} - {"nasopt", "numpy", "__future__"}
            assert tops <= sys.stdlib_module_names, name


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


GOOD = {"__init__.py": "", "space.py": "", "trial.py": "from nasopt.space import Space", "nets/__init__.py": "",
        "nets/ops.py": "import torch", "nets/build.py": "from nasopt.nets.ops import relu\nfrom . import ops",
        "run/__init__.py": "", "run/search.py": "from ..trial import Study", "job.py": "from nasopt import run, space"}


def test_a_good_tree_has_no_fault(tmp_path: Path) -> None:
    assert faults(tree(tmp_path, GOOD)) == []
    assert arrows(tmp_path)["nasopt.nets.build"] == {"nasopt.nets", "nasopt.nets.ops"}
    assert arrows(tmp_path)["nasopt.run.search"] == {"nasopt.trial"}


@pytest.mark.parametrize(("file", "text", "fault"), [
    ("space.py", "import nasopt.nets.ops", "nasopt.space imports nasopt.nets.ops upwards"),
    ("nets/ops.py", "def f():\n    from nasopt import job", "nasopt.nets.ops imports nasopt.job upwards"),
    ("nets/ops.py", "from ..run.search import go", "nasopt.nets.ops imports nasopt.run.search upwards"),
    ("run/search.py", "from nasopt.nets import ops", "nasopt.run.search imports nasopt.nets.ops upwards"),
    ("cost/clock.py", "import nasopt.nets.ops", "nasopt.cost.clock imports nasopt.nets.ops upwards"),
    ("space.py", "from .trial import Ask", "imports in a circle: nasopt.space -> nasopt.trial -> nasopt.space"),
    ("novel.py", "", "nasopt.novel has no room"),
    ("nets/__init__.py", "from nasopt.nets.ops import relu", "nasopt.nets/__init__.py imports nasopt.nets.ops"),
])
def test_a_bad_tree_is_found_out(tmp_path: Path, file: str, text: str, fault: str) -> None:
    found = faults(tree(tmp_path, {**GOOD, file: text}))
    assert any(line.startswith(fault) for line in found), found
