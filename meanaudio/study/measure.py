"""What a trained network is worth at so many evaluations: against held-out recordings, and to its own captions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meanaudio.checkpoint import write_text
from meanaudio.config import CheckpointConfig, SceneConfig, StudyConfig, TrainConfig, WindowConfig
from meanaudio.data.items import ClipWindows, Items, Scenes, read_split
from meanaudio.data.shards import ShardDataset
from meanaudio.errors import InputError
from meanaudio.evaluation import metrics
from meanaudio.evaluation.features import Features, compare_heard, listen
from meanaudio.evaluation.hearing import make_listener
from meanaudio.evaluation.latents import held_out_distance
from meanaudio.evaluation.plan import GENERATED_LEVEL_DB
from meanaudio.evaluation.text_match import LATENTS, Agreement, KnownCaptions
from meanaudio.pipeline import MeanAudio, read_checkpoint_config
from meanaudio.study.plan import Run
from meanaudio.training.generator import CHUNK

MEASURED = "measured.jsonl"  # in a run's folder: one row a setting
NOISE_SEED = 50_000  # of the first output


def settings_of(counts: Sequence[int], guidance: float, config: CheckpointConfig) -> Iterator[tuple[int, int]]:
    """(steps, evaluations) at which a network is measured. Guidance by two passes takes half the steps for as many evaluations; it is
    measured at the most steps too, for twice the evaluations: the teacher that a distillation is held against.
    """
    if guidance == 1 or config.guidance_range is not None:
        yield from ((n, n) for n in counts)
        return
    yield from dict.fromkeys([*((n // 2, 2 * (n // 2)) for n in counts if n > 1), (max(counts), 2 * max(counts))])


class Judge:
    """Held-out scenes as latents and as real sound, and training captions with their recordings. All that is drawn is drawn once."""

    def __init__(self, study: StudyConfig, config: TrainConfig, *, device: str | None = None) -> None:
        self.study, self.config, self.device = study, config, device
        self.held_out = ShardDataset(Path(config.data) / "val")
        if len(self.held_out) < study.clips:
            raise InputError(f"clips = {study.clips}: {self.held_out.name} has {len(self.held_out)}")
        self.listener = make_listener(study.extractor, device or "cpu")
        self.known: KnownCaptions | None = None

    @cached_property
    def items(self) -> Items:
        """The held-out shards' sounds, made again from the manifest."""
        facts = self.held_out.index
        clips, rate = read_split(self.study.manifest, facts["split"]), self.config.codec.mel.sample_rate
        if facts["scenes"]:
            return Scenes(clips, facts["scenes"], rate, facts["seconds"], facts["seed"], SceneConfig(**facts["scene_weights"]))
        return ClipWindows(clips, rate, facts["seconds"], WindowConfig(**facts["windows"]))

    def _sounds(self, rows: range) -> Tensor:
        """[len(rows), N] real sound. Raises InputError if it is not what the shards were made of."""
        found = [self.items[i] for i in rows]
        for item, i in zip(found, rows, strict=True):
            if item.id != self.held_out.ids[i] or item.caption != self.held_out.captions[i]:
                raise InputError(
                    f"{self.study.manifest}: item {i} is {item.id!r}, in {self.held_out.name} it is {self.held_out.ids[i]!r}; "
                    "make the shards of this manifest, with nothing left out"
                )
        return torch.stack([item.audio for item in found])

    def _hear(self, audio: Tensor, rate: int) -> Features:
        return listen(self.listener, audio, rate, level_db=GENERATED_LEVEL_DB)

    @cached_property
    def heard(self) -> Features:
        """The first `study.heard` held-out scenes."""
        return self._hear(self._sounds(range(min(self.study.heard, self.study.clips))), self.config.codec.mel.sample_rate)

    @torch.inference_mode()
    def __call__(self, pipeline: MeanAudio, *, steps: int, guidance: float) -> dict[str, float]:
        """Numbers of one setting; see report.NUMBERS."""
        rows = range(self.study.clips)
        num_latents = pipeline.codec.spec.window_latents(pipeline.config.seconds)
        made = []
        for start in range(0, len(rows), CHUNK):
            some = rows[start : start + CHUNK]
            text, steering = pipeline.steer([self.held_out.captions[i] for i in some], guidance_scale=guidance)
            made.append(pipeline.sample_latents(text, [NOISE_SEED + i for i in some], num_latents, steps=steps, steering=steering))
        return self._numbers(pipeline, torch.cat(made)) | _agreement(self._known(pipeline).agreement(
            pipeline, steps=steps, guidance_scale=guidance
        )[0])  # fmt: skip

    def _known(self, pipeline: MeanAudio) -> KnownCaptions:
        if self.known is None:
            study = self.study
            self.known = KnownCaptions(pipeline, study.manifest, count=study.captions, outputs=study.outputs)
        return self.known

    def _latents(self, first: int, end: int) -> Tensor:
        """[end - first, L, C] of the held-out scenes."""
        return torch.cat([self.held_out.batch([*range(start, min(end, start + CHUNK))]).mean for start in range(first, end, CHUNK)])

    def _numbers(self, pipeline: MeanAudio, latents: Tensor) -> dict[str, float]:
        """latents: [clips, L, C], one a held-out scene."""
        mean, std = pipeline.mean, pipeline.std
        reference = self._latents(0, len(latents)).to(latents)
        found = {f"{LATENTS}/{k}": v for k, v in held_out_distance((latents - mean) / std, (reference - mean) / std).items()}
        parts = latents[: len(self.heard.names)].split(CHUNK)
        audio = torch.cat([pipeline.decode(x, pipeline.codec.spec.num_samples(pipeline.config.seconds)) for x in parts])
        heard = compare_heard(self.listener, self._hear(audio, pipeline.sample_rate), self.heard)
        return found | {f"heard/{key}": value for key, value in heard.items()}

    @torch.inference_mode()
    def limits(self, pipeline: MeanAudio) -> dict[str, dict[str, float]]:
        """codec: what the held-out recordings themselves get through the codec. others: as many other held-out recordings, as they are,
        where there are enough; chance: what recordings of other captions get.
        """
        clips, heard = self.study.clips, len(self.heard.names)
        own = self._latents(0, clips).to(pipeline.device)
        assert self.heard.logits is not None
        captions = self.held_out.captions[:heard]
        found = {"codec": self._numbers(pipeline, own) | _agreement(self._known(pipeline).floor)}
        if kl := metrics.unrelated_kl(self.heard.logits, captions):
            found["chance"] = {"heard/kl": kl, f"{LATENTS}/match": 1.0, "text/top_5": min(1.0, 5 / self.study.captions)}
        if len(self.held_out) >= 2 * clips:
            mean, std = pipeline.mean, pipeline.std
            other = self._latents(clips, 2 * clips).to(own)
            numbers = {f"{LATENTS}/frechet": held_out_distance((other - mean) / std, (own - mean) / std)["frechet"]}
            real = self._hear(self._sounds(range(clips, clips + heard)), self.config.codec.mel.sample_rate)
            compared = compare_heard(self.listener, real, self.heard)
            found["others"] = numbers | {f"heard/{key}": compared[key] for key in ("frechet", "kernel")}
        return found


