"""Several processes: weights shared out, checkpoints for any number of them, samples and figures that are one's."""

import shutil

import pytest
import torch
from conftest import refuses
from test_training import launch, several

from companion import processes

STEPS, CUT = 7, 6  # a checkpoint is written at step 5


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one, two and four processes make of the same training, whole, and cut by two to be taken up by others."""
    folder = tmp_path_factory.mktemp("processes")
    several(folder, STEPS, name="alone", measured=6)
    parts, file = str(folder / "parts"), str(folder / "file.pt")
    cut = {"steps": STEPS, "stop": CUT}
    numbers = ("one", "two", "four")
    two = [
        {"steps": STEPS, "name": "two", "shard": True, "measured": 6},
        {**cut, "name": "cut", "checkpoint": parts, "shard": True, "copies": numbers},
        {**cut, "name": "cut file", "checkpoint": file, "copies": numbers},
        {"steps": STEPS, "name": "two again", "checkpoint": f"{parts} two", "shard": True},
    ]
    four = [
        {"steps": STEPS, "name": "four", "shard": True},
        {"steps": STEPS, "name": "four, copies", "measured": 6},
        {"steps": STEPS, "name": "four again", "checkpoint": f"{parts} four", "shard": True},
        {"steps": STEPS, "name": "four again, file", "checkpoint": f"{file} four"},
    ]
    launch(folder, [(2, two), (4, four)])
    several(folder, STEPS, name="one again", checkpoint=f"{parts} one", shard=True)
    several(folder, STEPS, name="one again, file", checkpoint=f"{file} one")
    return folder


def same(folder, name, start=0):
    """Whether a run ends where the one process ended, and had the same losses on the way."""
    alone, other = torch.load(folder / "alone"), torch.load(folder / name)
    for key in ("model", "ema"):
        assert (other[key] - alone[key]).abs().max() < 1e-7, key
    assert other["losses"] == pytest.approx(alone["losses"][start:], rel=1e-6)
    assert torch.equal(other["counts"], alone["counts"])
    return other


@pytest.mark.parametrize(("name", "share"), [("two", 2), ("four", 4)])
def test_weights_shared_out_train_as_one_process_does(found, name, share):
    """And each process holds about its part of weights and average."""
    whole = torch.load(found / "alone")["held"]
    assert whole / share <= same(found, name)["held"] < 1.1 * whole / share


def test_four_processes_with_all_the_weights_train_as_one_does(found):
    assert same(found, "four, copies")["held"] == torch.load(found / "alone")["held"]


@pytest.mark.parametrize("number", ["one", "two", "four"])
def test_a_checkpoint_in_parts_of_two_processes_goes_on_in_any_number(found, number):
    same(found, f"{number} again", start=5)


@pytest.mark.parametrize("number", ["one", "four"])
def test_a_checkpoint_in_one_file_of_two_processes_goes_on_in_any_number(found, number):
    same(found, f"{number} again, file", start=5)


def test_what_is_left_of_the_checkpoints_is_the_last(found):
    assert [path.name for path in (found / "parts").iterdir()] == ["step-000000005"]
    for number in ("one", "two", "four"):
        assert [path.name for path in (found / f"parts {number}").iterdir()] == [f"step-{STEPS:09}"]


def test_half_a_checkpoint_is_not_taken_for_a_whole_one(tmp_path, found):
    folder = tmp_path / "parts"
    shutil.copytree(found / "parts", folder)
    (folder / "step-000000007.part").mkdir()
    (folder / "step-7").mkdir()
    assert processes.newest(folder) == folder / "step-000000005"
    assert processes.newest(tmp_path) is None


@pytest.mark.parametrize("name", ["two", "four", "four, copies"])
def test_jobs_are_spread_and_come_back_in_order(found, name):
    """Five of them, each process some; all as one process does them."""
    alone, other = (torch.stack(torch.load(found / run)["spread"]) for run in ("alone", name))
    assert torch.equal(alone, other) and len(alone.unique()) == 10


@pytest.mark.parametrize("name", ["two", "four, copies"])
def test_figures_of_images_that_several_read_are_those_of_one(found, name):
    """Six images at a time, so that four processes read parts of unequal length."""
    alone, other = (torch.load(found / run)["measured"] for run in ("alone", name))
    assert alone == other and len(alone) == 3
    assert len({tuple(figures.values()) for figures in alone.values()}) == 3


@pytest.mark.parametrize("name", ["two", "four"])
def test_weights_shared_out_are_gathered_and_draw_pictures(found, name):
    run = torch.load(found / name)
    assert torch.equal(run["gathered"], run["ema"])
    assert run["picture"] == torch.load(found / "alone")["picture"]


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    """One process, whose parts are the whole."""
    small, large = torch.nn.Linear(3, 2), torch.nn.Linear(3, 4)
    optimizers = [torch.optim.AdamW(net.parameters()) for net in (small, large)]
    processes.save(tmp_path, 3, optimizers[0], {"denoiser": small}, {"step": 3})
    path = processes.newest(tmp_path)
    assert path.name == "step-000000003" and processes.rest_of(path) == {"step": 3}
    again = torch.nn.Linear(3, 2)
    processes.load(path, torch.optim.AdamW(again.parameters()), {"denoiser": again})
    assert torch.equal(again.weight, small.weight)
    with refuses(ValueError, "does not hold what is to be read from it"):
        processes.load(path, optimizers[1], {"denoiser": large})
