"""Training: it learns, it resumes to the very same weights after kill −9, several processes do what one does."""

import functools
import json
import multiprocessing
import os
import random
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from multiprocessing import connection
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import refuses

from companion import couplings, data, processes, times, training
from companion import schedules as S
from companion.denoisers import Denoiser
from companion.losses import flow_matching_loss, hybrid_loss, simple_loss
from companion.nets import MLP, UNet
from companion.processes import rank
from companion.recipes import mnist
from companion.samplers import dpmpp_2m, sample, start
from companion.toy import GaussianMixture
from companion.training import EMA, Progress, budget, sample_grid, save_grid, train


def make(seed=0, kind="v"):
    torch.manual_seed(seed)
    return Denoiser(MLP(2, 64, 2), S.CosineVP(), kind)


def weights(module):
    return torch.cat([processes.full(p.detach()).flatten() for p in module.parameters()])


def test_learns_the_exact_denoiser(mixture):
    x0 = mixture.sample(20_000).float()
    model = make()
    ema = EMA(model, 0.99)
    for progress in train(model, x0, steps=1200, batch=256, lr=3e-3, ema=ema, progress=False):
        assert isinstance(progress, Progress)
    schedule = model.schedule
    for t, bound in ((0.3, 0.02), (0.6, 0.03), (0.9, 0.05)):
        t = torch.tensor(t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x = mixture.sample(5000, alpha, sigma).float()
        exact = mixture.denoise(x, alpha, sigma)
        assert (ema.model(x, t) - exact).square().mean() < bound
        off_by_a_tenth = mixture.denoise(x, schedule.alpha(t + 0.1), schedule.sigma(t + 0.1))
        assert (ema.model(x, t) - exact).square().mean() < (off_by_a_tenth - exact).square().mean() + bound
    ts = S.linspace(schedule, 50)
    end = sample(ema.model, schedule, start(schedule, ts, (4000, 2)), ts)
    assert (mixture.responsibilities(end).mean(0) - mixture.weights).abs().max() < 0.06


def test_same_seed_same_weights_other_seed_others(mixture):
    x0 = mixture.sample(500).float()
    ends = []
    for seed in (1, 1, 2):
        model = make()
        list(train(model, x0, steps=20, seed=seed, progress=False))
        ends.append(weights(model))
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


SCRIPT = textwrap.dedent("""
    import sys, time, torch
    sys.path.insert(0, {here!r})
    from test_training import make, times, EMA, train
    from companion.toy import GaussianMixture
    torch.set_num_threads(1)
    x0 = GaussianMixture.four().sample(500, generator=torch.Generator().manual_seed(0)).float()
    model = make(); ema = EMA(model)
    learning = times.Importance(model.schedule, bins=5, history=2)
    keep = dict(checkpoint=sys.argv[1], checkpoint_every=7, metrics=sys.argv[2] + ".jsonl", metrics_every=5)
    for progress in train(model, x0, steps=60, ema=ema, times=learning, progress=False, **keep):
        print(progress.step, flush=True)
        time.sleep(float(sys.argv[3]))
    torch.save([p.detach() for m in (model, ema.model) for p in m.parameters()], sys.argv[2])
""")


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    script = SCRIPT.format(here=os.path.dirname(__file__))

    def run(checkpoint, out, pause):
        arguments = [sys.executable, "-c", script, str(tmp_path / checkpoint), str(tmp_path / out), str(pause)]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)

    assert run("whole.pt", "whole", 0).wait() == 0
    stop = random.SystemRandom().randrange(8, 55)
    process = run("cut.pt", "cut", 0.01)
    for line in process.stdout:
        if int(line) >= stop:
            break
    process.kill()  # SIGKILL
    process.wait()
    assert (tmp_path / "cut.pt").exists() and not (tmp_path / "cut").exists()
    with open(tmp_path / "cut.jsonl", "a") as file:
        file.write('{"step": ')  # as if it had died within a line
    again = run("cut.pt", "cut", 0)
    first = int(again.stdout.readline())
    again.communicate()
    assert again.returncode == 0 and 1 < first <= stop + 1, (first, stop)
    whole, cut = (torch.load(tmp_path / name) for name in ("whole", "cut"))
    assert all(torch.equal(a, b) for a, b in zip(whole, cut, strict=True))
    whole, cut = (lines(tmp_path / f"{name}.jsonl") for name in ("whole", "cut"))
    assert [line["step"] for line in cut] == list(range(5, 61, 5))
    for key in ("step", "loss", "lr", "grad_norm"):  # an interval that was cut in two has the mean of both parts
        assert [line[key] for line in whole] == [line[key] for line in cut], key


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_metrics_are_means_over_their_interval(tmp_path):
    path, seen = tmp_path / "a" / "metrics.jsonl", []
    x0 = torch.randn(100, 2)
    losses = [p.loss.item() for p in train(make(), x0, steps=25, metrics=path, metrics_every=10, progress=False)]
    found = lines(path)
    assert [line["step"] for line in found] == [10, 20, 25]
    for line, part in zip(found, (losses[:10], losses[10:20], losses[20:]), strict=True):
        assert line["loss"] == pytest.approx(sum(part) / len(part), rel=1e-6)
        assert line["seconds"] > 0 and line["images_per_second"] > 0
    assert found[0]["lr"] == pytest.approx(1e-3 * 0.1 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * 9 / 25)).item()))

    def norms(denoiser, *batch):
        value = simple_loss(denoiser, *batch)
        gradients = torch.autograd.grad(value, list(denoiser.parameters()), retain_graph=True)
        seen.append(torch.cat([g.flatten() for g in gradients]).norm().item())
        return value

    list(train(make(), x0, steps=25, metrics=path, metrics_every=10, clip=1e-3, loss=norms, progress=False))
    assert [line["step"] for line in lines(path)] == [10, 20, 25]  # from the start: none of the old lines
    assert lines(path)[0]["grad_norm"] == pytest.approx(sum(seen[:10]) / 10, rel=1e-4)  # before they are clipped


