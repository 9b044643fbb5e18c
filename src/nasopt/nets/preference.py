"""One search for a whole front: a hypernetwork from a preference between the objectives to the architecture parameters
(Sukthanker et al., Multi-objective Differentiable Neural Architecture Search, MODNAS, arXiv 2402.18213).

Notation: r a preference, a point of the simplex, one share an objective; d the features of a device, if there are several; Φ the
hypernetwork's parameters and α = H_Φ(r, d); L_d the objectives on a device, the validation loss first and then the costs; S the
mean entropy of the n rows of softmax(α). Every step draws r and moves Φ against the gradient of
    r·L_d(α) - τ S(α),                                                                                                       (1)
of several devices along the shortest common one (their algorithm 1). S is ours: no α saturates before H has learned what r means.
Of a sum over choices, L = Σ_row p·f, the minimiser is then α = -n r·f / τ (2), which is linear in r, and its largest entries are
the optimum of every preference.

A weighted sum finds only those architectures of the front that are on its convex hull, whatever the weights. Draws from
softmax(α) find others between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from nasopt import seed as seeds
from nasopt.errors import InputError
from nasopt.nets import mgda, relax, relaxed
from nasopt.nets.checkpoint import load_optimisers, optimiser_tensors
from nasopt.nets.differentiable import Batch, Cost, DifferentiableSearch, Method
from nasopt.nets.train import Augment, Images
from nasopt.space import key

Slopes: TypeAlias = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""α of every group -> the gradient of r·L there, of the same shapes."""

METHOD = Method(lr=3e-3, decay=0.0, still=0.25)
"""DARTS of first order, with a rest for H at first."""


class Hypernetwork(nn.Module):
    """H_Φ: what is linear in preference and features, plus what a hidden layer adds; at first all α are near 0.

    Args:
        objectives: length of r.
        shapes: (rows, options) of every group.
        features: length of d; 0: there is one device.
        hidden: units of the hidden layer.
        start: deviation of the first values of the layers that give α.
        seed: of the first values.
    """

    def __init__(self, objectives: int, shapes: Sequence[tuple[int, int]], features: int = 0, hidden: int = 64,
                 start: float = 1e-3, seed: int = 0) -> None:
        super().__init__()
        self.shapes, inputs, outputs = tuple(shapes), objectives + features, sum(a * b for a, b in shapes)
        self.hidden, self.out, self.linear = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs), nn.Linear(inputs, outputs)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p, scale in zip(self.parameters(), (1.0, 1.0, start, 0.0, start, 0.0), strict=True):
                p.copy_(scale * torch.randn(p.shape, generator=generator))

    def forward(self, preference: Tensor, features: Tensor | None = None) -> list[Tensor]:
        """α of every group, (rows, options), for r (objectives,) and d (features,)."""
        x = preference if features is None else torch.cat([preference, features])
        x = x.to(self.linear.weight)
        flat = self.linear(x) + self.out(torch.tanh(self.hidden(x)))
        return [part.view(shape) for part, shape in zip(flat.split([a * b for a, b in self.shapes]), self.shapes, strict=True)]


def step(hyper: Hypernetwork, optimiser: torch.optim.Optimizer, preference: Tensor,
         devices: Sequence[tuple[Tensor | None, Slopes]], entropy: float = 0.1) -> None:
    """One step of Φ for one preference, against ∂α/∂Φ · ∇_α (1).

    Args:
        devices: of every one its features and the gradient of r·L.
        entropy: τ, in shares of the objectives' ranges.
    """
    parameters, rows = list(hyper.parameters()), list[Tensor]()
    for features, slopes in devices:
        alphas = hyper(preference, features)
        n = sum(len(a) for a in alphas)
        slope = [s + entropy / n * certainty_slope(a.detach())
                 for s, a in zip(slopes([a.detach() for a in alphas]), alphas, strict=True)]
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(alphas, parameters, slope)]))
    gradient = rows[0] if len(rows) == 1 else mgda.min_norm(torch.stack(rows)) @ torch.stack(rows)
    for p, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p)
    optimiser.step()


def certainty_slope(alpha: Tensor) -> Tensor:
    """∇_α Σ_rows Σ_o p ln p = p (ln p - Σ p ln p) for p = softmax(α), of α's shape."""
    logs = alpha.log_softmax(1)
    p = logs.exp()
    return p * (logs - (p * logs).sum(1, keepdim=True))


@dataclass(frozen=True, eq=False)
class Device:
    """What a network shall run on: the costs of its architectures there, and the features by which H knows it, (features,);
    none if it is the only one."""

    costs: Sequence[Cost]
    features: Tensor | None = None


