"""The list of mutants stays whole, and the facts that only a mutant showed to be untested."""

import difflib
import math
import multiprocessing
import re
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path

import mutants
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from companion import schedules as S
from companion.denoisers import Denoiser
from companion.losses import simple_loss
from companion.nets import MLP, UNet
from companion.nets.unet import Attention, ResBlock
from companion.predictions import KINDS
from companion.samplers import nodes, sample, start
from companion.times import antithetic
from companion.toy import GaussianMixture, swiss_roll
from companion.training import EMA, train
from companion.verify import verify

TOKEN = re.compile(r"\w+|\*\*|//|[<>=!+]=|\S")


def name_of(mutant):
    return f"{mutant.file}: {mutant.what}"


# ---- the list


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=name_of)
def test_each_snippet_occurs_exactly_once(mutant):
    text = mutants.mutate(mutants.ROOT, mutant)
    compile(text, mutant.file, "exec")  # the mutant is a programme, so that a test and not the parser rejects it


def test_mutants_are_many_small_and_different():
    edited = {(m.file, mutants.mutate(mutants.ROOT, m)) for m in mutants.MUTANTS}
    assert len(edited) == len({name_of(m) for m in mutants.MUTANTS}) == len(mutants.MUTANTS) >= 40
    for m in mutants.MUTANTS:
        old, new = TOKEN.findall(m.old), TOKEN.findall(m.new)
        steps = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
        assert sum(max(b - a, d - c) for step, a, b, c, d in steps if step != "equal") <= 6, name_of(m)


def test_the_tests_that_should_notice_exist():
    for node in {test for m in mutants.MUTANTS for test in m.tests}:
        file, *names = node.split("[")[0].split("::")
        text = (Path(__file__).parent / file).read_text(encoding="utf-8")
        assert names, f"{node}: name the test, not the whole file"
        assert all(re.search(rf"^\s*(def|class) {name}\b", text, re.M) for name in names), node


def test_a_snippet_that_is_gone_is_named():
    gone = mutants.Mutant("toy.py", (), "no such line", "", "nothing")
    with pytest.raises(ValueError, match=r"companion/toy.py must hold 'no such line' exactly once; .* 0 times"):
        mutants.mutate(mutants.ROOT, gone)


def test_no_exit_code_is_read_twice(monkeypatch):
    """A process starts, and looks at all others, between the moment when one is seen to end and its code being read."""
    read, reading, calls = forkserver.read_signed, threading.Event(), iter(range(100))

    def slow(pipe):
        if next(calls) == 1:  # 0 is the process's id, at its start
            reading.set()
            time.sleep(0.5)
        return read(pipe)

    monkeypatch.setattr(forkserver, "read_signed", slow)
    context = multiprocessing.get_context("forkserver")
    with ThreadPoolExecutor(1) as pool:
        one = pool.submit(mutants.exit_code, context.Process(target=sys.exit, args=(1,)), 60)
        assert reading.wait(60)
        assert mutants.exit_code(context.Process(target=sys.exit, args=(3,)), 60) == 3
        assert one.result() == 1


def test_what_takes_too_long_is_killed_and_is_no_verdict(monkeypatch):
    context = multiprocessing.get_context("forkserver")
    assert mutants.exit_code(context.Process(target=time.sleep, args=(60,)), 0.2) == -signal.SIGKILL
    for code, output, want in [
        (-9, "", "BROKEN"),
        (2, "ERROR tests/test_toy.py", "BROKEN"),
        (1, "", "BROKEN"),
        (1, "FAILED tests/test_toy.py::test_a - assert 1 == 2", "killed"),
        (0, "", "SURVIVED"),
    ]:
        monkeypatch.setattr(mutants, "run_tests", lambda *_, found=(code, output, 1.0): found)
        assert mutants.judge(context, mutants.ROOT, mutants.MUTANTS[0])[0] == want


def test_list_and_pattern(capsys):
    assert mutants.main(["--list", "--only", "^samplers"]) == 0
    lines = capsys.readouterr().out.splitlines()[::2]
    assert lines and all(line.startswith("samplers.py: ") for line in lines)
    with pytest.raises(SystemExit):
        mutants.main(["--only", "no such mutant"])


