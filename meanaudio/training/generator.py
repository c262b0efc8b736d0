"""Training the transformer on prepared shards."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from meanaudio import distributed
from meanaudio.audio import limit_peak, save_audio
from meanaudio.checkpoint import link_file, load_into, load_weights, save_weights, write_beside, write_json
from meanaudio.codec.codec import VAE_FILE, VOCODER_FILE, load_codec, read_codec_config
from meanaudio.config import DISTILLED, REWARDED, WITH_CRITIC, CheckpointConfig, TrainConfig
from meanaudio.data.prefetch import Prefetcher
from meanaudio.data.prompts import read_prompts
from meanaudio.data.requests import Requests
from meanaudio.data.sources import Encoders, open_datasets
from meanaudio.errors import InputError
from meanaudio.evaluation.clips import stem_of
from meanaudio.evaluation.features import compare_audio
from meanaudio.evaluation.hearing import make_listener
from meanaudio.evaluation.judge import load_opinion
from meanaudio.evaluation.latents import held_out_distance
from meanaudio.models.lora import adapter_state, add_adapters, save_adapters
from meanaudio.models.scorer import KNOWN_FILE, read_known
from meanaudio.models.transformer import NETWORK_FILE, Transformer, load_network, make_network
from meanaudio.objectives import Objective
from meanaudio.objectives.distribution_matching import MatchingDraws, laid_on
from meanaudio.objectives.distribution_matching import outputs as student_outputs
from meanaudio.objectives.two_times import shown_guidance
from meanaudio.pipeline import read_checkpoint_config
from meanaudio.plots import save_spectrograms
from meanaudio.precision import DTYPES, computing_in
from meanaudio.sampling import integrate, per_sample_noise, uniform_times
from meanaudio.steering import check_same_latents, codec_names
from meanaudio.text import IN_CHECKPOINT, clap, flan_t5
from meanaudio.training.channels import latent_scale
from meanaudio.training.log import mean_numbers
from meanaudio.training.loop import Update
from meanaudio.training.parallel import LossModule, compile_blocks, forward_pass, spread
from meanaudio.training.validation import CHUNK, held_out_loss
from meanaudio.types import Draws, Judge, LatentBatch, Recall, TextFeatures, send

# A network with the second interval starts as the function that one with the first was.
SAME_AT_FIRST = {("none", "relative"), ("none", "decoupled")}
ALIKE = 0.1  # share of a deviation by which normalisations may differ between init_from and what init_add adds to it
SAMPLES = 6  # clips written at each evaluation
HELD_OUT = 256  # items the held-out numbers are computed over


class GeneratorTask:
    """Batches, loss, samples and export of the transformer. `config.data` holds shards train/ and val/."""

    averaged = "network"
    best = "error"

    def __init__(self, config: TrainConfig, device: str | torch.device = "cpu") -> None:
        self.config, self.device = config, torch.device(device)
        parts = distributed.size() * config.loop.accumulate
        if config.loop.batch_size % parts:
            raise InputError(
                f"loop.batch_size = {config.loop.batch_size} must be a multiple of {parts}: "
                f"{distributed.size()} process(es), loop.accumulate = {config.loop.accumulate}"
            )
        self.train, self.held_out = open_datasets(config, self.device)
        if len(self.held_out) < distributed.size():
            raise InputError(f"{config.data}: {len(self.held_out)} held-out items are fewer than the {distributed.size()} processes")
        self._check_widths()
        self.order, loading = self.train.order(config.loop.seed), config.loading
        self.batches = Prefetcher(self.prepare_batch, ahead=loading.ahead, threads=loading.readers, stop=config.loop.steps)
        self.mean, self.std = self.train.statistics.mean.to(self.device), latent_scale(config, self.train).to(self.device)
        network = self.blank()
        if config.init_from is not None:
            self._continue_from(network, Path(config.init_from))
        if network.preconditioned and (config.init_from is None or config.latent_gain is not None):
            network.data_std.copy_(self.train.statistics.std.to(self.device) / self.std)
        self.null = self.train.null_text.to(self.device)
        teacher, critic, before, judge, recall = self._teacher(), None, None, None, None
        if config.objective.kind in WITH_CRITIC:
            assert teacher is not None
            critic = copy.deepcopy(teacher).requires_grad_(True)
        if config.objective.kind in REWARDED:
            judge = self._judge()
        if config.objective.rehearsal:
            recall = self._recall()
        if config.objective.looks_back:
            before = copy.deepcopy(network).requires_grad_(False)
        self.objective = Objective(config.objective, teacher, critic, before, judge, recall)
        self.listener = make_listener(config.evaluation.extractor, str(self.device)) if config.evaluation.extractor else None
        if self.listener is not None and not (Path(config.codec_from or "") / VOCODER_FILE).is_file():
            raise InputError(f"evaluation.extractor = {config.evaluation.extractor!r} needs sound: codec_from has no {VOCODER_FILE}")
        network.checkpoint_activations = config.loop.checkpoint_activations
        self.networks: dict[str, nn.Module] = {"network": network}
        if config.loop.compile:
            compile_blocks(network)
            if before is not None:
                compile_blocks(before)
        self.loss = spread(LossModule(network, self.objective), config.loop.parallel)
        self.critic_loss: nn.Module | None = None
        if critic is not None:
            assert teacher is not None
            if config.loop.compile:
                for other in (critic, teacher):
                    compile_blocks(other)
            self.best = "frechet_1_step"  # the objective's error depends on a critic that changes
            critic.checkpoint_activations = config.loop.checkpoint_activations
            self.networks["critic"] = critic
            following = Objective(config.objective.model_copy(update={"kind": "flow_matching"}))
            self.critic_loss = spread(LossModule(critic, following), config.loop.parallel)

    def blank(self) -> Transformer:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.loop.seed)
            network = make_network(self.config.network)
            if self.config.lora is not None:
                add_adapters(network, self.config.lora)
            return network.to(self.device)

    def _check_widths(self) -> None:
        config = self.config
        null = self.train.null_text
        widths = (len(self.train.statistics.mean), null.sequence.shape[-1], null.pooled.shape[-1])
        wanted = (config.network.latent_dim, config.network.sequence_dim, config.network.pooled_dim)
        if widths != wanted:
            raise InputError(f"{self.train.name}: items are {widths} wide (latents, sequence, pooled), the network takes {wanted}")

    def _continue_from(self, network: Transformer, folder: Path) -> None:
        """Weights of an earlier stage, and the normalisation it was trained with, whatever the statistics of this run's data are.

        Branches that start at zero may be new, everything else must fit. With adapters nothing but these may be new.
        With `latent_gain` the normalisation is new too, and the network another function: it begins with layers that see, and predict,
        the variance they are used to, 1 + s^2 in a channel of deviation s (that of v, and four times that of z at t = 1/2).
        """
        found, config = read_checkpoint_config(folder), self.config
        if self.train.index["codec_hash"] not in codec_names(folder, found):
            raise InputError(f"{folder}: trained on latents of another codec")
        if found.text.encoder != config.text.encoder:
            raise InputError(f"{folder}: trained with text encoder {found.text.encoder!r}, the config says {config.text.encoder!r}")
        before, now = found.network.interval, config.network.interval
        if before != now and (before, now) not in SAME_AT_FIRST:
            raise InputError(f"{folder}: its network has interval {before!r}; with network.interval {now!r} it would be another function")
        if found.network.preconditioned != config.network.preconditioned:
            raise InputError(
                f"{folder}: its network has preconditioned {found.network.preconditioned}; with network.preconditioned "
                f"{config.network.preconditioned} it would be another function"
            )
        if found.network.mask_text != config.network.mask_text:
            told = f"{folder}: its network has mask_text {found.network.mask_text}, the config says {config.network.mask_text}"
            if config.lora is not None:
                raise InputError(f"{told}; adapters are trained on the function that they are added to")
            warnings.warn(f"{told}: the run begins with another function than the checkpoint's", stacklevel=2)
        state = load_weights(folder / NETWORK_FILE)
        silent = ("interval_embedding", "guidance_embedding", "guidance_limits")
        own = {k: v for k, v in network.state_dict().items() if k.split(".")[0] in silent}
        new = own if config.lora is None else adapter_state(network)
        load_into(network, {**{k: v for k, v in new.items() if k not in state}, **state}, folder / NETWORK_FILE)
        if config.init_add is not None:
            self._add_what_was_learned(network, found, *map(Path, config.init_add))
        mean, std = (torch.tensor(values, device=self.device) for values in (found.latent_mean, found.latent_std))
        if config.latent_gain is not None:
            deviations = self.train.statistics.std.to(self.device)
            if not network.preconditioned:  # which sees, and predicts, unit variance on any scale
                network.rescale(torch.sqrt((1 + (deviations / self.std) ** 2) / (1 + (deviations / std) ** 2)))
            std = self.std
        self.mean, self.std = mean, std

    @torch.no_grad()
    def _add_what_was_learned(self, network: Transformer, base: CheckpointConfig, taught: Path, before: Path) -> None:
        """Add the difference of two checkpoints' weights (task arithmetic, Ilharco et al., arXiv 2212.04089).

        A network that went on in velocities thus takes over what mean velocities had taught an earlier one. Both must be of this run's
        network, codec and text encoder, and normalised alike; those of `base`, which is init_from's, may differ by ALIKE of a deviation.
        """
        described = {folder: read_checkpoint_config(folder) for folder in (taught, before)}
        apart = max(abs(a / b - 1) for a, b in zip(base.latent_std, described[before].latent_std, strict=True))
        if apart > ALIKE:
            raise InputError(
                f"init_add {before}: its latents are normalised by other deviations than init_from's (up to {apart:.0%} apart)"
            )
        mean, std = described[before].latent_mean, described[before].latent_std
        for folder, found in described.items():
            check_same_latents(folder, found, codecs={self.train.index["codec_hash"]}, text=self.config.text, mean=mean, std=std)
            ours, theirs = self.config.network.model_dump(), found.network.model_dump()
            if other := [f"{key} {theirs[key]} in place of {value}" for key, value in ours.items() if theirs[key] != value]:
                raise InputError(f"init_add {folder}: its network is another than the config's: {', '.join(other)}")
        more, less = (load_network(folder, found.network).state_dict() for folder, found in described.items())
        for name, value in network.named_parameters():
            value.add_((more[name] - less[name]).to(value))

    def _teacher(self) -> Transformer | None:
        """The frozen network that a distillation learns from. Raises InputError if it cannot teach this run's network."""
        objective = self.config.objective
        if objective.kind not in DISTILLED or objective.teacher is None:
            return None
        folder = Path(objective.teacher)
        found = read_checkpoint_config(folder)
        check_same_latents(
            folder, found, codecs={self.train.index["codec_hash"]}, text=self.config.text, mean=self.mean.tolist(), std=self.std.tolist()
        )
        if objective.kind != "progressive_distillation":
            if found.guidance_range is not None:
                raise InputError(f"teacher {folder} takes the guidance scale already; it must be a network that is guided by two passes")
        else:
            if objective.halving.steps < objective.halving.first and found.network.interval == "none":
                raise InputError(f"teacher {folder} knows velocities only: it can teach the first round, halving.steps = halving.first")
            taught = None if objective.scale is None else (objective.scale.low, objective.scale.high)
            if (found.guidance_range is None) != (taught is None) or found.network.guidance_limits:
                raise InputError(f"teacher {folder} takes guidance scales {found.guidance_range}, the objective's are {taught}")
            if taught and found.guidance_range and not found.guidance_range[0] <= taught[0] < taught[1] <= found.guidance_range[1]:
                raise InputError(
                    f"teacher {folder} was trained for guidance scales {found.guidance_range}, the objective asks for {taught}"
                )
        return load_network(folder, found.network).to(self.device)

    def _judge(self) -> Judge:
        """Of what codec_from's VAE decodes. Raises InputError if the judge was taught with other latents."""
        config, folder = self.config, Path(self.config.objective.judge or "")
        encoders, name = Encoders(config, self.device), self.train.index["codec_hash"]
        vae, mel = encoders.codec.vae, encoders.codec.config.mel
        return load_opinion(
            folder, vae, mel, encoders.text, codec_hash=name, text=config.text, mean=self.mean, std=self.std, scenes=config.scenes,
            pad=self._padding,
        )  # fmt: skip

    def _recall(self) -> Recall:
        """Prompts to rehearse: those of a file as they are, or composed of what the network that goes on knows.

        Raises InputError if neither says what it knows.
        """
        config, start = self.config, Path(self.config.init_from or "")
        if config.objective.rehearsed is not None:
            captions = [prompt.caption for prompt in read_prompts(config.objective.rehearsed) if prompt.caption]
            if not captions:
                raise InputError(f"objective.rehearsed {config.objective.rehearsed}: holds ids, no prompts")
            weights, paraphrased = {"single": 1.0}, 0.0
        elif (start / KNOWN_FILE).is_file():
            captions, weights, paraphrased = list(read_known(start)), config.scenes.weights, config.scenes.paraphrase
        else:
            raise InputError(
                f"objective.rehearsal: {start} has no scorer to say what captions it knows; name a file of prompts by objective.rehearsed"
            )
        encoder = Encoders(config, self.device).text
        return Requests(captions, captions, encoder, weights=weights, paraphrased=paraphrased, device=self.device, pad=self._padding)

    @property
    def _padding(self) -> int | None:
        """Tokens that captions are padded to. A network that hears padding hears the same amount of it in every batch; compiled code is
        made once for one length."""
        return self.config.text.max_tokens if not self.config.network.mask_text or self.config.loop.compile else None

    def prepare_batch(self, step: int) -> tuple[LatentBatch, torch.Tensor, Draws]:
        """What `draw` returns; a pure function of the step, so that it can be done ahead."""
        loop = self.config.loop
        order, rows = self.order.take(step * loop.batch_size, loop.batch_size), list(distributed.my_rows(loop.batch_size))
        batch = self.train.batch([order[row] for row in rows])
        generator = torch.Generator().manual_seed(loop.seed_of(step))
        shape = (loop.batch_size, *batch.mean.shape[1:])
        x = batch.mean + batch.std * send(torch.randn(shape, generator=generator)[rows], batch.mean.device)
        draws = self.objective.draw(shape, progress=step / loop.steps, generator=generator)[rows]
        return batch.with_text_on(self.device), (send(x, self.device) - self.mean) / self.std, draws.to(self.device)

    def draw(self, step: int) -> tuple[LatentBatch, torch.Tensor, Draws]:
        """This process's rows of batch number `step`: items, normalised latents [B, L, C] drawn from their posteriors, and draws.

        All that is random is drawn for the whole batch, so that it does not depend on the number of processes.
        """
        return self.batches(step)

    def step(self, step: int, progress: float, update: Update) -> dict[str, float]:
        batch, x, draws = self.draw(step)
        text = batch.text.pad_to(self._padding)
        logs: list[dict[str, float]] = []
        if self.critic_loss is not None:
            assert isinstance(draws, MatchingDraws)
            logs.append({"critic_error": self._follow(self.critic_loss, text, draws, batch.ids, progress, update)})

        update("network", self._losses(self.loss, x, text, draws, batch.ids, progress, logs))
        return mean_numbers(logs)

    def _losses(
        self, loss: nn.Module, x: torch.Tensor, text: TextFeatures, draws: Draws, ids: list[str], progress: float,
        logs: list[dict[str, float]],
    ) -> Iterator[tuple[torch.Tensor, list[str]]]:  # fmt: skip
        """What an update asks for, part after part of the batch; the numbers of each are added to `logs`."""
        parts = self.config.loop.accumulate
        for part in range(parts):
            rows = slice(part, None, parts)
            with forward_pass(loss, last=part == parts - 1), self._precision():
                per_sample, _, numbers = loss(x[rows], text[rows], self.null, draws[rows], progress)
            logs.append(numbers)
            yield per_sample.mean() / parts, ids[rows]

    def _follow(
        self, critic_loss: nn.Module, text: TextFeatures, draws: MatchingDraws, ids: list[str], progress: float, update: Update
    ) -> float:
        """The critic's updates of a step, all on the same outputs; its mean error."""
        parts, logs = self.config.loop.accumulate, list[dict[str, float]]()
        made = torch.empty_like(draws.noise)
        with self._precision():
            for rows in (slice(part, None, parts) for part in range(parts)):
                made[rows] = student_outputs(self.networks["network"], text[rows], draws[rows])  # type: ignore[arg-type]
        for number in range(self.config.objective.matching.critic_steps):
            update("critic", self._losses(critic_loss, made, text, laid_on(draws, number), ids, progress, logs))
        return mean_numbers(logs)["error"]

    @torch.inference_mode()
    def evaluate(self, network: nn.Module, folder: Path) -> dict[str, float]:
        """The loss on held-out clips, and one-step (mean velocity) or 25-step (flow matching) outputs for their captions.

        The clips are shared out over the processes; distances are over all of them, and a few are written as sound.
        """
        assert isinstance(network, Transformer)
        mean, count = self.config.network.interval != "none", min(HELD_OUT, len(self.held_out))
        rows = list(distributed.my_rows(count))
        batch = self.held_out.batch(rows)
        batch = replace(batch, text=batch.text.pad_to(self._padding))
        reference = (batch.mean.to(self.device) - self.mean) / self.std
        noise = per_sample_noise(reference.shape[1:], rows, self.device)
        with self._precision():
            numbers = held_out_loss(network, self.objective, batch, self.null, self.mean, self.std, count)
        references = distributed.gather_rows(reference, count)
        for steps in (1, 4) if mean else (25,):
            made = []
            for i in range(0, len(rows), CHUNK):
                with self._precision():
                    text = batch.text[i : i + CHUNK].to(self.device)
                    field = network.field(network.condition(text), shown_guidance(len(text), self.config.objective, self.device))
                    made.append(integrate(field, noise[i : i + CHUNK], uniform_times(steps), mean=mean).float())
            everything = distributed.gather_rows(torch.cat(made), count)
            numbers |= {f"{k}_{steps}_step": v for k, v in held_out_distance(everything, references).items()}
            if steps == 1 or not mean:
                outputs = everything
        heard: dict[str, float] = {}
        if distributed.is_main() and (Path(self.config.codec_from or "") / VOCODER_FILE).is_file():  # without a vocoder: no sound
            heard = self._listen_and_write(outputs, references, folder)
        return numbers | {f"{key}_{1 if mean else 25}_step": value for key, value in distributed.gather(heard)[0].items()}

    def _precision(self) -> torch.autocast:
        return computing_in(DTYPES[self.config.loop.precision], self.device)

    def _listen_and_write(self, made: torch.Tensor, reference: torch.Tensor, folder: Path) -> dict[str, float]:
        """Decode outputs and held-out recordings, both normalised latents [B, L, C]: numbers of what the listener hears, a few as files."""
        codec = load_codec(Path(self.config.codec_from or "")).to(self.device)
        rate, clips = codec.spec.sample_rate, self.config.evaluation.clips if self.listener else 0

        def decoded(latents: torch.Tensor) -> torch.Tensor:
            parts = latents[: max(SAMPLES, clips)].split(CHUNK)
            return limit_peak(torch.cat([codec.decode(x.to(self.device) * self.std + self.mean).float().cpu() for x in parts]))

        ours, theirs = decoded(made), decoded(reference)
        for i in range(min(SAMPLES, len(made))):
            sounds = torch.stack([ours[i], theirs[i]])
            name = f"{i:02d}-{stem_of(self.held_out.ids[i])}"
            save_audio(folder / f"{name}.wav", sounds[0], rate, {"caption": self.held_out.captions[i]})
            titles = (f"made: {self.held_out.captions[i]}", "held-out recording through the codec")
            save_spectrograms(folder / f"{name}.png", list(zip(titles, sounds, strict=True)), rate)
        if self.listener is None or len(ours) < 2:
            return {}
        heard = compare_audio(self.listener, ours[:clips], theirs[:clips], rate)
        return {f"{self.listener.name}_{key}": value for key, value in heard.items()}

    def export(self, network: nn.Module, folder: Path) -> None:
        """A complete checkpoint: config.json, network.safetensors, and the codec's and the text encoder's files; or adapters alone."""
        config, source = self.config, Path(self.config.codec_from or "")
        folder.mkdir(parents=True, exist_ok=True)
        if config.lora is not None:
            save_adapters(folder, network, config.lora, Path(config.init_from or ""))
            return
        save_weights(folder / NETWORK_FILE, network.state_dict())
        for name in (VAE_FILE, VOCODER_FILE):
            if (source / name).is_file():
                write_beside(folder / name, partial(shutil.copyfile, source / name))
        if config.text.encoder in IN_CHECKPOINT:
            for file in (f for part in (clap, flan_t5) for f in (Path(config.text_from or source) / part.FOLDER).glob("*")):
                link_file(file, folder / file.parent.name / file.name)
        scale = config.objective.scale
        described = CheckpointConfig(
            seconds=config.seconds,
            codec=read_codec_config(source),
            codec_hash=self.train.index["codec_hash"],
            text=config.text,
            network=config.network,
            latent_mean=tuple(self.mean.tolist()),
            latent_std=tuple(self.std.tolist()),
            guidance_range=None if scale is None else (scale.low, scale.high),
        )
        write_json(folder / "config.json", described.model_dump(mode="json"))
