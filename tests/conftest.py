"""Fixtures: the command line, a tiny checkpoint with random weights, a tiny manifest of tones, a text encoder without weights."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from fakes import LATENT_DIM, TINY_CODEC, WordHash, fill, tiny_network, write_scorer
from hypothesis import settings

from meanaudio import text
from meanaudio.audio import save_audio
from meanaudio.checkpoint import file_hash, read_json, save_weights, write_json
from meanaudio.cli import main
from meanaudio.codec.codec import VAE_FILE, VOCODER_FILE, make_vae, make_vocoder
from meanaudio.config import CheckpointConfig, TextConfig
from meanaudio.models.transformer import NETWORK_FILE, make_network

settings.register_profile("laws", deadline=None)  # what is stated holds on a busy machine too
settings.load_profile("laws")


@pytest.fixture
def fast_text(monkeypatch) -> None:
    """The encoder called "minilm" becomes one without weights, of the same widths."""
    monkeypatch.setitem(text.ENCODERS, "minilm", WordHash)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A complete checkpoint of 1.024 s windows (16 latents); read only: take `checkpoint_copy` to change it."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    network = tiny_network(sequence_dim=384, pooled_dim=384)
    vae = make_vae(TINY_CODEC)
    save_weights(folder / NETWORK_FILE, fill(make_network(network), 1, 0.2).state_dict())
    save_weights(folder / VAE_FILE, fill(vae, 2, 0.3).state_dict() | {"mel_mean": torch.full((80,), -1.5)})
    save_weights(folder / VOCODER_FILE, fill(make_vocoder(TINY_CODEC), 3, 0.2).state_dict())
    config = CheckpointConfig(
        seconds=1.024,
        codec=TINY_CODEC,
        codec_hash=file_hash(folder / VAE_FILE),
        text=TextConfig(max_tokens=16),
        network=network,
        latent_mean=tuple(0.1 * i for i in range(LATENT_DIM)),
        latent_std=tuple(1 + 0.1 * i for i in range(LATENT_DIM)),
    )
    write_json(folder / "config.json", config.model_dump(mode="json"))
    return folder


@pytest.fixture(scope="session")
def scored_checkpoint(tiny_checkpoint, tmp_path_factory) -> Path:
    """The tiny checkpoint with a scorer that knows three captions; read only."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("checkpoints") / "scored"))
    settings = read_json(folder / "config.json")
    config = write_scorer(folder, tiny_checkpoint, {"rain": 5, "a dog barks": 2, "wind in the trees": 1})
    write_json(folder / "config.json", settings | {"scorer": config.model_dump(mode="json")})
    return folder


@pytest.fixture
def checkpoint_copy(tiny_checkpoint, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


@pytest.fixture(scope="session")
def tiny_manifest(tmp_path_factory) -> Path:
    """Eight clips of 0.5 to 1.5 s: a tone in a little noise each; two of them are split "val"."""
    folder = tmp_path_factory.mktemp("sounds")
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(8):
        time = torch.arange(8000 + 2300 * i) / 16000
        audio = 0.4 * torch.sin(2 * torch.pi * 200 * (i + 1) * time) + 0.05 * torch.randn(len(time), generator=generator)
        save_audio(folder / f"clip{i}.wav", audio.clamp(-1, 1), 16000)
        split = "val" if i >= 6 else "train"
        rows.append({"id": f"clip{i}", "audio": f"clip{i}.wav", "caption": f"a tone of {200 * (i + 1)} hertz", "split": split})
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line in this process: (exit code, stdout, stderr)."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["meanaudio", *map(str, args)])
        code = 0
        with warnings.catch_warnings():
            try:
                main()
            except SystemExit as end:
                code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
