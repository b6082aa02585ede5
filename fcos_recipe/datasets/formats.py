"""The formats of annotations that the commands read; the name of each is the value of --from."""

from typing import NamedTuple

ORDER = ("train", "val", "test")  # the splits that a data set can have


class Format(NamedTuple):
    """A format: its name in messages, and what its files are, for the help."""

    name: str
    files: str


FORMATS = {
    "coco": Format("COCO", "JSON of COCO, Roboflow, CVAT, Label Studio, labelme2coco"),
    "voc": Format("Pascal VOC", "XML per image; ImageSets/Main/*.txt or a folder per split"),
    "yolo": Format("YOLO", "text file per image; data.yaml, classes.txt, obj.names, train.txt"),
    "labelme": Format("LabelMe", "JSON per image of LabelMe, X-AnyLabeling, AnyLabeling"),
    "cvat": Format("CVAT XML", "annotations.xml of `CVAT for images` or `for video`"),
    "labelstudio": Format("Label Studio JSON", "JSON or JSON-MIN of Label Studio"),
    "via": Format("VGG Image Annotator", "project of VIA 1, 2 or 3, their JSON or CSV"),
    "createml": Format("CreateML", "_annotations.createml.json"),
    "supervisely": Format("Supervisely", "JSON per image in ann/, images in img/; meta.json"),
    "dota": Format(
        "DOTA", "text per image: corners of rotated boxes, class; upright boxes are used"
    ),
    "kitti": Format("KITTI", "text per image in label_2/: class, corners; also NVIDIA TAO's"),
    "widerface": Format("WIDER FACE", "wider_face_train_bbx_gt.txt, wider_face_val_bbx_gt.txt"),
    "cityscapes": Format("Cityscapes", "*_gtFine_polygons.json per image"),
    "csv": Format(
        "CSV of boxes", "a box per row: file name, class, corners or x, y, w, h; Open Images"
    ),
}

TABLE = "\n".join(f"  {name:<12} {row.name}: {row.files}" for name, row in FORMATS.items())
