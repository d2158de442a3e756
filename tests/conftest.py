"""What the unit tests share: the schedules under test, the mixture, a few images, one thread, a fixed seed."""

import contextlib
import os
import re

import pytest
import torch

from companion import data
from companion import schedules as S
from companion.toy import GaussianMixture


class Table(S.Schedule):
    """A schedule known at 11 nodes only, by look-up: what a sampler may ask of a schedule is its nodes."""

    t_max = 10.0

    def __init__(self):
        angle = torch.linspace(0, 1.5, 11, dtype=torch.float64)
        self.nodes = torch.stack([angle.cos(), angle.sin()])

    def _at(self, row, t):
        assert (t == t.round()).all(), "asked between nodes"
        return self.nodes[row, t.long()].to(t.dtype)

    def alpha(self, t):
        return self._at(0, t)

    def sigma(self, t):
        return self._at(1, t)


SCHEDULES = {
    "linear": S.LinearVP(),
    "sub-vp": S.SubVP(),
    "cosine": S.CosineVP(),
    "circle": S.CosineVP(0.0),
    "log-snr": S.LinearLogSNR(),
    "table-linear": S.DiscreteVP.linear(),
    "table-cosine": S.DiscreteVP.cosine(),
    "zero-snr": S.rescale_zero_terminal_snr(S.DiscreteVP.linear()),
    "ve": S.VE(),
    "flow": S.RectifiedFlow(),
}


NOT_PRESERVING = {"sub-vp", "ve", "flow"}  # alpha² + sigma² is not 1


needs_mnist = pytest.mark.skipif(
    "COMPANION_DATA" not in os.environ, reason="COMPANION_DATA names no folder with mnist/"
)


@pytest.fixture
def few(monkeypatch):
    """The first images of each split, which is enough for short runs of the recipes."""
    whole = data.mnist

    def first(split="train", **options):
        return tuple(part[: {"train": 11000, "test": 40}[split]] for part in whole(split, **options))

    monkeypatch.setattr(data, "mnist", first)


@pytest.fixture(autouse=True)
def _steady():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(params=SCHEDULES, ids=str)
def schedule(request):
    """Each schedule of the package in turn."""
    return SCHEDULES[request.param]


@pytest.fixture
def mixture():
    """The book's mixture in the plane."""
    return GaussianMixture.four()


@pytest.fixture
def table():
    """A schedule that exists at its nodes only."""
    return Table()


def inside(schedule, n=7):
    """n times strictly inside a schedule, float64."""
    span = schedule.t_max - schedule.t_min
    return schedule.t_min + span * torch.linspace(0.05, 0.95, n, dtype=torch.float64)


def between(schedule, n=7):
    """As ``inside``, but between the nodes of a table, where its interpolation is smooth."""
    t = inside(schedule, n)
    return t.floor() + 0.37 if isinstance(schedule, S.DiscreteVP) else t


@contextlib.contextmanager
def refuses(error, message):
    """As pytest.raises, but where the run checks annotations too, their checker may be the first to refuse."""
    expected = error if isinstance(error, tuple) else (error,)
    with pytest.raises((*expected, TypeError)) as caught:
        yield
    if type(caught.value).__name__ != "TypeCheckError":
        assert isinstance(caught.value, error) and re.search(message, str(caught.value)), repr(caught.value)
