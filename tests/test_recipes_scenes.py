"""The recipes for scenes: short runs of small networks end in models, cards and pictures that fit."""

import inspect
import shutil
from functools import partial

import pytest
import torch

from companion import autoencoding, data, latent, nets, scenes, zoo
from companion.denoisers import Denoiser
from companion.recipes import scene_reader, scene_text, scene_vae, scene_vqvae, scenes_pixels, scenes_refiner
from companion.recipes import scenes as text_to_image
from companion.schedules import CosineVP
from companion.train import main as train_main

TEXT = {**text_to_image.TEXT, "width": 8, "depth": 1}
CARD = (
    "description model recipe data seed steps hardware seconds metrics parameters bytes sha256 licence versions batch"
)
SPLITS = ("seen", "objects", "relations")


def autoencoder(kind, **options):
    arguments = {"channels": 3, "latent": 4, "widths": [8], "blocks": 1, "patch": 8} | options
    return {"net": {"class": kind, "arguments": arguments}}


def denoiser(**options):
    arguments = {"width": 8, "multipliers": [1], "attention": [0], "text": TEXT} | options
    return {**text_to_image.MODEL, "net": {"class": "UNet", "arguments": arguments}}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Small networks, few scenes, and a folder that holds the reader and a small encoder of words."""
    for path in zoo.FOLDER.glob("scene_reader.*"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    monkeypatch.setattr(scene_vae, "MODEL", autoencoder("VAE"))
    monkeypatch.setattr(scene_vqvae, "MODEL", autoencoder("VQVAE", codebook=10))
    monkeypatch.setattr(scene_text, "MODEL", {"net": {"class": "TextEncoder", "arguments": TEXT}})
    scene_text.main(["--steps", "3", "--out", str(tmp_path)])
    monkeypatch.setattr(text_to_image, "MODEL", denoiser(channels=4))
    monkeypatch.setattr(scenes_pixels, "MODEL", denoiser(channels=3, patch=8))
    monkeypatch.setattr(text_to_image, "paint", partial(text_to_image.paint, steps=2))
    monkeypatch.setattr(autoencoding, "measured", partial(autoencoding.measured, count=30))
    monkeypatch.setattr(autoencoding, "latent_scale", partial(autoencoding.latent_scale, count=100))
    return tmp_path


def whole(name, steps):
    """The card, complete; and the model that it describes."""
    card = zoo.card(name)
    assert [key for key in CARD.split() if card.get(key) in (None, "")] == []
    assert card["name"] == name and card["steps"] == steps and card["recipe"].startswith("python -m companion.train ")
    assert (zoo.FOLDER / f"{name}.safetensors").stat().st_size == card["bytes"]
    assert all(figures for figures in card["metrics"].values())
    return card, zoo.load(name)


def test_scene_vae_and_vqvae(small):
    for recipe, name in ((scene_vae, "scene_vae"), (scene_vqvae, "scene_vqvae")):
        recipe.main(["--steps", "3", "--batch", "4", "--out", str(small)])
        card, net = whole(name, 3)
        assert card["batch"] == 4 and "split 'seen'" in card["data"]
        assert list(card["metrics"]) == ["30 fresh scenes, split 'seen'", "30 fresh scenes, split 'objects'"]
        with torch.no_grad():
            assert autoencoding.measured(net, zoo.load("scene_reader")) == card["metrics"]  # as it is stored
        assert "grid" not in card
    vae, words = zoo.load("scene_vae"), zoo.load("scene_vqvae")
    assert isinstance(vae, nets.VAE) and isinstance(words, nets.VQVAE) and len(words.codebook) == 10
    scale = autoencoding.latent_scale(vae, seed=1).item()
    assert vae.scale.item() == pytest.approx(scale, rel=0.05) and abs(vae.scale.item() - 1) > 0.02


def test_text_to_image_with_and_without_an_autoencoder_and_a_refiner(small):
    scene_vae.main(["--steps", "2", "--batch", "4", "--out", str(small)])
    options = ["--steps", "3", "--batch", "4", "--images", "50", "--samples", "20", "--out", str(small)]
    lines = small / "lines.jsonl"
    for recipe, name in (
        (text_to_image, "scenes"),
        (scenes_pixels, "scenes_pixels"),
        (scenes_refiner, "scenes_refiner"),
    ):
        recipe.main([*options, "--remark", f"A remark on {name}.", "--metrics", str(lines)])
        card, model = whole(name, 3)
        assert isinstance(model, Denoiser) and model.kind == "v" and isinstance(model.schedule, CosineVP)
        assert card["recipe"] == f"python -m companion.train {name} --steps 3 --batch 4 --images 50"
        assert card["remark"] == f"A remark on {name}." and card["batch"] == 4 and "50 scenes" in card["data"]
        picture = small / f"{name}.webp"
        assert picture.read_bytes()[8:12] == b"WEBP" and picture.stat().st_size < 300_000 and "Forty" in card["grid"]
        splits = [f"20 captions, split '{split}'" for split in SPLITS]
        assert list(card["metrics"]) == [*splits, "20 real scenes"]
        for split, figures in card["metrics"].items():
            shares = [value for key, value in figures.items() if "right" in key]
            assert all(0 <= share <= 1 for share in shares) and len(shares) == (9 if "relations" in split else 10)
            real = "real" in split
            assert (figures["everything right"] > 0.8) == real and (figures["background right"] > 0.9) == real
        distances = [figures[text_to_image.NAMES["frechet"]] for figures in card["metrics"].values()]
        assert distances[0] > 2 * distances[-1] > 0
        assert ("autoencoder" in card) == (name != "scenes_pixels")
    base, refiner = zoo.load("scenes"), zoo.load("scenes_refiner")
    apart = [(p - q).abs().max() for p, q in zip(base.parameters(), refiner.parameters(), strict=True)]
    assert 0 < max(apart) < 0.01  # it begins where the other ended


def test_the_defaults_are_what_the_cards_do_not_say(small, monkeypatch):
    """The command on a card names what differs from the defaults and no more."""
    given = text_to_image.parser("scenes", "", 9).parse_args(["--seed", "2", "--bf16", "--lr", "0.5", "--name", "mine"])
    given.out, net = small, zoo.build(text_to_image.MODEL).eval()
    monkeypatch.setattr(text_to_image, "measure", lambda *_, **__: {"none": {"one": 1.0}})
    monkeypatch.setattr(
        text_to_image, "paint", lambda model, what, vae, seed, **walk: torch.zeros(len(what), 3, 64, 64)
    )
    options = text_to_image.parser("scenes", "", 9)
    text_to_image.write(net, given, options, text_to_image.MODEL, 1.0, {"data": "some", "description": "a test"})
    card = zoo.card("mine")
    assert card["recipe"] == "python -m companion.train scenes --lr 0.5 --seed 2 --bf16" and "remark" not in card


def test_scene_reader_learns(tmp_path, monkeypatch):
    monkeypatch.setattr(scene_reader, "MODEL", {"net": {"class": "Reader", "arguments": {"width": 8, "features": 9}}})
    monkeypatch.setattr(scene_reader, "BATCH", 8)
    measure = scene_reader.measure
    monkeypatch.setattr(scene_reader, "measure", lambda net: measure(net, count=20))
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    scene_reader.main(["--steps", "6", "--out", str(tmp_path)])
    card, net = whole("scene_reader", 6)
    assert isinstance(net, nets.Reader) and card["batch"] == 8
    assert list(card["metrics"])[:3] == [f"20 fresh scenes, split '{split}'" for split in SPLITS]
    assert measure(net, count=20) == card["metrics"]


def test_captions_are_understood_from_the_words_alone(small, monkeypatch):
    """After some steps the side of each shape is told, which no word says by itself; the card measures what is kept."""
    card, net = whole("scene_text", 3)
    assert isinstance(net, nets.TextEncoder) and card["recipe"] == "python -m companion.train scene_text --steps 3"
    assert list(card["metrics"]) == [f"2,000 fresh captions, split '{split}'" for split in SPLITS]
    monkeypatch.setattr(
        scene_text, "MODEL", {"net": {"class": "TextEncoder", "arguments": {**TEXT, "width": 64, "depth": 2}}}
    )
    torch.manual_seed(0)
    learner = scene_text.Answers(zoo.build(scene_text.MODEL))
    before = scene_text.measure(learner, count=300)
    scene_text.fit(learner, 400, 0, "cpu")
    after = scene_text.measure(learner, count=300)
    seen, new = (found["300 fresh captions, split 'seen'"]["colours told right"] for found in (before, after))
    assert seen < 0.2 and new > 0.9


def test_a_model_starts_with_the_encoder_that_was_trained(small, monkeypatch):
    given = text_to_image.parser("scenes", "", 1).parse_args(["--lr", "0", "--batch", "2"])
    what = data.scenes(4).what
    model, _ = text_to_image.fit(text_to_image.MODEL, given, torch.randn(4, 4, 8, 8), scenes.tokens(what))
    for mine, theirs in zip(model.net.text.parameters(), zoo.load("scene_text").parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_mistakes_are_cross_entropies_of_what_is_there():
    what = scenes.parse(["a small red circle on black", "a large blue star right of a small green square on white"])
    kinds = scene_reader.KINDS
    even = torch.zeros(2, sum(kinds))
    logs = torch.tensor(kinds).double().log()
    wanted = (logs[:5].sum() + logs.sum()) / 2  # the first has no second shape
    assert scene_reader.mistakes(even, what).item() == pytest.approx(wanted.item(), rel=1e-5)
    read = scenes.canonical(what)
    fields = torch.cat([read[:, :1], torch.tensor([[0], [1]]), read[:, 2:].clamp(min=0)], 1)
    sure = torch.cat([50 * torch.eye(n)[field] for n, field in zip(kinds, fields.T, strict=True)], 1)
    assert scene_reader.mistakes(sure, what) < 1e-6
    assert scene_reader.mistakes(sure[[0, 0]], what) > 50


def test_pictures_are_worn():
    images, draw = data.scenes(300, size=64, grain=0).images, torch.Generator().manual_seed(0)
    worn = scene_reader.worn(images, draw)
    step = lambda x: (x[..., 1:] - x[..., :-1]).abs().amax((1, 2, 3))  # noqa: E731
    noise = (worn - images)[:, :, 0, :].std((1, 2))  # of a row that holds next to no shape
    assert noise.max() < 0.16 and noise.median() < 0.06 and noise.min() < 0.005
    quiet = noise < 0.02
    softer = (step(worn) < 0.75 * step(images))[quiet].double().mean()
    assert quiet.sum() > 60 and 0.15 < softer < 0.5  # a third is blurred


def test_times_of_the_refiner_are_late_and_even():
    drawn = scenes_refiner.late(1000, generator=torch.Generator().manual_seed(0))
    t = drawn.t.sort().values / scenes_refiner.BELOW
    assert t.min() > 0 and t.max() < 1 and (drawn.weight == 1).all()
    assert (t - (torch.arange(1000) + 0.5) / 1000).abs().max() < 1.1e-3
    again = scenes_refiner.late(1000, generator=torch.Generator().manual_seed(1)).t
    assert not torch.equal(drawn.t, again)
    taken = inspect.signature(latent.text_to_image).parameters["refine_below"].default
    assert taken == scenes_refiner.BELOW


def test_each_caption_is_painted_and_judged_with_its_own_words(monkeypatch):
    """A painter that draws what it is told is found right; one that shuffles is not."""
    real = data.scenes(120, seed=3)
    told = []

    def painter(model, tokens, ts, **options):
        told.append((tokens, options["seed"]))
        return real.images[: len(tokens)] if len(told) == 1 else real.images[-len(tokens) :]

    monkeypatch.setattr(latent, "text_to_image", painter)
    model, reader = Denoiser(None, CosineVP(), "v"), zoo.load("scene_reader")
    images = text_to_image.paint(model, real.what[:60], None, 7)
    assert torch.equal(images, real.images[:60]) and torch.equal(told[0][0], scenes.tokens(real.what[:60]))
    assert told[0][1] == 7000
    reference = text_to_image.features_of_others(reader, 100)
    figures = text_to_image.judged(images, real.what[:60], reader, reference)
    wrong = text_to_image.judged(images, real.what[60:], reader, reference)
    turned = text_to_image.judged(images, scenes.exchanged(real.what[:60]), reader, reference)
    assert figures["exchanged"] == 0 and turned["exchanged"] > 0.9 and turned["one shape"] == figures["one shape"]
    assert figures["all"] > 0.95 > 0.1 > wrong["all"] and wrong["frechet"] == figures["frechet"]
    two = (real.what[:60, 1] > 0).double().mean().item()
    mixed = (1 - two) * figures["one shape"] + two * figures["two shapes"]
    assert mixed == pytest.approx(figures["all"], abs=1e-3)
    assert text_to_image.judged(images[:3], real.what[:3] * 0, reader, reference)["two shapes"] is None


def test_all_are_known_by_name(capsys):
    for name in "scene_reader scene_text scene_vae scene_vqvae scenes scenes_pixels scenes_refiner".split():
        with pytest.raises(SystemExit) as ended:
            train_main([name, "--help"])
        assert ended.value.code == 0 and f"companion.train {name}" in capsys.readouterr().out
