#!/usr/bin/env bash
# Create or update the virtual environment for this machine; see --help.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SYSROOT=${FCOS_SYSROOT:-} # tests put stand-ins for /dev and /usr/local/corex there
PADDLEDET=paddledet==2.6.0
ILUVATAR_HELP="take the wheel of your SDK from https://support.iluvatar.com (Resource Center), or \
paddle-iluvatar-gpu from https://www.paddlepaddle.org.cn/packages/stable/ixuca/, then run this again"

usage() {
    cat <<'EOF'
usage: bash scripts/install.sh [options]

Creates or updates .venv; returns at once if nothing has changed. What it installs:
  vendor  if the active Python already has Paddle (vendor's container, activated environment): keeps
          that Paddle, its NumPy and its OpenCV, and adds only missing packages
  gpu     an NVIDIA card and no Paddle: paddlepaddle-gpu (requirements/gpu.txt)
  cpu     otherwise: CPU Paddle, exact versions with hashes (requirements/lock-cpu.txt)
An Iluvatar card without Paddle is an error: only the vendor provides Paddle for it.

  --mode cpu|gpu|vendor  choose instead of detecting the machine
  --python PY            use this Python instead of the first suitable one on PATH (3.10 to 3.13)
  --venv DIR             use another directory; packages are added to your own activated environment
                         with Paddle, which is never cleared
  --paddle VERSION       in cpu mode: 3.3.1 (default), 3.0.0 or 2.6.2
  --wheels DIR           offline: take all packages from DIR; fill it with
                         pip download --no-deps --require-hashes -d DIR -r requirements/lock-cpu.txt
  --dev                  also install the test tools (requirements/lock-dev.txt)
  --dry-run              print the decision and the exact commands, change nothing
  -h, --help

FCOS_PADDLE_INDEX=URL    package index for gpu mode (default: Paddle's, for the driver's CUDA)

example: bash scripts/install.sh --dry-run
EOF
}

die() {
    echo "error: $*" >&2
    exit 2
}

MODE='' PYTHON='' VENV=$ROOT/.venv PADDLE='' WHEELS='' DEV='' DRY=''
while [ $# -gt 0 ]; do
    case $1 in
        --mode | --python | --venv | --paddle | --wheels)
            [ $# -ge 2 ] || die "$1 needs a value; see --help"
            declare "$(tr '[:lower:]' '[:upper:]' <<<"${1#--}")=$2"
            shift
            ;;
        --dev) DEV=1 ;;
        --dry-run) DRY=1 ;;
        -h | --help) usage && exit 0 ;;
        *) die "unknown option $1; see --help" ;;
    esac
    shift
done
case $MODE in '' | cpu | gpu | vendor) ;; *) die "--mode $MODE: choose cpu, gpu or vendor" ;; esac
if [ -n "$WHEELS" ]; then
    WHEELS=$(cd "$WHEELS" 2>/dev/null && pwd) || die "--wheels: no such directory"
fi
VENV=$(realpath -m "$VENV")
MARK=$VENV/.fcos-install # written by this script: what is installed here, and from which Python

# --- the machine -----------------------------------------------------------------------------
# Iluvatar first: its images can carry an nvidia-smi as well.
ACCELERATOR=none
if command -v ixsmi >/dev/null || [ -d "$SYSROOT/usr/local/corex" ] \
    || compgen -G "$SYSROOT/dev/iluvatar*" >/dev/null; then
    ACCELERATOR=iluvatar
elif [ -e "$SYSROOT/dev/nvidia0" ] \
    || { command -v nvidia-smi >/dev/null && timeout 20 nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }; then
    ACCELERATOR=nvidia
fi

# One line about a Python: version, executable, prefix, directory of its Paddle or "-".
# Runs on any Python from 2.7; does not import Paddle, and not from the working directory.
PROBE='import sys
sys.path = [p for p in sys.path if p]
found = "-"
if sys.version_info >= (3, 10):
    from importlib.util import find_spec
    spec = find_spec("paddle")
    if spec and spec.origin:
        import os
        found = os.path.dirname(os.path.dirname(spec.origin))
print("%d.%d|%s|%s|%s" % (sys.version_info[0], sys.version_info[1], sys.executable, sys.prefix, found))'

mark() { sed -n "s/^$1=//p" "$MARK" 2>/dev/null; }

