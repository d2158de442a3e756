#!/usr/bin/env bash
# Print the path of a Chromium for the browser tests; install Debian's where there is none.
set -euo pipefail
find_it() {
  for name in "${CHROMIUM:-}" chromium chromium-browser google-chrome-stable google-chrome; do
    if [ -n "$name" ] && command -v "$name" 2>/dev/null; then return 0; fi
  done
  return 1
}
if ! find_it; then
  if ! command -v apt-get >/dev/null; then
    echo "No Chromium found, and this is no Debian. Install Chromium, or set CHROMIUM=/path/to/it." >&2; exit 1
  fi
  root=(); [ "$(id -u)" = 0 ] || root=(sudo -n)
  echo "== no Chromium found: installing Debian's" >&2
  { "${root[@]}" apt-get update -qq && DEBIAN_FRONTEND=noninteractive "${root[@]}" apt-get install -y -qq --no-install-recommends chromium; } >&2 ||
    { echo "Could not install Chromium. Install it (apt install chromium), or set CHROMIUM=/path/to/it." >&2; exit 1; }
  find_it
fi
