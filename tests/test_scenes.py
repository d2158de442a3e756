"""Drawn scenes and what reads them: words and numbers, what is held out, where shapes lie, and how they are drawn."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import refuses
from matplotlib.path import Path
from scipy import stats

from companion import data, nets, scenes, zoo
from companion.nets.reader import KINDS
from companion.scenes import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES

ALONE, PAIRS = 3 * 4 * 6 * 2, 3 * 4 * (4 * 6 * 2) ** 2


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def all_rows():
    """Every row of ``what``: 144 with one shape, 27,648 with two."""
    one = torch.cartesian_prod(torch.arange(3), torch.zeros(1).long(), *(torch.arange(n) for n in (4, 6, 2)))
    sizes = (3, 4, 4, 6, 2, 4, 6, 2)
    two = torch.cartesian_prod(*(torch.arange(n) for n in sizes)) + torch.tensor([0, 1, 0, 0, 0, 0, 0, 0])
    return torch.cat([F.pad(one, (0, 3), value=-1), two])


def in_words(row):
    """A caption, written without the package's help."""
    names = [list(table) for table in (BACKGROUNDS, RELATIONS, SHAPES, COLOURS, SIZES)]
    thing = lambda shape, colour, size: f"a {names[4][size]} {names[3][colour]} {names[2][shape]}"  # noqa: E731
    background, relation, *things = row
    between = f" {names[1][relation - 1]} {thing(*things[3:])}" if relation else ""
    return f"{thing(*things[:3])}{between} on {names[0][background]}"


def swapped(what):
    """The same pictures of two shapes in the other wording, by hand: left and right, above and below change places."""
    turned = torch.tensor([0, 2, 1, 4, 3])[what[:, 1]]
    return torch.cat([what[:, :1], turned[:, None], what[:, 5:8], what[:, 2:5]], 1)


# ---- words


def test_every_caption_of_the_grammar_comes_back():
    what = all_rows()
    assert len(what) == ALONE + PAIRS == 144 + 27_648
    texts = scenes.captions(what)
    assert texts == [in_words(row) for row in what.tolist()] and len(set(texts)) == len(what)
    assert torch.equal(scenes.parse(texts), what)
    assert texts[0] == "a small red circle on black"
    assert "a large blue square left of a small green star on white" in texts


def test_tokens_are_the_words_in_their_order_and_then_nothing():
    what = all_rows()
    number = {word: i for i, word in enumerate(scenes.VOCABULARY)}
    assert len(number) == len(scenes.VOCABULARY) and number[""] == 0
    split = [[number[word] for word in in_words(row).split()] for row in what.tolist()]
    assert max(map(len, split)) == scenes.LENGTH
    wanted = torch.tensor([row + [0] * (scenes.LENGTH - len(row)) for row in split])
    found = scenes.tokens(what)
    assert torch.equal(found, wanted) and found.dtype == torch.int64
    some = torch.randperm(len(what), generator=seeded())[:100]
    assert torch.equal(scenes.tokenize([*scenes.captions(what[some]), "", " "])[:100], wanted[some])
    assert not scenes.tokenize(["", " "]).any()


def test_captions_may_be_written_as_sentences():
    rows = scenes.parse(["A small red circle on white.", " a small  red circle on white"])
    assert rows.tolist() == [[2, 0, 0, 0, 0, -1, -1, -1]] * 2
    assert scenes.parse([]).shape == (0, 8) and scenes.parse([]).dtype == torch.int64


@pytest.mark.parametrize(
    ("text", "place", "word"),
    [
        ("", 1, "the end"),
        ("the small red circle on white", 1, "'the'"),
        ("a red circle on white", 2, "'red'"),
        ("a small pink circle on white", 3, "'pink'"),
        ("a small red hexagon on white", 4, "'hexagon'"),
        ("a small red circle", 5, "the end"),
        ("a small red circle under a large blue star on white", 5, "'under'"),
        ("a small red circle left a large blue star on white", 6, "'a'"),
        ("a small red circle left", 6, "the end"),
        ("a small red circle above of a large blue star on white", 6, "'of'"),
        ("a small red circle left of the large blue star on white", 7, "'the'"),
        ("a small red circle right of a large blue star in white", 11, "'in'"),
        ("a small red circle above a large blue star on pink", 11, "'pink'"),
        ("a small red circle on", 6, "the end"),
        ("a small red circle on white now", 7, "'now'"),
        ("a small red circle on white a large blue star", 7, "'a'"),
    ],
)
def test_the_first_word_that_does_not_fit_is_named(text, place, word):
    for call in (scenes.parse, scenes.tokenize):
        if call is scenes.tokenize and not text:
            continue
        with pytest.raises(ValueError, match=rf"word {place}; got {word} in {text!r}"):
            call(["a large red star on grey", text])


