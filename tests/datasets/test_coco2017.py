"""Downloads give the right bytes or an error, whatever server, disk and processes do."""

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
import zlib
from base64 import b64encode
from pathlib import Path

import pytest

from fcos_recipe import cli, console
from fcos_recipe.datasets import coco2017
from fcos_recipe.errors import RunFailure, UserError
from fcos_recipe.files import archives, download
from tests.helpers.fault_server import FAULTS, FaultServer

BYTES = random.Random(1).randbytes(300_000)


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Times of seconds become milliseconds."""
    monkeypatch.setattr(download, "BACKOFF", 0.001)
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    monkeypatch.setattr(download, "PIECE", 40_000)
    monkeypatch.setattr(download, "BLOCK", 8192)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with FaultServer({"/a.zip": BYTES}) as running:
        yield running


# ---- one file


SEEDS = [*range(40), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(40, 200))]


@pytest.mark.parametrize("seed", SEEDS)
def test_right_bytes_or_a_refusal_then_success(seed, tmp_path):
    """Random faults at random places, then a healthy server: always ends in the right bytes."""
    dice = random.Random(seed)
    first = dice.randbytes(dice.choice([1, 1000, 39_999, 40_000, 40_001, 150_000]))
    second = dice.choice([first, dice.randbytes(len(first)), dice.randbytes(len(first) + 9)])
    pinned = dice.random() < 0.6
    with FaultServer({"/f": first}, seed) as server:
        server.ranges, server.etags = dice.random() < 0.8, pinned or dice.random() < 0.8
        # Faults that nothing but a checksum could reveal are for pinned files only.
        lies = () if pinned else ("wrong bytes", "short length", "long length", "html")
        faults = [fault for fault in FAULTS if fault not in lies]
        server.faults = [dice.choice(faults + [""] * 4) for _ in range(dice.randrange(1, 14))]
        expected = md5(first) if pinned else None
        path = tmp_path / "f"

        def attempt():
            connections = dice.choice([1, 1, 3])
            download.fetch(f"{server.url}/f", path, expected, connections)

        try:
            attempt()
            assert path.read_bytes() == first
        except RunFailure:
            assert not path.exists()
        server.faults.clear()
        path.unlink(missing_ok=True)
        if not pinned and server.etags:  # without either nothing could tell the two apart
            server.files["/f"] = second
        attempt()
        assert path.read_bytes() == server.files["/f"]
        assert os.listdir(tmp_path) == ["f"]


def test_a_cut_is_continued_not_repeated(server, tmp_path, capfd):
    server.faults = ["cut", "reset", "cut", "500", "cut", "stall"]
    download.fetch(f"{server.url}/a.zip", tmp_path / "a.zip", md5(BYTES))
    assert (tmp_path / "a.zip").read_bytes() == BYTES
    starts = [int(asked.split("=")[1].split("-")[0]) for _, asked in server.requests]
    assert starts == sorted(starts) and starts[-1] > 0
    assert "HTTP 500" in capfd.readouterr().err


def test_several_connections_add_up(tmp_path):
    """On a server that limits each connection four are faster than one."""
    seconds = {}
    for connections in (1, 4):
        with FaultServer({"/a": BYTES}) as server:
            server.delay = 0.03
            began = time.monotonic()
            download.fetch(f"{server.url}/a", tmp_path / str(connections), None, connections)
            seconds[connections] = time.monotonic() - began
            assert (tmp_path / str(connections)).read_bytes() == BYTES
            assert len(server.requests) == (1 if connections == 1 else 8)
    assert seconds[4] < 0.7 * seconds[1]


def test_an_interrupted_one_goes_on_in_another_process_unless_the_file_changed(
    server, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(download, "LATER_TRIES", 2)
    path, url = tmp_path / "a.zip", f"{server.url}/a.zip"

    def interrupt():
        server.faults = ["cut", "500", "500", "500"]
        with pytest.raises(download.DownloadError, match="2 failures in a row.*continue") as error:
            download.fetch(url, path)
        assert error.value.code == 1 and not path.exists()
        server.faults, server.requests = [], []

    interrupt()
    arrived = json.loads((tmp_path / "a.zip.part.json").read_text())["done"][0]
    assert arrived > 0
    download.fetch(url, path)
    assert server.requests == [("/a.zip", f"bytes={arrived}-{len(BYTES) - 1}")]
    assert path.read_bytes() == BYTES

    path.unlink()
    interrupt()
    server.files["/a.zip"] = BYTES[::-1]
    download.fetch(url, path)
    assert path.read_bytes() == BYTES[::-1]
    assert "has changed: restarting" in capfd.readouterr().err


def test_another_mirror_continues_only_what_a_checksum_guards(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "LATER_TRIES", 1)
    server.files["/b.zip"] = BYTES
    for expected, first in ((md5(BYTES), False), (None, True)):
        server.faults = ["cut"]
        with pytest.raises(download.DownloadError):
            download.fetch(f"{server.url}/a.zip", tmp_path / "a", expected)
        server.requests.clear()
        download.fetch(f"{server.url}/b.zip", tmp_path / "a", expected)
        assert server.requests[0][1].startswith("bytes=0-") is first
        assert (tmp_path / "a").read_bytes() == BYTES
        (tmp_path / "a").unlink()


@pytest.mark.parametrize(
    ("lie", "code"), [("wrong bytes", 3), ("html", 3), ("short length", 3), ("long length", 1)]
)
def test_what_never_matches_is_refused(server, tmp_path, lie, code):
    server.faults = [lie] * 50
    with pytest.raises(download.DownloadError, match="the MD5 is not|restarted") as error:
        download.fetch(f"{server.url}/a.zip", tmp_path / "a.zip", md5(BYTES))
    assert error.value.code == code
    assert not (tmp_path / "a.zip").exists()


def test_content_md5_of_the_server_is_used(server, tmp_path):
    server.extra = {"Content-MD5": b64encode(bytes(16)).decode()}
    with pytest.raises(download.Damaged, match="MD5 is not 0000"):
        download.fetch(f"{server.url}/a.zip", tmp_path / "a.zip")
    server.extra = {"Content-MD5": b64encode(hashlib.md5(BYTES).digest()).decode()}
    download.fetch(f"{server.url}/a.zip", tmp_path / "a.zip")


def test_unknown_length_is_taken_only_when_the_end_is_marked(server, tmp_path):
    server.chunked, server.ranges = True, False
    server.faults = ["cut", ""]
    download.fetch(f"{server.url}/a.zip", tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BYTES


def test_refusals_that_no_retry_betters(server, tmp_path):
    with pytest.raises(download.DownloadError, match="HTTP 404"):
        download.fetch(f"{server.url}/gone", tmp_path / "gone")
    assert len(server.requests) == 1
    with pytest.raises(UserError, match="not an http or https address"):
        download.fetch("file:///etc/passwd", tmp_path / "p")
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "x", Path("/proc/fcos")):
        with pytest.raises(UserError, match="cannot be created"):
            download.fetch(f"{server.url}/a.zip", folder / "a.zip")
    port = server.server_port
    server.shutdown()
    server.server_close()
    with pytest.raises(download.DownloadError, match="refused.*5 failures"):
        download.fetch(f"http://127.0.0.1:{port}/a.zip", tmp_path / "a.zip")
    assert sorted(os.listdir(tmp_path)) == ["file"]


def test_errors_name_the_proxy_and_never_the_mirror_in_use(world, monkeypatch):
    """A dead proxy is not the server's refusal; another server is advised where it may help."""
    port = world.server.server_port
    world.server.files.clear()
    with pytest.raises(download.DownloadError, match="HTTP 404.*; --mirror names another"):
        world.get()
    with pytest.raises(download.DownloadError) as error:
        world.get(mirror=f"http://127.0.0.1:{port}/elsewhere")
    assert "404" in str(error.value) and "mirror" not in str(error.value)
    monkeypatch.setenv("HTTP_PROXY", "http://user:secret@127.0.0.1:9")
    with pytest.raises(download.DownloadError, match="proxy 127.0.0.1:9 of.* HTTP_PROXY") as error:
        world.get()
    assert "mirror" not in str(error.value) and "secret" not in str(error.value)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(download.DownloadError) as error:
        world.get()
    assert "404" in str(error.value) and "proxy" not in str(error.value)


