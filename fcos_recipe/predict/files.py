"""Predictions on images and videos, written to a folder as drawings, COCO results and CSV."""

import contextlib
import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from fcos_recipe.errors import UserError, cell
from fcos_recipe.files.atomic import draft, replace_file
from fcos_recipe.predict.inputs import Video, decoded, is_video, real

PREDICTIONS = "predictions.json"


@dataclass
class Written:
    """What `predict_files` found and wrote.

    Args:
        folder: holds the drawings and `PREDICTIONS`.
        rows: COCO results with `file_name` and `category_name`; frames of a video also have
            `frame` (from 0) and `seconds`.
        images: images and frames that were predicted on.
        bad: one line for each file that could not be read.
    """

    folder: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    images: int = 0
    bad: list[str] = field(default_factory=list)


def drawings(files: dict[Path, Path], folder: Path) -> dict[Path, Path]:
    """Where the drawing of each file goes.

    Args:
        files: image or video -> path of its drawing inside the folder, from `find_inputs`.
        folder: for the drawings.

    Raises:
        UserError: a drawing would overwrite its image.
    """
    for file, relative in files.items():
        if real(folder / relative) == real(file):
            raise UserError(f"--output {folder}: would overwrite the image {file}; choose another")
    return {file: folder / relative for file, relative in files.items()}


def predict_files(
    predictor,
    targets: dict[Path, Path],
    folder: Path,
    batch_size: int = 1,
    draw_threshold: float = 0.5,
    as_csv: bool = False,
    progress: bool = False,
) -> Written:
    """Predict on files and write what was found.

    Args:
        predictor: a `Predictor`.
        targets: from `drawings`.
        folder: created if missing.
        batch_size: images per batch, padded to the largest, which changes scores a little.
        draw_threshold: lowest score that is drawn.
        as_csv: also write predictions.csv.
        progress: show progress bars on a terminal.

    Raises:
        UserError: a drawing cannot be written.
    """
    results = _Results(predictor, list(targets), Written(folder))
    images = {file: target for file, target in targets.items() if not is_video(file)}
    how = batch_size, draw_threshold, None if progress else True
    _predict_images(results, images, *how)
    for file in targets.keys() - images.keys():
        _predict_video(results, file, targets[file], *how)
    _write(folder, results.written.rows, as_csv)
    return results.written


class _Results:
    """Collects detections as COCO results."""

    def __init__(self, predictor, files: list[Path], written: Written):
        self.predictor, self.written = predictor, written
        ids = predictor.image_ids
        known = len({f.name for f in files} & set(ids)) == len(files)
        self._ids = ids if known else {}  # numbers of our own beside the annotations' could meet

    def add(self, file: Path, found, **more) -> None:
        """Keep the `Detections` of an image or frame; `more` goes into each row."""
        self.written.images += 1
        image_id = self._ids.get(file.name, self.written.images)
        for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True):
            x1, y1, x2, y2 = box.tolist()
            self.written.rows.append(
                {
                    "image_id": image_id,
                    "file_name": str(file),
                    **more,
                    "category_id": self.predictor.category_ids[label],
                    "category_name": found.names[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": float(score),
                }
            )


def _batches(items: Iterable, size: int) -> Iterator[list]:
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def _predict_images(
    results: _Results, targets: dict[Path, Path], size: int, threshold: float, quiet
):
    """Detect on images and draw them; unreadable ones are noted."""
    from tqdm import tqdm

    def good():
        for file, image in decoded(list(targets), ahead=2 * size + 2):
            bar.update()
            if isinstance(image, Exception):
                results.written.bad.append(str(image))
            else:
                yield file, image

    with tqdm(total=len(targets), disable=quiet, unit="image") as bar:
        for batch in _batches(good(), size):
            every = results.predictor.named([(str(file), image) for file, image in batch])
            for (file, image), found in zip(batch, every, strict=True):
                if found.error:
                    results.written.bad.append(found.error)
                    continue
                results.add(file, found)
                drawn = _drawn(image, found, threshold)
                target = targets[file]
                target.parent.mkdir(parents=True, exist_ok=True)
                replace_file(target, _encoded(target, drawn))


def _predict_video(results: _Results, file: Path, target: Path, size: int, threshold: float, quiet):
    """Detect on a video's frames and write the drawn ones as MP4 beside where they were asked."""
    import cv2
    from tqdm import tqdm

    from fcos_recipe.data.images import BadImage

    writer = None
    try:
        video = Video(file)
    except BadImage as error:
        results.written.bad.append(str(error))
        return
    with contextlib.ExitStack() as opened:
        with tqdm(total=video.count or None, disable=quiet, unit="frame", desc=file.name) as bar:
            frames = _until_bad(video, results.written.bad)
            for batch in _batches(frames, size):
                every = results.predictor.named([(str(file), frame) for frame in batch])
                for (frame, number, at), found in zip(map(astuple, batch), every, strict=True):
                    if found.error:
                        results.written.bad.append(f"frame {number}: {found.error}")
                        continue
                    results.add(file, found, frame=number, seconds=round(at, 3))
                    if writer is None:
                        target.parent.mkdir(parents=True, exist_ok=True)
                        code = cv2.VideoWriter_fourcc(*"mp4v")
                        shape = frame.shape[1::-1]
                        part = opened.enter_context(draft(target, ending=".mp4"))
                        writer = cv2.VideoWriter(str(part), code, video.rate, shape)
                        opened.callback(writer.release)
                        if not writer.isOpened():
                            raise UserError(
                                f"{target}: cannot be written, or this OpenCV has no MP4 encoder"
                            )
                    writer.write(_drawn(frame, found, threshold)[:, :, ::-1])
                    bar.update()


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


def _drawn(image, found, threshold: float):
    from fcos_recipe.drawing import draw

    return draw(image, found.boxes, found.scores, found.labels, found.names, threshold)


def _write(output: Path, rows: list[dict], as_csv: bool) -> None:
    output.mkdir(parents=True, exist_ok=True)
    replace_file(output / PREDICTIONS, json.dumps(rows, ensure_ascii=False))
    if not as_csv:
        return
    with io.StringIO(newline="") as file:
        writer = csv.writer(file)
        writer.writerow("file_name frame category_name score x1 y1 x2 y2".split())
        for row in rows:
            x, y, w, h = row["bbox"]
            corners = [round(v, 3) for v in (x, y, x + w, y + h)]
            place = [cell(row["file_name"]), row.get("frame", "")]
            writer.writerow([*place, cell(row["category_name"]), row["score"], *corners])
        replace_file(output / "predictions.csv", file.getvalue())
