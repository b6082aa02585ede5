"""Write one small data set in the layouts of many tools.

Each function takes a folder, writes `TRAIN` and, if the layout has splits, `VAL` into it, and
returns the format's name for --from, and the options that the layout needs.
"""

import base64
import csv
import json
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np

SIZE = (48, 64)  # height, width
CLASSES = ["cat", "红 狗"]
# image name -> objects: class, x1, y1, x2, y2 in pixels
TRAIN = {
    "a b.JPG": [("红 狗", 4, 5, 24, 26), ("cat", 0, 0, 32, 16)],
    "图片1.jpg": [("cat", 10, 8, 30, 40)],
    "c%20d.png": [],
    "e.jpeg": [("红 狗", 40, 20, 64, 48)],
}
VAL = {"v.jpg": [("cat", 8, 8, 24, 24)], "w.jpg": [("红 狗", 16, 12, 48, 36)]}
ALL = {**TRAIN, **VAL}


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(abs(hash(path.name)) % 1000 + seed)
    data = cv2.imencode(path.suffix.lower(), pixels.integers(0, 255, (*SIZE, 3), np.uint8))[1]
    path.write_bytes(data.tobytes())


def pictures(folder, names):
    for name in names:
        picture(folder / name)


def save(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data, ensure_ascii=False))


def coco(names, of=lambda name: name, first=1):
    """COCO's content for some images; `of` gives the file name that the tool writes."""
    images = [{"id": i, "file_name": of(name), "height": SIZE[0], "width": SIZE[1]}
              for i, name in enumerate(names)]  # fmt: skip
    boxes = [(i, *box) for i, name in enumerate(names) for box in names[name]]
    return {
        "images": images,
        "annotations": [
            {"id": n, "image_id": i, "category_id": CLASSES.index(label) + first, "iscrowd": 0,
             "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            for n, (i, label, x1, y1, x2, y2) in enumerate(boxes)
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(CLASSES, start=first)],
    }  # fmt: skip


def coco_per_split(root):
    for split, names in (("train2017", TRAIN), ("val2017", VAL)):
        pictures(root / split, names)
        save(root / "annotations" / f"instances_{split}.json", coco(names))
    save(root / "annotations" / "captions_train2017.json", {"images": [], "annotations": []})
    return "coco", []


def coco_roboflow(root):
    for split, names in (("train", TRAIN), ("valid", VAL)):
        pictures(root / split, names)
        save(root / split / "_annotations.coco.json", coco(names))
    return "coco", []


def coco_cvat(root):
    pictures(root / "images" / "default", ALL)
    save(root / "annotations" / "instances_default.json", coco(ALL))
    return "coco", []


def coco_label_studio(root):
    """Names of another machine, and classes from 0."""
    pictures(root / "images", ALL)
    path = "..\\..\\label-studio\\media\\upload\\4\\0123abcd-"
    save(root / "result.json", coco(ALL, lambda name: path + name, first=0))
    return "coco", []


def coco_windows(root):
    """Two folders with the same names, absolute paths, and a byte order mark."""
    for folder, names in (("s1", TRAIN), ("s2", VAL)):
        for name, picture_of in zip(names, TRAIN):
            picture(root / "pictures" / folder / picture_of, seed=len(name))
    first = coco(TRAIN, lambda name: f"C:\\data\\pictures\\s1\\{name}")
    save(root / "annotations" / "train.json", "\ufeff" + json.dumps(first))
    second = coco(VAL, lambda name: f"D:/pictures/s2/{list(TRAIN)[list(VAL).index(name)]}")
    save(root / "annotations" / "val.json", second)
    return "coco", []


def coco_linked(root):
    """DVC: the folder has links into a cache; the images lie beside the link."""
    pictures(root / "data" / "img", TRAIN)
    save(root.parent / f"{root.name}_cache" / "3f" / "a1", coco(TRAIN))
    (root / "data" / "train.json").symlink_to(root.parent / f"{root.name}_cache" / "3f" / "a1")
    return "coco", []


def voc_xml(path, name, boxes, stated):
    objects = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for label, x1, y1, x2, y2 in boxes
    )
    size = f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height></size>"
    save(path / f"{Path(name).stem}.xml",
         f"<annotation><filename>{stated}</filename>{size}{objects}</annotation>")  # fmt: skip


