"""The training loop is a generator: it yields after every step, and the caller decides what to watch, when to stop.

It runs in one process, or in several that torchrun starts and ``processes.distributed`` joins; the weights come out
the same. What a single step does stands in ``gpu.compile_train_step``.
"""

import copy
import json
import math
import os
import time
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch import distributed as dist

from companion import _checks as check
from companion import processes
from companion.denoisers import Clipped
from companion.gpu import compile_train_step
from companion.losses import simple_loss
from companion.processes import rank, world
from companion.samplers import ddim, sample, start


class EMA:
    """An exponential moving average of a module's weights, as a second module: ``ema.model``.

    After each ``update`` the average moves by 1 − decay towards the weights; at step n the decay is at most
    (1 + n) / (10 + n), so that the untrained start is forgotten. Raises ValueError unless 0 ≤ decay < 1.
    """

    def __init__(self, model: nn.Module, decay: float | int = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1; got {decay}")
        self.decay, self.updates = decay, 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def update(self, model: nn.Module):
        """Move the average one step towards ``model``'s weights."""
        self.move(model, self.pace())

    def pace(self) -> float:
        """The share of the way that the next step goes; a call counts that step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        return 1 - decay

    @torch.no_grad()
    def move(self, model: nn.Module, pace: float | Float[Tensor, ""]):
        """Move the average this share of the way, which may be a tensor on the device, towards ``model``'s weights."""
        averaged, current = ([processes.local(p) for p in m.parameters()] for m in (self.model, model))
        if isinstance(pace, Tensor):
            way = torch._foreach_sub(current, averaged)
            torch._foreach_mul_(way, pace)
            torch._foreach_add_(averaged, way)
        else:
            torch._foreach_lerp_(averaged, current, pace)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)


class Progress(NamedTuple):
    """After a step: its number from 1, the loss as a tensor on the device, seconds since the start or resumption."""

    step: int
    loss: Tensor
    seconds: float


def budget(full: int, quick: int) -> int:
    """``full``, or ``quick`` where the environment variable COMPANION_QUICK is set: the steps a chapter trains live."""
    check.positive_int("full", full)
    check.positive_int("quick", quick)
    return quick if os.environ.get("COMPANION_QUICK") else full


# ---- the loop -------------------------------------------------------------------------------------------------------


