"""What a benchmark found: statistics of repeats, real-time factors, shares of the machine's peak, as JSON and as a table."""

from __future__ import annotations

import importlib.util
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from meanaudio.checkpoint import read_json, write_json, write_text
from meanaudio.errors import InputError
from meanaudio.evaluation.first_sound import PHASES, FirstSound
from meanaudio.evaluation.stages import STAGES, Setting
from meanaudio.plots import save_shares

FORMAT = 2
BUSY = 0.05  # share of the time waited for a core from which on a timing says more of the machine's other work than of ours
PAPER_RTF = 0.013  # MeanAudio-S-AC, one step, one RTX 3090 (arXiv 2508.06098)


@dataclass(frozen=True)
class Times:
    """Seconds of repeats. p10, p90: linear between order statistics."""

    median: float
    mean: float
    p10: float
    p90: float
    least: float
    most: float

    @staticmethod
    def of(seconds: Sequence[float]) -> Times:
        p10, p90 = (float(x) for x in np.quantile(seconds, [0.1, 0.9]))
        return Times(statistics.median(seconds), statistics.fmean(seconds), p10, p90, min(seconds), max(seconds))

    @property
    def spread(self) -> float:
        """Half of p90 - p10, over the median."""
        return (self.p90 - self.p10) / 2 / self.median if self.median else 0.0


@dataclass(frozen=True)
class Stage:
    """seconds: in one generation. share: of the time of all stages. flops: counted, of one generation.

    peak_share: FLOP/s at the median time over the machine's measured peak; None where nothing is counted.
    """

    seconds: Times
    share: float
    flops: int
    peak_share: float | None


@dataclass(frozen=True)
class Result:
    """One setting, its repeats pooled over all processes. end_to_end: seconds of plain generations, prompts in, wav files out.

    seconds: each of them, process by process; process_medians: of each process, in the order they ran.
    rtf, mean_rtf: median and mean seconds over the seconds of sound made. evaluation: seconds of one network evaluation;
    evaluations: of them a generation. overhead: median, over pairs, of a watched generation's time over the plain one's beside it, minus 1.
    drift: the second half's median over the first half's, minus 1; the median of the processes that made 4 repeats or more; None without.
    waited: share of the time that the calling thread waited for a core that other work had; None where the system does not tell.
    Memory in bytes.
    """

    setting: Setting
    end_to_end: Times
    seconds: list[list[float]]
    process_medians: list[float]
    rtf: float
    mean_rtf: float
    clips_per_second: float
    stages: dict[str, Stage]
    evaluation: Times
    evaluations: float
    overhead: float
    drift: float | None
    waited: float | None
    device_memory: int | None
    host_memory: int | None


@dataclass
class Repeats:
    """What one process read of one setting, in order: seconds of plain generations, of them those waited for a core (None if not known),
    stage -> seconds of watched generations, seconds of every network evaluation, (device, host) bytes of memory at most.

    flops: stage -> operations of one generation; empty in processes that did not count.
    """

    setting: Setting
    flops: Mapping[str, float]
    plain: list[float] = field(default_factory=list)
    waited: list[float | None] = field(default_factory=list)
    watched: list[Mapping[str, float]] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)
    memory: list[tuple[int | None, int | None]] = field(default_factory=list)


