"""The set-up cell, the first code cell of every chapter: its text for a given address. The one place it is written."""

# What a hosted notebook may lack. Never torch, numpy or ipywidgets: the host's own versions belong together.
SMALL = "jaxtyping safetensors platformdirs POT"

UNSET = """\
# Set-up, the same in every chapter: it needs the book's package, `companion`.
try:
    import companion
except ModuleNotFoundError as error:
    if error.name != "companion":
        raise
    import sys

    raise ModuleNotFoundError(
        f"The package `companion` is not installed for the Python that this kernel runs, {sys.executable}. "
        f"In a clone of the book's repository run `{sys.executable} -m pip install .` (or `make setup`, and choose "
        "the kernel of its .venv), restart the kernel, and run this cell again. The cell does not fetch it by itself: "
        "the book has no public address yet, and code should not be installed from an address that nobody owns."
    ) from None

print(companion.about())"""

SET = """\
# Set-up, the same in every chapter: it needs the book's package, `companion`.
try:
    import companion
except ModuleNotFoundError as error:
    if error.name != "companion":
        raise
    %pip install -q {small}
    %pip install -q --no-deps "reversing-the-noise @ git+{url}"
    import companion

print(companion.about())"""

BADGE_ID = "open-in-colab"
BADGE = (
    "[Open this chapter in Colab](https://colab.research.google.com/github/{repository}/blob/{branch}/notebooks/{name})"
)


def cell(url):
    """Source of the set-up cell for a repository's address; an empty address gives the cell that only explains."""
    return SET.format(url=url, small=SMALL) if url else UNSET


def badge(url, branch, name):
    """Source of the Colab line above the set-up cell; empty unless the address is a repository on GitHub."""
    host = "https://github.com/"
    if not url.startswith(host):
        return ""
    return BADGE.format(repository=url.removeprefix(host).removesuffix(".git"), branch=branch, name=name)
