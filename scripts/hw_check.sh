#!/usr/bin/env bash
# For somebody with the cards: within 30 minutes doctor, 200 steps at 1, 2, 4 and 8 cards in fp32
# and AMP on drawn images of 800x1333, evaluation, export and resume; one JSON to send in.
# example: bash scripts/hw_check.sh     (DEVICE=cpu bash scripts/hw_check.sh --quick tries it out)
set -eu
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=python3 # a vendor's container brings its own
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m fcos_recipe.lab.hw_check "$@"
