"""Networks measured on 8×8 digits: what is stored is whole and says what it should; what is left out is gone."""

import json
import math

import pytest
import torch

from companion import bench, data
from companion.bench import __main__ as command
from companion.bench import _digits, architectures, memorisation, parts
from companion.denoisers import Denoiser
from companion.losses import simple_loss
from companion.nets import UNet, count
from companion.nets.unet import Attention, ResBlock
from companion.predictions import make_target


@pytest.fixture
def quick(monkeypatch):
    """Few questions and short walks."""
    monkeypatch.setattr(_digits, "DRAWS", 1)
    monkeypatch.setattr(_digits, "WALK", 2)
    monkeypatch.setattr(memorisation, "WALK", 2)


def whole(result, rows, seeds):
    """What the results of ``architectures`` and ``parts`` must hold."""
    for key in "question command protocol quantities reference date hardware versions seconds".split():
        assert result[key] not in (None, "", {}, []), key
    for row in rows:
        assert row["parameters"] > 0 and row["flops"] > 0
        for name in ("loss", "sliced_wasserstein", "seconds"):
            assert len(row[name]) == seeds and all(math.isfinite(value) and value > 0 for value in row[name])


def mean(row, name="loss"):
    return sum(row[name]) / len(row[name])


# ---- architectures


def test_the_stored_architectures_are_whole_and_cost_the_same():
    result = bench.load("architectures")
    models = {(row["family"], row["size"]): row for row in result["models"]}
    whole(result, result["models"], 2)
    assert len(architectures.table(result).splitlines()) == 7
    assert [key for key in models] == [(family, size) for family, size, _ in architectures.MODELS]
    for size in "SML":
        ours, theirs = models["U-Net", size], models["DiT", size]
        assert abs(ours["flops"] / theirs["flops"] - 1) < 0.1
    for family, size, arguments in architectures.MODELS:
        row, net = models[family, size], architectures.build(family, arguments)
        assert row["parameters"] == count.parameters(net) and row["loss"][0] < 0.4
        assert max(row["sliced_wasserstein"]) < 0.3


def test_a_small_run_of_the_architectures(tmp_path, capsys, monkeypatch, quick):
    small = [("U-Net", "S", {"width": 8}), ("DiT", "S", {"width": 16, "depth": 1, "heads": 1})]
    monkeypatch.setattr(architectures, "MODELS", small)
    monkeypatch.setattr(architectures, "RATES", (0.001, 0.5))
    assert command.main(["architectures", *"--seeds 1 --steps 2 --tune 1 --out".split(), str(tmp_path)]) == 0
    result = json.loads((tmp_path / "architectures.json").read_text(encoding="utf-8"))
    whole(result, result["models"], 1)
    assert [row["family"] for row in result["models"]] == ["U-Net", "DiT"]
    assert all(len(rates) == 2 for rates in result["rates"].values())
    assert result["command"].endswith("architectures --seeds 1 --steps 2 --tune 1")
    assert capsys.readouterr().out.endswith(architectures.table(result) + "\n")
    again = architectures.fresh(*small[0], 2)
    architectures.once(again, architectures.best(result["rates"]["U-Net"]), 0, 2)
    assert again["loss"] == result["models"][0]["loss"]


def test_the_best_rate():
    assert architectures.best({"0.001": 0.3, "0.002": 0.2, "0.004": 0.25}) == 0.002


def test_questions_are_the_same_for_all_and_leave_no_time_out():
    images, labels = data.digits("test")
    x0, t, noise, asked = _digits.questions(images[:10], labels[:10], 8)
    again = _digits.questions(images[:10], labels[:10], 8)
    assert all(torch.equal(a, b) for a, b in zip((x0, t, noise, asked), again, strict=True))
    assert torch.equal((t.double().sort().values * 80).floor(), torch.arange(80).double())
    for i in range(10):  # each image at times of its own, over the whole range
        assert torch.equal(x0[i::10], images[i].expand(8, 1, 8, 8)) and (asked[i::10] == labels[i]).all()
    assert t[::10].std() > 0.1 and abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1


def test_the_loss_is_the_mean_over_the_questions():
    model = Denoiser(UNet(1, 8, (1, 2), classes=10), _digits.SCHEDULE, "v")
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x0, t, noise, labels = asked = _digits.questions(*data.digits("test"), 4)  # in two blocks
    want = simple_loss(model, x0, t, noise, labels).item()
    assert _digits.loss(model, asked) == pytest.approx(want, rel=1e-5)


# ---- parts


def test_the_stored_parts_are_whole_and_the_whole_is_best():
    result = bench.load("parts")
    whole(result, result["rows"], 2)
    rows = {row["left_out"]: row for row in result["rows"]}
    assert list(rows) == list(parts.MEANING) and len(parts.table(result).splitlines()) == 1 + len(rows)
    assert mean(rows["time"]) > mean(rows["nothing"]) < mean(rows["skips"])
    for name, row in rows.items():
        assert row["parameters"] == count.parameters(parts.build(name))


def test_a_small_run_of_the_parts(tmp_path, capsys, monkeypatch, quick):
    monkeypatch.setattr(parts, "NET", parts.NET | {"width": 8})
    monkeypatch.setattr(parts, "MEANING", {"nothing": "the whole", "time": "no time"})
    assert command.main(["parts", *"--seeds 1 --steps 1 --out".split(), str(tmp_path)]) == 0
    result = json.loads((tmp_path / "parts.json").read_text(encoding="utf-8"))
    whole(result, result["rows"], 1)
    assert result["command"].endswith("parts --seeds 1 --steps 1")
    assert capsys.readouterr().out.endswith(parts.table(result) + "\n")


