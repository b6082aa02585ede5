"""Write boxes of images as annotation tools export them, one function per format.

Each takes the folder of a data set and rows of image path, size (height, width) and boxes: class,
x1, y1, x2, y2 in pixels.
"""

import csv
import json
from xml.sax.saxutils import quoteattr

from fcos_recipe.data.image_files import ENDINGS

CLASSES = ["dog", "黑 猫", "<b>&", "dog house"]


def beside(path, text, ending):
    """An annotation file for one image, beside it."""
    text = text if isinstance(text, str) else json.dumps(text)
    (path.parent / f"{path.name}{ending}").write_text(text)


def labelme(folder, rows):
    for path, size, boxes in rows:
        shapes = [{"label": name, "points": [[x1, y1], [x2, y2]], "shape_type": "rectangle"}
                  for name, x1, y1, x2, y2 in boxes]  # fmt: skip
        beside(path, {"imagePath": path.name, "shapes": shapes, "version": "5.0",
                      "imageHeight": size[0], "imageWidth": size[1]}, ".json")  # fmt: skip


def supervisely(folder, rows):
    for path, (height, width), boxes in rows:
        objects = [{"classTitle": name, "geometryType": "rectangle",
                    "points": {"exterior": [[x2, y1], [x1, y2]]}}
                   for name, x1, y1, x2, y2 in boxes]  # fmt: skip
        beside(path, {"size": {"height": height, "width": width}, "objects": objects}, ".json")


def cityscapes(folder, rows):
    for path, (height, width), boxes in rows:
        objects = [{"label": name, "polygon": [[x1, y2], [x2, y2], [x2, y1]]}
                   for name, x1, y1, x2, y2 in boxes]  # fmt: skip
        beside(path, {"imgHeight": height, "imgWidth": width, "objects": objects}, ".json")


def stem_of(path):
    return path.name.removesuffix(path.suffix) if path.suffix.lower() in ENDINGS else path.name


def dota(folder, rows):
    for path, _, boxes in rows:
        lines = [f"{(x1 + x2) / 2} {y1} {x2} {(y1 + y2) / 2} {(x1 + x2) / 2} {y2} {x1} "
                 f"{(y1 + y2) / 2} {name} 0" for name, x1, y1, x2, y2 in boxes]  # fmt: skip
        beside(path.with_name(stem_of(path)), "\r\n".join(lines), ".txt")


def kitti(folder, rows):
    for path, _, boxes in rows:
        lines = [f"{name} 0 0 -1.5 {x1} {y1} {x2} {y2} 1 1 1 1 1 1 1"
                 for name, x1, y1, x2, y2 in boxes]  # fmt: skip
        beside(path.with_name(stem_of(path)), "\n".join(lines), ".txt")


def wider_face(folder, rows):
    lines = []
    for path, _, boxes in rows:
        lines += [f"./{path.relative_to(folder).as_posix()}", str(len(boxes))]
        lines += [f"{x1} {y1} {x2 - x1} {y2 - y1} 0 0 0 0 0 0" for _, x1, y1, x2, y2 in boxes]
        lines += [] if boxes else ["0 0 0 0 0 0 0 0 0 0"]
    (folder / f"wider_face_{folder.name}_bbx_gt.txt").write_text("\n".join(lines))


def boxes_csv(folder, rows):
    with open(folder / "boxes.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filename", "class", "xmin", "ymin", "xmax", "ymax"])
        for path, _, boxes in rows:
            name = path.relative_to(folder).as_posix()
            table.writerows([name, *box] for box in boxes or [["", "", "", "", ""]])


def createml(folder, rows):
    def entry(name, x1, y1, x2, y2):
        box = {"x": (x1 + x2) / 2, "y": (y1 + y2) / 2, "width": x2 - x1, "height": y2 - y1}
        return {"label": name, "coordinates": box}

    data = [{"image": str(path.relative_to(folder)), "annotations": [entry(*b) for b in boxes]}
            for path, _, boxes in rows]  # fmt: skip
    (folder / "_annotations.createml.json").write_text(json.dumps(data))


def via(folder, rows):
    def region(name, x1, y1, x2, y2):
        box = {"name": "rect", "x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
        return {"shape_attributes": box, "region_attributes": {"class": name}}

    data = {
        str(path): {
            "filename": str(path.relative_to(folder)),
            "regions": [region(*b) for b in boxes],
        }
        for path, _, boxes in rows
    }
    (folder / "via.json").write_text(json.dumps(data))


def via3(folder, rows):
    data = {"attribute": {"1": {"aname": "kind", "options": dict(enumerate(CLASSES))}}, "view": {},
            "file": {}, "metadata": {}}  # fmt: skip
    for number, (path, _, boxes) in enumerate(rows):
        data["view"][number] = {"fid_list": [number + 1]}
        data["file"][number + 1] = {"fname": str(path.relative_to(folder)), "type": 2}
        for name, x1, y1, x2, y2 in boxes:
            shape = [2, x1, y1, x2 - x1, y2 - y1]
            data["metadata"][len(data["metadata"])] = {
                "vid": number, "xy": shape, "z": [], "av": {"1": str(CLASSES.index(name))},
            }  # fmt: skip
    (folder / "via.json").write_text(json.dumps(data))


def cvat(folder, rows):
    text = ""
    for path, (height, width), boxes in rows:
        name = quoteattr(str(path.relative_to(folder)))
        text += f"<image name={name} width='{width}' height='{height}'>"
        for name, x1, y1, x2, y2 in boxes:
            text += (f"<box label={quoteattr(name)} xtl='{x1!r}' ytl='{y1!r}' xbr='{x2!r}' "
                     f"ybr='{y2!r}'/>")  # fmt: skip
        text += "</image>"
    (folder / "annotations.xml").write_text(
        f"<annotations><version>1.1</version>{text}</annotations>"
    )


def label_studio(folder, rows):
    def result(size, name, x1, y1, x2, y2):
        (height, width) = size
        box = {"x": x1 / width * 100, "y": y1 / height * 100, "rotation": 0,
               "width": (x2 - x1) / width * 100, "height": (y2 - y1) / height * 100}  # fmt: skip
        return {"type": "rectanglelabels", "original_width": width, "original_height": height,
                "value": {**box, "rectanglelabels": [name]}}  # fmt: skip

    data = [{"data": {"image": f"/data/upload/1/{folder.name}/{path.relative_to(folder)}"},
             "annotations": [{"result": [result(size, *b) for b in boxes]}]}
            for path, size, boxes in rows]  # fmt: skip
    (folder / "export.json").write_text(json.dumps(data))


WRITERS = {"labelme": labelme, "csv": boxes_csv, "createml": createml, "via": via, "via3": via3,
           "cvat": cvat, "labelstudio": label_studio, "supervisely": supervisely, "dota": dota,
           "kitti": kitti, "widerface": wider_face, "cityscapes": cityscapes}  # fmt: skip
CALLED = {  # formats that can't have every class name
    "dota": lambda name: name.replace(" ", "_"), "kitti": lambda name: name.replace(" ", "_"),
    "widerface": lambda name: "face",
}  # fmt: skip