# ---- one wording, and what agrees


def test_canonical_is_one_wording_of_each_picture():
    what = all_rows()
    once = scenes.canonical(what)
    assert torch.equal(scenes.canonical(once), once)
    assert set(once[:, 1].tolist()) == {0, 1, 3}
    assert len(once.unique(dim=0)) == ALONE + PAIRS // 2
    two = what[what[:, 1] > 0]
    assert torch.equal(scenes.canonical(swapped(two)), scenes.canonical(two))
    assert torch.equal(swapped(swapped(two)), two) and not torch.equal(swapped(two), two)
    kept = (what[:, 1] != 2) & (what[:, 1] != 4)
    assert torch.equal(once[kept], what[kept])


def test_exchanged_shapes_are_in_each_other_s_place():
    what = all_rows()
    other = scenes.exchanged(scenes.parse(["a small red circle left of a large blue star on grey"]))
    assert scenes.captions(other) == ["a small red circle right of a large blue star on grey"]
    assert torch.equal(scenes.exchanged(scenes.exchanged(what)), what)
    one, two = what[what[:, 1] == 0], what[what[:, 1] > 0]
    assert torch.equal(scenes.exchanged(one), one)
    same = scenes.agreement(scenes.exchanged(two), two)["all"]
    assert torch.equal(same, (two[:, 2:5] == two[:, 5:8]).all(1))  # only twins may change places unseen


def test_both_wordings_are_one_picture():
    drawn = scenes.scenes(200, size=32, pairs=1, split="all", grain=0, seed=1)
    other = scenes.draw(swapped(drawn.what), drawn.where.flip(1), 32)
    torch.testing.assert_close(other, drawn.images, atol=1e-6, rtol=0.0)
    wrong = scenes.draw(drawn.what, drawn.where.flip(1), 32)  # the shapes change places, and the words do not
    assert ((wrong - drawn.images).abs().amax((1, 2, 3)) > 0.1).double().mean() > 0.95


def agreement_by_hand(found, asked):
    """Scene by scene: shapes in the order in which a picture shows them, from the left or from above."""

    def shown(row):
        background, relation, *things = row
        things = [tuple(things[:3]), tuple(things[3:])][: 2 if relation else 1]
        if relation in (2, 4):
            things.reverse()
        return background, ["alone", "beside", "beside", "under", "under"][relation], things

    (paper_a, way_a, a), (paper_b, way_b, b) = shown(found), shown(asked)
    each = [[thing[part] for thing in a] == [thing[part] for thing in b] for part in range(3)]
    right = [paper_a == paper_b, len(a) == len(b), way_a == way_b, *each]
    return dict(zip(["background", "number", "relation", "shapes", "colours", "sizes", "all"], [*right, all(right)]))


def test_agreement_is_what_a_slow_count_says():
    what = all_rows()
    asked = what[torch.randint(len(what), (4000,), generator=seeded(1))]
    asked[:800] = what[torch.randint(ALONE, (800,), generator=seeded(4))]
    found = torch.where((asked[:, 1:2] > 0) & (torch.rand(4000, 1, generator=seeded(2)) < 0.5), swapped(asked), asked)
    other = what[torch.randint(len(what), (4000,), generator=seeded(3))]
    for i in range(0, 4000, 3):  # one field of a third of them from another scene with as many shapes
        if (found[i, 1] > 0) == (other[i, 1] > 0):
            found[i, i % 8] = other[i, i % 8]
    found[1::4] = other[1::4]
    wanted = [agreement_by_hand(a, b) for a, b in zip(found.tolist(), asked.tolist())]
    right = scenes.agreement(found, asked)
    assert list(right) == list(wanted[0])
    for key, value in right.items():
        assert value.tolist() == [row[key] for row in wanted], key
        assert 0.02 < 1 - value.double().mean() < 0.9, key
    assert (found == asked).all(1).sum() < right["all"].sum() - 500  # equal rows are not the same as equal pictures


