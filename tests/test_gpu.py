"""Compiled samplers equal the plain loop; on a CPU they are it, on a GPU a captured graph."""

import pytest
import torch
from conftest import refuses

from companion import gpu
from companion import schedules as S
from companion.denoisers import ClassifierGuided, Clipped, Denoiser, Guided, Thresholded
from companion.nets import Classifier, DiT, UNet
from companion.samplers import (
    annealed_langevin,
    ddim,
    dpm_solver_2s,
    dpm_solver_3m,
    dpm_solver_3s,
    dpmpp_2m,
    dpmpp_2m_sde,
    edm,
    euler_maruyama,
    heun,
    plms,
    predictor_corrector,
    sample,
    start,
    unipc,
)
from companion.toy import EmpiricalDistribution, LocalEmpirical

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


def model(device, schedule):
    torch.manual_seed(0)
    net = UNet(1, 16, (1, 2))
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    return Denoiser(net, schedule, "v").eval().to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("schedule", [S.CosineVP(), S.DiscreteVP.cosine()])
def test_equal_to_the_plain_loop(device, schedule):
    denoise, ts = model(device, schedule), S.linspace(schedule, 8)
    run = gpu.compile_sampler(ddim, denoise, schedule, ts, (4, 1, 8, 8), device=device)
    for seed in range(2):
        x = start(schedule, ts, (4, 1, 8, 8), generator=torch.Generator().manual_seed(seed)).to(device)
        torch.testing.assert_close(run(x), sample(denoise, schedule, x, ts), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("schedule", [S.LinearVP(), S.DiscreteVP.cosine()])
@pytest.mark.parametrize("sampler", [annealed_langevin, euler_maruyama, predictor_corrector])
def test_noisy_samplers_with_given_noise_equal_the_plain_loop(device, schedule, sampler):
    denoise, ts = model(device, schedule), S.linspace(schedule, 4, t_start=0.9 * schedule.t_max)
    given = {"sampler": sampler, "noise": torch.ones_like}
    run = gpu.compile_sampler(sampler, denoise, schedule, ts, (2, 1, 8, 8), device=device, noise=torch.ones_like)
    x = start(schedule, ts, (2, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(device)
    torch.testing.assert_close(run(x), sample(denoise, schedule, x, ts, **given), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("schedule", [S.LinearVP(), S.DiscreteVP.cosine()])
@pytest.mark.parametrize(
    "sampler", [heun, dpm_solver_2s, dpm_solver_3s, plms, dpmpp_2m, dpm_solver_3m, unipc, dpmpp_2m_sde, edm]
)
def test_samplers_of_higher_order_equal_the_plain_loop(device, schedule, sampler):
    """Also those that ask between the nodes of the grid: these times are made on the device, in the captured loop."""
    denoise, ts = model(device, schedule), S.linspace(schedule, 5, t_start=0.9 * schedule.t_max)
    given = {"noise": torch.ones_like} | ({"s_churn": 2.0} if sampler is edm else {})
    run = gpu.compile_sampler(sampler, denoise, schedule, ts, (2, 1, 8, 8), device=device, **given)
    for seed in range(2):
        x = start(schedule, ts, (2, 1, 8, 8), generator=torch.Generator().manual_seed(seed)).to(device)
        want = sample(denoise, schedule, x, ts, sampler=sampler, **given)
        torch.testing.assert_close(run(x), want, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_guided_samplers_equal_the_plain_loop(device):
    """Labels come from the host once; the interval, the rescaling and the threshold are decided on the device."""
    schedule, label = S.CosineVP(), torch.tensor([2, 0, 1, 2])
    torch.manual_seed(0)
    nets = UNet(1, 16, (1, 2), classes=3), Classifier(1, 8, 3, timed=True)
    for p in (*nets[0].parameters(), *nets[1].parameters()):
        torch.nn.init.normal_(p, std=0.05)
    model, reader = Denoiser(nets[0], schedule, "v").eval().to(device), nets[1].eval().to(device)
    ts = S.linspace(schedule, 8)
    x = start(schedule, ts, (4, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(device)
    for make in (
        lambda: Clipped(Guided(model, label, 4.0)),
        lambda: Thresholded(Guided(model, label, 4.0, interval=(0.2, 0.8), rescale=0.7)),
        lambda: Clipped(ClassifierGuided(model, reader, label, 4.0)),
    ):
        run = gpu.compile_sampler(ddim, make(), schedule, ts, (4, 1, 8, 8), device=device)
        for begin in (x, -x):
            want = sample(make(), schedule, begin, ts)
            torch.testing.assert_close(run(begin), want, atol=1e-3, rtol=1e-3)
            assert (want - sample(model, schedule, begin, ts)).abs().max() > 0.01


@pytest.mark.parametrize("device", DEVICES)
def test_a_transformer_and_a_unet_with_attention_are_captured_too(device):
    schedule, label = S.CosineVP(), torch.tensor([2, 0, 3, 1])
    torch.manual_seed(0)
    for net in (DiT(1, 8, 2, width=32, depth=2, classes=3), UNet(1, 16, (1, 2), classes=3, attention=(0,))):
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.05)
        denoise = Denoiser(net, schedule, "v", cond=label.to(device)).eval().to(device)
        ts = S.linspace(schedule, 8)
        run = gpu.compile_sampler(ddim, denoise, schedule, ts, (4, 1, 8, 8), device=device)
        x = start(schedule, ts, (4, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(device)
        torch.testing.assert_close(run(x), sample(denoise, schedule, x, ts), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_the_exact_denoisers_work_where_the_images_are(device):
    """On each device as on the CPU; not captured, for their precision is chosen from the noise on the host."""
    schedule, images = S.CosineVP(), torch.rand(20, 1, 6, 6) * 2 - 1
    x, t = torch.randn(3, 1, 6, 6), torch.tensor([0.9, 0.5, 0.01])
    for make in (EmpiricalDistribution, lambda images: LocalEmpirical(images, 3)):
        want, there = make(images).denoiser(schedule)(x, t), make(images.to(device))
        found = there.denoiser(schedule)(x.to(device), t.to(device))
        torch.testing.assert_close(found.cpu(), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_noise_is_fresh_at_every_step_and_call(device):
    schedule = S.CosineVP(0.0)
    ts = S.linspace(schedule, 4, t_end=0.5)
    zero = lambda x, t: torch.zeros_like(x)  # noqa: E731
    run = gpu.compile_sampler(ddim, zero, schedule, ts, (20_000, 2), device=device, eta=1.0)
    x = torch.randn(20_000, 2, device=device)
    first, second = run(x), run(x)
    for end in (first, second):  # data at 0: the marginal's variance is sigma²
        assert abs(end.var() - schedule.sigma(ts[-1])) > 0.05  # sigma in place of sigma² would show
        assert abs(end.var() - schedule.sigma(ts[-1]) ** 2) < 0.02
    # given the start, which both calls share, their noises must be uncorrelated
    (_, ab, ax), (_, _, bx), _ = torch.corrcoef(torch.stack([first.flatten(), second.flatten(), x.flatten()])).tolist()
    assert abs(ab - ax * bx) < 0.03


def test_refuses_other_inputs():
    schedule = S.CosineVP()
    run = gpu.compile_sampler(ddim, lambda x, t: x, schedule, S.linspace(schedule, 3), (2, 2), device="cpu")
    with refuses(ValueError, "x must have shape"):
        run(torch.zeros(3, 2))
    with refuses(ValueError, "float64"):
        run(torch.zeros(2, 2, dtype=torch.float64))
    with refuses(ValueError, "ts must decrease"):
        gpu.compile_sampler(ddim, None, schedule, torch.tensor([0.1, 0.9]), (2, 2), device="cpu")


def test_device_and_its_name():
    assert gpu.device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert gpu.describe(torch.device("cpu")) == "CPU, 1 thread"
    torch.set_num_threads(2)
    assert gpu.describe(torch.device("cpu")) == "CPU, 2 threads"
