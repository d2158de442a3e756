"""Guidance: against exact mixtures, automatic differentiation and an independent library; what wrappers do in order."""

import pytest
import torch
from conftest import NOT_PRESERVING, SCHEDULES, inside, refuses
from torch import nn

from companion import data, gpu, zoo
from companion import schedules as S
from companion.denoisers import AutoGuided, ClassifierGuided, Clipped, Denoiser, Guided, Thresholded, reschedule
from companion.nets import UNet
from companion.predictions import KINDS, make_target, to_x0_eps
from companion.samplers import ddim, sample
from companion.toy import GaussianMixture, ImageMixture

NULL, SCALES = 2, (0.0, 0.5, 1.0, 3.0, 7.5)
HALF = S.CosineVP().time_of(torch.tensor(0.0, dtype=torch.float64))  # alpha = sigma


class TwoClasses:
    """The book's mixture in the plane, its first two components class 0, the others class 1; all exact."""

    def __init__(self):
        self.whole = GaussianMixture.four()
        w, means, covariances = self.whole.weights, self.whole.means, self.whole.covariances
        self.prior = torch.stack([w[:2].sum(), w[2:].sum()])
        self.parts = [
            GaussianMixture(w[at] / w[at].sum(), means[at], covariances[at]) for at in (slice(0, 2), slice(2, 4))
        ]
        self.calls = []

    def denoiser(self, schedule):
        """denoise(x, t, cond) with a class per sample, NULL for none, that notes what it was asked."""

        def denoise(x, t, cond=None):
            cond = torch.full(x.shape[:1], NULL) if cond is None else cond
            self.calls.append((x.shape, t.shape, cond.clone()))
            alpha, sigma = schedule.alpha(t), schedule.sigma(t)
            each = torch.stack([m.denoise(x, alpha, sigma) for m in (*self.parts, self.whole)])
            return each[cond, torch.arange(len(x))]

        return denoise

    def log_classes(self, x, alpha, sigma):
        """log p(class) + log p(x | class), (batch, 2): logits of the exact classifier."""
        return torch.stack([m.log_prob(x, alpha, sigma) for m in self.parts], 1) + self.prior.log()

    def classifier(self, schedule):
        return lambda x, t: self.log_classes(x, schedule.alpha(t), schedule.sigma(t))


@pytest.fixture
def two():
    return TwoClasses()


