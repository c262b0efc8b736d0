"""How well the codec keeps held-out sounds, against Griffin-Lim from the same mels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from meanaudio.audio import fit, limit_peak, load_audio, save_audio
from meanaudio.checkpoint import write_json
from meanaudio.codec.codec import Codec, load_codec
from meanaudio.codec.griffin_lim import griffin_lim
from meanaudio.codec.losses import stft_distance
from meanaudio.data.manifest import read_manifest
from meanaudio.errors import InputError
from meanaudio.plots import save_spectrograms


@dataclass(frozen=True)
class CodecTable:
    """rows: method -> {"mel_l1", "stft"}, means over clips.

    mel_l1: mean |difference| of log10 mel. stft: see codec/losses.py, `stft_distance` (1.0 and more is usual where phases are made up).
    """

    clips: int
    seconds: float
    rows: dict[str, dict[str, float]]

    def to_text(self) -> str:
        lines = [f"{self.clips} held-out clips, {self.seconds:.1f} s", f"{'method':<24}{'log10-mel L1':>14}{'STFT distance':>15}"]
        lines += [f"{name:<24}{row['mel_l1']:>14.4f}{row['stft']:>15.4f}" for name, row in self.rows.items()]
        return "\n".join(lines)


@torch.inference_mode()
def evaluate_codec(
    codec: Codec | Path,
    manifest: Path,
    out: Path,
    *,
    splits: Sequence[str] = ("val", "test"),
    longest: float = 4.0,
    seed: int = 0,
    shown: int = 8,
) -> CodecTable:
    """Rebuild every clip of `splits` (its first `longest` seconds) by each method; write the table, pictures and sounds into `out`."""
    codec = codec if isinstance(codec, Codec) else load_codec(codec)
    clips = [clip for clip in read_manifest(manifest) if clip.split in splits]
    if not clips:
        raise InputError(f"{manifest}: no clip of split {' or '.join(splits)}")
    rate = codec.spec.sample_rate
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2, dtype=torch.float64))
    samples = 0
    for i, clip in enumerate(clips):
        audio = _whole_latents(load_audio(clip.audio, rate, clip.start, min(clip.duration or longest, longest)), codec)
        made = _rebuild(codec, audio, seed + i)
        for name, sound in made.items():
            sums[name] += torch.tensor(_distances(codec, sound, audio), dtype=torch.float64)
        samples += len(audio)
        if i < shown:
            save_spectrograms(out / f"{i:02d}.png", [(clip.caption[:40], audio), *made.items()], rate)
            for name, sound in {"reference": audio, **made}.items():
                save_audio(out / f"{i:02d}_{name.replace(' ', '_')}.wav", limit_peak(sound), rate)
    rows = {name: {"mel_l1": total[0].item() / len(clips), "stft": total[1].item() / len(clips)} for name, total in sums.items()}
    table = CodecTable(len(clips), samples / rate, rows)
    write_json(out / "table.json", {"clips": table.clips, "seconds": table.seconds, "splits": list(splits), "seed": seed, "rows": rows})
    return table


def _whole_latents(audio: Tensor, codec: Codec) -> Tensor:
    """Zero-pad [N] to whole latents."""
    unit = codec.spec.samples_per_latent
    return fit(audio, -(-len(audio) // unit) * unit)


def _rebuild(codec: Codec, audio: Tensor, seed: int) -> dict[str, Tensor]:
    """audio [N] by each method, [N]. "codec" is what is heard in use; without its texture it is nearer in distance, and duller."""
    mel = codec.mel(audio[None])
    latents = codec.vae.encode(mel).mean
    through = codec.vae.decode(latents)
    bare = {"codec, no texture": codec.vocoder(through)[0]} if codec.config.texture else {}
    return {
        "griffin-lim-32": griffin_lim(mel[0], codec.config.mel, seed=seed),
        "vocoder": codec.vocoder(mel)[0],
        "codec": codec.decode(latents)[0],
        **bare,
        "griffin-lim-32 of vae": griffin_lim(through[0], codec.config.mel, seed=seed),
    }


def _distances(codec: Codec, audio: Tensor, reference: Tensor) -> tuple[float, float]:
    """(log10-mel L1, STFT distance) of [N] against [N]."""
    mel_l1 = (codec.mel(audio[None]) - codec.mel(reference[None])).abs().mean()
    return mel_l1.item(), stft_distance(audio[None], reference[None]).item()
