"""Differentiable search: the weights w and the architecture parameters α of one relaxed network, trained in turn,

    min_α L_val(w*(α), α)  subject to  w*(α) = argmin_w L_train(w, α)        (Liu et al., DARTS, ICLR 2019, eq. 3, 4)

A `Method` says of which parts a step is made; `nasopt.strategies.gradient` names the published ones. All that is random in a step
follows from the seed and the step's number, so that `DifferentiableSearch.state` and a seed are all that a resumed search needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from nasopt import seed as seeds
from nasopt.errors import InputError, unknown
from nasopt.nets import mgda, relax, relaxed
from nasopt.nets.checkpoint import load_optimisers, optimiser_tensors
from nasopt.nets.depthwise import Depthwise
from nasopt.nets.hypergradient import FirstOrder, Hypergradient, Loss, Tensors
from nasopt.nets.options import Mix
from nasopt.nets.train import Augment, Images, Recipe, at_once, autocast, batches, channels_last, optimisers, set_rates, whiten
from nasopt.space import Arch

Batch: TypeAlias = tuple[Tensor, Tensor]
Cost: TypeAlias = Callable[[Sequence[Tensor]], Tensor]
"""The options' probabilities of every group, (rows, options) each -> scalar, from 0 to 1 over the space."""


def cosine(t: float) -> float:
    """DARTS's learning rate as a share of its peak: from 1 to 0.04."""
    return 0.04 + 0.96 * (1 + math.cos(math.pi * t)) / 2


ONE, ZERO = relax.constant(1.0), relax.constant(0.0)
FIRST_ORDER = FirstOrder()
SGD = Recipe(batch=64, kernel_lr=None, lr=0.025, momentum=0.9, weight_decay=3e-4, smoothing=0.0)
"""DARTS's training of the weights, but with Nesterov momentum, and without decay of biases and normalisations."""


@dataclass(frozen=True)
class Method:
    """The parts of a differentiable search. The defaults are DARTS of first order.

    Attributes:
        relaxation: from architecture parameters to weights of the options.
        temperature: its temperature over the progress from 0 to 1, as all schedules here.
        hypergradient: how the outer loss's gradient is taken.
        regularisers: of the architecture parameters, with their coefficients.
        bypass: how much of its input every mixture gets as an auxiliary skip connection (DARTS−).
        perturbation, radius: what is added to α while the weights are trained, up to so much in every entry: a random vector or
            the one of `ATTACKS` ascent steps on the training loss (SDARTS, Chen & Hsieh, ICML 2020, eq. 5, 6).
        edges: weigh the edges that lead to one node, too, by a softmax (PC-DARTS).
        still: share of the steps, the first, in which α rests.
        every: α moves in one of so many steps.
        prune: (progress, options): from when on how many options a row keeps, those of the largest α; a number below 1 is a share
            of the options that there were, of which at least two stay (Chen et al., P-DARTS, ICCV 2019; DrNAS).
        dropout: with which probability, below 1, each number that a skip connection of a relaxed cell passes on is set to 0, the
            others growing to keep the mean (P-DARTS); where a cell's skip connection halves the size it does nothing.
        skips: how many skip connections the architecture has in a cell at most (P-DARTS, there in one of two cells); None: any.
        trial: choose each row's option by what the validation loss loses without it (`DifferentiableSearch.settle`; DARTS-PT,
            Wang et al., ICLR 2021), instead of by the largest α.
        lr, betas, decay: of Adam for α.
        start: deviation of the normal values that α starts with.
        recipe: of the weights' training; ``epochs`` and ``warmup`` are not used.
        rates: the weights' learning rates as a share of their peaks.

    Raises:
        InputError: a number out of its range, an unknown perturbation, or a radius without one.
    """

    relaxation: relax.Relaxation = relax.softmax
    temperature: relax.Schedule = ONE
    hypergradient: Hypergradient = FIRST_ORDER
    regularisers: tuple[tuple[relax.Regulariser, relax.Schedule], ...] = ()
    bypass: relax.Schedule = ZERO
    perturbation: Literal["random", "adversarial"] | None = None
    radius: relax.Schedule = ZERO
    edges: bool = False
    still: float = 0.0
    every: int = 1
    prune: tuple[tuple[float, float], ...] = ()
    dropout: relax.Schedule = ZERO
    skips: int | None = None
    trial: bool = False
    lr: float = 3e-4
    betas: tuple[float, float] = (0.5, 0.999)
    decay: float = 1e-3
    start: float = 1e-3
    recipe: Recipe = SGD
    rates: relax.Schedule = cosine

    def __post_init__(self) -> None:
        if self.perturbation not in (None, "random", "adversarial"):
            raise unknown("perturbation", str(self.perturbation), ("random", "adversarial"))
        if self.perturbation is None and self.radius is not ZERO:
            raise InputError("a method's radius without a perturbation does nothing: add perturbation='random' or 'adversarial'.")
        for name, good, remedy in (
                ("lr", 0 < self.lr < math.inf, "a number above 0"),
                ("betas", len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "two numbers from 0 to below 1"),
                ("decay", 0 <= self.decay < math.inf, "a number of 0 or more"),
                ("start", 0 <= self.start < math.inf, "a number of 0 or more"),
                ("still", 0 <= self.still <= 1, "a share from 0 to 1"),
                ("every", self.every >= 1, "1 or more"),
                ("prune", all(0 <= when <= 1 and (0 < keep < 1 or (keep >= 1 and keep % 1 == 0)) for when, keep in self.prune),
                 "pairs of a progress from 0 to 1 and of how many options are left, 1 or more or a share of them"),
                ("skips", self.skips is None or self.skips >= 0, "a number of 0 or more, or None for any")):
            if not good:
                raise InputError(f"a method's {name} is {getattr(self, name)}: give {remedy}.")


