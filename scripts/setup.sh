# shellcheck shell=bash
# Sourced by demo.sh, demo_video.sh and test.sh: makes .venv in the checkout with the pinned, tested versions, once, and activates it.
# Needs Python >= 3.11 with pip and about 8 GB of disk. The pinned versions are those of CUDA 13.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "error: $python is not a Python >= 3.11: install one, or name it with PYTHON=..." >&2
  exit 2
fi

# What is installed is known by what it was installed from.
wanted=$(cat pyproject.toml constraints.txt | sha256sum | cut -c1-64)
if [ "$(cat .venv/installed 2>/dev/null)" = "$wanted" ]; then
  echo "reusing .venv: it holds the pinned versions"
else
  echo "installing the pinned versions into .venv (one to five minutes, some 5 GB) ..."
  begin=$SECONDS
  [ -x .venv/bin/pip ] || "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[cuda13,dev]"
  echo "$wanted" >.venv/installed
  echo "installed in $((SECONDS - begin)) s"
fi
source .venv/bin/activate
