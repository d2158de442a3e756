"""Autoencoders and their critic: divergences against closed forms and sampling, codebooks against brute force."""

import math

import pytest
import torch
from conftest import refuses
from torch.distributions import Normal

from companion import losses
from companion.nets import VAE, VQVAE, Discriminator, count, perplexity
from companion.nets.autoencoder import Posterior

SMALL = {"channels": 2, "latent": 3, "widths": (8, 16)}


def warm(net, std=0.1):
    """Replace the zeros of the start, so that every path matters."""
    for p in net.parameters():
        torch.nn.init.normal_(p, std=std)
    return net


def convolution(pixels, inside, out, kernel=3):
    """The operations of a convolution, and its parameters."""
    return 2 * pixels * inside * out * kernel**2, inside * out * kernel**2 + out


# ---- the body -------------------------------------------------------------------------------------------------------


def test_a_picture_becomes_a_few_numbers_and_a_picture_again():
    for net, found in ((vae := VAE(), lambda x: vae.encode(x).mean), (vq := VQVAE(), lambda x: vq.encode(x))):
        x = torch.randn(2, 3, 64, 64)
        assert found(x).shape == (2, 4, 8, 8) and net.decode(found(x)).shape == x.shape and net(x)[0].shape == x.shape
    for patch, widths, side in ((1, (8,), 1), (1, (8, 16), 2), (2, (8, 8, 8), 8), (4, (8, 16), 8)):
        net = VAE(2, 3, widths, patch=patch)
        x = torch.randn(2, 2, 2 * side, 3 * side)  # any height and width
        assert net.encode(x).std.shape == (2, 3, 2, 3) and net(x)[0].shape == x.shape


@pytest.mark.parametrize("make", [VAE, VQVAE])
def test_pictures_do_not_see_each_other_and_every_parameter_learns(make):
    net = warm(make(**SMALL, blocks=2)).double()
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    look = (lambda x: net(x, torch.zeros_like)[0]) if make is VAE else lambda x: net(x)[0]
    for i in range(3):
        torch.testing.assert_close(look(x[i : i + 1])[0], look(x)[i])
    assert (look(x + 0.5) - look(x)).abs().max() > 1e-3
    x_hat, about = net(x)
    penalty = about.kl().mean() if make is VAE else about.codebook_loss + about.commitment_loss
    ((x_hat - x).square().mean() + penalty).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_an_autoencoder_s_counts_by_hand():
    """What one picture of 64 × 64 costs, convolution by convolution: at 32, 16 and 8 places a side."""

    def block(pixels, width):
        twice = [convolution(pixels, width, width)] * 2
        return sum(f for f, _ in twice), sum(p for _, p in twice) + 2 * 2 * width

    down = [convolution(1024, 12, 32), block(1024, 32), convolution(256, 32, 64), block(256, 64)]
    down += [convolution(64, 64, 96), block(64, 96), block(64, 96), (0, 2 * 96), convolution(64, 96, 8)]
    up = [convolution(64, 4, 96), block(64, 96), block(64, 96), convolution(256, 96, 64), block(256, 64)]
    up += [convolution(1024, 64, 32), block(1024, 32), (0, 2 * 32), convolution(1024, 32, 12)]
    vae, x, z = VAE(), torch.randn(2, 3, 64, 64), torch.randn(2, 4, 8, 8)
    for part, call, layers in (("encoder", lambda x, *_: vae.encode(x), down), ("decoder", None, up)):
        operations, parameters = (sum(numbers) for numbers in zip(*layers, strict=True))
        found = count.flops(call, x, None) if call else count.flops(lambda z, *_: vae.decode(z), z, None)
        assert count.parameters(getattr(vae, part)) == parameters and found == 2 * operations
    assert count.parameters(VQVAE()) == count.parameters(vae) + 512 * 4 - (96 * 9 + 1) * 4
    assert sum(f for f, _ in down) < 150e6 and sum(f for f, _ in up) < 200e6  # a CPU is to train it


# ---- latents that are Gaussian --------------------------------------------------------------------------------------


