"""The loaders: what comes out, and what happens when files are missing, cut, damaged or fetched twice at once."""

import gzip
import hashlib
import http.server
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from companion import data

COUNTS = {"train": 7, "test": 5}


def idx(array):
    """An idx file of unsigned bytes, written without the package's help."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture(scope="module")
def files():
    """Four small files with MNIST's names: name -> uncompressed bytes."""
    random = np.random.RandomState(0)
    content = {}
    for split, (images, labels) in data.FILES.items():
        pixels = random.randint(0, 256, (COUNTS[split], 28, 28))
        pixels[0, 0, :2] = 0, 255
        content[images] = idx(pixels)
        content[labels] = idx(random.randint(0, 10, COUNTS[split]))
    return content


class Mirror:
    """A server on this machine: `bodies` maps a path to bytes, or to a function that answers by itself."""

    def __init__(self):
        self.bodies, self.asked = {}, []
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                mirror.asked.append(self.path)
                body = mirror.bodies.get(self.path)
                if callable(body):
                    return body(self)
                if body is None:
                    return self.send_error(404)
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def url(self, prefix):
        return f"http://127.0.0.1:{self.server.server_port}/{prefix}/"

    def serve(self, prefix, files, **changed):
        self.bodies |= {f"/{prefix}/{name}.gz": gzip.compress(content) for name, content in files.items()}
        self.bodies |= {f"/{prefix}/{name}.gz": body for name, body in changed.items()}

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def mirror(monkeypatch, tmp_path, files):
    """A mirror that the package asks, sums that fit its files, an empty cache, and no $COMPANION_DATA."""
    mirror = Mirror()
    monkeypatch.setattr(data, "MIRRORS", (mirror.url("a"), mirror.url("b")))
    monkeypatch.setattr(data, "SHA256", {name: hashlib.sha256(content).hexdigest() for name, content in files.items()})
    monkeypatch.setattr(data, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv("COMPANION_DATA", raising=False)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "*")
    yield mirror
    mirror.close()


def put(folder, files, **changed):
    """Write gzip files into folder/mnist; `changed` replaces some by other bytes, or leaves them out (None)."""
    (folder / "mnist").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        body = changed.get(name, gzip.compress(content))
        if body is not None:
            (folder / "mnist" / f"{name}.gz").write_bytes(body)
    return folder


def pixels_of(files, split):
    return torch.tensor(list(files[data.FILES[split][0]][16:])).reshape(-1, 1, 28, 28)


def assert_right(files, split="test", **options):
    images, labels = data.mnist(split, **options)
    inner = images[:, :, 2:30, 2:30] if images.shape[-1] == 32 else images
    assert torch.equal(((inner.double() + 1) * 127.5).round().long(), pixels_of(files, split))
    assert labels.tolist() == list(files[data.FILES[split][1]][8:])


IMAGES, LABELS = data.FILES["test"]


# ---- digits


def test_digits_are_in_range_and_the_split_is_fixed():
    from sklearn.datasets import load_digits

    images, labels = data.digits()
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.float32 and labels.dtype == torch.int64
    assert images.min() == -1 and images.max() == 1
    assert torch.equal((images[:, 0].double() + 1) * 8, torch.from_numpy(load_digits().images))
    assert labels.tolist() == load_digits().target.tolist()
    train, test = data.digits("train"), data.digits("test")
    assert len(train[0]) == len(train[1]) == 1500 and len(test[0]) == len(test[1]) == 297
    rows = torch.cat([torch.cat([x.flatten(1), y[:, None]], 1) for x, y in (train, test)])
    everything = torch.cat([images.flatten(1), labels[:, None]], 1)
    assert torch.equal(torch.tensor(sorted(rows.tolist())), torch.tensor(sorted(everything.tolist())))
    # Written down once: a split that moves with a library's version would spoil every number measured on it.
    assert test[1][:12].tolist() == [2, 2, 9, 8, 8, 3, 6, 0, 4, 4, 7, 6]
    assert not torch.equal(data.digits("test", seed=1)[1], test[1])


def test_images_are_float32_whatever_the_default():
    torch.set_default_dtype(torch.float64)
    try:
        assert data.digits()[0].dtype == data.mnist("sample")[0].dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_unknown_splits_and_sizes_are_named():
    with pytest.raises(ValueError, match="split .*'train'.*got 'valid'"):
        data.digits("valid")
    with pytest.raises(ValueError, match="split .*'train'.*got 'all'"):
        data.mnist("all")
    with pytest.raises(ValueError, match="size .*28, 32; got 30"):
        data.mnist("test", size=30)