def variant(left_out):
    """A variant whose weights are all in use, with random inputs."""
    net = parts.build(left_out)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return net, torch.randn(3, 1, 8, 8), torch.tensor([0.2, 0.5, 0.8]), torch.tensor([1, 5, 10])


def kinds(net, kind):
    return [module for module in net.modules() if isinstance(module, kind)]


@pytest.mark.parametrize("left_out", parts.MEANING)
def test_each_variant_works_and_differs_from_the_whole_in_its_part_alone(left_out):
    net, x, t, c = variant(left_out)
    y = net(x, t, c)
    assert y.shape == x.shape and y.std() > 0
    told = (net(x, t + 0.1, c) - y).abs().max() > 1e-4
    assert told == (left_out != "time") and (net(x, t, (c + 1) % 10) - y).abs().max() > 1e-4
    assert bool(kinds(net, Attention)) == (left_out != "attention")
    assert bool(kinds(net, torch.nn.GroupNorm)) == (left_out != "normalisation")
    assert bool(kinds(net, parts.ShiftOnly)) == (left_out == "FiLM's scale")
    assert (net.factor == 1) == left_out.startswith("halving")
    starts = all((block.conv2.weight == 0).all() for block in kinds(parts.build(left_out), ResBlock))
    assert starts == (left_out != "zero start")
    whole_net = parts.build("nothing")
    if left_out in ("nothing", "skips", "time", "zero start"):
        assert [name for name, _ in net.named_parameters()] == [name for name, _ in whole_net.named_parameters()]


def test_nothing_is_handed_across_without_skips():
    for left_out, reaches in (("nothing", True), ("skips", False)):
        net, x, t, c = variant(left_out)
        # the middle's output is held fixed: what then still changes with x was handed across
        net.middle[-1].register_forward_hook(lambda module, inputs, output: torch.ones_like(output))
        moved = (net(x + 1, t, c) - net(x, t, c)).abs().max().item()
        assert (moved > 1e-3) == reaches and (moved == 0) == (not reaches)


def test_a_shift_without_a_scale():
    film = parts.ShiftOnly(6, 4)
    scale, shift = film(torch.randn(3, 6)).chunk(2, 1)
    assert scale.shape == shift.shape == (3, 4) and (scale == 0).all() and (shift != 0).any()


# ---- memorisation


def test_the_stored_memorisation_is_whole_and_says_when_it_ends():
    result = bench.load("memorisation")
    for key in "question command protocol quantities real rows date hardware versions seconds".split():
        assert result[key] not in (None, "", {}, []), key
    rows = {row["images"]: row for row in result["rows"]}
    assert list(rows) == [20, 100, 500, 1500] and len(memorisation.table(result).splitlines()) == 5
    for number, row in rows.items():
        assert set(row) == {"images", *result["quantities"]} and row["train_loss"] > row["floor"] > 0
        assert row["compared"] == min(number, 1797 - number) and 0 <= row["copies"] <= 1
        assert set(result["real"]["nearest_trained"]) == {str(number) for number in rows}
    assert rows[20]["copies"] > 0.5 > rows[1500]["copies"]
    assert rows[20]["held_out_loss"] > 2 * rows[20]["train_loss"]
    assert rows[20]["nearest_held_out"] > 2 * rows[20]["nearest_trained_equal"]


def test_a_small_run_of_memorisation(tmp_path, capsys, monkeypatch, quick):
    monkeypatch.setattr(memorisation, "NET", memorisation.NET | {"width": 8})
    monkeypatch.setattr(memorisation, "SAMPLES", 5)
    assert command.main(["memorisation", *"--images 2 1500 --steps 2 --out".split(), str(tmp_path)]) == 0
    result = json.loads((tmp_path / "memorisation.json").read_text(encoding="utf-8"))
    assert [row["images"] for row in result["rows"]] == [2, 1500]
    assert result["rows"][1]["compared"] == 297
    assert result["command"].endswith("memorisation --images 2 1500 --steps 2 --seed 0")
    assert capsys.readouterr().out.endswith(memorisation.table(result) + "\n")


def test_what_counts_as_a_copy():
    known = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 10.0]])
    images = torch.tensor([[0.5, 0.0], [1.0, 0.0], [0.0, 9.0], [3.0, 0.0]])
    # nearest and second nearest: 0.5 and 2.5; 1 and 2; 1 and 9; 0 and 3
    assert memorisation.copies(images, known) == 0.75


def test_the_floor_is_the_loss_of_the_exact_denoiser():
    """Against v computed from x0_hat at every question, and below the loss of any other denoiser of these images."""
    images, schedule = data.digits("train")[0][:30], _digits.SCHEDULE
    x0, t, noise, _ = asked = _digits.questions(images, None, 4)
    alpha, sigma = (f(t.double())[:, None] for f in (schedule.alpha, schedule.sigma))
    x0, noise = x0.flatten(1).double(), noise.flatten(1).double()
    x, points = alpha * x0 + sigma * noise, images.flatten(1).double()
    errors = {}
    for name, wider in (("exact", 1.0), ("wide", 1.3), ("narrow", 0.8)):
        apart = (x[:, None] - alpha[:, :, None] * points).square().sum(2)
        guess = torch.softmax(-apart / (2 * (wider * sigma) ** 2), 1) @ points
        v = alpha * (x - alpha * guess) / sigma - sigma * guess
        errors[name] = (v - make_target("v", x0, noise, schedule, t.double())).square().mean().item()
    assert memorisation.floor(images, asked) == pytest.approx(errors["exact"], rel=1e-6)
    assert errors["exact"] < min(errors["wide"], errors["narrow"])