def test_the_divergence_from_the_prior():
    """Against the package's own divergence of normals, a library's, and E[log q − log p] over draws."""
    posterior = Posterior(*(torch.randn(3, 2, 2, 2, dtype=torch.float64), torch.rand(3, 2, 2, 2).double() + 0.3))
    zero, one = torch.zeros_like(posterior.mean), torch.ones_like(posterior.mean)
    want = losses.normal_kl(posterior.mean, posterior.std**2, zero, one).flatten(1).sum(1)
    torch.testing.assert_close(posterior.kl(), want)
    q, p = Normal(posterior.mean, posterior.std), Normal(zero, one)
    torch.testing.assert_close(posterior.kl(), torch.distributions.kl_divergence(q, p).sum((1, 2, 3)))
    many = Posterior(*(v.expand(4000, *v.shape) for v in posterior))
    z = many.sample()
    terms = (q.log_prob(z) - p.log_prob(z)).sum((2, 3, 4))
    error = terms.std(0) / len(terms) ** 0.5
    assert ((terms.mean(0) - posterior.kl()).abs() < 4 * error).all() and error.max() < 0.1


def test_a_draw_is_the_mean_and_the_deviation_times_noise():
    mean, std, noise = torch.randn(3, 2, 4, 4, 4, dtype=torch.float64).unbind()
    std = std.exp()
    posterior = Posterior(mean, std)
    torch.testing.assert_close(posterior.sample(lambda like: noise * torch.ones_like(like)), mean + std * noise)
    assert torch.equal(posterior.sample(torch.zeros_like), mean) and not torch.equal(posterior.sample(), mean)


def test_the_variance_stays_in_its_bounds():
    vae = VAE(**SMALL).double()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    said = vae.encoder[-1]
    torch.nn.init.zeros_(said.weight)
    for log_variance, within in ((-1000.0, -20.0), (-3.0, -3.0), (1000.0, 10.0)):
        said.bias.data = torch.tensor([0.5, 0.0, -0.5, *[log_variance] * 3], dtype=torch.float64)
        posterior = vae.encode(x)
        torch.testing.assert_close(posterior.std, torch.full_like(posterior.std, math.exp(within / 2)))
        torch.testing.assert_close(posterior.mean[1, :, 1, 0], said.bias[:3])
        assert posterior.kl().isfinite().all()


def test_the_scale_is_stored_and_brings_latents_to_deviation_one():
    vae = warm(VAE(**SMALL)).double()
    x = torch.randn(20, 2, 8, 8, dtype=torch.float64)
    plain = vae.latents(x, torch.zeros_like)
    torch.testing.assert_close(plain, vae.encode(x).mean)
    vae.scale.fill_(1 / plain.std())
    scaled = vae.latents(x, torch.zeros_like)
    assert scaled.std().item() == pytest.approx(1)
    torch.testing.assert_close(vae.pictures(scaled), vae.decode(plain))
    other = VAE(**SMALL).double()
    other.load_state_dict(vae.state_dict())
    assert other.scale == vae.scale != 1


def test_a_small_autoencoder_learns_to_copy():
    torch.manual_seed(0)
    vae = VAE(1, 2, (16, 16))
    optimizer = torch.optim.Adam(vae.parameters(), 3e-3)
    for _ in range(150):
        level = torch.rand(16, 2, 1, 1) * 2 - 1
        x = level[:, :1].expand(-1, 1, 8, 8).clone()
        x[..., 4:] = level[:, 1:].expand(-1, 1, 8, 4)  # two halves, each of one grey
        x_hat, posterior = vae(x)
        loss = (x_hat - x).square().mean() + 1e-4 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (x_hat - x).square().mean() < 0.2 * x.var()


# ---- latents that are words -----------------------------------------------------------------------------------------


def books(entries=7, **options):
    net = VQVAE(**SMALL | options, codebook=entries).double()
    return net, torch.randn(4, 3, 5, 6, dtype=torch.float64)


