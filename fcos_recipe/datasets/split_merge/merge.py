"""Merge annotation files, and note what had to change."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Raw

from fcos_recipe.datasets.account import Account
from fcos_recipe.datasets.split_merge.annotations import Annotations
from fcos_recipe.errors import UserError
from fcos_recipe.places import display


@dataclass
class Merged:
    """The merged file, the folder that its file names are relative to, and remarks."""

    content: dict[str, Any]
    folder: str | None
    notes: list[str]
    account: Account


def merge(files: list[Annotations], folders: Sequence[str | None]) -> Merged:
    """Merge annotation files.

    Categories with the same name become one. The first file's ids are kept; ids of later files
    change only if they are taken. Images with the same path become one, with the annotations of
    all files and duplicates removed. File names are kept if all images are in one folder;
    otherwise they become relative to the common parent folder.

    Args:
        files: at least one.
        folders: image folder of each file; None: none of its images was found.

    Raises:
        UserError: a file has a class name twice, no image of a file was found, or an image that was
            not found is listed by two files.
    """
    for file, folder in zip(files, folders):
        if folder is None and file.images:
            raise UserError(f"{file.path}: none of its {len(file.images)} images was found, "
                            "and without them equal names say nothing; give --images, one for all "
                            "files or one for each")  # fmt: skip
    known = {os.path.realpath(folder) for folder in folders if folder is not None}
    root = os.path.commonpath(known) if known else None
    notes: list[str] = []
    account = Account()
    other = dict(files[0].other)
    taken = _Ids([int(i) for file in files for i in file.category_id])
    image_ids = _Ids([int(i) for file in files for i in file.image_id])
    annotation_ids = _Ids([i for file in files for i in file.annotation_id if isinstance(i, int)])
    class_id: dict[str, int | str] = {}
    image_of: dict[str, int | str] = {}
    images, annotations, categories = [], [], []
    seen: set[bytes] = set()  # annotations of images that occur in several files
    every_path = [_paths(folder, file.file_name) for file, folder in zip(files, folders)]
    times = Counter(path for paths in every_path for path in paths)
    shared = Counter(path for paths in every_path for path in set(paths))
    lost = [path for path, number in shared.items() if number > 1 and not os.path.isfile(path)]
    if lost:
        raise UserError(f"{display(lost[0])}: {len(lost)} images that do not exist are in several "
                        "files, and without them equal names say nothing; give --images, one for "
                        "each file")  # fmt: skip
    for file, paths in zip(files, every_path):
        short = display(file.path)
        account.add(file.account())
        say: Counter[str] = Counter()
        new_class = []
        if twice := [n for n, count in Counter(file.class_names).items() if count > 1]:
            raise UserError(f"{file.path}: categories: the name {twice[0]!r} occurs twice")
        for raw, old, name in zip(file.categories, file.category_id.tolist(), file.class_names):
            if name not in class_id:
                class_id[name] = taken.give(old)
                categories.append(_with(raw, id=class_id[name]) if class_id[name] != old else raw)
            if class_id[name] != old:
                notes.append(f"{short}: class {name}: id {old} becomes {class_id[name]}")
            new_class.append(class_id[name])
        license_of = _merge_licenses(other, file) if file is not files[0] else {}
        new_image = []
        for raw, old, path in zip(file.images, file.image_id.tolist(), paths):
            if path in image_of:
                say["images exist already; their annotations are added to them"] += 1
                account.leave_out("images", "the same as an earlier one")
                new_image.append(image_of[path])
                continue
            image_of[path] = image_ids.give(old)
            new_image.append(image_of[path])
            change: dict[str, Any] = {}
            if image_of[path] != old:
                change["id"] = image_of[path]
                say["image ids were taken and are renumbered"] += 1
            if len(known) > 1:
                change["file_name"] = os.path.relpath(path, root)
            if license_of:
                number = msgspec.json.decode(raw, type=_License).license
                if number in license_of:
                    change["license"] = license_of[number]
            images.append(_with(raw, **change) if change else raw)
        for raw, old, row, label in zip(
            file.annotations, file.annotation_id, file.of_image.tolist(), file.of_class.tolist()
        ):
            if row < 0:
                say["annotations belong to unlisted images and are left out"] += 1
                continue
            change = {}
            if new_image[row] != file.image_id[row]:
                change["image_id"] = new_image[row]
            if new_class[label] != file.category_id[label]:
                change["category_id"] = new_class[label]
            if times[paths[row]] > 1:
                same = _content(raw, new_image[row], new_class[label])
                if same in seen:
                    say["annotations exist already and are left out"] += 1
                    account.leave_out("annotations", "the same as an earlier one")
                    continue
                seen.add(same)
            if old is not None and (new := annotation_ids.give(old)) != old:
                change["id"] = new
                say["annotation ids were taken and are renumbered"] += 1
            annotations.append(_with(raw, **change) if change else raw)
        notes += [f"{short}: {count} {text}" for text, count in say.items()]
        for key in file.other:
            if key not in other:
                other[key] = file.other[key]
            elif key != "licenses" and bytes(other[key]) != bytes(file.other[key]):
                notes.append(f"{short}: {key!r} differs from {files[0].path}, whose value is kept")
    if len(known) > 1:
        notes.append(f"file names are now relative to {display(root or '')}")
    content = {**other, "images": images, "annotations": annotations, "categories": categories}
    account.written.update(images=len(images), annotations=len(annotations))
    account.check("merge")
    return Merged(content, root, notes, account)


class _Ids:
    """Hands out each id once; new ids are larger than all ids in the files."""

    def __init__(self, every: list[int]):
        self.next = max(every, default=0) + 1
        self.given: set[str] = set()

    def give(self, wanted: int | str) -> int | str:
        if str(wanted) in self.given:
            wanted, self.next = self.next, self.next + 1
        self.given.add(str(wanted))
        return wanted


class _License(msgspec.Struct, gc=False):
    license: Any = None


def _merge_licenses(other: dict[str, Raw], file: Annotations) -> dict[Any, int]:
    """Add a file's licences to `other`; returns old id -> new id where they differ."""
    try:
        mine, theirs = (
            msgspec.json.decode(top.get("licenses") or Raw(b"[]"), type=list[dict] | None) or []
            for top in (other, file.other)
        )
        changed, have = {}, {_license_key(entry): entry["id"] for entry in mine}
        ids = _Ids([entry["id"] for entry in (*mine, *theirs)])
        ids.given = {str(entry["id"]) for entry in mine}
        for entry in theirs:
            old, key = entry["id"], _license_key(entry)
            if key not in have:
                have[key] = ids.give(old)
                mine.append({**entry, "id": have[key]})
            if have[key] != old:
                changed[old] = have[key]
    except (msgspec.ValidationError, KeyError, TypeError):
        raise UserError(f"{file.path}: licenses: must be objects with a numeric id") from None
    if mine:
        other["licenses"] = Raw(msgspec.json.encode(mine))
    return changed


def _license_key(entry: dict[str, Any]) -> bytes:
    return msgspec.json.encode({k: v for k, v in entry.items() if k != "id"}, order="sorted")


def _content(raw: Raw, image: int, category: int) -> bytes:
    """An annotation without its own id, to detect duplicates."""
    entry = msgspec.json.decode(raw)
    entry.pop("id", None)
    entry |= {"image_id": image, "category_id": category}
    return msgspec.json.encode(entry, order="sorted")


def _paths(folder: str | None, names: list[str]) -> list[str]:
    """Absolute image paths, which identify the same image in several files."""
    root = "" if folder is None else os.path.realpath(folder)
    return [os.path.normpath(os.path.join(root, name)) for name in names]


def _with(raw: Raw, **change: Any) -> Raw:
    return Raw(msgspec.json.encode({**msgspec.json.decode(raw), **change}))