def test_times_that_learn_are_told_the_losses_before_they_are_weighted():
    told = []

    class Twice(times.Importance):
        def __call__(self, n, **options):
            t = times.uniform(self.schedule, n, **options).t
            return times.Times(t, torch.full_like(t, 2.0))

        def update(self, t, losses):
            told.append(losses.mean().item())
            assert losses.shape == t.shape == (64,)

    schedule = S.CosineVP()
    x0 = torch.randn(100, 2)
    options = {"steps": 8, "batch": 64, "progress": False}
    weighted = [p.loss.item() for p in train(make(), x0, times=Twice(schedule), **options)]
    assert weighted == pytest.approx([2 * value for value in told], rel=1e-6)
    # even times, by name, with the mean taken outside the loss: the same steps, to rounding
    one, other = make(), make()
    list(train(one, x0, **options))
    list(train(other, x0, times=functools.partial(times.antithetic, schedule), **options))
    torch.testing.assert_close(weights(one), weights(other), atol=1e-6, rtol=1e-4)


def test_importance_and_the_hybrid_loss_train_together():
    schedule = S.CosineVP()

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = MLP(4, 32, 2)

        def forward(self, x, t, cond=None):
            return self.mlp(torch.cat([x, 0 * x], 1), t)

    x0 = 1 + 0.2 * torch.randn(500, 2)
    torch.manual_seed(0)
    model = Denoiser(Net(), schedule, "v", learned_variance=True)
    learning = times.Importance(schedule, bins=10, history=3)
    loss = functools.partial(hybrid_loss, step=0.01)
    found = [p.loss for p in train(model, x0, steps=100, lr=1e-2, loss=loss, times=learning, progress=False)]
    assert (learning.counts >= 3).all() and torch.stack(found[-10:]).mean() < torch.stack(found[:10]).mean()
    assert learning.probabilities().std() > 0.01


