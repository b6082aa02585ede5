#!/usr/bin/env bash
# One command from a config to a result: prepares, trains, evaluates, and ends with a RESULT line
# that has AP, throughput and time to train, compared with what is published for the config.
# example: DEVICE=cpu bash scripts/run_and_time.sh configs/fcos/fcos_r18_fpn_demo.yml
set -eu
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=python3 # a vendor's container brings its own
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m fcos_recipe.commands.run_and_time "$@"
