"""Quality against evaluations: the stored table is whole and says what a sampler's theory says; a small run."""

import os
import statistics

import pytest
import torch

from companion import bench, data, samplers, schedules
from companion.bench import __main__ as command
from companion.bench import samplers as quality
from companion.bench._real import rows_of_others

needs_mnist = pytest.mark.skipif(
    "COMPANION_DATA" not in os.environ, reason="COMPANION_DATA names no folder with mnist/"
)


def whole(result, models):
    """What every result must hold."""
    for key in "question command protocol quantities real rows date hardware versions seconds".split():
        assert result[key] not in (None, "", {}, []), key
    seeds = {len(row["frechet"]) for row in result["rows"]}
    assert len(seeds) == 1 and set(result["real"]) == models == {row["model"] for row in result["rows"]}
    for row in result["rows"]:
        assert ("accuracy" in row) == (row["model"] == "mnist")
        assert ("path_error" in row) == (row["sampler"] not in quality.STOCHASTIC and row["evaluations"] <= 100)
        assert min(row["frechet"]) >= 0 and 0 <= min(row["precision"]) <= max(row["recall"] + row["precision"]) <= 1


def test_the_stored_result_is_whole():
    result = bench.load("samplers")
    whole(result, {"mnist", "mixture"})
    assert len(quality.table(result).splitlines()) == 1 + len(result["rows"]) + 2
    assert all(len(known["frechet"]) == 10 for known in result["real"].values())
    assert {row["sampler"] for row in result["rows"]} == set(quality.METHODS)


def test_the_stored_result_says_what_theory_says():
    """On the exact score: fewer evaluations are worse, higher orders nearer the ODE's end, enough steps exact."""
    rows = {
        (row["sampler"], row["grid"], row["evaluations"]): row
        for row in bench.load("samplers")["rows"]
        if row["model"] == "mixture"
    }
    ddim = {n: rows["ddim", "linspace", n] for n in (5, 10, 20, 50)}
    paths = [ddim[n]["path_error"] for n in (10, 20, 50)]
    assert paths[0] > 1.5 * paths[1] > 3 * paths[2] > 0
    far = [statistics.mean(ddim[n]["frechet"]) for n in (5, 20)]
    assert far[0] > 2 * far[1]
    assert (
        rows["dpmpp_2m", "uniform_log_snr", 20]["path_error"] < 0.7 * rows["ddim", "uniform_log_snr", 20]["path_error"]
    )
    at_random = bench.load("samplers")["real"]["mixture"]["frechet"]
    assert statistics.mean(rows["ancestral", "linspace", 1000]["frechet"]) < 1.5 * max(at_random)


def test_a_small_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quality, "KNOWN", 60)
    monkeypatch.setattr(quality, "FINE", 10)
    small = "--seeds 2 --draws 8 --paths 2 --evaluations 4 --no-long --models mixture --out".split()
    assert command.main(["samplers", *small, str(tmp_path)]) == 0
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    result = bench.load("samplers")
    whole(result, {"mixture"})
    assert capsys.readouterr().out.endswith(quality.table(result) + "\n")
    assert max(row["evaluations"] for row in result["rows"]) <= 4
    assert set(result["budget"]["prior, linear table"]) == {"pure noise", "exact law"}


@needs_mnist
def test_a_small_run_of_the_network(tmp_path, monkeypatch):
    images = data.mnist("test")
    monkeypatch.setattr(data, "mnist", lambda split: images)
    monkeypatch.setattr(quality, "KNOWN", 60)
    monkeypatch.setattr(quality, "FINE", 10)
    monkeypatch.setattr(quality, "METHODS", {key: quality.METHODS[key] for key in ("ddim", "ancestral")})
    small = "--seeds 1 --samples 8 --paths 2 --evaluations 2 --no-long --models mnist --out".split()
    assert command.main(["samplers", *small, str(tmp_path)]) == 0
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    whole(bench.load("samplers"), {"mnist"})


@pytest.mark.parametrize("method", quality.METHODS)
def test_a_budget_is_kept_and_used(method):
    """Calls counted by hand: a step of a solver that is first-order at both ends of the cosine schedule costs one."""
    schedule, budget = schedules.CosineVP(0.008), 12
    ts = quality.grid_for(method, "linspace", budget, schedule)
    steps, used = len(ts) - 1, quality.calls(method, schedule, ts)
    assert used <= budget < quality.calls(method, schedule, schedules.linspace(schedule, steps + 1))
    per_step = {"heun": 2, "edm, churn 40": 2, "dpm_solver_2s": 2, "dpm_solver_3s": 3}.get(method, 1)
    extra = {"plms": 1}.get(method, 0)
    assert used in (per_step * steps + extra, per_step * (steps - 1) + 1, per_step * (steps - 2) + 2)


def test_path_errors_are_those_of_a_gaussian_s_exact_ode():
    """The end that stands for the ODE's is the ODE's: on Gaussian data it is known."""
    schedule, variance = schedules.CosineVP(0.008), 0.3
    z = torch.randn(50, 1, dtype=torch.float64)

    def denoise(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return alpha * variance / (alpha**2 * variance + sigma**2) * x

    fine = torch.cat([torch.ones(1, dtype=torch.float64), schedules.uniform_log_snr(schedule, 300)])
    end = samplers.sample(denoise, schedule, z, fine, sampler=samplers.dpm_solver_3m)
    assert (end - variance**0.5 * z).abs().max() < 1e-3


def test_sets_of_others_have_their_classes_in_turn():
    """None from before the first, none twice; ten sets, or as many as the scarcest class is enough for."""
    labels = torch.tensor([3] * 50 + [*range(10)] * 40 + [0] * 200)[torch.randperm(650)]
    sets = rows_of_others(labels, 100, 30)
    for rows in sets:
        assert labels[rows].tolist() == [*range(10)] * 3 and rows.min() >= 100
    every = torch.cat(sets)
    least = min((labels[100:] == digit).sum().item() for digit in range(10))
    assert len(every.unique()) == len(every) and len(sets) == min(10, least * 10 // 30)
    assert len(rows_of_others(labels, 0, 10)) == 10