def train(
    denoiser,
    x0: Float[Tensor, "n *data"],
    *,
    steps: int,
    batch: int = 128,
    lr: float | int = 1e-3,
    warmup: int = 100,
    ema: EMA | None = None,
    cond: Tensor | None = None,
    drop_cond: float | int = 0.1,
    clip: float | int = 1.0,
    seed: int = 0,
    noise: Float[Tensor, "n *data"] | None = None,
    coupling=None,
    loss=simple_loss,
    times=None,
    autocast: torch.dtype | None = None,
    compile: bool = False,
    graph: bool = False,
    shard: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 500,
    metrics: str | Path | None = None,
    metrics_every: int = 100,
    progress: bool = True,
):
    """Train a ``Denoiser`` in place on the samples x0, and yield ``Progress`` after every step.

    AdamW, the learning rate warmed up over ``warmup`` steps and then brought to zero along a cosine; gradients clipped
    to norm ``clip``. ``cond`` are classes, (n,), or rows of tokens, (n, length); a share ``drop_cond`` of them is
    replaced by the network's ``null``, which classifier-free guidance needs. All draws come from ``seed`` alone, but
    for dropout's, which come from PyTorch's global generator. Raises ValueError for arguments that do not fit,
    RuntimeError when the loss is no longer finite.

    Noise is drawn afresh for every batch, and independent of it, unless ``noise`` holds the partner of each sample, as
    ``couplings.reflow`` makes them, or ``coupling(x0, noise, cond)`` returns the batch's noise in another order, as
    ``couplings.optimal_transport`` does; cond is then the batch's, with none replaced.

    The step is ``loss(denoiser, x0, t, noise, cond)``, a scalar, at ``times.antithetic`` times. ``times(n, generator=…,
    device=…)`` gives others as a ``Times``, weights and all: then the loss is called with ``per_sample=True``, and an
    ``update(t, losses)`` such as that of ``times.Importance`` is told what it found. ``autocast`` is the type in which
    the network works, torch.bfloat16 or torch.float16 (with scaled gradients); weights and loss stay in x0's.
    With ``compile`` the loss goes through ``torch.compile``; with ``graph`` a step on a CUDA device is one CUDA graph
    (``gpu.compile_train_step`` says what cannot be in it).

    With ``checkpoint`` the state is written there every ``checkpoint_every`` steps and at the end, and training goes on
    from it if the file is there: on a CPU with the very same weights as without the interruption. It goes on where it
    was written, on a CPU or on a GPU, as their random numbers differ (else ValueError). ``metrics`` is a file that gets
    a line of JSON every ``metrics_every`` steps: step, loss and grad_norm (before clipping), both means over these
    steps, lr, seconds, images_per_second (the caller's time between steps included); lines past the step that training
    starts from are removed.

    Inside ``processes.distributed`` every process draws the same batch and takes its share of it, and gradients are
    averaged (DistributedDataParallel): the weights are those of one process with the same ``batch``, to rounding.
    Dropout's draws differ between processes, and so from those of one. Only the process of ``rank`` 0 writes files.
    With ``shard`` no process holds all weights (``processes.shard``, in place for denoiser and average). Each writes
    its part of the checkpoint, then a folder, from which any number of processes can go on. Afterwards the denoiser
    cannot be called by itself: draw from ``ema.model``, which can, or from what ``processes.gather`` makes of either.
    """
    counts = {"steps": steps, "checkpoint_every": checkpoint_every, "metrics_every": metrics_every}
    for name, value in counts.items():
        check.positive_int(name, value)
    step = compile_train_step(
        denoiser,
        x0,
        batch=batch,
        ema=ema,
        cond=cond,
        drop_cond=drop_cond,
        clip=clip,
        seed=seed,
        noise=noise,
        coupling=coupling,
        loss=loss,
        times=times,
        autocast=autocast,
        compile=compile,
        graph=graph,
        shard=shard,
    )
    log = _Log(metrics, metrics_every, batch)
    state = {"denoiser": denoiser, "optimizer": step.optimizer, "generator": step.generator, "ema": ema}
    state |= {"times": times if hasattr(times, "state_dict") else None, "scaler": step.scaler, "log": log}
    if world() > 1:
        torch.manual_seed(seed + 1000 * (rank() + 1))  # dropout must not be the same in every process
    save, resume = (_save_parts, _resume_parts) if shard else (_save, _resume)
    kept = checkpoint and (processes.newest(Path(checkpoint)) if shard else Path(checkpoint).exists())
    first = resume(checkpoint, state, steps) if kept else 0
    log.start(first)
    denoiser.train()
    began = time.perf_counter()
    for number in _counter(first, steps, progress and rank() == 0):
        now = lr * _warmed(number, steps, warmup)
        value, norm = step(now)
        if number % 100 == 0 and not torch.isfinite(value):
            raise RuntimeError(f"the loss is {value.item()} at step {number}: a lower lr than {lr} may help")
        log.add(value, norm)
        if number % metrics_every == 0 or number == steps:
            log.write(number, now, time.perf_counter() - began)
        if checkpoint and (number % checkpoint_every == 0 or number == steps):
            save(checkpoint, state, number)
        yield Progress(number, value, time.perf_counter() - began)
    denoiser.eval()


def _warmed(step, steps, warmup):
    return min(1.0, step / max(1, warmup)) * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))


def _counter(first, steps, progress):
    numbers = range(first + 1, steps + 1)
    if not progress:
        return numbers
    from tqdm.auto import tqdm

    return tqdm(numbers, initial=first, total=steps, desc="training", unit="step", mininterval=0.5)


