"""What is watched of a gradient search: how it stands after every slice, what that says of the problem, and alarms.

Nothing here changes the search: samples are fixed, draws come from generators of their own, and running statistics are copies.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.linalg import block_diag
from torch import Tensor

from nasopt.analysis.convergence import Extremes, Recording, extremes, mean_zero
from nasopt.errors import InputError
from nasopt.nets import relax, relaxed
from nasopt.nets.differentiable import Batch, DifferentiableSearch
from nasopt.nets.hypergradient import Loss, Neumann
from nasopt.nets.train import Images
from nasopt.seed import integer, rng
from nasopt.space import Arch

Floats = NDArray[np.float64]

WINDOW = 5
"""Slices over which R-DARTS compares eigenvalues."""
SHARP = 0.75
"""R-DARTS's threshold on the quotient of two windows' means (Zela et al., ICLR 2020, §4.3)."""
IMAGES = 32
"""Of either part, in a sample."""
DEEP, POWER, LANCZOS = 6, 4, 6
"""Terms of the deeper hypergradient, products for its rate, and products for the extreme eigenvalues."""
MEASURED = 6
"""Networks below which no rank correlation is taken."""


@dataclass(frozen=True, eq=False)
class Watched:
    """The bilevel problem at the end of a slice, on fixed samples. n is the number of all α; regularisers are left out.

    Attributes:
        gradient: the hypergradient as the method takes it, (n,).
        residual: ‖∇_w L_train‖.
        deep: the hypergradient by `DEEP` terms of Neumann's series, (n,); None if it was not looked for.
        extremes: eigenvalues of ∇²_α L_val in mean-zero coordinates; None likewise, or if the relaxation has one derivative only.
    """

    gradient: Floats
    residual: float
    deep: Floats | None = None
    extremes: Extremes | None = None


@dataclass(frozen=True)
class Slice:
    """How a search stood after a slice.

    Attributes:
        architecture: what the search had come to: `DifferentiableSearch.architecture` or, after the last slice of a method with
            a trial, what `DifferentiableSearch.settle` chose.
        scores: α of every group, before that choice; minus infinity where an option is no longer allowed.
        loss: mean training loss of the slice.
        skips: share of the rows whose largest α is the skip connection's, of those that have one; NaN if none has.
        entropy: mean entropy of softmax(α), as a share of the largest possible.
        curvature: the largest eigenvalue of the validation loss's Hessian in mean-zero coordinates of α; NaN if not computed.
        ranks: Spearman's correlation of the shares that softmax(α) gives to the architectures measured so far with their negative
            errors; NaN if there are fewer than `MEASURED`.
        measured: how many these are.
        watched: None if nothing was.
    """

    architecture: Arch
    scores: tuple[Tensor, ...]
    loss: float
    skips: float
    entropy: float
    curvature: float
    ranks: float = math.nan
    measured: int = 0
    watched: Watched | None = None


@dataclass(frozen=True)
class Outline:
    """A group of `nasopt.nets.relaxed.groups` without its modules; ``rows`` are their names."""

    path: str
    rows: tuple[str, ...]
    labels: tuple[str, ...]
    skip: int | None


@dataclass(frozen=True)
class History:
    """All that a gradient search leaves to its readers, as `to_text` writes it.

    Attributes:
        groups: of its α.
        flat, guard: see `nasopt.strategies.gradient.Gradient`.
        slices: those that were trained.
        broken: why no more of them could be; empty if none failed.
    """

    groups: tuple[Outline, ...]
    flat: float | None
    guard: bool
    slices: tuple[Slice, ...]
    broken: str = ""

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """See `alarms`."""
        return alarms(self.slices, skip_limit(self.groups), self.flat, self.guard)

    @property
    def remarks(self) -> list[str]:
        """The alarms in words, and why the search ended too early."""
        return [*(a.text() for a in self.alarms), *ended(len(self.slices), self.broken)]

    def to_text(self) -> str:
        """JSON, with Python's words for what is not finite; every number is restored bit for bit."""
        return json.dumps({**asdict(replace(self, slices=())), "slices": [_plain(s) for s in self.slices]})

    @classmethod
    def from_text(cls, text: str) -> History:
        """The inverse of `to_text`."""
        data = json.loads(text)
        groups = tuple(Outline(g["path"], tuple(g["rows"]), tuple(g["labels"]), g["skip"]) for g in data["groups"])
        return cls(groups, data["flat"], data["guard"], tuple(_slice(s) for s in data["slices"]), data.get("broken", ""))


