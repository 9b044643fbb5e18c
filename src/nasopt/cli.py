"""The command line: parse, call, print. The work is done in `nasopt.job`, texts are read by `nasopt.goals`."""

from __future__ import annotations

import json
import os
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import click
import typer
from rich.console import Console
from rich.table import Table

from nasopt import __version__, goals
from nasopt.errors import InputError, unknown

if TYPE_CHECKING:
    from nasopt.analysis.bilevel import Report, Row
    from nasopt.analysis.comparison import Comparison
    from nasopt.bench import Bench
    from nasopt.job import Run

app = typer.Typer(
    add_completion=False, no_args_is_help=True, suggest_commands=False, pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Multi-objective neural architecture search: from your data and this device to a Pareto front of trained, "
         "measured, exported networks.\n\nStart with: [bold]nasopt search[/bold]",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 done, 1 no trained network is on the front, 2 bad input or nothing to
    train, 130 interrupted."""
    try:
        result = app(args=None if argv is None else list(argv), prog_name="nasopt", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError:
        return 2
    except click.ClickException as problem:
        return _refuse(f"{problem.format_message()} See 'nasopt --help'.")
    except click.Abort:
        return 130
    except InputError as problem:
        return _refuse(str(problem))
    return result if isinstance(result, int) else 0


def _refuse(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 2


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nasopt {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True,
                                          help="Print the version and exit.")] = False,
) -> None:
    pass


# --------------------------------------------------------------------------------------------------- configuration file
def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Makes the file's entries the defaults of the command, so that options on the command line override them."""
    if path is not None:
        valid = [p.name for p in context.command.params if p.name not in (None, "config", "help")]
        context.default_map = load_config(path, [name for name in valid if name])
    return path


def load_config(path: Path, valid: Sequence[str]) -> dict[str, str | list[str]]:
    """The entries of a TOML file as the texts that the command line would have got.

    Raises:
        InputError: the file cannot be read, is not TOML, or holds a key that is not ``valid`` or a table.
    """
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise InputError(f"configuration file {str(path)!r} cannot be read ({problem.strerror}): name an existing "
                         "TOML file.") from None
    except ValueError as problem:
        raise InputError(f"configuration file {str(path)!r} is not TOML ({problem}): write lines like "
                         "budget = \"30m\".") from None
    for key in entries:
        if key not in valid:
            raise unknown(f"key in {path.name}:", key, valid)
    return {key: _as_text(path, key, value) for key, value in entries.items()}


def _as_text(path: Path, key: str, value: Any) -> str | list[str]:
    several = key in ("constraint", "target")
    values = value if several and isinstance(value, list) else [value]
    if not all(isinstance(v, str | int | float) for v in values):
        wanted = "a text or a list of texts" if several else "a text or a number"
        raise InputError(f"{key!r} in {path.name} must be {wanted}, got {value!r}.")
    texts = [str(v) for v in values]
    return texts if several else texts[0]


# ---------------------------------------------------------------------------------------------------------- commands
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, e.g. runs/digits.")]
Spaces = Literal["cells", "nb201", "darts", "fast", "fast-wide"]
"""The names in `nasopt.pipeline.setup`, which is too heavy to load for a help text."""
Strategies = Literal["asha", "forest", "gp", "gp-lcb", "gp-ts", "hybrid", "hyperband", "local", "nsga2", "nsga3",
                     "optuna-cmaes", "optuna-gp", "optuna-nsga2", "optuna-nsga3", "optuna-tpe", "progressive", "random", "rea"]
Gradients = Literal["beta_darts", "darts1", "darts2", "darts_minus", "darts_pt", "drnas", "fair_darts", "gdas", "idarts",
                    "nasopt", "pcdarts", "pdarts", "rdarts", "sdarts", "sdarts_adv", "snas"]
"""The names in `nasopt.strategies.catalogue`, which is too heavy to load for a help text."""
Html = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the comparison there, one page that opens offline.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print only the result: no log lines, no progress bar.")]

SEARCH_EPILOG = """Examples:

nasopt search --data digits --budget 200s

nasopt search --data photos/ --objectives error,latency,memory --constraint "latency<=2ms" --budget 30m

nasopt search --data cifar-10-batches-bin --space fast --target "error<=6%" --budget 2h

nasopt search --data set.npz --space nb201 --strategy random --trials 50 --out runs/baseline
"""


@app.command(epilog=SEARCH_EPILOG)
def search(
    data: Annotated[str, typer.Option(help="What to learn: 'digits' (built in), a folder with one sub-folder of images "
                                           "per class, a CIFAR-10 folder, or an .npz file with x and y.")] = "digits",
    space: Annotated[Spaces, typer.Option(
        help="Which networks to choose from: cells (hierarchical), nb201 (NAS-Bench-201's), darts (large), fast (plain ones that "
             "train fast), fast-wide (up to twice as wide, for a GPU).")] = "cells",
    objectives: Annotated[str, typer.Option(
        help="What to minimise, with commas: error (always), latency, latency_onnx, memory, params, flops, size. Latencies are "
             "of one image on one thread of this machine's CPU.",
    )] = "error,latency,memory",
    constraint: Annotated[list[str] | None, typer.Option(
        metavar="BOUND", help="An upper bound with its unit, such as 'latency<=2ms', 'params<=1M' or 'memory<=800KB' "
                              "(quote it; may be given several times).")] = None,
    budget: Annotated[str, typer.Option(
        metavar="TIME", help="Time for search and training, everything included: 90s, 30m, 1h30m.")] = "200s",
    target: Annotated[list[str] | None, typer.Option(
        metavar="BOUND", help="End as soon as a trained network meets this on validation data, such as 'error<=6%' (several: one "
                              "network must meet all). All is for that: the search minimises the error to be expected and costs "
                              "that are bounded here; no random search, no hand-designed networks beside.",
    )] = None,
    trials: Annotated[int | None, typer.Option(
        min=1, metavar="N", help="Search at most this many networks.")] = None,
    networks: Annotated[int, typer.Option(
        min=1, metavar="N", help="Train at most this many networks of the search's front.")] = 10,
    strategy: Annotated[Literal[Strategies, Gradients, "hybrid-gradient", "preference"], typer.Option(
        help="How to search: a portfolio of others (hybrid; hybrid-gradient, with gradients among them); Bayesian optimisation "
             "(gp, gp-lcb, gp-ts, forest); evolution (nsga2, nsga3, rea); Optuna's samplers (pip install 'nasopt\\[optuna]'); "
             "local search; a space that grows and loses bad options (progressive); more effort for the better ones of random "
             "ones (asha, hyperband); by gradients of a relaxed network (darts1 and the other methods of its family; preference, "
             "one network for all trade-offs); at random.",
    )] = "hybrid",
    min_gain: Annotated[str | None, typer.Option(
        metavar="SHARE", help="End the search early, when the next tenth of its networks is expected to add less than this to "
                              "the hypervolume, such as 1%; the final trainings get the time.")] = None,
    device: Annotated[str, typer.Option(
        help="Where networks are trained: cpu, cuda, cuda:1, ... Costs are the CPU's. By gradients: cpu only.")] = "cpu",
    mirror: Annotated[bool, typer.Option(
        "--mirror", help="Networks answer with the mean for an image and for its mirror image: less error at twice the latency. "
                         "For images that are mirrored in training: colour images of 16 pixels and more.")] = False,
    image_size: Annotated[str | None, typer.Option(
        metavar="PIXELS", help="Resize the images of a folder to this: 64, or 48x64 (height, width).")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where the run is kept. Default: runs/NAME after "
                                                                    "the data.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Two runs with one seed propose the same networks in the same order "
                                                  "as long as they measure the same.")] = 0,
    config: Annotated[Path | None, typer.Option(
        is_eager=True, callback=_read_config, metavar="FILE.toml",
        help="A TOML file of these options (budget = \"30m\", constraint = [\"latency<=2ms\"]); options on the command "
             "line override it.")] = None,
    quiet: Quiet = False,
) -> None:
    """Search for networks, train the best, and write the front, its report and its files to a folder."""
    aims = goals.parse_objectives(objectives)
    bounds = tuple(goals.parse_constraint(text) for text in constraint or ())
    ends = tuple(goals.parse_constraint(text, "target") for text in target or ())
    seconds = goals.parse_duration(budget)
    size = None if image_size is None else goals.parse_size(image_size)
    folder = Path("runs", Path(data).resolve().stem) if out is None else out

    from nasopt import job

    with _resumable(folder):
        run = job.search(data, space=space, objectives=aims, constraints=bounds, budget=seconds, target=ends, trials=trials,
                         strategy=strategy, networks=networks, min_gain=min_gain, device=device, mirror=mirror, image_size=size,
                         out=folder, seed=seed, log=_log(quiet), progress=_progress(quiet))
    _show(run, folder)


