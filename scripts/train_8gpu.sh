#!/usr/bin/env bash
# Train on 8 cards: bash scripts/train_8gpu.sh [CONFIG] [options of tools/train.py]
exec bash "$(dirname "${BASH_SOURCE[0]}")/train.sh" --gpus 8 "$@"
