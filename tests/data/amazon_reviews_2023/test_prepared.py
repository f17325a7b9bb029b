"""From published files to a catalogue and interactions: by network, from a folder, again, interrupted, together."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from llmsrec_jax import config
from llmsrec_jax.data import sources, splits
from llmsrec_jax.data.amazon_reviews_2023 import download, files, parse, prepared
from llmsrec_jax.data.card import render_card
from tests.data.amazon_reviews_2023 import made


def settings(cache: Path, **given) -> config.Data:
    given = {"category": made.CATEGORY, "cache_dir": str(cache), **given}
    return config.Data(source="amazon", **given)


def load(cfg: config.Data):
    """Rows by name, titles by name, the report, and the raw result."""
    catalog, table, report = sources.load(cfg, seed=0)
    assert table.user.dtype == table.item.dtype == np.int32 and table.time.dtype == np.int64
    assert catalog.keys[0] == catalog.titles[0] == "" and not catalog.has_title[0]
    users, items = table.user_keys.tolist(), catalog.keys.tolist()
    triples = zip(table.user, table.item, table.time.tolist(), strict=True)
    rows = [(users[user], items[item], moment) for user, item, moment in triples]
    return rows, dict(zip(items[1:], catalog.titles[1:], strict=True)), report, (catalog, table)


def plain(rows):
    return [(user, item, moment) for user, item, _, moment in rows]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(download, "PAUSES_S", (0.01,))
    monkeypatch.setattr(prepared, "_WAIT_S", 0.01)


def left_over(cache: Path) -> list[str]:
    """Files of the cache that no complete download or dataset explains."""
    complete = ("prepared", "downloads")
    found = [path for path in cache.rglob("*") if path.is_file() and path.name != ".lock"]
    names = [str(path.relative_to(cache)) for path in found]
    assert all(name.startswith(complete) or name == "checksums.tsv" for name in names), names
    half = [name for name in names if "incomplete" in name or ".tmp" in name or ".part" in name]
    unfinished = [f for f in cache.glob("prepared/*") if not (f / "report.json").is_file()]
    return half + [str(folder) for folder in unfinished]


def test_downloads_verifies_prepares_once(tmp_path, published, rows, capsys):
    with made.serving(published) as host:
        cfg = settings(tmp_path / "cache", base_url=host.url)
        found, titles, report, _ = load(cfg)
        assert found == plain(rows)
        assert [path for method, path, _ in host.requests if method == "GET"] == [
            "/benchmark/5core/rating_only/Industrial_and_Scientific.csv.gz",
            "/raw/meta_categories/meta_Industrial_and_Scientific.jsonl.gz",
        ]
        host.requests.clear()
        assert load(cfg)[:3] == (found, titles, report)
        assert host.requests == []
    for record in made.metadata(40):
        expected = record["title"] if record["title"] and record["title"].strip() else "Empty title"
        assert titles[record["parent_asin"]] == expected
    assert report["table_10"] == [23_627, 25_764, 266_164]
    assert report["items_without_title"] == 3
    assert left_over(tmp_path / "cache") == []
    shown = capsys.readouterr()
    assert shown.out == "" and "downloading http://" in shown.err


def test_prepared_data_outlive_the_downloads(tmp_path, published, rows):
    with made.serving(published) as host:
        cfg = settings(tmp_path / "cache", base_url=host.url)
        load(cfg)
    for path in (tmp_path / "cache" / "downloads").rglob("*.gz"):
        path.unlink()
    assert load(cfg)[0] == plain(rows)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("packed", [".gz", ""])
@pytest.mark.parametrize("layout", ["rating_only", "last_out"])
def test_files_brought_by_hand(tmp_path, rows, flat, packed, layout):
    root = made.publish(tmp_path / "root", rows, made.metadata(40), layout, packed)
    folder = root
    if flat:
        folder = tmp_path / "flat"
        folder.mkdir()
        for path in root.rglob("*.*"):
            path.rename(folder / path.name)
    cfg = settings(tmp_path / "cache", manual_dir=str(folder), base_url="http://127.0.0.1:9")
    assert load(cfg)[0] == plain(rows)
    assert not (tmp_path / "cache" / "downloads").exists()


@pytest.mark.parametrize("packed", [".gz", ""])
def test_a_host_with_other_files(tmp_path, rows, packed):
    root = made.publish(tmp_path / "root", rows, made.metadata(40), "last_out", packed)
    with made.serving(root) as host:
        assert load(settings(tmp_path / "cache", base_url=host.url + "/"))[0] == plain(rows)


def test_a_part_by_hand_and_a_part_from_the_network(tmp_path, published, rows):
    folder = tmp_path / "mine"
    name = f"{made.CATEGORY}.csv"
    made.put(folder / name, made.csv_text(rows[:300]))
    with made.serving(published) as host:
        cfg = settings(tmp_path / "cache", base_url=host.url, manual_dir=str(folder))
        assert load(cfg)[0] == plain(rows[:300])
        assert {path.rpartition("/")[2] for _, path, _ in host.requests} == {
            f"meta_{made.CATEGORY}.jsonl.gz"
        }


def test_no_network_and_no_files(tmp_path, monkeypatch):
    words = ["--config=configs/x.py:smoke", "--config.evaluate.ks=(1, 10)"]
    monkeypatch.setattr(sys, "argv", ["main.py", *words, "--config.data.manual_dir=old"])
    mine = tmp_path / "my files"
    mine.mkdir()
    start = time.monotonic()
    cfg = settings(tmp_path / "cache", base_url="http://127.0.0.1:9", manual_dir=str(mine))
    with pytest.raises(ValueError) as error:
        load(cfg)
    assert time.monotonic() - start < 10
    text = str(error.value)
    url = f"http://127.0.0.1:9/benchmark/5core/rating_only/{made.CATEGORY}.csv.gz"
    meta = f"http://127.0.0.1:9/raw/meta_categories/meta_{made.CATEGORY}.jsonl.gz"
    assert f"{url}  (about 51 MB)" in text and f"{meta}  (about 331 MB)" in text
    assert f"cd '{mine}' && curl -fL -C - -O {url} && curl -fL -C - -O {meta}" in text
    command = (
        "python -m llmsrec_jax.main --config=configs/x.py:smoke '--config.evaluate.ks=(1, 10)' "
    )
    assert f"{command}--config.data.manual_dir='{mine}'" in text
    assert "refused" in text and left_over(tmp_path / "cache") == []


@pytest.mark.parametrize("url", ["localhost:80", "ftp://127.0.0.1/x", "file:///etc"])
def test_no_web_address(tmp_path, url):
    with pytest.raises(ValueError, match=f"data.base_url='{url}': must begin with http:// or htt"):
        load(settings(tmp_path / "cache", base_url=url))


def test_both_published_hosts_are_asked(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        download, "probe", lambda urls: asked.extend(urls) or {url: "no answer" for url in urls}
    )
    with pytest.raises(download.Unreachable, match="ucsd.edu: no answer; huggingface.co: no answ"):
        load(settings(tmp_path / "cache"))
    assert len(asked) == 4  # what does not answer is not asked for alternatives


def test_categories_without_5core_use_the_0core():
    interactions, metadata = files.wanted("Appliances")
    assert interactions[0] == ("benchmark/0core/rating_only/Appliances.csv.gz",)
    assert metadata[0] == ("raw/meta_categories/meta_Appliances.jsonl.gz",)


def test_no_such_folder(tmp_path):
    with pytest.raises(ValueError, match="data.manual_dir=.*absent: no such folder"):
        load(settings(tmp_path / "cache", manual_dir=str(tmp_path / "absent")))


def test_no_such_category(tmp_path):
    with pytest.raises(ValueError, match="did you mean Electronics"):
        load(settings(tmp_path / "cache", category="Elektronics"))


# wrong and damaged files ----------------------------------------------------------------------------------------


def test_wrong_checksum_by_hand(tmp_path, rows):
    root = made.publish(tmp_path / "root", rows, made.metadata(40))
    cfg = settings(tmp_path / "cache", manual_dir=str(root))
    load(cfg)
    made.publish(root, rows[:-1], made.metadata(40))
    with pytest.raises(ValueError, match="wrong checksum: SHA-256 is .* delete its line in .*tsv"):
        load(cfg)
    sums = tmp_path / "cache" / "checksums.tsv"
    kept = [line for line in sums.read_text().splitlines() if ".csv.gz" not in line]
    sums.write_text("\n".join(kept) + "\n")
    assert load(cfg)[0] == plain(rows[:-1])


def test_wrong_checksum_of_a_download(tmp_path, rows):
    root = made.publish(tmp_path / "root", rows, made.metadata(40))
    cache = tmp_path / "cache"
    with made.serving(root) as host:
        cfg = settings(cache, base_url=host.url)
        load(cfg)
        for path in [*cache.rglob("*.gz"), *cache.rglob("report.json")]:
            path.unlink()
        made.publish(root, rows[:-1], made.metadata(40))
        host.tag = '"v2"'
        with pytest.raises(ValueError, match="wrong checksum"):
            load(cfg)
        assert not list(cache.rglob("*.csv.gz"))  # it can never be used by mistake
        made.publish(root, rows, made.metadata(40))
        assert load(cfg)[0] == plain(rows)


def test_a_download_that_was_altered_later_is_not_used(tmp_path, published, rows):
    cache = tmp_path / "cache"
    with made.serving(published) as host:
        cfg = settings(cache, base_url=host.url)
        load(cfg)
        [path] = cache.rglob("*.csv.gz")
        path.write_bytes(path.read_bytes()[:-1])
        assert load(cfg)[0] == plain(rows)  # the prepared data stand
        for report in cache.rglob("report.json"):
            report.unlink()
        with pytest.raises(ValueError, match="wrong checksum"):
            load(cfg)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_truncated_file_is_not_recorded_and_not_kept(tmp_path, rows, kind):
    root = made.publish(tmp_path / "root", rows, made.metadata(40))
    [path] = root.rglob(f"*.{kind}.gz")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with made.serving(root) as host:
        cfg = settings(tmp_path / "cache", base_url=host.url)
        with pytest.raises(parse.Damaged, match=f"{kind}.gz is truncated or damaged"):
            load(cfg)
        assert left_over(tmp_path / "cache") == []
        assert not list((tmp_path / "cache").rglob(path.name))
        path.write_bytes(whole)
        assert load(cfg)[0] == plain(rows)


def test_a_truncated_file_of_the_user_stays_where_it_is(tmp_path, rows):
    root = made.publish(tmp_path / "root", rows, made.metadata(40))
    [path] = root.rglob("*.csv.gz")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(parse.Damaged):
        load(settings(tmp_path / "cache", manual_dir=str(root)))
    assert path.exists() and left_over(tmp_path / "cache") == []


def test_a_damaged_line_of_the_checksums(tmp_path):
    (tmp_path / "checksums.tsv").write_text("x\n")
    with pytest.raises(ValueError, match="checksums.tsv, line 1: .* delete the line"):
        load(settings(tmp_path))


def test_everything_odd_at_once_is_counted(tmp_path, rows):
    """Zero and future timestamps, repeated rows, an item without metadata, a user with one moment, broken lines."""
    odd = [("AEz", "B000000001", 1.0, 0), ("AEz", "B000000001", 1.0, 1 << 50)]
    one = [("AEone", f"B{item:09d}", 3.0, made.FIRST_MS) for item in range(6)]
    root = made.publish(tmp_path / "root", [*rows, *odd, *one, one[0]], made.metadata(39))
    [meta] = root.rglob("*.jsonl.gz")
    made.put(meta, made.jsonl(made.metadata(39)) + '{"parent_asin": "B0\n')
    cfg = settings(tmp_path / "cache", manual_dir=str(root), missing_title="?")
    found, titles, report, raw = load(cfg)
    assert found == [*plain(rows), *plain(one)] and titles["B000000039"] == "?"
    expected = {"impossible_timestamps_dropped": 2, "repeated_pairs_dropped": 1, "broken_lines": 1}
    expected |= {"users_with_one_timestamp": 1, "items_not_listed": 1, "items_without_title": 3}
    assert {name: report[name] for name in expected} == expected
    _, card = splits.prepare(*raw, cfg, 0, report)
    text = render_card(card)
    assert "1  users whose interactions all have the same timestamp" in text
    assert "users (Table 10: 23,627)" in text and "items (Table 10: 25,764)" in text
    assert "skipped: Industrial_and_Scientific.csv.gz, line" in text
    assert text.splitlines()[-1].endswith("that are no item, skipped: line 40")


# the cache ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_cache(tmp_path, published, rows, monkeypatch, code):
    cfg = settings(tmp_path / "cache", manual_dir=str(published))

    def refuse(*given, **options):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", refuse)
        with pytest.raises(ValueError, match="cannot write to .*cache .*data.cache_dir=DIR"):
            load(cfg)
    load(cfg)
    monkeypatch.setattr(prepared, "_lock", refuse)  # what is prepared needs no writing
    assert load(cfg)[0] == plain(rows)


def test_a_cache_that_is_a_file(tmp_path, published):
    (tmp_path / "cache").write_text("")
    with pytest.raises(ValueError, match="cannot write to .*cache"):
        load(settings(tmp_path / "cache" / "inside", manual_dir=str(published)))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("write() failed: No space left on device; writing x; at byte 2093056"),
    ],
)
def test_a_full_disk_before_and_while_writing(tmp_path, published, monkeypatch, error):
    from tensorflow_datasets.core import writer

    cfg = settings(tmp_path / "cache", manual_dir=str(published))
    with monkeypatch.context() as patched:
        usage = download.shutil.disk_usage("/")
        patched.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(ValueError, match="no space left in .*data.cache_dir=DIR"):
            load(cfg)

    def no_room(*given):
        raise error

    monkeypatch.setattr(writer.Writer, "finalize", no_room)
    with pytest.raises(ValueError, match="no space left in .*cache"):
        load(cfg)
    assert left_over(tmp_path / "cache") == [] and not list(tmp_path.glob("cache/prepared/*"))


def test_another_process_that_prepares_is_waited_for(tmp_path, published, rows, capsys):
    cfg = settings(tmp_path / "cache", manual_dir=str(published))
    (tmp_path / "cache").mkdir()
    with open(tmp_path / "cache" / ".lock", "a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        done = []
        thread = threading.Thread(target=lambda: done.append(load(cfg)))
        thread.start()
        time.sleep(0.3)
        assert not done
        fcntl.flock(other, fcntl.LOCK_UN)
        thread.join(60)
    assert done[0][0] == plain(rows)
    assert capsys.readouterr().err.count("waiting for another process that prepares data") == 1


PROGRAM = """
import os, sys, time
from llmsrec_jax import config
from llmsrec_jax.data import sources
from llmsrec_jax.data.amazon_reviews_2023 import amazon_reviews_2023_dataset_builder as builder

