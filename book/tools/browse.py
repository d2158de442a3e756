"""What only a browser shows: errors, sliders that do nothing, mathematics not typeset, pages that scroll sideways."""

import contextlib
import functools
import http.server
import os
import shutil
import threading
import urllib.parse

WIDE, PHONE = {"width": 1360, "height": 900}, {"width": 390, "height": 844}


def chromium():
    """Path of the Chromium to use; None where there is none."""
    for name in (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome-stable", "google-chrome"):
        path = shutil.which(name) if name else None
        if path:
            return path
    return None


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(folder):
    """Serve a folder at a local port; gives the address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def watched(browser, origin, **options):
    """A page without network, and the list that its errors and its attempts to reach other hosts go to."""
    context = browser.new_context(**{"viewport": WIDE, **options})
    errors = []

    def route(handler):
        url = handler.request.url
        if url.startswith(origin) or urllib.parse.urlsplit(url).scheme in ("data", "blob"):
            handler.continue_()
        else:
            errors.append(f"asked for {url}")
            handler.abort()

    context.route("**/*", route)
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(f"page error: {error}"))
    page.on("console", lambda message: errors.append(f"console: {message.text}") if message.type == "error" else None)
    return page, errors


def picture(figure):
    """What a slider figure shows at present, as pixels of its largest picture."""
    shown = None
    for element in figure.query_selector_all("svg, canvas, img"):
        box = element.bounding_box()
        if element.is_visible() and box and (shown is None or box["width"] * box["height"] > shown[0]):
            shown = (box["width"] * box["height"], element)
    return shown[1].screenshot() if shown else b""


def slider_faults(page):
    """Yield a fault for every control of a page's figures that does not change its figure by mouse and by key."""
    for number, figure in enumerate(page.query_selector_all(".companion-explore"), start=1):
        controls = figure.query_selector_all("input[type=range], select")
        if not controls:
            yield f"figure {number}: no slider"
        for place, control in enumerate(controls, start=1):
            control.scroll_into_view_if_needed()
            check = range_faults if control.get_attribute("type") == "range" else choice_faults
            for fault in check(page, figure, control):
                yield f"figure {number}, slider {place}: {fault}"


def range_faults(page, figure, control):
    control.focus()
    page.keyboard.press("Home")
    first, value = picture(figure), control.input_value()
    page.keyboard.press("ArrowRight")
    if control.input_value() == value:
        yield "the arrow key does not move it"
    page.keyboard.press("End")
    if picture(figure) == first:
        yield "the figure does not change by key"
    seen = []
    for part in (0.1, 0.9):
        control.scroll_into_view_if_needed()
        box = control.bounding_box()
        page.mouse.click(box["x"] + part * box["width"], box["y"] + box["height"] / 2)
        page.mouse.move(2, 2)
        seen.append(picture(figure))
    if seen[0] == seen[1]:
        yield "the figure does not change by mouse"


def choice_faults(page, figure, control):
    control.select_option(index=0)
    first = picture(figure)
    control.focus()
    page.keyboard.press("ArrowDown")
    if picture(figure) == first:
        yield "the figure does not change by key"
    for index in range(1, len(control.query_selector_all("option"))):
        control.select_option(index=index)
        if picture(figure) == first:
            yield f"choice {index + 1} shows what the first one shows"


TYPESET = """async () => {
  document.querySelectorAll("main details").forEach(d => { d.open = true; });
  const all = [...document.querySelectorAll("article .math, main .math")].filter(e => e.offsetParent !== null);
  const formulas = [...new Set(all)];
  const none = {formulas: formulas.length, typeset: 0, errors: [], labelled: 0, labels: 0};
  if (!formulas.length) return none;
  if (!window.MathJax || !MathJax.startup) return {...none, errors: ["no MathJax"]};
  await MathJax.startup.promise;
  const ready = e => e.querySelector("mjx-container") && !e.querySelector("mjx-lazy");
  for (let round = 0; round < 200 && !formulas.every(ready); round++) {
    const waiting = formulas.find(e => !ready(e));
    waiting.scrollIntoView({block: "start", behavior: "instant"});
    await new Promise(r => setTimeout(r, 60));
  }
  return {
    formulas: formulas.length,
    typeset: formulas.filter(ready).length,
    errors: [...document.querySelectorAll("mjx-merror, [data-mjx-error]")]
      .map(e => e.getAttribute("data-mjx-error") || e.title || "error"),
    labelled: document.querySelectorAll("main a[id^='eq-'], main a[id^='def-']").length,
    cut: formulas.filter(e => e.scrollWidth > e.clientWidth + 1 && e.querySelector("mjx-math") && e.scrollLeft === 0
      && e.querySelector("mjx-math").getBoundingClientRect().left < e.getBoundingClientRect().left - 1).length,
    labels: document.querySelectorAll("main mjx-labels, main mjx-mlabeledtr").length,
  };
}"""


def mathematics_faults(page):
    """Yield a fault where a formula is not typeset, has an error, or a numbered equation shows no number."""
    seen = page.evaluate(TYPESET)
    if seen["typeset"] < seen["formulas"]:
        yield f"{seen['typeset']} of {seen['formulas']} formulas are typeset"
    for error in seen["errors"]:
        yield f"mathematics: {error}"
    if seen.get("cut"):
        yield f"{seen['cut']} wide equations begin outside the page"
    if seen["labels"] < seen["labelled"]:
        yield f"{seen['labels']} numbers shown for {seen['labelled']} numbered equations"


SIDEWAYS = """() => {
  const wide = document.documentElement.scrollWidth, width = document.documentElement.clientWidth;
  if (wide <= width + 1) return "";
  const culprit = [...document.querySelectorAll("main *")].find(e => {
    const right = e.getBoundingClientRect().right + scrollX;
    return right > width + 1 && right >= wide - 1;
  });
  return `${wide} > ${width} pixels` + (culprit ? ` because of ${culprit.outerHTML.slice(0, 90)}` : "");
}"""


def sideways(page):
    """Why a page scrolls sideways; empty when it does not."""
    return page.evaluate(SIDEWAYS)


def scheme(page, name):
    """Give a page the reader's wish for light or dark, and wait until it follows."""
    page.emulate_media(color_scheme=name)
    page.wait_for_function("name => document.documentElement.dataset.theme === name", arg=name)


BRIGHTNESS = """() => {
  const of = (element, property) => {
    for (let e = element; e; e = e.parentElement) {
      const text = getComputedStyle(e)[property];
      const scale = text.startsWith("color(") ? 1 : 255;
      const [r, g, b, a = 1] = (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
      if (a > 0.5) return (0.2126 * r + 0.7152 * g + 0.0722 * b) / scale;
    }
    return 1;
  };
  const texts = ".companion-verify, main figcaption, main blockquote p, main td, main dd p";
  const faint = [...document.querySelectorAll(texts)]
    .filter(e => e.innerText && Math.abs(of(e, "color") - of(e, "backgroundColor")) < 0.35);
  const text = document.querySelector("article p, main p, main h1");
  return {
    background: of(text, "backgroundColor"), text: of(text, "color"),
    faint: faint.map(e => e.innerText.slice(0, 40)),
  };
}"""


def brightness(page):
    """Brightness, 0 to 1, of a page's ground and of its text, and the beginnings of texts too faint to read."""
    return page.evaluate(BRIGHTNESS)
