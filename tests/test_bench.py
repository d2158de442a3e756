"""The book's own measurements: what is stored is whole, the weights are the bound's, and a small run goes through."""

import itertools
import json
import math
import os

import pytest
import torch
from conftest import refuses

from companion import bench, data, zoo
from companion.bench import __main__ as command
from companion.bench import _real, guidance, likelihood, overhead, weighting
from companion.losses import elbo_weight

COMBINATIONS = set(itertools.product(("cosine", "linear"), ("simple", "elbo"), ("eps", "v")))


def whole(result):
    """What every result of ``weighting`` must hold."""
    assert result["name"] == "weighting"
    for key in "question command protocol quantities reference runs date hardware versions seconds".split():
        assert result[key] not in (None, "", {}, []), key
    seeds = {run["seed"] for run in result["runs"]}
    found = [(run["schedule"], run["weighting"], run["kind"], run["seed"]) for run in result["runs"]]
    assert sorted(found) == sorted((*which, seed) for which in COMBINATIONS for seed in seeds)
    for run in result["runs"]:
        assert set(run) == {"schedule", "weighting", "kind", "seed", *result["quantities"]}
        assert all(math.isfinite(run[name]) and run[name] > 0 for name in result["quantities"])
        assert run["bits"] == pytest.approx(run["reconstruction"] + run["prior"] + run["diffusion"], abs=1e-4)
    for found in result["reference"].values():
        assert set(found) <= set(result["quantities"])
    return seeds


def test_the_stored_result_is_whole():
    assert "weighting" in bench.names()
    result = bench.load("weighting")
    assert len(whole(result)) >= 3
    assert len(weighting.table(result).splitlines()) == 10
    assert max(run["bits"] for run in result["runs"]) < math.log2(17), "worse than levels drawn at random"


@pytest.mark.parametrize("name", ["nothing", "../weighting", ""])
def test_unknown_names(name):
    with pytest.raises(ValueError, match="name must be one of"):
        bench.load(name)


def test_a_small_run(tmp_path, capsys, monkeypatch):
    small = "--seeds 1 --steps 2 --samples 5 --nodes 2 --out".split()
    assert command.main(["weighting", *small, str(tmp_path / "new")]) == 0
    printed = capsys.readouterr().out.splitlines()
    monkeypatch.setattr(bench, "FOLDER", tmp_path / "new")
    result = bench.load("weighting")
    assert bench.names() == ["weighting"] and whole(result) == {0}
    assert [json.loads(line) for line in printed[:8]] == result["runs"]
    assert "\n".join(printed[8:]) == weighting.table(result)
    first = result["runs"][0]
    assert f"{first['bits']:.4f} ±" in printed[9] and printed[9].split()[:3] == ["cosine", "simple", "eps"]
    again = weighting.once("cosine", "simple", "eps", 0, 2, 5, 2)
    assert {**again, "seconds": 0} == {name: first[name] for name in again} | {"seconds": 0}


def whole_likelihood(result, count):
    """What every result of ``likelihood`` must hold, and the figures that follow from its runs."""
    for key in "question command protocol quantities means steps runs date hardware versions seconds".split():
        assert result[key] not in (None, "", {}, []), key
    for name in (*result["quantities"], "reconstruction", "uniform_probes", "own_noise_probes"):
        assert len(result["runs"][name]) == count and all(map(math.isfinite, result["runs"][name]))
    runs = {name: torch.tensor(values, dtype=torch.float64) for name, values in result["runs"].items()}
    runs["uniform less bound"] = runs["uniform"] - runs["bound"]
    runs["own_noise less bound"] = runs["own_noise"] - runs["bound"]
    for name, row in result["means"].items():
        assert row["mean"] == pytest.approx(runs[name].mean().item(), abs=2e-4)
        assert row["standard error over images"] == pytest.approx(runs[name].std().item() / count**0.5, abs=2e-4)
    assert len(result["steps"]) == 3 and all(math.isfinite(row["mean"]) for row in result["steps"].values())


def test_the_stored_likelihood_is_whole():
    result = bench.load("likelihood")
    whole_likelihood(result, 100)
    means = {name: row["mean"] for name, row in result["means"].items()}
    assert 1 < means["bound"] < 2 and 1 < means["own_noise"] < 2 and 1 < means["uniform"] < 2.5


def test_a_small_run_of_the_likelihood(tmp_path, capsys, monkeypatch):
    small = "--images 3 --steps 2 --draws 2 --few 2 --out".split()
    assert command.main(["likelihood", *small, str(tmp_path)]) == 0
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    result = bench.load("likelihood")
    whole_likelihood(result, 3)
    assert list(result["steps"]) == ["1", "2", "4"]
    assert capsys.readouterr().out.endswith(likelihood.table(result) + "\n")