def voc(root):
    pictures(root / "JPEGImages", ALL)
    for name, boxes in ALL.items():
        voc_xml(root / "Annotations", name, boxes, name)
    for split, names in (("train", TRAIN), ("val", VAL), ("trainval", ALL)):
        text = "\n".join(Path(name).stem for name in names)
        save(root / "ImageSets" / "Main" / f"{split}.txt", text)
        save(root / "ImageSets" / "Main" / f"cat_{split}.txt", text.replace("\n", " -1\n"))
    return "voc", []


def voc_roboflow(root):
    for split, names in (("train", TRAIN), ("valid", VAL)):
        pictures(root / split, names)
        for name, boxes in names.items():
            voc_xml(root / split, name, boxes, name)
    return "voc", []


def voc_paddle(root):
    """PaddleDetection's lists of pairs; sub-folders in which names repeat."""
    lists = {"train": [], "val": []}
    for split, names in (("train", TRAIN), ("val", VAL)):
        for (name, boxes), base in zip(names.items(), TRAIN):
            folder = f"{split}_side"
            picture(root / "images" / folder / base, seed=len(name))
            voc_xml(root / "Annotations" / folder, base, boxes, base)
            lists[split].append(f"./images/{folder}/{base} "
                                f"./Annotations/{folder}/{Path(base).stem}.xml")  # fmt: skip
    for split, lines in lists.items():
        save(root / f"{split}.txt", "\n".join(lines))
    save(root / "label_list.txt", "\n".join(CLASSES))
    return "voc", []


def yolo_labels(folder, names):
    for name, boxes in names.items():
        height, width = SIZE
        lines = [
            f"{CLASSES.index(label)} {(x1 + x2) / 2 / width:.6f} {(y1 + y2) / 2 / height:.6f} "
            f"{(x2 - x1) / width:.6f} {(y2 - y1) / height:.6f}"
            for label, x1, y1, x2, y2 in boxes
        ]
        save(folder / f"{Path(name).stem}.txt", "\n".join(lines))


def yolo_ultralytics(root):
    """A dead `path:`, names as a mapping."""
    for split, names in (("train", TRAIN), ("val", VAL)):
        pictures(root / "images" / split, names)
        yolo_labels(root / "labels" / split, names)
    names = "".join(f"  {k}: {name}\n" for k, name in enumerate(CLASSES))
    save(root / "dogs.yaml", "path: /content/datasets/dogs\ntrain: images/train\nval: images/val\n"
         f"test:\nnames:\n{names}")  # fmt: skip
    return "yolo", []


def yolo_roboflow(root):
    for split, names in (("train", TRAIN), ("valid", VAL)):
        pictures(root / split / "images", names)
        yolo_labels(root / split / "labels", names)
    save(root / "data.yaml", "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
         f"nc: 2\nnames: {json.dumps(CLASSES)}\nroboflow: {{license: MIT}}\n")  # fmt: skip
    save(root / "README.roboflow.txt", "0 words\n")
    return "yolo", []


