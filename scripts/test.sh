#!/usr/bin/env bash
# Run everything that a change has to pass: formatting, lint, types, and the tests on up to 4 cores.
#   scripts/test.sh [--quick] [pytest options]
# --quick leaves out coverage and the tests marked slow, which are those that start processes.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [ "${1:-}" = --quick ]; then
  tests=(-m "not slow" "${@:2}")
else
  tests=(--cov=shards --cov=pipeline --cov=model --cov-report=term "$@")
fi
ruff format --check .
ruff check .
mypy
pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder "${tests[@]}"