DRAWN = (relax.gumbel, relax.gumbel_hard)
"""Relaxations with shares of about softmax(α) on average, whatever the temperature."""

READ = (relax.softmax, relax.pair, *DRAWN)
"""Relaxations whose slope in α is the share of an option times what it gains, by the temperature."""

MEMORY = 0.98
"""How much of the mean effects stays from step to step. H follows them and not the slopes of one batch, whose noise is many times
what preferences are about."""

LEAST = 1e-6
"""The smallest range, in nats."""


@dataclass(eq=False)
class PreferenceSearch:
    """The search of one relaxed network for all preferences, step by step. The objectives are comparable: costs run from 0 to 1
    over the space, and the validation loss is divided by the range of Σ_row p·f for the mean effects f of the options so far.

    α must stay small for that: of a mixture that is nearly even the slopes say what the network loses without an option. Once it
    leans to some, their weights alone are trained, and normalisation hides what the others would be good for; hence the large τ.

    Args:
        net, training, validation, method, steps, seed, augment: as of `nasopt.nets.differentiable.DifferentiableSearch`; Adam's
            ``lr``, ``betas`` and ``decay`` are H's.
        devices: at least one, all with as many costs, which are the objectives after the loss.
        concentration: of the symmetric Dirichlet distribution from which preferences are drawn.
        entropy: τ of equation 1.
        hidden: see `Hypernetwork`.

    Attributes:
        hyper: H.
        inner: the network's training, at the α of the moment.
        effects: running means of what the validation loss gains from an option rather than the mean one, in nats, (rows,
            options) of every group.
        seen: slopes that they are the means of.

    Raises:
        InputError: no device or no cost, devices that differ in how many costs or features they have, several without
            features, a concentration that is not above 0, an entropy below 0, a method with parts that belong to
            one α (edges' weights, regularisers, pruning, trial, a bound on skip connections), or a relaxation whose slopes do
            not say what an option gains (`READ`).
    """

    net: nn.Module
    training: Images
    validation: Images
    devices: Sequence[Device]
    steps: int
    seed: int
    augment: Augment
    method: Method = METHOD
    concentration: float = 1.0
    entropy: float = 1.0
    hidden: int = 64
    effects: list[Tensor] = field(init=False)
    seen: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        kinds = {(len(d.costs), 0 if d.features is None else len(d.features)) for d in self.devices}
        if len(kinds) != 1 or min(kinds)[0] < 1 or (len(self.devices) > 1 and min(kinds)[1] < 1):
            raise InputError("a preference-conditioned search needs devices with equally many costs, at least 1, and, if there "
                             "are several, with features of one length that tell them apart.")
        if not (0 < self.concentration < math.inf and 0 <= self.entropy < math.inf):
            raise InputError(f"the concentration of preferences is {self.concentration}, the weight of the entropy "
                             f"{self.entropy}: give numbers above 0, such as 1 and 0.1.")
        method = self.method
        if method.edges or method.regularisers or method.prune or method.trial or method.skips is not None:
            raise InputError("a preference-conditioned search has another α for every preference: give a method without edges' "
                             "weights, regularisers, pruning, trial and a bound on skip connections.")
        if method.relaxation not in READ:
            raise InputError("a preference-conditioned search reads off the slopes what an option gains: give a method with the "
                             f"relaxation {', '.join(r.__name__ for r in READ)}.")
        (costs, features), = kinds
        self.inner = DifferentiableSearch(self.net, self.training, self.validation, self.method, self.steps, self.seed,
                                          self.augment)
        shapes = [g.shape for g in self.inner.groups]
        self.effects = [torch.zeros(shape) for shape in shapes]
        self.hyper = Hypernetwork(1 + costs, shapes, features, self.hidden, self.method.start,
                                  seeds.integer(self.seed, 0, "hypernetwork"))
        self._adam = torch.optim.Adam(self.hyper.parameters(), self.method.lr, self.method.betas, weight_decay=self.method.decay)

    @property
    def done(self) -> int:
        """Steps done."""
        return self.inner.done

    def run(self, steps: int) -> list[float]:
        """So many steps more, at most those that are left; the training loss of each.

        Batches begin anew with every call: a resumed search must make the same calls.

        Raises:
            FloatingPointError: a loss or a gradient is not finite.
        """
        losses, inner = list[float](), self.inner
        for train, val in inner.turns(steps):
            r = self.drawn()
            if val is not None:
                step(self.hyper, self._adam, r, [(d.features, self._slopes(d, r, train, val)) for d in self.devices],
                     self.entropy)
            with torch.no_grad():
                self._move(self.hyper(r, self.devices[self.done % len(self.devices)].features))
            losses.append(inner.step_weights(train))
            inner.done += 1
        return losses

    def drawn(self) -> Tensor:
        """The preference of this step, (objectives,)."""
        count = 1 + len(self.devices[0].costs)
        return torch.from_numpy(seeds.rng(self.seed, self.done, "preference").dirichlet(np.full(count, self.concentration)))

    def _move(self, alphas: Sequence[Tensor]) -> None:
        """Makes these the α of the network."""
        with torch.no_grad():
            for mine, alpha in zip(self.inner.alphas, alphas, strict=True):
                mine.copy_(alpha)

    def _slopes(self, device: Device, r: Tensor, train: Batch, val: Batch) -> Slopes:
        def found(alphas: Sequence[Tensor]) -> list[Tensor]:
            self._move(alphas)
            self.seen += 1
            temperature = self.method.temperature(self.inner.progress)
            for mean, slope, alpha in zip(self.effects, self.inner.slopes(train, val), alphas, strict=False):
                shares = (alpha if self.method.relaxation in DRAWN else alpha / temperature).softmax(1)
                mean.lerp_(temperature * slope / shares, max(1 / self.seen, 1 - MEMORY))  # of w = softmax(α/τ): w (f - w·f) / τ
            loss = [p * (f - (p * f).sum(1, keepdim=True)) / self.spread
                    for p, f in zip((a.softmax(1) for a in alphas), self.effects, strict=True)]
            parts = zip(*([loss, *self.inner.cost_slopes(device.costs)]), strict=True)
            return [torch.stack([share * slope for share, slope in zip(r.tolist(), part, strict=True)]).sum(0) for part in parts]

        return found

    @property
    def spread(self) -> float:
        """The range of the sum of `effects` over the architectures, in nats, at least `LEAST`."""
        return max(LEAST, sum(float((f.amax(1) - f.amin(1)).sum()) for f in self.effects))

    # ----------------------------------------------------------------------------------------------------- architectures
    @torch.no_grad()
    def scores(self, preference: Sequence[float], device: int = 0) -> list[Tensor]:
        """α of every group for a preference.

        Raises:
            InputError: not one share of at least 0 an objective, with the sum 1.
        """
        count = 1 + len(self.devices[0].costs)
        if len(preference) != count or min(preference) < 0 or abs(sum(preference) - 1) > 1e-6:
            raise InputError(f"the preference {list(preference)} is not {count} shares of at least 0 with the sum 1: give one "
                             "share an objective, the loss's first.")
        r = torch.tensor(preference, dtype=torch.float64)
        return self.hyper(r, self.devices[device].features)  # type: ignore[no-any-return]

    def architecture(self, preference: Sequence[float], device: int = 0) -> dict[str, int]:
        """The architecture of the largest α for a preference."""
        return relaxed.nearest(self.net, [a.softmax(1) for a in self.scores(preference, device)])

    def sample(self, preference: Sequence[float], generator: torch.Generator, device: int = 0) -> dict[str, int]:
        """A random architecture: every option with its probability softmax(α)."""
        return relaxed.draw(self.net, self.scores(preference, device), generator)

    def front(self, preferences: Sequence[Sequence[float]], device: int = 0) -> list[dict[str, int]]:
        """The architectures for these preferences, each distinct one once, in their order."""
        found = [self.architecture(r, device) for r in preferences]
        return list({key(arch): arch for arch in found}.values())

    # -------------------------------------------------------------------------------------------------------------- state
    def state(self) -> dict[str, Tensor]:
        """Everything that the next steps depend on, as named tensors: contiguous copies."""
        found = {f"hyper {k}": v.detach().clone() for k, v in self.hyper.state_dict().items()}
        found.update({f"adam {k}": v.clone() for k, v in optimiser_tensors([self._adam]).items()})
        found.update({f"effects {k}": f.clone() for k, f in enumerate(self.effects)})
        return {**self.inner.state(), **found, "seen": torch.tensor(self.seen)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Sets what `state` gave.

        Raises:
            InputError: it is not the state of such a search.
        """
        self.inner.load(state)
        try:
            self.hyper.load_state_dict({k[6:]: v for k, v in state.items() if k.startswith("hyper ")})
            load_optimisers([self._adam], {k[5:]: v for k, v in state.items() if k.startswith("adam ")})
            self.effects = [state[f"effects {k}"].clone() for k in range(len(self.effects))]
            self.seen = int(state["seen"])
        except (KeyError, RuntimeError, ValueError) as problem:
            raise InputError("the saved state belongs to another preference-conditioned search: start the search anew "
                             f"({problem}).") from None
