"""Pictures: any caption may stand above them."""

import torch

from meanaudio.plots import save_spectrogram


def test_a_title_is_no_formula(tmp_path):
    save_spectrogram(tmp_path / "a.png", torch.zeros(1600), 16000, r"a $\foo$ sound, $5 _each_")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_sound_may_be_shorter_than_a_window(tmp_path):
    save_spectrogram(tmp_path / "a.png", torch.ones(3), 16000)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