def by_autograd(log_density, x, alpha, sigma):
    """Tweedie's formula on the gradient of any log-density of noisy x: (x + sigma² gradient) / alpha."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_density(x).sum(), x)
    return (x.detach() + sigma**2 * gradient) / alpha


# ---- without a classifier -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_guidance_follows_the_gradient_of_the_tilted_log_density(two, scale):
    schedule, cond = S.CosineVP(), torch.arange(40) % 2
    x = torch.randn(40, 2, dtype=torch.float64)
    alpha, sigma = schedule.alpha(HALF), schedule.sigma(HALF)

    def tilted(x):
        each = torch.stack([m.log_prob(x, alpha, sigma) for m in two.parts])[cond, torch.arange(40)]
        return scale * each + (1 - scale) * two.whole.log_prob(x, alpha, sigma)

    right = by_autograd(tilted, x, alpha, sigma)
    denoise = two.denoiser(schedule)
    found = Guided(denoise, cond, scale, null=NULL)(x, HALF)
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)
    conditional, unconditional = denoise(x, HALF, cond), denoise(x, HALF)
    wrong = [scale * conditional + (scale - 1) * unconditional]  # weights that sum to 2 scale − 1
    wrong += [(1 + scale) * conditional - scale * unconditional]  # the other convention
    wrong += [conditional + scale * (unconditional - conditional)] if scale != 0.5 else []  # the other way round
    for other in wrong:
        assert (found - other).abs().max() > 0.1 or (scale == 1 and other is wrong[0])


def test_image_mixture_has_the_same_guidance():
    mixture, schedule = ImageMixture.load(), S.CosineVP()
    label, t = torch.tensor([3, 8, 8]), torch.tensor(0.6)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x = mixture.sample(3, label, alpha, sigma, generator=torch.Generator().manual_seed(0))

    def denoise(x, t, cond):
        known = mixture.denoise(x, schedule.alpha(t), schedule.sigma(t), cond % 10)
        free = mixture.denoise(x, schedule.alpha(t), schedule.sigma(t))
        return torch.where((cond == 10).view(-1, 1, 1, 1), free, known)

    for scale in (1.0, 5.0):
        found = Guided(denoise, label, scale, null=10)(x, t)
        torch.testing.assert_close(found, mixture.guided_denoise(x, alpha, sigma, label, scale), rtol=0, atol=1e-8)


def test_one_call_of_twice_the_batch(two):
    schedule, cond = S.CosineVP(), torch.tensor([1, 0, 1, 1, 0])
    x, guided = torch.randn(5, 2, dtype=torch.float64), Guided(two.denoiser(schedule), cond, 3.0, null=NULL)
    at_once = guided(x, HALF)
    each = guided(x, HALF.expand(5))
    assert [(shape, time) for shape, time, _ in two.calls] == [((10, 2), ()), ((10, 2), (10,))]
    for *_, asked in two.calls:
        assert asked.tolist() == [1, 0, 1, 1, 0] + [NULL] * 5
    torch.testing.assert_close(at_once, each, rtol=1e-12, atol=1e-12)
    times = torch.linspace(0.2, 0.8, 5, dtype=torch.float64)
    apart = [Guided(two.denoiser(schedule), c, 3.0, null=NULL)(x[i : i + 1], times[i]) for i, c in enumerate(cond)]
    torch.testing.assert_close(guided(x, times), torch.cat(apart), rtol=1e-12, atol=1e-12)


def test_one_class_for_all(two):
    denoise, x = two.denoiser(S.CosineVP()), torch.randn(5, 2, dtype=torch.float64)
    for_all, each = (Guided(denoise, cond, 3.0, null=NULL)(x, HALF) for cond in (1, torch.ones(5, dtype=torch.long)))
    assert torch.equal(for_all, each)


def test_conditions_that_are_vectors():
    """A text's embedding, say: null is one vector for all samples."""
    cond, null = torch.randn(4, 3), torch.tensor([7.0, 8.0, 9.0])
    found = Guided(lambda x, t, cond: cond.sum(1, keepdim=True) * x, cond, 2.0, null=null)(torch.ones(4, 2), HALF)
    torch.testing.assert_close(found, (2 * cond.sum(1, keepdim=True) - 24).expand(4, 2))


def test_scale_zero_and_one_are_exact(two):
    denoise, cond = two.denoiser(S.CosineVP()), torch.arange(6) % 2
    x = torch.randn(6, 2, dtype=torch.float64)
    assert torch.equal(Guided(denoise, cond, 1, null=NULL)(x, HALF), denoise(x, HALF, cond))
    assert torch.equal(Guided(denoise, cond, 0, null=NULL)(x, HALF), denoise(x, HALF))


def unet():
    net = UNet(1, 16, (1, 2), classes=3)
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    return Denoiser(net, S.CosineVP(), "v").eval()


@torch.no_grad()
def test_null_is_the_network_s_own():
    model, x, cond = unet(), torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 2])
    want = model(x, HALF) + 4.0 * (model(x, HALF, cond) - model(x, HALF))
    torch.testing.assert_close(Guided(model, cond, 4.0)(x, HALF), want, rtol=1e-4, atol=1e-4)
    assert (want - model(x, HALF, cond)).abs().max() > 0.01
    with refuses(TypeError, "null must be given"):
        Guided(lambda x, t, cond: x, cond, 4.0)


