"""Loaders: pictures as tensors in [-1, 1].

``scenes`` are drawn by the package, and ``companion.scenes`` says what is in them. The others are real: ``digits``
comes with scikit-learn, and a hundred images of ``mnist`` with this package; neither needs a network. The rest of
``mnist`` is read from the four canonical files in a folder, or they are fetched once; whatever the way, their bytes
are held against a sha256 before anything uses them.
"""

import gzip
import hashlib
import http.client
import io
import math
import os
import time
import urllib.request
import uuid
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from companion import _checks as check
from companion.scenes import scenes

__all__ = ["cache_folder", "digits", "mnist", "parse_idx", "scenes"]

# Mirrors compress the same bytes differently, so the sums are those of the uncompressed files.
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
SAMPLE = Path(__file__).parent / "samples" / "mnist.npz"
TIMEOUT = 10.0  # seconds without a byte from a mirror
DEADLINE = 300.0  # seconds for one file from one mirror
LARGEST = 1 << 26  # bytes; the largest file is 47,040,016 long, and a bad archive must not fill the memory


def digits(split: str = "all", *, seed: int = 0) -> tuple[Float32[Tensor, "n 1 8 8"], Int64[Tensor, " n"]]:
    """Return scikit-learn's 1,797 scanned digits, or a fixed part of them.

    Images are (n, 1, 8, 8), float32 in [-1, 1], where -1 is paper and 1 is ink: grey level k of the 17 becomes k/8 - 1.
    Labels are (n,), int64 in 0…9. ``"all"`` keeps scikit-learn's order; ``"train"`` (1,500) and ``"test"`` (297) cut
    one permutation, which ``seed`` fixes on every machine. The split mixes writers: a test image has training images by
    the same hand.
    Raises ValueError for an unknown split. Source: Alpaydin & Kaynak 1998, UCI repository.
    """
    parts = {"all": slice(None), "train": slice(1500), "test": slice(1500, None)}
    check.one_of("split", split, parts)
    from sklearn.datasets import load_digits

    scans = load_digits()
    count = len(scans.target)
    order = np.arange(count) if split == "all" else np.random.RandomState(seed).permutation(count)[parts[split]]
    images = torch.from_numpy(scans.images[order]).to(torch.float32).unsqueeze(1) / 8 - 1
    return images, torch.from_numpy(scans.target[order]).to(torch.int64)


def mnist(
    split: str = "train", *, size: int = 32, root: str | os.PathLike | None = None
) -> tuple[Float32[Tensor, "n 1 size size"], Int64[Tensor, " n"]]:
    """Return the MNIST digits of one split: 60,000 to train on, 10,000 to test with, or a sample of 100.

    Images are (n, 1, size, size), float32 in [-1, 1], where -1 is paper and 1 is ink: the byte k becomes k/127.5 - 1,
    and size 32 has a border of two pixels of paper round the 28 by 28 original. Labels are (n,), int64 in 0…9.
    ``"sample"`` is the first 100 of the test images; it ships with the package and needs neither files nor a network.
    For the others the files, gzip or plain, are looked for in ``mnist/`` inside the folder that $COMPANION_DATA names,
    then in ``mnist/`` inside ``cache_folder()``, then fetched and kept there. A ``root`` stands in for both of these
    folders. A damaged file in $COMPANION_DATA is an error; a damaged one in the cache (or in ``root``) is fetched again
    and replaced. A folder that cannot be written to gives a RuntimeWarning, and the data are used from memory.
    Raises ValueError for an unknown split or size and for a damaged file in $COMPANION_DATA, FileNotFoundError where
    the files are neither here nor to be had. Source: LeCun, Cortes & Burges, CC BY-SA 3.0.
    """
    check.one_of("split", split, (*FILES, "sample"))
    check.one_of("size", size, (28, 32))
    if split == "sample":
        with np.load(SAMPLE) as stored:
            pixels, labels = (torch.from_numpy(stored[name]) for name in ("images", "labels"))
    else:
        pixels, labels = (parse_idx(_content(name, root)) for name in FILES[split])
    images = torch.full((len(pixels), 1, size, size), -1.0, dtype=torch.float32)
    border = (size - 28) // 2
    images[:, 0, border : border + 28, border : border + 28].copy_(pixels).div_(127.5).sub_(1)
    return images, labels.to(torch.int64)


def cache_folder() -> Path:
    """Return the user's cache folder for this book (``platformdirs``), which need not exist yet."""
    import platformdirs

    return platformdirs.user_cache_path("reversing-the-noise", appauthor=False)


