"""The benchmark beside the public code's shape: the same sound, every variant, and its refusals. Nothing here looks at a time."""

import sys

import pytest
import torch
from fakes import normals
from release_fakes import write_release

from meanaudio.cli import main
from meanaudio.codec.bigvgan import BigVGAN, SmoothSnake
from meanaudio.codec.spectral_conv import SpectralConv1d
from meanaudio.convert import convert_release
from meanaudio.errors import InputError
from meanaudio.evaluation.release_benchmark import VARIANTS, TextbookSnake, in_public_shape, release_benchmark


def test_the_public_shape_gives_the_same_sound():
    vocoder = BigVGAN(8, 16, (2, 2), (4, 4), (3,), (1, 3)).requires_grad_(False)
    mel = normals(1, 8, 30)
    expected = vocoder(mel)
    in_public_shape(vocoder)
    assert not any(isinstance(m, SmoothSnake) and not isinstance(p, TextbookSnake) for p in vocoder.modules() for m in p.children())
    assert not any(isinstance(m, SpectralConv1d) for m in vocoder.modules())
    torch.testing.assert_close(vocoder(mel), expected, atol=1e-5, rtol=1e-4)


def test_every_variant_is_timed_beside_the_baseline(tmp_path, monkeypatch, capsys):
    write_release(tmp_path / "files")
    convert_release(tmp_path / "files", tmp_path / "meanaudio-s-full")
    monkeypatch.setattr(sys, "argv", ["meanaudio", "benchmark-release", str(tmp_path / "meanaudio-s-full"), "--rounds", "1"])
    with pytest.raises(SystemExit, match="0"):
        main()
    table = capsys.readouterr().out.splitlines()
    assert [line[:24].strip() for line in table[2:]] == list(VARIANTS)
    differences = [float(line.split()[-1]) for line in table[2:]]
    assert differences[0] == 0
    assert 0 < differences[1] < 1e-3  # float32: the same to rounding
    assert differences[1] < differences[2] < 0.2  # bf16
    assert all(line.split()[-4].endswith("x") for line in table[2:])


def test_what_cannot_be_measured_is_refused(tiny_checkpoint):
    with pytest.raises(InputError, match="rounds = 0"):
        release_benchmark(tiny_checkpoint, rounds=0)
    with pytest.raises(InputError, match="unknown model"):
        release_benchmark("nonesuch", rounds=1)
