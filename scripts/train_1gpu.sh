#!/usr/bin/env bash
# Train on one card: bash scripts/train_1gpu.sh [CONFIG] [options of tools/train.py]
exec bash "$(dirname "${BASH_SOURCE[0]}")/train.sh" --gpus 1 "$@"
