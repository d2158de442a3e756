"""How long a call takes, on what, and what it cannot go below: medians taken in turns, a trace, a machine's peaks."""

import statistics
import time

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

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


def by_kind(run, device, kinds: dict[str, tuple[str, ...]]) -> dict[str, float]:
    """Seconds of one call of ``run``, after one to warm up, by kind of operator, as ``torch.profiler`` saw them.

    ``kinds`` holds, by kind, parts of operators' names: an operator's own time goes to the first kind that has a part
    in its name, else to ``"element by element"``. ``"Python, waiting"`` is what no operator accounts for. On a GPU an
    operator's time is the device's. The profiler's own messages stop where KINETO_LOG_LEVEL is set before torch is
    imported.
    """
    on_gpu = device.type == "cuda"
    run()
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as trace:
        whole = seconds(run, device)
    found = dict.fromkeys([*kinds, "element by element"], 0.0)
    for event in trace.key_averages():
        if event.device_type == torch.autograd.DeviceType.CPU:  # kernels stand there again by themselves
            kind = next((k for k, parts in kinds.items() if any(p in event.key for p in parts)), "element by element")
            found[kind] += 1e-6 * (event.self_device_time_total if on_gpu else event.self_cpu_time_total)
    return found | {"Python, waiting": max(0.0, whole - sum(found.values()))}


def peaks(device, dtype: torch.dtype, *, size: int | None = None, repetitions: int = 5) -> dict:
    """The device's best: the FLOP/s of a large matrix product in ``dtype``, and bytes/s of a large copy.

    Where convolutions in float32 may round their inputs to TF32, as PyTorch lets them on a GPU unless it is told
    otherwise, this product may as well: a network of convolutions is not held against slower arithmetic than its own.
    """
    size = size or (8192 if device.type == "cuda" else 1024)
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    there = torch.empty_like(source := torch.empty(16 * size * size, dtype=torch.uint8, device=device))
    calls = {"product": lambda: a @ b, "copy": lambda: there.copy_(source)}
    products, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    products.allow_tf32 = before or torch.backends.cudnn.allow_tf32
    try:
        for call in calls.values():
            call()
        best = {name: min(seconds(call, device) for _ in range(repetitions)) for name, call in calls.items()}
    finally:
        products.allow_tf32 = before
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
    for weights in net.parameters():
        if weights.ndim > 1 and not weights.any():
            nn.init.normal_(weights, std=0.02)  # zero at first, which would hide what differs
    return net.eval().to(gpu.device())