def test_the_chain_s_own_noise_has_the_density_that_is_counted():
    model, images = zoo.load("mnist_likelihood"), data.mnist("sample", size=28)[0][:4]
    torch.manual_seed(0)
    noisy, surprise = likelihood.own_noise(model, images)
    (alpha,), (sigma,) = (
        f(torch.zeros(1, dtype=torch.float64)).tolist() for f in (model.schedule.alpha, model.schedule.sigma)
    )
    want = -torch.distributions.Normal(alpha * images.double(), sigma).log_prob(noisy.double()).flatten(1).sum(1)
    assert (surprise - want).abs().max() < 0.1 and want.abs().min() > 1000


def whole_guidance(result, seeds):
    """What every result of ``guidance`` must hold."""
    assert result["name"] == "guidance"
    for key in "question command protocol quantities real rows mends date hardware versions seconds".split():
        assert result[key] not in (None, "", {}, []), key
    for row in (*result["rows"], *result["mends"]):
        for key in result["quantities"]:
            assert len(row[key]) == seeds and all(map(math.isfinite, row[key]))
        for key in set(result["quantities"]) - {"frechet"}:
            assert all(0 <= value <= 1 for value in row[key])
        assert all(far <= all_of_them for far, all_of_them in zip(row["far_outside"], row["outside"], strict=True))
    for key in ("accuracy", "precision", "recall", "frechet"):
        assert len(result["real"][key]) == _real.SETS == 10
    return [row["scale"] for row in result["rows"]], {row["name"]: row for row in result["mends"]}


def test_the_stored_guidance_is_whole():
    result = bench.load("guidance")
    scales, mends = whole_guidance(result, 3)
    assert scales == list(guidance.SCALES) and set(mends) == set(guidance.MENDS)
    assert len(guidance.table(result).splitlines()) == len(result["rows"]) + len(result["mends"]) + 2
    mean = {row["scale"]: sum(row["accuracy"]) / 3 for row in result["rows"]}
    assert mean[0.0] < 0.2 and 0.9 < mean[1.0] < mean[2.0]  # unconditional: one in ten
    assert all(value > 0.98 for value in result["real"]["accuracy"])
    assert max(mends["clipped"]["outside"]) == max(mends["thresholded"]["outside"]) == 0


@pytest.mark.skipif("COMPANION_DATA" not in os.environ, reason="COMPANION_DATA names no folder with mnist/")
def test_a_small_run_of_guidance(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(guidance, "BATCH", 10)
    monkeypatch.setattr(guidance, "KNOWN", 200)
    small = "--seeds 2 --samples 20 --steps 2 --scales 1 4 --mended 4 --classifier --out".split()
    assert command.main(["guidance", *small, str(tmp_path)]) == 0
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    result = bench.load("guidance")
    scales, mends = whole_guidance(result, 2)
    assert scales == [1.0, 4.0] and set(mends) == set(guidance.MENDS)
    assert result["command"].endswith("--seeds 2 --samples 20 --steps 2 --scales 1 4 --mended 4 --classifier")
    assert capsys.readouterr().out.endswith(guidance.table(result) + "\n")
    assert max(mends["clipped"]["outside"]) == 0 < max(mends["clipped inside guidance"]["outside"])
    for wrong in ("15", "0", "-10", "210"):  # the last are more than the known ones
        with pytest.raises(SystemExit):
            guidance.main(["--samples", wrong])


def test_more_real_images_than_there_are_are_refused():
    labels = torch.arange(100) % 10
    assert [len(rows) for rows in _real.rows_of_others(labels, 40, 60)] == [60]
    for size in (61, 70, 0):
        with refuses(ValueError, "size must be above 0 and at most 60"):
            _real.rows_of_others(labels, 40, size)


def test_what_counts_as_outside():
    x = torch.tensor([[-1.2, -1.05, -1.0, 0.0], [0.3, 1.0, 1.01, 5.0]])
    assert guidance.beyond(x, 0.0).item() == 0.5 and guidance.beyond(x, guidance.FAR).item() == 0.25


def test_the_command_names_what_there_is(capsys):
    assert command.main([]) == 2 and command.main(["nothing"]) == 2 and command.main(["--help"]) == 0
    listed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("measurements: ")]
    assert len(listed) == 3 and set(bench.names()) <= set(listed[0].removeprefix("measurements: ").split(", "))


