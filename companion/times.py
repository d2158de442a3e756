"""Which times a training step is shown, and how much each then counts, so that the loss stays what it was.

Each draw is ``Times(t, weight)``: mean(weight × f(t)) estimates the mean of f over the schedule's times, that is
uniform over (t_min, t_max), or over the nodes 1 … T of a ``DiscreteVP``. ``logit_normal`` alone means to change it.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from companion import _checks as check
from companion.schedules import DiscreteVP


class Times(NamedTuple):
    """n times and the factor on each one's loss, both (n,) and float32."""

    t: Tensor
    weight: Tensor


def _at(schedule, share):
    """The times at these shares, in [0, 1), of the schedule: integer nodes of a table, real times otherwise."""
    if isinstance(schedule, DiscreteVP):
        return torch.floor(share * schedule.t_max).clamp(max=schedule.t_max - 1).float() + 1
    return (schedule.t_min + share * (schedule.t_max - schedule.t_min)).float()


def _strata(n, generator, device):
    """n numbers in [0, 1), increasing: one uniform shift of n equal strata."""
    shift = torch.rand((), generator=generator, device=device, dtype=torch.float64)
    return (torch.arange(n, device=device) + shift) / n


def uniform(schedule, n: int, *, generator=None, device=None) -> Times:
    """n times drawn one by one, each uniform over the schedule; all weights are 1. Raises ValueError for n < 1."""
    check.positive_int("n", n)
    t = _at(schedule, torch.rand(n, generator=generator, device=device, dtype=torch.float64))
    return Times(t, torch.ones_like(t))


def antithetic(schedule, n: int, *, generator=None, device=None) -> Times:
    """n times that cover the schedule evenly: one uniform shift of n equal strata (Kingma et al. 2021, I.1).

    Each is uniform by itself; together, in increasing order, they leave no gap. All weights are 1. Raises ValueError
    for n < 1.
    """
    check.positive_int("n", n)
    t = _at(schedule, _strata(n, generator, device))
    return Times(t, torch.ones_like(t))


def logit_normal(loc: float | int = 0.0, scale: float | int = 1.0):
    """A rule ``draw(n, *, generator=None, device=None)`` of times with logit(t) ~ N(loc, scale²), most in the middle.

    For schedules whose times are 0 … 1; n strata of equal probability share one uniform shift, as in ``antithetic``.
    All weights are 1: unlike the other rules this one does change the loss, which it weights by its density (Esser et
    al. 2024, eq. 19), so that mean(weight × f(t)) estimates the mean of f under that density. loc > 0 moves times
    towards the noise. Raises ValueError for scale ≤ 0 or loc that is not finite; ``draw`` for n < 1.
    """
    check.positive("scale", scale)
    if isinstance(loc, bool) or not math.isfinite(loc):
        raise ValueError(f"loc must be a finite number; got {loc!r}")

    def draw(n: int, *, generator=None, device=None) -> Times:
        check.positive_int("n", n)
        t = torch.sigmoid(loc + scale * torch.special.ndtri(_strata(n, generator, device))).float()
        return Times(t, torch.ones_like(t))

    return draw


class Importance:
    """Times drawn in proportion to sqrt(E[loss²]) there, and weighted back (Nichol & Dhariwal 2021, section 3.3).

    The expectation is over the last ``history`` losses of each bin: a node of a ``DiscreteVP``, or one of ``bins``
    equal cells of time. Until every bin has so many, times are uniform; after that a share ``uniform_share`` stays so,
    and no weight exceeds its inverse. One shift of equal strata goes through the inverse distribution function, as in
    ``antithetic``. Raises ValueError for bins or history < 1, or unless 0 < uniform_share ≤ 1.
    """

    def __init__(self, schedule, *, bins: int = 100, history: int = 10, uniform_share: float | int = 0.001):
        check.positive_int("bins", bins)
        check.positive_int("history", history)
        if not 0 < uniform_share <= 1:
            raise ValueError(f"uniform_share must be above 0 and at most 1; got {uniform_share}")
        self.schedule, self.history, self.uniform_share = schedule, history, uniform_share
        self.bins = int(schedule.t_max) if isinstance(schedule, DiscreteVP) else bins
        # a row more than there are bins: where losses go that are not kept
        self.losses = torch.zeros(self.bins + 1, history, dtype=torch.float64)
        self.counts = torch.zeros(self.bins, dtype=torch.int64)

    def probabilities(self) -> Float[Tensor, "bins"]:
        """The probability of each bin, float64; all alike until every bin has its history."""
        root = self.losses[:-1].square().mean(1).sqrt()
        even = torch.full_like(root, 1 / self.bins)
        share = root / root.sum().clamp(min=torch.finfo(root.dtype).tiny)
        mixed = (1 - self.uniform_share) * share + self.uniform_share * even
        mixed = mixed / mixed.sum()  # changes something only where every loss was 0
        return torch.where((self.counts >= self.history).all(), mixed, even)

    def __call__(self, n: int, *, generator=None, device=None) -> Times:
        """n times in increasing order, and 1 / (bins × probability) of each one's bin."""
        check.positive_int("n", n)
        self._to(device)
        even, p = _strata(n, generator, device), self.probabilities()
        upto = p.cumsum(0)
        chosen = torch.searchsorted(upto, even * upto[-1], right=True).clamp(max=self.bins - 1)
        inside = ((even * upto[-1] - (upto - p)[chosen]) / p[chosen]).clamp(0, 1)
        # the middle of a node's share, lest rounding make it the next one
        inside = torch.full_like(inside, 0.5) if isinstance(self.schedule, DiscreteVP) else inside
        return Times(_at(self.schedule, (chosen + inside) / self.bins), (1 / (self.bins * p[chosen])).float())

    def update(self, t: Float[Tensor, "n"], losses: Float[Tensor, "n"]):
        """Remember the losses, not yet weighted, that were found at times t. Raises ValueError for unequal shapes."""
        check.floating("t", t)
        check.same_shape("losses", losses, "t", t)
        self._to(t.device)
        if isinstance(self.schedule, DiscreteVP):
            cell = t.long() - 1
        else:
            share = (t.double() - self.schedule.t_min) / (self.schedule.t_max - self.schedule.t_min)
            cell = (share * self.bins).floor().long()
        cell, order = cell.clamp(0, self.bins - 1).sort(stable=True)
        place = torch.arange(len(cell), device=t.device)
        rank = place - torch.searchsorted(cell, cell)
        left = torch.searchsorted(cell, cell, right=True) - place  # how many of the bin are still to come, this one too
        slot = (self.counts[cell] + rank) % self.history
        row = torch.where(left <= self.history, cell, self.bins)  # no slot is written twice
        self.losses[row, slot] = losses.detach().double()[order]
        self.counts.index_add_(0, cell, torch.ones_like(cell))

    def _to(self, device):
        device = "cpu" if device is None else device
        self.losses, self.counts = self.losses.to(device), self.counts.to(device)

    def state_dict(self) -> dict:
        """What a checkpoint needs to go on with the very same draws."""
        return {"losses": self.losses.clone(), "counts": self.counts.clone()}

    def load_state_dict(self, state: dict):
        """Take over a ``state_dict``. Raises ValueError unless bins and history are the same."""
        check.same_shape("losses", state["losses"], "this object's", self.losses)
        self.losses, self.counts = state["losses"].clone(), state["counts"].clone()
