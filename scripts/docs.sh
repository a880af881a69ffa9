#!/usr/bin/env bash
# Build the documentation as a site, from docs/ and mkdocs.yml:
#   scripts/docs.sh          builds site/, and fails on a link or an anchor that leads nowhere
#   scripts/docs.sh serve    shows it at http://localhost:8000 and follows edits
# The first call installs the pinned versions into .venv, as scripts/test.sh does.
set -euo pipefail
if [[ ${1:-} =~ ^(-h|--help)$ ]]; then
  sed -n 's/^# //p;/^set/q' "$0"
  exit
elif (($# > 1)) || [[ ${1:-serve} != serve ]]; then
  echo "error: usage: scripts/docs.sh [serve], --help says more" >&2
  exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [ "${1:-}" = serve ]; then
  exec zensical serve
fi
exec zensical build --clean --strict
