"""Trained models that ship with the book: weights as safetensors, and a card that says how they came to be."""

import hashlib
import json
from pathlib import Path

import torch

from companion import _checks as check
from companion import nets, schedules
from companion.denoisers import Denoiser

FOLDER = Path(__file__).parent / "weights"


def names() -> list[str]:
    """The models that ship."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def card(name: str) -> dict:
    """A model's card: recipe, data, seed, steps, hardware, wall time, metrics, sha256. Raises ValueError if unknown.

    Where it has ``grid``, this is the text that stands for a sample picture, ``NAME.webp`` beside the weights.
    """
    check.one_of("name", name, names())
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def load(name: str, *, device=None) -> Denoiser | torch.nn.Module:
    """A shipped model in evaluation mode, float32, on the given device (default: the CPU).

    It is a ``Denoiser``, or the bare network where its card names no schedule. Raises ValueError for an unknown name
    and RuntimeError when the weights are not those the card names.
    """
    from safetensors.torch import load as from_bytes

    about = card(name)
    stored = (FOLDER / f"{name}.safetensors").read_bytes()
    found = hashlib.sha256(stored).hexdigest()
    if found != about["sha256"]:
        raise RuntimeError(f"{name}.safetensors has sha256 {found}, its card says {about['sha256']}: install again")
    model = build(about["model"])
    net = model.net if isinstance(model, Denoiser) else model
    net.load_state_dict({key: value.float() for key, value in from_bytes(stored).items()})
    return model.float().eval().requires_grad_(False).to(device or "cpu")


def build(model: dict) -> Denoiser | torch.nn.Module:
    """An untrained ``Denoiser`` from a card's description of it: net, schedule, kind; ValueError for an unknown net.

    Without a schedule it is the bare network: a classifier, say.
    """
    check.one_of("net", model["net"]["class"], nets.__all__)
    net = getattr(nets, model["net"]["class"])(**model["net"]["arguments"])
    if "schedule" not in model:
        return net
    schedule = getattr(schedules, model["schedule"]["class"])(**model["schedule"]["arguments"])
    return Denoiser(net, schedule, model["kind"])


def save(name: str, net, about: dict, folder: Path = FOLDER) -> Path:
    """Write a network's weights in half precision and its card; returns the path of the weights.

    ``about`` must hold ``model`` as ``build`` takes it, and ``recipe``, ``data``, ``seed``, ``steps``, ``hardware``,
    ``seconds`` and ``metrics``; parameters, bytes and sha256 are added. Raises ValueError when one is missing.
    """
    from safetensors.torch import save as to_bytes

    missing = {"model", "recipe", "data", "seed", "steps", "hardware", "seconds", "metrics"} - set(about)
    if missing:
        raise ValueError(f"the card lacks {', '.join(sorted(missing))}")
    half = {key: value.detach().cpu().to(torch.float16).contiguous() for key, value in net.state_dict().items()}
    stored = to_bytes(half)
    whole = {
        "name": name,
        **about,
        "parameters": sum(p.numel() for p in net.parameters()),
        "bytes": len(stored),
        "sha256": hashlib.sha256(stored).hexdigest(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    path.write_bytes(stored)
    (folder / f"{name}.json").write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