def summarise(shares: Sequence[Repeats], peaks: Mapping[str, float]) -> Result:
    """Pool what processes read of one setting. shares: of each process, in order. peaks: dtype -> FLOP/s that the machine reached."""
    setting = shares[0].setting
    plain = [seconds for share in shares for seconds in share.plain]
    watched = [run for share in shares for run in share.watched]
    evaluations = [seconds for share in shares for seconds in share.evaluations]
    flops = next(share.flops for share in shares if share.flops)
    end_to_end = Times.of(plain)
    sound = setting.batch * setting.duration
    all_stages = sum(sum(run.values()) for run in watched)
    stages = {}
    for name in STAGES:
        seconds = [run[name] for run in watched]
        times, count = Times.of(seconds), int(flops[name])
        peak_share = count / times.median / peaks[setting.dtype] if count and times.median else None
        stages[name] = Stage(times, sum(seconds) / all_stages, count, peak_share)
    drifts = [_drift(share.plain) for share in shares if len(share.plain) >= 4]
    waited = [seconds for share in shares for seconds in share.waited if seconds is not None] or None
    memory = [most for share in shares for most in share.memory]
    device, host = (max((x for x in most if x is not None), default=None) for most in zip(*memory, strict=True))
    return Result(
        setting=setting,
        end_to_end=end_to_end,
        seconds=[share.plain for share in shares],
        process_medians=[statistics.median(share.plain) for share in shares],
        rtf=end_to_end.median / sound,
        mean_rtf=end_to_end.mean / sound,
        clips_per_second=setting.batch / end_to_end.median,
        stages=stages,
        evaluation=Times.of(evaluations),
        evaluations=len(evaluations) / len(watched),
        overhead=statistics.median(sum(run.values()) / seconds for run, seconds in zip(watched, plain, strict=True)) - 1,
        drift=statistics.median(drifts) if drifts else None,
        waited=None if waited is None else sum(waited) / sum(plain),
        device_memory=device,
        host_memory=host,
    )


def _drift(seconds: Sequence[float]) -> float:
    half = len(seconds) // 2
    return statistics.median(seconds[half:]) / statistics.median(seconds[:half]) - 1


@dataclass(frozen=True)
class LeftOut:
    """A setting that ran out of the device's memory, and what was said then."""

    setting: Setting
    reason: str


@dataclass(frozen=True)
class Kernels:
    """Pieces of code that torch.compile made kernels of; those that it could not, which ran as they are; and those tried while the clock
    ran, whose time is inside the timings.
    """

    made: int
    as_they_are: int
    late: int

    @staticmethod
    def between(before: tuple[int, int], warm: tuple[int, int], after: tuple[int, int]) -> Kernels:
        """Of three counts (tried, made): before anything ran, after the warm-up, at the end."""
        tried, made = after[0] - before[0], after[1] - before[1]
        return Kernels(made, tried - made, after[0] - warm[0])

    @staticmethod
    def pooled(processes: Sequence[Kernels]) -> Kernels:
        """Each process makes the same ones, so the most of any counts; late ones, which spoil its timings alone, add up."""
        made, as_they_are = max(k.made for k in processes), max(k.as_they_are for k in processes)
        return Kernels(made, as_they_are, sum(k.late for k in processes))


