"""Compiled samplers equal the plain loop; on a CPU they are it, on a GPU a captured graph."""

import copy
import gc
import weakref

import pytest
import torch
from conftest import SCHEDULES, refuses

from companion import gpu
from companion import schedules as S
from companion.denoisers import ClassifierGuided, Clipped, Denoiser, Guided, Thresholded
from companion.losses import simple_loss
from companion.nets import Classifier, DiT, UNet
from companion.samplers import (
    ancestral,
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
from companion.times import antithetic
from companion.toy import EmpiricalDistribution, LocalEmpirical
from companion.training import EMA, train

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch):
    """On a GPU convolutions may round to TF32's ten bits, each kernel in its own way; a bound would then say little."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


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


WALKS = [ancestral, ddim, dpm_solver_2s, dpm_solver_3s, dpm_solver_3m, dpmpp_2m, dpmpp_2m_sde, edm, euler_maruyama]
WALKS += [annealed_langevin, heun, plms, predictor_corrector, unipc]


class Still(torch.nn.Module):
    """A network of one operator, told the class."""

    classes = 3

    def forward(self, x, t, y=None):
        return x * t[:, None, None, None]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=lambda schedule: type(schedule).__name__)
def test_nothing_asks_the_device_for_a_number(schedule):
    """On a device that has none: tensors of "meta" know their shapes, and whoever asks for a value is refused."""
    model, label = Denoiser(Still(), schedule, "v"), torch.tensor([2, 0], device="meta")
    x, t = (torch.empty(shape, device="meta") for shape in ((2, 1, 4, 4), ()))
    guided = Guided(model, label, 4.0, interval=(0.2, 0.8), rescale=0.7)
    for denoise in (model, Guided(model, label, 4.0), guided, Clipped(guided), Thresholded(guided)):
        assert denoise(x, t).shape == denoise(x, t.expand(2)).shape == x.shape
    ts = S.linspace(schedule, 4, t_start=0.9 * schedule.t_max, t_end=schedule.t_min + 0.02 * schedule.t_max)
    for sampler in WALKS:
        assert sample(model, schedule, x, ts, sampler=sampler).shape == x.shape
    with pytest.raises(RuntimeError, match="meta"):
        sample(lambda x, t: model(x, t) if t.item() > 0 else x, schedule, x, ts)


def test_no_network_asks_the_device_for_a_number():
    with torch.device("meta"):
        nets = UNet(1, 8, (1, 2), classes=3, attention=(0,)), DiT(1, 8, 2, width=32, depth=1, classes=3)
        x, t, label = torch.empty(2, 1, 8, 8), torch.ones(2), torch.tensor([2, 0])
    for net in nets:
        assert net.eval()(x, t, label).shape == x.shape


unchecked = pytest.mark.skipif(
    hasattr(S.CosineVP.alpha, "__wrapped__"), reason="runs without the checker of annotations"
)
PIECES = {"backend": "aot_eager_decomp_partition", "fullgraph": True}  # traced and taken apart as for a GPU, then run


@unchecked
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=lambda schedule: type(schedule).__name__)
def test_a_denoiser_is_one_piece_to_the_compiler(schedule):
    """Nothing in it asks the host for a number of the device's, which would cut it in two, and no graph could hold."""
    torch.manual_seed(0)
    net = MLPOfPictures()
    net.classes = 3
    model, label = Denoiser(net, schedule, "v").eval(), torch.tensor([2, 0])
    x, t = torch.randn(2, 1, 8, 8), torch.tensor(0.5 * schedule.t_max)
    for denoise in (model, Guided(model, label, 4.0)):
        torch.testing.assert_close(torch.compile(denoise, **PIECES)(x, t), denoise(x, t))
    torch._dynamo.reset()


@unchecked
def test_a_guided_network_is_one_piece_to_the_compiler():
    torch.manual_seed(0)
    model, label = Denoiser(UNet(1, 8, (1, 2), classes=3), S.CosineVP(), "v").eval(), torch.tensor([2, 0])
    x, t = torch.randn(2, 1, 8, 8), torch.tensor(0.5)
    for denoise in (Clipped(Guided(model, label, 4.0)), Thresholded(Guided(model, label, 4.0, rescale=0.7))):
        torch.testing.assert_close(torch.compile(denoise, **PIECES)(x, t), denoise(x, t))
    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        torch.compile(lambda x, t: model(x, t) if t.item() > 0.1 else x, **PIECES)(x, t)
    torch._dynamo.reset()


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