def yolo_cvat(root):
    pictures(root / "obj_train_data", ALL)
    yolo_labels(root / "obj_train_data", ALL)
    save(root / "obj.names", "\n".join(CLASSES))
    save(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")
    save(root / "train.txt", "\n".join(f"data/obj_train_data/{name}" for name in ALL))
    return "yolo", []


def yolo_label_studio(root):
    pictures(root / "images", ALL)
    yolo_labels(root / "labels", ALL)
    save(root / "classes.txt", "\n".join(CLASSES))
    save(root / "notes.json", {"categories": [{"id": 0, "name": "cat"}], "info": {}})
    return "yolo", []


def yolo_without_names(root):
    """As COCO128 comes: its data.yaml is elsewhere."""
    for split, names in (("train2017", TRAIN), ("val2017", VAL)):
        pictures(root / "images" / split, names)
        yolo_labels(root / "labels" / split, names)
    return "yolo", ["--classes", ",".join(CLASSES)]


def labelme_json(path, name, boxes, stated, content=None):
    def shape(number, label, x1, y1, x2, y2):
        points = [[x2, y1], [x1, y2]] if number % 2 else [[x1, y1], [x2, y2]]
        return {"label": label, "points": points, "shape_type": "rectangle", "group_id": None}

    shapes = [shape(number, *box) for number, box in enumerate(boxes)]
    save(path / f"{Path(name).stem}.json", {
        "version": "5.0.1", "flags": {}, "shapes": shapes, "imagePath": stated,
        "imageData": content, "imageHeight": SIZE[0], "imageWidth": SIZE[1],
    })  # fmt: skip


def labelme(root):
    pictures(root, ALL)
    for name, boxes in ALL.items():
        labelme_json(root, name, boxes, name)
    return "labelme", []


def labelme_apart(root):
    """x2coco's layout: labels and images in folders of their own, paths of Windows."""
    for split, names in (("train", TRAIN), ("val", VAL)):
        pictures(root / split / "images", names)
        for name, boxes in names.items():
            labelme_json(root / split / "json", name, boxes, f"..\\images\\{name}")
    return "labelme", []


def labelme_embedded(root):
    for name, boxes in ALL.items():
        picture(root.parent / "elsewhere" / name)
        data = (root.parent / "elsewhere" / name).read_bytes()
        content = base64.b64encode(data).decode()
        labelme_json(root, name, boxes, f"C:\\Users\\x\\{name}", content)
    return "labelme", []


def cvat(root):
    images = ""
    for number, (name, boxes) in enumerate(ALL.items()):
        subset = "Train" if name in TRAIN else "Validation"
        picture(root / "images" / subset / name)
        images += f'<image id="{number}" name="{name}" subset="{subset}" width="64" height="48">'
        for label, x1, y1, x2, y2 in boxes:
            images += f'<box label="{label}" xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}"/>'
        images += "</image>"
    labels = "".join(f"<label><name>{name}</name></label>" for name in CLASSES)
    meta = f"<meta><project><labels>{labels}</labels></project></meta>"
    save(root / "annotations.xml", f"<annotations>{meta}{images}</annotations>")
    return "cvat", []


def _regions(boxes):
    height, width = SIZE
    return [
        {
            "type": "rectanglelabels", "original_width": width, "original_height": height,
            "value": {
                "x": 100 * x1 / width, "y": 100 * y1 / height, "rotation": 0,
                "width": 100 * (x2 - x1) / width, "height": 100 * (y2 - y1) / height,
                "rectanglelabels": [label],
            },
        }
        for label, x1, y1, x2, y2 in boxes
    ]  # fmt: skip


def label_studio(root):
    """Uploads get a prefix and are percent-encoded; one task is not annotated."""
    pictures(root / "pictures", ALL)
    tasks = [
        {"id": n, "data": {"image": f"/data/upload/1/0123abcd-{quote(name)}"},
         "annotations": [{"was_cancelled": False, "result": _regions(boxes)}]}
        for n, (name, boxes) in enumerate(ALL.items())
    ]  # fmt: skip
    tasks.append({"id": 99, "data": {"image": "/data/upload/1/new.jpg"}, "annotations": []})
    save(root / "project-1-at-2024.json", tasks)
    return "labelstudio", []


def label_studio_min(root):
    """Its smaller JSON, with files of the server's disk."""
    pictures(root / "pictures" / "deep", ALL)
    tasks = [
        {"id": n, "image": f"/data/local-files/?d=deep/{quote(name)}",
         "label": [{**r["value"], "original_width": 64, "original_height": 48}
                   for r in _regions(boxes)]}
        for n, (name, boxes) in enumerate(ALL.items())
    ]  # fmt: skip
    save(root / "project-min.json", tasks)
    return "labelstudio", []


def _via(boxes):
    return [
        {"shape_attributes": {"name": "rect", "x": x1, "y": y1, "width": x2 - x1,
                              "height": y2 - y1}, "region_attributes": {"type": label}}
        for label, x1, y1, x2, y2 in boxes
    ]  # fmt: skip


def via(root):
    """A folder per split with its JSON, as the balloon data set has them."""
    for split, names in (("train", TRAIN), ("val", VAL)):
        pictures(root / split, names)
        save(root / split / "via_region_data.json", {
            f"{name}123": {"filename": name, "size": 123, "regions": _via(boxes)}
            for name, boxes in names.items()
        })  # fmt: skip
    return "via", []


def via_csv(root):
    pictures(root, ALL)
    with open(root / "via_export_csv.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filename", "file_size", "file_attributes", "region_count", "region_id",
                       "region_shape_attributes", "region_attributes"])  # fmt: skip
        for name, boxes in ALL.items():
            for number, region in enumerate(_via(boxes) or [{}]):
                rows.writerow([name, 1, "{}", len(boxes), number, *(
                    json.dumps(region.get(key, {}))
                    for key in ("shape_attributes", "region_attributes")
                )])  # fmt: skip
    return "via", []


