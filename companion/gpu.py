"""Where and how things run: the device, and samplers compiled to one callable, the same on a CPU and a GPU."""

import torch
from torch import Tensor

from companion.samplers import nodes, sample


def device() -> torch.device:
    """The CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe(device: torch.device) -> str:
    """The hardware in words: the GPU's name, or the number of CPU threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return f"CPU, {count} thread{'s' if count > 1 else ''}"


_device = device  # the function, where an argument has its name


def compile_sampler(sampler, denoise, schedule, ts, shape, *, device=None, dtype=torch.float32, **options):
    """A callable ``run(x) -> samples`` that walks the whole grid, for x of the given shape.

    On a CUDA device the loop is captured once as a CUDA graph, so that a step costs no kernel launches from Python;
    noise drawn inside is fresh at each call, from the device's default generator. Elsewhere it is the plain loop, with
    the same result. ``options`` go to the sampler. ``run`` raises ValueError for an x of another shape, dtype or
    device type.
    """
    where = torch.device(device) if device is not None else _device()
    buffer = torch.zeros(shape, device=where, dtype=dtype)
    grid = nodes(schedule, ts, buffer)  # once: a graph may not copy times from the host

    def plain(x: Tensor) -> Tensor:
        with torch.no_grad():
            return sample(denoise, schedule, x, grid, sampler=sampler, **options)

    walk = _captured(plain, buffer) if where.type == "cuda" else plain

    def run(x: Tensor) -> Tensor:
        if x.shape != buffer.shape or x.dtype != dtype or x.device.type != where.type:
            raise ValueError(
                f"x must have shape {tuple(shape)}, {dtype}, on {where.type}; "
                f"got {tuple(x.shape)}, {x.dtype}, on {x.device.type}"
            )
        return walk(x)

    return run


def _captured(walk, static_x):
    """The walk as a CUDA graph over static buffers (warmed up on a side stream first, as capture requires)."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            walk(static_x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        static_out = walk(static_x)

    def run(x):
        static_x.copy_(x)
        graph.replay()
        return static_out.clone()

    return run