def test_full_disk_before_and_during(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(download.NoSpace, match="300.0 kB to download, 1.0 kB free") as error:
        download.fetch(f"{server.url}/a.zip", tmp_path / "a.zip")
    assert error.value.code == 4
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    written = []

    def pwrite(*arguments, write=os.pwrite):
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(1)
        return write(*arguments)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(download.NoSpace, match="No space left"):
        download.fetch(f"{server.url}/a.zip", tmp_path / "a.zip")
    monkeypatch.undo()
    download.fetch(f"{server.url}/a.zip", tmp_path / "a.zip", md5(BYTES))
    assert (tmp_path / "a.zip").read_bytes() == BYTES
    assert not server.requests[-1][1].startswith("bytes=0-")


def test_progress_without_a_terminal_is_lines_with_speed_and_time_left(capfd, monkeypatch):
    monkeypatch.setattr(console.Progress, "EVERY", 0.0)
    with console.Progress("x.zip", 20_000_000_000, done=10_000_000_000) as progress:
        progress.began -= 100
        progress.add(1_000_000_000)
    (line,) = capfd.readouterr().err.splitlines()
    assert line == "x.zip: 11.00 GB of 20.00 GB (55%), 10.0 MB/s, 0:15:00 left"


# ---- archives


def zipped(path: Path, entries: dict, **more) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries.items():
            file.writestr(name, data, **more)
    return path


def link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("top/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


EVIL = {
    "climbs": ({"top/a": b"a", "top/../../evil": b"x"}, "outside"),
    "absolute": ({"/tmp/evil": b"x"}, "outside"),
    "backslash": ({"top\\..\\..\\evil": b"x"}, "outside"),
    "drive": ({"C:/evil": b"x"}, "outside"),
    "other folder": ({"top/a": b"a", "annotations/mine.json": b"x"}, "is not in top/"),
    "no folder": ({"top": b"a"}, "is not in top/"),
    "link": ({link(): b"/etc"}, "is a link"),
    "bomb": ({"top/zeros": bytes(20_000_000)}, "a zip bomb"),
}


@pytest.mark.parametrize("kind", EVIL)
def test_hostile_archives_leave_nothing(tmp_path, kind):
    entries, message = EVIL[kind]
    archive = zipped(tmp_path / "a.zip", entries)
    (tmp_path / "data").mkdir()
    with pytest.raises(download.Damaged, match=message):
        archives.unpack(archive, "top", tmp_path / "data" / "s", tmp_path / "data")
    assert os.listdir(tmp_path / "data") == [] and sorted(os.listdir(tmp_path)) == ["a.zip", "data"]


def test_archives_that_lie_about_sizes_or_are_damaged(tmp_path):
    data = tmp_path / "data"
    data.mkdir()

    def refused(content, message):
        (tmp_path / "b.zip").write_bytes(content)
        with pytest.raises(download.Damaged, match=message):
            archives.unpack(tmp_path / "b.zip", "top", data / "s", data)
        assert not (data / "top").exists()

    good = zipped(tmp_path / "a.zip", {"top/a": BYTES, "top/b": bytes(50_000)}).read_bytes()
    refused(good[:-30], "not a readable zip")
    refused(b"", "not a readable zip")
    refused(good[:5000] + b"\0\0\0" + good[5003:], "top/a")
    smaller = good.replace((50_000).to_bytes(4, "little"), (500).to_bytes(4, "little"))
    refused(smaller, "top/b")  # unpacks to more than it says
    encrypted = bytearray(good)
    encrypted[good.index(b"PK\1\2") + 8] |= 1
    refused(bytes(encrypted), "encrypted")
    with pytest.warns(UserWarning, match="Duplicate"):
        with zipfile.ZipFile(tmp_path / "c.zip", "w") as file:
            file.writestr("top/a", b"1")
            file.writestr("top/a", b"2")
    refused((tmp_path / "c.zip").read_bytes(), "occurs twice")
    (tmp_path / "b.zip").write_bytes(good)
    crcs, kept = archives.unpack(tmp_path / "b.zip", "top", data / "s", data)
    assert crcs == {"top/a": zlib.crc32(BYTES), "top/b": zlib.crc32(bytes(50_000))}
    assert kept == [] and (data / "top/a").read_bytes() == BYTES and os.listdir(data) == ["top"]


# ---- a whole data set


def release(folder: Path, url: str, images: int = 6, size: int = 20_000) -> coco2017.Release:
    """A small COCO: zips below `folder` as a server has them."""
    (folder / "zips").mkdir(parents=True)
    (folder / "annotations").mkdir()
    dice, splits, annos = random.Random(5), {}, {"annotations/captions.json": "{}"}

    def archive(path, entries):
        data = zipped(folder / path, entries).read_bytes()
        top = next(iter(entries)).split("/")[0]
        return coco2017.Archive(
            path, md5(data), top, len(data), sum(map(len, entries.values())) + 1
        )

    for name, count in (("val", images), ("train", 3 * images)):
        files = {f"{name}2017/{i:012}.jpg": dice.randbytes(size) for i in range(count)}
        boxes = [{"id": i, "iscrowd": 0, "bbox": [0, 0, 1, 1]} for i in range(5 * count)]
        named = [{"id": i, "file_name": Path(f).name} for i, f in enumerate(files)]
        annos[f"annotations/instances_{name}2017.json"] = json.dumps(
            {"images": named, "annotations": boxes}
        )
        splits[name] = coco2017.PublishedSplit(
            archive(f"zips/{name}2017.zip", files), count, 5 * count
        )
    notes = archive("annotations/annotations_trainval2017.zip", annos)
    return coco2017.Release("COCO test", url, notes, splits)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, our own records left out."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and coco2017.OURS not in path.parts
    }


class World:
    """A server with a small COCO, and what has to come out of it."""

    def __init__(self, tmp_path: Path, **sizes):
        self.www, self.data = tmp_path / "www", tmp_path / "data" / "coco"
        self.server = FaultServer({})
        self.release = release(self.www, self.server.url, **sizes)
        paths = [path for path in self.www.rglob("*") if path.is_file()]
        self.server.files = {f"/{p.relative_to(self.www)}": p.read_bytes() for p in paths}
        self.expected = {}
        for path in paths:
            with zipfile.ZipFile(path) as file:
                self.expected |= {name: file.read(name) for name in file.namelist()}

    def get(self, **options) -> list[str]:
        return coco2017.get(self.data, self.release, coco2017.Options(**options))


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    with made.server:
        yield made


def test_everything_once_then_recognised_without_a_server(world):
    lines = world.get()
    assert content(world.data) == world.expected
    assert lines[0] == f"COCO test in {world.data}"
    assert lines[2].split() == ["val2017/", "6", "images,", "30", "boxes", "(new)"]
    assert sorted(os.listdir(world.data)) == [".download", "annotations", "train2017", "val2017"]
    asked = len(world.server.requests)
    before = {path: path.stat().st_mtime_ns for path in world.data.rglob("*")}
    assert world.get()[3].endswith("18 images, 90 boxes (was there)")
    assert len(world.server.requests) == asked
    assert {path: path.stat().st_mtime_ns for path in world.data.rglob("*")} == before


def test_verify_missing_touched_and_damaged_files(world):
    world.get()
    image = world.data / "train2017" / f"{3:012}.jpg"
    os.utime(image, (1, 1))  # copied: same bytes, other time
    world.get()
    image.unlink()
    world.get()
    assert content(world.data) == world.expected
    status = image.stat()
    image.write_bytes(bytes(status.st_size))
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    world.get()  # size and time are as recorded: only a checksum tells
    with pytest.raises(download.Damaged, match="they differ from train2017.zip; remove"):
        world.get(verify=True)
    image.unlink()
    world.get(verify=True)
    image.write_bytes(b"")
    with pytest.raises(download.Damaged, match="000003.jpg"):
        world.get()


def test_files_of_the_user_stay_as_they_are(world, tmp_path):
    mine = {
        "annotations/mine.json": b"{}",
        "tmp/x": b"1",
        "train2017.zip": b"not a zip",
        "val2017/readme.txt": b"2",
        f"val2017/{0:012}.jpg": world.expected[f"val2017/{0:012}.jpg"],
    }
    for name, data in mine.items():
        (world.data / name).parent.mkdir(parents=True, exist_ok=True)
        (world.data / name).write_bytes(data)
    world.get()
    assert content(world.data) == {**world.expected, **mine}
    world.server.files.clear()
    world.get()

    other = World(tmp_path / "other")
    (other.data / "annotations").mkdir(parents=True)
    (other.data / "annotations/instances_val2017.json").write_text("{}")
    with pytest.raises(download.Damaged, match="instances_val2017.json: exist with other"):
        other.get()
    assert (other.data / "annotations/instances_val2017.json").read_text() == "{}"
    (other.data / "annotations/instances_val2017.json").unlink()
    other.get()
    assert content(other.data) == other.expected


def test_a_data_set_from_elsewhere_is_recognised_also_behind_links(world, tmp_path):
    for name, data in world.expected.items():
        (tmp_path / "elsewhere" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "elsewhere" / name).write_bytes(data)
    world.data.mkdir(parents=True)
    for name in ("train2017", "val2017", "annotations"):
        (world.data / name).symlink_to(tmp_path / "elsewhere" / name)
    for _ in range(2):
        assert [line.split()[-2:] for line in world.get()[1:]] == [["(was", "there)"]] * 3
    assert world.server.requests == []
    world.data.rename(tmp_path / "real")
    world.data.symlink_to(tmp_path / "real")
    world.get()
    (tmp_path / "elsewhere/train2017" / f"{1:012}.jpg").unlink()
    world.get()
    assert content(tmp_path / "elsewhere") == world.expected
    assert {path for path, _ in world.server.requests} == {"/zips/train2017.zip"}


def test_images_of_ultralytics_layout_are_used_where_they_are(world):
    """Nothing is fetched again, only what is missing; the configs find the images by links."""
    for name, data in world.expected.items():
        place = world.data / ("" if name.startswith("annotations") else "images") / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    before = content(world.data)
    lines = coco2017.planned_steps(world.data, world.release)
    assert [line.split()[-1] for line in lines[:3]] == ["complete"] * 3
    assert sorted(os.listdir(world.data)) == ["annotations", "images"]  # written: nothing
    for _ in range(2):
        assert [line.split()[-2:] for line in world.get()[1:]] == [["(was", "there)"]] * 3
    assert world.server.requests == []
    assert content(world.data) == before
    assert all((world.data / name).read_bytes() == x for name, x in world.expected.items())
    (world.data / "images/train2017" / f"{1:012}.jpg").unlink()
    world.get()
    assert content(world.data) == before
    assert {path for path, _ in world.server.requests} == {"/zips/train2017.zip"}


def test_parts_only_kept_zips_mirror_and_no_network(world, tmp_path):
    world.get(annotations_only=True, splits=["val"])
    assert set(content(world.data)) == {n for n in world.expected if n.startswith("annotations/")}
    world.get(splits=["val"], keep_zips=True)
    assert not (world.data / "train2017").exists()
    assert (world.data / ".download/val2017.zip").is_file()
    world.get(mirror=world.server.url + "/elsewhere/")
    assert world.server.requests[-1][0] == "/elsewhere/zips/train2017.zip"
    assert content(world.data) == world.expected

    asked, offline = len(world.server.requests), World(tmp_path / "b")
    offline.release = world.release  # its own ZIPs have other MD5s when made in another second
    with pytest.raises(UserError, match="--from-zips .*: val2017.zip is not in it"):
        offline.get(from_zips=world.www / "annotations")
    offline.get(from_zips=world.www)
    assert content(offline.data) == world.expected
    assert offline.server.requests == [] and len(world.server.requests) == asked
    assert (world.www / "zips/train2017.zip").is_file()
    shutil.rmtree(offline.data)
    (world.www / "zips/val2017.zip").write_bytes(b"PK")
    with pytest.raises(download.Damaged, match="val2017.zip: its MD5 is not"):
        offline.get(from_zips=world.www)


def test_counts_other_than_published(world):
    splits = world.release.splits
    splits["val"] = coco2017.PublishedSplit(splits["val"].archive, 6, 31)
    with pytest.raises(download.Damaged, match="6 images and 30 boxes instead of 6 and 31") as e:
        world.get()
    assert e.value.code == 3
    splits["val"] = coco2017.PublishedSplit(splits["val"].archive, 6, 30)
    world.get()


def test_counts_of_a_real_file_are_those_of_a_json_parser(shared):
    for path in (shared / "data").rglob("instances_*.json"):
        parsed = json.loads(path.read_text())
        if isinstance(parsed, list):  # detections
            continue
        images, boxes, names = coco2017._count(path)
        assert images == len(parsed["images"]) and boxes == len(parsed["annotations"])
        assert names == [image["file_name"] for image in parsed["images"]]


def test_too_small_a_disk_is_told_before_anything_is_fetched(world, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=400_000))
    with pytest.raises(download.NoSpace, match="needed, 400.0 kB free"):
        world.get()
    assert world.server.requests == []
    world.get(annotations_only=True)


