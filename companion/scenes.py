"""Captioned drawings of one or two shapes, endless and made on the device: what is in a picture is known exactly.

A scene is described by eight whole numbers, its row in ``what`` (``FIELDS``); a caption in a small grammar says the
same in words ("a small red circle left of a large blue square on white"), and ``tokens`` says it to a network. Shapes
are drawn by their signed distances, so that edges are smooth at every size. Lengths are in widths of the picture, y
downwards.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from companion import _checks as check

COLOURS = {
    "red": (0.86, 0.16, 0.16),
    "green": (0.16, 0.65, 0.24),
    "blue": (0.16, 0.32, 0.86),
    "yellow": (0.92, 0.86, 0.16),
    "purple": (0.60, 0.20, 0.72),
    "orange": (0.94, 0.53, 0.10),
}
SHAPES = ("circle", "square", "triangle", "star")
SIZES = {"small": (0.125, 0.15), "large": (0.19, 0.215)}  # radius of the circle round the shape, from and to
BACKGROUNDS = {"black": (0.07, 0.07, 0.07), "grey": (0.5, 0.5, 0.5), "white": (0.93, 0.93, 0.93)}
RELATIONS = ("left of", "right of", "above", "below")
FIELDS = ("background", "relation", "shape", "colour", "size", "second shape", "second colour", "second size")
SPLITS = ("seen", "objects", "relations", "all")
TURN = 0.35  # a shape is turned by up to so much either way, in radians
MARGIN, GAP = 0.02, 0.05  # between a shape and the border, and at least between two shapes

# what no model sees in training: one colour of each shape, and four of the 32 arrangements of two shapes
HELD_OUT_OBJECTS = {"circle": "green", "square": "yellow", "triangle": "blue", "star": "red"}
HELD_OUT_RELATIONS = (
    ("star", "left of", "circle"),
    ("square", "left of", "star"),
    ("circle", "above", "triangle"),
    ("triangle", "above", "square"),
)

VOCABULARY = ("", "a", "on", "of", "left", "right", "above", "below", *SIZES, *COLOURS, *SHAPES, *BACKGROUNDS)
LENGTH = 12  # tokens of a caption; word 0 fills it up
_WORD = {word: number for number, word in enumerate(VOCABULARY)}
_CHUNK = 64  # pictures drawn at once on a CPU: their pixels stay in its cache


class Scenes(NamedTuple):
    """``images`` (n, 3, size, size) float32 in [-1, 1]; ``what`` (n, 8), as ``FIELDS``; ``where`` (n, 2, 4).

    Row by row, ``what`` counts into BACKGROUNDS, RELATIONS (from 1; 0 is one shape alone), SHAPES, COLOURS and SIZES,
    and holds -1 for a second shape that is not there. ``where`` is x, y, radius and angle of each shape.
    """

    images: Tensor
    what: Tensor
    where: Tensor


def scenes(
    n: int,
    *,
    size: int = 64,
    seed: int = 0,
    split: str = "seen",
    device=None,
    pairs: float | int = 0.5,
    grain: float | int = 0.02,
) -> Scenes:
    """Draw n scenes on the device, a share ``pairs`` of them with two shapes; the same ones for the same arguments.

    ``split`` "seen" leaves out what is held out, "objects" has in each scene a shape in its held-out colour,
    "relations" two shapes in a held-out arrangement, "all" draws from everything. ``grain`` is the standard deviation
    of the noise on each value. A GPU draws other scenes than a CPU. Raises ValueError for arguments that do not fit.
    """
    check.positive_int("n", n)
    check.positive_int("size", size)
    check.one_of("split", split, SPLITS)
    if not 0 <= pairs <= 1 or not grain >= 0:
        raise ValueError(f"pairs must lie in [0, 1] and grain be at least 0; got {pairs} and {grain}")
    device = torch.device(device or "cpu")
    generator = torch.Generator(device).manual_seed(seed)
    what = describe(n, generator, split=split, pairs=pairs)
    where = place(what, generator)
    return Scenes(draw(what, where, size, grain=grain, generator=generator), what, where)


# ---- what there is to see -------------------------------------------------------------------------------------------


def _allowed() -> Bool[Tensor, "shape colour"]:
    """Which colours of a shape are seen in training."""
    seen = torch.ones(len(SHAPES), len(COLOURS), dtype=torch.bool)
    for shape, colour in HELD_OUT_OBJECTS.items():
        seen[SHAPES.index(shape), list(COLOURS).index(colour)] = False
    return seen


def _arranged() -> Bool[Tensor, "shape relation shape"]:
    """Which arrangements of two shapes are seen in training, in either wording."""
    seen = torch.ones(len(SHAPES), len(RELATIONS), len(SHAPES), dtype=torch.bool)
    for first, relation, second in HELD_OUT_RELATIONS:
        i, r, j = SHAPES.index(first), RELATIONS.index(relation), SHAPES.index(second)
        seen[i, r, j] = seen[j, r + 1, i] = False
    return seen


def describe(
    n: int, generator: torch.Generator, *, split: str = "seen", pairs: float | int = 0.5
) -> Int[Tensor, "n fields"]:
    """n rows of ``what``, on the generator's device: each that the split allows equally likely, given its number.

    In the split "relations" all scenes have two shapes. Raises ValueError for an unknown split.
    """
    check.one_of("split", split, SPLITS)
    device = generator.device

    def pick(allowed, given=()):
        """Uniform draws among what is allowed, a row each: the flat index of a table's true entries."""
        table = allowed.to(device).double()
        weights = table.flatten()[None].expand(n, -1) if given == () else table[given]
        return torch.multinomial(weights, 1, generator=generator)[:, 0]

    shapes, relations = len(SHAPES), len(RELATIONS)
    arranged, seen = _arranged(), _allowed()
    triples = {"relations": ~arranged, "all": torch.ones_like(arranged)}.get(split, arranged)
    triple = pick(triples)
    first, relation, second = triple // (relations * shapes), triple // shapes % relations, triple % shapes
    colour = torch.ones_like(seen) if split == "all" else seen
    colour_1, colour_2 = pick(colour, first), pick(colour, second)
    two = torch.rand(n, generator=generator, device=device, dtype=torch.float32)
    two = two < (1.0 if split == "relations" else pairs)
    if split == "objects":
        at_first = (torch.rand(n, generator=generator, device=device, dtype=torch.float32) < 0.5) | ~two
        colour_1 = torch.where(at_first, pick(~seen, first), colour_1)
        colour_2 = torch.where(at_first, colour_2, pick(~seen, second))
    none = torch.full_like(first, -1)
    large_1, large_2 = torch.randint(2, (2, n), generator=generator, device=device)
    background = torch.randint(len(BACKGROUNDS), (n,), generator=generator, device=device)
    columns = [background, torch.where(two, relation + 1, 0), first, colour_1, large_1]
    columns += [torch.where(two, value, none) for value in (second, colour_2, large_2)]
    return torch.stack(columns, 1)