def create_ml(root):
    for split, names in (("train", TRAIN), ("valid", VAL)):
        pictures(root / split, names)
        save(root / split / "_annotations.createml.json", [
            {"image": name, "annotations": [
                {"label": label, "coordinates": {"x": (x1 + x2) / 2, "y": (y1 + y2) / 2,
                                                 "width": x2 - x1, "height": y2 - y1}}
                for label, x1, y1, x2, y2 in boxes
            ]}
            for name, boxes in names.items()
        ])  # fmt: skip
    return "createml", []


def csv_corners(root):
    """Roboflow's and TensorFlow's; images without a box are in no row."""
    for split, names in (("train", TRAIN), ("valid", VAL)):
        pictures(root / split, {name: 0 for name in names if names[name]})
        rows = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
        rows += [f"{name},64,48,{','.join(map(str, box))}"
                 for name, boxes in names.items() for box in boxes]  # fmt: skip
        save(root / split / "_annotations.csv", "\n".join(rows))
    return "csv", []


def csv_retinanet(root):
    """No header, corners before the class, an empty row for an image without a box."""
    pictures(root / "img", ALL)
    rows = [f"/home/x/img/{name},{','.join(map(str, box[1:]))},{box[0]}"
            for name, boxes in ALL.items() for box in boxes]  # fmt: skip
    rows += [f"/home/x/img/{name},,,,," for name, boxes in ALL.items() if not boxes]
    save(root / "annotations.csv", "\n".join(rows))
    return "csv", []


def open_images(root):
    """Fractions, identifiers of classes, image names without endings; a group of objects."""
    (height, width), ids = SIZE, {name: f"/m/0{k}x" for k, name in enumerate(CLASSES)}
    for split, names in (("train", TRAIN), ("validation", VAL)):
        pictures(root / split, {name: 0 for name in names if names[name]})
        rows = ["ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf"]
        rows += [f"{Path(name).stem},xclick,{ids[label]},1,{x1 / width:.6f},{x2 / width:.6f},"
                 f"{y1 / height:.6f},{y2 / height:.6f},0,0"
                 for name, boxes in names.items() for label, x1, y1, x2, y2 in boxes]  # fmt: skip
        save(root / f"{split}-annotations-bbox.csv", "\n".join(rows))
    text = "\n".join(f"{number},{name}" for name, number in ids.items())
    save(root / "class-descriptions-boxable.csv", text)
    return "csv", []


def via3(root):
    """A project of VIA 3: its classes are options of an attribute."""
    pictures(root, ALL)
    data = {"project": {"pid": "__VIA__", "pname": "dogs"}, "config": {}, "file": {}, "view": {},
            "metadata": {}}  # fmt: skip
    options = {str(k): name for k, name in enumerate(CLASSES)}
    data["attribute"] = {"1": {"aname": "class", "anchor_id": "FILE1_Z0_XY1", "type": 4,
                               "options": options}}  # fmt: skip
    for number, (name, boxes) in enumerate(ALL.items(), start=1):
        data["file"][str(number)] = {"fid": str(number), "fname": name, "type": 2, "src": name}
        data["view"][str(number)] = {"fid_list": [str(number)]}
        for label, x1, y1, x2, y2 in boxes:
            data["metadata"][f"{number}_{x1}"] = {
                "vid": str(number), "flg": 0, "z": [], "xy": [2, x1, y1, x2 - x1, y2 - y1],
                "av": {"1": str(CLASSES.index(label))},
            }  # fmt: skip
    save(root / "via_project_1Jan2024.json", data)
    return "via", []


def supervisely(root):
    for split, names in (("train", TRAIN), ("val", VAL)):
        pictures(root / split / "img", names)
        for name, boxes in names.items():
            objects = [{"classTitle": label, "geometryType": "rectangle", "tags": [],
                        "points": {"exterior": [[x1, y1], [x2, y2]], "interior": []}}
                       for label, x1, y1, x2, y2 in boxes]  # fmt: skip
            size = {"height": SIZE[0], "width": SIZE[1]}
            save(root / split / "ann" / f"{name}.json",
                 {"description": "", "tags": [], "size": size, "objects": objects})  # fmt: skip
    classes = [{"title": name, "shape": "rectangle", "color": "#F00"} for name in CLASSES]
    save(root / "meta.json", {"classes": classes, "tags": [], "projectType": "images"})
    return "supervisely", []


