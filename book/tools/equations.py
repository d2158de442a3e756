"""Write companion/equations.json, the number and chapter of every labelled equation; --check fails when it is stale."""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import chapters


def table(root):
    """The text of equations.json for the notebooks below `root`: sorted, so that equal chapters give equal bytes."""
    found = {}
    for path in chapters.paths(root):
        for equation in chapters.equations(chapters.read(path)):
            found[equation.id] = {"number": equation.number, "notebook": path.stem}
    return json.dumps(dict(sorted(found.items())), indent=1) + "\n"


def is_stale(root):
    """Whether companion/equations.json below `root` differs from what its notebooks say."""
    target = pathlib.Path(root) / "companion" / "equations.json"
    return not target.exists() or target.read_text(encoding="utf-8") != table(root)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the file is stale")
    parser.add_argument("--root", type=pathlib.Path, default=chapters.ROOT)
    options = parser.parse_args()
    if not is_stale(options.root):
        return 0
    if options.check:
        print("companion/equations.json does not match the chapters: run `make equations`", file=sys.stderr)
        return 1
    (options.root / "companion" / "equations.json").write_text(table(options.root), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
