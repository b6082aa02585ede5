"""Videos, streams and cameras of `fcos infer`: frames with their times in, WebM and lines out."""

import contextlib
import http.server
import json
import struct
import threading
import time

import cv2
import numpy as np
import pytest

from fcos_recipe.cli import run
from fcos_recipe.errors import RunFailure
from fcos_recipe.predict import video
from fcos_recipe.predict.video import Video, film

SIZE = (96, 64)


def frame(k):
    """Brighter from frame to frame, and brighter at the right, RGB."""
    return np.full((SIZE[1], SIZE[0], 3), 4 * k, np.uint8) + np.arange(96, dtype=np.uint8)[:, None]


def write_video(path, code="mp4v", frames=8, rate=10):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), rate, SIZE)
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write a video")
    for k in range(frames):
        writer.write(frame(k))
    writer.release()
    return path


def slower(path):
    """The frames of this MP4 file take 0.1 s, and from the fourth on 0.5 s."""
    data = bytearray(path.read_bytes())
    at = data.index(b"stts")
    entries, count, step = struct.unpack(">III", data[at + 8 : at + 20])
    assert (entries, count) == (1, 8) and data.index(b"mdat") < data.index(b"moov")
    data[at + 8 : at + 20] = struct.pack(">IIIII", 2, 3, step, 5, 5 * step)
    for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts"):
        place = data.index(box) - 4
        size = struct.unpack(">I", data[place : place + 4])[0]
        data[place : place + 4] = struct.pack(">I", size + 8)
    path.write_bytes(data.replace(b"edts", b"free"))  # the edit list states the former length
    return [0, 0.1, 0.2, 0.3, 0.8, 1.3, 1.8, 2.3]


def turned(path):
    """This MP4 file is to be shown turned by 90 degrees."""
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30),
                    data.index(b"tkhd"))  # fmt: skip
    matrix = (0, 1 << 16, 0, -(1 << 16), 0, 0, SIZE[1] << 16, 0, 1 << 30)
    data[at : at + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)


def infer(trained, out, *argv):
    return run("infer", ["--weights", str(trained[0]), "--output", str(out), *map(str, argv)])


def pixels(path):
    return [np.asarray(f.pixels).mean() for f in Video(path)]


def test_frames_have_their_own_time_also_in_what_is_written(trained, tmp_path, capfd):
    """A video of uneven frames, and what `infer` makes of it again: no frame is said to miss."""
    path = write_video(tmp_path / "clip.mp4")
    assert [round(f.at, 3) for f in Video(path)] == [round(0.1 * k, 3) for k in range(8)]
    times = slower(path)
    assert [round(f.at, 2) for f in Video(path)] == times
    for number in (1, 2):
        assert infer(trained, tmp_path / str(number), "--input", path, "--batch-size", 3) == 0
        told = capfd.readouterr()
        assert "1 video as VP8 in WebM" in told.out and "FFMPEG" not in told.err
        rows = json.loads((tmp_path / str(number) / "predictions.json").read_text())
        assert sorted({row["seconds"] for row in rows}) == times
        path = tmp_path / str(number) / "clip.webm"
        assert [round(f.at, 2) for f in Video(path)] == times
        assert path.read_bytes()[:4] == b"\x1a\x45\xdf\xa3" and b"webm" in path.read_bytes()[:64]


def test_a_turned_video_is_turned_in_what_is_written(trained, tmp_path):
    path = write_video(tmp_path / "clip.mp4")
    turned(path)
    assert infer(trained, tmp_path / "out", "--input", path, "--draw_threshold", 1) == 0
    for file in (path, tmp_path / "out/clip.webm"):
        shown = [f.pixels for f in Video(file)]
        assert {x.shape for x in shown} == {(96, 64, 3)} and len(shown) == 8
        assert shown[3][80:].mean() > shown[3][:16].mean() + 40  # the right side is below


def test_a_film_has_what_was_drawn_and_is_whole_or_absent(tmp_path):
    target = tmp_path / "a.webm"
    with film(target, float("nan")) as made:  # a rate that no source should state
        for k in range(8):
            made.add(frame(k), 5 + k * k / 10)
    assert [round(f.at, 2) for f in Video(target)] == [k * k / 10 for k in range(8)]
    np.testing.assert_allclose(
        pixels(target), [frame(k).mean() for k in range(8)], atol=3.5
    )  # VP8 is lossy
    before = target.read_bytes()
    with pytest.raises(ValueError), film(target, 10) as made:
        made.add(frame(0), 0)
        raise ValueError
    with film(target, 10):
        pass
    assert target.read_bytes() == before
    with pytest.raises(KeyboardInterrupt), film(target, 10) as made:
        [made.add(frame(k), k / 10) for k in range(3)]
        made.add(np.zeros((20, 30, 3), np.uint8), 0.3)  # another size
        raise KeyboardInterrupt
    assert len(pixels(target)) == 4
    with pytest.raises(RunFailure, match=r"a.webm: only \d of 9 frames"), film(target, 10) as made:
        [made.add(frame(k), k / 10) for k in range(8)]
        made.times.append(0.8)  # as if the disk had become full
    assert len(pixels(target)) == 4 and [p.name for p in tmp_path.iterdir()] == ["a.webm"]


# ---- streams


class Camera(http.server.ThreadingHTTPServer):
    """Sends JPEG pictures without end marks as network cameras do, then `end` happens."""

    daemon_threads, block_on_close = True, False

    def __init__(self, frames, end):
        super().__init__(("127.0.0.1", 0), _Pictures)
        self.frames, self.end, self.over = frames, end, threading.Event()

    def handle_error(self, *_):
        pass