# ---- the idx parser


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4), (0, 28, 28), (0,)])
def test_parse_idx_reads_any_shape(shape):
    array = np.arange(np.prod(shape)).reshape(shape)
    parsed = data.parse_idx(idx(array))
    assert parsed.dtype == torch.uint8 and parsed.tolist() == array.tolist() and parsed.shape == shape


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "unsigned bytes"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x00", "unsigned bytes"),
        (b"<html>", "unsigned bytes"),
        (b"\x00\x00\x08\x03\x00\x00\x00\x02", "header of 16 bytes"),
        (idx(np.zeros((2, 3)))[:-1], r"18 bytes for shape \(2, 3\); got 17"),
        (idx(np.zeros((2, 3))) + b"\x00", r"18 bytes for shape \(2, 3\); got 19"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12, "bytes for shape"),
    ],
)
def test_parse_idx_refuses_what_is_not_idx(content, says):
    with pytest.raises(ValueError, match=says):
        data.parse_idx(content)


# ---- fetching


@pytest.mark.parametrize("split", ["train", "test"])
def test_fetches_once_then_reads_the_cache(mirror, files, tmp_path, split):
    mirror.serve("a", files)
    images, labels = data.mnist(split)
    assert images.shape == (COUNTS[split], 1, 32, 32) and images.dtype == torch.float32 and images.is_contiguous()
    assert images.min() == -1 and images.max() == 1 and labels.dtype == torch.int64
    border = torch.ones(32, 32, dtype=torch.bool)
    border[2:30, 2:30] = False
    assert (images[:, 0, border] == -1).all()
    assert len(mirror.asked) == 2
    mirror.bodies.clear()
    assert_right(files, split)
    assert_right(files, split, size=28)
    assert len(mirror.asked) == 2
    assert sorted(os.listdir(tmp_path / "cache/mnist")) == sorted(f"{name}.gz" for name in data.FILES[split])


def test_cut(mirror, files, tmp_path):
    def cut(handler):
        body = gzip.compress(files[IMAGES])
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:-40])
        handler.connection.shutdown(socket.SHUT_RDWR)

    mirror.serve("a", files, **{IMAGES: cut})
    mirror.serve("b", files, **{IMAGES: gzip.compress(files[IMAGES])[:-40]})
    with pytest.raises(FileNotFoundError, match=IMAGES):
        data.mnist("test")
    assert not (tmp_path / "cache/mnist").exists()
    mirror.serve("b", files)
    assert_right(files)


@pytest.mark.parametrize(
    "damage",
    [
        lambda archive: b"<html>please log in</html>",
        lambda archive: b"",
        lambda archive: archive[:60] + b"\x55\xaa" + archive[62:],
        lambda archive: gzip.compress(gzip.decompress(archive)[:-1] + b"\x01"),
        lambda archive: gzip.compress(gzip.decompress(archive) + b"\x00"),
        lambda archive: gzip.decompress(archive)[:-1],
    ],
)
def test_damaged_download_falls_to_the_second_mirror(mirror, files, tmp_path, damage):
    mirror.serve("a", files, **{IMAGES: damage(gzip.compress(files[IMAGES]))})
    with pytest.raises(FileNotFoundError, match="sha256|broken gzip"):
        data.mnist("test")
    assert not (tmp_path / "cache").exists()
    mirror.serve("b", files)
    assert_right(files)
    assert mirror.asked[-3:] == [f"/a/{IMAGES}.gz", f"/b/{IMAGES}.gz", f"/a/{LABELS}.gz"]


def test_missing_on_one_mirror_and_plain_on_the_other(mirror, files):
    mirror.serve("b", files)
    mirror.bodies[f"/b/{LABELS}.gz"] = files[LABELS]  # a proxy that unpacks on the way
    assert_right(files)
    assert len(mirror.asked) == 4
    assert_right(files)
    assert len(mirror.asked) == 4


def test_no_network_says_what_to_put_where(monkeypatch, mirror, files, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    monkeypatch.setattr(data, "MIRRORS", (nowhere,))
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError) as caught:
        data.mnist("test")
    for part in (nowhere, str(tmp_path / "cache" / "mnist"), str(tmp_path / "absent"), "digits()", *files):
        assert part in str(caught.value)
    put(tmp_path / "absent", files)
    assert_right(files)