@app.command(epilog="Example: nasopt resume runs/digits")
def resume(run: RunFolder, quiet: Quiet = False) -> None:
    """Go on with a search that was interrupted, from the last result that was stored; a training from its last checkpoint."""
    from nasopt import job

    with _resumable(run):
        resumed = job.resume(run, log=_log(quiet), progress=_progress(quiet))
    _show(resumed, run)


@app.command(epilog="Example: nasopt report runs/digits")
def report(run: RunFolder) -> None:
    """Write the report of a run, one HTML file that needs nothing else, and print where it is."""
    from nasopt import job

    typer.echo(job.report(run))


@app.command(epilog="Example: nasopt export runs/digits 3fa9 --format onnx --to net.onnx")
def export(
    run: RunFolder,
    network: Annotated[str, typer.Argument(metavar="ID", help="A trained network, as the search's table and the report name it, "
                                                              "or the beginning of its name.")],
    to: Annotated[Path, typer.Option(metavar="FILE", help="The file to write.")],
    kind: Annotated[Literal["onnx", "torch"], typer.Option(
        "--format", help="onnx (for ONNX Runtime and others) or torch (a program that plain PyTorch loads).")] = "onnx",
) -> None:
    """Write one trained network of a run to a file that loads without nasopt."""
    from nasopt import job

    typer.echo(job.export(run, network, kind, to))


