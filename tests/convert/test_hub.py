"""Published models by name: fetched, checked and converted once; without a network, told what to put where."""

import hashlib
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from release_fakes import CLAP, NETWORK, VAE, VOCODER, write_release

from meanaudio.cli import main
from meanaudio.convert import hub
from meanaudio.convert.hub import check_digest, find_checkpoint
from meanaudio.errors import InputError
from meanaudio.pipeline import MeanAudio

NAME = "meanaudio-s-full"


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("release") / "files"
    write_release(folder)
    return folder


@pytest.fixture
def online(release, tmp_path, monkeypatch) -> list[tuple[str, str]]:
    """A hub that has the small release; returns what was asked of it. The digests are those of the small files."""
    asked = []

    def download(repo: str, file: str) -> str:
        asked.append((repo, file))
        source = release / {"google/flan-t5-large": "flan-t5-large", "FacebookAI/roberta-base": "roberta-base"}.get(repo, "") / file
        blob = tmp_path / "hub" / "blobs" / hashlib.sha256(source.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, blob)
        named = tmp_path / "hub" / repo / file
        named.parent.mkdir(parents=True, exist_ok=True)
        named.unlink(missing_ok=True)
        named.symlink_to(blob)
        return str(named)

    def cached(repo: str, file: str) -> str | None:
        path = tmp_path / "hub" / repo / file
        return str(path) if path.exists() else None

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    monkeypatch.setattr(hub, "DIGESTS", {VAE: ("md5", hashlib.md5((release / VAE).read_bytes()).hexdigest())})
    monkeypatch.setenv("MEANAUDIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return asked


@pytest.fixture
def offline(online, monkeypatch) -> None:
    def refuse(*args, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError(
            "Cannot find the requested files in the disk cache\nand outgoing traffic is disabled"
        )

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)


def test_a_published_model_is_fetched_converted_and_heard_once(online, tmp_path, capsys):
    model = MeanAudio.from_pretrained(NAME, device="cpu")
    assert {file for _, file in online} >= {NETWORK, VAE, VOCODER, CLAP, "model.safetensors", "tokenizer.json"}
    assert model.generate("a dog barks", seed=0, duration=0.3).samples.shape == (1, 4800)
    said = capsys.readouterr().err
    assert "fetching 4 files" in said
    assert "converting" in said
    online.clear()
    assert find_checkpoint(NAME) == tmp_path / "cache" / "checkpoints" / NAME
    assert online == []
    assert [p.name for p in (tmp_path / "cache" / "checkpoints").iterdir()] == [NAME]  # nothing half-written beside it


def test_a_local_folder_comes_before_the_cache_and_the_hub(online, tmp_path):
    near = tmp_path / "checkpoints" / NAME
    near.mkdir(parents=True)
    (near / "config.json").write_text("{}")
    assert find_checkpoint(NAME).resolve() == near
    assert online == []


@pytest.mark.usefixtures("offline")
def test_without_a_network_the_error_says_which_files_to_put_where(monkeypatch, capsys):
    with pytest.raises(InputError) as error:
        find_checkpoint(NAME)
    for told in (NETWORK, VAE, VOCODER, CLAP, "flan-t5-large", "roberta-base", "meanaudio convert --release DIR", "disk cache"):
        assert told in str(error.value)
    with pytest.raises(InputError, match="someone/model cannot be fetched from the hub"):
        find_checkpoint("someone/model")
    monkeypatch.setattr("sys.argv", ["meanaudio", "generate", "rain", "--model", NAME])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "cannot be fetched" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["truncated", "another file"])
def test_a_file_that_is_not_the_published_one_is_refused_before_it_is_read(online, release, tmp_path, monkeypatch, how):
    download = huggingface_hub.hf_hub_download

    def broken(repo: str, file: str) -> str:
        path = Path(download(repo, file))
        if file == {"truncated": NETWORK, "another file": VAE}[how]:
            content = path.read_bytes()
            path.resolve().write_bytes(content[: len(content) // 2])
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    with pytest.raises(InputError, match="half-downloaded"):
        find_checkpoint(NAME)
    assert not (tmp_path / "cache" / "checkpoints" / NAME).exists()


def test_only_digests_that_are_known_are_compared(tmp_path, release):
    check_digest("anything", release / NETWORK)
    with pytest.raises(InputError, match="md5"):
        check_digest(VAE, release / VAE)  # the small file is not the published one


def test_one_of_our_own_folders_is_taken_from_the_hub(online, tiny_checkpoint, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **options: asked.append((repo, options)) or str(tiny_checkpoint))
    assert find_checkpoint("someone/model") == tiny_checkpoint
    assert asked[0][0] == "someone/model"
    assert not any("py" in pattern or "pt" in pattern for pattern in asked[0][1]["allow_patterns"])  # weights and words, no code
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **options: str(tmp_path))
    with pytest.raises(InputError, match="no checkpoint of this package"):
        find_checkpoint("someone/model")


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("name", ["nonesuch", "../far", "a/b/c", "", "checkpoints/nonesuch"])
def test_an_unknown_name_lists_what_there_is(name, tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match=r"unknown model.*meanaudio-s-full|no config\.json"):
        find_checkpoint(name)
