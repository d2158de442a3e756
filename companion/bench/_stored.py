"""What every stored result says of its run, and how it is written."""

import datetime
import importlib.metadata
import importlib.util
import json
import platform

import torch

from companion import gpu

CPU = torch.device("cpu")


def provenance(seconds: float, device=CPU, peers: tuple[str, ...] = ()) -> dict:
    """Date, machine, versions and duration; ``device`` is where the run was, ``peers`` are packages compared with."""
    others = {name: importlib.metadata.version(name) for name in peers if importlib.util.find_spec(name)}
    return {
        "date": datetime.date.today().isoformat(),
        "hardware": gpu.describe(device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__.split("+")[0], **others},
        "seconds": round(seconds),
    }


def write(result: dict, folder) -> None:
    """The result as ``NAME.json``, readable and with its letters as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False)
    (folder / f"{result['name']}.json").write_text(text + "\n", encoding="utf-8")
