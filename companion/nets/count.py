"""How large a network is, and what one evaluation of it costs."""

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


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
