"""Predictions on images and videos, written to a folder as drawings, COCO results and CSV."""

import contextlib
import csv
import io
import itertools
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from fcos_recipe.errors import UserError, cell
from fcos_recipe.files.atomic import open_own, own_folder, replace_file
from fcos_recipe.files.reading import read_json
from fcos_recipe.predict.inputs import decoded, real
from fcos_recipe.predict.labels import Labels
from fcos_recipe.predict.results import Detections
from fcos_recipe.predict.video import WRITTEN, Source, Video, film, is_video, source_name

PREDICTIONS = "predictions.json"


@dataclass
class Written:
    """What `predict_files` found and wrote.

    Args:
        folder: holds the drawings and `PREDICTIONS`.
        draw_threshold: lowest score that is drawn.
        images: images and frames that were predicted on.
        detections: found on them.
        drawn: of these, detections that score at least `draw_threshold`.
        videos: videos with drawn frames, written as `film` does.
        bad: one line for each file that could not be read, and stream that ended.
    """

    folder: Path
    draw_threshold: float = 0.5
    images: int = 0
    detections: int = 0
    drawn: int = 0
    videos: int = 0
    bad: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """COCO results with `file_name` and `category_name`, read from `PREDICTIONS`; frames of a
        video also have `frame` (from 0) and `seconds`."""
        return read_json(self.folder / PREDICTIONS, list, 1 << 40)


def check_output(names: dict[Source, Path], folder: Path) -> None:
    """Check that `predict_files` can write to the folder, without making it.

    Raises:
        UserError: a drawing would overwrite its image, or the folder cannot be written to.
    """
    for file, target in drawings(names, folder).items():
        if isinstance(file, Path) and real(target) == real(file):
            raise UserError(f"--output {folder}: would overwrite the image {file}; choose another")
    try:
        there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(f"--output {folder}: {error.strerror}; choose another folder") from None


def drawings(names: dict[Source, Path], folder: Path) -> dict[Source, Path]:
    """Where the drawing of each file, stream and camera goes, and its crops below crops/.

    It has the source's name. Where that is taken, by another output or because case does not tell
    names apart on every disk, or would put a file where a folder must be, it gets a number.

    Args:
        names: from `find_inputs`.
        folder: for the drawings.
    """
    made: dict[Source, Path] = {}
    taken, folders = {PREDICTIONS, "predictions.csv", "crops", "labels"}, {"."}
    for source, name in names.items():
        plain = name.with_suffix(WRITTEN) if is_video(source) else name
        if taken & {str(parent).casefold() for parent in plain.parents}:
            plain = Path("_".join(plain.parts))
        name, number = plain, 1
        while str(name).casefold() in taken | folders:
            number += 1
            name = plain.with_stem(f"{plain.stem}_{number}")
        taken.add(str(name).casefold())
        folders.update(str(parent).casefold() for parent in name.parents)
        made[source] = folder / name
    return made


def predict_files(
    predictor,
    names: dict[Source, Path],
    folder: Path,
    batch_size: int = 1,
    draw_threshold: float = 0.5,
    as_csv: bool = False,
    progress: bool | None = False,
    select: Callable[[Detections], Detections] = lambda found: found,
    crops: bool = False,
    labels: str | None = None,
    lines: TextIO | None = None,
) -> Written:
    """Predict on files, streams and cameras and write what was found, image by image.

    What was written is complete JSON at any moment, so that an interruption loses no finished
    image; memory does not grow with the number of images.

    Args:
        predictor: a `Predictor`.
        names: of images, videos, streams and cameras, from `find_inputs`.
        folder: created if missing.
        batch_size: images per batch, padded to the largest, which changes scores a little.
        draw_threshold: lowest score that is drawn.
        as_csv: also write predictions.csv.
        progress: show progress bars; None: on a terminal.
        select: applied to the detections of each image, such as `Detections.filter`.
        crops: also write the part of the image in each drawn box, as
            crops/DRAWING/NUMBER-CLASS.jpg, best first.
        labels: also write the drawn boxes of images, not of videos, as files of this one of
            `labels.FORMATS`, to the folder labels.
        lines: instead of all files, write a line of JSON to this as soon as an image or frame was
            predicted on: `file_name`, of a frame `frame` and `seconds`, and `detections`.

    Raises:
        UserError: a drawing cannot be written.
        RunFailure: a video cannot be written.
        OSError: the disk is full or cannot be written to; what was written before is complete.
    """
    written = Written(folder, draw_threshold)
    if lines is None:
        folder.mkdir(parents=True, exist_ok=True)
    results = _Results(predictor, drawings(names, folder), written, as_csv, select, crops, lines)
    videos = [source for source in names if is_video(source)]
    if labels is not None:
        images = {x: name for x, name in names.items() if isinstance(x, Path) and not is_video(x)}
        results.labels = Labels(labels, folder / "labels", predictor.names, images)
    quiet = None if progress is None else not progress
    with results:
        _predict_images(results, batch_size, quiet)
        for source in videos:
            _predict_video(results, source, batch_size, quiet)
    return written


