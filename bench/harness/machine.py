"""Describes the machine and the versions of a run, which the report states with the figures."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import confluent_kafka
import psutil

_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "asimd",
    "bf16",
    "sve",
)
"""The processor flags that determine the speed of matrix products."""
_PACKAGES = (
    "torch", "open_clip_torch", "numpy", "numkong", "msgspec", "orjson", "lmdb", "confluent-kafka", "av", "pillow",
    "torchvision",
)  # fmt: skip


def about() -> dict[str, Any]:
    """Return machine, versions, commit and date as JSON-serializable values."""
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": machine(),
        "versions": versions(),
    }


def machine() -> dict[str, Any]:
    """Describe processor, memory, kernel and accelerator."""
    processor = _processor()
    return {
        "processor": processor.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": [flag for flag in _FLAGS if flag in processor.get("flags", processor.get("Features", "")).split()],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "accelerator": _accelerator(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages on which the figures depend."""
    found = {"python": platform.python_version(), "librdkafka": confluent_kafka.libversion()[0]}
    return found | {name: importlib.metadata.version(name) for name in _PACKAGES}


def _processor() -> dict[str, str]:
    """Return the properties of the first CPU; empty on systems other than Linux."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text(encoding="utf-8").partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _accelerator() -> str | None:
    import torch  # noqa: PLC0415 - takes seconds to load

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _commit() -> str:
    """Return the commit, with a plus if the working tree differs from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(  # noqa: S603 - our own arguments
            ["git", *arguments],  # noqa: S607
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown"
    return f"{commit}+" if git("status", "--porcelain", "--untracked-files=no") else commit
