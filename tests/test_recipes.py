"""The recipes for MNIST: short runs end in a model, a card and a picture that fit; figures stand in their places."""

import json

import pytest
import torch
from conftest import needs_mnist

from companion import nets, recipes, samplers, zoo
from companion.denoisers import Denoiser
from companion.recipes import mnist, mnist_flow, mnist_likelihood, mnist_noisy_classifier, mnist_reflow
from companion.schedules import LinearLogSNR, RectifiedFlow, linspace


def written(folder, name, monkeypatch):
    monkeypatch.setattr(zoo, "FOLDER", folder)
    picture = folder / f"{name}.webp"
    assert picture.stat().st_size < 80_000 and picture.read_bytes()[8:12] == b"WEBP"
    return zoo.load(name), zoo.card(name)


SMALL = ["--steps", "2", "--batch", "4", "--width", "8"]


@needs_mnist
def test_mnist(tmp_path, monkeypatch, few):
    options = [*SMALL, "--samples", "20", "--evaluations", "2", "3", "--out", str(tmp_path), "--name", "small"]
    mnist.main(options)
    model, card = written(tmp_path, "small", monkeypatch)
    assert isinstance(model, Denoiser) and model.kind == "v" and model.net.classes == 10 and model.net.width == 8
    assert card["recipe"] == "python -m companion.train mnist --steps 2 --batch 4 --width 8"
    assert card["steps"] == 2 and card["batch"] == 4 and card["grid"] and "CC BY-SA 3.0" in card["data"]
    names = ["20 samples, ddim, 2 evaluations", "20 samples, ddim, 3 evaluations", "20 test images"]
    other = "training images 10,000 to 10,020"
    assert list(card["metrics"]) == [*names, other]
    found = {name: list(values.values()) for name, values in card["metrics"].items()}
    accuracy, distance, ratio, *_ = found["20 test images"]
    assert accuracy >= 0.9 and ratio == pytest.approx(distance / found[other][1], abs=1e-3)
    assert found[other][2] == 1.0 and len(found[other]) == 5 and len(found[names[0]]) == 6
    assert found[names[0]][1] > 2 * distance and found[names[0]][5] > 2 * found["20 test images"][5] > 0


@needs_mnist
def test_a_flow_and_its_reflow(tmp_path, monkeypatch, few):
    """Reflow starts from the flow's weights, on pairs that the flow made, and says so."""
    shipped = zoo.FOLDER
    made = ["--samples", "20", "--evaluations", "2", "--out", str(tmp_path)]
    mnist_flow.main([*SMALL, *made])
    flow, card = written(tmp_path, "mnist_flow", monkeypatch)
    assert (flow.kind, type(flow.schedule), flow.net.classes) == ("velocity", RectifiedFlow, 10)
    assert card["recipe"] == "python -m companion.train mnist_flow --steps 2 --batch 4 --width 8"
    assert card["model"]["net"] == {**mnist.sized(mnist.MODEL, mnist_options(8))["net"]} and "grid" in card

    monkeypatch.setattr(zoo, "FOLDER", shipped)
    seen, load, train = {}, zoo.load, recipes.train
    monkeypatch.setattr(zoo, "load", lambda name, **options: flow if name == "mnist_flow" else load(name, **options))

    def noticing(model, x0, **options):
        seen.update(options, x0=x0, first=[p.clone() for p in model.net.parameters()])
        return train(model, x0, **options)

    monkeypatch.setattr(recipes, "train", noticing)
    mnist_reflow.main([*SMALL, *made, "--pairs", "30", "--walk", "3"])
    card = json.loads((tmp_path / "mnist_reflow.json").read_text(encoding="utf-8"))
    assert card["recipe"].endswith("mnist_reflow --steps 2 --batch 4 --width 8 --pairs 30 --walk 3")
    assert card["data"].startswith("30 pairs") and card["seconds_for_pairs"] >= 0
    assert all(torch.equal(a, b) for a, b in zip(seen["first"], flow.net.parameters(), strict=True))
    noise, x0, labels = seen["noise"], seen["x0"], seen["cond"]
    assert labels.tolist() == [i % 10 for i in range(30)] and abs(noise.std() - 1) < 0.05
    ts = linspace(flow.schedule, 3)
    again = samplers.sample(lambda x, t: flow(x, t, labels), flow.schedule, noise, ts, sampler=samplers.unipc)
    assert torch.allclose(x0, again, atol=1e-5)


