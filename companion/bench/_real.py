"""Sets of real images that no model has seen, to say what a distance is where nothing is wrong, and how it scatters."""

import torch
from torch import Tensor

SETS = 10


def rows_of_others(labels: Tensor, first: int, size: int) -> tuple[Tensor, ...]:
    """Numbers of the images from ``first`` on, in sets of ``size``, the ten classes in turn as samples are asked for.

    Ten sets, or as many as there are images for. Raises ValueError where there are not enough for one.
    """
    classes = [(labels[first:] == digit).nonzero().flatten() + first for digit in range(10)]
    rows = torch.stack([numbers[: min(map(len, classes))] for numbers in classes], 1).flatten()
    if not 0 < size <= len(rows):
        raise ValueError(f"size must be above 0 and at most {len(rows)}, as many as there are; got {size}")
    return rows[: size * min(SETS, len(rows) // size)].split(size)
