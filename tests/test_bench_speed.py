"""The measurements of speed: the ways do the same work, the limits are counted right, what is stored is whole."""

import importlib
import math

import pytest
import torch
from torch import nn

from companion import bench
from companion.bench import __main__ as command
from companion.bench import _timing, sampling, training
from companion.denoisers import Denoiser
from companion.samplers import sample
from companion.schedules import CosineVP, DiscreteVP, trailing

NAMES = ("sampling", "training", "import")
SMALL = {
    "sampling": "--images 1 3 --steps 4 --repetitions 2 --width 8 --no-compile --out",
    "training": "--batch 4 --repetitions 2 --width 8 --no-compile --out",
    "import": "--repetitions 1 --out",
}


def whole(result):
    """What every result must hold."""
    for key in "question command protocol quantities rows date hardware versions".split():
        assert result[key] not in (None, "", {}, []), key
    for row in result["rows"]:
        assert set(result["quantities"]) <= set(row)
        assert row["quartiles"][0] <= row["seconds"] <= row["quartiles"][1] and row["seconds"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_results_are_whole(name):
    result = bench.load(name)
    whole(result)
    lines = importlib.import_module(f"companion.bench.{name}").table(result).splitlines()
    assert len(lines) == len(result["rows"]) + 1


@pytest.mark.parametrize("name", NAMES)
def test_a_small_run(name, tmp_path, capsys, monkeypatch):
    assert command.main([name, *SMALL[name].split(), str(tmp_path)]) == 0
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    result = bench.load(name)
    whole(result)
    assert importlib.import_module(f"companion.bench.{name}").table(result) in capsys.readouterr().out
    if name == "sampling":
        assert [row["images"] for row in result["rows"]] == [1, 1, 3, 3]
        assert all(row["difference"] < 1e-5 for row in result["rows"])  # the same walk, from the same noise
        for row in result["rows"]:
            theirs = next(r for r in result["rows"] if (r["images"], r["way"]) == (row["images"], sampling.DIFFUSERS))
            assert row["times_diffusers"] == pytest.approx(theirs["seconds"] / row["seconds"], rel=0.02)
    if name == "import":
        found = {row["import"]: row for row in result["rows"]}
        for way in ("companion", "companion, to sample"):
            heavy = {"matplotlib", "ipywidgets", "IPython", "sklearn", "scipy", "diffusers", "torchdiffeq"}
            assert not heavy & set(found[way]["packages"])


def test_half_precision_differs_and_is_told(tmp_path, monkeypatch):
    small = "--images 2 --steps 3 --repetitions 1 --width 8 --no-compile --dtype bfloat16 --out".split()
    assert command.main(["sampling", *small, str(tmp_path)]) == 0
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    for row in bench.load("sampling")["rows"]:
        assert 1e-5 < row["difference"] < 0.02


def test_diffusers_loop_is_the_plain_one():
    """A loop that counts the table from another end differs."""
    net, schedule, labels = _timing.network(8, 2), DiscreteVP.linear(), torch.tensor([3, 1])
    x, ts = torch.randn(2, 1, 32, 32), trailing(schedule, 5)

    def ours(shift):
        return sample(lambda x, t: denoise(x, t + shift), schedule, x, ts)

    denoise = Denoiser(net, schedule, "v", cond=labels)
    theirs = sampling.diffusers_loop(net, labels, 5, None)(x)
    torch.testing.assert_close(theirs, ours(0), atol=1e-4, rtol=1e-4)
    assert (theirs - ours(-1)).abs().max() > 1e-3


def test_the_plain_loop_of_training_trains():
    """On images that are all ones it learns to answer ones."""
    images, labels = torch.ones(3, 1, 32, 32), torch.zeros(3, dtype=torch.int64)
    model = Denoiser(_timing.network(8, 2), CosineVP(), "v")
    noise, errors = torch.randn(16, 1, 32, 32), []
    step = training.plain(model, images, labels, 8, None)
    for _ in range(12):
        with torch.no_grad():
            errors.append((model(noise, torch.tensor(0.9)) - 1).square().mean().item())
        step()
    assert errors[-1] < 0.2 * errors[0]


def test_traffic_counts_what_each_layer_reads_and_writes():
    net = nn.Sequential(nn.Linear(3, 5), nn.Sequential(nn.ReLU(), nn.Linear(5, 2, bias=False)))
    numbers = (2 * 3 + 15 + 5 + 2 * 5) + (2 * 5 + 2 * 5) + (2 * 5 + 10 + 2 * 2)
    assert _timing.traffic(net, torch.zeros(2, 3)) == 4 * numbers
    assert _timing.traffic(net.bfloat16(), torch.zeros(2, 3).bfloat16(), dtype=torch.bfloat16) == 2 * numbers


def test_ways_take_turns_and_the_first_call_is_apart():
    order, slow = [], {"a": 3, "b": 1}

    def call(name):
        order.append(name)
        for _ in range(20000 * slow[name] * (10 if order.count(name) == 1 else 1)):
            pass

    found = _timing.in_turns({n: lambda n=n: call(n) for n in "ab"}, 3, torch.device("cpu"))
    assert order == list("ab" * 5)
    for row in found.values():
        assert row["first_call"] > row["quartiles"][1]
    assert found["a"]["quartiles"][1] > found["b"]["quartiles"][1]


def test_peaks_are_rates():
    found = _timing.peaks(torch.device("cpu"), torch.float32, size=64, repetitions=2)
    assert all(math.isfinite(value) and value > 0 for value in found.values())
