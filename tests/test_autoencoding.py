"""Training autoencoders, step by step by hand and term by term; and what is measured of their reconstructions."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import refuses

from companion import autoencoding, data, metrics, nets, scenes, zoo
from companion.autoencoding import fit, hinge_loss, perceptual_distance, psnr, sharpness
from companion.nets.autoencoder import Posterior

SMALL = {"channels": 1, "latent": 2, "widths": (8,), "patch": 4}


class Levels(torch.nn.Module):
    """Stands for a reader: two levels of a picture."""

    def __init__(self, channels=1):
        super().__init__()
        self.fine, self.coarse = torch.nn.Conv2d(channels, 4, 3), torch.nn.Conv2d(4, 6, 3, stride=2)
        self.requires_grad_(False)

    def levels(self, x):
        fine = self.fine(x).tanh()
        return [fine, self.coarse(fine).tanh()]


class Critic(torch.nn.Module):
    """A critic that remembers what it was shown, and its weights then."""

    def __init__(self):
        super().__init__()
        self.layer, self.shown, self.weights = torch.nn.Conv2d(1, 1, 5, stride=2), [], []

    def forward(self, x):
        self.shown.append(x.detach().clone())
        self.weights.append([p.detach().clone() for p in self.parameters()])
        return self.layer(x)


def squares(batch=16, size=8, seed=0):
    """Pictures of two halves, each of one grey, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        level = torch.rand(batch, 2, 1, 1, generator=generator) * 2 - 1
        yield torch.cat([part.expand(-1, 1, size, size // 2) for part in level.split(1, 1)], 3)


def made(kind=nets.VAE, seed=0, **options):
    torch.manual_seed(seed)
    return kind(**SMALL | options)


def terms_of(net, **options):
    """Each term of the loss along a short training."""
    found = [state.terms for state in fit(net, squares(), **{"steps": 60, "warmup": 5, "lr": 5e-3} | options)]
    return {key: torch.stack([terms[key] for terms in found if key in terms]) for key in found[-1]}


# ---- distances


def test_perceptual_distance_by_hand():
    reader, x, y = Levels(3), torch.randn(2, 3, 9, 9), torch.randn(2, 3, 9, 9)
    each = []
    for a, b in zip(reader.levels(x), reader.levels(y), strict=True):
        a, b = a.double().numpy(), b.double().numpy()
        places = []
        for i, row, column in np.ndindex(len(a), *a.shape[2:]):
            one, other = a[i, :, row, column], b[i, :, row, column]
            places.append(((one / np.linalg.norm(one) - other / np.linalg.norm(other)) ** 2).sum())
        each.append(np.mean(places))
    found = perceptual_distance(reader, x, y).item()
    assert found == pytest.approx(np.mean(each), rel=1e-5) and each[0] != pytest.approx(each[1], rel=0.05)
    plain = [(a - b).square().sum(1).mean().item() for a, b in zip(reader.levels(x), reader.levels(y))]
    assert found != pytest.approx(np.mean(plain), rel=0.05)  # lengths of 1 forgotten
    assert perceptual_distance(reader, x, x) == 0
    assert found == perceptual_distance(reader, y, x).item()


def test_the_shipped_reader_sees_a_colour_and_not_grain():
    reader, drawn = zoo.load("scene_reader"), scenes.scenes(20, grain=0)
    noisy = drawn.images + 0.02 * torch.randn(drawn.images.shape)
    other = drawn.what.clone()
    other[:, 3] = (other[:, 3] + 1) % 6
    other = scenes.draw(other, drawn.where)
    small, large = (perceptual_distance(reader, drawn.images, images) for images in (noisy, other))
    assert perceptual_distance(reader, drawn.images, drawn.images) == 0 and 0 < 3 * small < large <= 4


def test_hinge_loss_in_numbers():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([[-3.0, 0.0], [0.25, -0.5]])
    assert hinge_loss(real, fake).item() == pytest.approx(((0 + 0.5 + 2) / 3 + (0 + 1 + 1.25 + 0.5) / 4) / 2)
    assert hinge_loss(torch.ones(3), -torch.ones(2)) == 0


def test_psnr_in_closed_form():
    x = torch.rand(4, 3, 8, 8) - 0.5
    assert psnr(x, x + 0.2).item() == pytest.approx(20.0, abs=1e-3)  # 10 log10(4 / 0.04)
    assert psnr(-torch.ones(2, 3), torch.ones(2, 3)).item() == pytest.approx(0.0, abs=1e-5)
    assert psnr(x, x).item() == math.inf


def test_sharpness_is_a_share_of_power():
    real = scenes.scenes(30, seed=2)
    clean = scenes.draw(real.what, real.where)
    assert sharpness(clean, real).item() == pytest.approx(1)
    assert sharpness(0.5 * clean, real).item() == pytest.approx(0.25)
    soft = F.avg_pool2d(F.pad(clean, [1] * 4, mode="replicate"), 3, 1)
    softer = F.avg_pool2d(F.pad(clean, [2] * 4, mode="replicate"), 5, 1)
    blurred = sharpness(soft, real).item()
    assert sharpness(softer, real) < blurred < 0.1 < 1 < sharpness(real.images, real)
    at = np.abs(np.fft.fftfreq(64))
    high = np.maximum.outer(at, at) > 0.25
    power = [(np.abs(np.fft.fft2(images.double().numpy())) ** 2)[..., high].sum() for images in (soft, clean)]
    assert blurred == pytest.approx(power[0] / power[1], rel=1e-3)
    at = torch.arange(64.0)
    for cycles, above in ((10, False), (16, False), (17, True), (32, True)):  # of 32 that 64 pixels can show
        wave = torch.cos(2 * math.pi * cycles * at / 64)
        for images in (wave.expand(30, 3, 64, 64), wave[:, None].expand(30, 3, 64, 64)):
            assert (sharpness(images.contiguous(), real) > 0.1).item() == above


# ---- training


def by_hand(net, batches, steps, weights, *, power=1, lr=1e-2, warmup=2, reader=None, seed=5, square=False):
    """The weights after some steps, each term written out."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    for i in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (i + 1) / warmup) * (1 + math.cos(math.pi * i / steps)) / 2
        x = next(batches)
        if isinstance(net, nets.VAE):
            posterior = net.encode(x)
            found = net.decode(posterior.mean + posterior.std * torch.randn_like(posterior.mean))
            mean, variance = posterior.mean, posterior.std**2
            loss = weights["kl"] * 0.5 * (mean**2 + variance - 1 - variance.log()).sum((1, 2, 3)).mean()
        else:
            z = net.encode(x)
            near = torch.cdist(z.movedim(1, -1).reshape(-1, z.shape[1]), net.codebook).argmin(1)
            entries = net.codebook[near].reshape(*z.movedim(1, -1).shape).movedim(-1, 1)
            found = net.decode(z + (entries - z).detach())
            loss = (entries - z.detach()).square().mean() + weights["commitment"] * (
                z - entries.detach()
            ).square().mean()
        loss = loss + (found - x).abs().pow(power).mean()
        if reader:
            loss = loss + weights["perceptual"] * perceptual_distance(reader, found, x)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("kind", [nets.VAE, nets.VQVAE])
def test_steps_are_those_written_out(kind, power):
    reader, net = Levels(), made(kind, widths=(16,))  # groups of two: no bias whose gradient is but rounding
    weights = {"kl": 0.02} if kind is nets.VAE else {"commitment": 0.6}
    weights["perceptual"] = 0.7
    known = {"power": power, "lr": 1e-2, "warmup": 2, "reader": reader}
    wanted = by_hand(copy.deepcopy(net), squares(), 4, weights, **known)
    wrong = [by_hand(copy.deepcopy(net), squares(), 4, weights | {key: 0.5 * weights[key]}, **known) for key in weights]
    wrong.append(by_hand(copy.deepcopy(net), squares(), 4, weights, **known | {"power": 3 - power}))
    wrong.append(by_hand(copy.deepcopy(net), squares(), 4, weights, **known | {"warmup": 1}))
    net.eval()
    states = fit(net, squares(), steps=4, seed=5, restart_every=None, **known, **weights)
    modes = []
    for state in states:
        modes.append((state.step, net.training))
    assert modes == [(1, True), (2, True), (3, True), (4, True)] and not net.training
    found = torch.cat([p.detach().flatten() for p in net.parameters()])
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-4)
    assert all((found - other).abs().max() > 1e-4 for other in wrong)


def test_each_term_falls_that_is_asked_to_fall():
    plain, pressed = terms_of(made()), terms_of(made(), kl=0.1)
    assert set(plain) == {"reconstruction", "kl"}
    assert plain["reconstruction"][-5:].mean() < 0.6 * plain["reconstruction"][:5].mean()
    assert pressed["kl"][-5:].mean() < 0.7 * plain["kl"][-5:].mean()
    reader = Levels()
    seen = terms_of(made(), reader=reader, perceptual=1.0)["perceptual"]
    assert seen[-5:].mean() < 0.6 * seen[:5].mean()
    words = terms_of(made(nets.VQVAE, codebook=16))
    assert set(words) == {"reconstruction", "codebook", "commitment"}
    assert words["reconstruction"][-5:].mean() < 0.7 * words["reconstruction"][:5].mean()
    assert torch.equal(words["codebook"], words["commitment"])
    off = made(nets.VQVAE, codebook=16)
    with torch.no_grad():
        off.codebook += 3.0
    off.encoder.requires_grad_(False)  # entries come to latents that stay where they are
    off = terms_of(off, restart_every=None, lr=2e-2)["codebook"]
    assert off[-5:].mean() < 0.8 * off[:5].mean()
    apart = [terms_of(made(nets.VQVAE, codebook=16), commitment=weight)["commitment"][-5:].mean() for weight in (0, 5)]
    assert apart[1] < 0.7 * apart[0]
    assert not torch.equal(terms_of(made(), seed=1)["kl"], plain["kl"])
    assert torch.equal(terms_of(made())["kl"], plain["kl"])


def test_the_critic_enters_when_said_and_learns_from_its_own_loss_alone():
    net, critic = made(), Critic()
    start, grads, seen = [p.detach().clone() for p in critic.parameters()], [], []
    for state in fit(net, squares(), steps=10, critic=critic, adversarial=0.3, adversarial_from=0.5):
        seen.append({"adversarial", "critic"} <= set(state.terms))
        if seen[-1]:
            grads.append(([p.grad.clone() for p in critic.parameters()], state.terms))
        else:
            assert all(torch.equal(p, q) and p.grad is None for p, q in zip(critic.parameters(), start))
            assert not critic.shown
    assert seen == [False] * 5 + [True] * 5
    other = Critic()
    for i, (found, terms) in enumerate(grads):
        fooled, real, fake = critic.shown[3 * i : 3 * i + 3]
        assert torch.equal(fooled, fake) and not torch.equal(real, fake)
        for p, q in zip(other.parameters(), critic.weights[3 * i + 1]):
            p.data, p.grad = q, None
        loss = (F.relu(1 - other(real)).mean() + F.relu(1 + other(fake)).mean()) / 2
        loss.backward()
        for p, grad in zip(other.parameters(), found):
            torch.testing.assert_close(grad, p.grad)  # and nothing of the autoencoder's step
        assert terms["critic"] == loss.detach()
        torch.testing.assert_close(terms["adversarial"], -other(fake).mean().detach())
        assert all(torch.equal(a, b) for a, b in zip(critic.weights[3 * i], critic.weights[3 * i + 1]))
    assert not any(torch.equal(p, q) for p, q in zip(critic.parameters(), start))
    assert all(p.requires_grad for p in critic.parameters())


def test_an_autoencoder_learns_to_please_its_critic():
    """The critic likes what is bright, and never learns otherwise."""

    class Bright(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return x.mean((1, 2, 3)) + 0 * self.unused

    values = {}
    for adversarial in (0.0, 5.0):
        net = made()
        for _ in fit(
            net, squares(), steps=40, warmup=5, critic=Bright(), adversarial=adversarial, adversarial_from=0.0
        ):
            pass
        with torch.no_grad():
            values[adversarial] = net(next(squares(200)))[0].mean().item()
    assert values[5.0] > values[0.0] + 0.2


@pytest.mark.parametrize(("every", "steps"), [(1, [1, 2, 3, 4, 5, 6]), (2, [1, 3, 5]), (4, [1, 5]), (None, [])])
def test_entries_out_of_use_restart_in_the_first_three_quarters(every, steps):
    net, restarted = made(nets.VQVAE, codebook=30), []
    with torch.no_grad():
        net.codebook += 50.0
    restart = net.restart
    net.restart = lambda z: restarted.append(now) or restart(z)
    now = 1
    for state in fit(net, squares(), steps=8, restart_every=every):
        now = state.step + 1
    assert restarted == steps
    used = net.nearest(net.encode(next(squares(100)))).unique().numel()
    assert used > 5 if every else used == 1


def test_a_loss_that_is_not_finite_ends_the_run():
    with pytest.raises(RuntimeError, match="the loss is nan at step 3"):
        for _ in fit(made(), (x * math.nan for x in squares()), steps=3):
            pass


def test_half_precision_comes_close():
    exact, half = (terms_of(made(), steps=5, bf16=bf16)["reconstruction"] for bf16 in (False, True))
    assert half.dtype == torch.float32 and not torch.equal(exact, half)
    torch.testing.assert_close(exact, half, atol=0.02, rtol=0.05)


def test_drawn_batches_are_scenes_seen():
    batches = autoencoding.drawn(6, seed=3)
    first, second = next(batches), next(batches)
    assert first.shape == (6, 3, 64, 64) and not torch.equal(first, second)
    assert torch.equal(next(autoencoding.drawn(6, seed=3)), first)
    assert not torch.equal(next(autoencoding.drawn(6, seed=4)), first)
    reader = zoo.load("scene_reader")
    what = reader.read(torch.cat([next(batches) for _ in range(20)]))
    assert torch.stack(scenes.held_out(what)).double().mean(1).max() < 0.03  # but for what is misread


# ---- after training


def scene_sized(kind=nets.VAE, **options):
    net = made(kind, channels=3, patch=8, **options)
    with torch.no_grad():
        net.encoder[-1].weight *= 5
        net.encoder[-1].bias[2:] -= 3
    return net


def test_latent_scale_brings_latents_to_deviation_one():
    vae = scene_sized()
    images = data.scenes(300, seed=50).images
    raw = vae.latents(images).std().item()
    vae.scale.copy_(autoencoding.latent_scale(vae, count=300))
    assert vae.latents(images).std().item() == pytest.approx(1, rel=0.03) and abs(raw - 1) > 0.1
    assert autoencoding.latent_scale(vae, count=300) == pytest.approx(vae.scale.item(), rel=0.02)  # whatever it was


def test_a_vae_s_body_begins_a_vqvae():
    vae = scene_sized()
    net, images = autoencoding.quantized(vae, 40, seed=2), data.scenes(500, seed=2).images
    mean = vae.encode(images).mean
    torch.testing.assert_close(net.encode(images), mean)
    torch.testing.assert_close(net.decode(mean[:5]), vae.decode(mean[:5]))
    assert net.codebook.shape == (40, 2) and net.codebook.requires_grad and net.widths == vae.widths
    places = mean.movedim(1, -1).reshape(-1, 2)
    assert torch.cdist(net.codebook, places, compute_mode="donot_use_mm_for_euclid_dist").min(1).values.max() < 1e-5
    assert len(net.codebook.unique(dim=0)) > 35 and not torch.equal(
        net.codebook, autoencoding.quantized(vae, 40).codebook
    )
    with torch.no_grad():
        net.decoder[-1].weight += 1.0
    assert not torch.equal(net.decode(mean[:5]), vae.decode(mean[:5]))  # a copy


class Off(nets.VAE):
    """Its code is the picture, of deviation 2; what it makes of that is a tenth too bright."""

    def encode(self, x):
        return Posterior(x, torch.full_like(x, 2.0))

    def decode(self, z):
        return z + 0.1


def test_figures_of_reconstructions():
    reader, net = zoo.load("scene_reader"), Off(3, 1, (8,), patch=8)
    found = autoencoding.measured(net, reader, count=100, seed=8)
    assert list(found) == ["100 fresh scenes, split 'seen'", "100 fresh scenes, split 'objects'"]
    for split, figures in zip(("seen", "objects"), found.values()):
        decibels, right, original, power, *rest = figures.values()
        assert decibels == pytest.approx(10 * math.log10(4 / 0.01), abs=1e-3)
        drawn = data.scenes(100, seed=8, split=split)
        assert original == scenes.agreement(reader.read(drawn.images), drawn.what)["all"].double().mean() >= 0.96
        assert right >= 0.9 and power == pytest.approx(sharpness(drawn.images, drawn).item(), abs=1e-3)
        kl = 0.5 * (drawn.images.double().square() + 4 - 1 - math.log(4)).sum((1, 2, 3)).mean().item()
        assert rest[-1] == pytest.approx(kl, rel=1e-4) and list(figures)[-1] == "KL in nats a picture"
        if split == "seen":
            features = [reader.features(images) for images in (drawn.images, data.scenes(100, seed=108).images)]
            assert rest[1] == pytest.approx(metrics.frechet_distance(*features).item(), abs=1e-3) and rest[0] > 0
        assert len(rest) == (3 if split == "seen" else 1)


def test_reconstructions_go_by_way_of_the_code():
    images = data.scenes(7).images
    vae, words = scene_sized(), scene_sized(nets.VQVAE, codebook=5)
    again, figures = autoencoding.reconstructed(vae, images)
    torch.testing.assert_close(again, vae.decode(vae.encode(images).mean))
    assert list(figures) == ["KL in nats a picture"]
    again, figures = autoencoding.reconstructed(words, images)
    indices = words.nearest(words.encode(images))
    torch.testing.assert_close(again, words.decode_indices(indices))
    share = indices.flatten().bincount(minlength=5).double() / indices.numel()
    entropy = -(share[share > 0] * share[share > 0].log()).sum()
    assert figures == {"perplexity of the 5 entries": pytest.approx(entropy.exp().item(), rel=1e-4)}


def test_bad_arguments():
    for wrong, name in (
        ({"steps": 0}, "steps must"),
        ({"power": 3}, "power must"),
        ({"restart_every": 0}, "restart_every must"),
        ({"perceptual": 1.0}, "perceptual needs reader"),
        ({"adversarial": 1.0}, "adversarial needs critic"),
    ):
        with refuses(ValueError, name):
            next(fit(made(), squares(), **{"steps": 2} | wrong))
    with refuses(ValueError, "batch must"):
        next(autoencoding.drawn(0))
    x = torch.zeros(2, 3, 64, 64)
    for call in (lambda: psnr(x, x[:1]), lambda: perceptual_distance(Levels(3), x, x[:1])):
        with refuses(ValueError, "x and y must have the same shape"):
            call()
    with refuses(ValueError, "images and real.images must have the same shape"):
        sharpness(x, scenes.scenes(3))