def ended(slices: int, broken: str) -> list[str]:
    """What is to be said of a search that could not go on after so many slices; nothing if ``broken`` is empty."""
    return [f"The search ended after slice {slices}, since the next one failed: {broken}"] if broken else []


def _plain(done: Slice) -> dict[str, Any]:
    w = done.watched
    seen = None if w is None else {
        "gradient": w.gradient.tolist(), "residual": w.residual, "deep": None if w.deep is None else w.deep.tolist(),
        "extremes": None if w.extremes is None else asdict(w.extremes)}
    return {**asdict(replace(done, architecture={}, scores=(), watched=None)), "architecture": dict(done.architecture),
            "scores": [s.tolist() for s in done.scores], "watched": seen}


def _slice(data: Mapping[str, Any]) -> Slice:
    w = data["watched"]
    seen = None if w is None else Watched(
        np.array(w["gradient"]), w["residual"], None if w["deep"] is None else np.array(w["deep"]),
        None if w["extremes"] is None else Extremes(**w["extremes"]))
    return Slice(**{**data, "scores": tuple(torch.tensor(s) for s in data["scores"]), "watched": seen})


# ------------------------------------------------------------------------------------------------------------ the search
def skip_share(search: DifferentiableSearch, scores: Sequence[Tensor]) -> float:
    """Share of the rows whose best option is the skip connection; NaN if no group has one."""
    picked = [(s.argmax(1) == g.skip).double() for s, g in zip(scores, search.groups, strict=True) if g.skip is not None]
    return float(torch.cat(picked).mean()) if picked else float("nan")


def evenness(scores: Sequence[Tensor]) -> float:
    """Mean entropy of softmax(scores) as a share of the logarithm of the number of options; 0 where there is one."""
    shares = []
    for s in scores:
        p = s.softmax(1)
        shares.append(torch.special.entr(p).sum(1) / max(np.log(s.shape[1]), 1e-12))
    return float(torch.cat(shares).mean())


def agreement(search: DifferentiableSearch, scores: Sequence[Tensor], measured: Sequence[tuple[Arch, float]]) -> float:
    """`Slice.ranks` of architectures and their errors."""
    shares = [relaxed.log_share(search.net, scores, arch) for arch, _ in measured]
    errors = [error for _, error in measured]
    if len(measured) < MEASURED or len(set(shares)) == 1 or len(set(errors)) == 1:
        return math.nan
    return -float(stats.spearmanr(shares, errors).statistic)


# ----------------------------------------------------------------------------------------------------------- the problem
def sample(images: Images, n: int) -> Batch:
    """``n`` images at equal distances, so that of images in the order of their classes all classes are there; all, if fewer."""
    index = torch.linspace(0, len(images) - 1, min(n, len(images))).round().long()
    return images.normalised(index), images.y[index]


def curvature(search: DifferentiableSearch, images: int, generator: np.random.Generator, products: int = 10) -> Extremes:
    """Extreme eigenvalues of ∇²_α of the loss of so many validation images, in the coordinates that matter, by Lanczos."""
    alphas = [a.detach().requires_grad_() for a in search.alphas]
    w = [p.detach() for p in search.trained().values()]
    loss = _loss(search, sample(search.validation, images))(w, alphas)
    gradient = torch.autograd.grad(loss, alphas, create_graph=True, materialize_grads=True)  # a choice may not have been reached
    flat = torch.cat([g.flatten() for g in gradient])

    def product(x: Floats) -> Floats:
        slopes = torch.autograd.grad(flat @ torch.as_tensor(x, dtype=flat.dtype), alphas, retain_graph=True,
                                     materialize_grads=True)
        return np.asarray(torch.cat([s.flatten() for s in slopes]).double())

    return extremes(product, _coordinates(search), generator, products, 1e-3)


