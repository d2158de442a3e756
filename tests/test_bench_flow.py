"""Flow against diffusion: the stored table is whole and says what the theory says; a small run."""

import argparse
import os
import statistics

import pytest
import torch

from companion import bench, couplings, data, zoo
from companion.bench import __main__ as command
from companion.bench import flow
from companion.bench import samplers as quality

needs_mnist = pytest.mark.skipif(
    "COMPANION_DATA" not in os.environ, reason="COMPANION_DATA names no folder with mnist/"
)
ALL = [*flow.EXACT, *flow.WEIGHTS]


def whole(result, models):
    """What every result must hold."""
    for key in "question command protocol quantities real rows paths date hardware versions seconds".split():
        assert result[key] not in (None, "", {}, []), key
    assert len({len(row["frechet"]) for row in result["rows"]}) == 1
    assert [row["model"] for row in result["paths"]] == models
    assert list(dict.fromkeys(row["model"] for row in result["rows"])) == models
    for row in result["rows"]:
        assert row["steps"] == row["evaluations"] and row["path_error"] > 0 and min(row["frechet"]) >= 0
        assert ("accuracy" in row) == (row["model"] in flow.WEIGHTS)
        shares = row["precision"] + row["recall"] + row.get("accuracy", [])
        assert 0 <= min(shares) <= max(shares) <= 1
        assert row["sampler"] == "ddim" or row["evaluations"] > 2
    for row in result["paths"]:
        assert row["straightness"] > 0 and 0 < row["transport_cost"] < row["cost_of_strangers"]


def stored():
    result = bench.load("flow")
    return {(row["model"], row["sampler"], row["evaluations"]): row for row in result["rows"]}, {
        row["model"]: row for row in result["paths"]
    }


def test_the_stored_result_is_whole():
    result = bench.load("flow")
    whole(result, ALL)
    assert len(flow.table(result).splitlines()) == 1 + len(result["rows"]) + len(result["real"]) + len(ALL)
    assert {row["evaluations"] for row in result["rows"]} >= {1, 2, 5, 10, 25, 50}
    for card in result["cards"].values():
        assert f"{card['name']}, {card['steps']:,} steps" in result["protocol"]["networks"]


def test_the_two_are_of_equal_training():
    """The same network, data, batches, seed and steps; and two of the three are those that ship."""
    cards = bench.load("flow")["cards"]
    for key in ("steps", "seed", "batch", "data", "hardware", "parameters"):
        assert cards["flow"][key] == cards["diffusion"][key], key
    assert cards["flow"]["model"]["net"] == cards["diffusion"]["model"]["net"] == cards["reflow"]["model"]["net"]
    assert (cards["flow"]["model"]["kind"], cards["diffusion"]["model"]["kind"]) == ("velocity", "v")
    for name in ("flow", "reflow"):
        shipped = zoo.card(f"mnist_{name}")
        assert all(shipped[key] == value for key, value in cards[name].items())


def test_a_model_that_does_not_ship_is_to_be_trained_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(flow.WEIGHTS, "diffusion", "mnist_nobody_has_it")
    with pytest.raises(SystemExit):
        command.main(["flow", "--models", "diffusion", "--out", str(tmp_path)])
    assert "python -m companion.train mnist --name mnist_diffusion" in capsys.readouterr().err


def test_the_stored_result_says_what_theory_says():
    """Exact score: one ODE, so the same paths; the straight coordinates take larger steps; more steps are nearer."""
    rows, paths = stored()
    cosine, straight = (paths[name] for name in flow.EXACT)
    for key in ("straightness", "transport_cost"):
        assert cosine[key] == pytest.approx(straight[key], rel=1e-3)
    for method, n in (("ddim", 5), ("ddim", 10), ("ddim", 25), ("dpmpp_2m", 5), ("dpmpp_2m", 10)):
        assert rows["exact, straight", method, n]["path_error"] < rows["exact, cosine", method, n]["path_error"]
    for name in flow.EXACT:
        errors = [rows[name, "ddim", n]["path_error"] for n in (1, 2, 5, 10, 25, 50)]
        assert errors == sorted(errors, reverse=True)
        assert rows[name, "dpmpp_2m", 10]["path_error"] < rows[name, "ddim", 10]["path_error"]


def test_reflow_is_straighter_and_better_in_few_steps():
    rows, paths = stored()
    assert paths["reflow"]["straightness"] < paths["flow"]["straightness"]
    reflow, flow_ = (rows[name, "ddim", 1] for name in ("reflow", "flow"))
    assert reflow["path_error"] < flow_["path_error"]
    assert statistics.mean(reflow["frechet"]) < statistics.mean(flow_["frechet"])


def test_a_small_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quality, "KNOWN", 60)
    monkeypatch.setattr(quality, "FINE", 10)
    monkeypatch.setattr(flow, "FINE", 10)
    small = ["--seeds", "1", "--draws", "8", "--paths", "2", "--evaluations", "1", "3"]
    options = ["flow", *small, "--models", *flow.EXACT, "--out", str(tmp_path)]
    assert command.main(options) == 0
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    result = bench.load("flow")
    whole(result, list(flow.EXACT))
    assert capsys.readouterr().out.endswith(flow.table(result) + "\n")
    assert [(row["sampler"], row["evaluations"]) for row in result["rows"]] == 2 * [
        ("ddim", 1),
        ("ddim", 3),
        ("dpmpp_2m", 3),
    ]


@needs_mnist
def test_a_small_run_of_the_networks(tmp_path, monkeypatch):
    images = data.mnist("test")
    monkeypatch.setattr(data, "mnist", lambda split: images)
    monkeypatch.setattr(quality, "KNOWN", 60)
    monkeypatch.setattr(quality, "FINE", 3)
    monkeypatch.setattr(flow, "FINE", 3)
    monkeypatch.setitem(flow.WEIGHTS, "diffusion", "mnist")
    small = "--seeds 1 --samples 8 --paths 2 --evaluations 1 --models diffusion flow reflow --out".split()
    assert command.main(["flow", *small, str(tmp_path)]) == 0
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    whole(bench.load("flow"), list(flow.WEIGHTS))


def test_paths_of_gaussian_data_have_the_straightness_of_the_closed_form(monkeypatch):
    """N(0, s²) in place of the mixture: x(t) = x(1) sqrt((1 − t)² s² + t²), cost (1 − s)² for every pair."""
    std, given = 0.4, argparse.Namespace(paths=2, draws=40, bf16=False, compile=False)
    runner = flow.Runner("exact, cosine", given)
    schedule = runner.schedule

    def denoise(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return alpha * std**2 / (alpha**2 * std**2 + sigma**2) * x

    runner.network = denoise
    found = runner.followed()
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    speed = (t - (1 - t) * std**2) / ((1 - t) ** 2 * std**2 + t**2).sqrt()
    exact = torch.trapezoid((speed - (1 - std)) ** 2, t) / (1 - std) ** 2
    assert found["straightness"] == pytest.approx(exact.item(), rel=0.04)
    z = runner.noise(77, 40)
    assert found["transport_cost"] == pytest.approx((1 - std) ** 2 * z.square().mean().item(), rel=0.01)
    strangers = couplings.transport_cost(std * z.roll(-10, 0), z)
    assert found["cost_of_strangers"] == pytest.approx(strangers.mean().item() / 1024, rel=0.02)
