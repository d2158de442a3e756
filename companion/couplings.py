"""Which noise goes with which sample: couplings of data and noise, for training along the paths between them.

A coupling changes the pairs and neither side: over many batches the data are still the data and the noise still
standard normal, so that a flow trained on any of them ends at the same distribution. It changes how the paths cross.
Each rule here is a function (x0, noise, cond) -> noise, as ``training.train`` takes it; ``reflow`` makes the pairs
from a flow instead.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from companion import _checks as check
from companion.samplers import ddim, nodes, sample


def _pairs(x0, noise, cond):
    """Raise unless there is one noise for each sample, and one condition if any."""
    check.floating("x0", x0)
    check.floating("noise", noise)
    check.same_shape("noise", noise, "x0", x0)
    if cond is not None and cond.shape[:1] != x0.shape[:1]:
        raise ValueError(f"cond must have one condition per sample, {len(x0)}; got shape {tuple(cond.shape)}")


def independent(
    x0: Float[Tensor, "batch *data"], noise: Float[Tensor, "batch *data"], cond=None
) -> Float[Tensor, "batch *data"]:
    """The noise as it came: every sample may meet every noise. Raises ValueError for shapes that do not fit."""
    _pairs(x0, noise, cond)
    return noise


@torch.no_grad()
def optimal_transport(
    x0: Float[Tensor, "batch *data"], noise: Float[Tensor, "batch *data"], cond=None
) -> Float[Tensor, "batch *data"]:
    """The batch's noise in the order whose pairs have the least sum of squared distances (Tong et al. 2024).

    The assignment is exact, by POT's network simplex on the CPU, in about cubic time. With ``cond``, (batch, …), noise
    changes places only among samples of equal condition: otherwise it would tell the condition, and a sampler, which
    draws the two independently, would start from noise that training never paired with it. Raises ValueError for shapes
    that do not fit or values that are not finite.
    """
    _pairs(x0, noise, cond)
    check.finite("x0", x0)
    check.finite("noise", noise)
    group = (
        torch.zeros(len(x0), dtype=torch.long) if cond is None else torch.unique(cond, dim=0, return_inverse=True)[1]
    )
    order = torch.arange(len(x0), device=x0.device)
    for which in group.unique():
        members = (group == which).nonzero()[:, 0].to(x0.device)
        order[members] = members[_assignment(x0[members], noise[members])]
    return noise[order]


def _assignment(x0, noise):
    """Which noise each sample gets: the permutation of least total squared distance."""
    if len(x0) == 1:
        return torch.zeros(1, dtype=torch.long, device=x0.device)
    import ot

    device = x0.device
    x0, noise = (side.flatten(1).cpu().double() for side in (x0, noise))
    # −x0·noise ranks the orders as ||x0 − noise||² does, whose other two terms no order changes; POT's solver takes
    # costs below zero for infeasible now and then
    cost = -(x0 @ noise.T)
    chosen = ot.emd([], [], (cost - cost.min()).numpy(), numItermax=10_000_000).argmax(1)
    if len(set(chosen.tolist())) < len(chosen):
        raise RuntimeError(f"the optimal transport of {len(chosen)} pairs was not found")
    return torch.as_tensor(chosen, device=device)


def reflow(
    denoise,
    schedule,
    noise: Float[Tensor, "n *data"],
    ts: Float[Tensor, "nodes"],
    *,
    cond=None,
    sampler=ddim,
    batch: int = 500,
) -> Float[Tensor, "n *data"]:
    """The x0 that a flow carries each noise to: pairs for training the next flow (Liu et al. 2023, algorithm 1).

    ``denoise(x, t)``, or ``denoise(x, t, cond)`` where ``cond``, (n, …), is given, walks the grid by ``sampler``, which
    must be deterministic, ``batch`` at a time. The noise is standard normal: it is scaled by sigma at ts[0], where
    alpha is small. The result has noise's shape, dtype and device; the pairs transport what the flow generates, errors
    included. Raises ValueError for a grid that does not decrease, for batch < 1 or a cond that does not fit.
    """
    check.floating("noise", noise)
    check.positive_int("batch", batch)
    if cond is not None and cond.shape[:1] != noise.shape[:1]:
        raise ValueError(f"cond must have one condition per noise, {len(noise)}; got shape {tuple(cond.shape)}")
    grid = nodes(schedule, ts, noise)
    ends = []
    for i in range(0, len(noise), batch):
        given = () if cond is None else (cond[i : i + batch],)
        x = grid[0].sigma * noise[i : i + batch]
        ends.append(sample(lambda x, t, given=given: denoise(x, t, *given), schedule, x, grid, sampler=sampler))
    return torch.cat(ends)


def transport_cost(x0: Float[Tensor, "batch *data"], noise: Float[Tensor, "batch *data"]) -> Float[Tensor, "batch"]:
    """||x0 − noise||² of each pair, (batch,); its mean is the coupling's cost. Raises ValueError for unequal shapes."""
    _pairs(x0, noise, None)
    return (x0 - noise).square().flatten(1).sum(1)


def straightness(states: Float[Tensor, "nodes batch *data"], ts: Float[Tensor, "nodes"]) -> Float[Tensor, "batch"]:
    """The mean over time of ||dx/dt − (x_end − x_start) / (t_end − t_start)||² along each path, (batch,).

    Zero on a straight line walked at even speed; its mean over paths that fill [0, 1] is S of Liu et al. 2023.
    ``states`` are x at the nodes ts of a walk, its start included; the path between two of them is taken to be
    straight, which leaves out a share of order 1/steps². Raises ValueError unless there are as many states as
    times, at least two, and the times decrease.
    """
    check.floating("states", states)
    check.floating("ts", ts)
    if ts.ndim != 1 or len(ts) < 2 or len(states) != len(ts):
        raise ValueError(f"states and ts must be equally long, at least 2; got {len(states)} and {tuple(ts.shape)}")
    if not (ts[1:] < ts[:-1]).all():
        raise ValueError(f"ts must decrease, noise first; got {ts[0].item():g} … {ts[-1].item():g}")
    steps = ts.diff()
    whole, steps = (states[-1] - states[0]) / check.like(ts[-1] - ts[0], states), check.like(steps, states)
    return ((states.diff(dim=0) / steps - whole).square().flatten(2).sum(2) * (steps / steps.sum()).flatten(1)).sum(0)
