"""Where and how things run: the device, and samplers and training steps made one callable, the same on a CPU and a GPU.

A small network's layer takes a GPU less time than Python takes to ask for it. A CUDA graph asks once: the whole walk,
or the whole step of training, is recorded, and is then played back with a single launch.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion import _checks as check
from companion import processes
from companion.losses import simple_loss
from companion.samplers import nodes, sample
from companion.times import antithetic

WARM_UP = 3  # times that a function runs before it is recorded: libraries choose their kernels then


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


# ---- sampling -------------------------------------------------------------------------------------------------------


def compile_sampler(
    sampler,
    denoise,
    schedule,
    ts,
    shape,
    *,
    device=None,
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
    compile: bool = False,
    generator: torch.Generator | None = None,
    **options,
):
    """A callable ``run(x) -> samples`` that walks the whole grid, for x of the given shape.

    On a CUDA device the loop is recorded once as a CUDA graph, so that a step costs no kernel launches from Python.
    Elsewhere it is the plain loop, with the same result. ``autocast`` is the type in which the network works,
    torch.bfloat16 or torch.float16; the walk itself stays in ``dtype``. With ``compile`` denoise goes through
    ``torch.compile``: a minute, and on a CPU a C++ compiler. Noise is fresh at each step and call, from ``generator``
    (on the same device), or else the device's default one: after the same seed it is the noise of the plain loop.
    ``options`` go to the sampler. What denoise holds must not be replaced afterwards (``denoise.cond`` by another
    tensor): a graph reads it where it lay. ``run`` raises ValueError for an x of another shape, dtype or device type.
    """
    check.one_of("autocast", autocast, (None, torch.bfloat16, torch.float16))
    where = torch.device(device) if device is not None else _device()
    if generator is not None:
        if generator.device.type != where.type:
            raise ValueError(f"generator must be on {where.type}; got {generator.device.type}")
        if "noise" in options:
            raise ValueError("generator must be None where noise is given; got both")

        def noise(x):
            return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)

        options["noise"] = noise
    buffer = torch.zeros(shape, device=where, dtype=dtype)
    grid = nodes(schedule, ts, buffer)  # once: a graph may not copy times from the host
    if compile:
        denoise = torch.compile(denoise, dynamic=False)

    def plain(x: Tensor) -> Tensor:
        with torch.no_grad(), _working_in(where, autocast):
            return sample(denoise, schedule, x, grid, sampler=sampler, **options)

    walk = _recorded_walk(plain, buffer, generator) if where.type == "cuda" else plain

    def run(x: Tensor) -> Tensor:
        if x.shape != buffer.shape or x.dtype != dtype or x.device.type != where.type:
            raise ValueError(
                f"x must have shape {tuple(shape)}, {dtype}, on {where.type}; "
                f"got {tuple(x.shape)}, {x.dtype}, on {x.device.type}"
            )
        return walk(x)

    return run


def _working_in(device, autocast):
    """The context in which networks work in the type asked for; a graph may not keep what the cache holds."""
    if autocast is None and not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    dtype = autocast or torch.get_autocast_dtype(device.type)
    return torch.autocast(device.type, dtype=dtype, cache_enabled=device.type != "cuda")


def _recorded_walk(walk, static_x, generator):
    """The walk as a CUDA graph over static buffers; the generator is left as it was found."""
    source = torch.cuda.default_generators[static_x.device.index or 0] if generator is None else generator
    state = source.get_state()
    with _beside(static_x.device):
        for _ in range(WARM_UP):
            walk(static_x)
    graph, static_out = _recorded(lambda: walk(static_x), static_x.device, [] if generator is None else [generator])
    source.set_state(state)

    def run(x):
        static_x.copy_(x.detach())
        graph.replay()
        return static_out.clone()

    run.reads = walk  # the graph knows addresses alone: times, weights and conditions must stay where they are
    return run


@contextlib.contextmanager
def _choosing():
    """Libraries try several kernels and choose; all other settings stay the caller's."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextlib.contextmanager
def _beside(device):
    """On a stream of its own, as what is to be recorded must have run before."""
    here, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(here)
    with torch.cuda.stream(side), _choosing():
        yield
    here.wait_stream(side)


def _recorded(function, device, generators):
    """A CUDA graph of a call, and what the call returns: tensors that each replay fills anew."""
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with _choosing(), torch.cuda.graph(graph, stream=torch.cuda.Stream(device)):
        found = function()
    return graph, found


# ---- training -------------------------------------------------------------------------------------------------------


class TrainStep(NamedTuple):
    """``step(lr) -> (loss, grad_norm)``, both tensors on the device, and the state that a checkpoint keeps.

    Into the optimiser a state is loaded before the first step: a graph, once recorded, goes on with what it knows.
    """

    walk: Callable
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    scaler: torch.amp.GradScaler

    def __call__(self, lr: float | int) -> tuple[Tensor, Tensor]:
        """Draw a batch and train on it at this learning rate; the loss, and the gradients' norm before clipping."""
        return self.walk(lr)


