"""The shipped models: what the card says is what lies there, and the figures hold."""

import json
import os
import shutil

import pytest
import torch

from companion import data, metrics, nets, zoo
from companion.denoisers import Clipped
from companion.samplers import sample, start
from companion.schedules import linspace


@pytest.mark.parametrize("name", zoo.names())
def test_cards_are_whole(name):
    card = zoo.card(name)
    for (
        key
    ) in "description model recipe data seed steps hardware seconds metrics parameters bytes sha256 licence".split():
        assert card[key] not in (None, ""), key
    model = zoo.load(name)
    assert sum(p.numel() for p in model.parameters()) == card["parameters"]
    stored = (zoo.FOLDER / f"{name}.safetensors").stat().st_size
    assert stored == card["bytes"] <= 6_000_000
    assert ("grid" in card) == (zoo.FOLDER / f"{name}.webp").exists() and card.get("grid", "text")
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in model.parameters()) and not model.training


def test_all_weights_stay_small():
    assert sum(path.stat().st_size for path in zoo.FOLDER.rglob("*")) < 25_000_000


def test_digits_are_read_as_what_was_asked_for():
    from sklearn.svm import SVC

    images, labels = data.digits("train")
    reader = SVC(gamma=0.05).fit(images.flatten(1), labels)
    model = zoo.load("digits")
    model.cond = torch.arange(200) % 10
    ts = linspace(model.schedule, 25)
    drawn = sample(Clipped(model), model.schedule, start(model.schedule, ts, (200, 1, 8, 8)), ts)
    assert reader.score(drawn.flatten(1), model.cond) > 0.9
    assert (torch.cdist(drawn.flatten(1), images.flatten(1)).min(1).values > 0.2).float().mean() > 0.98


@pytest.mark.skipif("COMPANION_DATA" not in os.environ, reason="COMPANION_DATA names no folder with mnist/")
def test_mnist_classifier_reads_as_well_as_its_card_says_and_its_features_see_noise():
    net = zoo.load("mnist_classifier")
    assert isinstance(net, nets.Classifier)
    images, labels = (whole[::5] for whole in data.mnist("test"))
    noise = torch.randn(images[1000:].shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(net(images[:100]), net.decide(net.features(images[:100])))
        features = net.features(images)
        noisy = [net.features(images[1000:] + sigma * noise) for sigma in (0.3, 0.6)]
        said = zoo.card("mnist_classifier")["metrics"]["10,000 test images"]["class accuracy"]
        accuracy = (net.decide(features).argmax(1) == labels).double().mean().item()
    assert said >= 0.99 and abs(accuracy - said) < 4 * (said * (1 - said) / len(labels)) ** 0.5
    real, some, more = (metrics.frechet_distance(features[:1000], f).item() for f in (features[1000:], *noisy))
    assert 1.5 * real < some < more / 5


def test_changed_weights_are_refused(tmp_path, monkeypatch):
    for path in zoo.FOLDER.glob("digits.*"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    zoo.load("digits")
    path = tmp_path / "digits.safetensors"
    stored = bytearray(path.read_bytes())
    stored[-1] ^= 1
    path.write_bytes(stored)
    with pytest.raises(RuntimeError, match="sha256"):
        zoo.load("digits")
    path.write_bytes(stored[:1000])
    with pytest.raises(RuntimeError, match="sha256"):
        zoo.load("digits")


def test_save_and_load(tmp_path, monkeypatch):
    about = {key: "x" for key in ("recipe", "data", "seed", "steps", "hardware", "seconds", "metrics")}
    about["model"] = json.loads(json.dumps(zoo.card("digits")["model"]))
    about["model"]["net"]["arguments"]["width"] = 8
    model = zoo.build(about["model"])
    for p in model.parameters():
        torch.nn.init.normal_(p)
    zoo.save("small", model.net, about, tmp_path)
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor(0.5)
    model.eval()
    torch.testing.assert_close(zoo.load("small")(x, t), model(x, t).detach(), atol=0.05, rtol=0.05)
    with pytest.raises(ValueError, match="card lacks"):
        zoo.save("small", model.net, {"model": {}}, tmp_path)


def test_a_card_without_schedule_gives_the_bare_network(tmp_path, monkeypatch):
    about = {key: "x" for key in ("recipe", "data", "seed", "steps", "hardware", "seconds", "metrics")}
    about["model"] = {"net": {"class": "Classifier", "arguments": {"width": 8, "features": 5}}}
    net = zoo.build(about["model"])
    assert isinstance(net, nets.Classifier) and net.training
    zoo.save("reader", net, about, tmp_path)
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    assert zoo.names() == ["reader"]
    loaded, x = zoo.load("reader"), torch.randn(2, 1, 16, 16)
    assert isinstance(loaded, nets.Classifier) and not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    torch.testing.assert_close(loaded(x), net(x).detach(), atol=0.01, rtol=0.01)


def test_unknown_names():
    with pytest.raises(ValueError, match="name must be one of"):
        zoo.load("nothing")
    with pytest.raises(ValueError, match="name must be one of"):
        zoo.card("../digits")