def held_out(what: Int[Tensor, "n fields"]) -> tuple[Bool[Tensor, "n"], Bool[Tensor, "n"]]:
    """Whether each scene has a shape in its held-out colour, and whether its two shapes are in a held-out order."""
    _rows(what)
    seen, arranged = _allowed().to(what.device), _arranged().to(what.device)
    two = what[:, 1] > 0
    objects = ~seen[what[:, 2], what[:, 3]] | (two & ~seen[what[:, 5], what[:, 6]])
    return objects, two & ~arranged[what[:, 2], what[:, 1] - 1, what[:, 5]]


def canonical(what: Int[Tensor, "n fields"]) -> Int[Tensor, "n fields"]:
    """The same pictures in one wording: from left to right, from above to below. All that a picture can tell."""
    _rows(what)
    turned = (what[:, 1] == 2) | (what[:, 1] == 4)
    relation = torch.where(turned, what[:, 1] - 1, what[:, 1])
    other = torch.cat([what[:, :1], relation[:, None], what[:, 5:], what[:, 2:5]], 1)
    return torch.where(turned[:, None], other, what)


def exchanged(what: Int[Tensor, "n fields"]) -> Int[Tensor, "n fields"]:
    """The scenes with their two shapes in each other's place. Raises ValueError for rows that describe none."""
    _rows(what)
    other = what.clone()
    other[:, 1] = torch.tensor([0, 2, 1, 4, 3], device=what.device)[what[:, 1]]  # left and right, above and below
    return other