def expected(schedule, kind, t):
    """The weight by a finite difference of the log-SNR; its integral over log-SNRs from 8 to −8 in closed form.

    On a path that preserves the variance an error of v is one of eps times 1/alpha, and alpha² is the logistic sigmoid
    of the log-SNR l; the integral of ½ is 8, that of ½ sigmoid(l) is 4, as sigmoid(l) + sigmoid(−l) = 1.
    """
    h = 1e-6
    slope = (schedule.log_snr(t + h) - schedule.log_snr(t - h)) / (2 * h)
    return -0.5 * slope * {"eps": 1 / 8, "v": torch.sigmoid(schedule.log_snr(t)) / 4}[kind]


@pytest.mark.parametrize("kind", weighting.KINDS)
@pytest.mark.parametrize("name", weighting.SCHEDULES)
def test_the_weight_is_the_bound_s_with_mean_one(name, kind):
    schedule = weighting.SCHEDULES[name]
    weight = weighting.bounded(schedule, kind)
    at = schedule.time_of(torch.tensor([7.98, 5.0, 0.0, -3.0, -7.98], dtype=torch.float64) / 2)
    right = expected(schedule, kind, at)
    torch.testing.assert_close(weight(at), right, rtol=1e-4, atol=0.0)
    for wrong in (right * 2, elbo_weight(schedule, at, kind), expected(schedule, {"eps": "v", "v": "eps"}[kind], at)):
        assert (weight(at) / wrong - 1).abs().max() > 0.05
    beyond = schedule.time_of(torch.tensor([8.02, -8.02, 9.0], dtype=torch.float64) / 2)
    assert (weight(beyond) == 0).all() and weight(torch.tensor([0.0, 1.0])).tolist() == [0.0, 0.0]
    t = (torch.arange(400_000) + 0.5) / 400_000  # float32, as in training
    assert weight(t).dtype == torch.float32 and weight(t).double().mean().item() == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("name", weighting.SCHEDULES)
def test_the_walk_is_uniform_in_log_snr(name):
    schedule = weighting.SCHEDULES[name]
    found = schedule.log_snr(weighting.walk(schedule, 16))
    torch.testing.assert_close(found, torch.linspace(-8, 8, 17, dtype=torch.float64), atol=1e-6, rtol=0.0)


def test_bounded_refuses():
    schedule = weighting.SCHEDULES["linear"]
    for options, message in ((("x0",), "kind"), (("v", 0.0), "reach"), (("v", 11.0), "half_log_snr")):
        with refuses(ValueError, message):
            weighting.bounded(schedule, *options)


def test_equal_numbers_are_compared():
    """A part of a set of images lies further from the whole than the set does; so parts have as many as the test."""
    images, _ = data.digits("train")
    assert weighting.distance(images) == 0
    assert weighting.distance(images[:20]) > weighting.distance(images[:297]) > 0.01
    found = weighting.reference()["297 test scans"]
    assert found["ddim_parts"] == pytest.approx(weighting.distance(data.digits("test")[0]), abs=1e-5)


def whole_overhead(result):
    """What every result of ``overhead`` must hold."""
    assert result["name"] == "overhead" and {"diffusers", "torch"} <= set(result["versions"])
    for key in "question command protocol quantities rows date hardware versions".split():
        assert result[key] not in (None, "", {}, []), key
    assert [row["sampler"] for row in result["rows"]] == list(overhead.SAMPLERS)
    for row in result["rows"]:
        assert set(row) == {"sampler", *result["quantities"]}
        assert row["ratio"] == pytest.approx(row["ours_us"] / row["diffusers_us"], abs=1e-3)
        for who in ("ours", "sampler", "diffusers"):
            low, high = row[f"{who}_quartiles_us"]
            assert 0 < low <= row[f"{who}_us"] <= high


def test_the_stored_overhead_is_whole():
    result = bench.load("overhead")
    whole_overhead(result)
    assert all(row["sampler_us"] < 0.2 * row["ours_us"] and row["ratio"] < 2 for row in result["rows"])


def test_a_small_run_of_the_overhead(tmp_path, capsys, monkeypatch):
    threads = torch.get_num_threads()
    assert command.main(["overhead", "--steps", "10", "--repetitions", "15", "--out", str(tmp_path)]) == 0
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    result = bench.load("overhead")
    whole_overhead(result)
    assert all(row["sampler_us"] < 0.5 * row["ours_us"] for row in result["rows"])
    assert capsys.readouterr().out.endswith(overhead.table(result) + "\n") and torch.get_num_threads() == threads


def test_overhead_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(overhead.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="diffusers, which is not installed"):
        overhead.main([])
