"""Several processes that train one model: who takes part, what each takes of a batch, and how shares become one."""

import contextlib
import os

import torch
from torch import distributed as dist


@contextlib.contextmanager
def distributed():
    """Join the other processes of torchrun while the context lasts: each its own GPU, or all on the CPU.

    Does nothing in a process that torchrun did not start. Raises RuntimeError where there are more processes than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    gpus, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", 0))
    if gpus:
        if local >= gpus:
            raise RuntimeError(f"torchrun's --nproc-per-node must not exceed the {gpus} GPUs here")
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if gpus else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def joined() -> bool:
    """Whether this process has joined others; each may be the only one."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number among those that train together; 0, the one that writes files, where there is only one."""
    return dist.get_rank() if joined() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if joined() else 1


def mean(value: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over the processes."""
    if world() > 1:
        dist.all_reduce(value)
        value = value / world()
    return value


def in_order(part: torch.Tensor) -> torch.Tensor:
    """The batch's values from every process's share, which is each ``world``-th sample; all of the same length."""
    if world() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(world())]
    dist.all_gather(parts, part.contiguous())
    return torch.stack(parts, 1).flatten()