def agreement(found: Int[Tensor, "n fields"], asked: Int[Tensor, "n fields"]) -> dict[str, Bool[Tensor, "n"]]:
    """Picture by picture, whether what was read there is what was asked for, whatever the wording of either.

    Keys: background, number (of shapes), relation, shapes, colours, sizes (of all shapes there), and all of it. Raises
    ValueError for shapes that differ.
    """
    check.same_shape("found", found, "asked", asked)
    same = canonical(found) == canonical(asked)
    number = (found[:, 1] > 0) == (asked[:, 1] > 0)
    parts = {
        "background": same[:, 0],
        "number": number,
        "relation": same[:, 1],
        "shapes": same[:, 2] & same[:, 5],
        "colours": same[:, 3] & same[:, 6],
        "sizes": same[:, 4] & same[:, 7],
    }
    return {**parts, "all": same.all(1)}


def _rows(what):
    if what.ndim != 2 or what.shape[1] != len(FIELDS) or what.is_floating_point():
        got = f"{what.dtype} of shape {tuple(what.shape)}"
        raise ValueError(f"what must be whole numbers of shape (n, {len(FIELDS)}); got {got}")


# ---- words ----------------------------------------------------------------------------------------------------------


def captions(what: Int[Tensor, "n fields"]) -> list[str]:
    """Each scene in words."""
    return [" ".join(VOCABULARY[word] for word in row if word) for row in tokens(what).tolist()]


def tokens(what: Int[Tensor, "n fields"]) -> Int[Tensor, "n length"]:
    """Each scene's caption as numbers of words in VOCABULARY, filled up with 0 to LENGTH; on the device of ``what``."""
    _rows(what)
    n, two = len(what), what[:, 1] > 0
    word = {name: torch.full((n,), _WORD[name], device=what.device) for name in ("a", "on", "of")}
    nothing = torch.zeros_like(word["a"])

    def thing(shape, colour, size):
        starts = ((_WORD["small"], size), (_WORD["red"], colour), (_WORD["circle"], shape))
        return [word["a"], *(first + value for first, value in starts)]

    between = [torch.where(two, _WORD["left"] + what[:, 1] - 1, nothing)]
    between += [torch.where(two & (what[:, 1] <= 2), word["of"], nothing)]
    second = [torch.where(two, value, nothing) for value in thing(*what[:, 5:].unbind(1))]
    last = [word["on"], _WORD["black"] + what[:, 0]]
    wide = torch.stack([*thing(*what[:, 2:5].unbind(1)), *between, *second, *last], 1)
    order = (wide == 0).int().argsort(dim=1, stable=True)  # words in their order, then the padding
    return wide.gather(1, order)


def parse(texts: list[str]) -> Int[Tensor, "n fields"]:
    """What captions say, a row of ``what`` each; ValueError names the first word that does not fit."""
    return torch.tensor([_parse(text) for text in texts], dtype=torch.int64).reshape(-1, len(FIELDS))


def tokenize(texts: list[str]) -> Int[Tensor, "n length"]:
    """Captions as numbers of words; the empty text is no caption, all zeros. Raises ValueError as ``parse`` does."""
    return torch.stack([tokens(parse([text]))[0] if text.strip() else torch.zeros(LENGTH).long() for text in texts])


