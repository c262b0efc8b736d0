"""Who may import whom, what may be imported when, and a few habits, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "meanaudio"
MODULES = sorted(PACKAGE.rglob("*.py"))
DOORS = [PACKAGE.parent / "train.py", PACKAGE.parent / "infer.py"]

# A part imports strictly lower rows, and itself. In row 0 anything goes that makes no circle.
ROWS = (
    ("errors", "types", "config", "audio", "flow", "checkpoint", "eight_bits", "distributed", "plots", "memory", "precision", "concepts"),
    ("models", "text", "codec"),
    ("sampling", "guidance", "objectives", "data"),
    ("convert", "steering", "ranking", "reading"),
    ("pipeline",),
    ("evaluation", "generate", "knows", "pack"),
    ("training",),
    ("study",),
    ("cli", "webui", "export"),
)
ROW = {part: number for number, parts in enumerate(ROWS) for part in parts}
BLIND = {"sampling", "guidance", "objectives"}  # they know a Field and flow, never models, text or codec
HEAVY = {"matplotlib", "librosa", "tensorboard", "transformers", "tokenizers", "huggingface_hub", "gradio", "pandas", "sklearn"}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(node: ast.AST) -> Iterator[str]:
    """Full names of all modules imported anywhere below `node`."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"relative import of {child.module}"
            for alias in child.names:
                yield f"{child.module}.{alias.name}" if child.module == "meanaudio" else str(child.module)


def at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Statements that run when the module is imported: all but the insides of functions."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            pending += ast.iter_child_nodes(node)


def parts_imported(path: Path) -> set[str]:
    """Parts of this package that a module imports, at any time."""
    found = {name.split(".")[1] for name in imports(tree_of(path)) if name.startswith("meanaudio.")}
    return found & ROW.keys() if part_of(path) != "__init__" else set()


def test_every_part_has_its_row():
    assert {part_of(path) for path in MODULES} - {"__init__"} <= ROW.keys()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path):
    part = part_of(path)
    for other in parts_imported(path) - {part}:
        low_enough = ROW[other] < ROW[part] or ROW[other] == ROW[part] == 0
        assert low_enough, f"{name_of(path)} (row {ROW[part]}) imports {other} (row {ROW[other]})"
        assert part not in BLIND or ROW[other] == 0, f"{name_of(path)} imports {other}, which it must not know"


def test_row_zero_has_no_circle():
    needs = {part: parts_imported(PACKAGE / f"{part}.py") for part in ROWS[0] if (PACKAGE / f"{part}.py").exists()}

    def visit(part: str, above: tuple[str, ...]) -> None:
        assert part not in above, f"circle: {' -> '.join([*above, part])}"
        for other in needs[part]:
            visit(other, (*above, part))

    for part in needs:
        visit(part, ())


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_packages_wait_until_they_are_used(path):
    statements = [node for node in at_import(tree_of(path)) if isinstance(node, ast.Import | ast.ImportFrom)]
    now = {name.split(".")[0] for node in statements for name in imports(node)}
    assert not now & HEAVY, f"{name_of(path)} imports {now & HEAVY} at the top"
    assert "typer" not in now or part_of(path) == "cli"


@pytest.mark.parametrize("path", [*MODULES, *DOORS], ids=lambda p: p.name)
def test_habits(path):
    text = path.read_text(encoding="utf-8")
    for call in (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)):
        called, where = ast.unparse(call.func), f"{path.name}:{call.lineno}"
        assert not called.endswith(".cuda"), f"{where}: one resolver picks the device"
        assert called not in ("pickle.load", "pickle.loads", "eval", "exec"), f"{where}: {called} could run code"
        if called == "torch.load":
            assert "weights_only=True" in ast.unparse(call), f"{where}: torch.load could run code"
        if called == "torch.manual_seed":
            assert "fork_rng" in text, f"{where}: moves the global random state"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_library_files_do_nothing_by_themselves(path):
    assert "__main__" not in path.read_text(encoding="utf-8")


def test_the_command_line_starts_without_torch():
    code = "import sys, meanaudio, meanaudio.cli; print(sorted({'torch', 'transformers', 'numpy', 'matplotlib'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
