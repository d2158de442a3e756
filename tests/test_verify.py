"""verify: it passes what is right, and nothing else."""

import json
import math

import numpy as np
import pytest
import torch

from companion.samplers import ddim
from companion.verify import extrapolated, verify

WRONG = {"half": 0.5}


def test_right_passes():
    verify("eq-a", 1.0, 1.0 + 1e-12)
    verify("eq-a", torch.ones(3), np.ones(3), atol=1e-12, wrong={"half": torch.full((3,), 0.5)})
    verify("eq-a", [1e6], [1e6 + 1], rtol=1e-5)
    draws = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    verify("eq-a", draws.mean(), 0.0, se=draws.std() / 100, wrong={"one": 1.0})


@pytest.mark.parametrize(
    "lhs,rhs", [(1.0, 1.1), (float("nan"), float("nan")), (1.0, float("inf")), (float("inf"),) * 2]
)
def test_wrong_fails(lhs, rhs):
    with pytest.raises(AssertionError, match="eq-a fails"):
        verify("eq-a", lhs, rhs, atol=1e-3)


def test_one_bad_element_fails():
    rhs = torch.zeros(1000)
    rhs[371] = 0.01
    with pytest.raises(AssertionError, match="eq-a fails"):
        verify("eq-a", torch.zeros(1000), rhs, atol=1e-3)


def test_a_check_that_accepts_a_wrong_version_fails():
    with pytest.raises(AssertionError, match="cannot tell the wrong version 'half'"):
        verify("eq-a", 1.0, 1.0, atol=0.4, wrong=WRONG)  # misses by 1.25 tolerances
    with pytest.raises(AssertionError, match="cannot tell"):
        verify("eq-a", 1.0, 1.0, se=0.1, wrong=WRONG)
    verify("eq-a", 1.0, 1.0, atol=0.1, wrong=WRONG)
    verify("eq-a", 1.0, 1.0, atol=0.1, wrong={"infinite": float("inf"), "nan": float("nan")})


def test_statistical_tolerance_holds_for_any_seed():
    """The share of false alarms over many seeds is small, and grows neither with the number of elements."""
    for elements in (1, 300):
        alarms = 0
        for seed in range(400):
            x = torch.randn(elements, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            try:
                verify("eq-a", x, torch.zeros(elements), se=1.0)
            except AssertionError:
                alarms += 1
        assert alarms <= 2, (elements, alarms)


@pytest.mark.parametrize(
    "arguments,error,message",
    [
        (dict(label="forward", lhs=1.0, rhs=1.0), ValueError, "label"),
        (dict(label="eq-a", lhs=[1.0, 1.0], rhs=1.0), ValueError, "same shape"),
        (dict(label="eq-a", lhs=[], rhs=[]), ValueError, "lhs must not be empty"),
        (dict(label="eq-a", lhs="1", rhs=1.0), TypeError, "lhs must be real"),
        (dict(label="eq-a", lhs=1.0, rhs=1.0, atol=0.0), ValueError, "atol"),
        (dict(label="eq-a", lhs=1.0, rhs=1.0, atol=float("inf")), ValueError, "atol"),
        (dict(label="eq-a", lhs=1.0, rhs=1.0, se=float("nan")), ValueError, "se must"),
        (dict(label="eq-a", lhs=1.0, rhs=1.0, se=[1.0, 2.0]), ValueError, "se must"),
        (dict(label="eq-a", lhs=1.0, rhs=1.0, se=1.0, atol=1.0), ValueError, "either"),
        (dict(label="eq-a", lhs=1.0, rhs=1.0, wrong={"b": [1.0, 2.0]}), ValueError, "same shape"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        verify(**arguments)


def test_record_is_json_even_where_a_wrong_version_is_infinite(monkeypatch):
    import companion.verify as module

    kept = []
    monkeypatch.setattr(module, "_show", kept.append)
    verify("eq-a", 1.0, 1.0, atol=0.1, wrong={"infinite": float("inf"), "nan": float("nan"), "half": 0.0})
    assert json.loads(json.dumps(kept[0], allow_nan=False))["wrong"]["infinite"] > 1e9


def test_badge(monkeypatch):
    import IPython
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: object())
    monkeypatch.setattr(IPython.display, "display", lambda bundle, raw: shown.append(bundle))
    verify("eq-not-there", 1.0, 1.0, atol=1e-6, of=ddim, how="by hand", wrong=WRONG)
    record = shown[0]["application/vnd.companion.check+json"]
    assert (
        record["id"] == "eq-not-there" and record["number"] is None and record["function"] == "companion.samplers.ddim"
    )
    assert record["wrong"] == {"half": pytest.approx(5e5)} and json.dumps(record)
    assert (
        'href="#eq-not-there"' in shown[0]["text/html"]
        and 'data-api="companion.samplers.ddim"' in shown[0]["text/html"]
    )


def test_extrapolation_removes_every_power_that_the_rows_can_show():
    """Of a polynomial in the step it leaves the constant; of the compound interest of a year, e."""
    rows = [torch.tensor([2.0 + h - 3 * h**2, h]) for h in (0.5, 0.25, 0.125)]
    torch.testing.assert_close(extrapolated(rows), torch.tensor([2.0, 0.0]))
    found = extrapolated((1 + 1 / n) ** n for n in (8, 16, 32, 64, 128, 256))
    assert found == pytest.approx(math.e, abs=1e-9) and abs((1 + 1 / 256) ** 256 - math.e) > 1e-3