def dota(root):
    """A rotated box whose upright box is the wanted one, and files without an object."""
    for split, names in (("train", TRAIN), ("val", VAL)):
        pictures(root / split / "images", names)
        for name, boxes in names.items():
            lines = ["imagesource:GoogleEarth", "gsd:0.15"]
            for label, x1, y1, x2, y2 in boxes:
                mx, my = (x1 + x2) / 2, (y1 + y2) / 2
                points = (mx, y1, x2, my, mx, y2, x1, my)
                lines.append(f"{' '.join(map(str, points))} {label.replace(' ', '_')} 0")
            save(root / split / "labelTxt" / f"{Path(name).stem}.txt", "\r\n".join(lines))
    return "dota", []


def kitti(root):
    """The images of the test set have the names of others."""
    pictures(root / "training" / "image_2", ALL)
    pictures(root / "testing" / "image_2", TRAIN)
    for name, boxes in ALL.items():
        lines = [
            f"{without_spaces(label)} 0.00 0 -1.57 {x1}.00 {y1}.00 {x2}.00 {y2}.00 "
            "1.65 1.67 3.64 -0.65 1.71 46.70 -1.59"
            for label, x1, y1, x2, y2 in boxes
        ]
        if name == "a b.JPG":
            lines.append("DontCare -1 -1 -10 1.0 1.0 9.0 9.0 -1 -1 -1 -1000 -1000 -1000 -10")
        save(root / "training" / "label_2" / f"{Path(name).stem}.txt", "\n".join(lines))
    return "kitti", []


def wider_face(root):
    for split, names in (("train", TRAIN), ("val", VAL)):
        lines = []
        for name, boxes in names.items():
            picture(root / f"WIDER_{split}" / "images" / "0--Parade" / name)
            lines += [f"0--Parade/{name}", str(len(boxes))]
            lines += [f"{x1} {y1} {x2 - x1} {y2 - y1} 0 0 0 0 0 0 " for _, x1, y1, x2, y2 in boxes]
            lines += [] if boxes else ["0 0 0 0 0 0 0 0 0 0 "]
        text = "\n".join(lines) + "\n"
        save(root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt", text)
    return "widerface", []


def cityscapes(root):
    for split, names in (("train", TRAIN), ("val", VAL)):
        for name, boxes in names.items():
            stem = f"aachen_{Path(name).stem}_000019"
            picture(root / "leftImg8bit" / split / "aachen" / f"{stem}_leftImg8bit.png")
            objects = [{"label": label, "polygon": [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]}
                       for label, x1, y1, x2, y2 in boxes]  # fmt: skip
            save(root / "gtFine" / split / "aachen" / f"{stem}_gtFine_polygons.json",
                 {"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": objects})  # fmt: skip
    return "cityscapes", []


def without_spaces(label):
    return label.replace(" ", "_")


CALLED = {dota: without_spaces, kitti: without_spaces, wider_face: lambda _: "face"}
WITHOUT_NEGATIVES = (csv_corners, open_images)  # layouts that can't state an image without a box
LAYOUTS = [
    coco_per_split, coco_roboflow, coco_cvat, coco_label_studio, coco_windows, coco_linked, voc,
    voc_roboflow, voc_paddle, yolo_ultralytics, yolo_roboflow, yolo_cvat, yolo_label_studio,
    yolo_without_names, labelme, labelme_apart, labelme_embedded, cvat, label_studio,
    label_studio_min, via, via_csv, via3, create_ml, csv_corners, csv_retinanet, open_images,
    supervisely, dota, kitti, wider_face, cityscapes,
]  # fmt: skip
SPLIT = {
    coco_per_split, coco_roboflow, coco_windows, voc, voc_roboflow, voc_paddle, yolo_ultralytics,
    yolo_roboflow, yolo_without_names, labelme_apart, cvat, via, create_ml, csv_corners,
    open_images, supervisely, dota, wider_face, cityscapes,
}  # fmt: skip


def wanted(layout, split):
    """Sorted lists of boxes, one per image, that a split must have."""
    names = {"train": TRAIN if layout in SPLIT else ALL, "val": VAL}[split]
    names = TRAIN if layout is coco_linked else names
    called = CALLED.get(layout, str)
    return sorted(
        sorted((called(label), *box) for label, *box in boxes)
        for boxes in names.values()
        if boxes or layout not in WITHOUT_NEGATIVES
    )