def test_bfloat16_works_in_its_own_type_and_trains_nearly_the_same():
    x0, seen, ends = torch.randn(500, 2), [], []

    def loss(denoiser, *batch):
        value = simple_loss(denoiser, *batch)
        seen.append(value.dtype)
        return value

    def record(module, arguments, output):
        seen.append(output.dtype)

    for autocast in (None, torch.bfloat16):
        model = make()
        model.net.layers[2].register_forward_hook(record)
        list(train(model, x0, steps=100, loss=loss, lr=3e-3, warmup=10, autocast=autocast, progress=False))
        assert all(p.dtype == torch.float32 for p in model.parameters())
        ends.append(weights(model))
    assert seen == 200 * [torch.float32] + 100 * [torch.bfloat16, torch.float32]
    start = weights(make())
    assert 0 < (ends[0] - ends[1]).norm() < 0.2 * (ends[0] - start).norm()


def test_float16_scales_its_gradients_and_resumes(tmp_path):
    """Where there is no GPU too: gradients that float16 cannot hold come through, and the scale is kept."""
    x0, path = torch.randn(500, 2), tmp_path / "a.pt"
    model, plain = make(), make()
    options = {"steps": 12, "lr": 3e-3, "warmup": 2, "progress": False}
    tiny = lambda denoiser, *batch: 1e-6 * simple_loss(denoiser, *batch)  # noqa: E731
    list(train(model, x0, loss=tiny, autocast=torch.float16, checkpoint=path, **options))
    list(train(plain, x0, loss=tiny, **options))
    moved = weights(plain) - weights(make())
    assert (weights(model) - weights(plain)).norm() < 0.1 * moved.norm()
    assert torch.load(path)["scaler"]["scale"] > 1
    with refuses(ValueError, "another autocast"):
        next(train(make(), x0, **options, checkpoint=path))


def test_a_checkpoint_of_another_kind_of_device_is_refused(tmp_path):
    """Told by the size of its generator's state: a GPU's has 16 bytes. And before anything is set to what it holds."""
    path, x0 = tmp_path / "a.pt", torch.randn(50, 2)
    options = {"steps": 4, "checkpoint": path, "progress": False}
    list(train(make(), x0, **options))
    saved = torch.load(path)
    assert saved["global_generators_of_gpus"] == [None]
    torch.save(saved | {"generator": torch.zeros(16, dtype=torch.uint8)}, path)
    before = torch.get_rng_state()
    with refuses(ValueError, "must have been written on a cpu device"):
        next(train(make(), x0, **options))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_gpu_s_own_generator_is_kept(monkeypatch):
    """Dropout draws from it. Where there is no GPU, one is played: the state of its generator, and who sets it."""
    device, states, told = torch.device("cuda", 1), [torch.tensor([1, 2]), torch.tensor([3, 4])], []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda where: states[where.index])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, where: told.append((state, where)))
    generator = SimpleNamespace(device=device, get_state=lambda: states[0], set_state=lambda state: None)
    state = {"generator": generator, "ema": None, "times": None, "scaler": torch.amp.GradScaler("cpu", enabled=False)}
    state["log"] = training._Log(None, 1, 1)
    saved = training._rest(state, 3)
    assert training._take("a.pt", saved, state, 5) == 3
    assert told == [(states[1], device)]
    del saved["global_generators_of_gpus"]  # as it was once written
    assert training._take("a.pt", saved, state, 5) == 3 and len(told) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_dropout_on_a_gpu_goes_on_where_it_was(tmp_path):
    """Losses after a resumption are those without one; from other draws they differ a hundred times as much."""
    x0, found = torch.randn(200, 2), []

    def model():
        made = make()
        made.net.register_forward_hook(lambda net, given, output: torch.nn.functional.dropout(output))
        return made.cuda()

    for stops in ((12,), (6, 12)):
        torch.manual_seed(3)
        path, losses = tmp_path / f"{len(stops)}.pt", []
        for stop in stops:
            for step in train(model(), x0, steps=12, checkpoint=path, checkpoint_every=6, progress=False):
                losses.append(step.loss.item())
                if step.step == stop:
                    break
            torch.cuda.manual_seed(99)
        found.append(losses)
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_a_grid_of_samples_is_a_picture_and_leaves_training_alone(tmp_path):
    from PIL import Image

    torch.manual_seed(0)
    x0 = torch.rand(64, 1, 8, 8) * 2 - 1
    model, same = (Denoiser(UNet(1, 8, (1,), dropout=0.1), S.CosineVP(), "v") for _ in range(2))
    same.load_state_dict(model.state_dict())
    ts = S.linspace(model.schedule, 3)
    for one in (model, same):
        torch.manual_seed(1)  # dropout's draws
        for progress in train(one, x0, steps=6, batch=8, progress=False):
            if one is model and progress.step % 3 == 0:
                assert sample_grid(
                    model, tmp_path / "grids" / f"{progress.step}.png", shape=(5, 1, 8, 8), ts=ts
                ).exists()
                assert model.training
    assert torch.equal(weights(model), weights(same))
    generator = torch.Generator().manual_seed(0)
    x = start(model.schedule, ts, (5, 1, 8, 8), generator=generator)
    want = ((sample(model.eval(), model.schedule, x, ts).clamp(-1, 1) + 1) * 127.5).round()
    again = sample_grid(model, tmp_path / "again.png", shape=(5, 1, 8, 8), ts=ts, columns=3)
    with Image.open(again) as picture:
        pixels = torch.from_numpy(np.array(picture))
    assert pixels.shape == (20, 30)  # two rows of three, a white frame around each
    assert (pixels[11:19, 11:19] - want[4, 0]).abs().max() <= 1 and (pixels[10:, 20:] == 255).all()
    colour = Denoiser(UNet(3, 8, (1,)), S.CosineVP(), "v")
    with Image.open(sample_grid(colour, tmp_path / "colour.webp", shape=(2, 3, 8, 8), ts=ts)) as picture:
        assert picture.mode == "RGB" and picture.size == (80, 10)
    images = torch.tensor([[-3.0, 0.0, 3.0]]).expand(2, 3, 1, 3)
    with Image.open(save_grid(images, tmp_path / "given.png", columns=1)) as picture:
        assert picture.size == (5, 6) and picture.getpixel((1, 1)) == (0, 0, 0)  # clamped, not wrapped around
        assert picture.getpixel((2, 4)) == (128, 128, 128) and picture.getpixel((3, 1)) == (255, 255, 255)