def test_every_place_gets_the_nearest_entry():
    net, z = books()
    codes = net.quantize(z)
    apart = (z[:, :, :, :, None] - net.codebook.T[None, :, None, None]).square().sum(1)  # (batch, h, w, entries)
    assert torch.equal(codes.indices, apart.argmin(-1)) and codes.indices.unique().numel() == 7
    assert torch.equal(codes.indices, net.nearest(z))
    nearest = apart.min(-1).values / 3  # the mean over a place's three numbers
    for loss in (codes.codebook_loss, codes.commitment_loss):
        torch.testing.assert_close(loss, nearest.mean())
    for i, row, column in ((0, 0, 0), (3, 4, 5), (1, 2, 0)):
        torch.testing.assert_close(codes.z_q[i, :, row, column], net.codebook[codes.indices[i, row, column]])
    net, z = net.float(), z.float()
    with torch.autocast("cpu", torch.bfloat16):  # as in training: which entry is nearest is no matter of eight bits
        assert torch.equal(net.nearest(z), codes.indices)


def test_the_gradient_goes_straight_through():
    """z_q is the entry, and its derivative by z the identity; the codebook gets nothing from what is decoded."""
    net, z = books()
    z.requires_grad_()
    pull, codes = torch.randn_like(z), net.quantize(z)
    to_z, to_book = torch.autograd.grad((pull * codes.z_q).sum(), (z, net.codebook), allow_unused=True)
    assert torch.equal(to_z, pull) and to_book is None
    to_z, to_book = torch.autograd.grad(codes.commitment_loss, (z, net.codebook), allow_unused=True, retain_graph=True)
    torch.testing.assert_close(to_z, 2 * (z - codes.z_q).detach() / z.numel())
    assert to_book is None
    to_z, to_book = torch.autograd.grad(codes.codebook_loss, (z, net.codebook), allow_unused=True)
    assert to_z is None and (to_book != 0).all()


def test_the_codebook_is_at_rest_at_the_clusters_means():
    net, z = books(entries=3)
    z, owner = z * 0.1, torch.randint(3, (4, 5, 6))
    centres = 5 * torch.eye(3, dtype=torch.float64)
    z = z + centres[owner].movedim(-1, 1)
    places = z.movedim(1, -1)
    with torch.no_grad():
        net.codebook.copy_(torch.stack([places[owner == k].mean(0) for k in range(3)]))
    codes = net.quantize(z)
    assert torch.equal(codes.indices, owner)
    (still,) = torch.autograd.grad(codes.codebook_loss, net.codebook)
    assert still.abs().max() < 1e-12
    with torch.no_grad():
        net.codebook.copy_(centres)  # where the clusters were drawn around, and not quite their means
    (moves,) = torch.autograd.grad(net.quantize(z).codebook_loss, net.codebook)
    assert moves.abs().max() > 1e-5


def test_dead_entries_restart_on_latents():
    net, z = books(entries=40)
    with torch.no_grad():
        net.codebook[10:] += 100.0  # nearest to nothing
    before = net.codebook.detach().clone()
    used = torch.zeros(40, dtype=torch.bool)
    used[net.nearest(z).unique()] = True
    assert net.restart(z) == (~used).sum() >= 30
    assert torch.equal(net.codebook[used], before[used])
    places = z.movedim(1, -1).reshape(-1, 3)
    same = (net.codebook[:, None] == places).all(-1)
    assert same[~used].any(1).all() and same[~used].any(0).sum() > 15  # on latents, and not all on one
    assert net.codebook.requires_grad


def test_indices_are_all_a_picture_needs():
    net = warm(VQVAE(**SMALL, codebook=9), std=0.3).double()
    x = torch.randn(2, 2, 8, 12, dtype=torch.float64)
    x_hat, codes = net(x)
    torch.testing.assert_close(net.decode_indices(codes.indices), x_hat)
    assert (net.decode_indices((codes.indices + 1) % 9) - x_hat).abs().max() > 1e-3


def test_perplexity_in_closed_form():
    each = torch.arange(12).repeat(5).reshape(3, 4, 5)
    assert perplexity(each, 12).item() == pytest.approx(12, rel=1e-5)
    assert perplexity(each, 500).item() == pytest.approx(12, rel=1e-5)  # unused entries change nothing
    assert perplexity(torch.full((2, 3, 3), 4), 12).item() == pytest.approx(1)
    for share in (0.1, 0.25):  # of two entries: 1 / (p^p q^q)
        two = (torch.arange(100) < 100 * share).long() * 7
        want = 1 / (share**share * (1 - share) ** (1 - share))
        assert perplexity(two, 8).item() == pytest.approx(want, rel=1e-5)


