"""Training: it learns, it resumes to the very same weights after kill −9, it covers the times evenly."""

import os
import random
import subprocess
import sys
import textwrap

import pytest
import torch
from conftest import refuses

from companion import schedules as S
from companion.denoisers import Denoiser
from companion.nets import MLP
from companion.samplers import sample, start
from companion.training import EMA, Progress, budget, draw_times, train


def make(seed=0, kind="v"):
    torch.manual_seed(seed)
    return Denoiser(MLP(2, 64, 2), S.CosineVP(), kind)


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


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
    from test_training import make, EMA, train
    from companion.toy import GaussianMixture
    torch.set_num_threads(1)
    x0 = GaussianMixture.four().sample(500, generator=torch.Generator().manual_seed(0)).float()
    model = make(); ema = EMA(model)
    for progress in train(model, x0, steps=60, ema=ema, checkpoint=sys.argv[1], checkpoint_every=7, progress=False):
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
    again = run("cut.pt", "cut", 0)
    first = int(again.stdout.readline())
    again.communicate()
    assert again.returncode == 0 and 1 < first <= stop + 1, (first, stop)
    whole, cut = (torch.load(tmp_path / name) for name in ("whole", "cut"))
    assert all(torch.equal(a, b) for a, b in zip(whole, cut, strict=True))


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


def test_times_are_even():
    for schedule in (S.CosineVP(), S.VE()):
        t = draw_times(schedule, 1000)
        assert ((t * 1000).floor() == torch.arange(1000)).float().mean() > 0.99
    t = draw_times(S.DiscreteVP.linear(10), 1000)
    assert sorted(set(t.tolist())) == list(range(1, 11))
    assert (torch.bincount(t.long())[1:] - 100).abs().max() <= 1


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
    model = make()
    with refuses(ValueError, "without an EMA"):
        next(train(model, x0, steps=20, checkpoint=path, ema=EMA(model), progress=False))
