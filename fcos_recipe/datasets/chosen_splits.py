"""The annotations and images of a new config: found in a data set's folder, or converted."""

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fcos_recipe.data.index import open_index
from fcos_recipe.datasets.convert.coco_repair import from_coco, needs_repair
from fcos_recipe.datasets.convert.layouts import Options, Result, convert, refuse_bad, several
from fcos_recipe.datasets.find_images import remember, resolve
from fcos_recipe.datasets.recognise import Layout, recognise
from fcos_recipe.datasets.split_merge.annotations import write
from fcos_recipe.errors import UserError, printable
from fcos_recipe.places import display


@dataclass(kw_only=True)
class DataRequest:
    """What the user says about the data.

    Args:
        data: the data set's folder, in any format that `recognise` knows.
        train, val: annotation files, if they can't be found; val "none": no evaluation.
        images: folder with the images, or whose subfolders have them.
        format: of the data, if several lie in the folder.
        classes: names in order, for formats without names.
        origin: of VOC's coordinates, see `from_voc`.
        keypoints: of YOLO's lines, see `from_yolo`.
        skip_bad: leave out what can't be converted.
    """

    data: Path
    train: str | None = None
    val: str | None = None
    images: Path | None = None
    format: str | None = None
    classes: list[str] | None = None
    origin: str = "auto"
    keypoints: str | None = None
    skip_bad: bool = False


class ChosenSplit(NamedTuple):
    """Annotations and images of one split; paths are absolute.

    Args:
        anno: annotation file.
        folder: image directory.
        files: paths of the images in use.
        images: number of images that are listed and exist.
        empty: number of those without a box.
        boxes: class name -> boxes.
        size: median height and width of its images in pixels; (0, 0): not in the annotations.
    """

    anno: str
    folder: str
    files: set[str]
    images: int
    empty: int
    boxes: dict[str, int]
    size: tuple[int, int]

    def section(self, data: Path, **more) -> dict[str, Any]:
        def below(path: str) -> str:
            inside = Path(path).is_relative_to(data)
            return ("" if Path(path) == data else os.path.relpath(path, data)) if inside else path

        paths = {"image_dir": below(self.folder), "anno_path": below(self.anno)}
        return {"dataset_dir": str(data), **paths, **more}