# ---- the critic -----------------------------------------------------------------------------------------------------


def test_a_logit_looks_at_38_pixels():
    net = warm(Discriminator(1, 8), std=0.3).double()
    x = torch.randn(1, 1, 64, 64, dtype=torch.float64, requires_grad=True)
    assert net(x).shape == (1, 1, 8, 8)
    for module in net.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x  # which sees the whole picture
    (seen,) = torch.autograd.grad(net(x)[0, 0, 3, 4], x)
    assert (seen[0, 0] != 0).any(1).sum() == (seen[0, 0] != 0).any(0).sum() == 38


def test_the_critic_judges_each_picture_by_itself_and_learns():
    torch.manual_seed(0)
    net = Discriminator(1, 8)
    x = torch.randn(4, 1, 16, 24)
    for i in range(4):
        torch.testing.assert_close(net(x[i : i + 1])[0], net(x)[i], atol=1e-5, rtol=1e-4)
    layers = [convolution(12 * 8, 1, 8, 4), convolution(6 * 4, 8, 16, 4), convolution(3 * 2, 16, 32, 4)]
    layers += [convolution(3 * 2, 32, 1), (0, 2 * 16 + 2 * 32)]
    operations, parameters = (sum(numbers) for numbers in zip(*layers, strict=True))
    assert count.parameters(net) == parameters and count.flops(lambda x, *_: net(x), x, None) == 4 * operations
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(60):
        sharp = torch.randn(16, 1, 16, 16)
        blurred = torch.nn.functional.avg_pool2d(torch.randn(16, 1, 18, 18), 3, 1)
        loss = torch.nn.functional.softplus(-net(sharp)).mean() + torch.nn.functional.softplus(net(blurred)).mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.abs().sum() > 0 for p in net.parameters())
        optimizer.step()
    assert loss < 0.1


# ---- what does not fit ----------------------------------------------------------------------------------------------


def test_bad_arguments():
    for make in (VAE, VQVAE):
        for wrong in ({"channels": 0}, {"latent": 0}, {"widths": (12,)}, {"widths": ()}, {"blocks": 0}, {"patch": 0}):
            with refuses(ValueError, f"{next(iter(wrong))} must be"):
                make(**wrong)
        net = make(**SMALL)
        for shape in ((1, 2, 6, 8), (1, 2, 8, 6), (1, 3, 8, 8), (2, 8, 8)):
            with refuses(ValueError, "x must have shape"):
                net.encode(torch.zeros(shape))
        for shape in ((1, 2, 8, 8), (3, 8, 8)):
            with refuses(ValueError, "z must have shape"):
                net.decode(torch.zeros(shape))
    with refuses(ValueError, "codebook must be"):
        VQVAE(codebook=0)
    net = VQVAE(**SMALL)
    with refuses(ValueError, "z must have shape"):
        net.quantize(torch.zeros(1, 2, 4, 4))
    for wrong in (torch.zeros(1, 4, 4, dtype=torch.int32), torch.zeros(4, 4, dtype=torch.int64)):
        with refuses(ValueError, "indices must be int64"):
            net.decode_indices(wrong)
    for wrong in (torch.tensor([0, 3]), torch.tensor([-1, 2]), torch.tensor([], dtype=torch.int64)):
        with refuses(ValueError, "indices must lie between 0 and 2"):
            perplexity(wrong, 3)
    for wrong in ({"channels": 0}, {"width": 0}, {"width": 12}):
        with refuses(ValueError, f"{next(iter(wrong))} must be"):
            Discriminator(**wrong)
    for shape in ((1, 3, 12, 16), (1, 3, 16, 12), (1, 1, 16, 16)):
        with refuses(ValueError, "x must have shape"):
            Discriminator(3, 8)(torch.zeros(shape))
