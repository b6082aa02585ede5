"""Detections as label files, to be corrected in an annotation tool: `fcos dataset convert` reads
them."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from fcos_recipe.files.atomic import own_folder, replace_file
from fcos_recipe.predict.results import Detections

FORMATS = ("coco", "yolo", "voc", "labelme")
_ENDINGS = {"yolo": ".txt", "voc": ".xml", "labelme": ".json"}


class Labels:
    """Writes label files of image files: one for each image, or for coco one for all.

    Args:
        kind: one of `FORMATS`. coco: instances.json, written at the end; its entries are kept in
            memory. yolo: a text file named as the image, and classes.txt. voc: XML with positions
            that start at 0. labelme: JSON.
        folder: for the files.
        names: of the classes.
        images: image file -> its name, from `inputs.find_inputs`. Its label file has this name and
            another ending: x.txt, or x.jpg.txt if there is also an x.png.
    """

    def __init__(self, kind: str, folder: Path, names: list[str], images: dict[Path, Path]):
        self.kind, self.folder, self.names = kind, folder, names
        ending = _ENDINGS.get(kind, "")
        short = {file: name.with_name(name.stem + ending) for file, name in images.items()}
        long = {file: name.with_name(name.name + ending) for file, name in images.items()}
        users = Counter([*short.values(), *long.values(), Path("classes.txt")])
        self._targets = {
            file: folder / (name if users[name] == 1 + (name == long[file]) else long[file])
            for file, name in short.items()
        }
        self._images: list[dict[str, Any]] = []
        self._boxes: list[dict[str, Any]] = []
        own_folder(folder, folder.parent)
        if kind == "yolo":
            replace_file(folder / "classes.txt", "\n".join(names) + "\n")

    def add(self, file: Path, found: Detections) -> None:
        """Write the labels of an image.

        Args:
            file: one of `images`.
            found: the detections to write.
        """
        if self.kind == "coco":
            self._add_coco(file, found)
            return
        target = self._targets[file]
        own_folder(target.parent, self.folder.parent)
        replace_file(target, getattr(self, f"_{self.kind}")(file, target, found))

    def close(self) -> None:
        if self.kind == "coco":
            names = [{"id": k, "name": name} for k, name in enumerate(self.names, 1)]
            content = {"categories": names, "images": self._images, "annotations": self._boxes}
            replace_file(self.folder / "instances.json", json.dumps(content, ensure_ascii=False))

    def _add_coco(self, file: Path, found: Detections) -> None:
        height, width = found.size
        image = len(self._images) + 1
        name = os.path.abspath(file)
        self._images.append({"id": image, "file_name": name, "height": height, "width": width})
        for box, label in zip(found.xywh.tolist(), found.labels.tolist()):
            self._boxes.append(
                {"id": len(self._boxes) + 1, "image_id": image, "category_id": label + 1,
                 "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            )  # fmt: skip

    def _yolo(self, file: Path, target: Path, found: Detections) -> str:
        low, high = found.normalized[:, :2], found.normalized[:, 2:]
        rows = zip(found.labels, (low + high) / 2, high - low)
        return "".join(
            f"{label} {x:.8f} {y:.8f} {width:.8f} {height:.8f}\n"
            for label, (x, y), (width, height) in rows
        )

    def _voc(self, file: Path, target: Path, found: Detections) -> str:
        top = ElementTree.Element("annotation")

        def put(parent: ElementTree.Element, **values: Any) -> None:
            for key, value in values.items():
                ElementTree.SubElement(parent, key).text = str(value)

        put(top, folder=file.parent.name, filename=file.name, path=os.path.abspath(file))
        put(ElementTree.SubElement(top, "size"), width=found.size[1], height=found.size[0], depth=3)
        for name, box in zip(found.class_names, found.boxes):
            item = ElementTree.SubElement(top, "object")
            put(item, name=name, pose="Unspecified", truncated=0, difficult=0)
            corners = zip(("xmin", "ymin", "xmax", "ymax"), (f"{value:.4f}" for value in box))
            put(ElementTree.SubElement(item, "bndbox"), **dict(corners))
        ElementTree.indent(top)
        return ElementTree.tostring(top, encoding="unicode") + "\n"

    def _labelme(self, file: Path, target: Path, found: Detections) -> str:
        shapes: list[dict[str, Any]] = [
            {"label": name, "points": [box[:2], box[2:]], "group_id": None, "description": "",
             "shape_type": "rectangle", "flags": {}}
            for name, box in zip(found.class_names, found.boxes.tolist())
        ]  # fmt: skip
        content: dict[str, Any] = {
            "version": "5.4.1", "flags": {}, "shapes": shapes, "imageData": None,
            "imagePath": os.path.relpath(file, target.parent),
            "imageHeight": found.size[0], "imageWidth": found.size[1],
        }  # fmt: skip
        return json.dumps(content, ensure_ascii=False, indent=1) + "\n"