_THING = [("an article", ["a"]), ("a size", [*SIZES]), ("a colour", [*COLOURS]), ("a shape", [*SHAPES])]
_NEXT = ("'on' or a relation", ["on", *(name.split()[0] for name in RELATIONS)])
_LAST = [("the word", ["on"]), ("a background", [*BACKGROUNDS]), ("its end", [None])]


def _parse(text):
    words, form, said = [*text.lower().replace(".", " ").split(), None], [*_THING, _NEXT], []
    for place, word in enumerate(words, 1):
        what, choices = form[place - 1]
        if word not in choices:
            either, found = ", ".join(filter(None, choices)), "the end" if word is None else repr(word)
            raise ValueError(f"caption must have {what} ({either}) as word {place}; got {found} in {text!r}")
        said.append(choices.index(word))
        if place == 5:  # now it is known how many shapes there are
            of = [("the word", ["of"])] if 1 <= said[4] <= 2 else []
            form += [*of, *_THING, *_LAST] if said[4] else _LAST[1:]
    second = said[-4:-7:-1] if said[4] else [-1, -1, -1]
    return [said[-2], said[4], *said[3:0:-1], *second]


# ---- pictures -------------------------------------------------------------------------------------------------------


def place(what: Int[Tensor, "n fields"], generator: torch.Generator) -> Float[Tensor, "n 2 4"]:
    """x, y, radius and angle of each shape, such that the relation is plain and nothing touches; float32.

    Along the relation the centres are further apart than the shapes are wide, and at least twice as far as across it.
    """
    _rows(what)
    n, device = len(what), what.device

    def uniform(low, high):
        return low + (high - low) * torch.rand(n, generator=generator, device=device, dtype=torch.float32)

    reach = torch.tensor(list(SIZES.values()), device=device, dtype=torch.float32)
    radius_1, radius_2 = (uniform(*reach[size.clamp(min=0)].unbind(1)) for size in (what[:, 4], what[:, 7]))
    angle_1, angle_2 = uniform(-TURN, TURN), uniform(-TURN, TURN)
    alone = [uniform(MARGIN + radius_1, 1 - MARGIN - radius_1) for _ in range(2)]
    # two shapes: the one named first comes first along the axis, unless it is right of or below the other
    apart = uniform(radius_1 + radius_2 + GAP, 1 - radius_1 - radius_2 - 2 * MARGIN)
    turned = (what[:, 1] == 2) | (what[:, 1] == 4)
    near, far = torch.where(turned, radius_2, radius_1), torch.where(turned, radius_1, radius_2)
    along = uniform(MARGIN + near, 1 - MARGIN - far - apart)
    along_1, along_2 = torch.where(turned, along + apart, along), torch.where(turned, along, along + apart)
    across_1 = uniform(MARGIN + radius_1, 1 - MARGIN - radius_1)
    across_2 = across_1 + 0.4 * uniform(-1.0, 1.0) * apart
    across_2 = torch.minimum(torch.maximum(across_2, MARGIN + radius_2), 1 - MARGIN - radius_2)
    two, beside = what[:, 1] > 0, what[:, 1] <= 2
    x = torch.where(two, torch.where(beside, along_1, across_1), alone[0])
    y = torch.where(two, torch.where(beside, across_1, along_1), alone[1])
    first = torch.stack([x, y, radius_1, angle_1], 1)
    second = [torch.where(beside, along_2, across_2), torch.where(beside, across_2, along_2), radius_2, angle_2]
    return torch.stack([first, torch.stack(second, 1)], 1)


