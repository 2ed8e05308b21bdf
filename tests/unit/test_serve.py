"""Proves of the image server, over real sockets: files and Parquet rows come back as they are; nothing
outside the source does, nor what is no image; each misbehaviour is what a client of the web sees; bad
starts are explained.
"""

import io
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPMessage, IncompleteRead
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep import imagestore
from data_prep.serve import BEHAVIOURS_FILE, Behaviour, ImageServer
from pipeline.errors import UserError
from pipeline.files import write_json


def picture(shade: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(stream, kind)
    return stream.getvalue()


def get(url: str, timeout: float = 10) -> tuple[bytes, HTTPMessage]:
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        return answer.read(), answer.headers


def status(url: str) -> int:
    try:
        get(url)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "a.png").write_bytes(picture(1))
    (folder / "deep" / "er" / "b c.jpg").write_bytes(picture(2, "JPEG"))
    (folder / "wrong-name.txt").write_bytes(picture(3, "WEBP"))
    (folder / "notes.jpg").write_text("no image")
    (tmp_path / "secret.png").write_bytes(picture(9))
    return folder


@pytest.fixture
def server(source: Path) -> Iterator[ImageServer]:
    with ImageServer(source) as running:
        yield running


def test_files_come_back_with_the_type_of_their_bytes(server: ImageServer, source: Path) -> None:
    expected = {
        "/a.png": ("image/png", source / "a.png"),
        "/deep/er/b%20c.jpg": ("image/jpeg", source / "deep" / "er" / "b c.jpg"),
        "/wrong-name.txt?size=large": ("image/webp", source / "wrong-name.txt"),
    }
    for path, (kind, file) in expected.items():
        content, headers = get(server.url + path)
        assert content == file.read_bytes()
        assert headers["Content-Type"] == kind
        assert int(headers["Content-Length"]) == len(content)


def test_localhost_is_the_default(server: ImageServer) -> None:
    assert server.url.startswith("http://127.0.0.1:")


def test_head_sends_no_body(server: ImageServer, source: Path) -> None:
    connection = HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request("HEAD", "/a.png")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"")
    assert answer.headers["Content-Length"] == str((source / "a.png").stat().st_size)


@pytest.mark.parametrize("path", ["/missing.png", "/notes.jpg", "/", "/deep", f"/{BEHAVIOURS_FILE}", "/%00.png"])
def test_what_is_no_image_is_not_found(server: ImageServer, source: Path, path: str) -> None:
    write_json(source / BEHAVIOURS_FILE, {})
    assert status(server.url + path) == 404


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.png",
        "/%2e%2e/secret.png",
        "/deep/../../secret.png",
        "//{outside}",
        "/link.png",
        "/up/secret.png",
    ],
)
def test_nothing_outside_the_source_is_served(server: ImageServer, source: Path, path: str) -> None:
    outside = source.parent / "secret.png"
    (source / "link.png").symlink_to(outside)
    (source / "up").symlink_to(source.parent)
    request = f"GET {path.format(outside=outside)} HTTP/1.0\r\n\r\n"  # raw: clients tidy such paths up
    with socket.create_connection(server.server_address[:2], timeout=10) as connection:
        connection.sendall(request.encode())
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.split()[1] == b"404"
    assert outside.read_bytes() not in answer


def test_the_cache_of_row_groups_is_bounded_by_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [picture(number) for number in range(9)]
    write_table(tmp_path / "t.parquet", pa.array(pictures, pa.binary()), row_group=2)
    for bound, kept in ((1, 1), (2**20, 5)):
        monkeypatch.setattr(imagestore, "_CACHE_BYTES", bound)
        table = imagestore.ParquetImages(tmp_path / "t.parquet")
        assert [table[row] for row in range(9)] == pictures
        assert table._row_group.cache_info().currsize == kept


def write_table(path: Path, column: pa.Array, row_group: int) -> None:
    numbers = pa.array(range(len(column)))
    pq.write_table(pa.table({"number": numbers, "image": column}), path, row_group_size=row_group)


@pytest.mark.parametrize("kind", ["binary", "large_binary", "struct"])
def test_rows_of_parquet_files(tmp_path: Path, kind: str) -> None:
    images = [picture(shade) for shade in range(50)]
    if kind == "struct":
        column = pa.array([{"bytes": image, "path": "x.png"} for image in images])
    else:
        column = pa.array(images, pa.binary() if kind == "binary" else pa.large_binary())
    write_table(tmp_path / "t.parquet", column, row_group=7)
    write_table(tmp_path / "other.parquet", column, row_group=7)
    for source in (tmp_path, tmp_path / "t.parquet"):
        with ImageServer(source) as server, ThreadPoolExecutor(8) as threads:
            urls = [f"{server.url}/t.parquet/{row}" for row in range(50)]
            assert [content for content, _ in threads.map(get, urls)] == images
            for path in ("/t.parquet/50", "/t.parquet/-1", "/t.parquet/x", "/t.parquet", "/none.parquet/1"):
                assert status(server.url + path) == 404, path
            assert status(server.url + "/other.parquet/1") == (200 if source == tmp_path else 404)


