"""Several processes as one run, started by torchrun: who am I, what do the others say, and who of them is gone.

Without torchrun there is one process, and every function here answers for it alone.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from meanaudio.errors import InputError, RankLost

COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # for ranks that live and still never come; dead ones are found by the watch


@dataclass(frozen=True)
class Environment:
    """A process's place, as torchrun states it: global rank, number of processes, and the number on this machine (its GPU)."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @staticmethod
    def read() -> Environment:
        """From RANK, WORLD_SIZE and LOCAL_RANK; the one process if RANK is not set. Raises InputError if they make no sense."""
        if "RANK" not in os.environ:
            return Environment()
        try:
            rank, size, local = (int(os.environ[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        except (KeyError, ValueError) as error:
            raise InputError(f"RANK is set, so WORLD_SIZE and LOCAL_RANK must be numbers too: start with torchrun ({error})") from None
        if not 0 <= rank < size:
            raise InputError(f"RANK = {rank} must lie below WORLD_SIZE = {size}")
        return Environment(rank, size, local)


def joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Global rank of this process in the group it joined."""
    return dist.get_rank() if joined() else 0


def size() -> int:
    return dist.get_world_size() if joined() else 1


def is_main() -> bool:
    """True in the one process that writes what there is one of."""
    return rank() == 0


def barrier() -> None:
    if joined():
        gather(None)  # by the CPU's backend, unlike dist.barrier


def gather(value: Any) -> list[Any]:
    """Every rank's `value`, in the order of ranks, on every rank."""
    if not joined():
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def any_rank(flag: bool) -> bool:
    """True on every rank if `flag` is on one."""
    if not joined():
        return flag
    raised = torch.tensor([flag], dtype=torch.uint8)
    dist.all_reduce(raised, dist.ReduceOp.MAX)
    return bool(raised)


def my_rows(count: int) -> range:
    """This rank's share of `count` rows: every size()-th, so that every kind of row is spread over the ranks."""
    return range(rank(), count, size())


def gather_rows(mine: Tensor, count: int) -> Tensor:
    """All `count` rows in order, from the shares of `my_rows`; on every rank."""
    whole = mine.new_empty((count, *mine.shape[1:]))
    for number, rows in enumerate(gather(mine.cpu())):
        whole[number :: size()] = rows.to(mine.device)
    return whole


@contextmanager
def process_group(device: torch.device, patience: float) -> Iterator[None]:
    """Join the group that torchrun started (nccl for CUDA tensors, gloo for the CPU's), and leave it; nothing to join without torchrun.

    A process joins once: within another `process_group` this one does nothing, and left groups cannot be joined again.
    A rank that fails or dies ends every other within about `patience` seconds with RankLost, which names it.
    """
    here = Environment.read()
    if "RANK" not in os.environ or joined():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)
    watch = _Watch(here.rank, here.size, patience)
    watch.start()
    try:
        yield
        barrier()
    except BaseException as error:
        watch.end(error)
        raise
    watch.stop()
    gc.collect()  # a DDP module in a cycle would keep the group, whose threads must not outlive the interpreter (pytorch issue 190489)
    barrier()  # rank 0 may keep the store: it goes last
    dist.destroy_process_group()


class _Watch(threading.Thread):
    """Shows in the group's store that this rank lives, and looks whether the others do.

    The main thread may be deep in a collective that will never end (nccl does not notice a dead peer); this thread then ends the process.
    """

    def __init__(self, rank: int, size: int, patience: float) -> None:
        super().__init__(daemon=True, name="watch")
        self.rank, self.patience, self.beat = rank, patience, min(5.0, patience / 10)
        self.others = [other for other in range(size) if other != rank]
        # A connection of its own: a store serves one call at a time, and the main thread's may block.
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=max(patience, 1.0)))
        self.store = dist.PrefixStore(f"watch/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        self.names = gather(f"rank {rank} ({socket.gethostname()}, process {os.getpid()})")
        self.store.set(str(rank), "0")
        barrier()
        self.lost: str | None = None  # what became of another rank
        self.found, self.stopped = threading.Event(), threading.Event()

    def run(self) -> None:
        count, heard = 0, {other: ("", time.monotonic()) for other in self.others}
        while not self.stopped.wait(self.beat):
            count += 1
            try:
                self.store.set(str(self.rank), str(count))
                signs = self.store.multi_get([str(other) for other in self.others])
            except RuntimeError as error:  # the store lives in rank 0 or in the torchrun of its machine
                self._report(f"{self.names[0]} or its torchrun does not answer ({str(error).splitlines()[0][:200]})")
                break
            for other, sign in zip(self.others, (sign.decode(errors="replace") for sign in signs), strict=True):
                if sign.startswith("failed"):
                    self._report(f"{self.names[other]} {sign}")
                elif sign != heard[other][0]:
                    heard[other] = (sign, time.monotonic())
                elif time.monotonic() - heard[other][1] > self.patience:
                    self._report(f"{self.names[other]} died: no sign of life for {self.patience:g} s")
            if self.lost is not None:
                break
        # The main thread says it better, if it gets to it.
        if self.lost is not None and not self.stopped.wait(2 + 2 * self.beat):
            print(f"error: {self.lost}", file=sys.stderr, flush=True)
            os._exit(1)

    def _report(self, what: str) -> None:
        if self.lost is None:
            self.lost = what
            self.found.set()

    def end(self, error: BaseException) -> None:
        """The main thread's last call after `error`: tells the others. Raises RankLost if another rank is the cause."""
        if _is_broken_line(error):
            self.found.wait(self.patience + 2 * self.beat)
        self.stop()
        self._tell(f"failed: {self.lost or f'{type(error).__name__}: {error}'}")
        if self.lost is not None:
            raise RankLost(self.lost) from error

    def _tell(self, sign: str) -> None:
        """Leave a last sign and stay until the others had the time to read it: this rank may keep the store."""
        try:
            self.store.set(str(self.rank), sign)
            time.sleep(2 * self.beat)
        except RuntimeError:
            return  # nobody is left to tell

    def stop(self) -> None:
        self.stopped.set()
        if self.is_alive():
            self.join()


def _is_broken_line(error: BaseException | None) -> bool:
    """True if `error` came of talking to another rank: torch's own classes, and the plain RuntimeError that gloo raises."""
    while error is not None:
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