# ---- several processes ----------------------------------------------------------------------------------------------


AVERAGED = torch.nn.parallel.DistributedDataParallel


def summed(model):
    """Gradients added up over the processes instead of averaged."""
    from torch import distributed as dist

    def hook(_, bucket):
        return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])

    model.register_comm_hook(None, hook)
    return model


def several(folder, steps, wrong="", name="out", checkpoint=None, stop=None, shard=False, copies=(), measured=False):
    """Train on digits in as many processes as torchrun started; rank 0 writes the weights, and copies the checkpoint.

    In float64, as AdamW makes a whole step of a gradient that is nothing but rounding: a bias that is normalised away
    has one. The average is asked for something on the way, which must leave it as it is.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = data.digits("train")
    model = Denoiser(UNet(1, 8, (1, 2), classes=10), S.CosineVP(), "v").double()
    torch.nn.init.normal_(model.net.out.weight, std=0.1)
    ema, learning = EMA(model, 0.9), times.Importance(model.schedule, bins=3, history=4)
    options = {"steps": steps, "batch": 16, "warmup": 5, "cond": labels[:200], "ema": ema, "times": learning}
    options |= {"metrics": f"{folder}/{name}.jsonl", "metrics_every": 5, "progress": False, "clip": 0.5}
    options |= {"checkpoint": checkpoint, "checkpoint_every": 5} if checkpoint else {}
    options["shard"] = shard
    if wrong == "own batches":
        options["seed"] = rank()
    if wrong == "a sum":
        torch.nn.parallel.DistributedDataParallel = lambda *arguments, **words: summed(AVERAGED(*arguments, **words))
    losses = []
    for progress in training.train(model, images[:200].double(), **options):
        losses.append(progress.loss.item())
        if progress.step == 2:
            with torch.no_grad():
                ema.model(images[:2].double(), torch.tensor(0.5, dtype=torch.float64), labels[:2])
        if progress.step == stop:
            break
    torch.nn.parallel.DistributedDataParallel = AVERAGED
    state = {"losses": losses, "model": weights(model), "ema": weights(ema.model), "counts": learning.counts}
    draw = lambda n: torch.randn(2, generator=torch.Generator().manual_seed(n))  # noqa: E731
    state["spread"] = processes.spread(draw, list(range(5)))
    plain = processes.gather(ema.model, into=Denoiser(UNet(1, 8, (1, 2), classes=10), S.CosineVP(), "v").double())
    state["gathered"] = torch.cat([p.detach().flatten() for p in plain.parameters()])
    torch.manual_seed(0)
    drawn = Denoiser(UNet(1, 8, (1, 2)), S.CosineVP(), "v")
    torch.nn.init.normal_(drawn.net.out.weight, std=0.1)
    drawn = processes.shard(drawn) if shard else drawn
    picture = sample_grid(drawn, f"{folder}/{name}.png", shape=(2, 1, 8, 8), ts=S.linspace(drawn.schedule, 3))
    state["picture"] = picture.read_bytes() if rank() == 0 else None
    state["held"] = sum(processes.local(p).numel() for p in (*model.parameters(), *ema.model.parameters()))
    state["measured"] = measure(measured) if measured else None
    if rank() == 0:
        torch.save(state, f"{folder}/{name}")
        for copied in copies:
            (shutil.copytree if os.path.isdir(checkpoint) else shutil.copy)(checkpoint, f"{checkpoint} {copied}")
    processes.mean(torch.zeros(()))  # and nobody goes on before


def measure(count):
    """The figures that a recipe for MNIST puts on a card, of images that are noise, read a few at a time."""
    noise = torch.Generator().manual_seed(0)
    sets = {split: torch.rand(n, 1, 32, 32, generator=noise) * 2 - 1 for split, n in (("train", 10020), ("test", 20))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "mnist", lambda split: (sets[split], torch.arange(len(sets[split])) % 10))
        patch.setattr(mnist, "READ", count)
        return mnist.measure({50: sets["train"][500:520].flip(0)}, 20)


LAUNCH = textwrap.dedent("""
    import sys
    sys.path.insert(0, {here!r})
    from test_training import apart
    if __name__ == "__main__":
        apart({folder!r}, {plan!r}, {seconds!r})
