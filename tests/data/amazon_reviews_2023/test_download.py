"""Downloads that are cut off, resumed, changed on the host, or without room."""

import dataclasses
import errno
import socket
import time

import numpy as np
import pytest

from llmsrec_jax.data.amazon_reviews_2023 import download
from tests.data.amazon_reviews_2023 import made

CONTENT = np.random.default_rng(0).bytes(300_000)


@pytest.fixture
def root(tmp_path):
    made.put(tmp_path / "host" / "file.bin", CONTENT)
    return tmp_path / "host"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(download, "PAUSES_S", (0.01, 0.02))


def probe(host, name="file.bin") -> download.Found:
    answer = download.probe([f"{host.url}/{name}"])[f"{host.url}/{name}"]
    assert isinstance(answer, download.Found)
    return answer


def parts(folder):
    return sorted(path.name for path in folder.iterdir())


def test_probe_and_fetch(root, tmp_path):
    with made.serving(root) as host:
        found = probe(host)
        assert (found.size, found.tag) == (len(CONTENT), '"v1"')
        download.fetch(found, tmp_path / "cache" / "file.bin")
    assert (tmp_path / "cache" / "file.bin").read_bytes() == CONTENT
    assert parts(tmp_path / "cache") == ["file.bin"]


def test_resumes_where_the_connection_broke(root, tmp_path):
    with made.serving(root) as host:
        host.fail_after = 100_000
        download.fetch(probe(host), tmp_path / "cache" / "file.bin")
        ranges = [given for method, _, given in host.requests if method == "GET"]
    assert ranges == [None, "bytes=100000-", "bytes=200000-"]
    assert (tmp_path / "cache" / "file.bin").read_bytes() == CONTENT


def test_host_killed_half_way_and_restarted(root, tmp_path):
    path = tmp_path / "cache" / "file.bin"
    with made.serving(root) as host:
        found = probe(host)
        host.die_after = 120_000
        with pytest.raises(download.Unreachable, match="120 kB of 300 kB are here: the same comm"):
            download.fetch(found, path)
    assert parts(tmp_path / "cache") == ["file.bin.part", "file.bin.part.json"]
    with made.serving(root, port=host.port) as again:
        download.fetch(probe(again), path)
        assert [given for method, _, given in again.requests if method == "GET"] == [
            "bytes=120000-"
        ]
    assert path.read_bytes() == CONTENT and parts(tmp_path / "cache") == ["file.bin"]


def test_a_host_without_ranges_starts_over(root, tmp_path):
    with made.serving(root, ranges=False) as host:
        path = tmp_path / "cache" / "file.bin"
        host.fail_after = 100_000
        with pytest.raises(download.Unreachable):
            download.fetch(probe(host), path)
        host.fail_after = None
        download.fetch(probe(host), path)
    assert path.read_bytes() == CONTENT


def test_a_changed_file_is_not_continued(root, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PAUSES_S", ())
    path = tmp_path / "cache" / "file.bin"
    with made.serving(root) as host:
        host.fail_after = 100_000
        found = probe(host)
        path.parent.mkdir()
        path.with_name("file.bin.part").write_bytes(b"old" * 1000)
        path.with_name("file.bin.part.json").write_text("{}")
        host.fail_after = None
        download.fetch(found, path)
        assert path.read_bytes() == CONTENT
        path.unlink()
        host.tag = '"v2"'  # between the probe and the transfer
        part = path.with_name("file.bin.part")
        part.write_bytes(CONTENT[:1000])
        download._transfer(found, part)
    assert part.read_bytes() == CONTENT


def test_full_disk_leaves_nothing(root, tmp_path, monkeypatch):
    def no_room(found, part):
        part.write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_transfer", no_room)
    with made.serving(root) as host, pytest.raises(ValueError, match="no space left in .*cache_di"):
        download.fetch(probe(host), tmp_path / "cache" / "file.bin")
    assert parts(tmp_path / "cache") == []


def test_a_host_that_knows_no_head_request(root, tmp_path):
    with made.serving(root) as host:
        del host.handler.do_HEAD
        found = probe(host)
        assert found.size == len(CONTENT)
        download.fetch(found, tmp_path / "cache" / "file.bin")
    assert (tmp_path / "cache" / "file.bin").read_bytes() == CONTENT


def test_a_host_that_does_not_say_the_size(root, tmp_path):
    path = tmp_path / "cache" / "file.bin"
    with made.serving(root) as host:
        found = dataclasses.replace(probe(host), size=None)
        host.fail_after = 100_000
        with pytest.raises(download.Unreachable, match="closed early; 100 kB of size unknown"):
            download.fetch(found, path)
        host.fail_after = None
        download.fetch(found, path)
    assert path.read_bytes() == CONTENT


def test_room_is_asked_for_first(tmp_path):
    with pytest.raises(ValueError, match="no space left in .* needed"):
        download.require_space(tmp_path / "not" / "there", 1 << 60)
    download.require_space(tmp_path, 1)


def test_absent_file_and_closed_port(root):
    with made.serving(root) as host:
        url = f"{host.url}/absent"
        answer = download.probe([url])[url]
    assert isinstance(answer, str) and answer.startswith("HTTP 404")
    assert not download.is_silent(answer)
    refused = download.probe([url])[url]
    assert download.is_silent(refused) and "refused" in str(refused)


def test_a_silent_host_costs_only_the_limit():
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/x"
        start = time.monotonic()
        answers = download.probe([url, url + "y"], timeout_s=0.3)
    assert time.monotonic() - start < 5
    assert all(download.is_silent(answer) for answer in answers.values())
    assert download.PROBE_S < 10


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "size unknown"), (12, "12 bytes"), (1_500, "1.5 kB"), (1_240_000_000, "1.2 GB")],
)
def test_sizes_for_a_person(size, text):
    assert download.human(size) == text