# ---- what is held out


def held_out_by_words(text):
    """Objects and relations of the two tables, looked for in a caption, in either wording."""
    objects = any(f"{colour} {shape} " in text for shape, colour in scenes.HELD_OUT_OBJECTS.items())
    back = {"left of": "right of", "above": "below"}
    words = text.split()
    shapes, relations = [w for w in words if w in SHAPES], [r for r in RELATIONS if f" {r} " in text]
    told = [(shapes[0], relations[0], shapes[1])] if relations else []
    table = [*scenes.HELD_OUT_RELATIONS, *((b, back[r], a) for a, r, b in scenes.HELD_OUT_RELATIONS)]
    return objects, any(triple in table for triple in told)


def test_held_out_is_what_the_words_say():
    what = all_rows()
    wanted = torch.tensor([held_out_by_words(text) for text in scenes.captions(what)])
    objects, relations = scenes.held_out(what)
    assert torch.equal(torch.stack([objects, relations], 1), wanted)
    assert objects[:ALONE].sum() == ALONE // 6 and relations[ALONE:].sum() == PAIRS // 8
    two = what[ALONE:]
    for mine, other in zip(scenes.held_out(two), scenes.held_out(swapped(two)), strict=True):
        assert torch.equal(mine, other)


def drawn_rows(n, split, pairs=0.5, seed=0):
    return scenes.describe(n, seeded(seed), split=split, pairs=pairs)


@pytest.mark.parametrize("pairs", [0, 0.5, 1])
def test_splits_hold_what_they_say(pairs):
    for split, (objects, relations) in {"seen": (0, 0), "objects": (1, 0), "relations": (0, 1)}.items():
        what = drawn_rows(5000, split, pairs)
        found = torch.stack(scenes.held_out(what), 1)
        assert (found == torch.tensor([objects, relations]).bool()).all()
        two = (what[:, 1] > 0).double().mean().item()
        share = 1 if split == "relations" else pairs
        assert abs(two - share) <= 4 * math.sqrt(share * (1 - share) / 5000)
        assert (what[what[:, 1] == 0, 5:] == -1).all() and (what[what[:, 1] > 0] >= 0).all()
    objects, relations = scenes.held_out(drawn_rows(5000, "all", 1))
    assert abs(objects.double().mean() - (1 - (5 / 6) ** 2)) < 0.03 and abs(relations.double().mean() - 1 / 8) < 0.02


CELLS = {  # allowed values of (first, relation, second, colour, colour), and of one shape's (shape, colour)
    "seen": (56 * 25, 4 * 5),
    "objects": (56 * 2 * 5, 4),
    "relations": (8 * 25, None),
    "all": (64 * 36, 4 * 6),
}


def uniform(rows, cells):
    """The p-value of Pearson's test that rows take each of so many values equally often."""
    counts = rows.unique(dim=0, return_counts=True)[1].numpy()
    assert len(counts) <= cells
    return stats.chisquare(np.pad(counts, (0, cells - len(counts)))).pvalue


@pytest.mark.parametrize("split", CELLS)
def test_all_that_a_split_allows_is_equally_likely(split):
    what = drawn_rows(60_000, split, seed=1)
    two, one = what[what[:, 1] > 0], what[what[:, 1] == 0]
    pairs, alone = CELLS[split]
    chances = [uniform(two[:, [2, 1, 5, 3, 6]], pairs), uniform(two[:, [0, 4, 7, 1]], 3 * 2 * 2 * 4)]
    if alone:
        chances += [uniform(one[:, [2, 3]], alone), uniform(one[:, [0, 4, 2]], 3 * 2 * 4)]
    assert min(chances) > 1e-3
    # wrong: what is held out is put in its neighbour's place, and not drawn again
    careless = drawn_rows(60_000, "all")[:, 2:4]
    held = ~scenes._allowed()[careless[:, 0], careless[:, 1]]
    careless[held, 1] = (careless[held, 1] + 1) % 6
    assert uniform(careless, 20) < 1e-12