def test_a_network_with_text_is_guided_away_from_no_text():
    net = UNet(1, 16, (1, 2), text={"words": 9, "length": 4, "width": 8}, attention=(1,))
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    model, x, texts = Denoiser(net.eval(), S.CosineVP(), "v"), torch.randn(4, 1, 8, 8), torch.randint(1, 9, (4, 4))
    nothing = model(x, HALF, torch.zeros(4, 4, dtype=torch.int64))
    for given, rows in ((texts, texts), (texts[2], texts[2].expand(4, 4)), (texts[1].tolist(), texts[[1] * 4])):
        want = nothing + 4.0 * (model(x, HALF, rows) - nothing)  # four samples and four words: a row is for all
        torch.testing.assert_close(Guided(model, given, 4.0)(x, HALF), want, rtol=1e-4, atol=1e-4)
        assert (want - nothing).abs().max() > 0.01
    other = Guided(model, texts, 4.0, null=texts[0])(x, HALF)  # away from another text
    want = torch.lerp(model(x, HALF, texts[[0] * 4]), model(x, HALF, texts), 4.0)
    torch.testing.assert_close(other, want, rtol=1e-4, atol=1e-4)
    with refuses(ValueError, "cond must have one condition per sample"):
        Guided(model, texts[:3], 4.0)(x, HALF)
    with refuses(ValueError, "cond must have one condition per sample"):
        Guided(model, 3, 4.0)(x, HALF)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["cosine", "linear", "ve", "flow"])
def test_guiding_x0_is_guiding_every_kind(two, kind, name):
    """Kinds are linear in (x0, eps) at fixed x, and the weights sum to one; with others it holds for no kind."""
    schedule, cond = SCHEDULES[name], torch.tensor([0, 1, 1, 0])
    for t in inside(schedule, 4):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x = torch.randn(4, 2, dtype=torch.float64) * torch.hypot(alpha, sigma)
        outputs = []
        for c in (cond, None):
            x0 = two.denoiser(schedule)(x, t, c)
            outputs.append(make_target(kind, x0, (x - alpha * x0) / sigma, schedule, t))
        guided = to_x0_eps(kind, 5.0 * outputs[0] - 4.0 * outputs[1], x, schedule, t)[0]
        found = Guided(two.denoiser(schedule), cond, 5.0, null=NULL)(x, t)
        torch.testing.assert_close(found, guided, rtol=1e-7, atol=1e-7)
        wrong = to_x0_eps(kind, 5.0 * outputs[0] + 4.0 * outputs[1], x, schedule, t)[0]
        assert (wrong - guided).abs().max() > 1e-3


