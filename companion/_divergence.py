"""The divergence of a field from its autograd graph, exact or along a probe: for score matching and for likelihoods."""

import torch


def along(probe, value, x, **graph):
    """w' (d value / d x) w per sample, (batch,), for a probe w: one backward pass (Hutchinson 1989)."""
    (pulled,) = torch.autograd.grad(value, x, probe, retain_graph=True, **graph)
    return (pulled * probe).flatten(1).sum(1)


def exact(value, x, **graph):
    """The trace of d value / d x per sample, (batch,): a probe along each axis, one backward pass for each."""
    axes = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
    return sum(along(axis.reshape(x.shape[1:]).expand_as(x), value, x, **graph) for axis in axes)