# ---- places


def test_shapes_are_inside_and_apart_and_their_relation_is_plain():
    what = torch.cat([drawn_rows(6000, split, pairs=0.8) for split in ("all", "relations")])
    where = scenes.place(what, seeded(1))
    two = what[:, 1] > 0
    x, y, radius, angle = where.double().unbind(2)
    there = torch.stack([torch.ones_like(two), two], 1)
    inside = torch.stack([x - radius, 1 - x - radius, y - radius, 1 - y - radius])
    assert inside[:, there].min() > scenes.MARGIN - 1e-6
    assert angle.abs().max() <= scenes.TURN and inside[:, there].min() < scenes.MARGIN + 0.01
    bounds = torch.tensor(list(SIZES.values()), dtype=torch.float64)[what[:, [4, 7]].clamp(min=0)]
    assert (radius >= bounds[..., 0] - 1e-6)[there].all() and (radius <= bounds[..., 1] + 1e-6)[there].all()
    across, down = (x[:, 0] - x[:, 1])[two], (y[:, 0] - y[:, 1])[two]
    reach, relation = radius.sum(1)[two], what[two, 1]
    assert (torch.hypot(across, down) >= reach + scenes.GAP - 1e-6).all()
    signs = {1: -across, 2: across, 3: -down, 4: down}
    for number, along in signs.items():
        mine, other = along[relation == number], (down if number < 3 else across)[relation == number].abs()
        assert len(mine) > 500 and (mine >= reach[relation == number] + scenes.GAP - 1e-6).all()
        assert (mine >= 2 * other).all() and (mine > 2 * other.max()).double().mean() < 0.99
    wrong = across[relation == 2]  # a relation that forgets to turn
    assert (wrong > 0).all() and not (-wrong > 0).any()


def test_lone_shapes_may_lie_anywhere():
    what = drawn_rows(4000, "all", pairs=0)
    x, y, radius, angle = scenes.place(what, seeded(2))[:, 0].double().unbind(1)
    low, high = torch.tensor(list(SIZES.values()), dtype=torch.float64)[what[:, 4]].unbind(1)
    room = 1 - 2 * (scenes.MARGIN + radius)
    shares = [(x - scenes.MARGIN - radius) / room, (y - scenes.MARGIN - radius) / room, (radius - low) / (high - low)]
    for share in (*shares, angle / scenes.TURN / 2 + 0.5):
        assert stats.kstest(share.numpy(), "uniform").pvalue > 1e-3
    assert stats.pearsonr(x.numpy(), y.numpy()).pvalue > 1e-3


# ---- pictures


def corners(shape, x, y, radius, angle):
    """A polygon's corners, (n, 2), and none for a circle: the square lies flat, the others stand on a point."""
    if SHAPES[shape] == "circle":
        return None
    n = {"square": 4, "triangle": 3, "star": 10}[SHAPES[shape]]
    turn = angle - math.pi / 2 + (math.pi / 4 if n == 4 else 0) + 2 * math.pi * np.arange(n) / n
    reach = radius * np.where((np.arange(n) % 2 == 1) & (n == 10), 0.5, 1.0)
    return np.stack([x + reach * np.cos(turn), y + reach * np.sin(turn)], 1)


def inside(points, shape, where):
    x, y, radius, _ = where
    ring = corners(shape, *where)
    if ring is None:
        return np.hypot(points[:, 0] - x, points[:, 1] - y) < radius
    return Path(np.concatenate([ring, ring[:1]]), closed=True).contains_points(points)


def grid(size):
    at = (np.arange(size) + 0.5) / size
    return np.stack(np.meshgrid(at, at), -1).reshape(-1, 2)  # x along the rows


KINDS_AND_PLACES = [
    (shape, (0.47 + 0.03 * turn, 0.52 - 0.02 * turn, radius, 0.15 * turn))
    for shape in range(4)
    for turn, radius in ((-2, 0.2), (0, 0.127), (1, 0.21), (2, 0.15))
]