TUNE_EPILOG = """Examples:

nasopt tune runs/digits 3fa9

nasopt tune runs/digits 3fa9 --budget 20m --objectives error,seconds
"""


@app.command(epilog=TUNE_EPILOG)
def tune(
    run: RunFolder,
    network: Annotated[str, typer.Argument(metavar="ID", help="A trained network, as the search's table and the report name "
                                                              "it.")],
    budget: Annotated[str, typer.Option(metavar="TIME", help="Time for everything: 90s, 30m, 1h30m.")] = "5m",
    trials: Annotated[int | None, typer.Option(min=1, metavar="N", help="Try at most this many settings.")] = None,
    objectives: Annotated[str, typer.Option(help="What to minimise, with commas: error (validation), seconds (of the "
                                                 "training).")] = "error",
    quiet: Quiet = False,
) -> None:
    """Tune how one network is trained: learning rates, epochs, augmentation, ... (with Optuna; the same command goes on)."""
    from nasopt import job

    with _resumable(run, "go on with the same command."):
        found = job.tune(run, network, budget=goals.parse_duration(budget), trials=trials, objectives=objectives,
                         log=_log(quiet), progress=_progress(quiet))
    _show_tuning(found, run)


BENCH_EPILOG = """Examples:

nasopt bench nb201 --objective test200_c10 --strategy random,local,rea --queries 200 --seeds 20

nasopt bench nb201 --objective split25k_test200_c10_1seed --report test200_c10 --seeds 20 --json runs.json

nasopt bench lotz --strategy nsga2 --queries 5000

nasopt bench lotz --strategy nsga2,random --queries 2000 --seeds 20 --html lotz.html

nasopt bench complexity
"""


