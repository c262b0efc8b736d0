"""Audio on disk and exact lengths. Waveforms are float32 in [-1, 1], mono, shape [N] or [B, N]."""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from meanaudio.errors import InputError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".au", ".aif", ".aiff")
SAVE_SUFFIXES = (".wav", ".flac", ".ogg")


@dataclass(frozen=True)
class AudioSpec:
    """How samples, mel frames and latents line up. Every length derives from these three numbers.

    sample_rate: Hz. hop_length: samples a mel frame. frames_per_latent: mel frames a latent.
    """

    sample_rate: int = 16000
    hop_length: int = 256
    frames_per_latent: int = 2

    @property
    def samples_per_latent(self) -> int:
        return self.hop_length * self.frames_per_latent

    @property
    def latent_rate(self) -> float:
        """Latents a second."""
        return self.sample_rate / self.samples_per_latent

    def num_samples(self, seconds: float) -> int:
        return round(seconds * self.sample_rate)

    def window_latents(self, seconds: float) -> int:
        """Latents that lie wholly inside a window of `seconds` (training; 312 for 10 s of the release)."""
        return self.num_samples(seconds) // self.samples_per_latent

    def covering_latents(self, seconds: float) -> int:
        """Latents needed to cover `seconds` (generation, which then cuts to the exact sample)."""
        return max(1, math.ceil(self.num_samples(seconds) / self.samples_per_latent))