def distance_by_hand(shape, where, size):
    """To the nearest point of a polygon's edges, one by one; below 0 inside."""
    points, ring = grid(size), corners(shape, *where)
    if ring is None:
        return (np.hypot(points[:, 0] - where[0], points[:, 1] - where[1]) - where[2]).reshape(size, size)
    start, edge = ring[:, None], (np.roll(ring, -1, 0) - ring)[:, None]
    share = (((points - start) * edge).sum(-1) / (edge**2).sum(-1)).clip(0, 1)
    near = np.linalg.norm(points - start - share[..., None] * edge, axis=-1).min(0)
    return np.where(inside(points, shape, where), -near, near).reshape(size, size)


def found_distance(shape, where, size, dtype=torch.float64):
    numbers = (torch.tensor([value], dtype=dtype) for value in where)
    return scenes.signed_distance(torch.tensor([shape]), *numbers, size)[0]


@pytest.mark.parametrize(("shape", "where"), KINDS_AND_PLACES)
def test_distances_are_those_to_the_edges(shape, where):
    wanted = torch.from_numpy(distance_by_hand(shape, where, 40))
    found = found_distance(shape, where, 40)
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0.0)
    single = found_distance(shape, where, 40, torch.float32)
    assert single.dtype == torch.float32 and (single - wanted).abs().max() < 2e-6
    x, y, radius, angle = where
    if shape and angle:  # one turned the other way is another shape
        assert (found_distance(shape, (x, y, radius, -angle), 40) - wanted).abs().max() > 0.01


def test_distances_by_hand():
    """Of shapes that stand straight at (0.5, 0.5), radius 0.2, to the centre of pixel (row, column) of 10 × 10."""
    r, half = 0.2, 0.2 / math.sqrt(2)
    at = lambda shape, row, column: found_distance(SHAPES.index(shape), (0.55, 0.55, r, 0.0), 10)[row, column].item()  # noqa: E731
    for shape, row, column, wanted in [
        ("circle", 5, 5, -r),
        ("circle", 5, 9, 0.4 - r),
        ("circle", 2, 1, 0.5 - r),  # 3, 4, 5
        ("square", 5, 5, -half),
        ("square", 5, 9, 0.4 - half),
        ("square", 9, 9, math.sqrt(2) * (0.4 - half)),
        ("square", 6, 5, 0.1 - half),
        ("triangle", 5, 5, -r / 2),
        ("triangle", 1, 5, 0.4 - r),  # above its tip
        ("triangle", 9, 5, 0.4 - r / 2),  # below its base
        ("star", 1, 5, 0.4 - r),
        ("star", 5, 5, -r / 2),  # to a notch: no edge has the foot of a perpendicular nearer
    ]:
        assert at(shape, row, column) == pytest.approx(wanted, abs=1e-12), (shape, row, column)


def drawn_cover(shape, where, size):
    """The share of each pixel that the package gives a red shape on black, from its colours."""
    what = torch.tensor([[0, 0, shape, 0, 0, -1, -1, -1]])
    place = torch.tensor([[where, (0.5, 0.5, 0.2, 0.0)]], dtype=torch.float32)
    red = scenes.draw(what, place, size)[0, 0].double() / 2 + 0.5
    return ((red - BACKGROUNDS["black"][0]) / (COLOURS["red"][0] - BACKGROUNDS["black"][0])).numpy()


def exact_cover(shape, where, size, fine=16):
    return inside(grid(size * fine), shape, where).reshape(size, fine, size, fine).mean((1, 3))


