"""Check the built pages: no traceback, no dead link or fragment, nothing loaded from elsewhere, no page too heavy.

`python book/tools/check_site.py _build/html` prints one line a fault.
"""

import functools
import pathlib
import re
import sys
import urllib.parse

from bs4 import BeautifulSoup

PAGE_BYTES = 1_500_000  # a page without the frames of its sliders
FIGURE_BYTES = 1_000_000  # one figure with its frames
ERROR = re.compile(r"Traceback \(most recent call last\)|^\s*\w*(?:Error|Exception|Interrupt): ", re.M)
LOADS = dict.fromkeys(["script", "img", "iframe", "source", "video", "audio", "embed"], "src")
LINK_LOADS = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "preconnect", "dns-prefetch", "manifest"}
ELSEWHERE = re.compile(r"(?:https?:)?//", re.I)
CSS_LOAD = re.compile(r"(?:url\(\s*['\"]?|@import\s+['\"])((?:https?:)?//[^'\")\s]+)", re.I)


@functools.cache
def soup(path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@functools.cache
def ids(path):
    """The places on a page that a link can name."""
    named = {tag["name"] for tag in soup(path)("a", attrs={"name": True})}
    return named | {tag["id"] for tag in soup(path).find_all(id=True)}


def pages(site):
    """The pages of a built site; sources and vendored files are none."""
    return [p for p in sorted(site.rglob("*.html")) if not {"_static", "_sources"} & set(p.relative_to(site).parts)]


def tracebacks(page):
    """Yield a fault for every output that shows an error."""
    for output in page.select(".cell_output, .companion-explore, .companion-verify"):
        match = ERROR.search(output.get_text())
        if match:
            yield f"an error in an output: {match[0].strip()}"
    for output in page.select(".output.error, .output.traceback, .highlight-ipythontb"):
        yield f"an error output: {output.get_text()[-80:].strip()!r}"


def links(page, path, site):
    """Yield a fault for every link within the site whose file or fragment does not exist."""
    for tag in page("a", href=True):
        target = urllib.parse.urlsplit(tag["href"])
        if target.scheme or target.netloc or tag["href"] in ("", "#"):
            continue
        file = (path.parent / urllib.parse.unquote(target.path)).resolve() if target.path else path.resolve()
        file = file / "index.html" if file.is_dir() else file
        if not file.is_relative_to(site.resolve()) or not file.exists():
            yield f"a link to nowhere: {tag['href']}"
        elif target.fragment and file.suffix == ".html" and urllib.parse.unquote(target.fragment) not in ids(file):
            yield f"a link to a place that is not there: {tag['href']}"


def external_loads(page):
    """Yield a fault for everything a page would fetch from another host."""
    found = [tag.get(attribute) for name, attribute in LOADS.items() for tag in page(name)]
    found += [tag.get("href") for tag in page("link") if LINK_LOADS & {r.lower() for r in tag.get("rel", [])}]
    found += [tag.get("data") for tag in page("object")]
    found += [url for tag in page("style") for url in CSS_LOAD.findall(tag.get_text())]
    found += [url for tag in page(style=True) for url in CSS_LOAD.findall(tag["style"])]
    for url in filter(None, found):
        if ELSEWHERE.match(url):
            yield f"loaded from elsewhere: {url}"


def weight(page, path):
    """Yield a fault for a page, less its sliders' frames, or a figure that weighs too much."""
    total = path.stat().st_size
    for figure in page.select(".companion-explore"):
        size = len(str(figure).encode())
        if size > FIGURE_BYTES:
            yield f"a figure of {size / 1e6:.2f} MB"
        total -= sum(len(script.get_text().encode()) for script in figure("script"))
    if total > PAGE_BYTES:
        yield f"the page weighs {total / 1e6:.2f} MB without its sliders' frames"


def alternatives(page):
    """Yield a fault for every picture without words."""
    for tag in page("img"):
        alt = (tag.get("alt") or "").strip()
        if not alt or re.fullmatch(r"\S*[0-9a-f]{16,}\S*", alt):
            yield f"no alternative text: {str(tag)[:80]}"
    for tag in page(attrs={"role": "img"}):
        if not (tag.get("aria-label") or tag.get("aria-labelledby")):
            yield f"role=img without a label: {str(tag)[:80]}"
    for figure in page.select("figure.companion-figure, figure.companion-explore, figure.companion-drag"):
        if not figure.find("figcaption"):
            yield "a figure without a caption"


def raw_syntax(page):
    """Yield a fault for markup that was meant to be rendered and was not."""
    for tag in page.select("main p, main li, main td"):
        match = re.search(r"\{(?:ref|doc|eq|cite|term|numref)\}|^:::", tag.get_text()) if not tag.find("code") else None
        if match:
            yield f"markup shown raw: {match[0]}"


def page_faults(path, site):
    """Yield the faults of one page."""
    page = soup(path)
    yield from tracebacks(page)
    yield from links(page, path, site)
    yield from external_loads(page)
    yield from weight(page, path)
    yield from alternatives(page)
    yield from raw_syntax(page)


def faults(site):
    """Yield every fault of a built site as a line of text."""
    site = pathlib.Path(site)
    found = pages(site)
    if not found:
        yield f"{site}: no pages"
    for path in found:
        for fault in page_faults(path, site):
            yield f"{path.relative_to(site)}: {fault}"
    for sheet in sorted(site.rglob("*.css")):
        for url in CSS_LOAD.findall(sheet.read_text(encoding="utf-8")):
            yield f"{sheet.relative_to(site)}: loaded from elsewhere: {url}"


def main(site):
    found = list(faults(site))
    print("\n".join(found) or f"{len(pages(pathlib.Path(site)))} pages: no fault found")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
