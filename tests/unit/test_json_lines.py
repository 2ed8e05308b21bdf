"""Files that grow by lines: whatever a kill or a full disk left of one line, the others stay readable."""

import os
import resource

import pytest

from pipeline.errors import UserError
from pipeline.files import append_line, read_lines


def test_what_was_appended_is_read(tmp_path):
    file = tmp_path / "new folder/log.jsonl"
    assert read_lines(file) == []
    for number in range(3):
        append_line(file, {"number": number, "word": "größer"})
    assert read_lines(file) == [{"number": number, "word": "größer"} for number in range(3)]
    assert file.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("left", [1, 7, 12])
def test_a_torn_line_takes_no_other_with_it(tmp_path, left):
    file = tmp_path / "log.jsonl"
    append_line(file, {"number": 0})
    whole = file.stat().st_size
    append_line(file, {"number": 1})
    os.truncate(file, whole + left)
    append_line(file, {"number": 2})
    assert read_lines(file) == [{"number": 0}, {"number": 2}]


def test_on_a_full_disk_the_file_stays_as_it_was(tmp_path):
    file = tmp_path / "log.jsonl"
    append_line(file, {"number": 0})
    before, (_, hard) = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, hard))  # the kernel takes five bytes of the next line
    try:
        with pytest.raises(UserError, match=r"no space left to write .*log\.jsonl"):
            append_line(file, {"number": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert file.read_bytes() == before


def test_lines_that_are_no_objects_are_passed_over(tmp_path):
    file = tmp_path / "log.jsonl"
    file.write_bytes(b'{"number": 0}\n[1]\nnull\n\n\xff\xfe\n{"number": 1}\n')
    assert read_lines(file) == [{"number": 0}, {"number": 1}]
