"""The book's tools: they accept the tree, and each finds the mistake it is there for."""

import json
import pathlib
import re
import shutil
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "book" / "tools"), str(ROOT / "book" / "_ext")]
import address
import api
import api_pages
import book_site
import chapters
import check_site
import equations
import execute
import ledger
import lint_notebooks
import mathjax
import model_cards
import run_nbval
import setup_cell

EQUATION = '<a id="eq-half"></a>\n\n$$ \\tfrac12 + \\tfrac12 = 1 \\tag{1.1} $$'
CHECK = """from companion.verify import verify

verify("eq-half", 0.5 + 0.5, 1.0, atol=1e-12, wrong={"one third": 0.5 + 1 / 3})"""


def cell(kind, name, source, **more):
    outputs = {"outputs": [], "execution_count": None} if kind == "code" else {}
    return {"cell_type": kind, "id": name, "metadata": {}, "source": source, **outputs, **more}


def notebook(*cells):
    metadata = json.loads(json.dumps(lint_notebooks.METADATA))
    return {"cells": list(cells), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def small():
    """A chapter without fault: title, set-up, equation, check."""
    return notebook(
        cell("markdown", "title", "# A chapter"),
        cell("code", "setup", setup_cell.cell("")),
        cell("markdown", "equation", EQUATION),
        cell("code", "check", CHECK),
    )


def write(root, name, content):
    (root / "notebooks").mkdir(exist_ok=True)
    path = root / "notebooks" / f"{name}.ipynb"
    for part in content["cells"]:
        part["source"] = "".join(part["source"]).splitlines(keepends=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path):
    """A book of one chapter without fault."""
    config = (ROOT / "_config.yml").read_text(encoding="utf-8")
    (tmp_path / "_config.yml").write_text(address.LINE.sub('  url: ""', config), encoding="utf-8")
    (tmp_path / "companion").mkdir()
    write(tmp_path, "01_small", small())
    (tmp_path / "companion" / "equations.json").write_text(equations.table(tmp_path), encoding="utf-8")
    return tmp_path


# the tree


def test_the_chapters_have_no_fault():
    assert list(lint_notebooks.faults(ROOT)) == []


def test_equation_numbers_are_up_to_date():
    assert not equations.is_stale(ROOT), "run `make equations`"


def toc_files():
    return set(re.findall(r"^\s*- file: (\S+)$", (ROOT / "_toc.yml").read_text(encoding="utf-8"), re.M))


def test_every_module_has_its_line_in_the_table_of_contents():
    wanted = {f"book/api/{name}" for name, _ in api.modules(ROOT)} | {"book/api/index"}
    assert {file for file in toc_files() if file.startswith("book/api/")} == wanted


def test_every_chapter_is_in_the_table_of_contents_and_on_the_front_page():
    pages = [ROOT / "book" / name for name in ("index.md", "spine.yml")]
    front = "".join(page.read_text(encoding="utf-8") for page in pages if page.exists())
    for path in chapters.paths(ROOT):
        assert f"notebooks/{path.stem}" in toc_files(), f"_toc.yml does not name {path.stem}"
        assert path.stem in front, f"the front page does not link {path.name}"


@pytest.mark.parametrize("page,kind", [("glossary", "term"), ("bibliography", "ref")])
def test_lists_are_sorted_and_without_doubles(page, kind):
    names = re.findall(rf'<a id="{kind}-([\w-]+)"></a>', (ROOT / "book" / f"{page}.md").read_text(encoding="utf-8"))
    assert names and names == sorted(set(names))


# the lint of the notebooks finds its mistakes


def test_a_chapter_without_fault_is_accepted(root):
    assert list(lint_notebooks.faults(root)) == []


def put(index, key, value):
    return lambda book: book["cells"][index].__setitem__(key, value)


def swap(index, old, new):
    def change(book):
        source = book["cells"][index]["source"]
        assert old in source
        book["cells"][index]["source"] = source.replace(old, new)

    return change


def add(*new):
    return lambda book: book["cells"].extend(new)


OUTPUT = [{"output_type": "display_data", "data": {"image/png": "AA=="}, "metadata": {}}]
RESULT = [{"output_type": "execute_result", "data": {"text/plain": "1"}, "metadata": {}, "execution_count": None}]
KEPT = {"metadata": {"tags": ["keep-output"]}}
LONG = CHECK + "\n# one line" * 14
FOLDED = {"metadata": {"tags": ["hide-input"]}}
FAULTS = {
    "no blank line": (swap(2, "></a>\n\n", "></a>\n"), "expected a blank line"),
    "no tag": (swap(2, " \\tag{1.1}", ""), "expected \\tag{1.1}"),
    "wrong number": (swap(2, "1.1", "1.2"), "expected \\tag{1.1}"),
    "wrong chapter": (swap(2, "1.1", "2.1"), "expected \\tag{1.1}"),
    "colon in an id": (swap(2, "eq-half", "eq:half"), "hyphens"),
    "no check": (lambda book: book["cells"].pop(3), "no verify"),
    "check before its equation": (lambda book: book["cells"].reverse(), "no verify"),
    "check of nothing": (swap(3, "eq-half", "eq-third"), "no such equation"),
    "check that cannot fail": (swap(3, ', wrong={"one third": 0.5 + 1 / 3}', ""), "no wrong="),
    "equation on its own": (add(cell("markdown", "m", "So\n\n$$ 1 = 1. $$")), "no id, and no link"),
    "number without id": (add(cell("markdown", "m", "$$ 1 = 1 \\tag{1.2} $$")), "without an id"),
    "id used twice": (add(cell("markdown", "m", '<a id="eq-half"></a>')), "stands in"),
    "directive": (add(cell("markdown", "m", ":::{note}\nhm\n:::")), "MyST"),
    "role": (add(cell("markdown", "m", "see {ref}`there`")), "MyST"),
    "figure without words": (add(cell("code", "c", 'show(fig, "a caption")')), "alternative text"),
    "sliders without words": (add(cell("code", "c", "explore(f, caption='c')")), "alternative text"),
    "endless cell": (add(cell("code", "c", "x = 1\n" * 41)), "41 lines of code"),
    "formula in a summary": (
        add(cell("markdown", "m", "<details><summary>if $x$ is</summary>\n\nNo.\n\n</details>")),
        "Markdown in a summary",
    ),
    "slider broken by a later cell": (
        lambda book: book["cells"].extend(
            [
                cell("code", "d", "w = 1\n\ndef g():\n    return w\n\ndef f(t):\n    return t * g()"),
                cell("code", "e", "explore(f, alt='a', caption='c')"),
                cell("code", "h", "w = 2"),
            ]
        ),
        "reads 'w', which cell 6 assigns anew",
    ),
    "other set-up": (swap(1, "print(companion.about())", "print(1)"), "set-up"),
    "stored picture": (put(3, "outputs", OUTPUT), "a stored image"),
    "stored count": (put(3, "execution_count", 4), "a stored output or count"),
    "kept without output": (add(cell("code", "c", "# NBVAL_CHECK_OUTPUT\n1", **KEPT)), "has no output"),
    "kept without count": (
        add(cell("code", "c", "# NBVAL_CHECK_OUTPUT\n1", **KEPT) | {"outputs": RESULT}),
        "without its",
    ),
    "kept, not compared": (add(cell("code", "c", "1", **KEPT) | {"outputs": RESULT}), "not told"),
    "metadata": (lambda book: book["metadata"].update(toc={}), "metadata"),
    "cell metadata": (put(3, "metadata", {"collapsed": True}), "cell metadata"),
    "cell id twice": (put(3, "id", "setup"), "used twice"),
    "loose number": (add(cell("markdown", "m", "as (1.1) says")), "the number (1.1) is no link"),
    "loose number between formulas": (add(cell("markdown", "m", "$a$ by (1.1) $b$")), "is no link"),
    "loose number between links": (add(cell("markdown", "m", "[a](#eq-half), (1.1), [b](#eq-half)")), "is no link"),
    "loose number in a solution": (
        add(cell("markdown", "m", "<details><summary>Solution</summary>\n\n(1.1), twice.\n\n</details>")),
        "is no link",
    ),
    "link to no equation": (add(cell("markdown", "m", "[(1.1)](../book/notation.md)")), "is no link"),
    "long check unfolded": (put(3, "source", LONG), "without the tag hide-input"),
    "short check folded": (put(3, "metadata", FOLDED["metadata"]), "more than 14 lines"),
    "other cell folded": (add(cell("code", "c", "1\n" * 30, **FOLDED)), "more than 14 lines"),
    "folded text": (add(cell("markdown", "m", "x", **FOLDED)), "more than 14 lines"),
    "other tag": (add(cell("code", "c", "1", metadata={"tags": ["remove-input"]})), "tag 'remove-input'"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_lint_finds(root, name):
    change, words = FAULTS[name]
    book = small()
    change(book)
    write(root, "01_small", book)
    found = list(lint_notebooks.faults(root))
    assert any(words in fault for fault in found), found
    assert all(re.match(r"notebooks/01_small\.ipynb(, cell \d+)?: ", fault) for fault in found)


def test_a_step_of_a_numbered_equation_needs_no_id(root):
    book = small()
    add(cell("markdown", "m", "From [(1.1)](#eq-half):\n\n$$ 1 - \\tfrac12 = \\tfrac12. $$"))(book)
    write(root, "01_small", book)
    assert list(lint_notebooks.faults(root)) == []


PROSE = """## The step (1.1)

By [(1.1)](#eq-half) or [both (1.1) and (1.1)](01_small.ipynb#eq-half), $f(1.5) = 1$, `f(1.5)`,
<a href="#eq-half">(1.1)</a>

```python
f(1.5)
```"""


def test_a_number_may_stand_in_a_link_a_heading_a_formula_and_code(root):
    book = small()
    add(cell("markdown", "m", PROSE))(book)
    write(root, "01_small", book)
    assert list(lint_notebooks.faults(root)) == []


def test_fix_mends_what_it_can(root):
    """Outputs, metadata, folds and an old set-up cell; a second time it changes nothing."""
    book = small()
    book["metadata"]["toc"] = {}
    book["cells"][1]["source"] = f"{address.MARK}: an older one\nimport companion"
    book["cells"][1]["metadata"] = {"tags": ["hide-input"]}
    book["cells"][3].update(outputs=OUTPUT, execution_count=2, metadata={"collapsed": True}, source=LONG)
    path = write(root, "01_small", book)
    lint_notebooks.fix(path, "", "main")
    assert list(lint_notebooks.faults(root)) == []
    assert [c["metadata"] for c in chapters.read(path)["cells"]] == [{}, {}, {}, FOLDED["metadata"]]
    before = path.read_bytes()
    lint_notebooks.fix(path, "", "main")
    assert path.read_bytes() == before


def test_fix_leaves_another_first_cell_to_its_author(root):
    book = small()
    book["cells"][1]["source"] = "1"
    path = write(root, "01_small", book)
    before = path.read_bytes()
    lint_notebooks.fix(path, "", "main")
    assert path.read_bytes() == before


def test_stale_equation_numbers_are_found(root):
    assert not equations.is_stale(root)
    text = equations.table(root)
    book = small()
    book["cells"][2]["source"] = EQUATION.replace("eq-half", "eq-whole")
    write(root, "01_small", book)
    assert equations.is_stale(root) and equations.table(root) != text
    (root / "companion" / "equations.json").unlink()
    assert equations.is_stale(root)


# a wrong notebook fails


def test_nbval_fails_on_a_wrong_equation_and_on_a_failing_cell(root):
    """The right chapter passes; one wrong side and one cell that raises are found, and named."""
    wrong = small()
    swap(3, "0.5 + 0.5, 1.0", "0.5 + 0.5, 1.1")(wrong)
    broken = small()
    add(cell("code", "broken", "1 / 0"))(broken)
    weak = small()
    swap(3, "0.5 + 1 / 3", "1.0 + 1e-13")(weak)
    paths = [root / "notebooks" / "01_small.ipynb"]
    paths += [write(root, name, book) for name, book in [("02_wrong", wrong), ("03_broken", broken), ("04_weak", weak)]]
    report = root / "report.xml"
    assert run_nbval.run(sys.executable, paths, 2, report, probe=False) != 0
    assert run_nbval.failures(report) == {"02_wrong", "03_broken", "04_weak"}
    assert set(run_nbval.timings(report)) == {path.stem for path in paths}


def test_cache_key_follows_the_package(root):
    (root / "constraints.txt").write_text("torch==2.13.0\n")
    before = execute.key(root)
    assert execute.key(root) == before
    (root / "companion" / "toy.py").write_text("x = 1\n")
    assert execute.key(root) != before


# a wrong page is found


GOOD = """<html><head><link rel="stylesheet" href="style.css"></head><body><main><h1 id="top">T</h1>
<a href="other.html#there">x</a> <a href="#top">y</a> <a href="https://example.org">z</a> <img src="a.png" alt="A disc">
<figure class="companion-figure"><div role="img" aria-label="A curve"></div><figcaption>c</figcaption></figure>
</main></body></html>"""
PAGES = {
    "dead link": ('<a href="gone.html">x</a>', "a link to nowhere"),
    "link to a source": ('<a href="../book/notation.md">x</a>', "a link to nowhere"),
    "dead fragment": ('<a href="other.html#gone">x</a>', "a place that is not there"),
    "dead equation": ('<a href="#eq-gone">(1.1)</a>', "a place that is not there"),
    "script from elsewhere": ('<script src="https://cdn.example.org/x.js"></script>', "loaded from elsewhere"),
    "style from elsewhere": ('<link rel="stylesheet" href="//fonts.example.org/x.css">', "loaded from elsewhere"),
    "import from elsewhere": ("<style>@import 'https://example.org/x.css';</style>", "loaded from elsewhere"),
    "picture from elsewhere": ('<img alt="a" src="http://example.org/x.png">', "loaded from elsewhere"),
    "traceback": ('<div class="cell_output"><pre>Traceback (most recent call last):</pre></div>', "an error"),
    "error": ('<div class="cell_output"><pre>ValueError: no</pre></div>', "an error"),
    "picture without words": ('<img src="a.png" alt="">', "no alternative text"),
    "picture with a hash": ('<img src="a.png" alt="_images/0a6ded5abbce13331658dd23.png">', "no alternative text"),
    "role without words": ('<div role="img"></div>', "without a label"),
    "figure without caption": ('<figure class="companion-figure"></figure>', "without a caption"),
    "heavy page": ("<p>" + "x" * 1_600_000 + "</p>", "the page weighs"),
    "heavy figure": (
        '<figure class="companion-explore"><figcaption>c</figcaption><script>"'
        + "x" * 1_100_000
        + '"</script></figure>',
        "a figure of",
    ),
    "role shown raw": ("<p>see {ref}`x`</p>", "markup shown raw"),
}


@pytest.fixture
def site(tmp_path):
    (tmp_path / "other.html").write_text('<html><body><main><p id="there">o</p></main></body></html>')
    (tmp_path / "page.html").write_text(GOOD)
    (tmp_path / "style.css").write_text("p { color: red }")
    check_site.soup.cache_clear()
    check_site.ids.cache_clear()
    return tmp_path


def test_a_good_site_is_accepted(site):
    assert list(check_site.faults(site)) == []


@pytest.mark.parametrize("name", PAGES)
def test_check_site_finds(site, name):
    planted, words = PAGES[name]
    (site / "page.html").write_text(GOOD.replace("</main>", planted + "</main>"))
    found = list(check_site.faults(site))
    assert found and all(words in fault and fault.startswith("page.html: ") for fault in found), found


def test_check_site_reads_style_sheets(site):
    (site / "style.css").write_text("@font-face { src: url('https://fonts.example.org/x.woff2') }")
    assert "style.css: loaded from elsewhere" in "".join(check_site.faults(site))


def test_an_empty_folder_is_no_site(tmp_path):
    assert list(check_site.faults(tmp_path))


# the ledger and the API pages


def test_ledger_finds_gaps():
    labelled = [chapters.Equation("eq-a", "1.1", 0), chapters.Equation("def-b", "1.2", 0)]
    assert list(ledger.gaps(labelled, [{"id": "eq-a"}])) == []
    assert list(ledger.gaps(labelled, [])) == ["equation eq-a has no verify that ran"]
    assert len(list(ledger.gaps(labelled, [{"id": "eq-a"}, {"id": "eq-c"}]))) == 1


def test_ledger_reads_what_a_notebook_shows():
    record = {"id": "eq-a", "difference": 0.0}
    shown = {"output_type": "display_data", "data": {ledger.MIME: record, "text/plain": "ok"}}
    assert list(ledger.shown_checks({"cells": [{"outputs": [shown]}, {}]})) == [record]


def test_ledger_knows_the_section_of_an_equation():
    book = notebook(
        cell("markdown", "a", f"# 1. A chapter\n\n## 1.1 The `half`\n\n{EQUATION}"),
        cell("code", "b", "# no heading\n1"),
        cell("markdown", "c", EQUATION.replace("half", "third") + "\n\n```\n# nor this\n```\n\n### On\n"),
        cell("markdown", "d", EQUATION.replace("eq-half", "def-fourth")),
    )
    assert ledger.headings(book) == {"eq-half": "1.1 The half", "eq-third": "1.1 The half", "def-fourth": "On"}


# the model cards


CARD = {"name": "m", "parameters": 1200, "bytes": 2400, "sha256": "ab"}
PARTS = {
    "denoiser": (
        {"net": {"class": "UNet"}, "schedule": {"class": "CosineVP"}, "kind": "v"},
        "UNet, CosineVP, predicts v",
    ),
    "classifier": ({"net": {"class": "Classifier", "arguments": {}}}, "Classifier"),
    "no schedule": ({"net": {"class": "Classifier"}, "schedule": None, "kind": None}, "Classifier"),
    "pair": ([{"class": "Encoder"}, {"net": {"class": "Decoder"}}], "Encoder, Decoder"),
    "nothing": (None, ""),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_card_of_any_model_has_its_rows(name):
    model, expected = PARTS[name]
    rows = "".join(model_cards.facts(CARD | {"model": model}))
    assert f"<td>{expected}</td>" in rows and "1,200 in 0.0 MB" in rows and "None" not in rows


def test_every_card_that_ships_is_rendered():
    for path in model_cards.FOLDER.glob("*.json"):
        card = json.loads(path.read_text(encoding="utf-8"))
        page = "".join(model_cards.facts(card)) + model_cards.measured(card["metrics"]) + model_cards.grid(card)
        assert card["sha256"] in page and "None" not in page


def test_measurements_with_gaps_are_rendered():
    metrics = {"real": {"accuracy": 0.5, "distance": None}, "samples": {"accuracy": 0.25}, "none": None}
    page = model_cards.measured(metrics)
    assert "<td>0.5</td><td>0.25</td>" in page and "<td>–</td><td>–</td>" in page and "none" not in page
    assert model_cards.measured(None) == model_cards.measured({}) == ""


def test_a_card_shows_its_picture(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(model_cards.logger, "warning", lambda text, **_: said.append(text))
    card = CARD | {"grid": "Sixteen <digits>"}
    assert model_cards.grid(card, tmp_path) == "" and not said
    (tmp_path / "m.png").write_bytes(b"picture")
    shown = model_cards.grid(card, tmp_path)
    assert (
        'src="data:image/png;base64,cGljdHVyZQ=="' in shown and shown.count("Sixteen &lt;digits&gt;") == 2 and not said
    )
    model_cards.grid(CARD, tmp_path)
    (tmp_path / "m.webp").write_bytes(b"x" * 200_001)
    assert "data:image/webp" in model_cards.grid(card, tmp_path)
    assert "no words" in said[0] and "200,001 bytes" in said[1] and len(said) == 2


# what the search shows


def test_sections_hold_their_own_text_and_no_more():
    import docutils.core

    text = "One\n===\n\nSome *plain* words.\n\nTwo\n---\n\n- a point\n- more\n\n::\n\n    code()\n"
    text += "\n.. raw:: html\n\n    <b>raw</b>\n"
    tree = docutils.core.publish_doctree(text, settings_overrides={"doctitle_xform": False})
    assert list(book_site.sections(tree)) == [
        ("one", "One", "Some plain words."),
        ("two", "Two", "a point more code()"),
    ]


def test_names_lead_to_where_a_thing_is_defined():
    assert ledger.real_name("companion.forward.q_sample") == "companion.forward.q_sample"
    assert ledger.real_name("companion.schedules.CosineVP.log_snr") == "companion.schedules.Schedule.log_snr"
    assert ledger.real_name("companion.nets.UNet") == "companion.nets.unet.UNet"
    assert ledger.real_name("companion.forward.no_such_thing") is None


def test_a_new_module_gets_its_page(root):
    (root / "companion" / "__init__.py").write_text('"""The package."""\n')
    (root / "companion" / "_private.py").write_text("")
    (root / "companion" / "fresh.py").write_text('"""A fresh idea: p(a | b)."""\n')
    written = dict(api.pages(root))
    assert set(written) == {"index.md", "fresh.md"}
    assert "automodule:: companion.fresh" in written["fresh.md"] and "p(a \\| b)" in written["index.md"]


NASTY = """One sentence with |x|, a*b*c, x_ and `code` and ``more``.

Shapes:
    x: (batch, *data) – a block
  t: scalar
back again
1. first | item
- a list
  that goes on
* star

    indented alone

Example::

    >>> f(x)_
"""


def test_any_docstring_becomes_valid_text():
    import docutils.core

    text = "\n".join(api_pages.light(NASTY.splitlines()))
    seen = docutils.core.publish_doctree(text, settings_overrides={"halt_level": 5, "report_level": 1}).astext()
    assert "|x|, a*b*c, x_ and code and more" in seen


def test_signatures_keep_their_shapes():
    from companion.forward import q_sample

    arguments, returns = api_pages.signature(None, "function", "q_sample", q_sample, None, "", "")
    assert arguments.startswith("(x0: Float[Tensor, ") and returns.startswith("Float[Tensor, ")


def test_mathjax_must_be_the_one_that_was_chosen(tmp_path):
    origin = mathjax.source()
    for name in mathjax.SHA256:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(origin / name, tmp_path / name)
    mathjax.check(tmp_path)
    (tmp_path / mathjax.BUNDLE).write_text("other")
    with pytest.raises(RuntimeError, match="sha256"):
        mathjax.check(tmp_path)


# the address


URL = "https://github.com/someone/reversing-the-noise"


def tree(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_address_is_set_and_unset_without_a_trace(root):
    before = tree(root)
    address.write("", root)
    assert tree(root) == before
    address.write(URL, root)
    once = tree(root)
    address.write(URL, root)
    assert tree(root) == once != before
    assert address.current(root) == (URL, "main")
    assert list(lint_notebooks.faults(root)) == []
    sources = [c["source"] for c in chapters.read(root / "notebooks" / "01_small.ipynb")["cells"]]
    assert any(
        s.startswith("[Open this chapter in Colab](https://colab.research.google.com/github/someone/") for s in sources
    )
    assert any(f"git+{URL}" in s for s in sources)
    address.write("", root)
    assert tree(root) == before


def test_address_of_the_real_book_can_be_set_and_unset(tmp_path):
    shutil.copy(ROOT / "_config.yml", tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*"))
    address.write("", tmp_path)
    before = tree(tmp_path)
    address.write(URL, tmp_path)
    assert not [fault for fault in lint_notebooks.faults(tmp_path) if "set-up" in fault or "Colab" in fault]
    address.write("", tmp_path)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "bad", ["http://github.com/a/b", "https://github.com", "https://github.com/a/b/", 'https://x/y"z']
)
def test_address_must_look_like_one(root, bad):
    before = tree(root)
    with pytest.raises(ValueError, match="URL: expected"):
        address.write(bad, root)
    assert tree(root) == before


def test_an_address_without_its_cells_is_found(root):
    config = root / "_config.yml"
    config.write_text(address.LINE.sub(f'  url: "{URL}"', config.read_text(encoding="utf-8")), encoding="utf-8")
    assert "set-up cell" in "".join(lint_notebooks.faults(root))


def test_set_up_cell_without_address_installs_nothing(monkeypatch):
    source = setup_cell.cell("")
    assert "%pip" not in source and "git+" not in source
    monkeypatch.setitem(sys.modules, "companion", None)
    with pytest.raises(ModuleNotFoundError, match="no public address") as caught:
        exec(source.replace('error.name != "companion"', "False"), {})
    assert f"this kernel runs, {sys.executable}." in str(caught.value)


def test_set_up_cell_with_address_leaves_the_host_alone():
    installs = [line for line in setup_cell.cell(URL).splitlines() if "%pip" in line]
    assert len(installs) == 2 and "--no-deps" in installs[1]
    assert not re.search(r"\b(torch|numpy|ipywidgets)\b", " ".join(installs))


def test_set_up_cell_says_what_runs(capsys):
    exec(setup_cell.cell(""), {})
    assert capsys.readouterr().out.startswith("companion ")
