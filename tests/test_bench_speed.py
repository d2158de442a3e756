"""The measurements of speed: the ways do the same work, the limits are counted right, what is stored is whole."""

import importlib
import importlib.util
import itertools
import math
import time

import pytest
import torch
from conftest import refuses
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from companion import bench, gpu
from companion.bench import __main__ as command
from companion.bench import sampling, timing, training
from companion.denoisers import Denoiser
from companion.nets import count
from companion.samplers import sample
from companion.schedules import CosineVP, DiscreteVP, trailing

NAMES = ("sampling", "training", "import")
SMALL = {
    "sampling": "--images 1 3 --steps 4 --repetitions 2 --width 8 --no-compile --dtype float32 bfloat16 --out",
    "training": "--batch 4 --repetitions 2 --width 8 --no-compile --out",
    "import": "--repetitions 1 --out",
}
IMPORTS = {"torch", "companion, to sample"}  # of those measured, in a small run
HEAVY = {"matplotlib", "ipywidgets", "IPython", "sklearn", "scipy", "diffusers", "torchdiffeq"}


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch):
    """On a GPU convolutions may round to TF32's ten bits, each kernel in its own way."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


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
    if name == "sampling":
        assert set(result["peak"]) == {row["dtype"] for row in result["rows"]}
    if name == "import":
        light = [row for row in result["rows"] if row["import"].startswith("companion")]
        assert len(light) == 2 and not any(HEAVY & set(row["packages"]) for row in light)


@pytest.mark.parametrize("name", NAMES)
def test_a_small_run(name, tmp_path, capsys, monkeypatch):
    module = importlib.import_module(f"companion.bench.{name}")
    if name == "import":
        monkeypatch.setattr(module, "WAYS", {way: module.WAYS[way] for way in module.WAYS if way in IMPORTS})
    assert command.main([name, *SMALL[name].split(), str(tmp_path)]) == 0
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    result = bench.load(name)
    whole(result)
    assert module.table(result) in capsys.readouterr().out
    if name == "sampling":
        there = {sampling.DIFFUSERS: importlib.util.find_spec("diffusers"), "plain loop": True}
        there["graph"] = gpu.device().type == "cuda"
        rows = {(row["images"], row["dtype"], row["way"]): row for row in result["rows"]}
        ways = [way for way in there if there[way]]
        assert list(rows) == list(itertools.product([1, 3], ["float32", "bfloat16"], ways))
        assert set(result["peak"]) == {"float32", "bfloat16"}
        for (images, dtype, _), row in rows.items():
            if dtype == "float32":
                assert row["difference"] < 1e-5  # the same walk, from the same noise
            else:
                assert 1e-5 < row["difference"] < 0.02
            if there[sampling.DIFFUSERS]:
                theirs = rows[images, dtype, sampling.DIFFUSERS]["seconds"]
                assert row["times_diffusers"] == pytest.approx(theirs / row["seconds"], rel=0.02)
    if name == "import":
        found = {row["import"]: row for row in result["rows"]}
        assert set(found) == IMPORTS and not HEAVY & set(found["companion, to sample"]["packages"])


def test_what_a_way_needs_is_made_at_its_first_call():
    made = []
    way = sampling.made_at_first(lambda: made.append(1) or torch.neg)
    assert made == [] and way(torch.ones(())).item() == -1 and way(torch.zeros(2)).shape == (2,) and made == [1]


def test_diffusers_loop_is_the_plain_one():
    """A loop that counts the table from another end differs."""
    pytest.importorskip("diffusers")
    device = gpu.device()
    net, schedule, labels = timing.network(8, 2), DiscreteVP.linear(), torch.tensor([3, 1], device=device)
    x, ts = torch.randn(2, 1, 32, 32).to(device), trailing(schedule, 5)

    def ours(shift):
        return sample(lambda x, t: denoise(x, t + shift), schedule, x, ts)

    denoise = Denoiser(net, schedule, "v", cond=labels)
    theirs = sampling.diffusers_loop(net, labels, 5, None)(x)
    torch.testing.assert_close(theirs, ours(0), atol=1e-4, rtol=1e-4)
    assert (theirs - ours(-1)).abs().max() > 1e-3


def test_the_plain_loop_of_training_trains():
    """On images that are all ones it learns to answer ones."""
    device = gpu.device()
    images, labels = torch.ones(3, 1, 32, 32, device=device), torch.zeros(3, dtype=torch.int64, device=device)
    model = Denoiser(timing.network(8, 2), CosineVP(), "v")
    noise, errors = torch.randn(16, 1, 32, 32).to(device), []
    step = training.plain(model, images, labels, 8, None)
    for _ in range(12):
        with torch.no_grad():
            errors.append((model(noise, torch.tensor(0.9, device=device)) - 1).square().mean().item())
        step()
    assert errors[-1] < 0.2 * errors[0]


def test_traffic_counts_what_each_layer_reads_and_writes():
    net = nn.Sequential(nn.Linear(3, 5), nn.Sequential(nn.ReLU(), nn.Linear(5, 2, bias=False)))
    numbers = (2 * 3 + 15 + 5 + 2 * 5) + (2 * 5 + 2 * 5) + (2 * 5 + 10 + 2 * 2)
    assert timing.traffic(net, torch.zeros(2, 3)) == 4 * numbers
    assert timing.traffic(net.bfloat16(), torch.zeros(2, 3).bfloat16(), dtype=torch.bfloat16) == 2 * numbers


LAYERS = {
    "3×3": (lambda: nn.Conv2d(3, 5, 3, padding=1), (2, 3, 6, 7)),
    "3×3, strided": (lambda: nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False), (2, 3, 6, 8)),
    "1×1": (lambda: nn.Conv2d(4, 2, 1), (3, 4, 5, 5)),
    "linear": (lambda: nn.Linear(7, 4), (6, 7)),
    "linear, of rows": (lambda: nn.Linear(7, 4, bias=False), (2, 3, 7)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bytes_each", [2, 4])
def test_the_cost_of_a_layer_is_pytorch_s_count_and_its_tensors_sizes(name, bytes_each):
    make, shape = LAYERS[name]
    layer, given = make(), torch.randn(shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        found = layer(given)
    work, moved = count.layer_cost(layer, given, found, bytes_each=bytes_each)
    assert work == counter.get_total_flops()
    dtype = {2: torch.bfloat16, 4: torch.float32}[bytes_each]
    layer.to(dtype)
    tensors = [given.to(dtype), found.to(dtype), *layer.parameters()]
    assert moved == sum(value.untyped_storage().nbytes() for value in tensors)
    assert moved == timing.traffic(layer, tensors[0], dtype=dtype)


def test_ones_add_up_to_the_products_of_a_layer():
    """Without padding and bias, on ones and with weights of one, the outputs sum up to the number of products."""
    for layer, shape in ((nn.Conv2d(3, 5, 3, bias=False), (2, 3, 8, 6)), (nn.Linear(7, 4, bias=False), (6, 7))):
        nn.init.ones_(layer.weight)
        given = torch.ones(shape)
        found = layer(given)
        assert count.layer_cost(layer, given, found)[0] == 2 * found.sum().item()


def test_what_the_cost_of_a_layer_refuses():
    x = torch.zeros(1, 2, 4, 4)
    for layer in (nn.Conv2d(2, 2, (3, 1)), nn.Conv2d(2, 2, 3, groups=2)):
        with refuses(ValueError, "layer must have a square kernel and groups = 1"):
            count.layer_cost(layer, x, layer(x))
    for layer in (nn.SiLU(), nn.ConvTranspose2d(2, 2, 3), nn.Conv1d(2, 2, 3)):
        with refuses(TypeError, "layer must be a Conv2d or a Linear layer"):
            count.layer_cost(layer, x, x)
    layer = nn.Conv2d(2, 3, 1)
    with refuses(ValueError, "given must have 2 channels"):
        count.layer_cost(layer, layer(x), layer(x))
    with refuses(ValueError, "found must have 3 channels"):
        count.layer_cost(layer, x, x)
    with refuses(ValueError, "bytes_each must be"):
        count.layer_cost(layer, x, layer(x), bytes_each=0)


def test_a_trace_is_sorted_by_kind():
    """A matrix product of 10⁹ operations beside a small sum, and a pause in which nothing runs."""
    a, small, device = torch.randn(800, 800, device=gpu.device()), torch.randn(9, device=gpu.device()), gpu.device()
    kinds = {"product": ("aten::mm", "matmul"), "never": ("aten::mmm",), "too late": ("mm",)}

    def run():
        a @ a
        small.sum()
        time.sleep(0.2)

    found = timing.by_kind(run, device, kinds)
    assert list(found) == [*kinds, "element by element", "Python, waiting"]
    assert found["never"] == found["too late"] == 0 < found["element by element"] < found["product"]
    assert 0.2 < found["Python, waiting"] + found["product"] and found["Python, waiting"] > 0.15
    apart = timing.by_kind(lambda: small.exp(), device, {})
    assert list(apart) == ["element by element", "Python, waiting"] and apart["element by element"] > 0


def test_ways_take_turns_and_the_first_call_is_apart():
    order, slow = [], {"a": 3, "b": 1}

    def call(name):
        order.append(name)
        for _ in range(20000 * slow[name] * (10 if order.count(name) == 1 else 1)):
            pass

    found = timing.in_turns({n: lambda n=n: call(n) for n in "ab"}, 3, torch.device("cpu"))
    assert order == list("ab" * 5)
    for row in found.values():
        assert row["first_call"] > row["quartiles"][1]
    assert found["a"]["quartiles"][1] > found["b"]["quartiles"][1]


def test_peaks_are_rates():
    found = timing.peaks(torch.device("cpu"), torch.float32, size=64, repetitions=2)
    assert all(math.isfinite(value) and value > 0 for value in found.values())


@pytest.fixture
def products():
    """The setting of matrix products, put back."""
    found, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    yield found
    found.allow_tf32 = before


@pytest.mark.parametrize("convolutions", [True, False])
@pytest.mark.parametrize("allowed", [True, False])
def test_peaks_allow_products_what_convolutions_may(convolutions, allowed, products, monkeypatch):
    """And leave the setting as they found it, whatever happens."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", convolutions)
    products.allow_tf32, seen = allowed, []

    def seconds(call, device):
        seen.append(products.allow_tf32)
        if len(seen) > 2:
            raise KeyboardInterrupt
        return 1.0

    monkeypatch.setattr(timing, "seconds", seconds)
    timing.peaks(torch.device("cpu"), torch.float32, size=8, repetitions=1)
    assert products.allow_tf32 == allowed
    with pytest.raises(KeyboardInterrupt):
        timing.peaks(torch.device("cpu"), torch.float32, size=8, repetitions=1)
    assert set(seen) == {convolutions or allowed} and products.allow_tf32 == allowed
