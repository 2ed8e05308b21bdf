"""The pages say what is there: every command with its options, every setting, metric, link and module."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from data_prep.cli import main as data_prep
from pipeline.cli import main as neuclip
from pipeline.config.schema import RunConfig, Section
from pipeline.evaluation.kinds import KINDS
from pipeline.objectives import REGISTRY

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(
    r"(?:^|&&)[\s`]*(?:\w+=\S+ +)*(?:torchrun .*?|python +)?(neuclip|data-prep|-m pipeline|-m data_prep) +([a-z-].*)"
)
SECTIONS = [name for name, field in RunConfig.model_fields.items() if isinstance(field.annotation, type(Section))]
SETTING = re.compile(rf"(?<![\w./-])((?:{'|'.join(SECTIONS)})\.[a-z_]+)\b(?!\()")

METRIC = re.compile(r"(?:train|npn|amorlip|fastclip|siglip|data|checkpoint|health|ranks|system)/[a-z0-9_]+")


def typed(text: str) -> Iterator[tuple[click.Group, list[str]]]:
    """The commands of a page: those in blocks of code, and those in the text that are marked as code."""
    block = False
    for line in text.splitlines():
        block ^= line.startswith("```")
        for code in [line] if block or line.startswith("    ") else re.findall(r"`[^`]+`", line):
            for name, rest in COMMAND.findall(code.partition("# ")[0]):
                group = neuclip if name in ("neuclip", "-m pipeline") else data_prep
                yield group, re.sub(r"^--root \S+", "", rest.replace("`", " ")).split()


def problem(group: click.Group, words: list[str]) -> str | None:
    """Which command or option is not there."""
    command: click.Command = group
    for word in words:
        if isinstance(command, click.Group) and not word.startswith("-"):
            if word not in command.commands:
                return f"no command {word!r} in {command.name}"
            command = command.commands[word]
        elif word.startswith("--"):
            options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
            if word.partition("=")[0].rstrip(",.;:)") not in {*options, "--help"}:
                return f"{command.name} has no {word}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_there_with_its_options(page: Path) -> None:
    wrong = [found for command in typed(page.read_text()) if (found := problem(*command))]
    assert not wrong


def test_the_pages_have_commands_and_settings() -> None:
    """Else nothing would be looked at above and below."""
    text = [page.read_text() for page in PAGES]
    assert sum(len(list(typed(page))) for page in text) > 60
    assert sum(len(SETTING.findall(page)) for page in text) > 60


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "slurm.md"], ids=lambda page: page.name)
def test_every_setting_is_one(page: Path) -> None:
    for name in SETTING.findall(page.read_text()):
        section, key = name.split(".")
        files = ("md", "py", "yaml", "json", "sbatch", "state_dict")
        known = RunConfig.model_fields[section].annotation
        assert key in files or key in known.model_fields, f"{page.name}: {name}"


def test_every_metric_is_explained() -> None:
    """Those whose names are written out in the code; what comes after a `_` at the end is made there."""
    text = "\n".join(page.read_text() for page in PAGES)
    nodes = (node for path in (ROOT / "pipeline").rglob("*.py") for node in ast.walk(ast.parse(path.read_text())))
    names = {str(node.value) for node in nodes if isinstance(node, ast.Constant) and METRIC.fullmatch(str(node.value))}
    assert len(names) > 40
    assert not [name for name in sorted(names) if not re.search(rf"`{name}\b" if name[-1] != "_" else name, text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([\w./-]+)(?:#[\w-]*)?\)", page.read_text()):
        assert (page.parent / target).exists() or target.isalnum(), f"{page.name}: {target}"


def test_every_module_has_its_place_in_the_architecture() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    named = {word.removesuffix(".py").rpartition("/")[2] for word in re.findall(r"`([\w./]+)`", text)}
    one_each = {*REGISTRY, *KINDS, "__init__", "__main__"}  # a file per objective, and per kind of task
    drawn = {"cli", "fabricate", "report"}  # of data_prep: told of as a whole
    nowhere = {
        str(path.relative_to(ROOT))
        for path in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "data_prep").rglob("*.py")]
        if path.stem not in named | one_each
        if not (path.parts[-3] == "data_prep" and path.parent.name in drawn)
    }
    assert not nowhere