def test_interval(two):
    denoise, cond = two.denoiser(S.CosineVP()), torch.arange(5) % 2
    x = torch.randn(5, 2, dtype=torch.float64)
    times = torch.tensor([0.29, 0.3, 0.5, 0.7, 0.71], dtype=torch.float64)
    between = Guided(denoise, cond, 4.0, null=NULL, interval=(0.3, 0.7))
    found, always = between(x, times), Guided(denoise, cond, 4.0, null=NULL)(x, times)
    assert torch.equal(found[1:4], always[1:4])  # ends included
    assert torch.equal(found[[0, 4]], denoise(x, times, cond)[[0, 4]])
    assert (found - always)[[0, 4]].abs().max() > 0.01
    for t in times:
        torch.testing.assert_close(between(x, t), between(x, t.expand(5)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_rescale_is_that_of_an_independent_library(share):
    """Its function, written for a network's output, on x0_hat; each sample by itself."""
    theirs = pytest.importorskip("diffusers.guiders.guider_utils").rescale_noise_cfg
    conditional, unconditional = 0.6 * torch.randn(2, 6, 3, 8, 8, dtype=torch.float64)
    conditional = conditional * torch.arange(1, 7).view(-1, 1, 1, 1) - 0.2
    both = torch.cat([conditional, unconditional])
    guided = Guided(lambda x, t, cond: both, 0, 3.0, null=1, rescale=share)(conditional, HALF)
    plain = unconditional + 3.0 * (conditional - unconditional)
    torch.testing.assert_close(guided, theirs(plain, conditional, share), rtol=1e-10, atol=1e-10)
    spread = [v.flatten(1).std(1) for v in (guided, conditional, plain)]
    torch.testing.assert_close(spread[0], share * spread[1] + (1 - share) * spread[2], rtol=1e-10, atol=1e-10)
    if share:
        whole_batch = plain * (share * conditional.std() / plain.std() + 1 - share)
        other_way = plain * (share * plain.std() / conditional.std() + 1 - share)
        assert min((guided - wrong).abs().max() for wrong in (whole_batch, other_way)) > 0.1


def test_rescale_where_nothing_varies():
    flat = Guided(lambda x, t, cond: torch.ones_like(x), 0, 3.0, null=1, rescale=0.7)(torch.randn(2, 4), HALF)
    assert torch.equal(flat, torch.ones(2, 4))
    with refuses(ValueError, "rescale needs samples of two"):
        Guided(lambda x, t, cond: x, 0, 3.0, null=1, rescale=0.7)(torch.randn(2, 1), HALF)


def test_nothing_is_decided_on_values():
    """On tensors that have no values, a branch on one raises: so nothing here waits for a device."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    schedule = S.CosineVP()
    with FakeTensorMode():
        x, t, label = torch.randn(4, 1, 8, 8), torch.rand(()), torch.randint(3, (4,))
        inner = lambda x, t, cond=None: 2 * x  # noqa: E731
        guided = Guided(inner, label, 3.0, null=torch.tensor(3), interval=(0.2, 0.8), rescale=0.5)
        seen = lambda x, t: x.flatten(1)[:, :3]  # noqa: E731
        by_class = ClassifierGuided(inner, seen, label, 2.0, schedule=schedule)
        for denoise in (guided, by_class, AutoGuided(inner, inner, 2.0), Thresholded(inner), Clipped(guided)):
            assert denoise(x, t).shape == x.shape
        with pytest.raises(DataDependentOutputException):
            bool(t > 0)


# ---- with a classifier ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_exact_classifier_makes_the_conditional_denoiser(two, name):
    schedule, label = SCHEDULES[name], torch.arange(30) % 2
    for t in inside(schedule, 4):
        x = torch.randn(30, 2, dtype=torch.float64) * torch.hypot(schedule.alpha(t), schedule.sigma(t))
        denoise = two.denoiser(schedule)
        with torch.no_grad():
            found = ClassifierGuided(denoise, two.classifier(schedule), label, schedule=schedule)(x, t)
            torch.testing.assert_close(found, denoise(x, t, label), rtol=1e-7, atol=1e-7)
            more = ClassifierGuided(denoise, two.classifier(schedule), label, 3.0, schedule=schedule)(x, t)
            free = Guided(denoise, label, 3.0, null=NULL)(x, t)
            torch.testing.assert_close(more, free, rtol=1e-7, atol=1e-7)
            assert not found.requires_grad


def test_wrong_versions_of_classifier_guidance(two):
    schedule, t, label = S.LinearVP(), torch.tensor(0.3, dtype=torch.float64), torch.arange(30) % 2
    x = torch.randn(30, 2, dtype=torch.float64)
    guided = ClassifierGuided(two.denoiser(schedule), two.classifier(schedule), label, schedule=schedule)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    gradient, right = guided.gradient(x, t), two.denoiser(schedule)(x, t, label)
    for factor in (sigma**2, sigma / alpha, sigma**2 * alpha, 1 / alpha, -(sigma**2) / alpha):
        assert (two.denoiser(schedule)(x, t) + factor * gradient - right).abs().max() > 0.05
    unnormalised = x.clone().requires_grad_()  # the logit's gradient: of log p(x | class), not of log p(class | x)
    logits = two.log_classes(unnormalised, alpha, sigma)
    (other,) = torch.autograd.grad(logits[torch.arange(30), label].sum(), unnormalised)
    assert (other - gradient).abs().max() > 0.1


def test_one_label_or_one_per_sample_and_one_time_or_one_per_sample(two):
    schedule, x = S.CosineVP(), torch.randn(6, 2, dtype=torch.float64)
    parts = two.denoiser(schedule), two.classifier(schedule)
    for_all = ClassifierGuided(*parts, 1, 2.0, schedule=schedule)(x, HALF)
    each = ClassifierGuided(*parts, torch.ones(6, dtype=torch.int32), 2.0, schedule=schedule)
    assert torch.equal(for_all, each(x, HALF))
    times = torch.linspace(0.2, 0.8, 6, dtype=torch.float64)
    apart = [ClassifierGuided(*parts, 1, 2.0, schedule=schedule)(x[i : i + 1], t) for i, t in enumerate(times)]
    torch.testing.assert_close(each(x, times), torch.cat(apart), rtol=1e-9, atol=1e-9)


def test_where_nothing_of_the_data_is_left_the_classifier_is_silent(two):
    schedule, one = S.CosineVP(), torch.tensor(1.0, dtype=torch.float64)
    x, denoise = torch.randn(6, 2, dtype=torch.float64), two.denoiser(schedule)
    rough = lambda x, t: torch.stack([x[:, 0], x[:, 1]], 1)  # noqa: E731 (a classifier whose gradient is not zero)
    found = ClassifierGuided(denoise, rough, 0, 5.0, schedule=schedule)
    assert torch.equal(found(x, one), denoise(x, one))
    mixed = found(x, torch.tensor([1.0, 0.5] * 3, dtype=torch.float64))
    assert torch.equal(mixed[::2], denoise(x, one)[::2]) and torch.isfinite(mixed).all()
    assert (mixed - denoise(x, HALF))[1::2].abs().max() > 0.1


def test_classifier_guidance_can_be_differentiated(two):
    """Its divergence, for a likelihood: by automatic differentiation and by central differences."""
    schedule, label = S.CosineVP(), torch.tensor([0, 1, 1])
    guided = ClassifierGuided(two.denoiser(schedule), two.classifier(schedule), label, 2.0, schedule=schedule)
    x, v, h = *torch.randn(2, 3, 2, dtype=torch.float64), 1e-5
    _, along = torch.func.jvp(lambda x: guided(x, HALF), (x,), (v,))
    difference = (guided(x + h * v, HALF) - guided(x - h * v, HALF)) / (2 * h)
    torch.testing.assert_close(along, difference, rtol=1e-5, atol=1e-6)
    wanted = x.clone().requires_grad_()
    (back,) = torch.autograd.grad((guided(wanted, HALF) * v).sum(), wanted)
    assert (back * v).sum() == pytest.approx((along * v).sum().item(), rel=1e-6)


def test_classifier_guidance_takes_the_denoiser_s_schedule_and_its_dtype():
    model, x = unet(), torch.randn(4, 1, 8, 8)
    seen = []

    def classifier(x, t):
        seen.append((t.shape, t.dtype))
        return x.flatten(1)[:, :3].double()

    found = ClassifierGuided(model, classifier, torch.tensor([0, 1, 2, 0]), 2.0)(x, HALF)
    assert found.dtype == torch.float32 and seen == [((4,), torch.float32)]
    with refuses(TypeError, "schedule must be given"):
        ClassifierGuided(lambda x, t: x, classifier, 0)


def test_the_shipped_classifier_reads_noisy_digits_as_its_card_says():
    """On a hundred test images that ship, each under sixteen noises; and it says how unsure it is."""
    net, schedule = zoo.load("mnist_noisy_classifier"), S.CosineVP()
    (said,) = zoo.card("mnist_noisy_classifier")["metrics"].values()
    images, labels = (part.repeat_interleave(16, 0) for part in data.mnist("sample"))
    for level, tolerance in ((4, 0.03), (-2, 0.15), (-8, 0.1)):
        t = schedule.time_of(torch.tensor(level / 2, dtype=torch.float64))
        x = schedule.alpha(t) * images + schedule.sigma(t) * torch.randn(images.shape)
        with torch.no_grad():
            logits = net(x.float(), t.float().expand(len(x)))
        right = (logits.argmax(1) == labels).double().mean().item()
        expected = said[f"class accuracy at log-SNR {level} (t = {t.item():.3f})"]
        assert right == pytest.approx(expected, abs=tolerance)
        assert logits.softmax(1).amax(1).double().mean().item() == pytest.approx(right, abs=tolerance)


@torch.no_grad()
def test_the_shipped_classifier_guides_the_shipped_model():
    model, label = zoo.load("mnist"), torch.arange(20) % 10
    reader = zoo.load("mnist_classifier")
    ts = S.linspace(model.schedule, 10)
    x, shares = torch.randn(20, 1, 32, 32), []
    for scale in (0.0, 5.0):
        guided = Clipped(ClassifierGuided(model, zoo.load("mnist_noisy_classifier"), label, scale))
        ends = sample(guided, model.schedule, x, ts)
        shares.append((reader(ends).argmax(1) == label).double().mean().item())
    assert shares[0] < 0.4 and shares[1] > 0.6


# ---- a weaker model, thresholds -------------------------------------------------------------------------------------


def test_autoguidance_on_gaussians():
    """Denoisers of N(0, 1) and of N(0, 4) are linear, and so is what they make: sharper than the strong one."""
    schedule, x = S.CosineVP(), torch.randn(5, 2, dtype=torch.float64)
    alpha, sigma = schedule.alpha(HALF).item(), schedule.sigma(HALF).item()
    strong, weak = (GaussianMixture([1.0], [[0.0, 0.0]], stds=std).denoiser(schedule) for std in (1.0, 2.0))
    slopes = [alpha * v / (alpha**2 * v + sigma**2) for v in (1.0, 4.0)]
    for scale in (0.0, 1.0, 2.5):
        slope = slopes[1] + scale * (slopes[0] - slopes[1])
        torch.testing.assert_close(AutoGuided(strong, weak, scale)(x, HALF), slope * x, rtol=1e-9, atol=1e-9)
    assert torch.equal(AutoGuided(strong, weak, 1)(x, HALF), strong(x, HALF))
    given = AutoGuided(lambda x, t, cond: cond[:, None] * x, lambda x, t, cond: x, 2.0)
    torch.testing.assert_close(given(x, HALF, torch.full((5,), 3)), 5 * x)


@pytest.mark.parametrize("quantile", [0.8, 0.995, 1.0])
def test_dynamic_thresholding_is_that_of_an_independent_library(quantile):
    from diffusers import DDPMScheduler

    x0 = torch.randn(6, 3, 8, 8) * torch.tensor([0.1, 0.3, 1.0, 2.0, 4.0, 9.0]).view(-1, 1, 1, 1)
    theirs = DDPMScheduler(dynamic_thresholding_ratio=quantile, sample_max_value=1e9)._threshold_sample(x0)
    found = Thresholded(lambda x, t: x, quantile)(x0, HALF)
    torch.testing.assert_close(found, theirs)
    torch.testing.assert_close(found[:1], x0[:1])  # far within the bounds
    assert found.abs().max() <= 1 and found.abs().amax((1, 2, 3))[3:].min() > 1 - 1e-6
    clamped = x0.clamp(-1, 1)
    of_all = x0.abs().flatten().quantile(quantile)
    assert (found - clamped).abs().max() > 0.1 and (found - x0.clamp(-of_all, of_all) / of_all).abs().max() > 0.1


def test_the_floor_is_the_bound_of_the_data():
    x0 = torch.randn(6, 3, 8, 8, dtype=torch.float64) * 2
    unit = Thresholded(lambda x, t: x / 3)(x0, HALF)
    torch.testing.assert_close(Thresholded(lambda x, t: x, floor=3.0)(x0, HALF), 3 * unit, rtol=1e-6, atol=1e-6)
    assert Thresholded(lambda x, t: x.bfloat16())(x0, HALF).dtype == torch.bfloat16


# ---- order ----------------------------------------------------------------------------------------------------------


def test_the_clip_comes_after_guidance():
    """Two answers at the bounds' two sides: the right order stays inside; the other one does not, and is another."""
    answers = torch.cat([torch.full((2, 3), 1.5), torch.full((2, 3), 0.5)])
    inner = lambda x, t, cond: answers  # noqa: E731
    x = torch.zeros(2, 3)
    right = Clipped(Guided(inner, 0, 4.0, null=1))(x, HALF)
    wrong = Guided(Clipped(inner), 0, 4.0, null=1)(x, HALF)
    assert torch.equal(right, torch.ones(2, 3)) and torch.equal(wrong, torch.full((2, 3), 2.5))
    assert torch.equal(Guided(Thresholded(inner), 0, 4.0, null=1)(x, HALF), torch.full((2, 3), 2.5))


def test_guidance_goes_through_a_change_of_schedule(two):
    source, target, cond = S.CosineVP(0.0), S.RectifiedFlow(), torch.arange(5) % 2
    x, t = torch.randn(5, 2, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    moved = Guided(reschedule(two.denoiser(source), source, target), cond, 3.0, null=NULL)(x, t)
    torch.testing.assert_close(moved, Guided(two.denoiser(target), cond, 3.0, null=NULL)(x, t), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - NOT_PRESERVING - {"table-linear", "zero-snr", "table-cosine"}))
def test_samplers_take_guided_denoisers(two, name):
    """The whole way, from alpha = 0 where there is such an end; more scale, surer of the class."""
    schedule, label = SCHEDULES[name], torch.ones(200, dtype=torch.long)
    ts, x = S.linspace(schedule, 20), torch.randn(200, 2, dtype=torch.float64)
    shares = []
    for scale in (1.0, 4.0):
        for denoise in (
            Guided(two.denoiser(schedule), label, scale, null=NULL),
            ClassifierGuided(two.denoiser(schedule), two.classifier(schedule), label, scale, schedule=schedule),
        ):
            ends = sample(Clipped(denoise, -3.0, 3.0), schedule, x, ts, sampler=ddim)
            assert torch.isfinite(ends).all()
            shares.append(two.log_classes(ends, 1.0, 0.05).softmax(1)[:, 1].mean().item())
    assert shares[0] > 0.8 and min(shares[2:]) > 0.97


def test_a_compiled_sampler_takes_guided_denoisers(two):
    schedule, x = S.CosineVP(), torch.randn(4, 2)
    ts = S.linspace(schedule, 5, t_start=0.9)
    guided = Guided(two.denoiser(schedule), torch.tensor([0, 1, 0, 1]), 3.0, null=NULL, interval=(0.3, 0.7))
    run = gpu.compile_sampler(ddim, Clipped(guided), schedule, ts, (4, 2), device="cpu")
    torch.testing.assert_close(run(x), sample(Clipped(guided), schedule, x, ts))


def test_bad_arguments(two):
    denoise, x = two.denoiser(S.CosineVP()), torch.randn(3, 2, dtype=torch.float64)
    for bad in (float("nan"), float("inf"), True):
        with refuses(ValueError, "guidance_scale must be a finite number"):
            Guided(denoise, 0, bad, null=NULL)
    with refuses(ValueError, "interval must be two times"):
        Guided(denoise, 0, 2.0, null=NULL, interval=(0.7, 0.3))
    with refuses(ValueError, "rescale must lie in"):
        Guided(denoise, 0, 2.0, null=NULL, rescale=1.5)
    with refuses(ValueError, "cond must have one condition per sample, 3"):
        Guided(denoise, torch.tensor([0, 1]), 2.0, null=NULL)(x, HALF)
    with refuses(ValueError, "guidance_scale must be"):
        AutoGuided(denoise, denoise, float("nan"))
    with refuses(ValueError, "quantile must be at most 1"):
        Thresholded(denoise, 99.5)
    with refuses(ValueError, "floor must be"):
        Thresholded(denoise, floor=0.0)
    by_class = two.classifier(S.CosineVP())
    with refuses(TypeError, "label must hold integers"):
        ClassifierGuided(denoise, by_class, 1.0, schedule=S.CosineVP())
    with refuses(ValueError, "label must be one class or have shape"):
        ClassifierGuided(denoise, by_class, torch.tensor([0, 1]), schedule=S.CosineVP())(x, HALF)
    with refuses(ValueError, "classifier must give logits"):
        ClassifierGuided(denoise, lambda x, t: x[0], 0, schedule=S.CosineVP())(x, HALF)