def draw(
    what: Int[Tensor, "n fields"],
    where: Float[Tensor, "n 2 4"],
    size: int = 64,
    *,
    grain: float | int = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n 3 size size"]:
    """Pictures of the described shapes at the given places, in [-1, 1], with Gaussian grain of this deviation.

    A pixel that an edge cuts gets the share of the shape's colour that the edge's distance from its centre says.
    Raises ValueError for shapes that do not fit.
    """
    _rows(what)
    check.positive_int("size", size)
    if where.shape != (len(what), 2, 4):
        raise ValueError(f"where must have shape ({len(what)}, 2, 4); got {tuple(where.shape)}")
    images = torch.empty(len(what), 3, size, size, device=what.device, dtype=torch.float32)
    chunk = _CHUNK if what.device.type == "cpu" else max(1, len(what))
    parts = zip(*(value.split(chunk) for value in (images, what, where.float())), strict=True)
    for out, kinds, places in parts:
        _paint(out, kinds, places)
        if grain:
            out += grain * torch.randn(out.shape, generator=generator, device=out.device, dtype=out.dtype)
    return images.clamp_(-1, 1)


def _paint(out, what, where):
    """Background, then each shape over it."""
    size = out.shape[-1]
    paper, ink = (2 * torch.tensor(list(table.values())).to(out) - 1 for table in (BACKGROUNDS, COLOURS))
    out.copy_(paper[what[:, 0]][:, :, None, None])
    for shape, colour, (x, y, radius, angle) in (
        (what[:, 2], what[:, 3], where[:, 0].unbind(1)),
        (what[:, 5], what[:, 6], where[:, 1].unbind(1)),
    ):
        there = (shape >= 0).to(out)
        distance = signed_distance(shape.clamp(min=0), x, y, radius, angle, size)
        cover = (0.5 - size * distance).clamp_(0, 1).mul_(there[:, None, None])[:, None]
        out.lerp_(ink[colour.clamp(min=0)][:, :, None, None].expand_as(out), cover.expand_as(out))


def signed_distance(
    shape: Int[Tensor, "n"],
    x: Float[Tensor, "n"],
    y: Float[Tensor, "n"],
    radius: Float[Tensor, "n"],
    angle: Float[Tensor, "n"],
    size: int,
) -> Float[Tensor, "n size size"]:
    """How far each pixel's centre lies outside the shape (below 0: inside), in widths of the picture.

    A square, a triangle and a star are 8, 6 and 10 mirror images of one wedge with one straight edge: a point is
    folded into the wedge, and its distance to the edge is the distance to the shape.
    """
    corners = torch.tensor([1.0, 4.0, 3.0, 5.0]).to(x)[shape]
    half = math.pi / corners
    inner = torch.where(shape == SHAPES.index("star"), torch.full_like(half, 0.5), half.cos())
    first = angle - math.pi / 2 + 0.75 * math.pi * (shape == SHAPES.index("square")).to(x)  # a corner's direction
    at = (torch.arange(size).to(x) + 0.5) / size
    across, down = (at - x[:, None])[:, None, :], (at - y[:, None])[:, :, None]
    far = torch.hypot(across, down)
    wedge = (2 * half)[:, None, None]
    turn = torch.atan2(down, across) - first[:, None, None]
    folded = torch.remainder(turn + wedge / 2, wedge).sub_(wedge / 2).abs_()
    # the edge runs from the corner (radius, 0) to the point at ``half``, ``inner`` times as far out
    along, aside = far * folded.cos(), far * folded.sin()
    end_x, end_y = radius * inner * half.cos(), radius * inner * half.sin()
    edge_x, edge_y = (end_x - radius)[:, None, None], end_y[:, None, None]
    from_x, from_y = along.sub_(radius[:, None, None]), aside
    share = ((from_x * edge_x + from_y * edge_y) / (edge_x**2 + edge_y**2).clamp_min(1e-12)).clamp_(0, 1)
    outside = (from_x * edge_y - from_y * edge_x).sign()
    polygon = torch.hypot(from_x - share * edge_x, from_y - share * edge_y) * outside
    round_ = (shape == SHAPES.index("circle"))[:, None, None]
    return torch.where(round_, far - radius[:, None, None], polygon)
