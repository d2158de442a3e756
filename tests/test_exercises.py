"""Every exercise's check accepts the chapter's own solution and rejects plausible wrong answers."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from companion import exercises, samplers, schedules
from companion.exercises import check
from companion.toy import EmpiricalDistribution

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PATTERN = re.compile(r"\*\*Exercise (\d+\.\d+)\*\*.*?<details><summary>Solution</summary>.*?```python\n(.*?)```", re.S)


def solutions():
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        yield from PATTERN.findall(text)


SOLUTIONS = dict(solutions())


def one(alpha_power=1, variance="alpha**2 * std**2 + sigma**2", shift="alpha * mean"):
    return eval(
        f"lambda x, alpha, sigma, mean, std: mean + alpha**{alpha_power} * std**2 * (x - {shift}) / ({variance})"
    )


def ddim_variance(steps, std, first=0.0, power=2):
    angles = [math.pi / 2 * (1 - i / steps) for i in range(steps + 1)]
    variance = 1.0
    for a, b in zip(angles, angles[1:], strict=False):
        S = math.cos(a) ** 2 * std**2 + math.sin(a) ** 2
        variance *= ((math.cos(b) * math.cos(a) * std**2 + math.sin(b) * math.sin(a)) / S) ** power
    return variance + first


def second_order(log_p, x, alpha, sigma, factor=1.0, inner=1.0):
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(log_p(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    return factor * sigma**2 / alpha**2 * (1 + inner * sigma**2 * second)


def soft(points, x, alpha, sigma, width=2.0, shrink=True):
    centres = alpha * points if shrink else points
    return torch.softmax(-(torch.cdist(x, centres) ** 2) / (width * sigma**2), dim=1) @ points


def betas_of(table, shift):
    before = torch.cat([torch.ones_like(table[:1]), table[:-1]])
    return 1 - (table / before) ** shift


class Shifted(schedules.Schedule):
    def __init__(self, k):
        self.k = k

    def alpha(self, t):
        return (1 - t) / (1 - t + self.k * t)

    def sigma(self, t):
        return self.k * t / (1 - t + self.k * t)


def gaussian_loss(rho):
    return 0.5 * (rho - torch.log1p(rho))


def ratios(bar, tau):
    snr = bar / (1 - bar)
    return (snr[:-1] - snr[1:]) * tau**2 / (1 + snr[1:] * tau**2)


def staircase(size, k, ratio, levels, power=2, first=""):
    rest, v = 1 / (1 - size / 2), 1.0
    for level in range(levels):
        v = ratio**2 * v if level or first else v
        v = (1 - size) ** (power * k) * (v - rest) + rest
    return v


def with_toll(everyone, of_class, schedule, x, ts, gamma, factor):
    """The walk of exercise 8.6 with a given factor of the toll."""
    toll = torch.zeros(len(x), dtype=x.dtype)
    snr = schedule.log_snr(ts).exp()

    def guess(x, t):
        without, with_class = everyone(x, t), of_class(x, t)
        k = int((ts - t).abs().argmin())
        nonlocal toll
        toll = toll + factor * (with_class - without).square().sum(1) * (snr[k + 1] - snr[k])
        return without + gamma * (with_class - without)

    return samplers.sample(guess, schedule, x, ts), toll


def equal_shares(lam, density, steps):
    share = torch.cumulative_trapezoid(density, lam)
    return lam[torch.searchsorted(share, torch.linspace(0, 1, steps + 1).double() * share[-1]).clamp(max=len(lam) - 1)]


def _lloyd(z, entries, idle):
    """Exercise 10.6 by one who forgets entries that serve nobody: they stay, or become 0/0."""
    for _ in range(200):
        entries = entries.sort()[0]
        nearest = torch.bucketize(z, (entries[1:] + entries[:-1]) / 2)
        sums = torch.zeros_like(entries).index_add(0, nearest, z)
        counts = torch.bincount(nearest, minlength=len(entries))
        entries = sums / counts if idle == "nan" else torch.where(counts > 0, sums / counts.clamp(min=1), entries)
    return entries


def _queue(launch, kernels, depth, *, ahead):
    """A queue whose host waits for the wrong kernel."""
    done, sent = [], 0.0
    for i, length in enumerate(kernels):
        sent = sent + launch
        if i >= depth + ahead >= 0:
            sent = max(sent, done[i - depth - ahead])
        done.append(max(sent, done[-1] if done else 0.0) + length)
    return done[-1]


def _round_the_ring(vectors, send, *, whole):
    """A ring that sends whole vectors, or one that stops when each has its piece."""
    M = len(vectors)
    if whole:
        sums, passing = [v.clone() for v in vectors], [v.clone() for v in vectors]
        for _ in range(M - 1):
            passing = [send(passing[j - 1], (j - 1) % M, j) for j in range(M)]
            sums = [a + b for a, b in zip(sums, passing, strict=True)]
        return sums
    pieces = [list(v.clone().chunk(M)) for v in vectors]
    for step in range(M - 1):
        got = [send(pieces[j][(j - step) % M], j, (j + 1) % M) for j in range(M)]
        for j in range(M):
            pieces[j][(j - 1 - step) % M] = pieces[j][(j - 1 - step) % M] + got[(j - 1) % M]
    return [torch.cat(p) for p in pieces]


WRONG = {
    "1.1": [1.0, 1 / math.sqrt(2)],
    "1.2": [lambda t: 1 / torch.tan(torch.pi * t / 2), lambda t: torch.tan(torch.pi * t / 2) ** 2],
    "1.3": [one(2), one(shift="mean")],
    "1.4": [lambda *a: second_order(*a, inner=-1.0), lambda *a: second_order(*a, factor=0.5)],
    "1.5": [lambda n, s: ddim_variance(n, s, power=1), lambda n, s: s**2],
    "1.6": [lambda *a: soft(*a, width=1.0), lambda *a: soft(*a, shrink=False)],
    "2.1": [0.6, math.sqrt(0.496)],
    "2.2": [lambda table: betas_of(table, 0.5), lambda table: 1 - table],
    "2.3": [
        lambda h: (torch.sigmoid(h).sqrt(), torch.sigmoid(-h).sqrt()),
        lambda h: (torch.sigmoid(2 * h).sqrt(), (1 - torch.sigmoid(2 * h)).sqrt()),
    ],
    "2.4": [
        lambda b, k: b[len(b) - k :].sum() / b.sum(),
        lambda b, k: 1 - (1 - b[len(b) - k :]).prod(),
    ],
    "2.5": [lambda snr, std: torch.log1p(snr * std**2), lambda snr, std: 0.5 * torch.log1p(snr * std)],
    "2.6": [Shifted(9.0), Shifted(1 / 3)],
    "3.1": [lambda table: betas_of(table, 1.0), lambda table: betas_of(table, 1.0) * table],
    "3.2": [lambda x, v, a, s: (a * x + s * v, s * x + a * v), lambda x, v, a, s: (a * x - s * v, s * x - a * v)],
    "3.3": [lambda u, w: 0.5 * (torch.log(u / w) - 1 + w / u), lambda u, w: torch.log(w / u) - 1 + u / w],
    "3.4": [
        lambda a_s, s_s, a_t, s_t, tau: s_t**2 - (a_t / a_s) ** 2 * s_s**2,
        lambda a_s, s_s, a_t, s_t, tau: (s_t**2 - (a_t / a_s) ** 2 * s_s**2) * s_s**2 / s_t**2,
    ],
    "3.5": [
        lambda x, e, b, bar: (x - b / (1 - bar) * e) / (1 - b) ** 0.5,
        lambda x, e, b, bar: (x - b**0.5 / (1 - bar) ** 0.5 * e) / (1 - b) ** 0.5,
    ],
    "3.6": [lambda n, tau: ddim_variance(n, tau), lambda n, tau: tau**2],
    "4.1": [
        lambda m1, v1, m2, v2: 0.5 * (torch.log(v2 / v1) + (v1 + (m1 - m2) ** 2) / v2 - 1),
        lambda m1, v1, m2, v2: 0.5 * (torch.log(v1 / v2) + (v2 + (m1 - m2) ** 2) / v1 - 1) / math.log(2),
    ],
    "4.2": [
        lambda bar: 0.5 * ((bar / (1 - bar))[1:] - (bar / (1 - bar))[:-1]),
        lambda bar: 0.5 * ((bar / (1 - bar)) ** 0.5)[:-1] - 0.5 * ((bar / (1 - bar)) ** 0.5)[1:],
    ],
    "4.3": [
        lambda nats, d, levels: nats / (d * math.log(2)) + math.log2(levels),
        lambda nats, d, levels: nats / d + math.log2(levels / 2),
    ],
    "4.4": [
        lambda s, t, tau: 0.5 * (s - t) * tau**2 / (1 + t * tau**2),
        lambda s, t, tau: gaussian_loss((s - t) * tau**2 / (1 + s * tau**2)),
    ],
    "4.5": [lambda f2, w: w * f2 / (w * f2).sum(), lambda f2, w: f2.sqrt() / f2.sqrt().sum()],
    "4.6": [
        lambda bar, tau: sum(gaussian_loss(r) for r in ratios(bar, tau)[1:]) + 0.1,
        lambda bar, tau: 0.5 * ratios(bar, tau).sum(),
    ],
    "5.1": [lambda x, k: -k * x / (1 + x**2), lambda x, k: 2 * k * x / (1 + x**2)],
    "5.2": [lambda d, tau: tau**2 / 2, lambda d, tau: tau**2 / (1 - d / (2 * tau**2))],
    "5.3": [
        lambda A: 2 * (A.square().sum() - A.diagonal().square().sum()),
        lambda A: 2 * ((A + A.T) / 2).square().sum(),
    ],
    "5.4": [
        lambda f, g: torch.linalg.solve(f.T @ f, g.mean(0)),
        lambda f, g: -torch.linalg.solve(f.T @ f / len(f), g.mean(0)),
    ],
    "5.5": [
        lambda a, s, tau, d: d / 2,
        lambda a, s, tau, d: d * a**2 * tau**2 / (a**2 * tau**2 + s**2),
    ],
    "5.6": [lambda *a: staircase(*a, power=1), lambda *a: staircase(*a, first="a step down before the first level")],
    "6.1": [
        lambda t: (math.pi / 2 * torch.tan(math.pi * t / 2), math.pi * torch.tan(math.pi * t / 2)),
        lambda t: (-math.pi / 2 * torch.tan(math.pi * t / 2), math.pi / 2 * torch.tan(math.pi * t / 2)),
    ],
    "6.2": [lambda v, f, g, h: (1 + f * h) * v + g**2 * h, lambda v, f, g, h: (1 + f * h) ** 2 * v + g**2 * h**2],
    "6.3": [lambda c: math.log(0.5) / torch.log(c), lambda c: (torch.log(c) / math.log(0.5)).sqrt()],
    "6.4": [lambda x0, tau, a, s: a * x0, lambda x0, tau, a, s: x0 * (a**2 * tau**2 + s**2) ** 0.5],
    "6.5": [
        lambda e, tau, a, s, b, z: 0.5 * e**2 * torch.log((b**2 * tau**2 + z**2) / (a**2 * tau**2 + s**2)),
        lambda e, tau, a, s, b, z: 0.5 * e * (torch.log(b**2 * tau**2 + z**2) - 2 * torch.log(b / a)),
    ],
    "6.6": [
        lambda denoise, schedule, x, ts: samplers.sample(denoise, schedule, x, ts),
        lambda denoise, schedule, x, ts: samplers.sample(
            denoise, schedule, x, ts, sampler=samplers.euler_maruyama, kappa=0.0
        ),
    ],
    "7.1": [13, 15],
    "7.2": [lambda ell, P: -ell / torch.special.ndtri(P), lambda ell, P: -2 * torch.special.ndtri(P) / ell],
    "7.3": [
        lambda c, b, w, n: 2 * (c * b**2 + 1) * w + 2 * (w**2 + w) + n * (18 * w**2 + 15 * w) + 2 * w**2 + 2 * w,
        lambda c, b, w, n: 2 * c * b**2 * w + 4 * w**2 + 18 * n * w**2,
    ],
    "7.4": [
        lambda G1, V1, G2, V2: V1 * V2 / (V1 + V2) * (G1 - G2) ** 2,
        lambda G1, V1, G2, V2: (V1 + V2) / 8 * (G1 - G2) ** 2,
    ],
    "7.5": [
        lambda a, s, tau: (a * tau**2 / (a**2 * tau**2 + s**2), s * tau / (a**2 * tau**2 + s**2) ** 0.5),
        lambda a, s, tau: (s / (a**2 + s**2), a / (a**2 + s**2) ** 0.5),
    ],
    "7.6": [
        lambda images, x, a, s: EmpiricalDistribution(images).denoise(x, a, s),
        lambda images, x, a, s: sum(
            EmpiricalDistribution(part).denoise(x, a, s) / 2 for part in (images, images.flip(-1))
        ),
    ],
    "8.1": [lambda w: (w, 1 - w), lambda w: (1 + w, w)],
    "8.2": [lambda e, g, y, a, s: e - y * s**2 * g, lambda e, g, y, a, s: e + y * s * g],
    "8.3": [
        lambda m, t, n, u, y: ((1 - y) * m + y * n, 1 / ((1 - y) / t**2 + y / u**2)),
        lambda m, t, n, u, y: (
            ((1 - y) * m / t**2 + y * n / u**2) / ((1 - y) / t**2 + y / u**2),
            (t ** (1 - y) * u**y) ** 2,
        ),
    ],
    "8.4": [lambda t, u: t**2 / (u**2 - t**2), lambda t, u: u / (u - t)],
    "8.5": [
        lambda t, y: 1 - torch.log(t**2 + y * (1 - t**2)) / torch.log(t),
        lambda t, y: -0.5 * torch.log(t**2 + y * (1 - t**2)) / torch.log(t),
    ],
    "8.6": [lambda *a: with_toll(*a, factor=0.5 * a[-1] ** 2), lambda *a: with_toll(*a, factor=a[-1] * (a[-1] - 1))],
    "9.1": [0.6 * (1 - (0.36 / 0.64) ** 2) ** 0.5, 0.5 * 0.8 * (1 - (0.36 / 0.64) ** 2) ** 0.5],
    "9.2": [
        lambda r: torch.stack([1 + 1 / (2 * r), -1 / (2 * r), 0 * r]),
        lambda r: torch.tensor([23.0, -16.0, 5.0], dtype=torch.float64) / 12,
    ],
    "9.3": [lambda kappa, h: kappa + 0 * h, lambda kappa, h: torch.expm1(-2 * kappa**2 * h) / torch.expm1(-2 * h)],
    "9.4": [
        lambda lam, w, k, steps: equal_shares(lam, w**0.5, steps),
        lambda lam, w, k, steps: equal_shares(lam, w ** (1 / k), steps),
    ],
    "9.5": [
        lambda h: h**2 / -torch.expm1(-h) - 2 * (h / -torch.expm1(-h) - 1),
        lambda h: h**2 * (1 / 3 + h / 12),
    ],
    "9.6": [
        lambda denoise, schedule, x, ts: samplers.sample(denoise, schedule, x, ts),
        lambda denoise, schedule, x, ts: samplers.sample(
            denoise, schedule, x, ts, sampler=samplers.euler_maruyama, kappa=0.0
        ),
    ],
    "10.1": [lambda f: torch.log2(f), lambda f: 0.5 * torch.log(f)],
    "10.2": [
        lambda t, c: 2 / math.pi * torch.atan(torch.tan(math.pi * t / 2) / c),
        lambda t, c: 2 / math.pi * torch.atan(c**2 * torch.tan(math.pi * t / 2)),
    ],
    "10.3": [lambda beta, d, n: 0.5 * d * beta, lambda beta, d, n: d * beta / n],
    "10.4": [
        lambda v, rate: (v.log().mean() - 2 * rate / len(v)).exp(),
        lambda v, rate: v.max() * math.exp(-2 * rate),
    ],
    "10.5": [lambda r, tau: r**2 / ((1 - r**2) * tau**2), lambda r, tau: r / ((1 - r) * tau)],
    "10.6": [
        lambda z, entries: torch.quantile(z, (torch.arange(len(entries)) + 0.5).to(z) / len(entries)),
        lambda z, entries: _lloyd(z, entries, idle="stay"),
        lambda z, entries: _lloyd(z, entries, idle="nan"),
    ],
    "11.1": [lambda net: lambda x, t: net(x, 1 - t), lambda net: lambda x, t: -net(x, t)],
    "11.2": [lambda u, x, t: -(x - (1 - t) * u) / t, lambda u, x, t: -(x + (1 - t) * u)],
    "11.3": [
        lambda tau, c, d: d * tau * math.pi / 2 * torch.sqrt(1 - c**2),
        lambda tau, c, d: d * tau * torch.arccos(c),
    ],
    "11.4": [
        lambda x, t, m, tau, c: -m + (t - (1 - t) * tau**2) / (t**2 + (1 - t) ** 2 * tau**2) * (x - (1 - t) * m),
        lambda x, t, m, tau, c: -m + (t - (1 - t) * tau**2) / (t**2 + ((1 - t) * tau + c * t) ** 2) * (x - m),
    ],
    "11.5": [lambda tau, n: tau, lambda tau, n: tau * (1 - 1 / n)],
    "11.6": [
        lambda x0, eps, bins: (x0, eps),
        lambda x0, eps, bins: (x0.sort().values, eps),
        lambda x0, eps, bins: (x0.sort().values[eps.argsort().argsort()], eps),
    ],
    "18.1": [lambda phi, r, r2: phi * r + (1 - phi) * r2, lambda phi, r, r2: 1 / (phi / r + 1 - phi) * r2],
    "18.2": [
        lambda C, C_out, R, R_bytes, size: size * R / R_bytes / 2,
        lambda C, C_out, R, R_bytes, size: (
            size * C * C_out / R_bytes / (2 * C * C_out / R - size * (C + C_out) / R_bytes)
        ),
    ],
    "18.3": [
        lambda launch, kernels, depth: max(j * launch + sum(kernels[j - 1 :]) for j in range(1, len(kernels) + 1)),
        lambda launch, kernels, depth: _queue(launch, kernels, depth, ahead=1),
    ],
    "18.4": [
        lambda average, theta, bits: 1 - 2.0 ** (torch.frexp(average).exponent - bits) / (theta - average),
        lambda average, theta, bits: 1 - average * 2.0**-bits / (theta - average),
    ],
    "18.5": [
        lambda m1, Z1, y1, m2, Z2, y2: (torch.maximum(m1, m2), Z1 + Z2, y1 + y2),
        lambda m1, Z1, y1, m2, Z2, y2: (
            torch.maximum(m1, m2),
            Z1 * torch.exp(m1 - torch.maximum(m1, m2)) + Z2 * torch.exp(m2 - torch.maximum(m1, m2)),
            y1 + y2,
        ),
    ],
    "18.6": [
        lambda vectors, send: _round_the_ring(vectors, send, whole=True),
        lambda vectors, send: _round_the_ring(vectors, send, whole=False),
    ],
    "2.7": [lambda L: (1 + L) ** -0.5, lambda L: (1 + 2 * L) / (1 + L) ** 2],
}


def test_every_exercise_has_a_check_a_solution_and_wrong_answers():
    names = {n[1:].replace("_", ".") for n in vars(exercises) if re.fullmatch(r"_\d+_\d+", n)}
    assert names == set(SOLUTIONS) == set(WRONG)
    chapters = [name.split(".")[0] for name in names]
    assert all(chapters.count(str(int(path.name[:2]))) >= 5 for path in NOTEBOOKS)


@pytest.mark.parametrize("name", sorted(WRONG))
def test_solution_is_accepted(name, capsys):
    space = {"torch": torch}
    exec(SOLUTIONS[name], space)
    check(name, space["answer"])
    assert f"Exercise {name}: right" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(WRONG))
def test_wrong_answers_are_rejected(name):
    assert len(WRONG[name]) >= 2
    for wrong in WRONG[name]:
        with pytest.raises(AssertionError, match="off by|not second order"):
            check(name, wrong)


@pytest.mark.parametrize("name", sorted(WRONG))
@pytest.mark.parametrize("nothing", [None, lambda *a: None, "half"], ids=["none", "empty", "text"])
def test_no_answer_says_so(name, nothing):
    with pytest.raises(AssertionError, match="no answer yet|has not the form"):
        check(name, nothing)


def test_unknown_exercise():
    with pytest.raises(ValueError, match="exercise must be one of"):
        check("99.1", 0)