class _Results:
    """Writes detections as COCO results, CSV and crops, image by image."""

    def __init__(
        self, predictor, targets: dict[Source, Path], written: Written, as_csv: bool, select, crops,
        lines: TextIO | None,
    ):  # fmt: skip
        self.predictor, self.written, self.targets = predictor, written, targets
        self._select, self._crops, self._lines = select, crops, lines
        self.labels: Labels | None = None
        ids, names = predictor.image_ids, {Path(str(source)).name for source in targets}
        # numbers of our own beside the annotations' could meet
        self._ids = ids if len(names & set(ids)) == len(targets) else {}
        self._failing: set[Source] = set()  # videos of which a frame's error was told
        self._json = self._csv = None
        if lines is None:
            self._json = _Growing(written.folder / PREDICTIONS, "[", "]\n")
        if as_csv:
            head = "file_name,frame,category_name,score,x1,y1,x2,y2\r\n"
            self._csv = _Growing(written.folder / "predictions.csv", head, "")

    def __enter__(self) -> "_Results":
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._json, self._csv, self.labels):
            if file is not None:
                file.close()

    def add(self, file: Source, found: Detections) -> np.ndarray | None:
        """Write the detections of an image or frame; the image with boxes drawn, as `plot` has it.

        None: nothing is to be drawn, or it could not be predicted on; why is noted, of a video's
        frames for the first.
        """
        written, frame = self.written, found.frame
        if found.error:
            place = "" if frame is None else f"frame {frame}: "
            if frame is None or file not in self._failing:
                written.bad.append(place + found.error)
                self._failing.add(file)
            return None
        found = self._select(found)
        written.images += 1
        more = {} if found.at is None else {"frame": frame, "seconds": round(found.at, 3)}
        place = {"file_name": source_name(file), **more}
        number = self._ids.get(Path(str(file)).name, written.images)
        rows = [
            {"image_id": row["image_id"], **place,
             "category_id": row["category_id"], "category_name": name, "bbox": row["bbox"],
             "score": row["score"]}
            for row, name in zip(found.to_coco(number), found.class_names)
        ]  # fmt: skip
        written.detections += len(rows)
        if self._lines is not None:
            kept = ("category_id", "category_name", "bbox", "score")
            of = {**place, "detections": [{key: row[key] for key in kept} for row in rows]}
            print(json.dumps(of), file=self._lines, flush=True)
            return None
        shown = found.filter(min_score=written.draw_threshold)
        comma = ",\n" if written.detections > len(rows) else ""
        if rows and self._json is not None:
            self._json.add(comma + ",\n".join(json.dumps(r, ensure_ascii=False) for r in rows))
        if self._csv is not None:
            self._csv.add(_as_csv(rows))
        written.drawn += len(shown)
        if self.labels is not None and isinstance(file, Path) and frame is None:
            self.labels.add(file, shown)
        if self._crops:
            folder = written.folder / "crops" / self.targets[file].relative_to(written.folder)
            begin = "" if frame is None else f"{frame:06d}-"
            for number, (crop, name) in enumerate(zip(shown.crops(), shown.class_names), 1):
                plain = re.sub(r"[^\w.-]+", "_", name)[:60]
                target = folder / f"{begin}{number:03d}-{plain}.jpg"
                own_folder(folder, written.folder)
                replace_file(target, _encoded(target, crop))
        return shown.plot()


