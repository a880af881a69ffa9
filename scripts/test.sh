#!/usr/bin/env bash
# Everything that has to hold before a change lands: formatting, lint, types, and the whole test suite with coverage.
#   scripts/test.sh [pytest options]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
ruff format --check .
ruff check .
mypy
pytest --cov=shards --cov=pipeline --cov=model --cov-report=term "$@"
