"""Captions in, pictures out: which tokens belong to which latents, and which model is asked when, about what."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import refuses
from scipy import stats

from companion import latent, nets, scenes
from companion.denoisers import Denoiser
from companion.samplers import ddim, dpmpp_2m, heun, sample
from companion.schedules import CosineVP, RectifiedFlow, linspace

SCHEDULE, FLOW = CosineVP(), RectifiedFlow()
TOKENS = scenes.tokenize(["a small red circle on white", "a large blue star above a small red square on black", ""])


class Thumbnails(torch.nn.Module):
    """Stands for an autoencoder: every ``factor``-th pixel, and noise of which it remembers what it got."""

    def __init__(self, factor=8, spread=0.0):
        super().__init__()
        self.factor, self.spread, self.noise = factor, spread, []
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def latents(self, images, noise):
        small = images[:, :, :: self.factor, :: self.factor]
        self.noise.append(noise(small))
        return small + self.spread * self.noise[-1]

    def pictures(self, z):
        return F.interpolate(z, scale_factor=self.factor) + 10.0


class Net(torch.nn.Module):
    """What a network tells of itself."""

    channels, text = 3, object()

    def __init__(self):
        super().__init__()
        self.null = torch.zeros(scenes.LENGTH, dtype=torch.int64)


class Exact(torch.nn.Module):
    """E[x0 | x, caption] where x0 is normal, of deviation 0.3 around a level that the caption says; it counts calls."""

    def __init__(self, schedule=SCHEDULE, shift=0.0):
        super().__init__()
        self.schedule, self.net, self.shift, self.asked = schedule, Net(), shift, []
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def level(self, tokens):
        return (tokens.double().sum(1) / 50 + self.shift).float().view(-1, 1, 1, 1)

    def forward(self, x, t, tokens):
        self.asked.append((t.item(), len(x), x.clone()))
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        gain = alpha * 0.09 / (alpha**2 * 0.09 + sigma**2)
        return self.level(tokens) + gain * (x - alpha * self.level(tokens))

    @property
    def times(self):
        return [t for t, *_ in self.asked]


# ---- what a model is trained on


def nearest(colours, table):
    """Which colours of a table those nearest to the given ones, (n, 3), are."""
    levels = 2 * torch.tensor(list(table.values())) - 1
    return torch.cdist(colours, levels).argmin(1)


@pytest.mark.parametrize("split", ["seen", "objects", "relations"])
def test_tokens_belong_to_their_latents(split):
    vae = Thumbnails()
    z, tokens = latent.encoded(vae, 130, seed=3, split=split, chunk=50)
    assert z.shape == (130, 3, 8, 8) and tokens.shape == (130, scenes.LENGTH) and tokens.dtype == torch.int64
    words = [[scenes.VOCABULARY[word] for word in row if word] for row in tokens.tolist()]
    what = scenes.parse([" ".join(row) for row in words])
    paper = nearest(z[:, :, 0, 0], scenes.BACKGROUNDS)  # no shape reaches into a corner
    assert paper.tolist() == [list(scenes.BACKGROUNDS).index(row[-1]) for row in words]
    assert (paper.roll(1) != paper).sum() > 50 and z.flatten(1).unique(dim=0).shape[0] == 130
    whole, tokens = latent.encoded(Thumbnails(1), 130, seed=3, split=split, chunk=50)
    what = scenes.parse([" ".join(scenes.VOCABULARY[word] for word in row if word) for row in tokens.tolist()])
    ink = 2 * torch.tensor(list(scenes.COLOURS.values())) - 1
    apart = torch.cdist(whole.flatten(2).mT, ink.expand(130, -1, -1))  # of each pixel from each colour
    seen = (apart < 0.12).sum(1) > 15
    for column in (3, 6):
        there = what[:, column] >= 0
        assert seen[there].gather(1, what[there, column : column + 1]).all()
    named = F.one_hot(what[:, [3, 6]].clamp(min=-1) + 1, 7)[..., 1:].sum(1) > 0
    assert torch.equal(seen, named) and not torch.equal(seen, named.roll(1, 0))
    objects, relations = scenes.held_out(what)
    assert objects.all() == (split == "objects") and relations.all() == (split == "relations")
    assert objects.any() == (split == "objects") and relations.any() == (split == "relations")


def test_latents_are_draws_that_the_seed_says():
    first, again, other = (Thumbnails(spread=0.5) for _ in range(3))
    z, tokens = latent.encoded(first, 90, seed=1, chunk=40)
    assert [len(noise) for noise in first.noise] == [40, 40, 10]
    noise = torch.cat(first.noise)
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3 and len(noise.unique(dim=0)) == 90
    torch.manual_seed(5)
    for mine, same in zip((z, tokens), latent.encoded(again, 90, seed=1, chunk=40)):
        assert torch.equal(mine, same)
    assert not torch.equal(latent.encoded(other, 90, seed=2, chunk=40)[1], tokens)


def test_an_autoencoder_of_the_package_gives_its_latents():
    vae = nets.VAE(3, 2, (8, 8), patch=4)
    vae.scale.fill_(7.0)
    z, tokens = latent.encoded(vae, 5)
    assert z.shape == (5, 2, 8, 8) and not z.requires_grad and len(tokens) == 5
    vae.scale.fill_(14.0)
    torch.testing.assert_close(latent.encoded(vae, 5)[0], 2 * z)
    model = Denoiser(nets.UNet(2, 8, [1], text={"words": 26, "length": 12, "width": 8, "depth": 1}), SCHEDULE, "v")
    drawn = latent.text_to_image(model.eval(), tokens, linspace(SCHEDULE, 2), vae=vae, seed=3)
    assert drawn.shape == (5, 3, 64, 64) and not drawn.requires_grad


# ---- from captions to pictures


@pytest.mark.parametrize("sampler", [dpmpp_2m, ddim, heun])
@pytest.mark.parametrize("scale", [3.0, 0.5])
def test_guided_sampling_is_what_is_written_out(sampler, scale):
    model, ts = Exact(), linspace(SCHEDULE, 6)
    x = SCHEDULE.sigma(ts[0]) * torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(4))

    def guided(x, t):
        without = model(x, t, torch.zeros_like(TOKENS))
        return without + scale * (model(x, t, TOKENS) - without)

    wanted = sample(guided, SCHEDULE, x, ts, sampler=sampler)
    found = latent.text_to_image(model, TOKENS, ts, guidance_scale=scale, sampler=sampler, seed=4)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)
    assert model.asked[-1][1] == 6  # both in one call
    unguided = sample(lambda x, t: model(x, t, TOKENS), SCHEDULE, x, ts, sampler=sampler)
    assert (found - unguided).abs().amax((1, 2, 3))[:2].min() > 0.1
    torch.testing.assert_close(found[2], unguided[2], atol=2e-5, rtol=1e-4)  # no caption at all
    given = latent.text_to_image(model, TOKENS, ts, guidance_scale=scale, sampler=sampler, seed=9, x=x)
    assert torch.equal(given, found)
    assert not torch.equal(latent.text_to_image(model, TOKENS, ts, guidance_scale=scale, sampler=sampler), found)


def test_the_default_is_dpm_solver_with_scale_three():
    model, ts = Exact(), linspace(SCHEDULE, 4)
    found = latent.text_to_image(model, TOKENS, ts)
    same = latent.text_to_image(model, TOKENS, ts, guidance_scale=3, sampler=dpmpp_2m, seed=0)
    assert torch.equal(found, same)


def test_a_scale_of_one_is_no_guidance():
    model, ts = Exact(), linspace(SCHEDULE, 30)
    vae = Thumbnails(4)
    drawn = latent.text_to_image(model, TOKENS, ts, vae=vae, guidance_scale=1, sampler=heun) - 10.0
    assert {count for _, count, _ in model.asked} == {3} and drawn.shape == (3, 3, 64, 64)
    small = drawn[:, :, ::4, ::4]
    assert torch.equal(F.interpolate(small, scale_factor=4), drawn)  # 16 × 16 latents, as pictures
    for values, level in zip(small.flatten(1), model.level(TOKENS).flatten()):  # and of the right distribution
        assert abs(values.mean() - level) < 5 * 0.3 / math.sqrt(768) and abs(values.std() / 0.3 - 1) < 0.12


def test_the_refiner_takes_over_at_the_first_node_below():
    ts = torch.tensor([0.95, 0.8, 0.6, 0.4, 0.3, 0.29, 0.2, 0.1, 0.0])
    for below, switch in ((0.3, 5), (0.35, 4), (0.15, 7), (0.05, 9), (0.0, 9), (2.0, 0), (0.5, 3)):
        model, refiner = Exact(), Exact(shift=0.5)
        found = latent.text_to_image(model, TOKENS, ts, refiner=refiner, refine_below=below, sampler=ddim, seed=2)
        first, second = ts[:switch].tolist(), ts[switch:].tolist()
        if below in (0.05, 0.0):  # one node is no walk
            first, second = ts.tolist(), []
        assert model.times == (first if second else first[:-1]) and refiner.times == second[:-1], below
        assert {count for _, count, _ in model.asked + refiner.asked} == {6}
        if second and first:  # it goes on from where the other stopped
            start = model.asked[0][2][:3]
            half = latent.text_to_image(Exact(), TOKENS, ts[: switch + 1], sampler=ddim, x=start)
            assert torch.equal(refiner.asked[0][2][:3], half)
            rest = latent.text_to_image(Exact(shift=0.5), TOKENS, ts[switch:], sampler=ddim, x=half)
            assert torch.equal(found, rest)
    alone = latent.text_to_image(Exact(), TOKENS, ts, sampler=ddim, seed=2)
    twice = latent.text_to_image(Exact(), TOKENS, ts, refiner=Exact(), sampler=ddim, seed=2)
    torch.testing.assert_close(twice, alone)


def test_options_go_to_the_sampler():
    ts, noises = linspace(SCHEDULE, 4), []
    noise = lambda x: noises.append(x) or torch.zeros_like(x)  # noqa: E731
    latent.text_to_image(Exact(), TOKENS, ts, sampler=ddim, eta=1.0, noise=noise, refiner=Exact(), refine_below=0.6)
    assert len(noises) >= 3


# ---- from pictures to pictures


@pytest.mark.parametrize("schedule", [SCHEDULE, FLOW], ids=["vp", "flow"])
def test_a_walk_from_pictures_starts_at_their_noisy_versions(schedule):
    images = scenes.scenes(3).images
    for t0 in (0.9, 0.3):
        model, ts = Exact(schedule), torch.tensor([t0, t0 / 2, 0.0])
        found = latent.image_to_image(model, images, TOKENS, ts, seed=6, sampler=ddim)
        assert found.shape == images.shape and model.times == ts[:2].tolist()
        x = model.asked[0][2]
        assert torch.equal(x[:3], x[3:])
        noise = (x[:3] - schedule.alpha(ts[0]) * images) / schedule.sigma(ts[0])
        assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
        assert abs((noise * images).mean() / images.square().mean().sqrt()) < 5 / math.sqrt(noise.numel())
        wanted = latent.text_to_image(model, TOKENS, ts, x=x[:3], sampler=ddim)
        assert torch.equal(found, wanted)
        again = latent.image_to_image(Exact(schedule), images, TOKENS, ts, seed=6, sampler=ddim)
        other = latent.image_to_image(Exact(schedule), images, TOKENS, ts, seed=7, sampler=ddim)
        assert torch.equal(found, again) and not torch.equal(found, other)


def test_pictures_pass_through_the_autoencoder_both_ways():
    images, vae, model = scenes.scenes(3).images, Thumbnails(spread=0.1), Exact()
    ts = torch.tensor([0.5, 0.2, 0.0])
    found = latent.image_to_image(model, images, TOKENS, ts, vae=vae, guidance_scale=1, seed=2)
    x0 = images[:, :, ::8, ::8] + 0.1 * vae.noise[0]
    x = model.asked[0][2]
    noise = (x - SCHEDULE.alpha(ts[0]) * x0) / SCHEDULE.sigma(ts[0])
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    assert abs((noise * vae.noise[0]).mean()) < 5 / math.sqrt(noise.numel())  # not the noise of the latents again
    wanted = sample(lambda x, t: model(x, t, TOKENS), SCHEDULE, x, ts, sampler=dpmpp_2m)
    torch.testing.assert_close(found, vae.pictures(wanted))


def test_a_late_start_keeps_the_picture():
    images, kept = scenes.scenes(3).images, []
    for t0 in (0.02, 0.3, 0.9):
        ts = torch.linspace(t0, 0.0, 8)
        found = latent.image_to_image(Exact(), images, TOKENS, ts, guidance_scale=1)
        kept.append(torch.corrcoef(torch.stack([found.flatten(), images.flatten()]))[0, 1].item())
    assert kept[0] > 0.99 > kept[1] > kept[2] + 0.1
    late = latent.image_to_image(Exact(), images, TOKENS, torch.tensor([0.2, 0.1, 0.0]), refiner=Exact())
    assert late.shape == images.shape  # all nodes are the refiner's


def test_bad_arguments():
    for wrong, name in (({"n": 0}, "n must"), ({"split": "test"}, "split must"), ({"chunk": 0}, "chunk must")):
        with refuses(ValueError, name):
            latent.encoded(Thumbnails(), **{"n": 3} | wrong)
    model, ts = Exact(), linspace(SCHEDULE, 3)
    with refuses(ValueError, "images and tokens must be as many; got 2 and 3"):
        latent.image_to_image(model, torch.zeros(2, 3, 64, 64), TOKENS, ts)
    with refuses(ValueError, "ts must decrease"):
        latent.text_to_image(model, TOKENS, torch.tensor([0.2, 0.9]))
    with refuses(ValueError, "ts must have shape"):
        latent.text_to_image(model, TOKENS, ts[:1], refiner=model)
    with refuses(ValueError, "cond must have one condition per sample"):
        latent.text_to_image(model, TOKENS, ts, x=torch.zeros(2, 3, 8, 8))
    with refuses(ValueError, "guidance_scale"):
        latent.text_to_image(model, TOKENS, ts, guidance_scale=math.nan)
