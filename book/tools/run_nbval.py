"""Run every chapter as a reader would who has the notebook and the installed package, and nothing else of the book.

The wheel is built and put into a second environment that sees the tools of .venv through a .pth file, but not its
editable install. The notebooks are copied to an empty folder elsewhere, and nbval runs them there, two at a time.
"""

import argparse
import collections
import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
import xml.etree.ElementTree as ElementTree

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import chapters

BUILD = chapters.ROOT / "_build"
BUDGET = 40  # seconds a chapter may take on one thread

PROBE = """
import sys, companion, pathlib
where = pathlib.Path(companion.__file__).resolve()
assert where.is_relative_to(pathlib.Path(sys.prefix).resolve()), f"companion comes from {where}, not from the wheel"
print(where)
"""


def build_wheel(root=chapters.ROOT):
    """Build the wheel of the tree below `root`, from scratch: setuptools would keep files that are gone."""
    dist = BUILD / "dist"
    for folder in (dist, root / "build"):
        shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(dist), str(root)]
    done = subprocess.run(command, capture_output=True, text=True)
    shutil.rmtree(root / "build", ignore_errors=True)
    if done.returncode:
        sys.exit(f"the wheel could not be built:\n{done.stdout}{done.stderr}")
    return next(dist.glob("*.whl"))


def make_environment(wheel, where=BUILD / "nbval"):
    """A second environment with the wheel, which sees .venv's packages; returns its Python."""
    venv.EnvBuilder(clear=True, symlinks=True, with_pip=False).create(where)
    python = where / "bin" / "python"
    site = next(where.glob("lib/python*/site-packages"))
    (site / "tools.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(pip, check=True)
    return python


def environment(home):
    """The process environment: nothing of the repository, of the user's Python or of the user's Jupyter."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "JUPYTER", "IPYTHON", "VIRTUAL_ENV"))}
    jupyter = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    return (
        kept
        | {name: f"{home}/{name.lower()}" for name in jupyter}
        | {
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "TQDM_DISABLE": "1",
            "COMPANION_QUICK": "1",  # live training is shortened; the site runs it in full
            "PYTHONNOUSERSITE": "1",
            "JUPYTER_PLATFORM_DIRS": "1",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
    )


def kernel_probe(folder):
    """A notebook that fails unless the kernel, too, takes companion from the wheel."""
    cell = {"cell_type": "code", "id": "probe", "metadata": {}, "execution_count": None, "outputs": [], "source": PROBE}
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    notebook = {"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (folder / "99_where_companion_comes_from.ipynb").write_text(json.dumps(notebook))


def run(python, notebooks, jobs, report, probe=True):
    """Run the notebooks in an empty folder; returns nbval's exit code. `report` receives the times as JUnit XML.

    With `probe`, process and kernel must take companion from that Python's own environment.
    """
    with tempfile.TemporaryDirectory(prefix="chapters-") as base:
        folder = pathlib.Path(base) / "notebooks"
        folder.mkdir()
        for notebook in notebooks:
            shutil.copy(notebook, folder)
        env = environment(base)
        if probe:
            kernel_probe(folder)
            subprocess.run([python, "-c", PROBE], cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)
        command = [python, "-m", "pytest", "--nbval-lax", "-q", "-n", str(jobs), "--dist", "loadfile"]
        command += ["-p", "no:cacheprovider", "--nbval-cell-timeout", "300", f"--junitxml={report}", "--rootdir", base]
        return subprocess.run([*command, folder], cwd=folder, env=env).returncode


def failures(report):
    """Names of the notebooks that failed, from nbval's report."""
    cases = ElementTree.parse(report).iter("testcase")
    return {notebook(case) for case in cases if case.find("failure") is not None or case.find("error") is not None}


def notebook(case):
    return case.get("classname", "").replace("/", ".").removesuffix(".ipynb").split(".")[-1]


def timings(report):
    """Seconds a notebook took, from nbval's report."""
    found = collections.Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        found[notebook(case)] += float(case.get("time", 0))
    return {name: round(seconds, 1) for name, seconds in sorted(found.items()) if not name.startswith("99_")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    BUILD.mkdir(exist_ok=True)
    start = time.monotonic()
    python = make_environment(build_wheel())
    print(f"wheel built and installed in {time.monotonic() - start:.1f} s", flush=True)
    report = BUILD / "nbval.xml"
    report.unlink(missing_ok=True)
    code = run(python, chapters.paths(), options.jobs, report)
    if report.exists():
        took = timings(report)
        (BUILD / "timings.json").write_text(json.dumps(took, indent=1) + "\n")
        for name, seconds in took.items():
            print(f"  {name}: {seconds} s" + (f"  OVER the {BUDGET} s a chapter may take" if seconds > BUDGET else ""))
    return code


if __name__ == "__main__":
    sys.exit(main())