def _coordinates(search: DifferentiableSearch) -> Floats:
    """Orthonormal rows (coordinates, n) of what may change of all α: of the options that are left, but not of their mean in a row
    that is relaxed to shares, which do not depend on it."""
    rows = [(int(row.sum()), search.method.relaxation is relax.sigmoid and not uneven)
            for allowed, uneven in zip(search.allowed, search.uneven, strict=True) for row in allowed]
    within = block_diag(*(np.eye(options) if alone else mean_zero([options]) for options, alone in rows))
    basis = np.zeros((len(within), sum(a.numel() for a in search.allowed)))
    basis[:, np.concatenate([a.flatten().numpy() for a in search.allowed])] = within
    return basis


def watch(search: DifferentiableSearch, seed: int, number: int, closely: bool) -> Watched | None:
    """The problem as it stands; None where something is not finite.

    Args:
        seed, number: of the run and of the slice; what is random here follows from them.
        closely: look for `Watched.deep` and `Watched.extremes`, too, which takes about 30 gradients of the sample.
    """
    try:
        return _watch(search, seed, number, closely)
    except (FloatingPointError, InputError):
        return None


def _watch(search: DifferentiableSearch, seed: int, number: int, closely: bool) -> Watched:
    outer, inner = (_loss(search, sample(part, IMAGES)) for part in (search.validation, search.training))
    w, a = ([t.detach().requires_grad_() for t in tensors] for tensors in (search.trained().values(), search.alphas))
    used = _flat(search.method.hypergradient(outer, inner, w, a))
    with torch.enable_grad():
        slope = torch.autograd.grad(inner(w, a), w, create_graph=closely, materialize_grads=True)
    residual = math.sqrt(sum(float((s.detach() ** 2).sum()) for s in slope))
    if not math.isfinite(residual):
        raise FloatingPointError("the training loss's gradient is not finite.")
    if not closely:
        return Watched(used, residual)
    rate = 1 / _largest(slope, w, torch.Generator().manual_seed(integer(seed, number, "watch")))
    deep = _flat(Neumann(DEEP, rate)(outer, inner, w, a))
    once = search.method.relaxation is relax.dirichlet  # its draws can be differentiated once
    ends = None if once else curvature(search, IMAGES, rng(seed, number, "curvature"), LANCZOS)
    return Watched(used, residual, deep, ends)


def _loss(search: DifferentiableSearch, batch: Batch) -> Loss:
    """Of one batch, with copies of the running statistics: the network's own stay as they are."""
    names = search.trained()
    buffers = {name: b.clone() for name, b in search.net.named_buffers()}
    betas = [b.detach() for b in search.betas]
    return lambda w, a: search.loss(batch, [*a, *betas], {**buffers, **dict(zip(names, w, strict=True))})


def _flat(tensors: Sequence[Tensor]) -> Floats:
    return np.asarray(torch.cat([t.detach().flatten() for t in tensors]).double())


def _largest(slope: Sequence[Tensor], w: Sequence[Tensor], generator: torch.Generator) -> float:
    """The largest absolute eigenvalue of the Hessian of the loss whose gradient is given, from below, by the power method. A rate
    of its inverse suits Neumann's series as soon as it is more than half of the true one; 1 if it is 0."""
    v, length = [torch.randn(p.shape, generator=generator) for p in w], 1.0
    pairs = [k for k, s in enumerate(slope) if s.requires_grad]
    for _ in range(POWER if pairs else 0):
        v = list(torch.autograd.grad([slope[k] for k in pairs], w, [v[k] / (length or 1.0) for k in pairs], retain_graph=True,
                                     materialize_grads=True))
        length = math.sqrt(sum(float((p**2).sum()) for p in v))
    return length if pairs and length > 0 else 1.0


def recording(slices: Sequence[Slice]) -> Recording:
    """What a certificate needs of the slices of one search. α that are no longer allowed stay where they were. Eigenvalues of
    ∇²F are not among it: what `curvature` measures is ∇²_α L_val at fixed weights, which lacks what the weights answer.

    Raises:
        InputError: the problem was not watched after every slice, or after none of them closely.
    """
    seen = [s.watched for s in slices if s.watched is not None]
    close = [(w.gradient, w.deep) for w in seen if w.deep is not None]
    if len(seen) < len(slices) or not close:
        raise InputError(f"of {len(slices)} slices of the gradient search {len(seen)} were watched, {len(close)} closely, and it "
                         "takes all of them, and one closely: let the search end, give it more time if it did, or search anew if "
                         "it became infinite.")
    points = np.stack([torch.cat([a.flatten() for a in s.scores]).numpy() for s in slices])
    for before, after in pairwise(points):
        after[~np.isfinite(after)] = before[~np.isfinite(after)]
    return Recording(points, np.array([w.gradient @ w.gradient for w in seen]), np.array([g for g, _ in close]),
                     np.array([d for _, d in close]), np.array([w.residual for w in seen]), None)