@app.command(epilog=BENCH_EPILOG)
def bench(
    context: typer.Context,
    table: Annotated[str, typer.Argument(
        metavar="TABLE", help="A file of the tables' folder, such as nb201, or a synthetic problem: oneminmax, oneminmax3, lotz, "
                              "dtlz2. The word complexity: count what the strategies and their parts cost.")],
    strategy: Annotated[str, typer.Option(metavar="NAME[,NAME...]",
                                          help=", ".join(get_args(Strategies)) + ". Default: hybrid.")] = "",
    objective: Annotated[str, typer.Option(metavar="COLUMN[,COLUMN...]", help="What the search sees and optimises.")] = "",
    hint: Annotated[str, typer.Option(metavar="COLUMN[,COLUMN...]",
                                      help="What is known of every network for nothing, such as zero-cost proxies; for forest, "
                                           "gp, gp-lcb, gp-ts and hybrid, others leave it aside.")] = "",
    report_: Annotated[str, typer.Option("--report", metavar="COLUMN[,COLUMN...]",
                                         help="Columns to write down beside, which no strategy sees.")] = "",
    constraint: Annotated[list[str] | None, typer.Option(
        metavar="BOUND", help="An upper bound on a column in its own unit: 'c10__raspi4_latency<=20'.")] = None,
    queries: Annotated[int, typer.Option(min=1, metavar="N", help="Evaluations a search.")] = 200,
    until_optimum: Annotated[bool, typer.Option(
        "--until-optimum", help="End a search of one objective at the query that finds the optimum.")] = False,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Searches of each strategy, seeds 0 to N-1.")] = 10,
    jobs: Annotated[int | None, typer.Option(min=1, metavar="N", help="Processes at once (default: one a core).")] = None,
    folder: Annotated[Path, typer.Option("--tables", metavar="FOLDER", envvar="NASOPT_TABLES",
                                         help="Where the tables are.")] = Path("tables"),
    json_: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write every trial of every search there.")] = None,
    html: Html = None,
) -> None:
    """Compare search strategies on a table of trained networks or on a problem with a known answer."""
    if table == "complexity":
        _show_complexity(context)
        return
    from nasopt import bench as benches
    from nasopt.strategies.catalogue import DEFAULT

    def names(text: str) -> tuple[str, ...]:
        return tuple(name.strip() for name in text.split(",") if name.strip())

    bounds = tuple(goals.parse_bound(text) for text in constraint or ())
    task = benches.Task(table, str(folder), names(objective), names(report_), bounds, names(hint), until_optimum)
    _check_files(json_, html)
    if html is not None and seeds < 2:
        raise InputError("one seed is no comparison of strategies: leave out --html, or run at least 2 seeds, 6 for a test.")
    chosen = names(strategy) or (DEFAULT,)
    ready = benches.prepare(task)
    started = time.perf_counter()
    runs = benches.run(task, chosen, queries, range(seeds), jobs)
    record = benches.record(task, chosen, queries, runs, time.perf_counter() - started)
    if json_ is not None:
        json_.write_text(json.dumps(record) + "\n", encoding="utf-8")
    _show_bench(ready, runs, queries)
    if html is not None or len(chosen) > 1:
        from nasopt import compare as comparing

        _show_comparison(comparing.compare([comparing.parse(record, "this run")]), html)


COMPARE_EPILOG = """Examples:

nasopt compare runs.json --html runs.html

nasopt compare cifar10.json cifar100.json imagenet16.json --control random

nasopt compare runs.json --rope 0.1
"""