def test_a_mirror_that_trickles_or_floods_is_left(monkeypatch, mirror, files):
    def trickle(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(400):
            handler.wfile.write(b"\x1f")
            time.sleep(0.02)

    mirror.serve("a", files, **{IMAGES: trickle})
    mirror.serve("b", files)
    monkeypatch.setattr(data, "DEADLINE", 0.2)
    start = time.monotonic()
    assert_right(files)
    assert time.monotonic() - start < 4
    monkeypatch.setattr(data, "LARGEST", 100)
    with pytest.raises(OSError, match="more than 100 bytes"):
        data._download(f"{data.MIRRORS[1]}{IMAGES}.gz")


def test_a_silent_mirror_is_left(monkeypatch, mirror, files):
    mirror.serve("a", files, **{IMAGES: lambda handler: time.sleep(2)})
    mirror.serve("b", files)
    monkeypatch.setattr(data, "TIMEOUT", 0.2)
    start = time.monotonic()
    assert_right(files)
    assert time.monotonic() - start < 1.9


def test_a_mirror_that_does_not_speak_http_is_left(mirror, files):
    mirror.serve("a", files, **{IMAGES: lambda handler: handler.wfile.write(b"220 mail.example ready\r\n")})
    mirror.serve("b", files)
    assert_right(files)


def test_a_gzip_that_swells_is_not_unpacked_whole(monkeypatch, files):
    monkeypatch.setattr(data, "LARGEST", 1 << 20)
    with pytest.raises(ValueError, match=r"\(1048576 bytes\)"):
        data._verified(IMAGES, gzip.compress(bytes(1 << 22)))


# ---- the cache


def test_damaged_cache_is_fetched_again_and_replaced(mirror, files, tmp_path):
    put(tmp_path / "cache", files, **{IMAGES: gzip.compress(files[IMAGES])[:-9]})
    with pytest.raises(FileNotFoundError, match="broken gzip"):
        data.mnist("test")
    mirror.serve("a", files)
    assert_right(files)
    assert mirror.asked == [f"/{which}/{IMAGES}.gz" for which in "aba"]
    mirror.bodies.clear()
    assert_right(files)


def test_plain_files_and_a_root_of_ones_own(mirror, files, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", str(put(tmp_path / "given", files, **{IMAGES: b"bad"})))
    (tmp_path / "own" / "mnist").mkdir(parents=True)
    for name in data.FILES["test"]:
        (tmp_path / "own" / "mnist" / name).write_bytes(files[name])
    assert_right(files, root=tmp_path / "own")
    assert_right(files, root=str(tmp_path / "own"))
    assert not mirror.asked
    mirror.serve("a", files)
    assert_right(files, "train", root=tmp_path / "own")
    assert len(os.listdir(tmp_path / "own" / "mnist")) == 4 and not (tmp_path / "cache").exists()


def test_damaged_file_in_companion_data_is_an_error_and_is_left_alone(mirror, files, tmp_path, monkeypatch):
    bad = gzip.compress(files[IMAGES][:-1] + b"\x01")
    given = put(tmp_path / "given", files, **{IMAGES: bad})
    monkeypatch.setenv("COMPANION_DATA", str(given))
    mirror.serve("a", files)
    with pytest.raises(ValueError, match=r"COMPANION_DATA.*damaged.*sha256") as caught:
        data.mnist("test")
    assert str(given / "mnist" / f"{IMAGES}.gz") in str(caught.value)
    assert not mirror.asked and (given / "mnist" / f"{IMAGES}.gz").read_bytes() == bad


def test_companion_data_comes_first_and_may_be_partial(mirror, files, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", str(put(tmp_path / "given", files, **{LABELS: None})))
    put(tmp_path / "cache", files, **{IMAGES: b"never read", LABELS: None})
    mirror.serve("a", files)
    assert_right(files)
    assert mirror.asked == [f"/a/{LABELS}.gz"]
    assert len(os.listdir(tmp_path / "given/mnist")) == 3


@pytest.mark.parametrize("where", ["cache", "cache/mnist", f"cache/mnist/{IMAGES}.gz/x"])
def test_unwritable_cache_warns_and_goes_on_from_memory(mirror, files, tmp_path, where):
    """A file where a folder should be, or a folder where the file should be: no permission bits, which root ignores."""
    (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / where).write_text("in the way")
    mirror.serve("a", files)
    with pytest.warns(RuntimeWarning, match="could not be written.*memory"):
        assert_right(files)
    assert not list(tmp_path.rglob("*.part"))
    assert (tmp_path / where).read_text() == "in the way"


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_interrupted_while_storing_leaves_nothing_behind(monkeypatch, mirror, files, tmp_path, step):
    whole = Path.write_bytes

    def half(self, body):
        whole(self, body[: len(body) // 2])
        raise KeyboardInterrupt

    def never(*_):
        raise KeyboardInterrupt

    mirror.serve("a", files)
    with monkeypatch.context() as patch:
        patch.setattr(*((Path, "write_bytes", half) if step == "write_bytes" else (os, "replace", never)))
        with pytest.raises(KeyboardInterrupt):
            data.mnist("test")
    assert os.listdir(tmp_path / "cache" / "mnist") == []
    assert_right(files)


TWO = """
import sys
from companion import data
data.MIRRORS, data.SHA256 = ({url!r},), {sums!r}
images, labels = data.mnist("test", root={root!r})
print(len(images), int(labels.sum()))
"""


def test_two_processes_fetch_at_once(mirror, files, tmp_path):
    """Each answer about the images waits until both have asked, so that neither finds the other's file."""
    both = threading.Barrier(2)

    def wait(handler):
        both.wait(120)
        body = gzip.compress(files[IMAGES])
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    mirror.serve("a", files, **{IMAGES: wait})
    code = "import companion.data as data; data.TIMEOUT = 120\n" + TWO.format(
        url=data.MIRRORS[0], sums=data.SHA256, root=str(tmp_path / "cache")
    )
    run = [sys.executable, "-W", "error::RuntimeWarning", "-c", code]
    place = {"cwd": Path(data.__file__).parents[1], "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(run, **place) for _ in range(2)]
    answers = [process.communicate(timeout=180) for process in processes]
    total = sum(files[LABELS][8:])
    assert [out.split() for out, _ in answers] == [[str(COUNTS["test"]), str(total)]] * 2, answers
    assert mirror.asked.count(f"/a/{IMAGES}.gz") == 2
    assert sorted(os.listdir(tmp_path / "cache/mnist")) == sorted(f"{name}.gz" for name in data.FILES["test"])
    mirror.bodies.clear()
    assert_right(files)


def test_cache_folder_is_the_users():
    import platformdirs

    assert data.cache_folder() == Path(platformdirs.user_cache_dir("reversing-the-noise", appauthor=False))


# ---- the real files, where the environment names them


@pytest.mark.skipif("COMPANION_DATA" not in os.environ, reason="COMPANION_DATA names no folder with mnist/")
@pytest.mark.parametrize(
    ("split", "count", "first"), [("train", 60000, [5, 0, 4, 1, 9]), ("test", 10000, [7, 2, 1, 0, 4])]
)
def test_real_mnist(split, count, first):
    images, labels = data.mnist(split)
    assert images.shape == (count, 1, 32, 32) and labels.shape == (count,)
    assert labels[:5].tolist() == first and sorted(labels.unique().tolist()) == list(range(10))
    inner = (images[:, :, 2:30, 2:30] + 1) / 2
    published = {"train": (0.1307, 0.3081), "test": (0.1325, 0.3105)}[split]  # mean and deviation, to four places
    assert inner.double().mean().item() == pytest.approx(published[0], abs=1e-4)
    assert inner.double().std().item() == pytest.approx(published[1], abs=1e-4)


# ---- the sample that ships


def test_the_sample_needs_neither_files_nor_a_network(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "absent"))
    images, labels = data.mnist("sample")
    assert images.shape == (100, 1, 32, 32) and images.dtype == torch.float32 and labels.dtype == torch.int64
    assert images.min() == -1 and images.max() == 1
    assert labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9] and labels.unique().tolist() == list(range(10))
    levels = (images.double() + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-4
    small, same = data.mnist("sample", size=28, root=tmp_path)
    assert torch.equal(small, images[:, :, 2:30, 2:30]) and torch.equal(same, labels)
    assert not mirror.asked and not list(tmp_path.iterdir())
    assert data.SAMPLE.stat().st_size < 30_000
    assert "CC BY-SA 3.0" in (data.SAMPLE.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.skipif("COMPANION_DATA" not in os.environ, reason="COMPANION_DATA names no folder with mnist/")
@pytest.mark.parametrize("size", [28, 32])
def test_the_sample_is_the_start_of_the_test_images(size):
    for sample, whole in zip(data.mnist("sample", size=size), data.mnist("test", size=size), strict=True):
        assert torch.equal(sample, whole[:100])


def test_all_that_is_no_python_goes_into_the_wheel():
    package = Path(data.__file__).parent
    project = package.parent / "pyproject.toml"
    if not project.exists():
        pytest.skip("not a source tree")
    listed = re.search(r"^companion = \[(.*?)\]", project.read_text(encoding="utf-8"), re.M | re.S)[1]
    declared = {path for pattern in re.findall(r'"([^"]+)"', listed) for path in package.glob(pattern)}
    shipped = {path for path in package.rglob("*.*") if path.suffix not in (".py", ".pyc") and path.is_file()}
    assert shipped <= declared, sorted(shipped - declared)
    assert all(list(package.glob(pattern)) for pattern in re.findall(r'"([^"]+)"', listed)), "a pattern matches nothing"


def test_the_loader_costs_no_heavy_import():
    code = (
        "import sys, companion.data, companion.metrics\n"
        "print(sorted({'sklearn', 'scipy', 'platformdirs', 'matplotlib'} & set(sys.modules)))"
    )
    place = Path(data.__file__).parents[1]
    found = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, timeout=120)
    assert found.stdout.strip() == "[]", found