class _Growing:
    """A text file that is complete after each addition: `end` is always its last part.

    It replaces an earlier file of the name at once. If an addition fails, as on a full disk, the
    file stays as it was before it.
    """

    def __init__(self, path: Path, begin: str, end: str):
        self.path, self._end = path, end.encode()
        replace_file(path, begin + end)
        self._file = open_own(path, os.O_RDWR)
        self._at = len(begin.encode())

    def add(self, text: str) -> None:
        data = text.encode(errors="backslashreplace")  # in JSON, an escape sequence
        rest, place = memoryview(data + self._end), self._at
        try:
            while rest:
                done = os.pwrite(self._file.fileno(), rest, place)
                rest, place = rest[done:], place + done
        except BaseException as error:
            os.pwrite(self._file.fileno(), self._end, self._at)
            os.ftruncate(self._file.fileno(), self._at + len(self._end))
            if isinstance(error, OSError):
                error.filename = str(self.path)
            raise
        self._at += len(data)

    def close(self) -> None:
        self._file.close()


def _batches(items: Iterable, size: int) -> Iterator[list]:
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def _predict_images(results: _Results, size: int, quiet):
    """Detect on images and draw them; unreadable ones are noted."""
    from tqdm import tqdm

    files = [x for x in results.targets if isinstance(x, Path) and not is_video(x)]

    def good():
        for file, image in decoded(files, ahead=2 * size + 2):
            bar.update()
            if isinstance(image, Exception):
                results.written.bad.append(str(image))
            else:
                yield file, image

    with tqdm(total=len(files), disable=quiet if files else True, unit="image") as bar:
        for batch in _batches(good(), size):
            every = results.predictor.named([(str(file), image) for file, image in batch])
            for (file, _), found in zip(batch, every, strict=True):
                drawn = results.add(file, found)
                if drawn is not None:
                    target = results.targets[file]
                    own_folder(target.parent, results.written.folder)
                    replace_file(target, _encoded(target, drawn))


def _predict_video(results: _Results, source: Source, size: int, quiet):
    """Detect on the frames of a video, stream or camera; write the drawn ones as a video."""
    from tqdm import tqdm

    from fcos_recipe.data.images import BadImage

    try:
        video = Video(source)
    except BadImage as error:
        results.written.bad.append(str(error))
        return
    target, made = results.targets[source], None
    total = video.count if video.rate < 500 else None  # else a unit of time, not the rate
    bar = tqdm(total=total or None, disable=quiet, unit="frame", desc=video.name)
    with bar, contextlib.ExitStack() as opened:
        for batch in _batches(_until_bad(video, results.written.bad), size):
            every = results.predictor.named([(video.name, frame) for frame in batch])
            for frame, found in zip(batch, every, strict=True):
                bar.update()
                drawn = results.add(source, found)
                if drawn is None:
                    continue
                if made is None:
                    own_folder(target.parent, results.written.folder)
                    made = opened.enter_context(film(target, video.rate))
                made.add(drawn, frame.at)
    results.written.videos += made is not None


def _encoded(target: Path, image) -> bytes:
    """The RGB image as a file in the format of the target's ending; JPEG if OpenCV has none."""
    import cv2

    image = image[:, :, ::-1]
    with contextlib.suppress(cv2.error):
        done, data = cv2.imencode(target.suffix, image)
        if done:
            return data.tobytes()
    return cv2.imencode(".jpg", image)[1].tobytes()


def _until_bad(frames: Iterable, bad: list[str]) -> Iterator:
    """The frames there are; why there are no more, if it is not the end, goes to `bad`."""
    from fcos_recipe.data.images import BadImage

    try:
        yield from frames
    except BadImage as error:
        bad.append(str(error))


def _as_csv(rows: list[dict]) -> str:
    with io.StringIO(newline="") as file:
        writer = csv.writer(file)
        for row in rows:
            x, y, w, h = row["bbox"]
            corners = [round(v, 3) for v in (x, y, x + w, y + h)]
            place = [cell(row["file_name"]), row.get("frame", "")]
            writer.writerow([*place, cell(row["category_name"]), row["score"], *corners])
        return file.getvalue()


def best_f1_threshold(weights: str) -> tuple[float, str]:
    """The score threshold at which a run's detections have the best F1, and where that is said.

    Returns:
        `score_threshold` of analysis.json in the run directory of the weights, and that file; 0.5
        and "" if there is none.
    """
    from fcos_recipe.predict.predictor import run_config
    from fcos_recipe.runs.contents import Analysis

    with contextlib.suppress(UserError):  # an export, or weights without their run
        path = run_config(weights).with_name("analysis.json")
        return read_json(path, Analysis).score_threshold, str(path)
    return 0.5, ""
