"""Lists of kernels available on cards, in kernels/*.json: how to make and compare them.

`python -m tests.operators.registries > tests/operators/kernels/gpu-VERSION.json`, run in an
environment with paddlepaddle-gpu of that version, rewrites the file of that version; no card is
needed. iluvatar_gpu.json was taken from the plugin's public source; each entry names the file and
commit.
"""

import json
import sys
from pathlib import Path

from fcos_recipe import compat

FOLDER = Path(__file__).with_name("kernels")
GPU_BUILDS = ("2.5.2", "2.6.2")
PLUGIN = "iluvatar_gpu"
# Paddle 3 launches these for what older versions do with another operator.
BEFORE_3 = {"div_scale": "scale", "shape64": "shape"}
Kernels = dict[str, set[str]]


def live(*backends: str) -> Kernels:
    """Operator -> dtypes of the installed Paddle's kernels for these backends."""
    return {
        operator: dtypes
        for operator, kernels in compat.registered_kernels().items()
        if (dtypes := {dtype for backend, dtype in kernels if backend in backends})
    }


def stored(name: str) -> Kernels:
    """What a file in kernels/ says, name without its ending: operator -> dtypes."""
    content = json.loads((FOLDER / f"{name}.json").read_text())
    if name == PLUGIN:
        return {
            operator: set(dtypes.split())
            for file in content["files"].values()
            for operator, dtypes in file.items()
        }
    return {
        operator: set(dtypes.split())
        for dtypes, operators in content["kernels"].items()
        for operator in operators.split()
    }


def missing(launched: dict[tuple[str, str], set[str]], name: str) -> list[str]:
    """What a run launches and a registry lacks, one line each, with the lines that ask for it.

    Operators that the plugin's source leaves open ("not settled") are left out.

    Args:
        launched: from `launched.record`.
        name: of a file in kernels/.
    """
    kernels = stored(name)
    content = json.loads((FOLDER / f"{name}.json").read_text())
    lines = []
    for (operator, dtype), where in sorted(launched.items()):
        known = operator if name == PLUGIN else BEFORE_3.get(operator, operator)
        if known in content.get("not settled", ()):
            continue
        if not {dtype, "all"} & kernels.get(known, set()):
            lines.append(f"{name} has no kernel {operator} for {dtype}: {', '.join(sorted(where))}")
    return lines


def main() -> None:
    import paddle

    grouped: dict[str, list[str]] = {}
    for operator, dtypes in live("GPU", "GPUDNN").items():
        grouped.setdefault(" ".join(sorted(dtypes)), []).append(operator)
    kernels = {dtypes: " ".join(sorted(names)) for dtypes, names in sorted(grouped.items())}
    json.dump({"paddle": paddle.__version__, "kernels": kernels}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