""")


def apart(folder, plan, seconds):
    """For every (world, runs) so many processes, told what torchrun tells them; each does the runs in turn.

    Forked where that is safe, so that PyTorch is imported once. None outlives one that failed, or its time.
    """
    import torch._dynamo  # as the optimiser does
    import torch.distributed.checkpoint
    import torch.distributed.fsdp  # noqa: F401

    data.digits("train")
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    for world, runs in plan:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        told = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started = [context.Process(target=one_of_several, args=(folder, runs, told, i)) for i in range(world)]
        for process in started:
            process.start()
        left, until = {process.sentinel: process for process in started}, time.monotonic() + seconds
        while left and all(process.exitcode in (None, 0) for process in started):
            ended = connection.wait(left, until - time.monotonic())
            for sentinel in ended:
                left.pop(sentinel).join()
            if not ended:
                break
        for process in started:
            process.kill()
            process.join()
        if [process.exitcode for process in started] != [0] * world:
            sys.exit(1)


def one_of_several(folder, runs, told, number):
    """What one process does."""
    os.environ.update(told | {"RANK": str(number), "LOCAL_RANK": str(number)})
    with processes.distributed():
        for options in runs:
            several(folder, **options)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """One process's training and, in the same folder, all that two of them do; started as torchrun starts them."""
    folder = tmp_path_factory.mktemp("processes")
    several(folder, 20, name="alone")
    a, b = (str(folder / name) for name in ("a.pt", "b.pt"))
    runs = [
        {"steps": 20, "name": "two"},
        {"steps": 6, "name": "own batches", "wrong": "own batches"},
        {"steps": 6, "name": "a sum", "wrong": "a sum"},
        {"steps": 8, "name": "whole", "checkpoint": a},
        {"steps": 8, "name": "cut", "checkpoint": b, "stop": 6},
        {"steps": 8, "name": "again", "checkpoint": b},
    ]
    launch(folder, [(2, runs)])
    return folder


