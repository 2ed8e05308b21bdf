"""The folder of a corpus has the name of its definition, whatever its file is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.corpus_name import corpus_name
from pipeline.files import read_json, write_json
from pipeline.report.compare.run import Run
from pipeline.report.facts import read_facts
from tests.report_support import fabricate_run


@pytest.mark.parametrize("given", ["cc12m", "v1.2", "birds of 2026"])
def test_a_name_is_the_name(given: str) -> None:
    assert corpus_name(given) == given


@pytest.mark.parametrize(("content", "name"), [("name: birds\n", "birds"), ("title: x\n", "file"), ("{", "file")])
@pytest.mark.parametrize("suffix", ["yaml", "yml"])
def test_a_file_says_it(tmp_path: Path, suffix: str, content: str, name: str) -> None:
    given = tmp_path / f"file.{suffix}"
    assert corpus_name(str(given)) == "file", "it is gone"
    given.write_text(content)
    assert corpus_name(str(given)) == name


def test_who_reads_a_run_finds_its_corpus(tmp_path: Path) -> None:
    run = fabricate_run(tmp_path / "run")
    plan = read_json(run / "plan.json")
    definition = tmp_path / "definition.yaml"
    definition.write_text(f"name: {plan['config']['corpus']['name']}\n")
    plan["config"]["corpus"]["name"] = str(definition)
    write_json(run / "plan.json", plan)
    assert read_facts(run).run.manifest is not None
    assert Run(run, "run").corpus == definition.read_text().split()[1]