def mnist_options(width):
    return mnist.read(mnist.parser("mnist", "", 8000), ["--width", str(width)])


@pytest.mark.parametrize("recipe", [mnist, mnist_flow, mnist_reflow, mnist_likelihood])
def test_the_network_for_a_gpu_keeps_within_two_million_parameters(recipe):
    options = mnist.parser("mnist", "", 8000)
    for name in ("pairs", "walk"):
        options.add_argument(f"--{name}")
    (command,) = [line for line in recipe.__doc__.splitlines() if line.strip().startswith("python -m companion.train")]
    given = mnist.read(options, command.split()[4:])
    model = zoo.build(mnist.sized(recipe.MODEL, given))
    assert 1_500_000 < sum(p.numel() for p in model.parameters()) <= 2_000_000
    size = 28 if recipe is mnist_likelihood else 32
    assert model.net(torch.zeros(1, 1, size, size), torch.zeros(1)).shape == (1, 1, size, size)


@needs_mnist
def test_metrics_and_grids_at_intervals(tmp_path, few):
    options = ["--steps", "1000", "--batch", "1", "--width", "8", "--images", "2", "--draws", "1"]
    options += ["--metrics", str(tmp_path / "lines.jsonl"), "--grids", str(tmp_path / "grids")]
    mnist_likelihood.main([*options, "--out", str(tmp_path), "--name", "small"])
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(100, 1001, 100))
    assert [path.name for path in (tmp_path / "grids").iterdir()] == ["001000.webp"]


@needs_mnist
def test_weights_that_come_ready_are_measured_and_not_trained(tmp_path, monkeypatch, few):
    torch.manual_seed(1)
    net = nets.UNet(channels=1, width=8, multipliers=[1, 2], patch=2, fourier=[6, 7])
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    torch.save(net.state_dict(), tmp_path / "ema.pt")
    options = ["--width", "8", "--images", "6", "--draws", "1", "--out", str(tmp_path), "--name", "ready", "--bf16"]
    monkeypatch.setattr(recipes, "train", lambda *_, **__: pytest.fail("trained"))
    ready = [
        "--from-weights",
        str(tmp_path / "ema.pt"),
        "--seconds",
        "5400.4",
        "--hardware",
        "another CPU",
    ]
    mnist_likelihood.main([*options, *ready])
    model, card = written(tmp_path, "ready", monkeypatch)
    for mine, given in zip(model.net.parameters(), net.parameters(), strict=True):
        assert torch.equal(mine, given.half().float())
    assert card["seconds"] == 5400 and card["hardware"] == "another CPU" and card["steps"] == 8500
    assert card["recipe"] == "python -m companion.train mnist_likelihood --width 8 --bf16"
    assert list(card["metrics"]) == ["6 test images", "6 training images"]
    with pytest.raises(SystemExit):
        mnist_likelihood.main([*options, *ready[:4]])


def test_options_out_of_range_are_refused(capsys):
    for recipe, options in ((mnist, ["--samples", "3"]), (mnist_likelihood, ["--images", "1"])):
        with pytest.raises(SystemExit):
            recipe.main(options)
        assert f"{options[0]} must lie between" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        mnist.main(["--seconds", "3"])


