"""Settings that make Paddle faster on the CPU.

Paddle's CPU wheels are slow for three reasons. They set OMP_NUM_THREADS=1 if it is unset. Their MKL
uses its slowest code on AMD processors unless MKL_DEBUG_CPU_TYPE selects another. And glibc returns
large buffers to the system after each use, which causes page faults in every step: 180,000 to
350,000 were measured per ResNet-50 step. With higher thresholds there are none after the first
three steps, and peak memory rises by 34 %.
"""

import ctypes
import os
import re
from pathlib import Path

# glibc's names in the environment, and mallopt's numbers for the same parameters (malloc.h).
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": (-3, 1 << 30),
    "MALLOC_TRIM_THRESHOLD_": (-1, 1 << 30),
    "MALLOC_TOP_PAD_": (-2, 1 << 26),
}
NAMES = ("OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE", *_MALLOC)


def cores() -> int:
    """Logical cores that this process may use: its affinity, limited by the cgroup's quota."""
    count = float(len(os.sched_getaffinity(0)))
    for quota, period in (
        ("/sys/fs/cgroup/cpu.max", None),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    ):
        try:
            words = Path(quota).read_text().split()
            words += Path(period).read_text().split() if period else []
            if words[0] != "max" and int(words[0]) > 0:
                count = min(count, int(words[0]) / int(words[1]))
        except (OSError, IndexError, ValueError):
            continue  # this version of cgroups is not mounted
    return max(1, int(count))


def settings(threads: int, cpuinfo: str | None = None) -> dict[str, str]:
    """Environment variables for a process that trains or predicts on the CPU.

    Args:
        threads: math threads of this process: `cores() // processes on this machine`.
        cpuinfo: text of /proc/cpuinfo; default: the file.

    Returns:
        Variable -> value, also for variables that the user has set.
    """
    if cpuinfo is None:
        try:
            cpuinfo = Path("/proc/cpuinfo").read_text()
        except OSError:
            cpuinfo = ""
    result = {"OMP_NUM_THREADS": str(max(1, threads))}
    if "AuthenticAMD" in cpuinfo:
        result["MKL_DEBUG_CPU_TYPE"] = "7" if re.search(r"\bavx512f\b", cpuinfo) else "5"
    result.update({name: str(value) for name, (_, value) in _MALLOC.items()})
    return result


def has_bfloat16() -> bool:
    """Whether the processor has bfloat16 instructions (AVX512_BF16 or AMX_BF16)."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return bool(re.search(r"\b(avx512_bf16|amx_bf16)\b", flags))


def missing(threads: int) -> dict[str, str]:
    """`settings` without the variables that the user has set."""
    return {k: v for k, v in settings(threads).items() if not set_by_user(k)}


def set_by_user(name: str) -> bool:
    """Whether a variable was set by the user and not by Paddle's launcher.

    The launcher imports Paddle, which sets OMP_NUM_THREADS=1 in the environment that the ranks
    inherit. The environment with which the launcher was started shows who set it.
    """
    if name not in os.environ:
        return False
    if name != "OMP_NUM_THREADS" or "PADDLE_TRAINER_ID" not in os.environ:
        return True
    try:
        return b"OMP_NUM_THREADS=" in Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:
        return os.environ[name] != "1"


def ensure(device: str = "cpu", processes: int | None = None) -> dict[str, str]:
    """Apply `settings` to this process; call it before Paddle is imported.

    No restart is needed: the libraries read their variables when Paddle loads them, and glibc
    accepts its parameters through mallopt(3) at any time.

    Args:
        device: of the run, from `compute.decide`; on a card nothing is done.
        processes: training processes on this machine; default: the launcher's number, or 1.

    Returns:
        the variables set; {} on a card.
    """
    if device != "cpu":
        return {}
    processes = processes or int(os.environ.get("PADDLE_LOCAL_SIZE", "1"))
    values = missing(cores() // processes)
    os.environ.update(values)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # not glibc
        return values
    for name, (parameter, _) in _MALLOC.items():
        if name in values:
            mallopt(parameter, int(values[name]))
    return values
