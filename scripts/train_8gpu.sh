#!/usr/bin/env bash
# Train on 8 cards: bash scripts/train_8gpu.sh [CONFIG] [options of tools/train.py]
# Fails without cards; DEVICE=cpu runs 8 processes on the CPU.
exec bash "$(dirname "${BASH_SOURCE[0]}")/train.sh" --gpus 8 "$@"
