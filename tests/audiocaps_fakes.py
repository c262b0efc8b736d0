"""A folder like AudioCaps: three csv files and a folder of sounds of which some are missing and some broken. For tests and rehearsals."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

from meanaudio.audio import resample, save_audio
from meanaudio.data.manifest import Clip, read_manifest
from meanaudio.data.scenes import SceneComposer

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
RATE = 48000
# what can be wrong with a file: the first three can be seen from outside, the others only when it is decoded
BROKEN = ("text", "no bytes", "early end", "truncated", "nan")
SHARES = {"val": 0.1, "test": 0.1}


@dataclass(frozen=True)
class FakeClip:
    """A clip that was made. captions: (audiocap_id, caption), one a row of the csv. state: "good", "missing" or one of BROKEN."""

    youtube_id: str
    start_time: int
    split: str
    captions: tuple[tuple[int, str], ...]
    rate: int
    state: str
    file: Path  # where it lies, or would lie
    recording: bool  # the file is longer, and the clip begins at its start_time


@dataclass(frozen=True)
class FakeAudioCaps:
    """tables: folder of train.csv, val.csv and test.csv. audio: folder of the sounds. clips: what was made.

    test_ids: a text file with the YouTube ids of the test clips (all but the last, if there are more than two) and one that is in no table.
    """

    tables: Path
    audio: Path
    test_ids: Path
    clips: tuple[FakeClip, ...]

    def of(self, split: str, *states: str) -> list[FakeClip]:
        """The clips of a split in one of these states (all if none is given)."""
        return [c for c in self.clips if c.split == split and (not states or c.state in states)]


def make_audiocaps(
    folder: Path,
    clips: int = 24,
    *,
    seconds: float = 10.0,
    sounds: str | Path | None = None,
    missing: int = 2,
    broken: int = 5,
    recordings: int = 1,
    rates: Sequence[int] = (48000, 32000),
    seed: int = 0,
) -> FakeAudioCaps:
    """Write `folder`/csv/{train,val,test}.csv and `folder`/audio/{train,val,test}/*; the same bytes for the same arguments.

    clips: how many, a tenth each for val and test (one at least), which have five captions a clip; train has one.
    seconds: length of each, 1 or more. sounds: a manifest whose clips are composed into scenes, split by split; synthetic tones if None.
    missing, broken: how many files are not there, or there but no use (each kind of BROKEN in turn); all are in train, but one missing
    in test. recordings: how many files are longer than 10 s and hold the clip at its start_time, with quiet noise around it.
    rates: sample rates of the files, in turn. Names are those found in the wild, ID_START, ID, YID and YID_START, in wav and flac.
    The real size is `make_audiocaps(folder, 600, sounds=manifest, missing=12, broken=10, recordings=6)`: about 0.3 GB.
    """
    rng = np.random.default_rng(seed)
    held_out = {split: max(1, round(clips * share)) for split, share in SHARES.items()}
    splits = ["train"] * (clips - sum(held_out.values())) + [split for split, count in held_out.items() for _ in range(count)]
    states = _states(splits, missing, broken, recordings)
    composers = {split: _composer(sounds, split, seconds, seed) for split in dict.fromkeys(splits)}
    folder = Path(folder)
    numbers = itertools.count(1000)
    made = []
    for i, (split, state) in enumerate(zip(splits, states, strict=True)):
        youtube_id = ("-" if i == 0 else "_" if i == 1 else "") + "".join(rng.choice(list(LETTERS), 11))
        recording = state in ("recording", "early end")
        start = 30 if state == "early end" else 12 if recording else int(10 * rng.integers(0, 40))
        scene = composers[split](i)
        sentences = _sentences(scene.caption) if split != "train" else [scene.caption]
        youtube_id = youtube_id[:11]
        names = (youtube_id,) if recording else (f"{youtube_id}_{start}", youtube_id, f"Y{youtube_id}", f"Y{youtube_id}_{start}")
        file = folder / "audio" / split / (names[i % len(names)] + (".flac" if state == "truncated" or (i // 2) % 2 else ".wav"))
        if state in ("nan", "text", "no bytes"):
            file = file.with_suffix(".wav")
        clip = FakeClip(
            youtube_id,
            start,
            split,
            tuple((next(numbers), sentence) for sentence in sentences),
            rates[i % len(rates)],
            "good" if state == "recording" else state,
            file,
            state == "recording",
        )
        _write_sound(clip, resample(scene.audio.numpy(), RATE, clip.rate), rng)
        made.append(clip)
    for split in dict.fromkeys(splits):
        _write_table(folder / "csv" / f"{split}.csv", [c for c in made if c.split == split])
    tested = [c.youtube_id for c in made if c.split == "test"]
    listed = tested[:-1] if len(tested) > 2 else tested
    (folder / "test_ids.txt").write_text("\n".join([*listed, "in_no_table"]) + "\n", encoding="utf-8")
    return FakeAudioCaps(folder / "csv", folder / "audio", folder / "test_ids.txt", tuple(made))


def _states(splits: list[str], missing: int, broken: int, recordings: int) -> list[str]:
    """A state a clip. The first test clip is missing, if another is left; everything else that is wrong is in train."""
    states = ["good"] * len(splits)
    faults = ["missing"] * missing + [BROKEN[i % len(BROKEN)] for i in range(broken)]
    if missing and splits.count("test") > 1:
        states[splits.index("test")] = faults.pop(0)
    special = [*faults, *["recording"] * recordings]
    train = splits.count("train")
    if len(special) >= train:
        raise ValueError(f"{len(splits)} clips are too few: {len(special)} of the {train} for training would be special")
    for k, state in enumerate(special):  # spread evenly
        states[(k * train) // len(special)] = state
    return states


def _composer(sounds: str | Path | None, split: str, seconds: float, seed: int) -> SceneComposer:
    if sounds is None:
        return SceneComposer([Clip(name, Path(name), name) for name in TONES], RATE, seconds, seed, load=_tone)
    clips = read_manifest(sounds)
    return SceneComposer([c for c in clips if c.split == split] or clips, RATE, seconds, seed)


# caption: (frequency in Hz, change of frequency in Hz a second, beats a second, share of noise)
TONES = {
    "a low hum": (110, 0, 0, 0.02),
    "a high whistle": (2200, 0, 0, 0.05),
    "a siren rises": (400, 900, 0, 0.05),
    "a bomb falls": (2400, -1800, 0, 0.1),
    "wind hisses": (300, 0, 0, 0.95),
    "an engine rattles": (90, 0, 13, 0.4),
    "a telephone rings": (1200, 0, 20, 0.02),
    "a clock ticks": (3000, 0, 4, 0.3),
}


def _tone(clip: Clip, rate: int) -> torch.Tensor:
    frequency, slope, beats, noise = TONES[clip.caption]
    time = np.arange(int(0.8 * rate)) / rate
    wave = np.sin(2 * np.pi * (frequency * time + slope / 2 * time**2))
    hiss = np.random.default_rng(frequency).uniform(-1, 1, len(time))
    wave = ((1 - noise) * wave + noise * hiss) * (np.sin(np.pi * beats * time) ** 2 if beats else 1)
    return torch.from_numpy((0.5 * wave).astype(np.float32))


def _sentences(caption: str) -> list[str]:
    """Five ways to say it; commas and quotes among them."""
    first = caption[0].upper() + caption[1:]
    return [caption, f"{first}.", f"a recording: {caption}", f'what you hear is "{caption}"', f"{caption}, and nothing else"]


def _write_table(path: Path, clips: list[FakeClip]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\r\n" if path.stem == "val" else "\n")
        writer.writerow(["audiocap_id", "youtube_id", "start_time", "caption"])
        writer.writerows([number, c.youtube_id, c.start_time, sentence] for c in clips for number, sentence in c.captions)


def _write_sound(clip: FakeClip, audio: np.ndarray, rng: np.random.Generator) -> None:
    if clip.state == "missing":
        return
    clip.file.parent.mkdir(parents=True, exist_ok=True)
    if clip.state in ("text", "no bytes"):
        clip.file.write_text("<html>429 Too Many Requests</html>" if clip.state == "text" else "", encoding="utf-8")
    elif clip.state == "nan":
        audio = audio.copy()
        audio[len(audio) // 2] = np.nan
        soundfile.write(clip.file, audio, clip.rate, subtype="FLOAT")
        content = bytearray(clip.file.read_bytes())
        stamp = content.index(b"PEAK") + 12  # the time of writing, which would differ each time
        content[stamp : stamp + 4] = bytes(4)
        clip.file.write_bytes(content)
    else:
        before = clip.start_time if clip.recording else 11 if clip.state == "early end" else 0
        after = max(0, round(10 * clip.rate) - len(audio)) if clip.recording else 0
        first, last = (rng.normal(0, 0.01, n).astype(np.float32) for n in (before * clip.rate, after))
        save_audio(clip.file, torch.from_numpy(np.concatenate([first, audio, last]).clip(-1, 1)), clip.rate)
    if clip.state == "truncated":
        content = clip.file.read_bytes()
        clip.file.write_bytes(content[: len(content) * 6 // 10])