@pytest.mark.parametrize("device", DEVICES)
def test_a_compiled_sampler_keeps_what_it_reads(device):
    """A graph knows addresses: nothing that lies there may go while the sampler lives, whatever is allocated after."""
    schedule, label = S.CosineVP(), torch.tensor([2, 0, 1, 2])
    torch.manual_seed(0)
    net = UNet(1, 16, (1, 2), classes=3)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    model, ts = Denoiser(net, schedule, "v").eval().to(device), S.linspace(schedule, 8)
    x = start(schedule, ts, (4, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(device)
    want = sample(Guided(model, label, 4.0), schedule, x, ts)
    guided = Guided(model, label, 4.0)
    run, alive = gpu.compile_sampler(ddim, guided, schedule, ts, x.shape, device=device), weakref.ref(guided)
    del guided
    gc.collect()
    others = [torch.zeros(n, device=device) for n in (1, 4, 9, 64, 128) for _ in range(400)]
    assert alive() is not None and len(others) == 2000
    torch.testing.assert_close(run(x), want, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_a_generator_s_noise_is_the_plain_loop_s_and_goes_on(device):
    schedule = S.CosineVP()
    denoise, ts = model(device, schedule), S.linspace(schedule, 6)
    x = start(schedule, ts, (4, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(device)
    first, second = torch.Generator(device).manual_seed(3), torch.Generator(device).manual_seed(3)
    run = gpu.compile_sampler(ddim, denoise, schedule, ts, x.shape, device=device, generator=first, eta=1.0)

    def noise(x):
        return torch.randn(x.shape, generator=second, device=device)

    walks = [run(x), run(x)]
    for walk in walks:
        want = sample(denoise, schedule, x, ts, sampler=ddim, eta=1.0, noise=noise)
        torch.testing.assert_close(walk, want, atol=1e-4, rtol=1e-4)
    assert (walks[0] - walks[1]).abs().max() > 0.1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_the_network_s_alone_and_stays_within_its_bound(device, dtype):
    """The samples are off by a few roundings of what the network answers, 2⁻⁸ of it or 2⁻¹¹, not of what walks."""
    schedule = S.CosineVP()
    denoise, ts = model(device, schedule), S.linspace(schedule, 8)
    x = start(schedule, ts, (16, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(device)
    types, answers = set(), []
    denoise.net.stem.register_forward_hook(lambda module, given, found: types.add(found.dtype))
    denoise.net.register_forward_hook(lambda module, given, found: answers.append(found.float()))
    want = sample(denoise, schedule, x, ts)
    size = torch.stack(answers).square().mean().sqrt()
    run = gpu.compile_sampler(ddim, denoise, schedule, ts, x.shape, device=device, autocast=dtype)
    found = run(x)
    assert types == {torch.float32, dtype} and found.dtype == torch.float32
    bound = 8 * {torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype] * size
    assert 0 < (found - want).square().mean().sqrt() < bound
    with torch.autocast(device, dtype):  # the wrong version: what walks is in half precision, too
        wrong = sample(lambda x, t: denoise(x.float(), t.float()).to(dtype), schedule, x.to(dtype), ts).float()
    assert (wrong - want).square().mean().sqrt() > 8 * bound


# ---- training -------------------------------------------------------------------------------------------------------


def by_hand(denoiser, images, rates, *, decay=0.9, clip=0.05, wrong=""):
    """What a step of training is, written out: batch, times, noise, loss, gradients, AdamW, average."""
    device = images.device
    generator = torch.Generator(device).manual_seed(4)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    average = [p.detach().clone() for p in denoiser.parameters()]
    for n, lr in enumerate(rates):
        rows = torch.randint(len(images), (8,), generator=generator, device=device)
        t = antithetic(denoiser.schedule, 8, generator=generator, device=device).t
        eps = torch.randn(8, *images.shape[1:], generator=generator, device=device)
        optimizer.param_groups[0]["lr"] = rates[0] if wrong == "one rate" else lr
        optimizer.zero_grad()
        simple_loss(denoiser, images[rows], t, eps).backward()
        if wrong != "not clipped":
            torch.nn.utils.clip_grad_norm_(denoiser.parameters(), clip)
        optimizer.step()
        keep = decay if wrong == "steady average" else min(decay, (1 + n) / (10 + n))
        with torch.no_grad():
            average = [keep * a + (1 - keep) * p for a, p in zip(average, denoiser.parameters(), strict=True)]
    flat = torch.nn.utils.parameters_to_vector
    return flat(denoiser.parameters()).detach(), torch.cat([a.flatten() for a in average])


@pytest.mark.parametrize("device", DEVICES)
def test_a_compiled_step_of_training_is_the_step_by_hand(device):
    """Six steps, three of them recorded on a GPU; rate of learning and pace of the average change at each."""
    schedule, rates = S.CosineVP(), [1e-3, 4e-3, 2e-3, 5e-3, 1e-3, 3e-3]
    images = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(1)).to(device) * 2 - 1
    torch.manual_seed(0)
    fresh = Denoiser(MLPOfPictures(), schedule, "v").to(device)
    mine = copy.deepcopy(fresh)
    average = EMA(mine, 0.9)
    step = gpu.compile_train_step(mine, images, batch=8, ema=average, clip=0.05, seed=4)
    losses = [step(lr)[0] for lr in rates]
    found = [torch.nn.utils.parameters_to_vector(m.parameters()) for m in (mine, average.model)]
    want = by_hand(copy.deepcopy(fresh), images, rates)
    torch.testing.assert_close(found[0], want[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[1], want[1], atol=1e-5, rtol=1e-4)
    assert len({loss.item() for loss in losses}) == 6
    for wrong, part in (("one rate", 0), ("not clipped", 0), ("steady average", 1)):
        assert (by_hand(copy.deepcopy(fresh), images, rates, wrong=wrong)[part] - want[part]).abs().max() > 2e-4


class MLPOfPictures(torch.nn.Module):
    """A network small enough for nothing but rounding to differ, smooth and with no bias that a norm takes away."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(65, 32), torch.nn.Tanh(), torch.nn.Linear(32, 64))

    def forward(self, x, t, cond=None):
        return self.layers(torch.cat([x.flatten(1), t[:, None]], 1)).view_as(x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_recorded_step_goes_on_from_a_checkpoint_of_a_plain_one(tmp_path):
    """And a plain one from a recorded one's; the weights are those of one uninterrupted training."""
    images, ends = torch.rand(50, 1, 8, 8) * 2 - 1, []
    for graphs in ((False, False), (False, True), (True, False), (True, True)):
        torch.manual_seed(0)
        denoiser = Denoiser(MLPOfPictures(), S.CosineVP(), "v").cuda()
        path = tmp_path / f"{graphs}.pt"
        for graph, stop in zip(graphs, (6, 12), strict=True):
            for progress in train(
                denoiser, images, steps=12, batch=8, graph=graph, checkpoint=path, checkpoint_every=6
            ):
                if progress.step == stop:
                    break
        ends.append(torch.nn.utils.parameters_to_vector(denoiser.parameters()))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_asks_the_host_is_not_recorded():
    denoiser = Denoiser(MLPOfPictures(), S.CosineVP(), "v").cuda()
    with refuses(ValueError, "graph must be False"):
        gpu.compile_train_step(denoiser, torch.zeros(9, 1, 8, 8), batch=3, autocast=torch.float16)


def test_refuses_other_inputs():
    schedule = S.CosineVP()
    run = gpu.compile_sampler(ddim, lambda x, t: x, schedule, S.linspace(schedule, 3), (2, 2), device="cpu")
    with refuses(ValueError, "x must have shape"):
        run(torch.zeros(3, 2))
    with refuses(ValueError, "float64"):
        run(torch.zeros(2, 2, dtype=torch.float64))
    with refuses(ValueError, "autocast must be"):
        gpu.compile_sampler(ddim, None, schedule, S.linspace(schedule, 3), (2, 2), device="cpu", autocast=torch.int8)
    with refuses(ValueError, "generator must be None"):
        gpu.compile_sampler(
            ddim,
            None,
            schedule,
            S.linspace(schedule, 3),
            (2, 2),
            device="cpu",
            generator=torch.Generator(),
            noise=torch.randn_like,
        )
    with refuses(ValueError, "ts must decrease"):
        gpu.compile_sampler(ddim, None, schedule, torch.tensor([0.1, 0.9]), (2, 2), device="cpu")


def test_device_and_its_name():
    assert gpu.device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert gpu.describe(torch.device("cpu")) == "CPU, 1 thread"
    torch.set_num_threads(2)
    assert gpu.describe(torch.device("cpu")) == "CPU, 2 threads"
