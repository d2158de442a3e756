"""The measurements on scenes: what is stored is whole, and small runs go through."""

import math

import pytest
import torch

from companion import autoencoding, bench, zoo
from companion import scenes as drawings
from companion.bench import __main__ as command
from companion.bench import adherence, autoencoders, latent, scenes, text

TINY = {
    "adherence": "--samples 30 --steps 2 --scales 1 3 --unseen 3 --refined 3",
    "autoencoders": "--steps 6 --batch 4 --samples 30",
    "latent": "--samples 30 --batch 2 --repeats 1 --steps 2",
    "text": "--steps 2 --batch 4 --images 20 --samples 30",
    "scenes": "--count 20 --repetitions 2",
}
MODULES = {module.__name__.split(".")[-1]: module for module in (adherence, autoencoders, latent, scenes, text)}


def whole(result, module):
    """What every one of these results must hold."""
    for key in "question command protocol quantities rows date hardware versions".split():
        assert result[key] not in (None, "", {}, []), key
    for row in result["rows"]:
        for key in module.QUANTITIES:
            values = row.get(key)
            for value in values if isinstance(values, list) else [values]:
                assert value is None or (math.isfinite(value) and value >= 0), (key, row)
    assert len(module.table(result).splitlines()) >= len(result["rows"])


@pytest.mark.parametrize("name", TINY)
def test_the_stored_result_is_whole(name):
    whole(bench.load(name), MODULES[name])


@pytest.mark.parametrize("name", TINY)
def test_a_small_run(name, tmp_path, capsys, monkeypatch):
    if name == "autoencoders":
        monkeypatch.setattr(autoencoders, "ROWS", dict(list(autoencoders.ROWS.items())[-3:]))
    if name == "text":
        monkeypatch.setattr(text, "SIZES", dict.fromkeys(("cross", "joint"), {"width": 48, "depth": 1}))
        monkeypatch.setattr(text, "CASES", text.CASES[:2])
        monkeypatch.setattr(text, "held_out", lambda *_: 1.0)
        fewer = text.latent.encoded
        monkeypatch.setattr(text.latent, "encoded", lambda vae, n, **how: fewer(vae, min(n, 20), **how))
    assert command.main([name, *TINY[name].split(), "--out", str(tmp_path)]) == 0
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    result = bench.load(name)
    whole(result, MODULES[name])
    assert capsys.readouterr().out.endswith(MODULES[name].table(result) + "\n")


def test_the_stored_results_say_what_they_must():
    """The reader knows real scenes, a strong KL term costs detail, guidance helps, a code is cheaper than pixels."""
    asked = bench.load("adherence")
    assert asked["real"]["all"] > 0.99
    rows = {(row["captions"], row["scale"], row["refined"]): row for row in asked["rows"]}
    assert max(rows["seen", 3.0, False]["all"]) > max(rows["seen", 1.0, False]["all"])
    kept = {row["name"]: row for row in bench.load("autoencoders")["rows"]}
    assert min(kept["L1"]["psnr"]) > max(kept["L1 + KL 1e-3"]["psnr"])
    assert all((row["family"] == "VQ") == (None not in row["perplexity"]) for row in kept.values())
    assert max(kept["VQ 64"]["perplexity"]) <= 64
    speed = {row["model"]: row for row in bench.load("latent")["rows"]}
    assert speed["latent"]["sample_seconds_per_image"] < speed["pixels"]["sample_seconds_per_image"]
    assert abs(speed["latent"]["parameters"] / speed["pixels"]["parameters"] - 1) < 0.05


def test_what_is_held_out_is_counted_thing_by_thing():
    said = [
        "a small green circle on black",
        "a small red square above a large green circle on white",
        "a large blue triangle left of a small yellow square on grey",
    ]
    found = adherence.one_by_one(torch.tensor([True, False, True]), drawings.parse(said), "objects")
    assert found["green circle"] == {"captions": 2, "all": 0.5}
    assert found["blue triangle"] == found["yellow square"] == {"captions": 1, "all": 1.0}
    said = [
        "a small red circle right of a large blue star on grey",
        "a small red star left of a large red circle on white",
    ]
    found = adherence.one_by_one(torch.tensor([False, True]), drawings.parse(said), "relations")
    assert found["star left of circle"] == {"captions": 2, "all": 0.5}
    assert found["triangle above square"] == {"captions": 0, "all": None}


def test_quantized_keeps_the_body_of_the_autoencoder():
    vae = zoo.load("scene_vae")
    made = autoencoding.quantized(vae, 16)
    images = autoencoding.data.scenes(3).images
    assert (made.encode(images) - vae.encode(images).mean).abs().max() < 1e-5
    codes = made.quantize(made.encode(images))
    assert (made.decode(codes.z_q) - vae.decode(codes.z_q)).abs().max() < 1e-5
    assert len(made.codebook) == 16
