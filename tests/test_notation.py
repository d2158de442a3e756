"""The notation page against the code, and the code against the conventions of others."""

import re
from pathlib import Path

import pytest
import torch

from companion import schedules as S
from companion.predictions import KINDS, target_coefficients

PAGE = (Path(__file__).parents[1] / "book" / "notation.md").read_text(encoding="utf-8")
T = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)


def cells(row):
    return [cell.strip() for cell in row.strip().strip("|").split(" | ")]


@pytest.mark.parametrize("schedule", [S.LinearVP(), S.CosineVP(), S.RectifiedFlow(), S.VE()])
def test_the_table_of_kinds_is_the_code(schedule):
    symbols = {
        "$1$": torch.ones_like(T),
        "$0$": torch.zeros_like(T),
        r"$-1/\sigma$": -1 / schedule.sigma(T),
        r"$-\sigma$": -schedule.sigma(T),
        r"$\alpha$": schedule.alpha(T),
        r"$\dot\alpha$": schedule.alpha_rate(T),
        r"$\dot\sigma$": schedule.sigma_rate(T),
    }
    found = {}
    for row in PAGE.splitlines():
        kind = re.match(r"\| `(\w+)` \|", row)
        if kind and kind[1] in KINDS and cells(row)[1] in symbols and cells(row)[2] in symbols:
            found[kind[1]] = tuple(symbols[cell] for cell in cells(row)[1:3])
    assert set(found) == set(KINDS)
    for kind, (p, q) in found.items():
        want = target_coefficients(kind, schedule, T)
        torch.testing.assert_close((p, q), want)


def test_ddpm_s_table():
    """alpha(t)² is the papers' cumulative product, entry t − 1, as an independent library has it."""
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_schedule="linear").alphas_cumprod.double()
    schedule = S.DiscreteVP.linear(1000)
    t = torch.arange(1, 1001, dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(t) ** 2, theirs, atol=1e-6, rtol=1e-4)
    off_by_one = schedule.alpha(t[1:]) ** 2
    assert (off_by_one / theirs[:-1] - 1).abs().max() > 1e-2


def test_lambda_is_dpm_solver_s():
    from diffusers import DPMSolverMultistepScheduler

    theirs = DPMSolverMultistepScheduler(beta_schedule="linear").lambda_t.double()
    mine = S.DiscreteVP.linear(1000).half_log_snr(torch.arange(1, 1001, dtype=torch.float64))
    torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)
    assert (2 * mine - theirs).abs().max() > 1  # the full log-SNR is another thing


def test_v_is_diffusers_velocity():
    from diffusers import DDPMScheduler

    from companion.predictions import make_target

    scheduler = DDPMScheduler(beta_schedule="linear")
    x0, eps = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64)
    index = torch.tensor([0, 400, 999, 10])[:3]
    theirs = scheduler.get_velocity(x0[:3], eps[:3], index)
    mine = make_target("v", x0[:3], eps[:3], S.DiscreteVP.linear(1000), index.double() + 1)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
