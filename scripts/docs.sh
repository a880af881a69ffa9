#!/usr/bin/env bash
# Build the documentation as a website from docs/ and mkdocs.yml:
#   scripts/docs.sh          builds site/, and fails on broken links and anchors
#   scripts/docs.sh serve    serves it at http://localhost:8000 and rebuilds it after edits
# The first call installs the pinned versions into .venv, as scripts/test.sh does.
set -euo pipefail
if [[ ${1:-} =~ ^(-h|--help)$ ]]; then
  sed -n 's/^# //p;/^set/q' "$0"
  exit
elif (($# > 1)) || [[ ${1:-serve} != serve ]]; then
  echo "error: usage: scripts/docs.sh [serve]; see --help" >&2
  exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [ "${1:-}" = serve ]; then
  exec zensical serve
fi
exec zensical build --clean --strict