def _agreement(found: dict[str, Agreement]) -> dict[str, float]:
    return {"text/top_5": found[LATENTS].top_5, "text/mean_rank": found[LATENTS].mean_rank}


def measure_run(run: Run, judge: Judge) -> None:
    """Measure what is not measured yet of a finished run, one row after another into its folder."""
    rows, by = measured(run, judge.study), judged_by(judge.study)
    known = {(row["guidance"], row["steps"]) for row in rows}
    pipelines: dict[Path, MeanAudio] = {}
    for scale in run.guidance:
        for steps, evaluations in settings_of(run.evaluations, scale, read_checkpoint_config(run.export)):
            if (scale, steps) not in known:
                export = run.export_for(steps)
                if export not in pipelines:
                    pipelines = {export: MeanAudio.from_pretrained(export, judge.device, run.config.loop.precision)}
                setting = {"guidance": scale, "steps": steps, "evaluations": evaluations, "network": str(export.relative_to(run.folder))}
                rows.append(setting | judge(pipelines[export], steps=steps, guidance=scale) | {"by": by})
                write_text(run.folder / MEASURED, "".join(json.dumps(row) + "\n" for row in rows))


def judged_by(study: StudyConfig) -> dict[str, Any]:
    """What makes a measurement: rows with another of it are not compared, and are measured again."""
    return study.model_dump(mode="json", include={"clips", "heard", "extractor", "captions", "outputs", "manifest"})


def measured(run: Run, study: StudyConfig) -> list[dict[str, Any]]:
    """The rows of a run's folder that were measured as `study` says; none if it has not been measured."""
    path = run.folder / MEASURED
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    return [row for row in rows if row["by"] == judged_by(study)]