class _Pictures(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.server.end == "unknown":
            return self.send_error(404)
        if self.server.end == "mute":
            return self.server.over.wait(20)
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
        self.end_headers()
        for k in range(self.server.frames):
            data = cv2.imencode(".jpg", frame(k))[1].tobytes()
            head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            self.wfile.write(head.encode() + data + b"\r\n")
            time.sleep(0.02)
        if self.server.end == "stalls":
            self.server.over.wait(20)


@contextlib.contextmanager
def camera(frames=10, end="breaks"):
    with Camera(frames, end) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://user:secret@127.0.0.1:{server.server_port}/live?key=secret"
        finally:
            server.over.set()
            server.shutdown()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(video, "PATIENCE", 1.5)


ENDS = {
    "breaks": "the stream ended after 10 frames",
    "stalls": "the stream ended after 10 frames: nothing came for 1.5 s",
    "mute": "no answer in 1.5 s",
    "unknown": "not a camera or stream that OpenCV can read",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_stream_that_ends_is_one_line_and_what_came_is_kept(
    trained, data, tmp_path, capfd, impatient, end
):
    """The picture of the data set is done whatever the stream does; no password is written."""
    out, picture = tmp_path / "out", data / "val/000001.jpg"
    with camera(end=end) as address:
        assert infer(trained, out, "--input", address, picture, "--csv") == 1
    told = capfd.readouterr()
    lines = told.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: http://***@127.0.0.1"), lines
    assert ENDS[end] in lines[0]
    rows = json.loads((out / "predictions.json").read_text())
    assert str(picture) in {row["file_name"] for row in rows} and (out / "000001.jpg").is_file()
    frames = sorted({row["frame"] for row in rows if "frame" in row})
    if end in ("breaks", "stalls"):
        assert frames[0] < 10 and frames[-1] == 9  # the newest is never left out
        (made,) = out.glob("127.0.0.1*.webm")
        assert len(pixels(made)) == len(frames)
    else:
        assert not frames and not list(out.glob("*.webm"))
    written = told.out + told.err + "".join(map(str, out.rglob("*")))
    written += (out / "predictions.json").read_text() + (out / "predictions.csv").read_text()
    assert "secret" not in written


def test_the_newest_frame_of_a_live_stream_is_next_and_memory_is_bounded(impatient):
    with camera(frames=40) as address:
        source = Video(address)
        assert source.count == 0
        seen = []
        with pytest.raises(video.BadImage, match="ended after 40 frames"):
            for one in source:
                seen.append(one)
                time.sleep(0.1)  # five frames come meanwhile
    numbers = [one.number for one in seen]
    assert numbers == sorted(set(numbers)) and len(numbers) < 30 and numbers[-1] == 39
    for one in seen:  # of the frame that it says
        assert abs(one.pixels.mean() - frame(one.number).mean()) < 1.5
    with camera(frames=40) as address:
        before = threading.active_count()
        for _ in Video(address):
            break  # a caller who has enough
        until = time.monotonic() + 5
        while threading.active_count() > before + 1 and time.monotonic() < until:
            time.sleep(0.05)
        assert threading.active_count() <= before + 1  # the server's own


def test_lines_of_json_instead_of_files(trained, data, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = write_video(tmp_path / "clip.avi", "MJPG", 3)
    argv = ["--weights", str(trained[0]), "--input", str(data / "val"), str(clip)]
    assert run("infer", [*argv, "--stream", "--max-dets", "4"]) == 0
    told = capfd.readouterr()
    lines = [json.loads(line) for line in told.out.splitlines()]
    assert [p.name for p in tmp_path.iterdir()] == ["clip.avi"]
    assert told.err.splitlines()[-1] == "9 images, 36 detections"
    assert [line.get("frame") for line in lines] == [None] * 6 + [0, 1, 2]
    assert run("infer", [*argv, "--max-dets", "4"]) == 0
    rows = json.loads((tmp_path / "output/infer/predictions.json").read_text())
    for line in lines:
        place = {key: line[key] for key in ("file_name", "frame", "seconds") if key in line}
        same = [row for row in rows if place.items() <= row.items()]
        assert [{**place, **d} for d in line["detections"]] == [
            {key: value for key, value in row.items() if key != "image_id"} for row in same
        ]
    capfd.readouterr()
    for more in (["--csv"], ["--save-crops"], ["--save-labels", "voc"], ["--output", "x"]):
        assert run("infer", [*argv, "--stream", *more]) == 2
        assert f"leave out {more[0]}" in capfd.readouterr().err


def test_a_camera_that_does_not_exist_is_one_line(trained, tmp_path, capfd):
    assert infer(trained, tmp_path / "out", "--input", "97") == 1
    assert capfd.readouterr().err.splitlines() == [
        "error: camera 97: not a camera or stream that OpenCV can read; skipped"
    ]


def test_progress_is_shown_where_it_is_asked_for(trained, data, tmp_path, capfd):
    """Standard error is no terminal here."""
    clip = write_video(tmp_path / "clip.avi", "MJPG", 3)
    for more, shown in ([], False), (["--show-progress"], True):
        assert infer(trained, tmp_path / "out", "--input", data / "val", clip, *more) == 0
        told = capfd.readouterr().err
        assert ("6/6" in told and "clip.avi: 100%" in told) == shown and bool(told) == shown
