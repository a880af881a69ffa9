# shellcheck shell=bash
# Create .venv in the checkout, with the pinned versions that were tested, unless it is there, and activate it. The
# other scripts source this file. It needs Python >= 3.11 with pip and about 8 GB of disk. The pinned versions are for
# CUDA 13.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "error: $python is not Python 3.11 or newer: install that, or name it by PYTHON=..." >&2
  exit 2
fi

# .venv/installed has the hash of the files from which the versions were installed.
wanted=$(cat pyproject.toml constraints.txt | sha256sum | cut -c1-64)
if [ "$(cat .venv/installed 2>/dev/null)" = "$wanted" ]; then
  echo "reusing .venv, which has the pinned versions"
else
  echo "installing the pinned versions into .venv (one to five minutes, about 5 GB) ..."
  begin=$SECONDS
  [ -x .venv/bin/pip ] || "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[cuda13,dev]"
  echo "$wanted" >.venv/installed
  echo "installed in $((SECONDS - begin)) s"
fi
source .venv/bin/activate