class _Log:
    """Means over an interval, added up on the device, and the file that gets them; written by rank 0 alone."""

    def __init__(self, path, every, batch):
        self.path = Path(path) if path and rank() == 0 else None
        self.every, self.batch, self.sums, self.count = every, batch, None, 0

    def start(self, step):
        """Keep of the file what was written up to this step: whole lines of JSON."""
        self.since, self.at = time.perf_counter(), step
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            found = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
            kept = [line for line in found if line.endswith("\n") and json.loads(line)["step"] <= step]
            _replace(self.path, "".join(kept).encode())

    def add(self, loss, norm):
        """One step's loss and gradient norm; nothing waits for the device."""
        if self.path:
            both = torch.stack([loss, norm.to(loss)]).double()
            self.sums = both if self.sums is None else self.sums.to(both) + both
            self.count += 1

    def write(self, step, lr, seconds):
        """The line of an interval."""
        if not self.path:
            return
        loss, norm = (value if math.isfinite(value) else None for value in (self.sums / self.count).tolist())
        now = time.perf_counter()
        line = {"step": step, "loss": loss, "lr": lr, "grad_norm": norm, "seconds": round(seconds, 3)}
        line["images_per_second"] = round(self.batch * (step - self.at) / (now - self.since), 1)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.sums, self.count, self.since, self.at = None, 0, now, step

    def state_dict(self):
        return {"sums": self.sums, "count": self.count}

    def load_state_dict(self, state):
        self.sums, self.count = state["sums"], state["count"]


