"""Execute the chapters in parallel into Jupyter Book's cache, and fail loudly where one of them fails.

jupyter-cache looks at code cells alone. The cache is therefore emptied when the package, the pins or Python change.
"""

import argparse
import copy
import hashlib
import logging
import multiprocessing
import os
import pathlib
import platform
import shutil
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import chapters

BUILD = chapters.ROOT / "_build"
CACHE = BUILD / ".jupyter_cache"


def key(root=chapters.ROOT):
    """Hash of everything outside the notebooks that decides what a chapter shows."""
    digest = hashlib.sha256(platform.python_version().encode())
    files = [root / "constraints.txt", *sorted((root / "companion").rglob("*"))]
    for file in files:
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def quiet_environment():
    """One thread a kernel, no progress bars, and no settings of the user's own Jupyter or IPython."""
    home = tempfile.mkdtemp(prefix="jupyter-")
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        os.environ[name] = os.path.join(home, name.lower())
    profile = pathlib.Path(os.environ["IPYTHONDIR"], "profile_default")
    profile.mkdir(parents=True)
    (profile / "ipython_kernel_config.py").write_text("get_config().IPKernelApp.log_level = 40\n")
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TQDM_DISABLE="1", PYTHONWARNINGS="default")
    os.environ.pop("PYTHONPATH", None)
    return home


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=int, default=300, help="seconds a cell may take")
    options = parser.parse_args()
    from jupyter_cache import get_cache

    stamp = BUILD / ".jupyter_cache.key"
    if CACHE.exists() and (not stamp.exists() or stamp.read_text() != key()):
        print("the package, the pins or Python changed: emptying the execution cache")
        shutil.rmtree(CACHE)
    BUILD.mkdir(exist_ok=True)
    stamp.write_text(key())
    home = quiet_environment()
    try:
        return fill(get_cache(CACHE), options.jobs, options.timeout)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def one(data):
    """Execute one chapter into the cache; (0, its path) when all went well."""
    from jupyter_cache.executors.basic import ExecutionWorkerTempSerial

    class Worker(ExecutionWorkerTempSerial):
        @staticmethod
        def execute(project_nb, data):
            # the kernel writes its own display name into the notebook, by which the cache would not find it again
            kernel = copy.deepcopy(project_nb.nb.metadata.get("kernelspec"))
            result = ExecutionWorkerTempSerial.execute(project_nb, data)
            if kernel:
                project_nb.nb.metadata["kernelspec"] = kernel
            return result

    return Worker(logging.getLogger("execute"))(data)


def fill(cache, jobs, timeout):
    """Execute what the cache does not have, `jobs` chapters at a time, each in an empty folder; 1 if any failed."""
    from jupyter_cache.executors.basic import ProcessData

    for record in cache.list_project_records():
        cache.remove_nb_from_project(record.pk)
    for path in chapters.paths():
        cache.add_nb_to_project(str(path))
    waiting = cache.list_unexecuted()
    print(f"{len(chapters.paths())} chapters, {len(waiting)} to execute", flush=True)
    if not waiting:
        return 0
    start, failed = time.monotonic(), 0
    work = [ProcessData(record.pk, record.uri, cache, timeout, False) for record in waiting]
    with multiprocessing.Pool(min(jobs, len(work))) as pool:
        for code, uri in pool.imap_unordered(one, work):
            name = pathlib.Path(uri).stem
            if code == 0:
                print(f"  {name}: {cache.get_cached_project_nb(uri).data['execution_seconds']:.1f} s", flush=True)
            else:
                failed += 1
                why = cache.get_project_record(uri).traceback or "see the message above"
                print(f"\nFAILED: {name}\n{why}", file=sys.stderr, flush=True)
    print(f"executed in {time.monotonic() - start:.1f} s", flush=True)
    return 1 if failed or cache.list_unexecuted() else 0


if __name__ == "__main__":
    sys.exit(main())
