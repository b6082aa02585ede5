#!/usr/bin/env bash
# Install what is needed, run scripts/check.sh and the quick tests (every marker but slow and e2e).
# Arguments go to pytest. example: bash scripts/test.sh tests/config -k strict
set -euo pipefail
if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
    sed -n '2,3s/^# //p' "$0"
    exit 0
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install.sh --dev
bash scripts/check.sh
exec .venv/bin/python -m pytest -m "not slow and not e2e" "$@"
