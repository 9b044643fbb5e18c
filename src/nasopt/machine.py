"""Where and with what a number was measured: the machine, without its name or folders, and the versions."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path

PACKAGES = ("nasopt", "torch", "numpy", "scipy", "scikit-learn", "moocore", "onnx", "onnxruntime")


def machine() -> dict[str, str | int | float]:
    """Processor (``cpu``), number of ``cores``, memory (``memory_gb``, where it is known) and ``system``."""
    found: dict[str, str | int | float] = {"cpu": _processor(), "cores": os.cpu_count() or 1, "system": platform.system()}
    if "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_gb"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak_memory() -> None:
    """Lets `peak_memory_mb` begin anew, where the system can: on Linux."""
    with suppress(OSError):
        if CLEAR.exists():
            CLEAR.write_text("5")


def peak_memory_mb() -> float:
    """The most memory that this process had resident, in MB (1e6 bytes), since `forget_peak_memory` or since it began."""
    for line in STATUS.read_text().splitlines() if STATUS.exists() else []:
        if line.startswith("VmHWM:"):
            return 1.024e-3 * float(line.split()[1])
    import resource  # Unix only

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def versions(*extra: str) -> dict[str, str]:
    """Python, `PACKAGES` and ``extra`` packages, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *extra):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name == "nasopt":
                found[name] = "source tree"
    return found