if {slow}:
    whole = builder.Builder._generate_examples
    def slowly(self, kind):
        for number, example in whole(self, kind):
            if number == 50:
                os.write(1, b"half\\n")
                time.sleep(60)
            yield number, example
    builder.Builder._generate_examples = slowly
cfg = config.Data(source="amazon", category={category!r}, cache_dir={cache!r}, manual_dir={manual!r})
catalog, table, report = sources.load(cfg, 0)
print(len(table), catalog.size, flush=True)
"""


def start(cache: Path, published: Path, slow: bool = False) -> subprocess.Popen:
    names = {"slow": slow, "cache": str(cache), "manual": str(published), "category": made.CATEGORY}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(**names)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_killed_while_preparing(tmp_path, published, rows):
    cache = tmp_path / "cache"
    process = start(cache, published, slow=True)
    assert process.stdout and process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(cache.rglob("*incomplete*")) and not list(cache.rglob("report.json"))
    found, *_ = load(settings(cache, manual_dir=str(published)))
    assert found == plain(rows) and left_over(cache) == []


def test_two_processes_at_once(tmp_path, published, rows):
    both = [start(tmp_path / "cache", published) for _ in range(2)]
    results = [process.communicate(timeout=120) for process in both]
    assert {out for out, _ in results} == {f"{len(rows)} 41\n"}, results
    assert sum("writing 120 users" in err for _, err in results) == 1
    assert left_over(tmp_path / "cache") == []


# as a TFDS dataset ----------------------------------------------------------------------------------------------


def test_any_user_of_tfds_and_grain_can_read_it(tmp_path, published, rows):
    import grain
    import tensorflow_datasets as tfds

    load(settings(tmp_path / "cache", manual_dir=str(published)))
    [folder] = (tmp_path / "cache" / "prepared").iterdir()
    name = f"amazon_reviews_2023/{made.CATEGORY.lower()}"
    users = tfds.data_source(f"{name}_users", data_dir=folder, split="users")
    items = tfds.data_source(f"{name}_items", data_dir=folder, split="items")
    assert len(users) == 120 and len(items) == 40
    names = [items[n]["parent_asin"].decode() for n in range(len(items))]
    read = [
        (record["user_id"].decode(), names[item], int(moment))
        for record in grain.MapDataset.source(users)
        for item, moment in zip(record["items"], record["timestamps"], strict=True)
    ]
    assert read == plain(rows)
    assert items[names.index("B000000001")]["description"].decode() == "About 1."


def test_the_builder_alone(tmp_path, published, rows):
    import tensorflow_datasets as tfds

    from llmsrec_jax.data.amazon_reviews_2023 import amazon_reviews_2023_dataset_builder as module

    made_alone = module.Builder(config="industrial_and_scientific_users", data_dir=tmp_path)
    options = tfds.download.DownloadConfig(manual_dir=str(published))
    made_alone.download_and_prepare(download_config=options)
    source = made_alone.as_data_source("users")
    assert sum(len(source[n]["items"]) for n in range(len(source))) == len(rows)
    assert len(module.Builder.BUILDER_CONFIGS) == 68