@app.command(epilog=COMPARE_EPILOG)
def compare(
    files: Annotated[list[Path], typer.Argument(
        metavar="FILE...", help="Records that nasopt bench --json wrote, of one problem or of several.")],
    html: Html = None,
    json_: Annotated[Path | None, typer.Option(
        "--json", metavar="FILE", help="Write every number of the comparison there.")] = None,
    control: Annotated[str, typer.Option(
        metavar="NAME", help="Compare the other strategies with this one only, which has more power than all pairs.")] = "",
    rope: Annotated[float | None, typer.Option(
        metavar="X", help="Half the width of the region of practical equivalence, in the unit of the objective (of several "
                          "objectives: as a share of the hypervolume): asks the Bayesian signed-rank test too.")] = None,
) -> None:
    """Compare recorded runs of search strategies, with the tests that their design allows."""
    from nasopt import compare as comparing

    _check_files(json_, html)
    found = comparing.compare([comparing.read(path) for path in files], control, rope)
    if json_ is not None:
        json_.write_text(json.dumps(found.to_json(), allow_nan=False) + "\n", encoding="utf-8")
    _show_comparison(found, html)


CERTIFY_EPILOG = """Examples:

nasopt certify

nasopt certify --instances 1000 --seed 1 --json table.json

nasopt certify runs/a runs/b --json certificate.json
"""


@app.command(epilog=CERTIFY_EPILOG)
def certify(
    context: typer.Context,
    runs: Annotated[list[Path] | None, typer.Argument(
        metavar="[RUN]...", help="Folders of runs of one gradient strategy (darts1, ...) that differ in their seeds. Without "
                                 "any: the problems with closed forms.")] = None,
    instances: Annotated[int, typer.Option(min=1, metavar="N", help="Random problems to check the potential's bound on.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of the random problems.")] = 0,
    json_: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write every number there.")] = None,
) -> None:
    """Check what is proven of gradient-based search on bilevel problems with closed forms: rates, biases, bounds. Of runs: what
    may be said about their convergence."""
    _check_files(json_)
    if runs:
        _only(context, "certify RUN", "runs", "json_")
        from nasopt.pipeline import certify as certifying

        certified = certifying.certify(runs)
        if json_ is not None:
            json_.write_text(json.dumps(certified.to_json(), allow_nan=False) + "\n", encoding="utf-8")
        typer.echo(certified.text())
        return
    from nasopt.analysis import bilevel

    found = bilevel.report(instances, seed)
    if json_ is not None:
        json_.write_text(json.dumps(found.to_json(), allow_nan=False) + "\n", encoding="utf-8")
    _show_family(found)


def _only(context: typer.Context, command: str, *names: str) -> None:
    """Raises InputError if the command line gives an option but these."""
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name not in names and source is click.core.ParameterSource.COMMANDLINE:
            raise InputError(f"{command} takes no {option.opts[0]}: leave it out.")


def _check_files(plain: Path | None, page: Path | None = None) -> None:
    """Raises InputError before any work if a file cannot be written where it should; a ``page`` is put in its place whole."""
    for file in (plain, page):
        if file is None:
            continue
        folder = file.resolve().parent
        if not os.path.isdir(folder):
            raise InputError(f"the folder of {str(file)!r} does not exist: make it, or write elsewhere.")
        if os.path.isdir(file):
            raise InputError(f"{str(file)!r} is a folder: give the name of a file in it.")
        if not os.access(file if file is plain and os.path.exists(file) else folder, os.W_OK):
            raise InputError(f"{str(file)!r} may not be written: change its permissions, or write elsewhere.")


