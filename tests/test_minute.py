"""The recipe of a minute: it trains as long as it is told, rehearses without a trace, and says what it did."""

import argparse
import math

import pytest
import torch
from conftest import needs_mnist

from companion import gpu, zoo
from companion.recipes import mnist, mnist_minute


@pytest.fixture
def quick(few, monkeypatch):
    """Few images, and few steps to time."""
    monkeypatch.setattr(mnist_minute, "TIMED", 4)


SMALL = "--width 8 --patch 2 --batch 4 --no-bf16 --no-compile --samples 20 --evaluations 2".split()


@needs_mnist
def test_a_second(tmp_path, monkeypatch, quick):
    mnist_minute.main([*SMALL, "--seconds", "1", "--out", str(tmp_path), "--name", "small"])
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    model, card = zoo.load("small"), zoo.card("small")
    assert model.kind == "v" and model.net.classes == 10 and (tmp_path / "small.webp").stat().st_size > 0
    steps = card["steps"]
    assert steps > 5 and 0.2 < card["took"]["seconds"] < 10  # others may be at work on the same cores
    assert card["took"]["images"] == 4 * steps and card["took"]["seconds to make ready"] > 0
    assert card["took"]["images per second"] == pytest.approx(4 * steps / card["took"]["seconds"], rel=0.1)
    assert card["seconds"] == round(card["took"]["seconds"]) and card["hardware"] and card["batch"] == 4
    assert card["recipe"] == f"python -m companion.train mnist_minute --steps {steps} --batch 4 --width 8 --patch 2"
    assert list(card["metrics"])[0] == "20 samples, ddim, 2 evaluations" and len(card["metrics"]) == 3


def given(**options):
    known = {"width": 8, "patch": 2, "batch": 4, "seed": 3, "bf16": False, "compile": False, "lr": 1e-3, "steps": None}
    return argparse.Namespace(**known, seconds=1.0, **options)


def test_the_rehearsal_leaves_no_trace(monkeypatch):
    """The same weights as by a loop that does not rehearse; with a step that it forgets to undo they are others."""
    images, labels = torch.rand(6, 1, 32, 32) * 2 - 1, torch.arange(6)
    monkeypatch.setattr(mnist_minute, "TIMED", 3)

    def trained(rehearse):
        asked = given()
        asked.steps = 4
        monkeypatch.setattr(mnist_minute, "rehearse", rehearse)
        model, _ = mnist_minute.fit(asked, images, labels)
        return torch.cat([p.flatten() for p in model.parameters()])

    rehearse, calls = mnist_minute.rehearse, []

    def counted(step, ema):
        calls.append(rehearse(step, ema))
        return calls[-1]

    def forgetful(step, ema):
        state = step.generator.get_state()
        step(0.0)
        step.generator.set_state(state)
        ema.updates = 0
        return 1.0

    plain = trained(lambda step, ema: 1.0)
    assert torch.equal(trained(counted), plain) and calls[0] > 0
    assert not torch.equal(trained(forgetful), plain)


def test_as_many_steps_as_the_seconds_hold(monkeypatch):
    """And the average reaches back over a share of them."""
    images, labels, seen = torch.rand(6, 1, 32, 32) * 2 - 1, torch.arange(6), []
    monkeypatch.setattr(mnist_minute, "rehearse", lambda step, ema: seen.append(ema) or 0.01)
    monkeypatch.setattr(mnist_minute, "train", lambda step, given: None)
    asked = given()
    _, took = mnist_minute.fit(asked, images, labels)
    assert asked.steps == 97 and took["images"] == 4 * 97  # 97 % of a hundred
    assert seen[0].decay == pytest.approx(1 - 1 / (0.04 * 97))
    asked = given()
    asked.steps = 3  # then none are counted; the average is where the weights are
    mnist_minute.fit(asked, images, labels)
    assert asked.steps == 3 and seen[1].decay == 0


def test_the_learning_rate_rises_and_ends_at_zero():
    rates = [mnist_minute.risen_and_fallen(n, 1000) for n in range(1, 1001)]
    top = rates.index(max(rates)) + 1
    assert top == 1000 * mnist_minute.WARMED and rates[0] == pytest.approx(1 / top) and 0.98 < max(rates) < 1
    assert rates[-1] < 1e-5 and rates[499] == pytest.approx(0.5, abs=2e-3)
    assert all(a > b for a, b in zip(rates[top - 1 :], rates[top:], strict=False))
    assert 0 < mnist_minute.risen_and_fallen(1, 1) <= 1


def test_a_loss_that_is_not_finite_stops_it():
    asked = given()
    asked.steps = 2
    with pytest.raises(RuntimeError, match="lower --lr"):
        mnist_minute.train(lambda lr: (torch.tensor(math.nan), None), asked)


@pytest.mark.parametrize(
    "options",
    [["--seconds", "0"], ["--seconds", "nan"], ["--batch", "-1"], ["--lr", "0"], ["--steps", "0"], ["--samples", "3"]],
)
def test_options_out_of_range_are_refused(options, capsys):
    with pytest.raises(SystemExit):
        mnist_minute.main(options)
    assert options[0] in capsys.readouterr().err


def test_one_process_alone(monkeypatch, capsys):
    monkeypatch.setattr(mnist_minute, "world", lambda: 2)
    with pytest.raises(SystemExit):
        mnist_minute.main([])
    assert "one process" in capsys.readouterr().err


def test_the_network_by_default_is_that_of_mnist_on_a_gpu():
    asked = mnist_minute.read(mnist_minute.parser(), [])
    model = zoo.build(mnist.sized(mnist.MODEL, asked))
    assert 1_500_000 < sum(p.numel() for p in model.parameters()) <= 2_000_000
    assert asked.bf16 == asked.compile == (gpu.device().type == "cuda") and asked.seconds == 60
