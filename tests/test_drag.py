"""The mixture that can be dragged: its first state, and bad arguments. A browser moves it in tests/site."""

import json
import re

import pytest
import torch
from conftest import refuses

from companion import drag, toy

FOUR = toy.GaussianMixture.four()


def arrows_of(path):
    """(arrows, 5 points, 2) of a path, with the vertical axis upwards."""
    numbers = torch.tensor([float(v) for v in re.findall(r"-?[0-9.]+", path)], dtype=torch.float64)
    return numbers.reshape(-1, 5, 2) * torch.tensor([1.0, -1.0], dtype=torch.float64)


@pytest.mark.parametrize("sigma", [0.05, 0.3, 2.0])
def test_arrows_point_along_the_score(sigma):
    page = drag.build(FOUR, sigma=sigma, alt="arrows")
    state = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1])
    drawn = arrows_of(re.search(r'class="arrows"[^>]* d="([^"]*)"', page)[1])
    foot, tip = drawn[:, 0], drawn[:, 1]
    x = foot.clone().requires_grad_()  # the score by autograd, from numbers that went through the page
    covariances = torch.tensor(state["covariances"]) + sigma**2 * torch.eye(2)
    components = torch.distributions.MultivariateNormal(torch.tensor(state["means"]).double(), covariances.double())
    log_p = torch.logsumexp(components.log_prob(x[:, None]) + torch.tensor(state["weights"]).double().log(), 1)
    (score,) = torch.autograd.grad(log_p.sum(), x)
    want = 0.8 * 5.4 / 13 * score / (score.norm(dim=1, keepdim=True) + 2)
    assert len(drawn) == 169 and (tip - foot - want).abs().max() < 5e-3
    assert (tip - foot).norm(dim=1).max() < 5.4 / 13  # none leaves its cell
    assert ((tip - foot) + 2 * want).abs().max() > 0.1  # and not the other way


def test_two_figures_of_one_mixture_have_one_id_and_others_another():
    first, again, other = (drag.build(FOUR, sigma=s, alt="a") for s in (0.3, 0.3, 0.4))
    assert first == again != other and "\ue000" not in first
    assert len({re.search(r'data-drag="(\w+)"', page)[1] for page in (first, other)}) == 2


def test_refuses():
    with refuses(ValueError, "in the plane"):
        drag.score_field(toy.GaussianMixture.two(), alt="a")
    with refuses(ValueError, "sigma must lie between"):
        drag.score_field(FOUR, sigma=3.0, alt="a")
    with refuses(TypeError, "alt"):
        drag.score_field(FOUR, alt=None)
    with refuses(ValueError, "alt"):
        drag.score_field(FOUR, alt="")
