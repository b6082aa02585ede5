#!/usr/bin/env bash
# Prepare, train and evaluate a config. The last line is RESULT with AP, throughput, time to train and
# the comparison with the published figures of the config.
# example: DEVICE=cpu bash scripts/run_and_time.sh configs/fcos/fcos_r18_fpn_demo.yml
set -eu
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=python3 # a vendor's container brings its own
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m fcos_recipe.commands.run_and_time "$@"
