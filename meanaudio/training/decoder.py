"""Training the VAE's decoder on what a network makes: latents that are nearly right, and sound that is judged by a discriminator."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from meanaudio.audio import limit_peak, save_audio
from meanaudio.checkpoint import link_others, save_weights
from meanaudio.codec.codec import VAE_FILE
from meanaudio.codec.losses import MelDiscriminator
from meanaudio.codec.texture import add_texture
from meanaudio.codec.vae import MelVAE
from meanaudio.config import TrainConfig
from meanaudio.convert.hub import find_checkpoint
from meanaudio.data.items import Item, Scenes, open_scenes
from meanaudio.data.manifest import Clip, read_manifest
from meanaudio.data.prefetch import Prefetcher
from meanaudio.errors import InputError
from meanaudio.flow import expand, interpolate
from meanaudio.pipeline import MeanAudio
from meanaudio.plots import save_mels
from meanaudio.precision import DTYPES, computing_in
from meanaudio.steering import least_steering, steered_field
from meanaudio.training.codec import train_and_ask
from meanaudio.training.loop import Update

HELD_OUT_ROWS = 48
HELD_OUT_SEED = 20_000
SHOWN = 4
CHUNK = 16  # held-out rows that are worked on at once


@dataclass(frozen=True)
class _Rows:
    """mel [B, M, F] of recordings; latents [B, L, C], on the VAE's scale, that the network makes of them (at t = 0 the encoder's); ids."""

    mel: Tensor
    latents: Tensor
    ids: list[str]


class DecoderTask:
    """The decoder of `init_from`'s VAE goes on; encoder, vocoder and network stay as they are, and so does what latents mean.

    A recording's latents x get noise up to a time t and are taken back by the network in one step, x' = z - t u(z, t, 0): nearly right
    where t is small, hardly more than an output like any other where t is near 1. Of x' the decoder is to make the recording's mel, by
    distance and by the opinion of a discriminator. Decoders tuned adversarially on the encoder's latents are usual (Esser et al., arXiv
    2012.09841); that this one sees the network's errors is ours.
    """

    averaged = "decoder"
    best = "detail"

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        if config.init_from is None:
            raise InputError("task decoder needs init_from, the folder of the checkpoint whose decoder goes on")
        self.config, self.device, self.folder = config, torch.device(device), find_checkpoint(config.init_from)
        self.pipeline = MeanAudio.from_pretrained(self.folder, device=str(self.device), dtype="float32")
        codec = self.pipeline.codec
        if not isinstance(codec.vae, MelVAE):
            raise InputError(f"{self.folder}: a VAE of kind {codec.config.vae.kind!r} is for converted checkpoints, and cannot go on")
        judged = min(max(1, codec.spec.window_latents(config.decoder.window)), self._num_latents)
        self.judged_frames = judged * codec.vae.frames_per_latent
        vae = copy.deepcopy(codec.vae).train().requires_grad_(False)
        for part in _decoding(vae):
            part.requires_grad_(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.loop.seed)
            discriminator = MelDiscriminator(codec.config.mel.n_mels, config.decoder.discriminator_width).to(self.device)
        self.networks: dict[str, nn.Module] = {"decoder": vae, "discriminator": discriminator}
        clips, loop, loading = read_manifest(config.data), config.loop, config.loading
        scenes = self._scenes(clips, ("train",), loop.steps * loop.batch_size, loop.seed)
        draw = partial(_draw, scenes, rows=loop.batch_size)
        self.batches = Prefetcher(draw, ahead=loading.ahead, threads=loading.readers, stop=loop.steps)
        held_out = self._scenes(clips, ("val", "test"), HELD_OUT_ROWS, HELD_OUT_SEED)
        self.held_out = [held_out[i] for i in range(HELD_OUT_ROWS)]

    @property
    def _num_latents(self) -> int:
        return self.pipeline.codec.spec.window_latents(self.pipeline.config.seconds)

    def _scenes(self, clips: list[Clip], splits: tuple[str, ...], count: int, seed: int) -> Scenes:
        rate, seconds = self.pipeline.sample_rate, self.pipeline.config.seconds
        return open_scenes(self.config.data, clips, splits, count, rate, seconds, seed, self.config.scenes)

    def blank(self) -> nn.Module:
        return copy.deepcopy(self.networks["decoder"])

    def _autocast(self) -> torch.autocast:
        return computing_in(DTYPES[self.config.loop.precision], self.device)

    # ---------------------------------------------------------------- what the network makes of recordings

    def times(self, rows: int, generator: torch.Generator) -> Tensor:
        """[rows] times up to which recordings get noise: a share `clean` of them 0, the others evenly from 0 to `until`."""
        settings = self.config.decoder
        place = (torch.rand(rows, generator=generator) - settings.clean) / (1 - settings.clean)
        return (settings.until * place.clamp_min(0)).to(self.device)

    @torch.no_grad()
    def rows(self, items: list[Item], t: Tensor, generator: torch.Generator) -> _Rows:
        """Recordings' mels, and latents as the network has them, which starts at the times t [B]."""
        pipeline, codec = self.pipeline, self.pipeline.codec
        audio = torch.stack([item.audio for item in items])[:, : self._num_latents * codec.spec.samples_per_latent]
        mel = codec.mel(audio.to(self.device))
        x = (codec.vae.encode(mel).mean - pipeline.mean) / pipeline.std
        noise = torch.randn(x.shape, generator=generator).to(self.device)
        z, end = interpolate(x, noise, t), t if pipeline.config.network.interval == "none" else torch.zeros_like(t)
        pipeline.forget_text()  # a text's last bits are its batch's, which must not depend on what was asked before: a run may resume here
        text = pipeline.encode_text([item.caption for item in items])
        field = steered_field(pipeline.network, pipeline.config, text, least_steering(pipeline.config))
        with self._autocast():
            made = z - expand(t, z) * field(z, t, end).float()
        return _Rows(mel, made * pipeline.std + pipeline.mean, [item.id for item in items])

    # ---------------------------------------------------------------- the loop's side

    def step(self, step: int, progress: float, update: Update) -> dict[str, float]:
        settings, generator = self.config.decoder, torch.Generator().manual_seed(self.config.loop.seed_of(step))
        items = self.batches(step)
        rows = self.rows(items, self.times(len(items), generator), generator)
        vae: MelVAE = self.networks["decoder"]  # type: ignore[assignment]
        target = vae.normalize(rows.mel)
        with self._autocast():
            output = vae.decode_normalized(rows.latents)
        output = output.float()
        l1 = (output - target).abs().mean()
        # Judged is a part, and decoded the whole: a part's ends, where a decoder sees nothing beyond, would give it away.
        first = int(torch.randint(target.shape[1] - self.judged_frames + 1, (), generator=generator))
        part = slice(first, first + self.judged_frames)
        loss, logs = l1, {"l1": l1.item()}
        if settings.adversarial_weight > 0 or settings.feature_weight > 0:
            discriminator: MelDiscriminator = self.networks["discriminator"]  # type: ignore[assignment]
            extra, more = train_and_ask(discriminator, settings, output[:, part], target[:, part], rows.ids, update, self._autocast)
            loss, logs = loss + extra, logs | more
        update("decoder", [(loss, rows.ids)])
        return logs

    @torch.no_grad()
    def evaluate(self, network: nn.Module, folder: Path) -> dict[str, float]:
        """Of held-out scenes: log10-mel L1 of recordings through the codec (t = 0) and of what the network makes of them from t = 1/2;
        `detail`, how far one-step outputs, before texture, are from recordings in how much goes on: the mean over bands of |ln| of the
        ratio of what mels change by from frame to frame, and from band to band. Pictures of outputs, and their sounds.
        """
        assert isinstance(network, MelVAE)
        found: dict[float, Tensor] = {}
        for t in (0.0, 0.5, 1.0):
            generator, mels, recorded = torch.Generator().manual_seed(HELD_OUT_SEED), [], []
            for start in range(0, len(self.held_out), CHUNK):
                items = self.held_out[start : start + CHUNK]
                rows = self.rows(items, torch.full((len(items),), t, device=self.device), generator)
                mels.append(network.decode(rows.latents))
                recorded.append(rows.mel)
            found[t], mel = torch.cat(mels), torch.cat(recorded)
        self._show(found[1.0], mel, folder)
        changes = [(_changes(found[1.0], d) / _changes(mel, d)).log().abs().mean() for d in (1, 2)]
        return {
            "mel_l1": (found[0.0] - mel).abs().mean().item(),
            "mel_l1_half": (found[0.5] - mel).abs().mean().item(),
            "detail": torch.stack(changes).mean().item(),
        }

    def _show(self, made: Tensor, recorded: Tensor, folder: Path) -> None:
        codec = self.pipeline.codec
        rate, hop = codec.spec.sample_rate, codec.config.mel.hop_length
        for i in range(min(SHOWN, len(made))):
            save_mels(folder / f"{i}.png", [("recorded", recorded[i]), (f"made: {self.held_out[i].caption}", made[i])], rate / hop)
            sound = limit_peak(codec.vocoder(add_texture(made[i : i + 1], codec.config.texture))[0].cpu())
            save_audio(folder / f"{i}.wav", sound, rate, {"caption": self.held_out[i].caption})

    def export(self, network: nn.Module, folder: Path) -> None:
        """The checkpoint of init_from with the VAE's new decoder. Its config still names the VAE file that networks were trained with."""
        save_weights(folder / VAE_FILE, network.state_dict())
        link_others(self.folder, folder, (VAE_FILE,))


def _decoding(vae: MelVAE) -> list[nn.Module]:
    return [vae.decoder] if vae.linear_decoder is None else [vae.decoder, vae.linear_decoder]


def _changes(mel: Tensor, dim: int) -> Tensor:
    """Deviation, band by band, of the differences of mel [B, M, F] along `dim`; where nothing ever changes next to nothing."""
    return mel.diff(dim=dim).std((0, 2)).clamp_min(1e-3)


def _draw(scenes: Scenes, step: int, rows: int) -> list[Item]:
    return [scenes[i] for i in range(step * rows, (step + 1) * rows)]