# ---------------------------------------------------------------------------------------------------------- printing
def _show_bench(ready: Bench, records: Sequence[Mapping[str, Any]], queries: int) -> None:
    from nasopt import bench as benches

    at = sorted({q for q in (25, 50, 100, 200, 500, 1000) if q < queries} | {queries})
    rows = benches.summary(ready.problem, records, ready.front, at)
    aim = ready.problem.objectives[0]
    single = len(ready.problem.objectives) == 1
    title = f"best {aim.name} so far" if single else "hypervolume, share of the true front's"
    sign = 1 if not single or aim.minimise else -1
    table = Table("strategy", "seeds", "ms a query", *(["queries to the optimum: median", "95 %", "found"] if single else []),
                  *(f"after {q}" for q in at), title=f"{title}: interquartile mean [95 % interval]", title_justify="left")
    for row in rows:
        optimum = [f"{row['optimum'][0]:g}", f"{row['optimum'][1]:g}", f"{100 * row['optimum'][2]:.0f} %"] if single else []
        cells = [f"{sign * i.value:.4g} [{min(sign * i.low, sign * i.high):.4g}, {max(sign * i.low, sign * i.high):.4g}]"
                 for i in row["at"].values()]
        table.add_row(row["strategy"], str(row["seeds"]), f"{1e3 * row['seconds']:.2f}", *optimum, *cells)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _show_comparison(found: Comparison, html: Path | None) -> None:
    from nasopt.report import terminal

    Console(width=None if sys.stdout.isatty() else 200).print(terminal.tables(found))
    if html is not None:
        from nasopt.report import compare as page

        page.write(found, html)
        typer.echo(f"report: {html}")


def _show_complexity(context: typer.Context) -> None:
    _only(context, "bench complexity", "table")
    from nasopt.analysis.complexity import TOLERANCE, Bound, Slope
    from nasopt.strategies import complexity

    def cells(bound: Bound, found: Slope | None) -> list[str]:
        if found is None:
            return [bound.text, "not counted", "–"]
        return [bound.text, f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]", "yes" if found.within(bound) else "no"]

    table = Table("part", "n", "time", "exponent [95 %]", "within", "space", "exponent [95 %]", "within", title_justify="left",
                  title=f"Declared bounds and counted exponents; within: the upper limit is at most the bound's + {TOLERANCE:g}")
    rows = complexity.count()
    for row in rows:
        table.add_row(row.name, f"{row.part.size}: {row.part.sizes[0]} to {row.part.sizes[-1]}", *cells(row.part.time, row.time),
                      *cells(row.part.space, row.space))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    typer.echo("Time: instructions, counted by callgrind, a log n of the bound divided out; space: peak bytes of Python and "
               "numpy.")
    if any(row.time is None for row in rows):
        typer.echo("Instructions were not counted: that needs valgrind, which is not installed.")


def _show_family(found: Report) -> None:
    def theory(row: Row) -> str:
        if row.diverges:
            return "diverges"
        if row.rho_theory is None:
            return "none holds" if row.rho_bound is None else f"potential {row.rho_bound:.5f}"
        return f"{row.rho_theory:.5f}"

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    assumptions = list(dict.fromkeys(row.assumes for row in found.family))
    table = Table("method", "η", "κ", "ρ theory", "spectral radius", "ρ fitted", "bias theory", "bias measured", "assumes",
                  title=f"Bilevel problems with closed forms, seed {found.seed}", title_justify="left")
    for row in found.family:
        table.add_row(row.method, f"{row.eta:.4f}", f"{row.kappa:.3f}", theory(row), number(row.rho_spectral, ".5f"),
                      number(row.rho_fitted, ".5f"), number(row.bias_theory, ".3e"), number(row.bias_measured, ".3e"),
                      f"({assumptions.index(row.assumes) + 1})")
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    for k, text in enumerate(assumptions):
        typer.echo(f"({k + 1}) {text}")
    seen, example = found.violations, found.counterexample
    typer.echo(f"potential: V_t ≤ spr(G)^t V_0 violated in {seen.potential} of {seen.instances} random problems with alternating "
               f"updates (greatest quotient {seen.worst:.4f}); assumes {seen.assumes}")
    typer.echo(f"naive bound: |α_t - α*| ≤ ρ^t |α_0 - α*| violated in {seen.naive} of the same; it assumes {example.assumes}")
    typer.echo(f"counter-example to it: α = {', '.join(f'{a:.4f}' for a in example.alphas)}, errors "
               f"{', '.join(f'{e:.4f}' for e in example.errors)}, naive bound {', '.join(f'{b:.4f}' for b in example.naive)}; "
               f"the potential's bound {'holds' if example.potential_holds else 'FAILS'} there")


