"""Commands that the documents show exist, with the options they show. What they do is tested where they live."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from torch.distributed.run import get_args_parser

from meanaudio.cli import app
from meanaudio.config import StudyConfig, TrainConfig, load_config

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("checkpoints/*/README.md")), *sorted(ROOT.glob("docs/*.md"))]


def commands(path: Path) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if re.match(r"(meanaudio|python (train|infer)\.py|(srun )?torchrun) ", line)]


SHOWN = [(path.relative_to(ROOT).as_posix(), line) for path in DOCUMENTS for line in commands(path)]


@pytest.mark.parametrize(("document", "line"), SHOWN)
def test_shown_command_parses(document, line):
    words = shlex.split(line.removeprefix("srun "), comments=True)
    if words[0] == "torchrun":
        found = get_args_parser().parse_args(words[1:])
        words = [*([] if found.no_python else ["python"]), found.training_script, *found.training_script_args]
    words = {"train.py": ["train"], "infer.py": ["generate"]}[words[1]] + words[2:] if words[0] == "python" else words[1:]
    command, context = typer.main.get_command(app), None
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"{document}: no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    context = command.make_context(command.name, words)
    assert not context.args
    if config := context.params.get("config"):
        assert (ROOT / config).is_file(), f"{document}: {config} does not exist"
        load_config(StudyConfig if command.name == "study" else TrainConfig, ROOT / config, context.params.get("set_") or [])


def test_the_readme_shows_commands():
    assert len(SHOWN) > 10


def test_the_makefile_demo_parses():
    recipe = re.search(r"^demo:.*\n\t\S*/meanaudio (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    words = shlex.split(recipe[1])
    command = typer.main.get_command(app).commands[words[0]]
    assert len(command.make_context("generate", words[1:]).params["prompts"]) == 3