# ---- distributions


@pytest.mark.parametrize("alpha,sigma", [(1.0, 0.0), (0.8, 0.3)])
def test_density_and_responsibilities_against_scipy(mixture, alpha, sigma):
    """log p(x), with its weights and its normalisation, and p(k | x), from SciPy's densities of the components."""
    x = mixture.sample(50, alpha, sigma)
    eye = torch.eye(2, dtype=torch.float64)
    joint = torch.stack(
        [
            w * torch.as_tensor(stats.multivariate_normal(alpha * m, alpha**2 * c + sigma**2 * eye).pdf(x))
            for w, m, c in zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
        ],
        1,
    )
    torch.testing.assert_close(mixture.log_prob(x, alpha, sigma), joint.sum(1).log())
    torch.testing.assert_close(mixture.responsibilities(x, alpha, sigma), joint / joint.sum(1, keepdim=True))


def test_the_roll_is_an_archimedean_spiral():
    """Without noise the radius is proportional to the angle, which is uniform over a turn and a half from 3π/2."""
    points = swiss_roll(4000, noise=0.0)
    turn = points.norm(dim=1) / 2 * 4.5 * math.pi
    torch.testing.assert_close(torch.stack([turn.cos(), turn.sin()], 1), points / points.norm(dim=1, keepdim=True))
    assert stats.kstest(turn.numpy(), stats.uniform(1.5 * math.pi, 3 * math.pi).cdf).pvalue > 1e-4
    noisy, clean = (swiss_roll(4000, noise=s, generator=torch.Generator().manual_seed(0)) for s in (0.05, 0.0))
    assert abs((noisy - clean).std() - 0.05) < 5 * 0.05 / math.sqrt(2 * 8000)


def test_posterior_draws_take_one_noise_level_per_sample(mixture):
    """Row i at level i is the very draw that all rows at level i give there."""
    x = mixture.sample(5, 0.8, 0.5)
    sigma = torch.tensor([0.01, 0.1, 0.5, 1.0, 5.0], dtype=torch.float64)
    draw = lambda a, s: mixture.posterior_sample(x, a, s, torch.Generator().manual_seed(0))  # noqa: E731
    together = draw(1 / (1 + sigma), sigma)
    for i, s in enumerate(sigma):
        torch.testing.assert_close(together[i], draw(1 / (1 + s), s)[i])


def test_weights_sum_to_one():
    with pytest.raises(ValueError, match="weights"):
        GaussianMixture([0.5, 0.501], [[0.0], [1.0]], stds=[1.0, 1.0])
    GaussianMixture([1 / 3, 1 / 3, 1 / 3], [[0.0], [1.0], [2.0]], stds=1.0)


# ---- schedules, grids, starts


class Late(S.CosineVP):
    """A schedule that does not start at zero."""

    t_min, t_max = 0.2, 0.9


class Plateau(S.RectifiedFlow):
    """A schedule without noise up to t = 0.1."""

    def sigma(self, t):
        return (t - 0.1).clamp(min=0)


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: S.VE(1.0, 1.0), "sigma_max"),
        (lambda: S.DiscreteVP(torch.tensor([1.0, 0.5])), "alphas_cumprod"),
        (lambda: S.linspace(S.LinearVP(), 5, t_start=0.3, t_end=0.3), "t_start"),
        (lambda: S.LinearVP().time_of(S.LinearVP().half_log_snr(torch.tensor(1.0)) - 0.01), "half_log_snr"),
        (lambda: nodes(Plateau(), torch.tensor([0.5, 0.05, 0.0]), torch.zeros(1, 2)), "sigma must be above 0"),
        (lambda: nodes(Late(), torch.tensor([0.8, 0.1]), torch.zeros(1, 2)), "lie in the schedule"),
        (lambda: nodes(Late(), torch.tensor([0.95, 0.3]), torch.zeros(1, 2)), "lie in the schedule"),
    ],
)
def test_the_first_value_that_is_not_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_last_values_that_are_allowed():
    """A constant beta, whose alpha is exp(−beta t / 2), and walks from end to end of a schedule."""
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    torch.testing.assert_close(S.LinearVP(3.0, 3.0).alpha(t), torch.exp(-1.5 * t))
    assert len(nodes(Late(), torch.tensor([0.9, 0.2], dtype=torch.float64), torch.zeros(1, 2))) == 2