@pytest.mark.parametrize("shape", range(4))
def test_edges_cover_what_they_cover(shape):
    """Against 16 × 16 points in each pixel, over the pixels that an edge cuts."""
    size, errors = 32, {"mine": [], "hard": [], "turned": [], "shifted": []}
    for where in [place for kind, place in KINDS_AND_PLACES if kind == shape and (place[3] or kind != 2)]:
        x, y, radius, angle = where
        wanted, mine = exact_cover(shape, where, size), drawn_cover(shape, where, size)
        cut = (wanted > 0) & (wanted < 1)
        assert cut.sum() > 20 and (np.abs(mine - wanted)[~cut] < 0.12).all()  # a corner may reach into the next pixel
        hard = found_distance(shape, where, size).numpy() < 0
        turned = drawn_cover(shape, (x, y, radius, -angle), size)
        shifted = drawn_cover(shape, (x + 0.5 / size, y + 0.5 / size, radius, angle), size)  # corners, not centres
        for key, value in (("mine", mine), ("hard", hard), ("turned", turned), ("shifted", shifted)):
            errors[key].append(np.abs(value - wanted)[cut].mean())
    mine, hard, turned, shifted = (np.mean(values) for values in errors.values())
    assert mine < 0.045 and hard > 3.5 * mine and shifted > 5 * mine
    assert shape == 0 or turned > 1.5 * mine


def test_colours_are_those_of_the_tables():
    """The middle of a shape, and the corner of the picture, in every colour and on every background."""
    what = all_rows()[:ALONE]
    where = torch.tensor([[0.5, 0.5, 0.2, 0.1], [0.3, 0.3, 0.2, 0.0]]).expand(ALONE, 2, 4)
    images = scenes.draw(what, where, 32)
    ink, paper = (2 * torch.tensor(list(table.values())) - 1 for table in (COLOURS, BACKGROUNDS))
    torch.testing.assert_close(images[:, :, 16, 16], ink[what[:, 3]])
    torch.testing.assert_close(images[:, :, 0, 0], paper[what[:, 0]])
    alone = torch.cat([images[:, :, 9, 9], images[:, :, 10, 10]])  # where a second shape would lie
    assert (alone - paper[what[:, 0]].repeat(2, 1)).abs().max() < 1e-6


def test_one_picture_at_two_sizes():
    what = drawn_rows(200, "all")
    where = scenes.place(what, seeded(3))
    small, large = scenes.draw(what, where, 32), F.avg_pool2d(scenes.draw(what, where, 64), 2)
    apart = (small - large).abs().mean()
    assert apart < 0.006 and (small - large).abs().max() < 0.7
    assert (small - large.roll(1, -1)).abs().mean() > 5 * apart and (small[1:] - large[:-1]).abs().mean() > 50 * apart


def test_scenes_do_not_depend_on_how_many_are_drawn_at_once():
    what = drawn_rows(130, "all")
    where = scenes.place(what, seeded(3))
    whole = scenes.draw(what, where, 16)
    for first, last in ((0, 1), (60, 70), (129, 130)):
        torch.testing.assert_close(scenes.draw(what[first:last], where[first:last], 16), whole[first:last])


def test_grain_has_its_standard_deviation():
    clean = scenes.scenes(40, grain=0, seed=5)
    assert torch.equal(clean.images, scenes.draw(clean.what, clean.where))
    for grain in (0.02, 0.03):
        noise = (scenes.scenes(40, grain=grain, seed=5).images - clean.images).double()
        error = grain / math.sqrt(2 * noise.numel())
        assert abs(noise.std() - grain) < 5 * error and abs(noise.mean()) < 5 * grain / math.sqrt(noise.numel())
        assert abs(noise[:, 0].std() - grain) < 10 * error  # on each value, and not on each pixel
        for other in (noise[:, 1], noise[:, 0].roll(1, -1), noise[:, 0].roll(1, 0)):
            assert abs((noise[:, 0] * other).mean() / grain**2) < 5 * math.sqrt(3 / noise.numel())
    assert scenes.scenes(20, grain=0.5).images.abs().max() == 1


def test_the_seed_says_it_all():
    first, again, other = (data.scenes(70, size=16, seed=seed) for seed in (3, 3, 4))
    for mine, same, another in zip(first, again, other, strict=True):
        assert torch.equal(mine, same) and not torch.equal(mine, another)
    assert first.images.shape == (70, 3, 16, 16) and first.what.shape == (70, 8) and first.where.shape == (70, 2, 4)
    assert first.images.unique(dim=0).shape[0] == 70
    torch.manual_seed(9)
    assert torch.equal(data.scenes(70, size=16, seed=3).images, first.images)
    assert data.scenes is scenes.scenes


