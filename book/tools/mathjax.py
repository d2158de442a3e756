"""Copy MathJax from the PyPI package that carries it to book/_static/mathjax: the bundle, the lazy
typesetter, the extensions that TeX macros ask for, the fonts.

Nothing is fetched. Version and checksum are fixed: a page's scripts are part of the book.
"""

import hashlib
import importlib.metadata
import pathlib
import shutil
import sys

PACKAGE, VERSION, MATHJAX = "sphinx-mathjax-offline", "0.0.2", "3.2.2"
BUNDLE = "tex-chtml.js"
SHA256 = {
    BUNDLE: "0a6ded5abbce13331658dd239f34382abd06492c74b71b61e8caa8112ec55fa5",
    "ui/lazy.js": "64cb5353fc9766b7609a14806db030fe63ee21f76b31fa44d2fe3145e712247e",
    "input/tex/extensions/bbox.js": "73d208a3425ed27dea7ed61f5984b43accfba8949bad7077d3eac47e668ba764",
    "input/tex/extensions/boldsymbol.js": "d6771fee0772db2657796c8d0e20e1878bb3237f6d3ed1e828e1834a4ff743ca",
    "input/tex/extensions/braket.js": "2abb032ca0eaff9fb2322a28b5d14ba058e7934d3e56974c55f574059e907a4c",
    "input/tex/extensions/cancel.js": "0d263ecf2671d1cc13135b8b4afcdca4d40151a9aea51b69402e68adde4cf8c9",
    "input/tex/extensions/color.js": "7fdc8f7cda1630f35ccd579379ba04add9dec50c66cebbc05a4b129027b32435",
    "input/tex/extensions/enclose.js": "8804f756f369946919c388f587f80cf2d1fd9151f76ed37570d01af8d7fb3f4c",
    "input/tex/extensions/upgreek.js": "4335d722671b77186d6490e326adad5f727ed2db954deafece2d10803cb651a1",
}
FONTS = "output/chtml/fonts/woff-v2"
TARGET = pathlib.Path(__file__).resolve().parents[1] / "_static" / "mathjax"


def source():
    """Folder of the installed MathJax; raises RuntimeError when the package is not the one expected."""
    found = importlib.metadata.version(PACKAGE)
    if found != VERSION:
        raise RuntimeError(f"{PACKAGE}: expected version {VERSION}, found {found}")
    dist = importlib.metadata.distribution(PACKAGE)
    bundle = next(file for file in dist.files if file.name == BUNDLE)
    return pathlib.Path(dist.locate_file(bundle)).resolve().parent


def check(folder):
    """Raise RuntimeError unless every script below `folder` has the expected sha256."""
    for name, expected in SHA256.items():
        found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if found != expected:
            raise RuntimeError(f"{folder / name}: expected sha256 {expected}, found {found}")


def main():
    origin = source()
    check(origin)
    wanted = [*SHA256, *(f"{FONTS}/{font.name}" for font in sorted((origin / FONTS).glob("*.woff")))]
    present = {str(p.relative_to(TARGET)) for p in TARGET.rglob("*") if p.is_file()}
    if present != set(wanted):
        shutil.rmtree(TARGET, ignore_errors=True)
        for name in wanted:
            (TARGET / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin / name, TARGET / name)
    check(TARGET)
    print(f"MathJax {MATHJAX}: {len(wanted)} files in {TARGET.name}/")


if __name__ == "__main__":
    sys.exit(main())
