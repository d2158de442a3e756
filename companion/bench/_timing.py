"""How long a call takes, and how long it could not be shorter than: medians taken in turns, and a machine's peaks."""

import statistics
import time

import torch
from torch import nn

from companion import gpu


def seconds(call, device) -> float:
    """How long a call takes, until the device is done."""
    wait(device)
    began = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - began


def wait(device):
    """Until the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turns(ways: dict, repetitions: int, device) -> dict:
    """For each way its first call and the quartiles of later ones, in seconds, taken in turns: a busy moment hits all.

    ``ways`` holds functions without arguments. The first call pays for what a way makes ready; a second one warms up.
    """
    first = {name: seconds(call, device) for name, call in ways.items()}
    for call in ways.values():
        call()
    taken = {name: [] for name in ways}
    for _ in range(repetitions):
        for name, call in ways.items():
            taken[name].append(seconds(call, device))
    return {name: {"first_call": first[name], "quartiles": quartiles(taken[name])} for name in ways}


def quartiles(values: list[float]) -> list[float]:
    """First quartile, median and third; of one value, three times itself."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def peaks(device, dtype: torch.dtype, *, size: int | None = None, repetitions: int = 5) -> dict:
    """The device's best: the FLOP/s of a large matrix product in ``dtype``, and bytes/s of a large copy."""
    size = size or (8192 if device.type == "cuda" else 1024)
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    there = torch.empty_like(source := torch.empty(16 * size * size, dtype=torch.uint8, device=device))
    calls = {"product": lambda: a @ b, "copy": lambda: there.copy_(source)}
    for call in calls.values():
        call()
    best = {name: min(seconds(call, device) for _ in range(repetitions)) for name, call in calls.items()}
    return {"flops_per_second": 2 * size**3 / best["product"], "bytes_per_second": 2 * source.numel() / best["copy"]}


@torch.no_grad()
def traffic(net, *inputs, dtype: torch.dtype = torch.float32) -> int:
    """The bytes that one call moves at least when no layer is fused: inputs, outputs and weights of every layer.

    Counted at the innermost modules, each number of ``dtype``'s size; what stands between modules is left out.
    """
    numbers = 0

    def count(module, given, found):
        nonlocal numbers
        numbers += sum(v.numel() for v in (*given, found) if isinstance(v, torch.Tensor))
        numbers += sum(p.numel() for p in module.parameters())

    handles = [m.register_forward_hook(count) for m in net.modules() if not any(True for _ in m.children())]
    try:
        net(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return numbers * dtype.itemsize


def network(width: int, patch: int, *, seed: int = 0) -> nn.Module:
    """The U-Net of the recipe ``mnist`` at this width and with these patches, its weights drawn; times run to 1,000."""
    from companion.nets import UNet

    torch.manual_seed(seed)
    net = UNet(1, width, (1, 2) if patch == 2 else (1, 2, 2), classes=10, patch=patch, time_scale=1.0)
    nn.init.normal_(net.out.weight, std=0.02)  # zero at first, which would hide what differs
    return net.eval().to(gpu.device())