def compile_train_step(
    denoiser: nn.Module,
    x0: Float[Tensor, "n *data"],
    *,
    batch: int = 128,
    ema=None,
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
    graph: bool = True,
    shard: bool = False,
) -> TrainStep:
    """A callable ``step(lr) -> (loss, grad_norm)`` that draws a batch, trains on it, and moves the average.

    The samples lie on the denoiser's device, and nothing in a step waits for it. On a CUDA device all of it (draws,
    forward, backward, optimiser, average) is recorded as one CUDA graph after three plain steps, unless ``graph`` is
    False; elsewhere it is the plain step, with the same result. With ``compile`` the loss goes through
    ``torch.compile``; with ``shard`` the processes share out weights, gradients and the optimiser's state
    (``processes.shard``), the denoiser's and the average's in place. The other arguments are those of
    ``training.train``, which walks with it. A state that is loaded into the optimiser after the first step is not seen
    by the graph. Raises ValueError for arguments that do not fit, and on a CUDA device for a graph of what asks the
    host on the way: a coupling, times that learn, float16, several processes.
    """
    check.floating("x0", x0)
    check.finite("x0", x0)
    check.positive_int("batch", batch)
    check.one_of("autocast", autocast, (None, torch.bfloat16, torch.float16))
    share, mine = processes.world(), slice(processes.rank(), None, processes.world())
    if batch % share:
        raise ValueError(f"batch must be divisible by the {share} processes; got {batch}")
    if cond is not None and (cond.ndim not in (1, 2) or len(cond) != len(x0) or not 0 <= drop_cond < 1):
        raise ValueError(
            f"cond must have shape ({len(x0)},) or ({len(x0)}, length) and 0 ≤ drop_cond < 1; "
            f"got {tuple(cond.shape)}, {drop_cond}"
        )
    if noise is not None:
        check.same_shape("noise", noise, "x0", x0)
        check.finite("noise", noise)
        if coupling is not None:
            raise ValueError("coupling must be None where noise is given: the pairs are made; got both")
    device = next(denoiser.parameters()).device
    graph = graph and device.type == "cuda"
    if graph and (coupling is not None or hasattr(times, "update") or autocast == torch.float16 or share > 1):
        raise ValueError("graph must be False with a coupling, times that learn, float16 or several processes")
    x0, cond, noise = (None if value is None else value.to(device) for value in (x0, cond, noise))
    null = _null(denoiser.net) if cond is not None else None
    measure = _Loss(denoiser, loss)
    if shard:
        processes.shard(measure)  # before the optimiser, which then holds its part alone
        if ema is not None:
            processes.shard(ema.model)
    elif share > 1:
        on = [device] if device.type == "cuda" else None
        measure = nn.parallel.DistributedDataParallel(measure, device_ids=on)
    fast = {"fused": True, "capturable": True} if graph else {"fused": None, "capturable": False}
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, **fast)
    generator = torch.Generator(device).manual_seed(seed)
    scaler = torch.amp.GradScaler(device.type, enabled=autocast == torch.float16)
    draw = functools.partial(antithetic, denoiser.schedule) if times is None else times
    if compile:
        measure = torch.compile(measure, dynamic=False)

    def drawn():
        """A batch: samples, times, noise, conditions, and the weights of the times."""
        chosen = torch.randint(len(x0), (batch,), generator=generator, device=device)
        t, weight = draw(batch, generator=generator, device=device)
        partner = noise[chosen] if noise is not None else _normal(x0, batch, generator)
        if coupling is not None:
            partner = coupling(x0[chosen], partner, None if cond is None else cond[chosen])
            check.same_shape("coupling's noise", partner, "the batch", x0[chosen])
        given = None
        if cond is not None:
            dropped = torch.rand(batch, generator=generator, device=device) < drop_cond
            given = torch.where(dropped.view(-1, *[1] * (cond.ndim - 1)), null, cond[chosen])[mine]
        return (x0[chosen[mine]], t[mine], partner[mine], given), t, weight

    def plain(pace):
        """One step, at the optimiser's learning rate; the average moves by this share of the way."""
        shown, t, weight = drawn()
        with _working_in(device, autocast):
            if times is None:
                value = measure(*shown)
            else:
                losses = measure(*shown, per_sample=True)
                check.same_shape("loss", losses, "t", t[mine])
                value = (weight[mine] * losses).mean()
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(value).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(denoiser.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        if ema is not None:
            ema.move(denoiser, pace)
        if hasattr(times, "update"):
            times.update(t, processes.in_order(losses.detach()))
        return processes.mean(value.detach()), processes.full(norm)

    def fetch():
        """What was loaded into the optimiser may come from another device."""
        for state in optimizer.state.values():
            state["step"] = state["step"].to(device if graph else "cpu")

    def set_to(lr):
        """Tell the optimiser."""
        for group in optimizer.param_groups:
            group.update(lr=lr, **fast)

    def walk(lr):
        set_to(lr)
        return plain(0.0 if ema is None else ema.pace())

    held = {"lr": torch.zeros((), device=device), "pace": torch.zeros((), device=device)}
    calls, tape = itertools.count(), []

    def replayed(lr, number):
        held["lr"].fill_(lr)
        held["pace"].fill_(0.0 if ema is None else ema.pace())
        if not tape:
            set_to(held["lr"])
            if number < WARM_UP:
                with _beside(device):
                    found = plain(held["pace"])
                set_to(lr)  # a checkpoint keeps the number
                return found
            tape.extend(_recorded(lambda: plain(held["pace"]), device, [generator]))
            set_to(lr)
        tape[0].replay()
        return tuple(value.clone() for value in tape[1])

    def step(lr):
        number = next(calls)
        if number == 0:
            fetch()
        return replayed(lr, number) if graph else walk(lr)

    return TrainStep(step, optimizer, generator, scaler)


class _Loss(nn.Module):
    """The loss as a forward pass: that is what DistributedDataParallel wraps."""

    def __init__(self, denoiser, loss):
        super().__init__()
        self.denoiser, self.loss = denoiser, loss

    def forward(self, *batch, **options):
        return self.loss(self.denoiser, *batch, **options)


def _normal(x0, batch, generator):
    return torch.randn((batch, *x0.shape[1:]), generator=generator, device=x0.device, dtype=x0.dtype)


def _null(net):
    """What stands for no condition."""
    found = getattr(net, "null", getattr(net, "classes", None))
    if found is None:
        raise ValueError("cond must be None for a network that has no condition; got a tensor")
    return found
