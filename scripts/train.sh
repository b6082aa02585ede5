#!/usr/bin/env bash
# Train on one or more cards: bash scripts/train.sh [CONFIG] [--gpus N|LIST] [options of tools/train.py]
# --max-restarts N restarts from the newest checkpoint if a rank dies or hangs, at most N times.
# --nnodes N --master HOST:PORT --node-rank R on each of N hosts: docs/cluster.md.
# DEVICE=cpu trains on the CPU (ranks communicate over Gloo); --dry-run prints the commands.
set -eu
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=python3 # a vendor's container brings its own
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m fcos_recipe.commands.launch "$@"
