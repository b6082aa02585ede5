#!/usr/bin/env bash
# Demo from a clean clone: install, draw a data set of shapes, train a small FCOS on it
# (configs/fcos/fcos_r18_fpn_demo.yml), evaluate it with COCO's metrics, draw its predictions.
# Takes some minutes on two CPU cores. Writes output/demo/: result.json, run/ (log, metrics, weights),
# drawn/. Options are passed to `python -m fcos_recipe.commands.demo` (--output DIR, -o KEY=VALUE).
# example: bash scripts/demo.sh
set -euo pipefail
if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
    sed -n '2,6s/^# //p' "$0"
    exit 0
fi
STARTED=$(date +%s)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install.sh
exec .venv/bin/python -m fcos_recipe.commands.demo --started "$STARTED" "$@"