def _replace(path, content):
    """Write to a temporary name, then rename: a cut file never takes the place of a good one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    with open(temporary, "wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _rest(state, step):
    """What a checkpoint holds besides weights and the optimiser's state; every process tells its global generators'."""
    device, ema, times = state["generator"].device, state["ema"], state["times"]
    everyone = [(torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None)]
    if world() > 1:
        mine, everyone = everyone[0], [None] * world()
        dist.all_gather_object(everyone, mine)
    generators, of_gpus = map(list, zip(*everyone, strict=True))
    return {
        "step": step,
        "generator": state["generator"].get_state(),
        "global_generators": generators,
        "global_generators_of_gpus": of_gpus,
        "ema": None if ema is None else {"updates": ema.updates},
        "times": None if times is None else times.state_dict(),
        "scaler": state["scaler"].state_dict(),
        "log": state["log"].state_dict(),
    }


def _take(path, saved, state, steps):
    """Set all that ``_rest`` holds, once it is known to fit; the step."""
    if saved["step"] > steps:
        raise ValueError(f"checkpoint {path} is at step {saved['step']}, past steps = {steps}")
    for name, what in (("ema", "an EMA"), ("times", "times that learn")):
        if (saved[name] is None) != (state[name] is None):
            raise ValueError(f"checkpoint {path} was written {'without' if saved[name] is None else 'with'} {what}")
    if bool(saved["scaler"]) != state["scaler"].is_enabled():
        raise ValueError(f"checkpoint {path} was written with another autocast")
    device = state["generator"].device
    if len(saved["generator"]) != len(state["generator"].get_state()):
        raise ValueError(f"checkpoint {path} must have been written on a {device.type} device, for its random numbers")
    state["generator"].set_state(saved["generator"])
    if rank() < len(saved["global_generators"]):
        torch.set_rng_state(saved["global_generators"][rank()])
        if device.type == "cuda" and "global_generators_of_gpus" in saved:
            torch.cuda.set_rng_state(saved["global_generators_of_gpus"][rank()], device)
    state["scaler"].load_state_dict(saved["scaler"])
    state["log"].load_state_dict(saved["log"])
    if state["times"] is not None:
        state["times"].load_state_dict(saved["times"])
    if state["ema"] is not None:
        state["ema"].updates = saved["ema"]["updates"]
    return saved["step"]


def _save(path, state, step):
    """Write the whole state into one file, by rank 0."""
    whole = _rest(state, step)
    if rank():
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole |= {name: state[name].state_dict() for name in ("denoiser", "optimizer")}
    if state["ema"] is not None:
        whole["ema"]["model"] = state["ema"].model.state_dict()
    _replace(path, whole)


def _resume(path, state, steps):
    saved = torch.load(path, map_location="cpu", weights_only=True)
    step = _take(path, saved, state, steps)
    for name in ("denoiser", "optimizer"):
        state[name].load_state_dict(saved[name])
    if state["ema"] is not None:
        state["ema"].model.load_state_dict(saved["ema"]["model"])
    return step


def _modules(state):
    return {"denoiser": state["denoiser"]} | ({} if state["ema"] is None else {"average": state["ema"].model})


def _save_parts(path, state, step):
    """Write the state into a folder, every process its part."""
    processes.save(Path(path), step, state["optimizer"], _modules(state), _rest(state, step))


def _resume_parts(path, state, steps):
    newest = processes.newest(Path(path))
    step = _take(newest, processes.rest_of(newest), state, steps)
    processes.load(newest, state["optimizer"], _modules(state))
    return step


# ---- a look at the samples ------------------------------------------------------------------------------------------


def sample_grid(
    denoiser,
    path: str | Path,
    *,
    shape: tuple[int, int, int, int],
    ts: Float[Tensor, "nodes"],
    seed: int = 0,
    cond: Tensor | None = None,
    columns: int = 8,
) -> Path:
    """Write a picture of samples in [−1, 1], drawn by DDIM along ``ts`` from the same noise at every call; its path.

    ``shape`` is (n, 1 or 3, height, width); the path's ending says the format (.png, .webp). For use between the steps
    of ``train``: it draws from a generator of its own, and leaves the denoiser in the mode it was in. Only the process
    of ``rank`` 0 writes, and only where weights are shared out do the others take part; then the denoiser is to be an
    average (``ema.model``) or what ``processes.gather`` makes, as one in training cannot be called by itself. Raises
    ValueError for a shape or a number of columns that does not fit.
    """
    check.positive_int("columns", columns)
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise ValueError(f"shape must be (n, 1 or 3, height, width); got {tuple(shape)}")
    path = Path(path)
    shared = any(processes.local(p) is not p for p in denoiser.parameters())
    if rank() and not shared:  # where weights are shared out no process can do without the others
        return path
    device, mode = next(denoiser.parameters()).device, denoiser.training
    generator = torch.Generator(device).manual_seed(seed)
    x = start(denoiser.schedule, ts, shape, generator=generator, device=device)
    denoise = Clipped(lambda x, t: denoiser(x, t, cond))
    denoiser.eval()
    try:
        images = sample(denoise, denoiser.schedule, x, ts, sampler=ddim)
    finally:
        denoiser.train(mode)
    return path if rank() else save_grid(images, path, columns=columns)


def save_grid(images: Float[Tensor, "n channels height width"], path: str | Path, *, columns: int = 8) -> Path:
    """Write images in [−1, 1] as one picture, ``columns`` in a row, a white line around each; its path.

    What lies outside [−1, 1] is clamped; the path's ending says the format (.png, .webp). Raises ValueError unless
    there are 1 or 3 channels and at least one column.
    """
    check.positive_int("columns", columns)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must have shape (n, 1 or 3, height, width); got {tuple(images.shape)}")
    from PIL import Image

    images, path = images.cpu(), Path(path)
    rows = -(-len(images) // columns)
    sheet = torch.cat([images, images.new_full((rows * columns - len(images), *images.shape[1:]), 1.0)])
    sheet = nn.functional.pad(sheet, (1, 1, 1, 1), value=1.0).unflatten(0, (rows, columns))
    sheet = sheet.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)  # (channel, height, width) of the whole
    pixels = ((sheet + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).squeeze(2).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path
