"""Fixtures of prepared data."""

import pytest
from fakes import WordHash

from meanaudio.codec.codec import load_codec
from meanaudio.config import TextConfig
from meanaudio.data.prepare import prepare


@pytest.fixture
def make_shards(tiny_checkpoint, tiny_manifest, tmp_path):
    """Prepare the tiny manifest's train split (six clips, one window each) in shards of two; arguments of `prepare` win."""

    def make(out=tmp_path / "shards", manifest=tiny_manifest, codec_folder=tiny_checkpoint, **changes):
        settings = {"seconds": 1.024, "text": TextConfig(), "encoder": WordHash(), "shard_size": 2, "batch_size": 3, **changes}
        return prepare(manifest, out, codec=load_codec(codec_folder), codec_folder=codec_folder, progress_bar=False, **settings)

    return make