def parse_idx(content: bytes) -> UInt8[Tensor, "..."]:
    """Return the array in an uncompressed idx file of unsigned bytes, in the file's own shape.

    The header is 0, 0, 8 (unsigned bytes), the number of dimensions, then each length as a big-endian 32-bit integer.
    Raises ValueError where the header or the length of the file is not as it should be.
    """
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(f"content must be an idx file of unsigned bytes (00 00 08 …); got {content[:4].hex(' ')!r}")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(f"content must hold an idx header of {start} bytes; got {len(content)} bytes in all")
    shape = tuple(int(length) for length in np.frombuffer(content[4:start], ">u4"))
    if len(content) != start + math.prod(shape):
        raise ValueError(f"content must have {start + math.prod(shape)} bytes for shape {shape}; got {len(content)}")
    return torch.from_numpy(np.frombuffer(content[start:], np.uint8).reshape(shape).copy())


def _content(name: str, root: str | os.PathLike | None) -> bytes:
    """Return the verified, uncompressed bytes of one MNIST file, from the first place that has them."""
    given = os.environ.get("COMPANION_DATA")
    looked = []
    if root is None and given:
        looked.append(Path(given).expanduser() / "mnist")
        for path in _present(looked[0], name):
            try:
                return _verified(name, path.read_bytes())
            except ValueError as error:
                raise ValueError(f"{path} ($COMPANION_DATA) is damaged: {error}; replace or remove it") from error
    looked.append(Path(cache_folder() if root is None else root).expanduser() / "mnist")
    damaged = []
    for path in _present(looked[-1], name):
        try:
            return _verified(name, path.read_bytes())
        except (OSError, ValueError) as error:
            damaged.append(f"{path}: {error}")
    return _fetch(name, looked, damaged)


def _present(folder: Path, name: str) -> list[Path]:
    return [path for path in (folder / f"{name}.gz", folder / name) if os.path.isfile(path)]


def _verified(name: str, archive: bytes) -> bytes:
    """Unpack a file, gzip or plain by its first bytes whatever its name says, and hold it against its sha256."""
    content = archive
    if archive[:2] == b"\x1f\x8b":
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(archive)) as stream:
                content = stream.read(LARGEST)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"broken gzip: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[name]:
        raise ValueError(f"expected sha256 {SHA256[name]} when uncompressed, got {found} ({len(content)} bytes)")
    return content


def _fetch(name: str, looked: list[Path], troubles: list[str]) -> bytes:
    """Fetch one file from the first mirror that has it right, keep it in the last folder, and return its content."""
    troubles = list(troubles)
    for mirror in MIRRORS:
        try:
            archive = _download(f"{mirror}{name}.gz")
            content = _verified(name, archive)
        except (OSError, http.client.HTTPException, ValueError) as error:
            troubles.append(f"{mirror}{name}.gz: {error or type(error).__name__}")
            continue
        _store(looked[-1] / f"{name}.gz", archive)
        return content
    raise FileNotFoundError(
        f"the MNIST file {name} is not here and could not be fetched.\n"
        + "".join(f"  looked in {folder}\n" for folder in looked)
        + "".join(f"  tried {trouble}\n" for trouble in troubles)
        + f"To use MNIST without a network, put {', '.join(SHA256)} (each plain, or gzip with .gz added) "
        f"in {looked[-1]}, or in a folder mnist inside the one that $COMPANION_DATA names. Without them the chapters "
        'go on with what ships: companion.data.digits(), mnist("sample") and the trained weights need no network.'
    )


def _download(url: str) -> bytes:
    """Return a body, giving up after TIMEOUT seconds of silence, DEADLINE seconds in all, or LARGEST bytes."""
    deadline = time.monotonic() + DEADLINE
    body = bytearray()
    request = urllib.request.Request(url, headers={"User-Agent": "reversing-the-noise"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        while chunk := response.read1(1 << 16):
            body += chunk
            if len(body) > LARGEST:
                raise OSError(f"more than {LARGEST} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(body)} bytes after {DEADLINE:g} s")
    return bytes(body)


def _store(path: Path, archive: bytes) -> None:
    """Keep verified bytes under ``path``: whole, by a rename, or not at all and with a warning.

    The temporary name is this call's own, so that two processes which fetch at once both end with a whole file.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(archive)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(f"{path} could not be written ({error}); using it from memory", RuntimeWarning, stacklevel=2)
