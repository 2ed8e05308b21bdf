"""The facts of a corpus's report, and that it can be made at every stage."""

from __future__ import annotations

import io
import json

import pytest
from click.testing import CliRunner
from PIL import Image

from data_prep.cli import main
from data_prep.derive import derive
from data_prep.progress import silent
from data_prep.report import build_report
from data_prep.report.facts import HostFacts, read_facts
from data_prep.report.scripts import script
from pipeline.errors import UserError
from tests.corpus_report_support import OUTCOMES, fabricate_corpus


def test_the_facts_are_those_of_the_records(tmp_path):
    facts = read_facts(fabricate_corpus(tmp_path), silent)
    assert facts.outcomes == OUTCOMES
    assert facts.dropped == {"no_caption": 20, "duplicate": 10}
    assert facts.achieved_yield == 0.6
    assert facts.hosts[0] == HostFacts("host-0.example", 25, 15, "http_404")
    assert (facts.distinct_hosts, facts.host_items, facts.all_items) == (4, 2, 2)
    assert facts.sample.samples == 60
    assert facts.sample.repeated_images == 9
    assert facts.sample.repeated_captions == 54
    assert facts.sample.height == list(range(200, 260))
    assert facts.sample.scripts == {
        "Latin (ASCII)": 55, "Latin with accents": 2, "Cyrillic": 1, "Japanese": 1, "no letters": 1,
    }  # fmt: skip


def test_throughput_gives_every_row_its_time(tmp_path):
    """Two shards of 50 rows in 60 s each, the second 30 s later: 50/60 alone, twice that together."""
    rate = read_facts(fabricate_corpus(tmp_path), silent).throughput
    assert rate.seconds == pytest.approx(90 / 60)
    assert sum(rate.per_second) * rate.seconds == pytest.approx(100)
    assert sum(rate.ok_per_second) * rate.seconds == pytest.approx(60)
    assert rate.per_second[5] == pytest.approx(50 / 60)
    assert rate.per_second[30] == pytest.approx(100 / 60)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a cat", "Latin (ASCII)"),
        ("Zürich", "Latin with accents"),
        ("кошка and", "Cyrillic"),
        ("猫の写真", "Japanese"),
        ("猫照片", "Chinese characters"),
        ("고양이", "Korean"),
        ("قطة", "Arabic"),
        ("γάτα", "Greek"),
        ("बिल्ली", "Devanagari"),
        ("123 !? 🐈", "no letters"),
        ("", "no letters"),
    ],
)
def test_scripts(text, wanted):
    assert script(text) == wanted


@pytest.mark.parametrize("stage", ["planned", "verified", "published"])
def test_a_report_can_be_made_at_every_stage(tmp_path, stage):
    corpus = fabricate_corpus(tmp_path, stage)
    page, facts = build_report(corpus, dry_run=True)
    assert not page.parent.exists()
    assert build_report(corpus) == (page, facts)
    html = page.read_text()
    charts = {path.stem for path in page.parent.glob("*.png")}
    wanted = {"planned": set(), "verified": {"outcomes", "throughput"}}
    wanted["published"] = {*wanted["verified"], "sizes", "aspects", "captions", "bytes"}
    assert charts == wanted[stage]
    for path in page.parent.glob("*.png"):
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            image.load()
            assert image.width > 500
    assert html.count('class="missing"') == {"planned": 4, "verified": 2, "published": 0}[stage]
    assert json.loads((page.parent / "facts.json").read_text())["outcomes"] == facts["outcomes"]


def test_a_corpus_made_out_of_others_has_a_report_too(tmp_path, noise_corpus):
    derive([str(noise_corpus)], tmp_path / "few", where="n < 20")
    result = CliRunner().invoke(main, ["--root", str(tmp_path), "report", "few"])
    assert result.output == f"wrote {tmp_path / 'few' / 'report' / 'index.html'}\n"
    html = (tmp_path / "few/report/index.html").read_text()
    assert "where, not asked for" in html
    assert "There is no record of which hosts were asked." in html


def test_a_folder_without_anything_is_a_message(tmp_path):
    corpus = fabricate_corpus(tmp_path, "planned")
    corpus.plan_file.unlink()
    with pytest.raises(UserError, match="neither a plan nor a manifest"):
        build_report(corpus)