def resample(audio: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Resample [N] or [N, channels] by soxr (very high quality)."""
    if source_rate == target_rate:
        return audio
    return soxr.resample(audio, source_rate, target_rate, quality="VHQ")


def file_facts(path: str | Path) -> tuple[int, float]:
    """(sample rate in Hz, length in seconds) as a sound file's header says. Raises InputError if it is missing or unreadable."""
    if not Path(path).is_file():
        raise InputError(f"no such audio file: {path}")
    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be read as audio ({error})") from error
    return info.samplerate, info.frames / info.samplerate


def load_audio(path: str | Path, sample_rate: int, start: float = 0.0, duration: float | None = None) -> Tensor:
    """Read a sound file as mono float32 [N] at `sample_rate`; `start` and `duration` are seconds of the file.

    Raises InputError if the file is missing, unreadable, empty, not finite, or shorter than `start`.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such audio file: {path}")
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            if start > 0:
                if start * rate >= file.frames:
                    raise InputError(f"{path}: start {start} s is past its end ({file.frames / rate:.3f} s)")
                file.seek(round(start * rate))
            frames = -1 if duration is None else round(duration * rate)
            audio = file.read(frames, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as audio ({error})") from error
    if len(audio) == 0:
        raise InputError(f"{path}: holds no samples")
    if not np.isfinite(audio).all():
        raise InputError(f"{path}: holds NaN or infinite samples")
    return torch.from_numpy(np.ascontiguousarray(resample(audio.mean(1), rate, sample_rate), dtype=np.float32))


def fit(audio: Tensor, num_samples: int) -> Tensor:
    """Cut or zero-pad the last axis to exactly `num_samples`."""
    return torch.nn.functional.pad(audio, (0, num_samples - audio.shape[-1]))


def join(parts: Sequence[Tensor], overlap: int) -> Tensor:
    """Parts [..., N] one after another, each fading into the next over `overlap` samples at equal power: [..., sum of N - overlaps]."""
    joined, rise = parts[0], torch.linspace(0, math.pi / 2, overlap + 2, device=parts[0].device)[1:-1].sin()
    for part in parts[1:]:
        end = joined.shape[-1] - overlap
        between = joined[..., end:] * rise.flip(0) + part[..., :overlap] * rise
        joined = torch.cat([joined[..., :end], between, part[..., overlap:]], -1)
    return joined


def limit_peak(audio: Tensor, peak: float = 0.98) -> Tensor:
    """Scale each clip down so that no sample is above `peak`; quieter clips are left alone."""
    return audio * (peak / audio.abs().amax(-1, keepdim=True).clamp_min(peak))


def high_pass(audio: Tensor, sample_rate: int, cutoff: float = 20.0) -> Tensor:
    """Take away what lies below hearing, an offset above all: [..., N] -> same, by the magnitude of a Butterworth filter of second order.

    cutoff: Hz, where half of the power is left. Nothing is delayed.
    """
    length = audio.shape[-1]
    size = 1024 * math.ceil((length + 4 * sample_rate / cutoff) / 1024)  # room for the filter to ring out, and a size that is fast
    frequencies = torch.fft.rfftfreq(size, 1 / sample_rate, device=audio.device)
    return torch.fft.irfft(torch.fft.rfft(audio, size) / (1 + (cutoff / frequencies) ** 4).sqrt(), size)[..., :length]


def match_level(audio: Tensor, level_db: float, sample_rate: int, *, window: float = 0.4, max_gain_db: float = 30.0) -> Tensor:
    """Scale each clip [B, N] so that the root mean square of its loudest `window` seconds is `level_db` dBFS.

    The gain is at most `max_gain_db`: what is all but silent stays quiet.
    """
    size = min(audio.shape[-1], max(1, round(window * sample_rate)))
    powers = audio.unfold(-1, size, max(1, size // 4)).square().mean(-1).amax(-1, keepdim=True)
    gain = 10 ** (level_db / 20) / powers.sqrt().clamp_min(1e-9)
    return audio * gain.clamp_max(10 ** (max_gain_db / 20))


def save_audio(path: str | Path, audio: Tensor, sample_rate: int, metadata: dict | None = None) -> Path:
    """Write mono [N] as 16-bit wav, flac or ogg, by the suffix. `metadata` becomes a JSON comment inside the file.

    The file is written beside its place and renamed, so nobody sees half of it. Samples outside [-1, 1] are an error: see `limit_peak`.
    """
    path = Path(path)
    if path.suffix.lower() not in SAVE_SUFFIXES:
        raise InputError(f"cannot write {path.name!r}: the suffix must be one of {', '.join(SAVE_SUFFIXES)}")
    if audio.ndim != 1 or audio.numel() == 0:
        raise InputError(f"expected mono samples [N], got shape {tuple(audio.shape)}")
    if not torch.isfinite(audio).all():
        raise InputError(f"{path}: refusing to write NaN or infinite samples")
    if audio.abs().max() > 1:
        raise InputError(f"{path}: samples reach {audio.abs().max():.2f}; limit the peak to 1 first")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}") from error
    beside = path.with_name(f".{uuid.uuid4().hex}.part{path.suffix}")
    try:
        with soundfile.SoundFile(beside, "w", samplerate=sample_rate, channels=1) as file:
            if metadata is not None:
                file.software = "meanaudio"
                file.comment = json.dumps(metadata, ensure_ascii=False)
            file.write(audio.float().cpu().numpy())
        os.replace(beside, path)
    except (soundfile.LibsndfileError, OSError) as error:
        raise InputError(f"cannot write {path}: {error}") from error
    finally:
        beside.unlink(missing_ok=True)
    return path


def read_metadata(path: str | Path) -> dict:
    """The parameters that `save_audio` wrote into a file, or an empty dict. Raises InputError for what is no sound file."""
    try:
        with soundfile.SoundFile(path) as file:
            comment = file.comment
        if not comment and file.format == "WAV":
            comment = _wav_comment(Path(path)).decode()
        found = json.loads(comment) if comment else {}
    except soundfile.LibsndfileError as error:
        raise InputError(f"{path}: not a readable sound file ({error.error_string})") from None
    except ValueError:  # neither UTF-8 nor JSON
        return {}
    return found if isinstance(found, dict) else {}


def _wav_comment(path: Path) -> bytes:
    """The chunk ICMT of a wav file's list of facts: libsndfile writes a comment of any length, and reads none above 2 kB."""

    def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
        while len(data) >= 8:
            size = int.from_bytes(data[4:8], "little")
            yield data[:4], data[8 : 8 + size]
            data = data[8 + size + size % 2 :]

    facts = (body[4:] for name, body in chunks(path.read_bytes()[12:]) if name == b"LIST" and body.startswith(b"INFO"))
    return next((text.rstrip(b"\0") for part in facts for name, text in chunks(part) if name == b"ICMT"), b"")
