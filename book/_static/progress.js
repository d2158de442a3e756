// Which chapters a reader has finished, kept in this browser and nowhere else.
(() => {
  const KEY = "reversing-the-noise.read";
  const load = () => {
    try { return new Set(JSON.parse(localStorage.getItem(KEY) || "[]")); } catch { return new Set(); }
  };
  const store = (read) => {
    try { localStorage.setItem(KEY, JSON.stringify([...read])); } catch { /* a private window: kept until it closes */ }
  };
  const nameOf = (href) => (/notebooks\/(\d\d_\w+)\.html/.exec(href || "") || [])[1];

  document.addEventListener("DOMContentLoaded", () => {
    const read = load();
    const links = [...document.querySelectorAll(".bd-links a, table.spine a[data-chapter]")];
    const tick = () => links.forEach((link) => {
      const name = nameOf(link.href);
      link.classList.toggle("chapter-read", Boolean(name) && read.has(name));
    });
    tick();
    const here = nameOf(location.pathname);
    const article = document.querySelector("article.bd-article");
    if (!here || !article) return;
    const label = document.createElement("label");
    label.className = "chapter-done";
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: read.has(here) });
    box.addEventListener("change", () => {
      box.checked ? read.add(here) : read.delete(here);
      store(read);
      tick();
    });
    label.append(box, " I have read this chapter (kept in this browser only)");
    article.append(label);
  });
})();