CERTAIN = 30.0
"""α of an option that was decided for; with the opposite sign, of one that is not there."""

ATTACKS = 3
"""Ascent steps of an adversarial perturbation."""


@dataclass(eq=False)
class DifferentiableSearch:
    """The search of one relaxed network, step by step.

    Args:
        net: a module with inline choices; its weights are trained in place.
        training: what the weights learn from.
        validation: what the architecture parameters learn from; no image of ``training``.
        method: the parts.
        steps: how many there are in all.
        seed: everything random follows from it.
        augment: of the batches of both parts.
        costs: functions of the options' probabilities, a tensor softmax(α) of every group, that are to be small as well as the
            validation loss, such as `nasopt.nets.expected.Cost`.
        shares: what every cost counts beside the validation loss; None: α follows the direction in which loss and costs fall
            together (`nasopt.nets.mgda`, of gradients at length 1, so that units and scales do not matter).

    Attributes:
        alphas: the architecture parameters of every group of `nasopt.nets.relaxed.groups`, (rows, options).
        betas: those of the edges, (rows,); empty for groups without nodes, and without `Method.edges`.
        guide: (coefficient, frequencies of the options in every group, NaN in rows without): the divergence of softmax(α) from
            them is added to what α minimises; None at first. Set it between calls of `run`; it is not part of `state`.
        allowed: which options are left, bool like ``alphas``.
        uneven: of every group, whether its options cannot be added (`nasopt.nets.relaxed.uneven`); one of them is then drawn
            in every step, by `nasopt.nets.relax.gumbel_hard`, whatever the method.
        done: steps done, those of `settle` included.

    Raises:
        InputError: an empty validation part, one that shares images with the training part, fewer than two training images, or
            not one share of at least 0 for every cost.
    """

    net: nn.Module
    training: Images
    validation: Images
    method: Method
    steps: int
    seed: int
    augment: Augment
    costs: Sequence[Cost] = ()
    shares: Sequence[float] | None = ()
    guide: tuple[float, Sequence[Tensor]] | None = field(init=False, default=None)
    alphas: list[Tensor] = field(init=False)
    betas: list[Tensor] = field(init=False)
    allowed: list[Tensor] = field(init=False)
    done: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        _check_parts(self.training, self.validation)
        if self.shares is not None and (len(self.shares) != len(self.costs) or not all(0 <= s < math.inf for s in self.shares)):
            raise InputError(f"{len(self.costs)} costs got the shares {list(self.shares)}: give each one of at least 0, or None "
                             "for all.")
        self.groups = relaxed.groups(self.net)
        self.uneven = relaxed.uneven(self.net, self.training.normalised(slice(0, 2)))
        generator = self._generator("start")
        self.alphas = [(self.method.start * torch.randn(g.shape, generator=generator)).requires_grad_() for g in self.groups]
        self.betas = [torch.zeros(len(g.targets) if self.method.edges else 0).requires_grad_() for g in self.groups]
        self.allowed = [torch.ones(g.shape, dtype=torch.bool) for g in self.groups]
        channels_last(self.net.train())
        whiten(self.net, self.training)
        self._weights = optimisers(self.net, self.method.recipe)
        self._adam = torch.optim.Adam([*self.alphas, *self.betas], self.method.lr, self.method.betas,
                                      weight_decay=self.method.decay)

    # ------------------------------------------------------------------------------------------------------------ a step
    def run(self, steps: int) -> list[float]:
        """So many steps more, at most those that are left; the training loss of each.

        Batches begin anew with every call: a resumed search must make the same calls.

        Raises:
            FloatingPointError: a loss or a gradient is not finite.
        """
        losses = list[float]()
        for train, val in self.turns(steps):
            if val is not None:
                self._step_alphas(train, val)
            losses.append(self.step_weights(train))
            self.done += 1
        return losses

    def turns(self, steps: int) -> Iterator[tuple[Batch, Batch | None]]:
        """The batches of so many steps more, at most those that are left: for the weights and, if it is its turn, for α. Options
        are pruned when it is time. Whoever takes them counts `done`."""
        batch = self.method.recipe.batch_for(self.training)
        inner = batches(self.training, batch, self.augment, self.seed, 2 * self.done)
        outer = batches(self.validation, min(batch, len(self.validation)), self.augment, self.seed, 2 * self.done + 1)
        for _ in range(min(steps, self.steps - self.done)):
            self._prune()
            moves = self.progress >= self.method.still and self.done % self.method.every == 0
            yield next(inner), next(outer) if moves else None

    def trained(self) -> dict[str, nn.Parameter]:
        """The network's weights but those that stay as they are, by name."""
        return {name: p for name, p in self.net.named_parameters() if p.requires_grad}

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        return min(1.0, self.done / self.steps)

    def _step_alphas(self, train: Batch, val: Batch) -> None:
        gradient = self.slopes(train, val)
        if self.costs:
            self._add_costs(gradient)
        if self.guide is not None:
            strength, frequencies = self.guide
            for total, alpha, wanted in zip(gradient, self.alphas, frequencies, strict=False):
                total += strength * (alpha.detach().softmax(1) - wanted).nan_to_num(nan=0.0)  # the slope of KL(wanted, softmax)
        penalty = self.penalty(self.alphas)
        if penalty.requires_grad:
            for total, extra in zip(gradient, torch.autograd.grad(penalty, self.alphas), strict=False):
                total += extra
        for p, slope in zip([*self.alphas, *self.betas], gradient, strict=True):
            p.grad = slope
        self._adam.step()

    def slopes(self, train: Batch, val: Batch) -> list[Tensor]:
        """The hypergradient of the validation loss: of every α and then of every parameter of the edges."""
        names, w = zip(*self.trained().items(), strict=True)
        return self.method.hypergradient(self._loss(val, names), self._loss(train, names), w, [*self.alphas, *self.betas])

    def cost_slopes(self, costs: Sequence[Cost]) -> list[list[Tensor]]:
        """The gradient of every cost: of every α."""
        found = []
        for cost in costs:
            alphas = [a.detach().requires_grad_() for a in self.alphas]
            value = cost([a.masked_fill(~k, -torch.inf).softmax(1) for a, k in zip(alphas, self.allowed, strict=True)])
            found.append(list(torch.autograd.grad(value, alphas, materialize_grads=True)))
        return found

    def _add_costs(self, gradient: list[Tensor]) -> None:
        """From the gradient of the validation loss to that of loss and costs, in place."""
        slopes = self.cost_slopes(self.costs)
        if self.shares is not None:
            for share, slope in zip(self.shares, slopes, strict=True):
                for total, extra in zip(gradient, slope, strict=False):
                    total += share * extra
            return
        still = [torch.zeros_like(b) for b in self.betas]
        rows = mgda.unit(torch.stack([torch.cat([g.flatten() for g in part])
                                      for part in (gradient, *([*slope, *still] for slope in slopes))]))
        together = mgda.min_norm(rows) @ rows
        for total, part in zip(gradient, together.split([g.numel() for g in gradient]), strict=True):
            total.copy_(part.view_as(total))

    def penalty(self, alphas: Tensors) -> Tensor:
        """The regularisers' sum over the groups, of the options that are left, as it is now."""
        total = torch.zeros(())
        for regulariser, coefficient in self.method.regularisers:
            if factor := coefficient(self.progress):
                total = total + factor * torch.stack([regulariser(alpha.gather(1, _kept(allowed)))
                                                       for alpha, allowed in zip(alphas, self.allowed, strict=True)]).sum()
        return total

    def step_weights(self, train: Batch) -> float:
        """One step of the network's weights; the loss before it.

        Raises:
            FloatingPointError: the loss or its gradient is not finite.
        """
        for opt in self._weights:
            opt.zero_grad(set_to_none=True)
        set_rates(self._weights, self.method.rates(self.progress))
        loss = self.loss(train, [*self._perturbed(train), *(b.detach() for b in self.betas)])
        loss.backward()
        length = nn.utils.clip_grad_norm_(self.net.parameters(), self.method.recipe.clip).item()
        if not (math.isfinite(loss.item()) and math.isfinite(length)):
            raise FloatingPointError(f"the training loss became {loss.item()}, its gradient's norm {length}, at step "
                                     f"{self.done + 1} of {self.steps}: use a smaller learning rate.")
        for opt in self._weights:
            opt.step()
        return loss.item()

    def _perturbed(self, train: Batch) -> list[Tensor]:
        """α as the weights' training sees it."""
        here, radius = [a.detach() for a in self.alphas], self.method.radius(self.progress)
        if self.method.perturbation is None or radius == 0:
            return here
        generator = self._generator("perturbation")
        moved = [a + radius * (2 * torch.rand(a.shape, generator=generator) - 1) for a in here]
        for _ in range(ATTACKS if self.method.perturbation == "adversarial" else 0):
            at = [a.requires_grad_() for a in moved]
            slopes = torch.autograd.grad(self.loss(train, [*at, *(b.detach() for b in self.betas)]), at, materialize_grads=True)
            moved = [(a.detach() + radius * s.sign()).clamp(h - radius, h + radius)
                     for a, s, h in zip(at, slopes, here, strict=True)]
        return moved

    # ------------------------------------------------------------------------------------------------------------ a loss
    def loss(self, batch: Batch, parameters: Tensors, weights: dict[str, Tensor] | None = None) -> Tensor:
        """The cross-entropy of a batch (x, labels), given α and the edges' parameters, and weights instead of the network's.
        Layers that draw, such as dropout, draw the same in every loss of a step."""
        x, y = batch
        with relaxed.mixed(self.net, self.mixes(parameters)), autocast(), Depthwise(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seeds.integer(self.seed, self.done, "differentiable layers"))
            logits = self.net(x) if weights is None else torch.func.functional_call(self.net, weights, (x,))
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            return functional.cross_entropy(wide, y, label_smoothing=self.method.recipe.smoothing)

    def _loss(self, batch: Batch, names: Sequence[str]) -> Loss:
        return lambda w, a: self.loss(batch, a, dict(zip(names, w, strict=True)))

    def mixes(self, parameters: Tensors) -> list[Mix]:
        """How every group mixes its options now. The draw is one and the same during a step."""
        count, method, t = len(self.groups), self.method, self.progress
        generator, found = self._generator("relaxation"), list[Mix]()
        dropout = _dropout(rate, self._generator("dropout")) if (rate := method.dropout(t)) else None
        for k, (group, alpha, beta) in enumerate(zip(self.groups, parameters[:count], parameters[count:], strict=True)):
            kept = _kept(self.allowed[k])
            relaxation = relax.gumbel_hard if self.uneven[k] else method.relaxation
            weights = relaxation(alpha.gather(1, kept), method.temperature(t), generator)
            full = torch.zeros_like(alpha).scatter(1, kept, weights)
            edges = _by_target(beta, group.targets) if len(beta) else None
            found.append(relaxed.mix(full, method.bypass(t), edges, dropout))
        return found

    def _generator(self, stream: str) -> torch.Generator:
        return torch.Generator().manual_seed(seeds.integer(self.seed, self.done, f"differentiable {stream}"))

    # ----------------------------------------------------------------------------------------------------- architectures
    def _prune(self) -> None:
        for when, share in self.method.prune:
            if self.progress >= when:
                for alpha, allowed in zip(self.alphas, self.allowed, strict=True):
                    keep = int(share) if share >= 1 else max(2, round(share * alpha.shape[1]))
                    if keep < int(allowed[0].sum()):
                        best = alpha.detach().masked_fill(~allowed, -torch.inf).topk(keep).indices
                        allowed.copy_(torch.zeros_like(allowed).scatter(1, best, True))

    def architecture(self) -> dict[str, int]:
        """The architecture of the largest α. Where edges compete, as in DARTS's cells, what counts is the weight of their best
        operation, softmax(α) (FairDARTS: σ(α)), times that of the edge. Of more skip connections in a cell than the method allows
        the weakest give way."""
        found = []
        for group, alpha, beta, allowed in zip(self.groups, self.alphas, self.betas, self.allowed, strict=True):
            scores = alpha.detach().masked_fill(~allowed, -torch.inf)
            weights = scores.sigmoid() if self.method.relaxation is relax.sigmoid else scores.softmax(1)
            found.append(weights * _by_target(beta.detach(), group.targets)[:, None] if len(beta) else weights)
        most = self.method.skips
        return relaxed.nearest(self.net, found, self.allowed if most is None else
                               relaxed.few_skips(self.net, found, self.allowed, most))

    def sample(self, number: int) -> dict[str, int]:
        """A random architecture: every option with its probability softmax(α)."""
        generator = torch.Generator().manual_seed(seeds.integer(self.seed, number, "differentiable sample"))
        scores = [a.detach().masked_fill(~k, -torch.inf) for a, k in zip(self.alphas, self.allowed, strict=True)]
        return relaxed.draw(self.net, scores, generator)

    @torch.no_grad()
    def validation_loss(self, limit: int) -> float:
        """The mixture's mean loss over ``limit`` random validation images at most, always the same ones, in training mode as at
        every other loss."""
        generator = torch.Generator().manual_seed(seeds.integer(self.seed, 0, "differentiable validation"))
        index, total = torch.randperm(len(self.validation), generator=generator)[:limit], 0.0
        for part in index.tensor_split(math.ceil(len(index) / at_once(self.validation.x.shape))):
            batch = self.validation.normalised(part), self.validation.y[part]
            total += self.loss(batch, [*self.alphas, *self.betas]).item() * len(part)
        return total / len(index)

    @property
    def decisions(self) -> int:
        """How many `settle` makes: one a row, and one a node to which more than two edges lead that compete."""
        return sum(g.rows for g in self.groups) + len(self._contests())

    def settle(self, tuning: int, limit: int) -> Iterator[Arch]:
        """DARTS-PT's choice (Wang et al., ICLR 2021, algorithm 1): row by row in random order, choices within an option after the
        choice of that option, what makes the loss of ``limit`` validation images largest by its absence. Then, where
        edges compete, node by node in random order, the two edges by the same rule. Of options that cannot be added (`uneven`)
        one alone is there at a time; of these the one with which the loss is least. After each decision come ``tuning`` steps of
        the weights. Yields the architecture after each."""
        order = [(k, row) for k, group in enumerate(self.groups) for row in range(group.rows)]
        turns = torch.randperm(len(order), generator=self._generator("settle")).tolist()
        for k, row in sorted((order[turn] for turn in turns), key=lambda place: self.groups[place[0]].depth):
            self._choose(k, row, self._best(k, row, limit))
            self._tune(tuning)
            yield self.architecture()
        contests = self._contests()
        for turn in torch.randperm(len(contests), generator=self._generator("settle edges")).tolist():
            k, edges = contests[turn]
            self._keep_two(k, edges, limit)
            self._tune(tuning)
            yield self.architecture()

    def _contests(self) -> list[tuple[int, tuple[int, ...]]]:
        """(group, rows) of every node to which more than two edges lead that compete."""
        return [(k, edges) for k, group in enumerate(self.groups) for edges in group.competing if len(edges) > 2]

    def _best(self, k: int, row: int, limit: int) -> int:
        """The option of a row that `settle` chooses."""
        never = self.groups[k].none if self.groups[k].competing else None
        options: list[int] = [option for option in self.allowed[k][row].nonzero()[:, 0].tolist() if option != never]
        if self.uneven[k]:
            return min(options, key=lambda option: self._loss_at(k, row, _only(self.alphas[k][row], option), limit))
        return max(options, key=lambda option: self._loss_at(k, row, _without(self.alphas[k][row], option), limit))

    def _keep_two(self, k: int, edges: Sequence[int], limit: int) -> None:
        """Makes all edges of a node nothing but the two without which the loss is largest."""
        none = self.groups[k].none
        assert none is not None
        losses = {row: self._loss_at(k, row, _only(self.alphas[k][row], none), limit) for row in edges}
        for row in sorted(edges, key=lambda row: -losses[row])[2:]:
            with torch.no_grad():
                self.alphas[k][row] -= CERTAIN  # its operation stays the best of the others
                self.alphas[k][row, none] = CERTAIN

    def _choose(self, k: int, row: int, option: int) -> None:
        with torch.no_grad():
            self.alphas[k][row] = _only(self.alphas[k][row], option)

    def _loss_at(self, k: int, row: int, alpha: Tensor, limit: int) -> float:
        """The validation loss with other α of one row."""
        kept = self.alphas[k].detach().clone()
        with torch.no_grad():
            self.alphas[k][row] = alpha
            loss = self.validation_loss(limit)
            self.alphas[k].copy_(kept)
        return loss

    def _tune(self, steps: int) -> None:
        inner = batches(self.training, self.method.recipe.batch_for(self.training), self.augment, self.seed, 2 * self.done)
        for _ in range(steps):
            self.step_weights(next(inner))
            self.done += 1

    # -------------------------------------------------------------------------------------------------------------- state
    def state(self) -> dict[str, Tensor]:
        """Everything that the next steps depend on, as named tensors: contiguous copies."""
        found = {f"net {k}": v for k, v in self.net.state_dict().items()}
        for name, tensors in (("alpha", self.alphas), ("beta", self.betas), ("allowed", self.allowed)):
            found.update({f"{name} {k}": v.detach() for k, v in enumerate(tensors)})
        found.update(optimiser_tensors([*self._weights, self._adam]))
        return {k: v.clone(memory_format=torch.contiguous_format) for k, v in {**found, "done": torch.tensor(self.done)}.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Sets what `state` gave.

        Raises:
            InputError: it is not the state of such a search.
        """
        try:
            self.net.load_state_dict({k[4:]: v for k, v in state.items() if k.startswith("net ")})
            with torch.no_grad():
                for name, tensors in (("alpha", self.alphas), ("beta", self.betas), ("allowed", self.allowed)):
                    for k, tensor in enumerate(tensors):
                        tensor.copy_(state[f"{name} {k}"])
            load_optimisers([*self._weights, self._adam], state)
            self.done = int(state["done"])
        except (KeyError, RuntimeError, ValueError) as problem:
            raise InputError("the saved state of the differentiable search belongs to another network or method: start the "
                             f"search anew ({problem}).") from None


def _only(alpha: Tensor, option: int) -> Tensor:
    """A row's α (options,) with all weight on one option."""
    return torch.full_like(alpha, -CERTAIN).index_fill(0, torch.tensor(option), CERTAIN)


def _without(alpha: Tensor, option: int) -> Tensor:
    """A row's α (options,) with no weight on one option."""
    return alpha.detach().index_fill(0, torch.tensor(option), -CERTAIN)


def _kept(allowed: Tensor) -> Tensor:
    """The options that are left of every row, (rows, equally many)."""
    return allowed.nonzero()[:, 1].view(len(allowed), -1)


def _dropout(rate: float, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Each number is 0 with probability ``rate`` and otherwise divided by 1 - rate."""
    return lambda x: x * (torch.rand(x.shape, generator=generator) >= rate) / (1 - rate)


def _by_target(beta: Tensor, targets: Sequence[int]) -> Tensor:
    """softmax over the edges that lead to one node (Xu et al., PC-DARTS, ICLR 2020)."""
    at = torch.tensor(targets)
    shares = torch.zeros_like(beta)
    for target in sorted(set(targets)):
        where = (at == target).nonzero()[:, 0]
        shares = shares.scatter(0, where, beta[where].softmax(0))
    return shares


def _check_parts(training: Images, validation: Images) -> None:
    if not len(validation):
        raise InputError("the validation part is empty, from which a differentiable search learns the architecture: give it a "
                         "share of the images.")
    if len(training) < 2:
        raise InputError(f"the training part has {len(training)} images, from which no batch can be made: give it two at least.")
    both = set(training.index.tolist()) & set(validation.index.tolist())
    if training.x is validation.x and both:
        raise InputError(f"the training and the validation part share {len(both)} images: the architecture would learn from what "
                         "the weights have seen; split them apart.")