@dataclass(frozen=True)
class Report:
    """facts: of machine, checkpoint and run. matmul: dtype -> FLOP/s of matrix products, before and after the timing.

    kernels: dtype -> of the compiled twin.
    """

    facts: dict[str, Any]
    matmul: dict[str, dict[str, float]]
    first_sound: list[FirstSound]
    results: list[Result]
    left_out: list[LeftOut]
    kernels: dict[str, Kernels]
    paper: bool

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    def to_text(self) -> str:
        parts = [self._head(), *(_first_sound(f) for f in self.first_sound), self._speed(), self._stages(), self._operations()]
        if self.paper:
            parts.append(self._paper())
        return "\n\n".join(parts)

    def _head(self) -> str:
        f = self.facts
        where = f"in {f['processes']} fresh process(es), each" if f["processes"] else "in the calling process,"
        how = f"{f['repeats']} generations a setting {where} after {f['warm_up']} to warm up"
        lines = [
            f"{f['model']} (sha256 {f['model_hash'][:12]}), vocoder {f['vocoder']} ({f['vocoder_from']})",
            f"on {f['device']}: {f['device_name']}",
            f"{f['cpu']}, {f['cores']} cores, {f['threads']} thread(s); torch {f['torch']}, python {f['python']}; {f['date']}",
            f"{how}, settings in turn; load average {f['load_average']}",
        ]
        for dtype, rate in self.matmul.items():
            lines.append(f"matrix products, {dtype}: {rate['before'] / 1e9:.4g} GFLOP/s before, {rate['after'] / 1e9:.4g} after")
        for dtype, kernels in self.kernels.items():
            lines.append(f"torch.compile, {dtype}: kernels of {kernels.made} pieces of code")
            if kernels.as_they_are:
                lines[-1] += f"; NOT COMPILED: {kernels.as_they_are}, which ran as they are (torch's log above says why)"
            if kernels.late:
                lines[-1] += f"; {kernels.late} MADE WHILE TIMING: give more --warm-up"
        return "\n".join(lines)

    def _speed(self) -> str:
        noise = ["spread", "processes ms", "drift", "waited"]
        rows = [["#", "setting", "median ms", "p90 ms", "mean ms", *noise, "RTF", "clips/s", "device MB", "host MB"]]
        for i, r in enumerate(self.results, 1):
            t = r.end_to_end
            least, most = (f"{x * 1e3:.1f}" for x in (min(r.process_medians), max(r.process_medians)))
            differ = f"{least}-{most}" if len(r.process_medians) > 1 else "-"
            shares = ["-" if x is None else f"{x:{form}}" for x, form in ((r.drift, "+.1%"), (r.waited, ".1%"))]
            memory = ["-" if m is None else f"{m / 1e6:.0f}" for m in (r.device_memory, r.host_memory)]
            times = [f"{x * 1e3:.1f}" for x in (t.median, t.p90, t.mean)]
            rows.append(
                [str(i), str(r.setting), *times, f"±{t.spread:.1%}", differ, *shares, f"{r.rtf:.4f}", f"{r.clips_per_second:.3g}", *memory]
            )
        busy = max((r.waited for r in self.results if r.waited is not None), default=0)
        note = f"\nBUSY: other work had the cores {busy:.0%} of the time; these times are too long" if busy > BUSY else ""
        note += "".join(f"\nLEFT OUT: {x.setting}: {x.reason}" for x in self.left_out)
        return f"end to end: prompts in, wav files out\n{_aligned(rows)}{note}"

    def _stages(self) -> str:
        rows = [["#", *STAGES, "an evaluation", "watched/plain"]]
        for i, r in enumerate(self.results, 1):
            cells = [f"{r.stages[name].seconds.median * 1e3:.1f} {r.stages[name].share:>4.0%}" for name in STAGES]
            rows.append([str(i), *cells, f"{r.evaluation.median * 1e3:.1f}", f"{1 + r.overhead:.3f}"])
        return "where the time goes: median ms, share of the whole\n" + _aligned(rows)

    def _operations(self) -> str:
        counted = [name for name in STAGES if any(r.stages[name].flops for r in self.results)]
        rows = [["#", *counted]]
        for i, r in enumerate(self.results, 1):
            stages = [r.stages[name] for name in counted]
            rows.append([str(i), *("-" if s.peak_share is None else f"{s.flops / 1e9:.2f} {s.peak_share:>4.0%}" for s in stages)])
        return f"GFLOP, share of measured peak ({self.facts['flops']})\n" + _aligned(rows)

    def _paper(self) -> str:
        rows = [["steps", "mean s", "RTF", "without file", "without text, file", "network alone"]]
        for r in self.results:
            means = {name: stage.seconds.mean for name, stage in r.stages.items()}
            parts = [sum(means.values()) - means["file"], sum(means.values()) - means["file"] - means["text"], means["network"]]
            factors = [f"{seconds / r.setting.duration:.4f}" for seconds in parts]
            rows.append([str(r.setting.steps), f"{r.end_to_end.mean:.4f}", f"{r.mean_rtf:.4f}", *factors])
        head = (
            f"the paper's protocol: batch 1, 10 s, mean of {self.facts['repeats']} prompts; it states RTF {PAPER_RTF} at 1 step, RTX 3090"
        )
        return f"{head}\n{_aligned(rows)}"


