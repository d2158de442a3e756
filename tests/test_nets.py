"""Networks: shapes, what they depend on, embeddings, errors."""

import math

import pytest
import torch
from conftest import refuses

from companion.nets import MLP, UNet, timestep_embedding


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


def test_bad_arguments():
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