# Sets VERSION, EXE, PREFIX and LOCATION; fails unless the Python is 3.10 to 3.13.
probe() {
    local line
    line=$("$1" -c "$PROBE" 2>/dev/null) || return 1
    IFS='|' read -r VERSION EXE PREFIX LOCATION <<<"$line"
    SEEN="$SEEN${SEEN:+, }$1 is $VERSION"
    if [ "$PREFIX" = "$VENV" ] && [[ -n $(mark python) && $(mark python) != "$VENV"/* ]]; then
        probe "$(mark python)" # ours, and activated: ask the Python that it was made from
        return
    fi
    [ "${VERSION%%.*}" = 3 ] && [ "${VERSION#*.}" -ge 10 ] && [ "${VERSION#*.}" -le 13 ]
}

choose_python() {
    local candidate best=''
    local candidates=(python3 python)
    # A vendor's Paddle may sit in a Python that is not the default one.
    [ "$ACCELERATOR" != iluvatar ] || candidates+=(python3.13 python3.12 python3.11 python3.10)
    [ -z "$PYTHON" ] || candidates=("$PYTHON")
    SEEN=''
    for candidate in "${candidates[@]}"; do
        { command -v "$candidate" >/dev/null && probe "$candidate"; } || continue
        best=${best:-$candidate}
        if [ "$LOCATION" != - ] || [ "$MODE" = cpu ] || [ "$MODE" = gpu ]; then
            best=$candidate
            break
        fi
    done
    for candidate in python3.12 python3.11 python3.10 python3.13; do # 3.13 last: no ONNX export there
        [ -z "$PYTHON$best" ] || break
        command -v "$candidate" >/dev/null && probe "$candidate" && best=$candidate
    done
    [ -n "$best" ] || die "Python 3.10, 3.11, 3.12 or 3.13 is needed (${SEEN:-none found});" \
        "install one and name it: bash scripts/install.sh --python /path/to/python3.10"
    probe "$best"
}
choose_python

IN_PLACE='' # an environment of the user's own, which has a Paddle
if [ -z "$MODE" ]; then
    if [ "$LOCATION" != - ]; then
        MODE=vendor
    elif [ "$ACCELERATOR" = iluvatar ]; then
        die "Iluvatar cards, but no Paddle in $EXE: $ILUVATAR_HELP"
    elif [ "$ACCELERATOR" = nvidia ]; then
        MODE=gpu
    else
        MODE=cpu
    fi
fi
if [ "$MODE" = vendor ]; then
    [ "$LOCATION" != - ] || die "--mode vendor: no Paddle in $EXE; activate the environment that has one"
    [ "$PREFIX" != "$VENV" ] || IN_PLACE=1
fi
[ "$MODE" = cpu ] || [ -z "$PADDLE" ] || die "--paddle goes with cpu mode, this is $MODE mode; add --mode cpu"

# --- what to install -------------------------------------------------------------------------
case $PADDLE in
    '' | 3.3.1) LOCK=$ROOT/requirements/lock-cpu.txt ;;
    *) LOCK=$ROOT/requirements/lock-cpu-$PADDLE.txt ;;
esac
[ -f "$LOCK" ] || die "--paddle $PADDLE: no lock file for it; choose 3.3.1, 3.0.0 or 2.6.2"
hash_of() { cat "$@" | sha256sum | cut -c 1-16; }
KEY="$MODE $EXE $VERSION $LOCATION $ROOT $(hash_of "$LOCK" "$ROOT"/requirements/{base,gpu}.txt \
    "$ROOT/setup.py" "$ROOT/scripts/install.sh") ${FCOS_PADDLE_INDEX:-}"
DEV_KEY=$(hash_of "$ROOT"/requirements/lock-dev*.txt)

COMPLETE='from importlib.util import find_spec
import sys
sys.exit(not all(map(find_spec, sys.argv[1:])))'
complete() { # the environment starts and nothing has gone missing
    "$VENV/bin/python" -c "$COMPLETE" paddle numpy cv2 yaml pycocotools hotcoco msgspec tqdm psutil six \
        matplotlib ppdet fcos_recipe 2>/dev/null
}

say() { echo "install: $*"; }
if [ -z "$DRY" ]; then
    exec 9>"$ROOT/.venv.lock"
    flock -n 9 || { say "another installation is running, waiting for it" && flock 9; }
fi
FRESH=''
if [ "$(mark key)" = "$KEY" ] && complete; then
    FRESH=1
    if [ -z "$DEV" ] || [ "$(mark dev)" = "$DEV_KEY" ]; then
        say "${VENV#"$ROOT"/} is up to date ($MODE mode)"
        exit 0
    fi
fi

# Version of Paddle, NumPy and OpenCV ("-": none), and the device that Paddle itself reports.
QUERY='import warnings
warnings.simplefilter("ignore")
import zlib  # before Paddle: 2.6.2 crashes otherwise
import paddle, numpy
try:
    from cv2 import __version__ as opencv
except ModuleNotFoundError:
    opencv = "-"
custom = getattr(paddle.device, "get_all_custom_device_type", list)() or []
device = custom[0] if custom else "gpu" if paddle.is_compiled_with_cuda() else "cpu"
print("|".join([paddle.__version__, numpy.__version__, opencv, device]))'
query() { # PYTHON; the last line, because a Paddle may print notices of its own
    local out
    out=$("$1" -c "$QUERY" 2>&1) || { tail -n 1 <<<"$out" && return 1; }
    tail -n 1 <<<"$out"
}

say "Python $VERSION ($EXE), accelerator: $ACCELERATOR, mode: $MODE"
PADDLE_VERSION=''
if [ "$MODE" = vendor ]; then
    FOUND=$(query "$EXE") || die "Paddle in $LOCATION does not import: $FOUND; mend it (are the SDK's" \
        "environment variables set?), or use another: --mode cpu"
    IFS='|' read -r PADDLE_VERSION NUMPY_VERSION OPENCV_VERSION DEVICE <<<"$FOUND"
    say "uses as they are: Paddle $PADDLE_VERSION (device $DEVICE), NumPy $NUMPY_VERSION, OpenCV $OPENCV_VERSION"
    if [ "$ACCELERATOR" = iluvatar ] && [ "$DEVICE" = cpu ]; then
        die "Paddle $PADDLE_VERSION in $LOCATION is a CPU build, the Iluvatar cards would stay idle:" \
            "$ILUVATAR_HELP"
    fi
    if [ "$ACCELERATOR" = nvidia ] && [ "$DEVICE" = cpu ]; then
        say "warning: that Paddle is a CPU build, the NVIDIA card stays idle; --mode gpu installs another"
    fi
    case $PADDLE_VERSION in
        2.[0-4].* | 1.*) say "warning: Paddle $PADDLE_VERSION is older than 2.5, this recipe was never run on it" ;;
    esac
fi

case $PADDLE$PADDLE_VERSION in
    2.*) DEV_LOCK=$ROOT/requirements/lock-dev-2.6.2.txt ;; # its ONNX converter reads Paddle 2's programs
    *) DEV_LOCK=$ROOT/requirements/lock-dev.txt ;;
esac

# --- do it -----------------------------------------------------------------------------------
LOG=''
run() { # STEP COMMAND...: run it (in a dry run print it); on failure one line with the first error
    local step=$1
    shift
    if [ -n "$DRY" ]; then
        printf '+'
        printf ' %q' "$@"
        echo
        return
    fi
    LOG=$(mktemp "${TMPDIR:-/tmp}/fcos-install.XXXXXX")
    if "$@" >"$LOG" 2>&1; then
        rm "$LOG"
        return
    fi
    local reason
    reason=$(grep -m 1 'ERROR: ' "$LOG" || tail -n 1 "$LOG")
    echo "error: $step failed: ${reason#*ERROR: } (all of it: $LOG); check network and disk space," \
        "or install offline with --wheels DIR" >&2
    exit 1
}
PIP=("$VENV/bin/python" -m pip install -qq --disable-pip-version-check)
# pip compiles on one core, which is 12 of its 20 s for the CPU packages: done on all cores instead,
# and not left to the first import, which may not write (PYTHONDONTWRITEBYTECODE).
[ -n "$IN_PLACE" ] || PIP+=(--no-compile)
COMPILE='import compileall, re, sysconfig
compileall.compile_dir(sysconfig.get_path("purelib"), quiet=2, workers=0, rx=re.compile("/(tests?|pip)/"))'
SITE='import sysconfig; print(sysconfig.get_path("purelib"))'
[ -z "$WHEELS" ] || PIP+=(--no-index --find-links "$WHEELS")
export PIP_USER=0

if [ -z "$FRESH$IN_PLACE" ]; then
    CREATE=("$EXE" -m venv)
    [ "$MODE" != vendor ] || CREATE+=(--system-site-packages)
    if [ -f "$MARK" ]; then # made by this script, so it may be emptied
        run "emptying $VENV" find "$VENV" -mindepth 1 -not -path "$MARK" -delete
    elif [ -d "$VENV" ] && [ ! -f "$VENV/pyvenv.cfg" ] && [ -n "$(find "$VENV" -type f -print -quit)" ]; then
        die "$VENV has files but is no virtual environment; name another with --venv"
    fi
    # No key yet: an interrupted installation is known as such and made anew.
    [ -n "$DRY" ] || { mkdir -p "$VENV" && echo "python=$EXE" >"$MARK"; }
    run "making $VENV (on Debian and Ubuntu: apt install python3-venv)" "${CREATE[@]}" "$VENV"
fi
if [ -z "$FRESH" ]; then
    ISOLATION=(--no-build-isolation) # setuptools is in the environment
    case $MODE in
        cpu)
            run "installing CPU Paddle" "${PIP[@]}" --no-deps --require-hashes -r "$LOCK"
            ;;
        gpu)
            if [ -z "${FCOS_PADDLE_INDEX:-}" ]; then
                CUDA=$(nvidia-smi 2>/dev/null | grep -oE 'CUDA Version: *[0-9]+\.[0-9]+' | grep -oE '[0-9.]+$' || true)
                FOLDER=cu126
                [ "$(printf '%s\n' 12.6 "${CUDA:-11.8}" | sort -V | head -n 1)" = 12.6 ] || FOLDER=cu118
                FCOS_PADDLE_INDEX=https://www.paddlepaddle.org.cn/packages/stable/$FOLDER/
            fi
            run "installing GPU Paddle" "${PIP[@]}" --extra-index-url "$FCOS_PADDLE_INDEX" \
                -r "$ROOT/requirements/gpu.txt"
            run "installing paddledet" "${PIP[@]}" --no-deps $PADDLEDET
            ;;
        vendor)
            ISOLATION=()
            EXTRA=()
            if [ "$OPENCV_VERSION" = - ]; then
                EXTRA=(opencv-python-headless)
                [ "${NUMPY_VERSION%%.*}" != 1 ] || EXTRA=('opencv-python-headless<4.12') # newer: NumPy 2
            fi
            if [ -z "$DRY$IN_PLACE" ] && ! "$VENV/bin/python" -c "$COMPLETE" paddle; then
                # made from a virtual environment, whose packages --system-site-packages leaves out
                echo "import site; site.addsitedir('$LOCATION')" >"$("$VENV/bin/python" -c "$SITE")/fcos_paddle.pth"
            fi
            run "installing around Paddle" "${PIP[@]}" --no-deps -r "$ROOT/requirements/base.txt" \
                $PADDLEDET "${EXTRA[@]}"
            ;;
    esac
    run "installing fcos-recipe" "${PIP[@]}" --no-deps "${ISOLATION[@]}" -e "$ROOT"
fi
[ -z "$DEV" ] || run "installing test tools" "${PIP[@]}" --no-deps --require-hashes -r "$DEV_LOCK"
[ -n "$IN_PLACE" ] || run compiling "$VENV/bin/python" -c "$COMPILE"
[ -z "$DRY" ] || exit 0

NOW=$(query "$VENV/bin/python") || die "the installed Paddle does not import: $NOW"
if [ "$MODE" = vendor ] && [ "$OPENCV_VERSION" != - ] && [ "$NOW" != "$FOUND" ]; then
    die "Paddle, NumPy, OpenCV or device changed from $FOUND to $NOW: report this as a bug"
fi
complete || die "packages are missing in $VENV; remove it and run this again"
IFS='|' read -r PADDLE_VERSION NUMPY_VERSION OPENCV_VERSION DEVICE <<<"$NOW"
[ -z "$DEV" ] || DEV=$DEV_KEY
printf 'python=%s\nkey=%s\ndev=%s\n' "$EXE" "$KEY" "$DEV" >"$MARK"
say "ready: Paddle $PADDLE_VERSION (device $DEVICE), NumPy $NUMPY_VERSION, OpenCV $OPENCV_VERSION;" \
    "activate with: source ${VENV#"$ROOT"/}/bin/activate"