class Sources:
    """Finds the annotations of each split, and converts those that training can't use as they are.

    Args:
        args: what the user says about the data.
        data: the data set's folder, absolute.
        folder: where converted annotations go.
    """

    def __init__(self, args: DataRequest, data: Path, folder: Path):
        self.args, self.data, self.folder = args, data, folder
        self.notes: list[str] = []
        self.written: list[Path] = []

    def find(self) -> dict[str, tuple[str, str]]:
        """Split ("train" and, if there is one, "val") -> annotation file and image folder."""
        args = self.args
        named = {"train": self._named("train", args.train)}
        if args.val != "none":
            named["val"] = self._named("val", args.val)
        layout = None
        if not named["train"] or (args.val is None):
            layout = recognise(self.data, args.format)
            self.notes += layout.notes
        if layout and layout.kind != "coco":
            if args.train or args.val not in (None, "none"):
                raise UserError(f"{self.data}: {layout.name}: --train and --val name COCO files; "
                                "leave them out, or name both")  # fmt: skip
            return self._converted(layout)
        splits = {} if layout is None else layout.splits
        chosen: dict[str, str] = {}
        for split in named:
            if path := named[split] or self._only(split, splits):
                chosen[split] = path
        if chosen.get("val") == chosen["train"]:
            raise UserError(f"{chosen['train']}: --train and --val are the same file; give --val "
                            "other annotations, or --val none")  # fmt: skip
        self._tell_test({k: str(v[0]) for k, v in splits.items()})
        return {split: self._usable(split, path) for split, path in chosen.items()}

    def _named(self, split: str, given: str | None) -> str | None:
        if not given:
            return None
        places = [path for path in (Path(given), self.data / given) if path.is_file()]
        if not places:
            raise UserError(f"--{split} {given}: no such file, neither here nor in {self.data}")
        return os.path.abspath(places[0])

    def _only(self, split: str, splits: dict[str, list[Path]]) -> str | None:
        """The only file of a split; a single file of any name is for training."""
        if split == "train" and "train" not in splits and len(splits) == 1:
            split = next(iter(splits))
        files = splits.get(split, [])
        if len(files) > 1:
            raise UserError(f"{several(self.data, split, files)}; choose with --{split or 'train'} "
                            "JSON")  # fmt: skip
        if files:
            return str(files[0])
        if split == "train":
            told = ", ".join(f"{name or 'no split'}: {v[0].name}" for name, v in splits.items())
            raise UserError(f"{self.data}: no annotations for training ({told}); name the file "
                            "with --train JSON")  # fmt: skip
        if "test" in splits and "train" in splits and open_index(splits["test"][0]).has_annotations:
            self.notes.append("there is no val split; test is used for evaluation")
            return self._only("test", splits)
        return None

    def _usable(self, split: str, path: str) -> tuple[str, str]:
        """The file and its image folder, after a conversion if training can't read it as it is."""
        try:
            index = open_index(path)
            names = index.file_names()
            images = resolve(path, names, self.args.images, self.data, split)
            if images.folder and not images.renamed(names) and not needs_repair(Path(path)):
                return path, images.folder
            first = None
        except UserError as error:
            first = error
        try:
            found = from_coco(Path(path), self.args.images, split, self.data)
        except UserError as error:
            raise first or error from None
        made = Result()
        made.add(split, found)
        return self._write(made)[split]

    def _converted(self, layout: Layout) -> dict[str, tuple[str, str]]:
        args = self.args
        embedded = self.folder / "images"
        options = Options(args.images, args.classes, None, args.origin, embedded, args.keypoints)
        made = convert(layout, options)
        self.notes.append(f"{self.data}: {layout.name}, converted into {display(self.folder)}")
        if "val" not in made.splits and {"train", "test"} <= set(made.splits):
            made.splits["val"] = made.splits.pop("test")
            self.notes.append("there is no val split; test is used for evaluation")
        if args.val == "none":
            made.splits.pop("val", None)
        if len(made.splits) == 1:
            made.splits = {"train": next(iter(made.splits.values()))}
        if "train" not in made.splits:
            told = ", ".join(name or "images of no split" for name in made.splits)
            raise UserError(f"{self.data}: {layout.name}: no training images; it has {told}")
        found = self._write(made)
        self._tell_test({name: path for name, (path, _) in found.items()})
        return found

    def _write(self, made: Result) -> dict[str, tuple[str, str]]:
        refuse_bad(made, self.args.skip_bad, "leave them out with --skip-bad")
        self.notes += [f"left out: {line}" for line in made.bad]
        self.notes += [f"{count} {text}" for text, count in made.said.items()]
        self.notes += made.account.lines()
        found = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, part in made.splits.items():
            path = self.folder / f"instances_{name or 'other'}.json"
            remember(part.content, path, part.root)
            self.written.append(path)
            write(path, part.content)
            found[name] = (os.path.abspath(path), str(part.root))
        return found

    def _tell_test(self, files: dict[str, str]) -> None:
        if "test" in files and "test is used" not in " ".join(self.notes):
            path = display(Path(files["test"]))
            self.notes.append(f"test: {path}; --val {path} writes a config that evaluates on it")

    def discard(self) -> None:
        """Remove what was written, because there will be no config."""
        for path in self.written:
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and (self.written or (self.folder / "images").is_dir()):
            shutil.rmtree(self.folder / "images", ignore_errors=True)
            with contextlib.suppress(OSError):
                self.folder.rmdir()


def open_split(split: str, path: str, folder: str, judged: bool) -> ChosenSplit:
    """Read a split and count what training uses of it.

    Args:
        split: "train" or "val", for messages.
        path: annotation file.
        folder: of the images.
        judged: it is evaluated on, for which images without boxes will do.

    Raises:
        UserError: it has no categories or annotations, a class name occurs twice, or there is
            nothing to train on.
    """
    import numpy as np

    from fcos_recipe.data.dataset import COCODataSet

    index = open_index(path)
    folder = os.path.abspath(folder)
    dataset = COCODataSet(folder, "", path, allow_empty=True)
    dataset.parse_dataset()
    if not index.class_names or not index.has_annotations:
        raise UserError(f"{path}: no categories, or no annotations; choose another --{split} JSON")
    there = np.isin(np.arange(len(index)), dataset.rows)
    real = (index.crowd == 0) & np.repeat(there, np.diff(index.box_start))
    boxes = np.bincount(index.label[real], minlength=len(index.class_names)).tolist()
    before = np.concatenate([[0], np.cumsum(real)])[index.box_start]
    empty = int((np.diff(before)[dataset.rows] == 0).sum())
    if not judged and empty == len(dataset):
        raise UserError(f"{path}: none of the {empty} images has a box to train on")
    files = {dataset.image_info(i)["im_file"] for i in range(len(dataset))}
    names = {printable(name): count for name, count in zip(index.class_names, boxes)}
    if len(names) < len(boxes):
        raise UserError(f"{path}: categories: a name occurs twice; rename one of them")
    sizes = index.size[(index.size > 0).all(axis=1)]
    size = np.median(sizes, axis=0).astype(int).tolist() if len(sizes) else (0, 0)
    return ChosenSplit(path, folder, files, len(dataset), empty, names, tuple(size))
