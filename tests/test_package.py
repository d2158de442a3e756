"""The package as a whole: what an import costs, docstrings, lists that must agree."""

import ast
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import companion

ROOT = Path(companion.__file__).parent
MODULES = sorted(m.name for m in pkgutil.walk_packages([str(ROOT)], "companion."))


def test_import_is_light():
    code = "import sys, companion; print(*sorted(m for m in sys.modules if '.' not in m))"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    heavy = {"matplotlib", "ipywidgets", "IPython", "scipy", "sklearn", "safetensors", "platformdirs", "beartype"}
    heavy |= {"torchdiffeq", "ot"}  # SciPy comes with it
    assert "torch" in loaded and not loaded & heavy


def test_modules_are_listed_once():
    files = {p.stem for p in ROOT.glob("*.py") if not p.stem.startswith("_")} | {"nets"}
    assert set(companion._MODULES) == files - {"train"}
    for name in companion._MODULES:
        assert inspect.ismodule(getattr(companion, name))
    with pytest.raises(AttributeError, match="nothing"):
        _ = companion.nothing


@pytest.mark.parametrize("name", MODULES)
def test_public_names_have_docstrings(name):
    path = ROOT.parent / Path(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), name
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name}.{node.name}"


ORDER = (
    "_checks _divergence toy schedules predictions forward denoisers losses times samplers couplings likelihood "
    "fokker_planck scenes nets processes gpu training data metrics latent autoencoding zoo"
)


def test_nothing_imports_upward():
    """A module imports from those before it in this list only."""
    order = ORDER.split()
    for name in order:
        path = ROOT / name / "__init__.py" if (ROOT / name).is_dir() else ROOT / f"{name}.py"
        if not path.exists():
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("companion"):
                parts = node.module.split(".")[1:2] or [alias.name for alias in node.names]
                for part in parts:
                    if part in order and part != name:
                        assert order.index(part) < order.index(name), f"{name} imports {part}"


def test_about_is_one_line():
    assert "\n" not in companion.about() and companion.__version__ in companion.about()