def test_pictures_are_float32_whatever_the_default():
    wanted = scenes.scenes(10, size=16)
    torch.set_default_dtype(torch.float64)
    try:
        found = scenes.scenes(10, size=16)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.images.dtype == found.where.dtype == torch.float32 and found.what.dtype == torch.int64
    torch.testing.assert_close(found.images, wanted.images)


# ---- what reads them


def test_a_reader_says_any_picture_and_no_more():
    """Logits that say each canonical row: it is what is read. And shapes of all that comes out."""
    net = nets.Reader(8, 5)
    rows = scenes.canonical(all_rows()).unique(dim=0)
    asked = torch.cat([rows[:, :1], (rows[:, 1:2] + 1) // 2, rows[:, 2:].clamp(min=0)], 1)
    parts = [F.one_hot(value, kind) for value, kind in zip(asked.unbind(1), KINDS, strict=True)]
    said = torch.cat(parts, 1).float()
    net.forward = lambda x: said
    pictures = torch.zeros(1, 3, 64, 64).expand(len(rows), -1, -1, -1)
    assert torch.equal(net.read(pictures), rows)
    said = torch.randn(2000, sum(KINDS))
    anything = net.read(pictures[:2000])
    assert torch.equal(scenes.canonical(anything), anything)
    assert scenes.parse(scenes.captions(anything)).equal(anything)


def test_a_reader_s_levels_and_features():
    net, x = nets.Reader(16, 7), torch.randn(3, 3, 64, 64)
    assert [tuple(level.shape) for level in net.levels(x)] == [(3, 16, 32, 32), (3, 32, 16, 16), (3, 64, 8, 8)] + [
        (3, 64, 4, 4)
    ]
    features = net.features(x)
    assert features.shape == (3, 7) and net(x).shape == (3, sum(KINDS)) == (3, 30)
    torch.testing.assert_close(net(x), net.decide(features))
    torch.testing.assert_close(net.features(x[1:2]), features[1:2], atol=1e-5, rtol=1e-4)
    with refuses(ValueError, "x must have shape"):
        net.read(torch.zeros(1, 3, 32, 32))
    for wrong in ({"width": 12}, {"width": 0}, {"features": 0}):
        with refuses(ValueError, next(iter(wrong))):
            nets.Reader(**wrong)


def test_the_shipped_reader_reads():
    net, drawn = zoo.load("scene_reader"), data.scenes(500, seed=77, split="all")
    with torch.no_grad():
        found = torch.cat([net.read(part) for part in drawn.images.split(100)])
    right = scenes.agreement(found, drawn.what)
    assert right["all"].double().mean() >= 0.99 and torch.equal(scenes.canonical(found), found)
    chance = scenes.agreement(found, drawn.what.roll(1, 0))
    assert chance["all"].sum() <= 3
    for key, share in (("background", 1 / 3), ("number", 1 / 2)):
        assert abs(chance[key].double().mean() - share) < 0.1


# ---- what does not fit


def test_bad_arguments():
    for wrong, name in (
        ({"n": 0}, "n must"),
        ({"size": 0}, "size must"),
        ({"split": "test"}, "split must"),
        ({"pairs": 1.5}, "pairs must"),
        ({"grain": -0.1}, "pairs must lie in .* grain"),
        ({"grain": math.nan}, "grain"),
    ):
        with refuses(ValueError, name):
            scenes.scenes(**{"n": 3, "size": 8} | wrong)
    what = drawn_rows(3, "all")
    for call in (scenes.captions, scenes.tokens, scenes.canonical, scenes.held_out):
        for rows in (what[:, :7], what.float(), what[0]):
            with refuses(ValueError, "what must be whole numbers"):
                call(rows)
    with refuses(ValueError, "where must have shape"):
        scenes.draw(what, torch.zeros(2, 2, 4))
    with refuses(ValueError, "size must"):
        scenes.draw(what, torch.zeros(3, 2, 4), 0)
    with refuses(ValueError, "found and asked must have the same shape"):
        scenes.agreement(what[:1], what)
