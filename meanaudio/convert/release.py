"""The published MeanAudio files -> one of our checkpoint folders."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from meanaudio.checkpoint import file_hash, require_space, save_weights, write_hashes, write_json
from meanaudio.codec.codec import VAE_FILE, VOCODER_FILE
from meanaudio.config import CheckpointConfig, CodecConfig, MelConfig, TextConfig
from meanaudio.convert.codec import convert_vae, convert_vocoder
from meanaudio.convert.foreign import read_foreign
from meanaudio.convert.network import convert_network
from meanaudio.convert.text import T5_WEIGHTS, convert_clap, convert_flan_t5
from meanaudio.data.shards import NULL_TEXT_FILE
from meanaudio.errors import InputError
from meanaudio.models.transformer import NETWORK_FILE
from meanaudio.text import clap, flan_t5

HUB = "https://huggingface.co/AndreasXi/MeanAudio"
RELEASES = {
    "meanaudio-s-ac": "meanaudio_s_ac.pth",
    "meanaudio-s-full": "meanaudio_s_full.pth",
    "meanaudio-l-full": "meanaudio_l_full.pth",
    "fluxaudio-s-full": "fluxaudio_s_full.pth",
}
VAE_SOURCE, VOCODER_SOURCE, CLAP_SOURCE = "v1-16.pth", "best_netG.pt", "music_speech_audioset_epoch_15_esc_89.98.pt"
T5_SOURCE, ROBERTA_SOURCE = "flan-t5-large", "roberta-base"  # folders, taken if they are there
LATENTS = 312  # of the release's training windows, which it calls 10 s [code]


def convert_release(folder: Path, out: Path, model: str | None = None) -> str:
    """Write the checkpoint `out` from the released files in `folder` (or one folder below it) and return the model's name.

    model: a name of RELEASES; if left out, `out`'s own name, or the only one whose file is there. FLAN-T5 and the tokenizer of CLAP are
    taken from folders flan-t5-large and roberta-base if they lie there too; otherwise the Hugging Face cache must have them when text is
    encoded. hashes.json holds size and sha256 of each file written, and the sha256 of each file
    read. The folder is built beside its place and renamed.
    Raises InputError for missing, damaged, hostile or mistaken files, for a full disk, and if `out` already holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} already exists; remove it first, or choose another name")
    name = _choose(folder, out, model)
    sources = _find(folder, [RELEASES[name], VAE_SOURCE, VOCODER_SOURCE, CLAP_SOURCE])
    t5, roberta = _subfolder(folder, T5_SOURCE), _subfolder(folder, ROBERTA_SOURCE)
    if t5 is not None:
        sources |= {f"{T5_SOURCE}/{p.name}": p for p in sorted(t5.iterdir()) if p.name in (*T5_WEIGHTS, *flan_t5.FILES)}
    require_space(out.parent, sum(path.stat().st_size for path in sources.values()))
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as beside:
        made = Path(beside) / out.name
        made.mkdir()
        try:
            _write_network_and_codec(sources, RELEASES[name], made)
            _write_text(sources[CLAP_SOURCE], t5, roberta, made)
        except OSError as error:  # such as a disk that filled up meanwhile
            raise InputError(f"{out}: cannot be written ({error})") from None
        write_hashes(made, {"model": name, "sources": {k: file_hash(p) for k, p in sources.items()}})
        made.replace(out)
    return name


def _write_network_and_codec(sources: dict[str, Path], network_file: str, made: Path) -> None:
    """Network, VAE, vocoder, null text and config.json. One part after the other, so that one is in memory at a time."""
    mel = MelConfig()
    path = sources[VAE_SOURCE]
    vae, state = convert_vae(read_foreign(path), mel, path)
    save_weights(made / VAE_FILE, state)
    path = sources[VOCODER_SOURCE]
    vocoder, state = convert_vocoder(read_foreign(path, ["generator", "state_dict"]), mel, path)
    save_weights(made / VOCODER_FILE, state)
    path = sources[network_file]
    network = convert_network(read_foreign(path), path)
    if network.config.latent_dim != vae.latent_dim:
        raise InputError(f"{path}: a network for {network.config.latent_dim} latent channels; the VAE has {vae.latent_dim}")
    save_weights(made / NETWORK_FILE, network.state)
    save_weights(made / NULL_TEXT_FILE, network.null_text)
    codec = CodecConfig(mel=mel, vae=vae, vocoder=vocoder)
    config = CheckpointConfig(
        seconds=LATENTS * codec.audio_spec().samples_per_latent / mel.sample_rate,
        codec=codec,
        codec_hash=file_hash(made / VAE_FILE),
        text=TextConfig(encoder="flan_t5+clap", max_tokens=network.null_text["sequence"].shape[1]),
        network=network.config,
        latent_mean=tuple(network.latent_mean.tolist()),
        latent_std=tuple(network.latent_std.tolist()),
    )
    write_json(made / "config.json", config.model_dump(mode="json"))


def _write_text(clap_source: Path, t5: Path | None, roberta: Path | None, made: Path) -> None:
    values, state = convert_clap(read_foreign(clap_source, ["state_dict"]), clap_source)
    write_json(made / clap.FOLDER / "config.json", values)
    save_weights(made / clap.FOLDER / "model.safetensors", state)
    if roberta is not None and (roberta / "tokenizer.json").is_file():
        shutil.copyfile(roberta / "tokenizer.json", made / clap.FOLDER / "tokenizer.json")
    if t5 is not None:
        if not (t5 / "tokenizer.json").is_file():
            raise InputError(f"{t5}: no tokenizer.json in it")
        values, state = convert_flan_t5(t5)
        write_json(made / flan_t5.FOLDER / "config.json", values)
        save_weights(made / flan_t5.FOLDER / "model.safetensors", state)
        shutil.copyfile(t5 / "tokenizer.json", made / flan_t5.FOLDER / "tokenizer.json")


def _choose(folder: Path, out: Path, model: str | None) -> str:
    """The model's name: as asked, as `out` is called, or the only one there."""
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    if model is None and out.name in RELEASES:
        model = out.name
    if model is None:
        there = [name for name, file in RELEASES.items() if _look(folder, file)]
        if len(there) != 1:
            what = f"holds {' and '.join(there)}" if there else f"holds none of {', '.join(RELEASES.values())} (from {HUB})"
            raise InputError(f"{folder} {what}; say which with --model: {', '.join(RELEASES)}")
        return there[0]
    if model not in RELEASES:
        raise InputError(f"unknown release {model!r}: must be one of {', '.join(RELEASES)}")
    return model


def _look(folder: Path, name: str) -> Path | None:
    """A file of that name in the folder or one folder below."""
    return next((p for p in (folder / name, *sorted(folder.glob(f"*/{name}"))) if p.is_file()), None)


def _find(folder: Path, names: list[str]) -> dict[str, Path]:
    found = {name: _look(folder, name) for name in names}
    if missing := [name for name, path in found.items() if path is None]:
        raise InputError(f"put {', '.join(missing)} into {folder}; they are published at {HUB}")
    return {name: path for name, path in found.items() if path is not None}


def _subfolder(folder: Path, name: str) -> Path | None:
    return folder / name if (folder / name).is_dir() else None
