"""The training loop is a generator: it yields after every step, and the caller decides what to watch, when to stop."""

import copy
import math
import os
import time
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion import _checks as check
from companion.losses import simple_loss
from companion.schedules import DiscreteVP


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

    @torch.no_grad()
    def update(self, model: nn.Module):
        """Move the average one step towards ``model``'s weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averaged, current = list(self.model.parameters()), list(model.parameters())
        torch._foreach_lerp_(averaged, current, 1 - decay)
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


def draw_times(schedule, n: int, *, generator=None, device=None) -> Float[Tensor, "n"]:
    """n training times that cover the schedule evenly: one uniform shift of n equal strata (Kingma et al. 2021, I.1).

    Integer nodes 1 … T for a ``DiscreteVP``, real times otherwise; float32, in increasing order.
    """
    check.positive_int("n", n)
    shift = torch.rand((), generator=generator, device=device, dtype=torch.float64)
    even = (torch.arange(n, device=device) + shift) / n
    if isinstance(schedule, DiscreteVP):
        return torch.floor(even * schedule.t_max).clamp(max=schedule.t_max - 1).float() + 1
    return (schedule.t_min + even * (schedule.t_max - schedule.t_min)).float()


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
    loss=simple_loss,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 500,
    progress: bool = True,
):
    """Train a ``Denoiser`` in place on the samples x0, and yield ``Progress`` after every step.

    AdamW, the learning rate warmed up over ``warmup`` steps and then brought to zero along a cosine; gradients clipped
    to norm ``clip``. ``cond`` are classes, (n,); a share ``drop_cond`` of them is replaced by the class "none" (the
    network's ``classes``), which classifier-free guidance needs. All draws come from ``seed`` alone. With
    ``checkpoint`` the state is written there every ``checkpoint_every`` steps and at the end, and training goes on
    from it if the file is there: on a CPU with the very same weights as without the interruption. Raises ValueError
    for arguments that do not fit, RuntimeError when the loss is no longer finite.
    """
    check.floating("x0", x0)
    check.finite("x0", x0)
    for name, value in (("steps", steps), ("batch", batch), ("checkpoint_every", checkpoint_every)):
        check.positive_int(name, value)
    if cond is not None and (cond.shape != x0.shape[:1] or not 0 <= drop_cond < 1):
        raise ValueError(
            f"cond must have shape ({len(x0)},) and 0 ≤ drop_cond < 1; got {tuple(cond.shape)}, {drop_cond}"
        )
    device = next(denoiser.parameters()).device
    x0, cond = x0.to(device), None if cond is None else cond.to(device)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    generator = torch.Generator(device).manual_seed(seed)
    state = {"denoiser": denoiser, "optimizer": optimizer, "generator": generator, "ema": ema}
    first = _resume(checkpoint, state, steps) if checkpoint and Path(checkpoint).exists() else 0
    denoiser.train()
    began = time.perf_counter()
    for step in _counter(first, steps, progress):
        for group in optimizer.param_groups:
            group["lr"] = lr * _warmed(step, steps, warmup)
        chosen = torch.randint(len(x0), (batch,), generator=generator, device=device)
        t = draw_times(denoiser.schedule, batch, generator=generator, device=device)
        noise = torch.randn((batch, *x0.shape[1:]), generator=generator, device=device, dtype=x0.dtype)
        given = None
        if cond is not None:
            dropped = torch.rand(batch, generator=generator, device=device) < drop_cond
            given = torch.where(dropped, denoiser.net.classes, cond[chosen])
        value = loss(denoiser, x0[chosen], t, noise, given)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(denoiser.parameters(), clip)
        optimizer.step()
        if ema is not None:
            ema.update(denoiser)
        if step % 100 == 0 and not torch.isfinite(value):
            raise RuntimeError(f"the loss is {value.item()} at step {step}: a lower lr than {lr} may help")
        if checkpoint and (step % checkpoint_every == 0 or step == steps):
            _save(checkpoint, state, step)
        yield Progress(step, value.detach(), time.perf_counter() - began)
    denoiser.eval()


def _warmed(step, steps, warmup):
    return min(1.0, step / max(1, warmup)) * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))


def _counter(first, steps, progress):
    numbers = range(first + 1, steps + 1)
    if not progress:
        return numbers
    from tqdm.auto import tqdm

    return tqdm(numbers, initial=first, total=steps, desc="training", unit="step", mininterval=0.5)


def _save(path, state, step):
    """Write the whole state to a temporary name, then rename: a cut file never takes the place of a good one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    ema = state["ema"]
    whole = {
        "step": step,
        "denoiser": state["denoiser"].state_dict(),
        "optimizer": state["optimizer"].state_dict(),
        "generator": state["generator"].get_state(),
        "global_generator": torch.get_rng_state(),
        "ema": None if ema is None else {"model": ema.model.state_dict(), "updates": ema.updates},
    }
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    with open(temporary, "wb") as file:
        torch.save(whole, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _resume(path, state, steps):
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if saved["step"] > steps:
        raise ValueError(f"checkpoint {path} is at step {saved['step']}, past steps = {steps}")
    if (saved["ema"] is None) != (state["ema"] is None):
        raise ValueError(f"checkpoint {path} was written {'without' if saved['ema'] is None else 'with'} an EMA")
    state["denoiser"].load_state_dict(saved["denoiser"])
    state["optimizer"].load_state_dict(saved["optimizer"])
    state["generator"].set_state(saved["generator"])
    torch.set_rng_state(saved["global_generator"])
    if state["ema"] is not None:
        state["ema"].model.load_state_dict(saved["ema"]["model"])
        state["ema"].updates = saved["ema"]["updates"]
    return saved["step"]
