"""The AudioCaps protocol: its names, its lists, and one command from a checkpoint to a table."""

import json
from pathlib import Path

import pytest
from fakes import normals
from listeners import Bands

from meanaudio.audio import file_facts, save_audio
from meanaudio.data.manifest import Clip
from meanaudio.errors import InputError
from meanaudio.evaluation import extractors
from meanaudio.evaluation.evaluate import evaluate
from meanaudio.evaluation.plan import Request
from meanaudio.evaluation.protocols import PROTOCOLS, find_protocol, youtube_id

IDS = ["7fmOlUlwoNg", "--0w1YA1Hm4", "0_ogYGDGDco", "YbcdefghijK"]


@pytest.mark.parametrize("video", IDS)
def test_a_clip_is_known_whatever_a_data_set_puts_around_its_id(video):
    protocol = PROTOCOLS["audiocaps"]
    for name in (video, f"Y{video}", f"{video}_100", f"Y{video}_30_40", f"Y{video}.wav", f"{video}_30.0.flac"):
        assert youtube_id(name) == video
        assert protocol.list_key(name) == video
    assert protocol.key(Clip("91139", Path(f"/a/Y{video}_100.wav"), "")) == video
    assert protocol.key(Clip(f"Y{video}", Path("/a/00017.wav"), "")) == video


@pytest.mark.parametrize("name", ["", "rain", "91139", "7fmOlUlwoNg extra", "a/b"])
def test_other_names_are_no_ids(name):
    assert youtube_id(name) is None
    with pytest.raises(InputError, match="no id of an AudioCaps clip"):
        PROTOCOLS["audiocaps"].list_key(name)


def test_without_a_protocol_ids_are_what_they_are():
    assert find_protocol(None).key(Clip("91139", Path("/a/7fmOlUlwoNg.wav"), "")) == "91139"
    assert find_protocol(None).list_key("7fmOlUlwoNg_100") == "7fmOlUlwoNg_100"


@pytest.fixture
def test_split(tmp_path, monkeypatch, fast_text):
    """Audio of the test split at 32 kHz, 11 s and 9 s, and its csv with two captions a clip."""
    monkeypatch.setitem(extractors.EXTRACTORS, "bands", Bands)
    folder = tmp_path / "audio"
    for k, video in enumerate(IDS):
        save_audio(folder / f"Y{video}.wav", 0.1 * normals(32000 * (9 + 2 * (k % 2)), seed=k), 32000)
    rows = ["audiocap_id,youtube_id,start_time,caption"]
    rows += [f"{10 * k + n},{video},{30 * k},caption {n} of {k}" for k, video in enumerate(IDS) for n in range(2)]
    (tmp_path / "test.csv").write_text("\n".join(rows) + "\n")
    return folder


def measure(model, folder, prompts, out, **options):
    request = Request(references=(folder,), model=str(model), prompts=prompts, protocol="audiocaps", extractors=("bands",), device="cpu")
    evaluate(Request(**{**vars(request), **options}), out, shown=0, progress_bar=False)
    return json.loads((out / "results.json").read_text())


@pytest.mark.filterwarnings("ignore:.*was trained on:UserWarning")
def test_one_command_from_checkpoint_to_table(tiny_checkpoint, test_split, tmp_path):
    found = measure(tiny_checkpoint, test_split, tmp_path / "test.csv", tmp_path / "out", codec=False)
    assert [row["label"] for row in found["rows"] if row["kind"] == "outputs"] == [f"tiny, {n} step{'s' * (n > 1)}" for n in (1, 2, 5, 25)]
    assert found["treatment"] == {"duration": 10.0, "level_db": None}
    made = next(row for row in found["rows"] if row["kind"] == "outputs")
    assert made["clips"] == 4 and made["made"]["seeds"] == [0, 3] and made["numbers"]["bands"].keys() >= {"frechet", "kl", "inception"}
    assert found["references"]["treated"] == {"padded": 2, "cut": 2}
    assert any("the list names 4 clips: none of the usual 957, 975, 886" in note for note in found["notes"])
    clips = [json.loads(line) for line in (tmp_path / "out" / "clips.jsonl").read_text().splitlines()]
    captions = {clip["name"]: clip["caption"] for clip in clips if clip["row"] == "tiny, 1 step"}
    assert captions == {video: f"caption 0 of {k}" for k, video in enumerate(IDS)}  # one caption a clip: its first
    assert {file_facts(path)[1] for path in (tmp_path / "out" / "outputs").rglob("*.wav")} == {10.0}


@pytest.mark.filterwarnings("ignore:.*was trained on:UserWarning")
def test_a_list_with_captions_a_bare_list_and_missing_clips(tiny_checkpoint, test_split, tmp_path):
    table, bare = tmp_path / "list.tsv", tmp_path / "list.txt"
    table.write_text("id\tcaption\n" + "".join(f"Y{video}\tchosen {k}\n" for k, video in enumerate(IDS[:3])))
    found = measure(tiny_checkpoint, test_split, table, tmp_path / "a", steps=(1,), floor=False, codec=False)
    assert next(row for row in found["rows"] if row["kind"] == "outputs")["clips"] == 3
    bare.write_text("".join(f"{video}\n" for video in [*IDS[:2], "zzzzzzzzzzz"]))
    with pytest.raises(InputError, match="1 of .*list.txt are not in .*audio: zzzzzzzzzzz"):
        measure(tiny_checkpoint, test_split, bare, tmp_path / "b")
    for k, video in enumerate(IDS):
        (test_split / f"Y{video}.txt").write_text(f"from the folder {k}")
    found = measure(tiny_checkpoint, test_split, bare, tmp_path / "b", steps=(1,), floor=False, codec=False, allow_missing=True)
    assert next(row for row in found["rows"] if row["kind"] == "outputs")["clips"] == 2
    assert any("1 of 3 listed clips have no reference" in note for note in found["notes"])
    assert any("not as protocol audiocaps has it: steps, allow_missing" in note for note in found["notes"])
    bare.write_text("")
    table.write_text("caption\na dog barks\n")
    for path, told in ((bare, "holds no prompt"), (table, "protocol audiocaps needs the ids")):
        with pytest.raises(InputError, match=told):
            measure(tiny_checkpoint, test_split, path, tmp_path / "c")


def test_the_protocol_asks_for_the_fields_extractors():
    assert PROTOCOLS["audiocaps"].extractors == ("panns", "vggish", "passt", "clap")
    with pytest.raises(InputError, match="unknown protocol 'clotho'"):
        find_protocol("clotho")
