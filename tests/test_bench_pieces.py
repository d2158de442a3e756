"""The measurement of single pieces: its ways are what they are called, wrong ones are refused, the result is whole."""

import argparse

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from companion import bench
from companion.bench import __main__ as command
from companion.bench import pieces, timing

WALK = "walk of 20 steps"
CPU_GROUPS = {
    "convolution": ["channels first", "channels last"],
    "U-Net": ["channels first", "channels last"],
    "norm, scale, shift, SiLU": [
        "channels first",
        "channels last",
        "channels last, var_mean over a view",
        "channels last, moments, one a h + b",
        "channels last, compiled",
    ],
    "attention, 64 places": ["written out", "scaled_dot_product_attention"],
    "attention, 1024 places": ["written out", "scaled_dot_product_attention"],
    WALK: None,  # as many ways as the machine has
    "average of the weights": [
        "three passes, tensor by tensor",
        "lerp, tensor by tensor",
        "lerp of all at once",
        "EMA.move, a number",
        "EMA.move, a tensor",
    ],
}


def whole(result, compiled):
    """What every result must hold: all groups with their ways, each rate the work over the time."""
    for key in "question command protocol quantities peak rows date hardware versions".split():
        assert result[key] not in (None, "", {}, []), key
    ways = {}
    for row in result["rows"]:
        assert set(row) == {"group", "images", "way", *result["quantities"]}
        assert 0 < row["quartiles"][0] <= row["seconds"] <= row["quartiles"][1]
        assert 0 <= row["difference"] <= 1e-3 and row["of_peak"] > 0
        assert (row["kernels"] is None) == result["hardware"].startswith("CPU")
        assert (row["flops_per_second"] is None) != (row["bytes_per_second"] is None)
        ways.setdefault((row["group"], row["images"]), []).append(row)
    for (group, images), rows in ways.items():
        assert rows[0]["times"] == 1 and rows[0]["difference"] == 0
        names = [row["way"] for row in rows]
        if group.startswith("walk"):
            assert names[0] == "1 thread" and all(name.endswith(" threads") for name in names[1:])
        else:
            assert names == [name for name in CPU_GROUPS[group] if compiled or "compiled" not in name]
        work = {round(row["seconds"] * (row["flops_per_second"] or row["bytes_per_second"]), -2) for row in rows}
        assert max(work) == pytest.approx(min(work), rel=0.01)
        assert (images is None) == (group == "average of the weights")
    return {group for group, _ in ways}


def test_the_stored_result_is_whole():
    result = bench.load("pieces")
    assert whole(result, compiled=True) == set(CPU_GROUPS)
    assert {row["images"] for row in result["rows"]} == {1, 64, None}
    assert len(pieces.table(result).splitlines()) == len(result["rows"]) + 1


def test_a_small_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pieces, "TURN", 1e-4)
    monkeypatch.setattr(pieces, "STEPS", 2)  # two threads on a busy machine wait for each other at every layer
    before = torch.get_num_threads()
    small = "--images 2 --repetitions 1 --width 8 --no-compile --out".split()
    assert command.main(["pieces", *small, str(tmp_path)]) == 0
    assert torch.get_num_threads() == before
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    result = bench.load("pieces")
    groups = {"walk of 2 steps" if name == WALK else name for name in CPU_GROUPS}
    assert whole(result, compiled=False) == groups - ({"walk of 2 steps"} if torch.cuda.is_available() else set())
    assert pieces.table(result) in capsys.readouterr().out


def test_ways_that_differ_are_refused():
    """A scale without the 1, a softmax without the root, an average that moves too far."""
    h, scale, shift = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 1, 1), torch.randn(2, 8, 1, 1)
    norm = nn.GroupNorm(4, 8)
    q, k, v = torch.randn(3, 2, 5, 32)
    pairs = [
        (lambda: F.silu(norm(h) * (1 + scale) + shift), lambda: F.silu(norm(h) * scale + shift)),
        (lambda: F.scaled_dot_product_attention(q, k, v), lambda: torch.softmax(q @ k.mT, -1) @ v),
        (lambda: [0.001 * h, h], lambda: [0.002 * h, 1.01 * h]),
    ]
    for right, wrong in pairs:
        assert pieces.agree({"a": right, "b": right}, 1e-3) == {"a": 0.0, "b": 0.0}
        with pytest.raises(ValueError, match="'b' must give the numbers of 'a'"):
            pieces.agree({"a": right, "b": wrong}, 1e-3)
    with pytest.raises(ValueError, match="'b' must"):
        pieces.agree({"a": lambda: h, "b": lambda: h * float("nan")}, 1e-3)


def test_wrong_ways_stop_the_measurement(monkeypatch, tmp_path):
    monkeypatch.setattr(pieces, "TURN", 1e-4)
    given = argparse.Namespace(dtype="float32", compile=False, repetitions=1)
    ways = {"a": lambda: torch.ones(3), "b": lambda: torch.zeros(3)}
    with pytest.raises(ValueError, match="'b' must give"):
        pieces.timed("any", 1, ways, {"flops": 1}, given, {"flops_per_second": 1.0})


def layouts(net):
    """Whether the convolutions' outputs of a call have their channels last; attention's own comes as its rows lie."""
    found, handles = set(), []
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d) and layer is not net.middle[1].out:
            handles.append(layer.register_forward_hook(lambda layer, given, out: found.add(out.stride()[1] == 1)))
    with torch.no_grad():
        net(torch.randn(2, 1, 32, 32), torch.ones(2), torch.tensor([1, 2]))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("patch", [1, 2])
def test_channels_first_is_so_in_every_layer(patch):
    net = timing.network(8, patch).cpu()
    assert layouts(net) == {True} and layouts(pieces.channels_first(net)) == {False}


def test_an_average_moves_as_asked():
    net = timing.network(8, 2).cpu()
    ways, work = pieces.averages(net)
    for call in ways.values():
        for mine, theirs in zip(call(), net.parameters(), strict=True):
            torch.testing.assert_close(mine, pieces.PACE * theirs.detach(), rtol=1e-4, atol=0.0)
    assert work["bytes"] == 12 * sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("options", [["--images", "0"], ["--repetitions", "0"], ["--dtype", "float16"]])
def test_options_out_of_range(options):
    with pytest.raises((ValueError, SystemExit)):
        pieces.main(options)
