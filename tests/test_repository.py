"""The repository as a whole: lists that must agree, files that must exist, words that must not stand in it."""

import ast
import functools
import os
import re
import shutil
import stat
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import companion

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "tools"))
import chapters


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


@functools.cache
def tracked():
    """Files of the repository, those not yet added included; what git ignores is left out."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a clone")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    return sorted(name for name in set(listed) if name and (ROOT / name).is_file())


PROJECT = tomllib.loads(text("pyproject.toml"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = [Requirement(line) for line in text("constraints.txt").splitlines() if line and not line.startswith("#")]
PINNED = {canonicalize_name(pin.name): Version(next(iter(pin.specifier)).version) for pin in PINS}
ENVIRONMENT = yaml.safe_load(text("environment.yml"))
HOOKS = [hook for repo in yaml.safe_load(text(".pre-commit-config.yaml"))["repos"] for hook in repo["hooks"]]
WORKFLOWS = sorted(path.name for path in (ROOT / ".github" / "workflows").iterdir())


def names(lines):
    return {canonicalize_name(Requirement(line).name) for line in lines}


# what the README says


def test_the_readme_maps_every_module():
    table = text("README.md").split("| module of `companion` |")[1].split("\n\n")[0]
    mapped = [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert len(mapped) == len(set(mapped)), "a module stands in the map twice"
    parts = {name.split("/")[1] for name in tracked() if name.startswith("companion/") and not name.endswith(".json")}
    parts |= {name.split("/")[1] for name in tracked() if re.match(r"companion/\w+/", name)}
    assert set(mapped) == {part.removesuffix(".py") for part in parts if not part.startswith("_")}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if not re.match(r"https?:|mailto:|#", target):
            assert target.split("#")[0] in tracked(), f"{page} links {target}, which is not in the repository"


def test_licences():
    assert PROJECT["license"] == "MIT" and text("LICENSE").startswith("MIT License")
    assert PROJECT["authors"][0]["name"] in text("LICENSE") and PROJECT["authors"][0]["name"] in text("LICENSE-text")
    assert "(CC BY 4.0)" in text("LICENSE-text")
    assert "https://creativecommons.org/licenses/by/4.0/legalcode" in text("LICENSE-text")
    assert "(LICENSE)" in text("README.md") and "(LICENSE-text)" in text("README.md")


# versions and requirements


def test_one_version():
    citation = yaml.safe_load(text("CITATION.cff"))
    newest = re.search(r"^## \[(\d[^]]*)\]", text("CHANGELOG.md"), re.M)
    found = [PROJECT["version"], citation["version"], citation["preferred-citation"]["version"], newest[1]]
    assert {str(version) for version in found} == {companion.__version__}


def test_citation_is_complete():
    citation = yaml.safe_load(text("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0" and citation["type"] in ("software", "dataset")
    assert all(citation[key] for key in ("message", "title", "authors"))
    assert citation["authors"] == citation["preferred-citation"]["authors"] == PROJECT["authors"]
    assert citation["license"] == PROJECT["license"] and set(citation["keywords"]) <= set(PROJECT["keywords"])


DISTRIBUTIONS = {"sklearn": "scikit-learn", "ot": "pot", "PIL": "pillow", "yaml": "pyyaml", "bs4": "beautifulsoup4"}
PEERS = {"diffusers"}  # what benchmarks compare with where it is installed
ALONGSIDE = {"pillow": "matplotlib", "cycler": "matplotlib"}  # matplotlib requires them, whatever its version


def third_party(source):
    """Distributions that a Python text imports, those inside functions included."""
    local = {"companion", *sys.stdlib_module_names, *(Path(name).stem for name in tracked() if name.endswith(".py"))}
    for node in ast.walk(ast.parse(source)):
        found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            found = [node.module]
        for name in {name.split(".")[0] for name in found} - local:
            yield canonicalize_name(DISTRIBUTIONS.get(name, name))


def sources(*places):
    """(file, Python text) of every script and notebook below the named folders."""
    for name in tracked():
        if name.split("/")[0] in places and name.endswith(".py"):
            yield name, text(name)
        elif name.split("/")[0] in places and name.endswith(".ipynb"):
            for cell in chapters.read(ROOT / name)["cells"]:
                if cell["cell_type"] == "code":
                    yield name, chapters.python(cell["source"])


def test_what_package_and_chapters_import_is_declared():
    declared = names(PROJECT["dependencies"])
    for file, source in sources("companion", "notebooks"):
        for name in third_party(source):
            known = declared | (PEERS if file.startswith("companion/bench/") else set())
            assert ALONGSIDE.get(name, name) in known, f"{file} imports {name}, pyproject.toml lacks it"
    for name, owner in ALONGSIDE.items():
        assert name in names(line for line in metadata.requires(owner) if "extra ==" not in line)


def test_what_tools_and_tests_import_is_pinned():
    for file, source in sources("book", "tests"):
        for name in third_party(source):
            assert name in {*PINNED, "tomli", "tomllib"}, f"{file} imports {name}, which constraints.txt does not pin"


@pytest.mark.parametrize("group", ["dependencies", *EXTRAS])
def test_pins_satisfy_requirements(group):
    for line in PROJECT["dependencies"] if group == "dependencies" else EXTRAS[group]:
        wanted = Requirement(line)
        pin = PINNED.get(canonicalize_name(wanted.name))
        assert pin is not None, f"constraints.txt does not pin {wanted.name}"
        assert wanted.specifier.contains(pin, prereleases=True), f"{line}, but constraints.txt pins {pin}"


def test_pins_are_exact_and_single():
    assert all(re.fullmatch(r"==[^,*]+", str(pin.specifier)) and pin.url is None for pin in PINS)
    assert len(PINNED) == len(PINS)


def test_the_package_has_floors_and_no_pins():
    """The workflow for the oldest versions takes them from here."""
    for line in PROJECT["dependencies"]:
        assert re.fullmatch(r"[\w-]+>=[\d.]+", line), line


def serve(folder):
    """What `make serve` says in a folder, with a server that ends at once."""
    command = ["make", "--no-print-directory", "-f", str(ROOT / "Makefile"), "serve", "PY=true"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
def test_serve_says_when_the_site_is_stale(tmp_path):
    for name in (
        "notebooks/01_x.ipynb",
        "book/index.md",
        "book/api/a.md",
        "companion/toy.py",
        "_config.yml",
        "_toc.yml",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1e9, 1e9))
    assert serve(tmp_path).returncode != 0, "there is nothing to serve yet"
    page = tmp_path / "_build" / "html" / "index.html"
    page.parent.mkdir(parents=True)
    page.touch()
    os.utime(page, (2e9, 2e9))
    fresh = serve(tmp_path)
    assert fresh.returncode == 0 and "older" not in fresh.stderr and "http://localhost:8000" in fresh.stdout
    os.utime(tmp_path / "book/api/a.md", (3e9, 3e9))  # written by the build
    assert "older" not in serve(tmp_path).stderr
    os.utime(tmp_path / "companion/toy.py", (3e9, 3e9))
    stale = serve(tmp_path)
    assert stale.returncode == 0 and stale.stderr.count("\n") == 1 and "older than its sources" in stale.stderr


def extras_in(source):
    return [set(found.split(",")) for found in re.findall(r"-e '?\.\[([\w,]+)\]", source)]


def test_environments_agree():
    conda = [entry for entry in ENVIRONMENT["dependencies"] if isinstance(entry, str)]
    (pip,) = (entry["pip"] for entry in ENVIRONMENT["dependencies"] if isinstance(entry, dict))
    assert ENVIRONMENT["name"] == PROJECT["name"] and "-c constraints.txt" in pip
    (installed,) = extras_in(text("book/tools/setup.sh"))
    assert extras_in("\n".join(pip)) == [installed] and installed <= set(EXTRAS)
    versions = dict(re.split("=+", entry, maxsplit=1) for entry in conda if "=" in entry)
    python = versions.pop("python")
    assert f"(Python {python})" in text("constraints.txt") or f"on Python {python}." in text("constraints.txt")
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{python}.0")
    for name, version in versions.items():
        pin = PINNED.get(canonicalize_name(name))
        assert pin is None or SpecifierSet(f"=={version}.*").contains(pin), f"environment.yml: {name}={version}, {pin}"


# workflows, hooks and scripts


def targets():
    return set(re.findall(r"^([a-z]+):(?!=)", text("Makefile"), re.M)) | set(
        re.search(r"^STAGES := (.*)$", text("Makefile"), re.M)[1].split()
    )


def made(source):
    """The targets a text asks of make: those of a command line, up to a variable or the end."""
    for words in re.findall(r"(?:^|`|exec )\s*make((?: [a-z]+\b(?!=))+)", source, re.M):
        yield from words.split()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", ".ci/run", *WORKFLOWS])
def test_make_targets_exist(name):
    source = text(f".github/workflows/{name}" if name in WORKFLOWS else name)
    assert set(made(source)) <= targets()
    assert name not in ("README.md", ".ci/run", "tests.yml") or "test" in made(source)


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "Makefile", *WORKFLOWS])
def test_named_paths_exist(name):
    source = text(f".github/workflows/{name}" if name in WORKFLOWS else name)
    for path in re.findall(r"(?<![\w./$%-])(?:book|companion|notebooks|tests)/[\w./*-]*\w", source):
        made_later = path.startswith(("book/api", "book/_static/mathjax"))
        elided = re.search(r"NN_|01_$", path)
        assert made_later or elided or list(ROOT.glob(path)), f"{name} names {path}"
    for module in re.findall(r"python -m (companion[\w.]*)", source):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"{name} runs {module}"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows(name):
    workflow = yaml.safe_load(text(f".github/workflows/{name}"))
    assert "write" not in str(workflow["permissions"]), "the right to write belongs to the one job that needs it"
    assert workflow["defaults"]["run"]["shell"] == "bash" and workflow["concurrency"]
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] and job["runs-on"]
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            if "run" in step:
                assert step["run"].startswith("set -euo pipefail\n"), step["run"]
                checked = subprocess.run(["bash", "-n"], input=re.sub(r"\$\{\{.*?\}\}", "x", step["run"]).encode())
                assert checked.returncode == 0, step["run"]
            else:
                assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]), step["uses"]


def test_workflows_call_each_other_by_name():
    called = yaml.safe_load(text(".github/workflows/pages.yml"))[True]["workflow_run"]["workflows"]
    assert called == [yaml.safe_load(text(".github/workflows/tests.yml"))["name"]]


def test_the_oldest_versions_are_tried():
    job = yaml.safe_load(text(".github/workflows/tests.yml"))["jobs"]["systems"]
    pythons = {entry["versions"]: entry["python"] for entry in job["strategy"]["matrix"]["include"]}
    assert PROJECT["requires-python"] == f">={pythons['oldest']}"
    (step,) = (step for step in job["steps"] if step.get("env", {}).get("VERSIONS"))
    command = re.search(r"^ *(sed .*) > versions\.txt$", step["run"], re.M)[1]
    if not shutil.which("sed") or os.name == "nt":
        pytest.skip("no sed")
    oldest = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert oldest.split() == [line.replace(">=", "==") for line in PROJECT["dependencies"]]
    for entry in job["strategy"]["matrix"]["include"]:
        assert set(entry["extras"].split(",")) <= set(EXTRAS)


def test_hooks_call_tools_that_setup_installs():
    installed = names(EXTRAS["test"])
    assert "pre-commit" in installed, "pyproject.toml: the extra `test` lacks pre-commit"
    for hook in HOOKS:
        tool, *rest = hook["entry"].split()
        assert hook["language"] == "system" and tool.startswith(".venv/bin/")
        assert Path(tool).name == "python" or Path(tool).name in installed
        assert Path(tool).name != "python" or (ROOT / rest[0]).is_file()
        assert any(re.search(hook.get("files", ""), name) for name in tracked()), hook["files"]


def test_ci_runs_make_test():
    if os.name == "posix":
        assert (ROOT / ".ci" / "run").stat().st_mode & stat.S_IXUSR
    listed = subprocess.run(["git", "ls-files", "-s", ".ci/run"], cwd=ROOT, capture_output=True, text=True).stdout
    assert listed.startswith("100755") or not listed
    assert "set -euo pipefail" in text(".ci/run") and "test" in made(text(".ci/run"))


def test_yaml_files_parse():
    found = [name for name in tracked() if name.endswith((".yml", ".yaml", ".cff"))]
    assert len(found) >= 8
    for name in found:
        assert isinstance(yaml.safe_load(text(name)), dict | list), name


# what must not stand in the repository

# The brackets keep this file from finding itself.
HOSTS = r"pyp[i]\.org|pythonhoste[d]\.|npmj[s]\.|yarnpk[g]\.|anacond[a]\.|pytorc[h]\.org/whl|debia[n]\.org|crates\.i[o]"
PATHS = r"(?<![\w.*:}])/(?:work|root|tmp|home|opt|mnt|srv|Users)/|\b[A-Z]:\\Users"


@pytest.mark.parametrize("what,pattern", [("a package registry", HOSTS), ("a path of one machine", PATHS)])
def test_nothing_belongs_to_one_machine(what, pattern):
    for name in tracked():
        content = (ROOT / name).read_bytes()
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode("utf-8").splitlines(), 1):
            assert not re.search(pattern, line), f"{name}:{number} names {what}: {line.strip()[:100]}"


@pytest.mark.parametrize(
    "line", ["/" + "work/x", "see `/" + "tmp/a`", "https://pypi" + ".org/simple", '"/' + 'root/b"']
)
def test_the_search_for_them_finds_them(line):
    assert re.search(f"{HOSTS}|{PATHS}", line)
