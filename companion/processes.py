"""Several processes that train one model: who takes part, what each takes of a batch, and how shares become one."""

import contextlib
import os
import shutil
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn


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
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
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


def spread(function, jobs: list) -> list[torch.Tensor]:
    """``function(job)``, a tensor on the CPU, for every job and in their order; every process gets all of them.

    Each process does every ``world``-th job. The results are those of one process, bit for bit, where a job brings all
    that it depends on, its noise above all.
    """
    mine = [function(job) for job in jobs[rank() :: world()]]
    if world() == 1:
        return mine
    parts = [None] * world()
    dist.all_gather_object(parts, mine)
    return [parts[i % world()][i // world()] for i in range(len(jobs))]


# ---- weights that are shared out ------------------------------------------------------------------------------------


def shard(module: nn.Module) -> nn.Module:
    """Share a module's weights out over the processes, in place (PyTorch's fully sharded data parallel); the module.

    Each process keeps a part of every weight, and gathers those of one block of a ``ModuleList`` when its turn comes.
    The module is to be called as a whole. In a process that has joined no others nothing is changed.
    """
    if world() == 1:
        return module
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for p in module.parameters():
        p.data = p.data.contiguous()  # channels_last cannot be cut
    mesh = init_device_mesh(next(module.parameters()).device.type, (world(),))
    blocks = [block for m in module.modules() if isinstance(m, nn.ModuleList) for block in m]
    for part in [*(block for block in blocks if any(True for _ in block.parameters())), module]:
        fully_shard(part, mesh=mesh, reshard_after_forward=True)  # the outermost too: an average has no backward
    return module


def local(value: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor that is shared out; any other tensor itself."""
    return value.to_local() if hasattr(value, "to_local") else value


def full(value: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that is shared out, to every process; any other tensor itself."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


@torch.no_grad()
def gather(module: nn.Module, into: nn.Module) -> nn.Module:
    """Copy the weights of a module that is shared out into one of the same kind that is not, in every process."""
    for whole, part in zip(into.parameters(), module.parameters(), strict=True):
        whole.copy_(full(part.detach()))
    for whole, part in zip(into.buffers(), module.buffers(), strict=True):
        whole.copy_(part)
    return into


# ---- checkpoints of which every process writes its part -------------------------------------------------------------


def newest(folder: Path) -> Path | None:
    """The last complete checkpoint in a folder, or None."""
    return max(folder.glob("step-" + "[0-9]" * 9), default=None)


def save(folder: Path, step: int, optimizer: torch.optim.Optimizer, modules: dict[str, nn.Module], rest: dict):
    """Write the first module with its optimiser, the other modules, and ``rest``, which rank 0 has, as one checkpoint.

    Every process writes what it holds (torch.distributed.checkpoint); the folder gets its name when it is complete,
    and then the one before goes.
    """
    from torch.distributed import checkpoint

    before, whole = newest(folder), folder / f"step-{step:09}"
    part = whole.with_suffix(".part")
    if rank() == 0:
        shutil.rmtree(part, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    _meet()
    checkpoint.save(_state(optimizer, modules), checkpoint_id=part, no_dist=not joined())
    if rank() == 0:
        with open(part / "rest.pt", "wb") as file:
            torch.save(rest, file)
            file.flush()
            os.fsync(file.fileno())
        if before != whole:
            os.replace(part, whole)
            if before is not None:
                shutil.rmtree(before)
    _meet()


def rest_of(path: Path) -> dict:
    """What ``save`` was given as ``rest``, of a complete checkpoint."""
    return torch.load(path / "rest.pt", map_location="cpu", weights_only=True)


def load(path: Path, optimizer: torch.optim.Optimizer, modules: dict[str, nn.Module]):
    """Read a complete checkpoint into modules and optimiser, in every process what it holds.

    It may have been written by another number of processes. Only for folders that you trust: what PyTorch writes there
    is unpickled, and can run any program. Raises ValueError for one that has other modules.
    """
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_state_dict

    state = _state(optimizer, modules)
    try:
        checkpoint.load(state, checkpoint_id=path, no_dist=not joined())
    except (RuntimeError, checkpoint.CheckpointException) as error:
        raise ValueError(f"checkpoint {path} does not hold what is to be read from it: {error}") from error
    (first, module), *others = modules.items()
    set_state_dict(module, optimizer, model_state_dict=state[first], optim_state_dict=state["optimizer"])
    for name, other in others:
        set_model_state_dict(other, state[name])


def _state(optimizer, modules):
    """What a checkpoint holds of them, tensors in place."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_state_dict

    (first, module), *others = modules.items()
    weights, steps = get_state_dict(module, optimizer)
    return {first: weights, "optimizer": steps} | {name: get_model_state_dict(other) for name, other in others}


def _meet():
    """Wait for the other processes."""
    if world() > 1:
        dist.barrier()
