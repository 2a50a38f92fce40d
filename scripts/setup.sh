#!/usr/bin/env bash
# Creates .venv and installs the project into it. Does nothing when that was done for this pyproject.toml.
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-python3}"
stamp=.venv/.installed-for

command -v "$python" >/dev/null || {
  echo "setup: $python is missing: install Python 3.11 or newer (Debian: apt-get install python3 python3-venv)" >&2
  exit 1
}
version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "setup: $python is Python $version, and 3.11 or newer is needed: name another one, as in make PYTHON=python3.12 ..." >&2
  exit 1
}

wanted="$(sha256sum pyproject.toml | cut -d' ' -f1) python $version"
if [ -x .venv/bin/holdfast ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] &&
  .venv/bin/python -c '' 2>/dev/null; then
  exit 0
fi

if ! [ -x .venv/bin/pip ] || ! .venv/bin/python -c '' 2>/dev/null; then
  "$python" -c 'import ensurepip, venv' 2>/dev/null || {
    echo "setup: this Python cannot create environments: apt-get install python3-venv (Debian, Ubuntu), then again" >&2
    exit 1
  }
  echo "setup: creating .venv with Python $version"
  "$python" -m venv --clear .venv
fi
rm -f "$stamp"
echo "setup: installing Holdfast and its tools into .venv (a minute or two, once)"
.venv/bin/pip install --disable-pip-version-check --progress-bar off --editable '.[dev]' |
  grep -vE '^(Requirement already satisfied|  Using cached|  Preparing metadata)' || true
# The pipe hides pip's own answer, so ask for what it should have left.
.venv/bin/python -c 'import fastapi, grpc, zfec, pytest, node.cli' || {
  echo "setup: the installation is incomplete; see pip's messages above" >&2
  exit 1
}
echo "$wanted" >"$stamp"
echo "setup: done"
