"""How large a network is, and what one evaluation of it costs."""

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from companion import _checks as check


def parameters(net) -> int:
    """The number of a network's parameters. Raises TypeError for what is not a ``torch.nn.Module``."""
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch.nn.Module; got {type(net).__name__}")
    return sum(p.numel() for p in net.parameters())


def flops(net, x, t, cond=None) -> int:
    """The floating-point operations of one call ``net(x, t, cond)``, for the whole batch.

    Those of convolutions, linear layers and attention; a multiplication with its addition counts as two. Element by
    element work (norms, nonlinearities, residual sums) is left out, as is usual. Raises as the network does.
    """
    # attention written out as two matrix products, which the counter knows on every device
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(x, t, cond)
    return counter.get_total_flops()


def layer_cost(layer, given, found, *, bytes_each: int = 4) -> tuple[int, int]:
    """The operations W of one layer, and the bytes Q that it moves if it reads and writes every number once.

    ``layer`` is a Conv2d of C to C' channels with a square kernel of side k, or a Linear layer (k = 1); ``given`` and
    ``found`` are its input and its output. W = 2 k² C C' n, with a multiplication and its addition as two, those with
    padding among them, and without the bias; Q = ``bytes_each`` (C n' + C' n + k² C C' + C'), the last where there is a
    bias, for n' places that go in and n that come out, over the whole batch. Raises TypeError for other layers,
    ValueError for other kernels, for groups, and for tensors that do not fit the layer.
    """
    check.positive_int("bytes_each", bytes_each)
    if isinstance(layer, nn.Conv2d):
        if layer.groups != 1 or len(set(layer.kernel_size)) != 1:
            raise ValueError(
                f"layer must have a square kernel and groups = 1; got {layer.kernel_size}, groups = {layer.groups}"
            )
        inside, outside, dim = layer.in_channels, layer.out_channels, -3
    elif isinstance(layer, nn.Linear):
        inside, outside, dim = layer.in_features, layer.out_features, -1
    else:
        raise TypeError(f"layer must be a Conv2d or a Linear layer; got {type(layer).__name__}")
    for name, value, channels in (("given", given, inside), ("found", found, outside)):
        if value.ndim < -dim or value.shape[dim] != channels:
            raise ValueError(f"{name} must have {channels} channels; got a tensor of shape {tuple(value.shape)}")
    work = 2 * layer.weight.numel() * (found.numel() // outside)
    return work, bytes_each * (given.numel() + found.numel() + parameters(layer))
