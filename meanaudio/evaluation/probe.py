"""What a machine is and can do: synchronisation, memory, matrix products a second, and the facts that belong beside every timing."""

from __future__ import annotations

import os
import platform
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import meanaudio
from meanaudio.memory import give_back_freed_memory


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_waited() -> float | None:
    """Seconds that this thread has stood ready to run while other work had the cores; None where the system does not tell (not Linux)."""
    with suppress(OSError, IndexError, ValueError):
        return int(Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()[1]) * 1e-9
    return None


def matmul_rate(device: torch.device, dtype: torch.dtype, *, largest: int = 8192, longest: float = 0.5) -> float:
    """FLOP/s of the best product of two random square matrices, sizes doubling from 256 to `largest`.

    A size whose product would take more than about `longest` seconds is not tried. It is what this machine's library reaches, not what its
    maker states, and under the precision settings in force. The device's memory is free again afterwards.
    """
    best, seconds, size = 0.0, 0.0, 256
    generator = torch.Generator().manual_seed(0)
    while size <= largest and 8 * seconds <= longest:
        seconds = _product_seconds(*(torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2)))
        best, size = max(best, 2 * size**3 / seconds), 2 * size
    if device.type == "cuda":  # torch would keep it from other processes, which are about to be timed
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    return best


def _product_seconds(a: Tensor, b: Tensor) -> float:
    """Least seconds of five products, after one that also chooses kernels."""
    times = []
    for _ in range(6):
        synchronise(a.device)
        start = time.perf_counter()
        torch.mm(a, b)
        synchronise(a.device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def compiled_pieces() -> tuple[int, int]:
    """(tried, made): pieces of code that torch.compile has been given in this process, and those of them that became kernels.

    A piece is tried again for shapes that its kernels were not made for. The others run as they are; torch's log says why.
    """
    from torch._dynamo.utils import counters  # slow to import: a process that compiles nothing has no need of it

    frames = counters["frames"]
    return frames["total"], frames["ok"]


class Memory:
    """Most bytes in use since the process began, or since `restart`. host: resident in this process. device: None where it is the host."""

    MARK = Path("/proc/self/clear_refs")  # Linux: writing 5 takes down the mark of the highest water, and nothing else

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def how(self) -> dict[str, str]:
        """What the two numbers mean on this machine."""
        device = {
            "cuda": "most that tensors held while the setting ran (torch.cuda.max_memory_allocated)",
            "mps": "what the driver held after the setting ran (torch.mps.driver_allocated_memory): MPS keeps no peak",
        }
        own = os.access(self.MARK, os.W_OK)
        host = "while the setting ran, with what earlier settings left in the process" if own else "since the process began"
        return {"device": device.get(self.device.type, "none: the device is the host"), "host": f"most that was resident {host}"}

    def restart(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        give_back_freed_memory()
        with suppress(OSError):
            self.MARK.write_text("5", encoding="ascii")

    def peak_device(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if self.device.type == "mps":
            return torch.mps.driver_allocated_memory()
        return None

    def peak_host(self) -> int | None:
        with suppress(OSError, IndexError, ValueError):
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            return int(status.partition("VmHWM:")[2].split()[0]) * 1024  # kilobytes
        try:
            import resource  # not on Windows
        except ImportError:
            return None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def cpu_model() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_model()} (its graphics)" if device.type == "mps" else cpu_model()


def machine_facts(device: torch.device) -> dict[str, Any]:
    """All that a timing depends on and a reader cannot guess."""
    facts: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": str(device),
        "device_name": device_name(device),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "meanaudio": meanaudio.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "float32_products": torch.backends.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "float32_products": torch.backends.cuda.matmul.fp32_precision,
            "float32_convolutions": torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
            "device_memory": properties.total_memory,
            "compute_capability": f"{properties.major}.{properties.minor}",
        }
    return facts