def launch(folder, plan, seconds=240):
    """``apart`` in an interpreter that has neither a GPU nor this one's threads."""
    script = LAUNCH.format(here=os.path.dirname(__file__), folder=str(folder), plan=plan, seconds=seconds)
    told = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", script], env=os.environ | told).returncode == 0


def test_two_processes_train_what_one_does(both):
    alone, two = torch.load(both / "alone"), torch.load(both / "two")
    for key in ("model", "ema"):
        assert (two[key] - alone[key]).abs().max() < 1e-7, key
    assert two["losses"] == pytest.approx(alone["losses"], rel=1e-6)
    assert torch.equal(two["counts"], alone["counts"]) and (two["counts"] > 4).all()
    one, other = lines(both / "alone.jsonl"), lines(both / "two.jsonl")
    assert [line["step"] for line in one] == [line["step"] for line in other] == [5, 10, 15, 20]
    for a, b in zip(one, other, strict=True):
        assert (a["loss"], a["grad_norm"]) == pytest.approx((b["loss"], b["grad_norm"]), rel=1e-6)


@pytest.mark.parametrize("wrong", ["own batches", "a sum"])
def test_wrong_processes_do_not(both, wrong):
    """Nearly scale-free as AdamW is, the norm of the gradients shows a sum."""
    alone, found = (lines(both / f"{name}.jsonl")[0]["grad_norm"] for name in ("alone", wrong))
    assert abs(found / alone - 1) > 1e-3
    alone, found = (torch.load(both / name)["losses"][5] for name in ("alone", wrong))
    assert abs(found / alone - 1) > 1e-4


def test_two_processes_resume(both):
    """Each from the one checkpoint: the end is the same, and the log has no line twice."""
    whole, again = torch.load(both / "whole"), torch.load(both / "again")
    generators = torch.load(both / "a.pt")["global_generators"]
    assert len(generators) == 2 and not torch.equal(*generators)  # dropout's draws differ
    assert torch.load(both / "cut")["losses"] == whole["losses"][:6]
    assert again["losses"] == pytest.approx(whole["losses"][5:], rel=1e-9)
    assert (again["model"] - whole["model"]).abs().max() < 1e-9
    assert [line["step"] for line in lines(both / "again.jsonl")] == [8]


def test_a_batch_is_shared_out_evenly(monkeypatch):
    monkeypatch.setattr(processes, "world", lambda: 3)
    with refuses(ValueError, "batch must be divisible by the 3 processes; got 128"):
        next(train(make(), torch.zeros(10, 2), steps=5))