def test_sample_i_is_of_class_i_mod_10(monkeypatch):
    """A network whose v leads to an image as grey as its class: x0_hat = alpha x − sigma v."""

    class Grey(torch.nn.Module):
        classes = 10

        def forward(self, x, t, cond):
            schedule, shape = model.schedule, (-1, 1, 1, 1)
            alpha, sigma = schedule.alpha(t).view(shape), schedule.sigma(t).view(shape)
            return (alpha * x - (cond / 10).view(shape)) / sigma.clamp(min=1e-6)

    model = Denoiser(Grey(), mnist.zoo.build(mnist.MODEL).schedule, "v")
    monkeypatch.setattr(mnist, "BATCH", 20)
    drawn = mnist.draw(model, 30, 4, 0)
    assert drawn.shape == (30, 1, 32, 32) and model.cond is None
    torch.testing.assert_close(drawn.mean((1, 2, 3)), (torch.arange(30) % 10) / 10, atol=1e-4, rtol=0.0)


def test_nearest_distance():
    known = torch.zeros(3, 1, 2, 2)
    known[1], known[2] = 1.0, -1.0
    images = known + torch.tensor([0.1, 0.2, -0.3]).view(3, 1, 1, 1)  # 0.2, 0.4 and 0.6 away
    assert mnist.distance_to(images, known) == pytest.approx(0.4, abs=1e-5)


class Nothing(torch.nn.Module):
    """eps_hat = 0: its expected squared error is 1, and the diffusion half the fall of the log-SNR, 9.15 nats."""

    def forward(self, x, t, cond=None):
        return torch.zeros_like(x)


def of_levels(log_snr):
    """Bits to tell a level between its neighbours from an unbiased guess, as noisy as the log-SNR says."""
    eps, edge = torch.linspace(-6, 6, 2001), 1 / 255 * 2.718281828 ** (log_snr / 2)
    mass = torch.special.ndtr(edge - eps) - torch.special.ndtr(-edge - eps)
    return -(torch.softmax(-(eps**2) / 2, 0) * mass.log2()).sum().item()


def test_terms_stand_under_their_names(monkeypatch):
    monkeypatch.setattr(mnist_likelihood, "STEPS", 50)
    model = Denoiser(Nothing(), LinearLogSNR(13.3, -5.0), "eps")
    images = torch.randint(0, 256, (40, 1, 28, 28)) / 127.5 - 1
    found = mnist_likelihood.measure(model, images, 20, best=12.0)
    total, error, reconstruction, prior, diffusion, endless, early = found.values()
    assert total == pytest.approx(reconstruction + prior + diffusion, abs=2e-4)
    assert diffusion == pytest.approx(9.15 * (1 + 18.3 / 50 / 2) / 0.693147, rel=0.05)
    assert endless == pytest.approx(9.15 / 0.693147 + prior + reconstruction, rel=0.02) and endless < total - 1
    signal = 1 / (1 + 2.718281828**5)  # alpha² at log-SNR −5; the prior's mean square is that of the images
    assert prior == pytest.approx(0.5 * signal * images.square().mean().item() / 0.693147, rel=0.02)
    assert 0 < reconstruction < 0.1 and 0 < error < 0.1
    saved = (13.3 - 12.0) / 2 / 0.693147  # less diffusion, but more for the levels
    assert early == pytest.approx(endless - saved + of_levels(12.0) - of_levels(13.3), abs=0.12)
    json.dumps(found)


@needs_mnist
def test_mnist_noisy_classifier(tmp_path, monkeypatch, few):
    options = ["--steps", "30", "--bf16", "--out", str(tmp_path), "--name", "small"]
    mnist_noisy_classifier.main(options)
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    net, card = zoo.load("small"), zoo.card("small")
    assert net.timed and card["recipe"] == "python -m companion.train mnist_noisy_classifier --steps 30 --bf16"
    (found,) = card["metrics"].values()
    levels = [name.removeprefix("class accuracy ") for name in found if name.startswith("class accuracy")]
    assert levels[0] == "without noise" and levels[5] == "at log-SNR 0 (t = 0.496)"
    assert len(levels) == 1 + len(mnist_noisy_classifier.LEVELS) == len(found) / 2
    for name, value in found.items():
        assert 0 <= value <= 1 if name.startswith("class accuracy") else 1 < value < 3
    again = mnist_noisy_classifier.measure(net)
    assert list(again.values()) == [found]  # measured as it is stored