@pytest.mark.parametrize("grid", [S.karras, S.uniform_log_snr])
def test_grids_go_from_80_to_a_five_hundredth_where_the_ends_are_empty_and_clean(grid):
    """Karras et al. 2022, table 1: sigma/alpha of 80 and 0.002; then one step to the data."""
    for schedule in (S.RectifiedFlow(), S.CosineVP()):
        ts = grid(schedule, 12)
        ratio = schedule.sigma(ts) / schedule.alpha(ts)
        torch.testing.assert_close(ratio[[0, -2]], torch.tensor([80.0, 0.002], dtype=torch.float64))
        assert ts[-1] == 0


@pytest.mark.parametrize("eta,draws", [(0.0, 0), (0.3, 9), (1.0, 9)])
def test_noise_is_drawn_once_a_step_and_never_for_nothing(eta, draws, mixture):
    """A walk without fresh noise leaves the generator alone, and so does the last step to the data."""
    schedule, drawn = S.CosineVP(), []
    noise = lambda x: drawn.append(1) or torch.randn_like(x)  # noqa: E731
    sample(mixture.denoiser(schedule), schedule, torch.randn(3, 2), S.linspace(schedule, 10), eta=eta, noise=noise)
    assert len(drawn) == draws


def test_variance_grows_linearly_up_to_the_first_node():
    schedule = S.DiscreteVP.linear(10, 0.1, 0.3)
    t = torch.tensor([0.0, 0.25, 0.5, 1 - 1e-9, 1.0], dtype=torch.float64)
    torch.testing.assert_close(schedule.sigma(t) ** 2, 0.1 * t)
    torch.testing.assert_close(schedule.alpha(t) ** 2, 1 - 0.1 * t)


def test_variance_exploding_is_geometric_between_its_ends():
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    want = torch.tensor([0.02, 0.1, 0.5, 2.5, 12.5], dtype=torch.float64)
    torch.testing.assert_close(S.VE(0.02, 12.5).sigma(t), want)