@pytest.mark.parametrize("arguments", [["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"], []])
def test_recipes_run_under_torchrun(arguments):
    """The module starts, and hands the command line on, in every process."""
    process = subprocess.run(
        [sys.executable, *arguments, "-m", "companion.train", "digits", "--help"], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("usage: companion.train digits") == (2 if arguments else 1)


# ---- pairs, couplings, conditions -----------------------------------------------------------------------------------


class Told(torch.nn.Module):
    """A network that only says what stands for no condition."""

    def __init__(self, **says):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        for key, value in says.items():
            setattr(self, key, value)


def seen(x0, steps=30, batch=20, net=None, **options):
    """What the loss was shown at each step: (x0, t, noise, cond), all steps in one."""
    batches = []

    def loss(denoiser, *shown):
        batches.append(shown)
        return denoiser.net.weight * 0.0

    model = Denoiser(net or Told(), S.RectifiedFlow(), "velocity")
    for _ in train(model, x0, steps=steps, batch=batch, loss=loss, progress=False, **options):
        pass
    return [None if part[0] is None else torch.cat(part) for part in zip(*batches, strict=True)]


def test_noise_given_stays_with_its_sample():
    x0 = torch.arange(50.0)[:, None]
    data, _, noise, _ = seen(x0, noise=-x0)
    assert torch.equal(noise, -data) and len(data.unique()) > 40
    _, _, fresh, _ = seen(x0)
    assert abs(fresh.mean()) < 0.2 and fresh.std() == pytest.approx(1, abs=0.1)


def test_a_coupling_gets_each_batch_with_every_condition_and_its_noise_is_used():
    x0, cond, told = torch.arange(50.0)[:, None], torch.arange(50), []

    def coupling(data, noise, classes):
        told.append((data, noise, classes))
        return noise.flip(0)

    data, _, noise, given = seen(x0, net=Told(classes=50), cond=cond, drop_cond=0.5, coupling=coupling)
    for i, (batch, before, classes) in enumerate(told):
        part = slice(20 * i, 20 * i + 20)
        assert torch.equal(batch, data[part]) and torch.equal(classes, batch[:, 0].long())
        assert torch.equal(noise[part], before.flip(0))
    assert 0.4 < (given == 50).double().mean() < 0.6


def test_the_independent_coupling_changes_nothing_and_transport_shortens_the_way():
    x0 = 2 + torch.randn(200, 2)
    plain, same, near = (seen(x0, coupling=rule) for rule in (None, couplings.independent, couplings.optimal_transport))
    assert all(torch.equal(a, b) for a, b in zip(plain[:3], same[:3], strict=True))
    assert torch.equal(plain[0], near[0]) and torch.equal(plain[1], near[1])
    costs = [couplings.transport_cost(part[0], part[2]).mean() for part in (plain, near)]
    assert costs[1] < 0.9 * costs[0]


def test_every_kind_sees_the_same_batches():
    """Training a flow and a diffusion model from one seed shows both the same samples, times and noise."""
    x0, shown = torch.randn(100, 2), []

    def noticing(*batch, **options):
        shown[-1].append([part.clone() for part in batch[1:4]])
        return flow_matching_loss(*batch, **options)

    for schedule, kind in ((S.CosineVP(), "v"), (S.RectifiedFlow(), "velocity")):
        shown.append([])
        torch.manual_seed(0)
        model = Denoiser(MLP(2, 8, 1), schedule, kind)
        list(train(model, x0, steps=5, batch=10, loss=noticing, progress=False))
    for one, other in zip(*shown, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_dropped_rows_of_tokens_become_the_network_s_null():
    tokens = torch.randint(1, 9, (50, 4))
    x0 = torch.arange(50.0)[:, None]
    data, _, _, given = seen(x0, net=Told(null=0, classes=None), cond=tokens, drop_cond=0.3)
    whole = (given == tokens[data[:, 0].long()]).all(1)
    none = (given == 0).all(1)
    assert (whole ^ none).all() and none.double().mean() == pytest.approx(0.3, abs=0.08)
    _, _, _, given = seen(x0, net=Told(null=7, classes=9), cond=tokens[:, 0] * 0, drop_cond=0.3)
    assert set(given.tolist()) == {0, 7}  # null, where both are there


def test_logit_normal_times_train():
    model = make(kind="velocity")
    before = weights(model).clone()
    list(train(model, torch.randn(50, 2), steps=3, batch=8, times=times.logit_normal(), progress=False))
    assert not torch.equal(before, weights(model))


def test_reflow_of_a_flow_takes_one_step():
    """Trained on the pairs of the exact flow on the line, one Euler step ends nearly where the pairs do."""
    mixture, schedule = GaussianMixture.two(), S.RectifiedFlow()
    noise = torch.randn(2000, 1)
    ts = S.linspace(schedule, 60)
    x0 = couplings.reflow(mixture.denoiser(schedule), schedule, noise, ts, sampler=dpmpp_2m)
    torch.manual_seed(0)
    model = Denoiser(MLP(1, 64, 2), schedule, "velocity")
    ema = EMA(model, 0.99)
    list(train(model, x0, noise=noise, steps=500, batch=128, lr=3e-3, ema=ema, progress=False))
    one = sample(ema.model, schedule, noise, S.linspace(schedule, 1))
    assert (one - x0).square().mean() < 0.15
    # the exact flow's own single step ends at the mean of all data
    blind = sample(mixture.denoiser(schedule), schedule, noise, S.linspace(schedule, 1))
    assert (blind - x0).square().mean() > 0.5


def test_pairs_and_conditions_that_do_not_fit_are_refused():
    x0 = torch.zeros(5, 1)
    with refuses(ValueError, "noise and x0"):
        seen(x0, noise=x0[:3])
    with refuses(ValueError, "noise must be finite"):
        seen(x0, noise=x0 / 0)
    with refuses(ValueError, "coupling must be None"):
        seen(x0, noise=x0, coupling=couplings.independent)
    with refuses(ValueError, "coupling's noise"):
        seen(x0, coupling=lambda x0, noise, cond: noise[:3])
    with refuses(ValueError, "cond must be None"):
        seen(x0, cond=torch.zeros(5, dtype=torch.int64))
    with refuses(ValueError, "cond must have shape"):
        seen(x0, net=Told(null=0), cond=torch.zeros(5, 2, 2, dtype=torch.int64))


def test_ema_is_the_weighted_mean():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.0)
    ema, want = EMA(model, 0.9), 0.0
    for step in range(200):
        torch.nn.init.constant_(model.weight, float(step))
        ema.update(model)
        decay = min(0.9, (1 + step) / (10 + step))
        want = decay * want + (1 - decay) * step
    assert ema.model.weight.item() == pytest.approx(want, rel=1e-4)
    assert not ema.model.weight.requires_grad and ema.model.weight is not model.weight


def test_budget(monkeypatch):
    monkeypatch.delenv("COMPANION_QUICK", raising=False)
    assert budget(100, 5) == 100
    monkeypatch.setenv("COMPANION_QUICK", "1")
    assert budget(100, 5) == 5


def test_bad_arguments(tmp_path):
    x0 = torch.zeros(10, 2)
    for arguments, message in [
        (dict(steps=0), "steps"),
        (dict(steps=5, batch=-1), "batch"),
        (dict(steps=5, metrics_every=0), "metrics_every"),
        (dict(steps=5, autocast=torch.float64), "autocast"),
        (dict(steps=5, cond=torch.zeros(3, dtype=torch.int64)), "cond"),
    ]:
        with refuses(ValueError, message):
            next(train(make(), x0, **arguments))
    with refuses(ValueError, "x0 must be finite"):
        next(train(make(), x0 / 0, steps=1))
    with refuses(TypeError, "x0 must be a floating"):
        next(train(make(), x0.long(), steps=1))
    with refuses(ValueError, "decay"):
        EMA(make(), 1.0)
    with refuses(RuntimeError, "loss is nan"):
        broken = make()
        torch.nn.init.constant_(broken.net.layers[0].weight, float("nan"))
        list(train(broken, x0, steps=100, progress=False))
    path = tmp_path / "a.pt"
    list(train(make(), x0, steps=10, checkpoint=path, progress=False))
    with refuses(ValueError, "past steps"):
        next(train(make(), x0, steps=5, checkpoint=path, progress=False))
    with refuses(ValueError, "without times that learn"):
        learning = times.Importance(S.CosineVP())
        next(train(make(), x0, steps=20, checkpoint=path, times=learning, progress=False))
    with refuses(ValueError, "loss and t"):
        mean = lambda *batch, per_sample: simple_loss(*batch)  # noqa: E731
        next(train(make(), x0, steps=5, loss=mean, times=functools.partial(times.uniform, S.CosineVP())))
    for options in ({"shape": (3, 2, 8, 8)}, {"shape": (3, 1, 8, 8), "columns": 0}):
        with refuses(ValueError, "shape|columns"):
            sample_grid(make(), tmp_path / "a.png", ts=torch.tensor([0.5, 0.1]), **options)
    model = make()
    with refuses(ValueError, "without an EMA"):
        next(train(model, x0, steps=20, checkpoint=path, ema=EMA(model), progress=False))