def test_rows_without_an_image_are_not_found(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", pa.array([None, b"text", picture(5)], pa.binary()), row_group=3)
    with ImageServer(tmp_path) as server:
        assert [status(f"{server.url}/t.parquet/{row}") for row in range(3)] == [404, 404, 200]


def misbehave(source: Path, **behaviours: Behaviour) -> None:
    write_json(source / BEHAVIOURS_FILE, {f"/{name}": behaviour.to_json() for name, behaviour in behaviours.items()})


def test_statuses_that_stay_and_statuses_that_pass(source: Path) -> None:
    misbehave(source, **{"gone": Behaviour(status=410), "a.png": Behaviour(status=500, failures=2)})
    for _ in range(2):  # a restarted server has forgotten whom it had refused
        with ImageServer(source) as server:
            assert [status(f"{server.url}/gone") for _ in range(3)] == [410, 410, 410]
            assert [status(f"{server.url}/a.png") for _ in range(4)] == [500, 500, 200, 200]


def test_truncated_bodies_are_shorter_than_announced(source: Path) -> None:
    misbehave(source, **{"a.png": Behaviour(truncated=True)})
    with ImageServer(source) as server, pytest.raises(IncompleteRead) as caught:
        get(f"{server.url}/a.png")
    whole = (source / "a.png").read_bytes()
    assert caught.value.partial == whole[: len(whole) // 2]


def test_web_pages_under_the_type_of_an_image(source: Path) -> None:
    misbehave(source, **{"a.png": Behaviour(html=True), "no-file.jpg": Behaviour(html=True)})
    with ImageServer(source) as server:
        for path in ("/a.png", "/no-file.jpg"):
            content, headers = get(server.url + path)
            assert headers["Content-Type"] == "image/jpeg"
            assert content.startswith(b"<!DOCTYPE html>")


def test_redirects_headers_and_delays(source: Path) -> None:
    misbehave(
        source,
        **{
            "old": Behaviour(status=302, location="/a.png"),
            "wrong-name.txt": Behaviour(headers={"X-Robots-Tag": "noai"}),
            "deep/er/b c.jpg": Behaviour(delay_seconds=0.2),
        },
    )
    with ImageServer(source) as server:
        assert get(f"{server.url}/old")[0] == (source / "a.png").read_bytes()
        assert get(f"{server.url}/wrong-name.txt")[1]["X-Robots-Tag"] == "noai"
        assert get(f"{server.url}/deep/er/b%20c.jpg")[0] == (source / "deep" / "er" / "b c.jpg").read_bytes()


def test_a_client_that_gives_up_does_no_harm(source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    misbehave(source, **{"a.png": Behaviour(delay_seconds=1.0)})
    with ImageServer(source) as server:
        with pytest.raises(TimeoutError):
            get(f"{server.url}/a.png", timeout=0.1)
        assert status(f"{server.url}/wrong-name.txt") == 200
    assert capfd.readouterr().err == ""


def test_slow_answers_do_not_block_others(source: Path) -> None:
    misbehave(source, **{"a.png": Behaviour(delay_seconds=60)})
    with ImageServer(source) as server, ThreadPoolExecutor(33) as threads:
        slow = [threads.submit(get, f"{server.url}/a.png", 2) for _ in range(16)]
        fast = [threads.submit(get, f"{server.url}/wrong-name.txt") for _ in range(64)]
        assert {future.result()[0] for future in fast} == {(source / "wrong-name.txt").read_bytes()}
        assert all(isinstance(future.exception(), TimeoutError) for future in slow)


def test_behaviours_survive_json() -> None:
    original = Behaviour(status=302, location="/x", headers={"A": "b"}, delay_seconds=1.5)
    assert Behaviour(**original.to_json()) == original
    assert Behaviour().to_json() == {}


def test_a_port_in_use_is_explained(server: ImageServer, source: Path) -> None:
    port = server.server_address[1]
    with pytest.raises(UserError, match=f"port {port} is in use by another process; give another one"):
        ImageServer(source, port=port)
    with pytest.raises(UserError, match="port 70000 does not exist"):
        ImageServer(source, port=70000)


def test_an_unknown_host_is_explained(source: Path) -> None:
    with pytest.raises(UserError, match=r"cannot serve on 256\.1\.1\.1:0"):
        ImageServer(source, host="256.1.1.1")


def test_sources_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing to serve: .*nowhere does not exist"):
        ImageServer(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "words.parquet")
    for source in (tmp_path, tmp_path / "words.parquet", tmp_path / "torn.parquet"):
        with pytest.raises(UserError, match="holds no image files and no Parquet file with a column of bytes"):
            ImageServer(source)


@pytest.mark.parametrize("text", ["{", "[]", '{"/a": {"statsu": 404}}', '{"/a": 404}'])
def test_a_bad_table_of_behaviours_is_refused(source: Path, text: str) -> None:
    (source / BEHAVIOURS_FILE).write_text(text)
    with pytest.raises(UserError, match=r"behaviours\.json: .* It is a table of URL paths and behaviours: mend it"):
        ImageServer(source)