@pytest.mark.parametrize("steps", [3, 7, 30, 999])
def test_integer_grids_that_do_not_divide_the_table(steps):
    """Trailing nodes are the integers nearest to equal steps down from T; leading ones have one whole stride."""
    schedule = S.DiscreteVP.linear(1000)
    even = torch.linspace(1000, 0, steps + 1, dtype=torch.float64)
    trailing, leading = S.trailing(schedule, steps), S.leading(schedule, steps)
    assert (trailing == trailing.round()).all() and (trailing - even).abs().max() <= 0.5 + 1e-9
    assert leading[:-1].diff().tolist() == [-(1000 // steps)] * (steps - 1) and leading[-2] == 1


def test_times_cover_a_schedule_that_starts_late():
    t = antithetic(Late(), 1000).t.double()
    assert t.min() >= 0.2 and t.max() <= 0.9
    assert (((t - 0.2) / 0.7 * 1000 - torch.arange(1000)).clamp(0, 1) - 0.5).abs().max() <= 0.5
    assert stats.kstest(t.numpy(), stats.uniform(0.2, 0.7).cdf).statistic < 2e-3
    for grid in (S.linspace, S.karras, S.uniform_log_snr):
        ts = grid(Late(), 5)
        assert (ts[0], ts[-1]) == (0.9, 0.2)


@pytest.mark.parametrize("schedule", [S.VE(), S.RectifiedFlow(), S.CosineVP()], ids=["ve", "flow", "cosine"])
def test_walks_start_with_the_first_node_s_sigma(schedule):
    ts = S.linspace(schedule, 10, t_start=0.8)
    found = start(schedule, ts, (50, 2), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.testing.assert_close(found, schedule.sigma(torch.tensor(0.8, dtype=torch.float64)) * z)


# ---- networks and losses


class Echo(torch.nn.Module):
    """A network that outputs its input, and records the class it was given."""

    classes = 10

    def forward(self, x, t, cond=None):
        self.cond = cond
        return x


def test_a_denoiser_asks_for_the_class_it_was_given():
    x, t, net = torch.ones(2, 3), torch.tensor(0.5), Echo()
    own, other = torch.tensor([1, 2]), torch.tensor([3, 4])
    Denoiser(net, S.CosineVP(), "v", own)(x, t)
    assert net.cond is own
    Denoiser(net, S.CosineVP(), "v", own)(x, t, other)
    assert net.cond is other


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_mean_squared_error_of_each_kind(kind):
    """On the quarter circle alpha = cos, sigma = sin, so that each target is written out without the package."""
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    x0, eps = torch.randn(2, 3, 4, dtype=torch.float64)
    alpha, sigma = (f(math.pi / 2 * t)[:, None] for f in (torch.cos, torch.sin))
    v = alpha * eps - sigma * x0
    target = {"x0": x0, "eps": eps, "score": -eps / sigma, "v": v, "velocity": math.pi / 2 * v}[kind]
    want = sum(((alpha * x0 + sigma * eps - target) ** 2).flatten().tolist()) / 12
    found = simple_loss(Denoiser(Echo(), S.CosineVP(0.0), kind), x0, t, eps)
    assert found.item() == pytest.approx(want, rel=1e-10)


def randomised(net):
    """Nothing stays at the zeros of the start."""
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return net.double().eval()


@pytest.mark.parametrize("make", [lambda s: MLP(2, 16, 2, time_scale=s), lambda s: UNet(2, 8, (1,), time_scale=s)])
def test_time_scale_multiplies_the_time(make):
    net, t = randomised(make(1.0)), torch.tensor([0.3, 0.7], dtype=torch.float64)
    other = make(100.0).double().eval()
    other.load_state_dict(net.state_dict())
    x = torch.randn((2, 2) if isinstance(net, MLP) else (2, 2, 4, 4), dtype=torch.float64)
    torch.testing.assert_close(other(x, t), net(x, 100 * t))
    assert (net(x, t) - net(x, 100 * t)).abs().max() > 1e-3


def normalised(x, weight, bias, groups=8):
    """Group normalisation, written out."""
    parts = x.reshape(len(x), groups, -1)
    parts = (parts - parts.mean(-1, keepdim=True)) / (parts.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    return parts.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


def test_residual_block_against_its_definition():
    """x + conv(silu((1 + scale) norm(conv(silu(norm x))) + shift)), with scale and shift linear in the embedding."""
    block = randomised(ResBlock(16, 16, 4))
    x, emb = torch.randn(2, 16, 5, 5, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    weights = dict(block.named_parameters())
    convolve = lambda h, n: F.conv2d(h, weights[f"conv{n}.weight"], weights[f"conv{n}.bias"], padding=1)  # noqa: E731
    first, second = (weights[f"norm{n}.weight"] for n in (1, 2)), (weights[f"norm{n}.bias"] for n in (1, 2))
    (w1, w2), (b1, b2) = first, second
    film = emb @ weights["film.weight"].T + weights["film.bias"]
    h = normalised(convolve(F.silu(normalised(x, w1, b1)), 1), w2, b2)
    h = (1 + film[:, :16, None, None]) * h + film[:, 16:, None, None]
    torch.testing.assert_close(block(x, emb), x + convolve(F.silu(h), 2))


def test_attention_against_its_definition():
    """softmax(q k' / sqrt(32)) v in two heads of 32 channels, pixel by pixel, added to the input."""
    layer = randomised(Attention(64))
    x = torch.randn(2, 64, 2, 3, dtype=torch.float64)
    weights = dict(layer.named_parameters())
    flat = normalised(x, weights["norm.weight"], weights["norm.bias"]).flatten(2)
    qkv = torch.einsum("oc,bcp->bop", weights["qkv.weight"][:, :, 0, 0], flat) + weights["qkv.bias"][:, None]
    heads = []
    for head in range(2):
        q, k, v = (qkv[:, 64 * part + 32 * head : 64 * part + 32 * (head + 1)] for part in range(3))
        share = torch.softmax(torch.einsum("bcp,bcr->bpr", q, k) / math.sqrt(32), -1)
        heads.append(torch.einsum("bpr,bcr->bcp", share, v))
    out = torch.einsum("oc,bcp->bop", weights["out.weight"][:, :, 0, 0], torch.cat(heads, 1))
    torch.testing.assert_close(layer(x), x + (out + weights["out.bias"][:, None]).reshape(x.shape))


# ---- training


def scalar():
    """A denoiser with one weight, and a network with classes."""
    net = Echo()
    net.weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
    return Denoiser(net, S.CosineVP(), "v")


def test_the_learning_rate_warms_up_and_ends_along_a_cosine():
    """Where the gradient is always 1, AdamW moves the weight by the learning rate itself."""
    model, steps, warmup, before = scalar(), 40, 10, 0.0
    loss = lambda denoiser, *_: denoiser.net.weight * 1  # noqa: E731
    for done in train(model, torch.zeros(5, 2), steps=steps, warmup=warmup, lr=0.1, loss=loss, progress=False):
        now = model.net.weight.item()
        want = 0.1 * min(done.step / warmup, 1) * math.cos(math.pi / 2 * (done.step - 1) / steps) ** 2
        assert before - now == pytest.approx(want, rel=1e-5)
        before = now


def test_the_average_forgets_its_start():
    """Towards a weight that stays at 1, a share of Π (1 + k) / (10 + k) = 1 / C(n + 9, 9) is left after n updates."""
    model = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.zeros_(model.weight)
    ema = EMA(model, 0.9999)
    torch.nn.init.ones_(model.weight)
    for n in range(1, 21):
        ema.update(model)
        assert 1 - ema.model.weight.item() == pytest.approx(1 / math.comb(n + 9, 9), rel=1e-6, abs=1e-15)


def test_gradients_are_clipped_to_the_given_norm():
    model = scalar()
    loss = lambda denoiser, *_: denoiser.net.weight * 100  # noqa: E731
    next(train(model, torch.zeros(5, 2), steps=3, clip=0.5, loss=loss, progress=False))
    assert model.net.weight.grad.item() == pytest.approx(0.5, rel=1e-6)


def test_classes_stay_with_their_samples_and_a_share_is_dropped():
    labels = torch.arange(1000) % 10
    seen = []

    def loss(denoiser, x0, t, noise, given):
        seen.append((x0[:, 0], noise[:, 0], given))
        return denoiser.net.weight * 1

    data = labels[:, None].double().expand(-1, 2)
    list(train(scalar(), data, cond=labels, drop_cond=0.25, steps=20, batch=500, loss=loss, progress=False))
    x0, noise, given = (torch.cat(parts) for parts in zip(*seen, strict=True))
    kept = given != 10
    assert abs((~kept).double().mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 10_000)
    assert torch.equal(x0[kept].long(), given[kept]) and stats.kstest(noise.numpy(), "norm").pvalue > 1e-4
    assert (torch.bincount(x0.long(), minlength=10) - 1000).abs().max() < 5 * math.sqrt(900)


# ---- verify


def accepts(*arguments, **options):
    try:
        verify("eq-a", *arguments, **options)
    except AssertionError:
        return False
    return True


def test_verify_draws_its_lines_where_it_says():
    assert accepts(1.0, 1.099, atol=0.1) and not accepts(1.0, 1.101, atol=0.1)
    assert accepts(1.0, 1.0, atol=0.1, wrong={"far": 1.501}) and not accepts(1.0, 1.0, atol=0.1, wrong={"near": 1.499})
    # atol + rtol |rhs| = 1 + 0.01 · 200
    assert accepts(-202.99, -200.0, atol=1.0, rtol=0.01) and not accepts(-203.01, -200.0, atol=1.0, rtol=0.01)


@pytest.mark.parametrize("elements", [1, 30, 100_000])
def test_the_statistical_tolerance_is_bonferroni_s(elements):
    """Four standard errors, or what makes a false alarm in any of n elements, on either side, as rare as 1e-4."""
    limit = max(4.0, stats.norm.isf(1e-4 / elements / 2))
    side = torch.zeros(elements, dtype=torch.float64)
    for share, passes in ((0.999, True), (1.001, False)):
        side[0] = share * limit * 0.2
        assert accepts(side, torch.zeros_like(side), se=0.2) == passes
