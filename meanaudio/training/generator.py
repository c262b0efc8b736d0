"""Training the transformer on prepared shards."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import nn

from meanaudio.audio import limit_peak, save_audio
from meanaudio.checkpoint import load_into, load_weights, read_json, save_weights, write_json
from meanaudio.codec.codec import VAE_FILE, VOCODER_FILE, load_codec, read_codec_config
from meanaudio.config import CheckpointConfig, TrainConfig
from meanaudio.data.prefetch import Prefetcher
from meanaudio.data.sources import open_datasets
from meanaudio.errors import InputError
from meanaudio.evaluation.latents import held_out_distance
from meanaudio.models.transformer import NETWORK_FILE, Transformer, make_network
from meanaudio.objectives import make_objective
from meanaudio.plots import save_spectrograms
from meanaudio.precision import DTYPES, computing_in
from meanaudio.sampling import integrate, per_sample_noise, uniform_times
from meanaudio.training.loop import Update
from meanaudio.types import LatentBatch

SAMPLES = 6  # clips written at each evaluation
HELD_OUT = 256  # items the held-out numbers are computed over


class GeneratorTask:
    """Batches, loss, samples and export of the transformer. `config.data` holds shards train/ and val/."""

    averaged = "network"

    def __init__(self, config: TrainConfig, device: str = "cpu") -> None:
        self.config, self.device = config, torch.device(device)
        self.train, self.held_out = open_datasets(config, self.device)
        self._check_widths()
        self.order = self.train.order(config.loop.seed)
        self.batches = Prefetcher(self.prepare_batch, ahead=config.loading.ahead)
        statistics = self.train.statistics
        self.mean, self.std = statistics.mean.to(self.device), statistics.std.to(self.device)
        self.null = self.train.null_text.to(self.device)
        self.objective = make_objective(config.objective)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.loop.seed)
            network = make_network(config.network)
        if config.init_from is not None:
            self._continue_from(network, Path(config.init_from))
        self.networks: dict[str, nn.Module] = {"network": network.to(self.device)}

    def _check_widths(self) -> None:
        config = self.config
        null = self.train.null_text
        widths = (len(self.train.statistics.mean), null.sequence.shape[-1], null.pooled.shape[-1])
        wanted = (config.network.latent_dim, config.network.sequence_dim, config.network.pooled_dim)
        if widths != wanted:
            raise InputError(f"{self.train.name}: items are {widths} wide (latents, sequence, pooled), the network takes {wanted}")

    def _continue_from(self, network: nn.Module, folder: Path) -> None:
        """Weights of an earlier stage; branches that start at zero may be new, everything else must fit."""
        before = read_json(folder / "config.json").get("codec_hash")
        if before != self.train.index["codec_hash"]:
            raise InputError(f"{folder}: trained on latents of another codec")
        state = load_weights(folder / NETWORK_FILE)
        new = {k: v for k, v in network.state_dict().items() if k.split(".")[0] in ("interval_embedding", "guidance_embedding")}
        load_into(network, {**{k: v for k, v in new.items() if k not in state}, **state}, folder / NETWORK_FILE)

    def prepare_batch(self, step: int) -> tuple[LatentBatch, torch.Tensor, torch.Generator]:
        """What `draw` returns; a pure function of step, so that it can be done ahead."""
        loop = self.config.loop
        batch = self.train.batch(self.order.take(step * loop.batch_size, loop.batch_size))
        generator = torch.Generator().manual_seed(loop.seed * 1_000_003 + step)
        return batch, (batch.sample(generator).to(self.device) - self.mean) / self.std, generator

    def draw(self, step: int) -> tuple[LatentBatch, torch.Tensor, torch.Generator]:
        """Batch number `step`: items, normalised latents [B, L, C] drawn from their posteriors, and the step's generator."""
        return self.batches(step)

    def step(self, step: int, progress: float, update: Update) -> dict[str, float]:
        batch, x, generator = self.draw(step)
        with self._precision():
            loss = self.objective(
                self.networks["network"], x, batch.text.to(self.device), self.null, progress=progress, generator=generator
            )
        update("network", loss.per_sample.mean(), batch.ids)
        return loss.logs

    @torch.inference_mode()
    def evaluate(self, network: nn.Module, folder: Path) -> dict[str, float]:
        """One-step (mean velocity) or 25-step (flow matching) outputs for held-out captions: distances, and a few as sound."""
        mean = self.config.network.interval != "none"
        indices = list(range(min(HELD_OUT, len(self.held_out))))
        batch = self.held_out.batch(indices)
        reference = (batch.mean.to(self.device) - self.mean) / self.std
        noise = per_sample_noise(reference.shape[1:], indices, self.device)
        assert isinstance(network, Transformer)
        numbers: dict[str, float] = {}
        for steps in (1, 4) if mean else (25,):
            with self._precision():
                field = network.field(network.condition(batch.text.to(self.device)))
                made = integrate(field, noise, uniform_times(steps), mean=mean).float()
            numbers |= {f"{k}_{steps}_step": v for k, v in held_out_distance(made, reference).items()}
            if steps == 1 or not mean:
                outputs = made
        self._write_samples(outputs, reference, folder)
        return numbers

    def _precision(self) -> torch.autocast:
        return computing_in(DTYPES[self.config.loop.precision], self.device)

    def _write_samples(self, made: torch.Tensor, reference: torch.Tensor, folder: Path) -> None:
        source = Path(self.config.codec_from or "")
        if not (source / VOCODER_FILE).is_file():  # a codec whose vocoder is still being trained: numbers only
            return
        codec = load_codec(source).to(self.device)
        rate = codec.spec.sample_rate
        for i in range(min(SAMPLES, len(made))):
            sounds = limit_peak(codec.decode(torch.stack([made[i], reference[i]]) * self.std + self.mean)).cpu()
            name = f"{i:02d}-{self.held_out.ids[i][:60]}"
            save_audio(folder / f"{name}.wav", sounds[0], rate, {"caption": self.held_out.captions[i]})
            titles = (f"made: {self.held_out.captions[i]}", "held-out recording through the codec")
            save_spectrograms(folder / f"{name}.png", list(zip(titles, sounds, strict=True)), rate)

    def export(self, network: nn.Module, folder: Path) -> None:
        """A complete checkpoint: config.json, network.safetensors and copies of the codec's parts that exist."""
        config, source = self.config, Path(self.config.codec_from or "")
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(folder / NETWORK_FILE, network.state_dict())
        for name in (VAE_FILE, VOCODER_FILE):
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        described = CheckpointConfig(
            seconds=config.seconds,
            codec=read_codec_config(source),
            codec_hash=self.train.index["codec_hash"],
            text=config.text,
            network=config.network,
            latent_mean=tuple(self.mean.tolist()),
            latent_std=tuple(self.std.tolist()),
        )
        write_json(folder / "config.json", described.model_dump(mode="json"))
