#!/usr/bin/env bash
# What has to hold before a change lands: formatting, lint, types, and the tests, on as many cores as there are, up to 4.
#   scripts/test.sh [--quick] [pytest options]
# --quick leaves out the tests marked slow, which are those that start processes, and measures no coverage.
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
