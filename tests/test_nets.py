"""Networks: shapes, what they depend on, embeddings, errors."""

import math

import pytest
import torch
from conftest import refuses

from companion.nets import MLP, Classifier, UNet, timestep_embedding


def warm(net):
    """Replace the zeros of the start, so that every path matters."""
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return net


@pytest.mark.parametrize("size,multipliers,channels", [(8, (1, 2), 1), (16, (1, 2, 2), 3), (5, (1,), 2)])
def test_unet_keeps_the_shape_and_starts_at_zero(size, multipliers, channels):
    net = UNet(channels, 16, multipliers)
    x, t = torch.randn(3, channels, size, size), torch.rand(3)
    assert net(x, t).shape == x.shape and (net(x, t) == 0).all()


def test_unet_depends_on_each_input_and_on_nothing_else_in_the_batch():
    net = warm(UNet(1, 16, (1, 2), classes=10)).eval()
    x, t, c = torch.randn(4, 1, 8, 8), torch.rand(4), torch.tensor([0, 3, 9, 10])
    y = net(x, t, c)
    assert (net(x, t + 0.01, c) - y).abs().max() > 1e-4
    assert (net(x, t, (c + 1) % 10) - y).abs().max() > 1e-4
    assert torch.allclose(net(x, t, None), net(x, t, torch.full((4,), 10)), atol=1e-6)
    for i in range(4):
        torch.testing.assert_close(net(x[i : i + 1], t[i : i + 1], c[i : i + 1])[0], y[i], atol=1e-4, rtol=1e-4)


def test_patches_keep_shape_and_place():
    net = warm(UNet(1, 16, (1,), patch=4)).double()
    x, t = torch.randn(2, 1, 16, 16, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    assert net(x, t).shape == x.shape
    # a network whose convolutions look at one patch only: a pixel moves nothing outside its own patch
    net = UNet(1, 16, (1,), patch=4).double()
    with torch.no_grad():
        torch.nn.init.normal_(net.stem.weight[..., 1, 1])
        net.stem.weight[..., [0, 2], :] = 0
        net.stem.weight[..., :, [0, 2]] = 0
        torch.nn.init.normal_(net.out.weight)
        net.out.weight[..., [0, 2], :] = 0
        net.out.weight[..., :, [0, 2]] = 0
    net.norm = torch.nn.Identity()
    changed = x.clone()
    changed[:, :, 5, 9] += 1
    moved = (net(changed, t) - net(x, t)).abs() > 1e-12
    place = torch.zeros_like(moved)
    place[:, :, 4:8, 8:12] = True
    assert moved.any() and not (moved & ~place).any()


def test_fourier_features_have_their_period():
    net = warm(UNet(1, 16, (1,), fourier=[5, 6])).double()
    net.stem.weight.data[:, 0] = 0  # x itself is not looked at: only sin and cos of 32πx and 64πx
    x, t = torch.rand(2, 1, 8, 8, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    torch.testing.assert_close(net(x + 2 / 2**5, t), net(x, t))
    assert (net(x + 2 / 2**6, t) - net(x, t)).abs().max() > 1e-3  # half a period of the slower ones


def test_outputs_are_what_was_asked_for():
    assert UNet(1, 16, (1, 2), outputs=2, patch=2)(torch.randn(3, 1, 8, 8), torch.rand(3)).shape == (3, 2, 8, 8)
    with refuses(ValueError, "patch must be an integer above 0"):
        UNet(patch=0)


def test_every_parameter_learns():
    net = warm(UNet(1, 16, (1, 2), classes=3))
    net(torch.randn(6, 1, 8, 8), torch.rand(6), torch.arange(6) % 4).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_embedding_against_its_definition():
    t = torch.tensor([0.0, 1.0, 250.0], dtype=torch.float64)
    e = timestep_embedding(t, 8)
    for row, time in zip(e, t.tolist(), strict=True):
        for i in range(4):
            angle = time / 10000 ** (i / 4)
            assert row[i].item() == pytest.approx(math.cos(angle)) and row[4 + i].item() == pytest.approx(
                math.sin(angle)
            )


def test_mlp_learns_a_line():
    net = MLP(2, 32, 2)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(200):
        x, t = torch.randn(64, 2), torch.rand(64)
        loss = (net(x, t) - 2 * x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5


def test_classifier_decides_from_its_features_image_by_image():
    net = Classifier(2, width=8, classes=7, features=5)
    net.project.weight.data *= 50  # so that a SiLU left out would show
    x = torch.randn(4, 2, 16, 24)
    logits, features = net(x), net.features(x)
    assert logits.shape == (4, 7) and features.shape == (4, 5)
    torch.testing.assert_close(logits, features @ net.decide.weight.T + net.decide.bias)
    assert features.min() > -0.2785 and (features < 0).any()  # after the SiLU, not before
    for i in range(4):
        torch.testing.assert_close(net(x[i : i + 1])[0], logits[i], atol=1e-5, rtol=1e-4)
    assert 100_000 < sum(p.numel() for p in Classifier().parameters()) < 300_000


def test_classifier_learns_with_every_parameter():
    net = Classifier(width=8, classes=2, features=8)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        kinds = torch.arange(32) % 2
        x = torch.randn(32, 1, 16, 16)
        x[::2, :, ::2] += 2  # stripes across
        x[1::2, :, :, ::2] += 2  # stripes down
        loss = torch.nn.functional.cross_entropy(net(x), kinds)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
        optimizer.step()
    assert loss < 0.1


def test_bad_arguments():
    for wrong in ({"channels": 0}, {"width": 12}, {"classes": 0}, {"features": 0}):
        with refuses(ValueError, f"{next(iter(wrong))} must be"):
            Classifier(**wrong)
    for shape in ((1, 1, 12, 32), (1, 3, 32, 32)):
        with refuses(ValueError, "x must have shape"):
            Classifier(width=8)(torch.zeros(shape))
    with refuses(ValueError, "width must be"):
        UNet(width=12)
    net = UNet(1, 16, (1, 2))
    with refuses(ValueError, "x must have shape"):
        net(torch.zeros(1, 1, 7, 8), torch.zeros(1))
    with refuses(ValueError, "x must have shape"):
        net(torch.zeros(1, 3, 8, 8), torch.zeros(1))
    with refuses(ValueError, "no classes"):
        net(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    with refuses(ValueError, "dim must be"):
        timestep_embedding(torch.zeros(3), 7)
