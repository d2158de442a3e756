#!/usr/bin/env bash
# Make .venv with everything the book needs, from constraints.txt; the package itself is installed editable.
# PYTHON=… chooses another interpreter than python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python3}

say() { printf '== %s\n' "$*"; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  { echo "The book needs Python 3.10 or newer; $python is $("$python" --version 2>&1). Set PYTHON=/path/to/python3." >&2; exit 1; }

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

if [ ! -x .venv/bin/python ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  say "making .venv with $("$python" --version)"
  rm -rf .venv
  if ! "$python" -m venv .venv 2>/dev/null; then
    # Debian's python3 comes without the part that makes environments
    rm -rf .venv
    say "this Python cannot make environments yet: installing python3-venv"
    { as_root apt-get update -qq && as_root apt-get install -y -qq --no-install-recommends python3-venv; } >&2 ||
      { echo "Could not install python3-venv. Install it (apt install python3-venv) and run this again." >&2; exit 1; }
    "$python" -m venv .venv
  fi
fi

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
unset PYTHONPATH
say "installing what constraints.txt names (a few minutes the first time)"
.venv/bin/python -m pip install -q -c constraints.txt setuptools wheel
.venv/bin/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[book,test,lab]'
touch .venv/.installed
say ".venv is ready"
