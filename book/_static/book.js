// Where a page lands, what it prints, what a search shows, and what a button saves.
(() => {
  // A jump, to an equation far down say, lands again each time that mathematics above it finds its true height, until the
  // reader takes over; a dragged scroll bar is not announced, so it ends after some seconds in any case.
  let target = null, patience;
  const aim = () => target && target.scrollIntoView({ behavior: "instant", block: "start" });
  const jump = () => {
    target = location.hash.length > 1 ? document.getElementById(decodeURIComponent(location.hash.slice(1))) : null;
    clearTimeout(patience);
    if (!target) return;
    patience = setTimeout(() => { target = null; }, 6000);
    for (let fold = target.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    aim();
  };
  const watchJumps = (article) => {
    new ResizeObserver(aim).observe(article);
    for (const kind of ["wheel", "touchstart", "pointerdown", "keydown"]) {
      addEventListener(kind, () => { target = null; }, { passive: true, capture: true });
    }
    addEventListener("hashchange", jump);
    // a link to the place that the address names already changes no address
    addEventListener("click", (event) => {
      const link = event.target.closest?.("a[href*='#']");
      if (link && link.href === location.href) setTimeout(jump);
    });
    jump();
  };

  // On paper: dark text on white. MathJax itself typesets what nobody has scrolled to, but paper does not wait for fonts:
  // those that mathematics may need are loaded beforehand.
  const loadFonts = async () => {
    await window.MathJax?.startup?.promise;
    document.fonts.forEach((font) => /^["']?MJXTEX(-([ABCI]|BI|MI|S[1-4]))?["']?$/.test(font.family) && font.load());
  };
  let theme = null;
  addEventListener("beforeprint", () => {
    theme ??= document.documentElement.dataset.theme;
    document.documentElement.dataset.theme = "light";
  });
  addEventListener("afterprint", () => {
    document.documentElement.dataset.theme = theme ?? "light";
    theme = null;
  });

  // The chapter's notebook is saved, not shown as the text that it is. Browsers do not save one file from another; there
  // the build's copy of it comes as a script.
  window.saveSource = (name, text) => {
    const href = URL.createObjectURL(new Blob([text], { type: "application/octet-stream" }));
    Object.assign(document.createElement("a"), { href, download: name }).click();
  };
  const save = () => document.querySelectorAll("a.btn-download-source-button").forEach((link) => {
    link.download = "";
    link.removeAttribute("target");
    if (location.protocol !== "file:") return;
    link.addEventListener("click", (event) => {
      event.preventDefault();
      document.body.append(Object.assign(document.createElement("script"), { src: `${link.href}.js` }));
    });
  });

  // The search's own excerpts must be fetched, which a page read from a file may not do, and do not lead to their section.
  if (typeof DOCUMENTATION_OPTIONS !== "undefined") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
  const SECTIONS = 3, BEFORE = 60, LENGTH = 200;

  const excerpt = (text, pattern) => {
    const first = Math.max(text.search(pattern), 0);
    const start = first < BEFORE ? 0 : text.indexOf(" ", first - BEFORE) + 1;
    const shown = document.createElement("p");
    shown.className = "search-excerpt";
    const cut = text.slice(start, start + LENGTH);
    const whole = start + LENGTH >= text.length ? cut : cut.slice(0, Math.max(cut.lastIndexOf(" "), LENGTH / 2)) + " …";
    const part = (start ? "… " : "") + whole;
    part.split(new RegExp(`(${pattern.source})`, "giu")).forEach((piece, place) => {
      shown.append(place % 2 ? Object.assign(document.createElement("mark"), { textContent: piece }) : piece);
    });
    return shown;
  };

  const explain = (item, patterns) => {
    const link = item.querySelector("a");
    const [page, anchor] = link.href.split("#");
    const name = Object.keys(BOOK_SECTIONS).find((docname) => page.endsWith(`/${docname}.html`));
    if (!name || item.querySelector("span, .search-excerpt")) return;
    const any = new RegExp(patterns.map((pattern) => pattern.source).join("|"), "iu");
    // a section is as good as the number of the query's words in it, then as often as they stand there
    const count = (text) => patterns.filter((pattern) => pattern.test(text)).length;
    const often = (text) => [...text.matchAll(new RegExp(any, "giu"))].length;
    const rated = BOOK_SECTIONS[name].map(([id, title, text]) => (
      { id, title, text, hits: count(`${title} ${text}`), uses: often(`${title} ${text}`) }
    ));
    if (anchor) {
      const found = rated.find(({ id }) => id === anchor);
      if (found) item.append(excerpt(found.text, any));
      return;
    }
    const best = Math.max(...rated.map(({ hits }) => hits));
    const shown = rated.filter(({ hits }) => hits && hits === best).sort((a, b) => b.uses - a.uses).slice(0, SECTIONS);
    for (const { id, title, text } of shown) {
      const place = Object.assign(document.createElement("a"), { href: `${page}#${id}`, textContent: title });
      place.className = "search-section";
      item.append(place, excerpt(text, any));
    }
  };

  const explainSearch = (results) => {
    const query = new URLSearchParams(location.search).get("q") || "";
    // the index holds stems; a stem's last letter may differ from the word's: "entropi"
    const stems = [...Search._parseQuery(query)[1]].map((stem) => (stem.length > 4 ? stem.replace(/[iy]$/, "") : stem));
    const patterns = stems.map((stem) => new RegExp(`(?<![\\p{L}\\p{N}])${RegExp.escape?.(stem) ?? stem}[\\p{L}\\p{N}]*`, "iu"));
    if (!patterns.length) return;
    const all = () => results.querySelectorAll("ul.search > li").forEach((item) => explain(item, patterns));
    new MutationObserver(all).observe(results, { childList: true, subtree: true });
    all();
  };

  addEventListener("load", loadFonts);
  document.addEventListener("DOMContentLoaded", () => {
    const article = document.querySelector("article.bd-article");
    if (article) watchJumps(article);
    save();
    const results = document.getElementById("search-results");
    if (results && typeof BOOK_SECTIONS !== "undefined" && typeof Search !== "undefined") explainSearch(results);
  });
})();
