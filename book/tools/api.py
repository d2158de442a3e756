"""Write the API pages' sources to book/api: one page a public module of companion, and a page that lists them."""

import ast
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import chapters


def modules(root=chapters.ROOT):
    """Public modules of companion as (name, file), sorted; a package counts as one."""
    package = pathlib.Path(root) / "companion"
    found = {file.stem: file for file in package.glob("*.py")}
    found |= {file.parent.name: file for file in package.glob("*/__init__.py")}
    return sorted((name, file) for name, file in found.items() if not name.startswith("_") and name != "recipes")


def parts(name, file):
    """Dotted names on a module's page: itself, and the files of a package from which it imports nothing."""
    yield f"companion.{name}"
    if file.name == "__init__.py":
        text = file.read_text(encoding="utf-8")
        for inner in sorted(file.parent.glob("*.py")):
            if not inner.name.startswith("_") and f"from companion.{name}.{inner.stem} import" not in text:
                yield f"companion.{name}.{inner.stem}"


def handed_on(file, listed):
    """Names in a module's ``__all__`` that it has from another module with a page of its own: described there."""
    others, imported, public = {f"companion.{name}" for name, _ in listed}, set(), set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module in others:
            imported |= {alias.name for alias in node.names}
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            public = set(ast.literal_eval(node.value))
    return imported & public


def first_line(file):
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("``", "`").replace("|", "\\|")


def pages(root=chapters.ROOT):
    """Yield (file name, text) for every API page."""
    listed = modules(root)
    rows = "\n".join(f"| [`companion.{name}`]({name}.md) | {first_line(file)} |" for name, file in listed)
    yield (
        "index.md",
        "# The package `companion`\n\nOne page a module. Every function names its source, and lists the equations "
        "whose checks call it.\n\n| module | its one idea |\n|---|---|\n" + rows + "\n",
    )
    for name, file in listed:
        without = ", ".join(sorted(handed_on(file, listed)))
        options = "   :members:\n   :show-inheritance:\n" + (f"   :exclude-members: {without}\n" if without else "")
        directives = "\n".join(f".. automodule:: {part}\n{options}" for part in parts(name, file))
        yield f"{name}.md", f"# `companion.{name}`\n\n```{{eval-rst}}\n{directives}```\n"


def main():
    folder = chapters.ROOT / "book" / "api"
    folder.mkdir(exist_ok=True)
    wanted = dict(pages())
    for old in folder.glob("*.md"):
        if old.name not in wanted:
            old.unlink()
    for name, text in wanted.items():
        file = folder / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
