#!/usr/bin/env bash
# Check lint, format, types and shell scripts. All parts run; exit 1 if any failed.
# --fix applies the corrections that the tools can make. example: bash scripts/check.sh --fix
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
case ${1:-} in
    '') FORMAT=(--check) LINT=() SHFMT=(-d) ;;
    --fix) FORMAT=() LINT=(--fix) SHFMT=(-w) ;;
    -h | --help) sed -n '2,3s/^# //p' "$0" && exit 0 ;;
    *) echo "error: unknown option $1; see --help" >&2 && exit 2 ;;
esac
BIN=.venv/bin
if ! [ -x "$BIN/shfmt" ] || ! [ -x "$BIN/mypy" ]; then
    echo "error: the tools are missing in .venv; run bash scripts/install.sh --dev" >&2
    exit 2
fi
PYTHON=(fcos_recipe tools tests scripts setup.py)
SHELL_SCRIPTS=(scripts/*.sh scripts/train.sbatch .ci/*)
FAILED=()

part() { # NAME COMMAND...
    local name=$1
    shift
    echo "check: $name"
    "$@" || FAILED+=("$name")
}

part lint "$BIN/ruff" check -q "${LINT[@]}" "${PYTHON[@]}"
part format "$BIN/ruff" format -q "${FORMAT[@]}" "${PYTHON[@]}"
part types "$BIN/mypy"
part shell "$BIN/shellcheck" "${SHELL_SCRIPTS[@]}"
part 'shell format' "$BIN/shfmt" -i 4 -ci -bn "${SHFMT[@]}" "${SHELL_SCRIPTS[@]}"

[ ${#FAILED[@]} -eq 0 ] && echo "check: all passed" && exit 0
printf 'check: failed: %s\n' "${FAILED[@]}" >&2
exit 1
