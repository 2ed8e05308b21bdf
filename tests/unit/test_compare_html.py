"""What the comparison's page says of each run. (What a browser makes of it: tests/browser.)"""

import re

from pipeline.report.compare.comparison import compare
from pipeline.report.compare.find import find_runs
from pipeline.report.compare.page import render
from tests.compare_support import fabricate_sweep


def test_the_code_of_a_run_is_its_version_and_commit(tmp_path):
    sweep = fabricate_sweep(tmp_path / "sweep", {"neuclip": 0.5}, seeds=1)
    page = render(compare(find_runs([sweep])))
    assert re.findall(r"<dt>Code</dt><dd[^>]*>([^<]*)<", page) == ["0.1.0 c0ffee+"]