def _show_tuning(found: Mapping[str, Any], folder: Path) -> None:
    before, after, shares = found["untuned"], found["tuned"], found["importance"]
    table = Table("hyper-parameter", "untuned", "tuned", title=f"training of {found['id']}", title_justify="left")
    if shares:
        table.add_column("share of the validation error's variance", justify="right")
    for name in sorted(before["params"], key=lambda n: -shares.get(n, 0.0)):
        cells = [f"{p['params'][name]:.3g}" if isinstance(p["params"][name], float) else str(p["params"][name])
                 for p in (before, after)]
        table.add_row(name, *cells, *([f"{100 * shares[name]:.0f} %" if name in shares else "–"] if shares else []))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    finished = [t for t in found["trials"] if t["metrics"] is not None]
    typer.echo(f"{len(found['trials'])} trainings, {len(found['trials']) - len(finished)} of them stopped early; least "
               f"validation error {goals.format_metric('error', found['trials'][found['best']]['metrics']['error'])}")
    if len(found["objectives"]) > 1:
        for k in found["front"]:
            error, seconds = (found["trials"][k]["metrics"][name] for name in ("error", "seconds"))
            typer.echo(f"  front: {goals.format_metric('error', error)} after {seconds:.1f} s")
    for name, record in (("untuned", before), ("tuned", after)):
        low, high = (goals.format_metric("error", bound) for bound in record["intervals"]["test_error"])
        typer.echo(f"test error, {name}: {goals.format_metric('error', record['metrics']['test_error'])} "
                   f"[{low}, {high}] after {record['epochs']:.1f} epochs")
    typer.echo(f"written: {folder / 'tune' / found['id']}.json; the tuned network: "
               f"{folder / after['files'].get('onnx', after['files']['torch'])}")


@contextmanager
def _resumable(folder: Path, how: str = "") -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        how = how or f"go on with: nasopt resume {folder}"
        remedy = how if (folder / "study.db").exists() else "nothing was written yet."
        print(f"\ninterrupted: {remedy}", file=sys.stderr)
        raise typer.Exit(130) from None


def _log(quiet: bool) -> Callable[[str], None]:
    console = Console(stderr=True, quiet=quiet, highlight=False, markup=False, soft_wrap=True)
    return console.print


def _progress(quiet: bool) -> bool:
    return not quiet and sys.stdout.isatty()


def _show(run: Run, folder: Path) -> None:
    front, aimed = run.front(), run.results.get("target")
    if not front:
        if aimed:
            typer.echo(aimed["sentence"])
        why = "no network was found that meets every constraint" if run.results["dominated"] else "no training succeeded"
        print(f"{why}; see {run.report}", file=sys.stderr)
        raise typer.Exit(1)
    measured = [m for m in goals.METRICS if any(m.key in entry.metrics for entry in front)]
    table = Table("network", title="Pareto front", title_justify="left")
    for m in measured:
        table.add_column(m.name, justify="right")
    for entry in front:
        table.add_row(str(entry.id), *(goals.format_metric(m.key, entry.metrics.get(m.key)) for m in measured))
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    if aimed:
        typer.echo(aimed["sentence"])
    typer.echo(f"report: {run.report}")
    form, file = ("onnx", "net.onnx") if "onnx" in front[0].files else ("torch", "net.pt2")
    typer.echo(f"to export a network: nasopt export {folder} {front[0].id} --format {form} --to {file}")