# ---------------------------------------------------------------------------------------------------------------- alarms
@dataclass(frozen=True)
class Alarm:
    """A sign that a search goes wrong.

    Attributes:
        name: ``skips``: skip connections lead in too many rows. ``sharpness``: ∇²_α L_val has grown (`SHARP`). ``ranks``: the
            mixture does not rank the networks as their measured errors do.
        slice: after which it was seen, from 1.
        value, threshold: of what is judged; of sharpness and ranks too low a value is one, of skips one not below.
        back: the slice to which the search went back, where it ended; None: nothing was done.
    """

    name: Literal["skips", "sharpness", "ranks"]
    slice: int
    value: float
    threshold: float
    back: int | None = None

    def text(self) -> str:
        """A sentence with its numbers."""
        what = {"skips": f"skip connections lead in {self.value:.0%} of the rows that have one (alarm from {self.threshold:.0%})",
                "sharpness": f"the largest eigenvalue of the Hessian in α has grown: the mean of {WINDOW} slices before is "
                             f"{self.value:.2f} of that of the last {WINDOW} (alarm below {self.threshold:g})",
                "ranks": f"the rank correlation of the mixture's shares with measured accuracy is {self.value:.2f} (alarm below "
                         f"{self.threshold:g})"}[self.name]
        did = "nothing was done" if self.back is None else f"the search ended there and went back to slice {self.back}"
        return f"Alarm after slice {self.slice}: {what}; {did}."


def skip_limit(groups: Sequence[Outline]) -> float:
    """The least share of the rows with a skip connection in which it must lead to be an alarm: more than half, and so many that
    random choices reach it in at most one of 100 searches; infinite where no share is that rare."""
    chances = [1 / len(g.labels) for g in groups if g.skip is not None for _ in g.rows]
    counts = range(len(chances) // 2 + 1, len(chances) + 1)
    rare = [k for k in counts if stats.binom.sf(k - 1, len(chances), np.mean(chances)) <= 0.01]
    return rare[0] / len(chances) if rare else math.inf


def alarms(slices: Sequence[Slice], limit: float, flat: float | None, guard: bool) -> tuple[Alarm, ...]:
    """What is alarming: skips and sharpness from slice 2 · `WINDOW` on, where they were first seen (early on options without
    weights lead for a while in every search), and ranks of the last slice.

    Args:
        limit: `skip_limit`.
        flat: what sharpness is compared with (None: `SHARP`), and that the search goes back `WINDOW` slices on it.
        guard: the search goes back to the last slice with fewer skips.
    """
    later, found = range(2 * WINDOW, len(slices) + 1), list[Alarm]()
    for k in [k for k in later if slices[k - 1].skips >= limit][:1]:
        calm = [j for j in range(1, k) if slices[j - 1].skips < limit]
        found.append(Alarm("skips", k, slices[k - 1].skips, limit, calm[-1] if guard and calm else None))
    quotients = {k: _flatness(slices[k - 2 * WINDOW:k]) for k in later}
    threshold = SHARP if flat is None else flat
    for k in [k for k, q in quotients.items() if q < threshold][:1]:
        found.append(Alarm("sharpness", k, quotients[k], threshold, None if flat is None else k - WINDOW))
    if slices and slices[-1].ranks < 0:
        found.append(Alarm("ranks", len(slices), slices[-1].ranks, 0.0))
    return tuple(found)


def _flatness(slices: Sequence[Slice]) -> float:
    """R-DARTS's quotient of the mean curvatures of the earlier and the later half, of the slices that have one; infinite where
    the later is not positive, or either is unknown."""
    known = ([s.curvature for s in part if math.isfinite(s.curvature)] for part in (slices[:WINDOW], slices[WINDOW:]))
    before, now = (float(np.mean(part)) if part else math.nan for part in known)
    return before / now if now > 0 and math.isfinite(before) else math.inf
