"""Run the given make targets in order, stop at the first failure, and say how long each took."""

import json
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main(stages):
    took = {}
    for stage in stages:
        print(f"\n=== {stage} " + "=" * (70 - len(stage)), flush=True)
        start = time.monotonic()
        code = subprocess.run(["make", "--no-print-directory", stage], cwd=ROOT).returncode
        took[stage] = round(time.monotonic() - start, 1)
        if code:
            print(f"\nFAILED in stage '{stage}' after {took[stage]} s; run it alone with: make {stage}", flush=True)
            break
    print(
        "\n" + "  ".join(f"{stage} {seconds} s" for stage, seconds in took.items()),
        f" total {sum(took.values()):.0f} s",
    )
    out = ROOT / "_build"
    out.mkdir(exist_ok=True)
    (out / "stages.json").write_text(json.dumps(took, indent=1) + "\n")
    return 1 if len(took) < len(stages) or code else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
