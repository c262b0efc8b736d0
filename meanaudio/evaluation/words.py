"""In which words a checkpoint makes what: what is heard in its outputs of each known caption, by those who heard recordings of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from meanaudio.audio import fit, load_audio, resample
from meanaudio.checkpoint import WORDS_FILE, save_tensors, write_beside
from meanaudio.convert.hub import find_checkpoint
from meanaudio.data.manifest import read_manifest
from meanaudio.errors import InputError
from meanaudio.evaluation.extractors import Extractor, make_extractor
from meanaudio.evaluation.hearing import trim
from meanaudio.evaluation.judge import Judge
from meanaudio.models.scorer import read_known
from meanaudio.pipeline import MeanAudio, read_checkpoint_config, resolve_device
from meanaudio.reading import made_for, sparse
from meanaudio.types import Asked

EARS = ("aisfx", "soundnet")  # who listens: not who measures (docs/evaluation.md)
SECONDS, TRIM_DB = 4.0, 50.0  # of a clip, without silence at its ends, so much is heard
STEPS, BATCH, RATE, WARMUP = 400, 128, 1e-3, 20
WIDTH, DIM, HEADS, DROPOUT = 512, 256, 4, 0.3
NEAR = 0.85  # cosine of sentence vectors from which on captions are not told from each other
NOISE = 0.1  # on what is heard, in standard deviations
LEAST_STD = 1e-2
CHUNK = 16  # clips at once


def learn_words(
    model: str | Path, manifest: str | Path, *, outputs: int = 2, seed: int = 0, device: str | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> Path:  # fmt: skip
    """Write `words.safetensors` (reading.py) into the checkpoint's folder: what is heard in `outputs` outputs of each known caption.

    Two listeners learn from the training clips of `manifest` which caption a sound has, and their opinions are multiplied. seed: of
    their learning, and of the first output. progress: told of clips heard, by one listener each. Raises InputError without a scorer, and if
    a known caption has no training clip.
    """
    if outputs < 1:
        raise InputError(f"outputs = {outputs}: must be 1 or more")
    folder, where = find_checkpoint(model), resolve_device(device)
    if read_checkpoint_config(folder).scorer is None:
        raise InputError(f"{folder.name} has no scorer, which says what captions it knows (docs/scorer.md)")
    captions = list(read_known(folder))
    places = {caption: i for i, caption in enumerate(captions)}
    clips = [clip for clip in read_manifest(manifest) if clip.split == "train" and clip.caption in places]
    if absent := sorted(set(captions) - {clip.caption for clip in clips}):
        raise InputError(f"{manifest}: no training clip of {len(absent)} known caption(s), such as {absent[0]!r}")
    ears = [make_extractor(name, device=str(where)) for name in EARS]
    (folder / WORDS_FILE).unlink(missing_ok=True)  # of other weights, perhaps, with which nothing can be loaded
    pipeline = MeanAudio.from_pretrained(folder, device=str(where))
    rate = pipeline.sample_rate
    recorded = _heard(ears, rate, (load_audio(clip.audio, rate, clip.start, clip.duration) for clip in clips), progress)
    made = _heard(ears, rate, _outputs(pipeline, [c for c in captions for _ in range(outputs)], seed), progress)
    text = torch.cat([pipeline.encode_text(captions[i : i + CHUNK]).pooled.float().cpu() for i in range(0, len(captions), CHUNK)])
    taught, total = torch.tensor([places[clip.caption] for clip in clips]), torch.zeros(len(captions), len(captions))
    for recordings, sounds in zip(recorded, made, strict=True):
        listener = _teach(recordings, taught, text, seed)
        with torch.inference_mode():
            total += listener.fits(sounds).log_softmax(1).unflatten(0, (-1, outputs)).mean(1)
    heard = (total / len(ears)).softmax(1)
    write_beside(folder / WORDS_FILE, lambda path: save_tensors(sparse(heard), path, made_for(folder, captions)))
    return folder / WORDS_FILE


def _outputs(pipeline: MeanAudio, texts: Sequence[str], seed: int) -> Iterable[Tensor]:
    """One step's, of each text alone; clip k is drawn from seed + k."""
    for start in range(0, len(texts), CHUNK):
        yield from pipeline.generate(texts[start : start + CHUNK], seed=seed + start, by_event=False, known_captions=0).samples.cpu()


@torch.inference_mode()
def _heard(ears: Sequence[Extractor], rate: int, clips: Iterable[Tensor], progress: Callable[[int], object]) -> list[Tensor]:
    """What each of `ears` hears in N clips [N, D]: the largest of its rows."""
    found, waiting = list[list[Tensor]]([[] for _ in ears]), list[Tensor]()

    def hear() -> None:
        for rows, extractor in zip(found, ears, strict=True):
            at_rate = [torch.from_numpy(resample(clip.numpy(), rate, extractor.sample_rate)) for clip in waiting]
            rows += [features.embeddings.amax(0) for features in extractor(at_rate)]
            progress(len(waiting))
        waiting.clear()

    for clip in clips:
        waiting.append(fit(trim(clip.float(), rate, TRIM_DB), round(SECONDS * rate)))
        if len(waiting) == CHUNK:
            hear()
    if waiting:
        hear()
    return [torch.stack(rows) for rows in found]


def _teach(features: Tensor, captions: Tensor, text: Tensor, seed: int) -> Judge:
    """A judge of features [N, D] of recordings of the captions numbered [N], whose sentence vectors are text [K, P]; on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge(
            pooled_dim=text.shape[1], width=WIDTH, dim=DIM, heads=HEADS, captions=len(text), near=NEAR, dropout=DROPOUT,
            features=features.shape[1],
        )  # fmt: skip
        judge.mean.copy_(features.mean(0))
        judge.std.copy_(features.std(0) + LEAST_STD)
        judge.captions.copy_(text)
        optimizer = torch.optim.AdamW(judge.parameters(), RATE, betas=(0.9, 0.99), weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=WARMUP / STEPS, cycle_momentum=False)
        for _ in range(STEPS):
            rows = torch.randint(len(features), (BATCH,))
            heard = features[rows] + NOISE * judge.std * torch.randn(BATCH, features.shape[1])
            loss = judge(heard[..., None], Asked(captions[rows, None], torch.zeros(BATCH, dtype=torch.bool))).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return judge.eval().requires_grad_(False)