def test_command_line(world, monkeypatch, capsys):
    monkeypatch.setattr(coco2017, "COCO_2017", world.release)
    base = ["download", "--dir", str(world.data)]
    assert cli.run("dataset", [*base, "--dry-run"]) == 0
    assert world.server.requests == [] and not world.data.exists()
    assert "from http://127.0.0.1" in capsys.readouterr().out
    assert cli.run("dataset", base) == 0
    assert "-o TrainDataset.dataset_dir=" in capsys.readouterr().out
    assert cli.run("dataset", [*base, "--dry-run"]) == 0
    assert "train2017/: complete" in capsys.readouterr().out
    (world.data / "val2017" / f"{0:012}.jpg").write_bytes(b"1")
    assert cli.run("dataset", base) == 3
    assert cli.run("dataset", ["download", "--dir", "/proc/fcos"]) == 2
    assert cli.run("dataset", ["nothing"]) == 2
    assert "error: " in capsys.readouterr().err


def test_the_published_table_and_the_script(root):
    """Facts of COCO 2017, and that the script runs from anywhere on the bare standard library."""
    splits = coco2017.COCO_2017.splits
    assert [(s.images, s.boxes, s.anno) for s in splits.values()] == [
        (5_000, 36_781, "annotations/instances_val2017.json"),
        (118_287, 860_001, "annotations/instances_train2017.json"),
    ]
    command = [sys.executable, "-S", str(root / "datasets/download_coco.py"), "--dry-run"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(root / "datasets/coco") in done.stdout


# ---- processes

CHILD = """
import json, sys
from pathlib import Path
from fcos_recipe.datasets import coco2017 as coco
from fcos_recipe.files import download
download.BACKOFF, download.SAVE_EVERY, download.PIECE = 0.01, 0.02, 200_000
facts = json.loads(sys.argv[2])
archive = lambda values: coco.Archive(*values)
splits = {n: coco.PublishedSplit(archive(a), i, b) for n, (a, i, b) in facts["splits"].items()}
release = coco.Release("COCO test", facts["url"], archive(facts["annotations"]), splits)
print("\\n".join(coco.get(Path(sys.argv[1]), release)))
"""


def child(world) -> subprocess.Popen:
    def values(archive):
        return [archive.path, archive.md5, archive.folder, archive.size, archive.unpacked]

    splits = {n: (values(s.archive), s.images, s.boxes) for n, s in world.release.splits.items()}
    facts = {"url": world.server.url, "splits": splits,
             "annotations": values(world.release.annotations)}  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(world.data), json.dumps(facts)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip


@pytest.mark.parametrize("wanted", [10, pytest.param(30, marks=pytest.mark.slow)])
def test_kill_at_random_moments_then_success(tmp_path, wanted):
    """Moments spread over the whole of several runs; the pieces that had arrived aren't resent."""
    dice, kills, finished = random.Random(wanted), 0, 0
    world = World(tmp_path, images=60, size=30_000)
    world.server.delay = 0.004
    total = sum(map(len, world.server.files.values()))
    with world.server:
        while kills < wanted:
            running = child(world)
            try:
                out, err = running.communicate(timeout=dice.uniform(0.15, 0.6))
            except subprocess.TimeoutExpired:
                running.send_signal(signal.SIGKILL)
                running.communicate()
                kills += 1
                continue
            assert running.returncode == 0, err
            assert content(world.data) == world.expected
            finished += 1
            shutil.rmtree(world.data)
        out, err = child(world).communicate(timeout=60)
    assert content(world.data) == world.expected and "180 images, 900 boxes" in out, err
    assert sorted(os.listdir(world.data / ".download")) == [
        "annotations.json", "train2017.json", "val2017.json",
    ]  # fmt: skip
    assert world.server.sent < (finished + 1) * total + kills * 1_000_000


def test_killed_between_unpacking_and_the_record(tmp_path):
    world = World(tmp_path, images=4)
    with world.server:
        assert "12 images" in child(world).communicate(timeout=60)[0]
        ours, sent = world.data / ".download", world.server.sent
        (ours / "val2017.json").unlink()
        (ours / "val2017.zip").write_bytes(world.server.files["/zips/val2017.zip"])
        assert "12 images" in child(world).communicate(timeout=60)[0]
        assert world.server.sent == sent and not (ours / "val2017.zip").exists()
    record = json.loads((ours / "val2017.json").read_text())
    assert all(type(crc) is int for *_, crc in record["files"].values())


def test_two_processes_at_once_fetch_once(tmp_path):
    world = World(tmp_path, images=20)
    world.server.delay = 0.01
    with world.server:
        running = [child(world) for _ in range(3)]
        results = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], results
    assert content(world.data) == world.expected
    begun = [path for path, asked in world.server.requests if asked.startswith("bytes=0-")]
    assert sorted(begun) == sorted(world.server.files)
    assert any("waiting for another process" in err for _, err in results)
