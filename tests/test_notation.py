"""The notation page against the code, and the code against the conventions of others."""

import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "book" / "tools"))
import chapters

from companion import schedules as S
from companion.predictions import KINDS, target_coefficients

PAGE = (Path(__file__).parents[1] / "book" / "notation.md").read_text(encoding="utf-8")
T = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)


def cells(row):
    return [cell.strip() for cell in row.strip().strip("|").split(" | ")]


@pytest.mark.parametrize("schedule", [S.LinearVP(), S.CosineVP(), S.RectifiedFlow(), S.VE()])
def test_the_table_of_kinds_is_the_code(schedule):
    symbols = {
        "$1$": torch.ones_like(T),
        "$0$": torch.zeros_like(T),
        r"$-1/\sigma$": -1 / schedule.sigma(T),
        r"$-\sigma$": -schedule.sigma(T),
        r"$\alpha$": schedule.alpha(T),
        r"$\dot\alpha$": schedule.alpha_rate(T),
        r"$\dot\sigma$": schedule.sigma_rate(T),
    }
    found = {}
    for row in PAGE.splitlines():
        kind = re.match(r"\| `(\w+)` \|", row)
        if kind and kind[1] in KINDS and cells(row)[1] in symbols and cells(row)[2] in symbols:
            found[kind[1]] = tuple(symbols[cell] for cell in cells(row)[1:3])
    assert set(found) == set(KINDS)
    for kind, (p, q) in found.items():
        want = target_coefficients(kind, schedule, T)
        torch.testing.assert_close((p, q), want)


def test_ddpm_s_table():
    """alpha(t)² is the papers' cumulative product, entry t − 1, as an independent library has it."""
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_schedule="linear").alphas_cumprod.double()
    schedule = S.DiscreteVP.linear(1000)
    t = torch.arange(1, 1001, dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(t) ** 2, theirs, atol=1e-6, rtol=1e-4)
    off_by_one = schedule.alpha(t[1:]) ** 2
    assert (off_by_one / theirs[:-1] - 1).abs().max() > 1e-2


def test_lambda_is_dpm_solver_s():
    from diffusers import DPMSolverMultistepScheduler

    theirs = DPMSolverMultistepScheduler(beta_schedule="linear").lambda_t.double()
    mine = S.DiscreteVP.linear(1000).half_log_snr(torch.arange(1, 1001, dtype=torch.float64))
    torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)
    assert (2 * mine - theirs).abs().max() > 1  # the full log-SNR is another thing


def test_v_is_diffusers_velocity():
    from diffusers import DDPMScheduler

    from companion.predictions import make_target

    scheduler = DDPMScheduler(beta_schedule="linear")
    x0, eps = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64)
    index = torch.tensor([0, 400, 999, 10])[:3]
    theirs = scheduler.get_velocity(x0[:3], eps[:3], index)
    mine = make_target("v", x0[:3], eps[:3], S.DiscreteVP.linear(1000), index.double() + 1)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


# ---- the letters of the chapters ------------------------------------------------------------------------------------

CHAPTERS = {int(path.name[:2]): path for path in chapters.paths()}
DECORATED = r"\\(?:bar|tilde|hat|dot)\s*\\?[A-Za-z]+"
NAMED = r"\\(?:operatorname|mathrm|mathcal|mathbb|mathbf)\s*(?:\{[^{}]*\}|[A-Za-z0-9])"
LETTER = re.compile(rf"{DECORATED}|{NAMED}|\\[A-Za-z]+|[A-Za-z]")
GREEK = set(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell nabla partial".split()
)


def formulas(markdown):
    text = re.sub(r"\\(?:tag|text|begin|end)\{[^}]*\}", " ", chapters.prose(markdown))
    found = [a or b for a, b in re.findall(r"\$\$(.+?)\$\$|(?<!\\)\$([^$]+?)\$", text, re.S)]
    # a differential is no letter, and \mid is how a table writes a bar
    return [re.sub(r"\\mathrm\s*d(?![A-Za-z])|\\mathrm\{d\}|\\mathrm d", " ", f).replace(r"\mid", "|") for f in found]


def letters(formula):
    """The letters of a formula: Latin, Greek, with what they wear; `\\mathcal N` and the like count as one."""
    for token in LETTER.findall(formula):
        if not token.startswith("\\") or re.match(DECORATED + "|" + NAMED, token) or token[1:] in GREEK:
            yield re.sub(r"[\s{}]", "", token)


def compact(formula):
    return re.sub(r"\\[,;!: ]|\\(?:big|Big|bigg|left|right)\b|[\s{}]", "", formula)


def of_chapter(number):
    notebook = chapters.read(CHAPTERS[number])
    return [f for cell in notebook["cells"] if cell["cell_type"] == "markdown" for f in formulas(cell["source"])]


FORMULAS = {number: of_chapter(number) for number in CHAPTERS}
ON_THE_PAGE = {letter for formula in formulas(PAGE) for letter in letters(formula)}
SYMBOLS = [
    (symbol, int(cells(row)[-1]))
    for row in PAGE.splitlines()
    if row.startswith("|") and cells(row)[-1].isdigit()
    for symbol in formulas(cells(row)[0])
]


def is_used(symbol, number):
    found = [letter for formula in FORMULAS[number] for letter in letters(formula)]
    if list(letters(symbol)) == [compact(symbol)]:
        return compact(symbol) in found
    return any(compact(symbol) in compact(formula) for formula in FORMULAS[number])


@pytest.mark.parametrize("number", CHAPTERS)
def test_every_letter_of_a_chapter_stands_on_the_page(number):
    used = {letter for formula in FORMULAS[number] for letter in letters(formula)}
    assert not used - ON_THE_PAGE, f"book/notation.md lacks letters of chapter {number}: {sorted(used - ON_THE_PAGE)}"


@pytest.mark.parametrize("symbol, chapter", SYMBOLS, ids=[symbol for symbol, _ in SYMBOLS])
def test_a_symbol_is_first_used_where_the_page_says(symbol, chapter):
    before = [number for number in CHAPTERS if number < chapter and is_used(symbol, number)]
    assert not before, f"{symbol} is used in chapter {before[0]} already"
    assert chapter not in CHAPTERS or is_used(symbol, chapter), f"{symbol} is not used in chapter {chapter}"


def test_no_symbol_has_two_rows():
    symbols = [compact(symbol) for symbol, _ in SYMBOLS]
    assert len(symbols) > 60
    assert len(symbols) == len(set(symbols)), sorted({s for s in symbols if symbols.count(s) > 1})