def _first_sound(found: FirstSound) -> str:
    phases = {name: f"{name} {seconds:.2f}" for name, seconds in found.phases.items()}
    before, clip = " + ".join(phases[name] for name in PHASES), " + ".join(phases[name] for name in STAGES)
    how = f"{found.dtype}, {'compiled' if found.compile else 'eager'}, {found.steps} step(s), {found.duration:g} s"
    memory = "" if found.host_memory is None else f"; at most {found.host_memory / 1e6:.0f} MB resident"
    return (
        f"first sound from a cold process ({how}; median of {len(found.totals)}): {found.median:.2f} s{memory}\n"
        f"  = {before}\n  + first clip: {clip}"
    )


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; `setting` to the left, the rest to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = [title == "setting" for title in rows[0]]
    lines = ["  ".join(c.ljust(w) if to_left else c.rjust(w) for c, w, to_left in zip(row, widths, left, strict=True)) for row in rows]
    return "\n".join(lines)


@dataclass(frozen=True)
class Earlier:
    """What is kept of an earlier report: a line that says which, its end-to-end times, and the share of them waited for a core."""

    head: str
    times: dict[Setting, tuple[Times, float | None]]


def read_earlier(path: Path) -> Earlier:
    """Raises InputError if the file is no benchmark's JSON."""
    values = read_json(path)
    try:
        facts = values["facts"]  # a checkpoint's config.json has a format too
        if values["format"] != FORMAT:
            raise InputError(f"{path}: a benchmark of format {values['format']!r}, not {FORMAT}")
        what = f"{facts['model']} (sha256 {facts['model_hash'][:12]}), vocoder {facts['vocoder']} ({facts['vocoder_from']})"
        head = f"{path}: {what}, on {facts['device_name']}, {facts['threads']} thread(s), {facts['date']}"
        return Earlier(head, {Setting(**r["setting"]): (Times(**r["end_to_end"]), r["waited"]) for r in values["results"]})
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not a benchmark's JSON ({type(error).__name__}: {error})") from None


def compare(report: Report, earlier: Earlier) -> str:
    """Medians now over medians then, for every setting. Two runs agree where these differ by no more than the two spreads together, as
    independent errors add up: the root of the sum of their squares.
    """
    rows = [["setting", "median ms", "then", "ratio", "within spread", "waited", "then"]]
    for r in report.results:
        now, (then, waited) = r.end_to_end, earlier.times.get(r.setting, (None, None))
        cells = ["-", "-", "not measured then"]
        if then is not None:
            agree = abs(now.median - then.median) <= math.hypot(now.spread * now.median, then.spread * then.median)
            cells = [f"{then.median * 1e3:.1f}", f"{now.median / then.median:.3f}", "yes" if agree else "no"]
        rows.append([str(r.setting), f"{now.median * 1e3:.1f}", *cells, *("-" if w is None else f"{w:.1%}" for w in (r.waited, waited))])
    return f"against {earlier.head}\n{_aligned(rows)}"


def save(report: Report, folder: Path) -> str:
    """Write benchmark.json, benchmark.txt and, where matplotlib is installed, benchmark.png; return what was written, in words."""
    write_json(folder / "benchmark.json", report.to_json())
    write_text(folder / "benchmark.txt", report.to_text() + "\n")
    written = f"{folder}: benchmark.json, benchmark.txt"
    if importlib.util.find_spec("matplotlib") is None:
        return f"{written}; no picture: matplotlib is not installed"
    rows = [(str(r.setting), {name: stage.seconds.median * 1e3 for name, stage in r.stages.items()}) for r in report.results]
    save_shares(folder / "benchmark.png", rows, "median ms")
    return f"{written}, benchmark.png"
