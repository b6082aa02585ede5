"""Find the image file that an annotation means, whatever the tool that wrote it called it.

Tools write the path that an image had on their own machine: with backslashes and a drive letter,
percent-encoded, as a URL of an upload, or relative to another folder. Training opens
`image_dir/file_name` and nothing else, so every command that meets another name finds the file
here, and `convert` and `fcos config new` write the name under which training finds it.
"""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from fcos_recipe.data import coco_json
from fcos_recipe.data.image_files import ENDINGS, files_below, is_image
from fcos_recipe.errors import UserError
from fcos_recipe.places import display

LOOK_AT = 20  # names that are looked up to recognise the image folder
SPLITS = {
    "train": "train", "training": "train", "trainval": "train", "val": "val", "valid": "val",
    "validation": "val", "dev": "val", "eval": "val", "test": "test", "testing": "test",
}  # fmt: skip
_LABELS = ("ann", "label", "json", "xml", "coco", "via", "csv", "export", "result")
UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")  # Label Studio puts one before the names of uploads
OTHER_FOLDER = "images are in another folder than the annotations say; found by their names"
OTHER_NAME = "images have a slightly different name (case, accents, upload prefix or ending)"


def split_of(*names: str) -> str:
    """The first split that a file or folder name states: train, val, test, or "" for none."""
    for name in names:
        words = re.findall(r"[a-z]+", name.lower())
        if found := [SPLITS[word] for word in words if word in SPLITS]:
            return found[0]
    return ""


def spellings(name: str) -> list[str]:
    """Relative POSIX paths that a name in an annotation can mean, the most literal first."""
    texts = [name]
    parts = urlsplit(name.replace("\\", "/")) if "?" in name or "://" in name else None
    if parts:
        texts += parse_qs(parts.query).get("d", []) + [parts.path]
    texts += [unquote(text) for text in texts if "%" in text]
    found = []
    for text in texts:
        text = re.sub(r"^(file://|[A-Za-z]:(?=[\\/]))", "", text).replace("\\", "/")
        found += [text, os.path.normpath(text).lstrip("/")]
    return [text for text in dict.fromkeys(found) if text.strip("./") and "\0" not in text]


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


@dataclass
class ImageFinder:
    """Finds image files by the names in annotations.

    Args:
        folders: where a name is looked up as it is, in this order.
        trees: folders that are searched at any depth if that fails.
        split: folders named after another split than this are skipped; "": none is.
    """

    folders: Sequence[Path]
    trees: Sequence[Path] = ()
    split: str = ""
    said: Counter[str] = field(default_factory=Counter)  #: remark -> number of images
    unclear: dict[str, list[Path]] = field(default_factory=dict)  #: name -> files it could mean
    placed: Sequence[Path] = ()  #: images that were found where the annotations say
    mirrors: dict[Path, bool] = field(default_factory=dict, repr=False)
    _listings: dict[str, set[str]] = field(default_factory=dict, repr=False)
    _index: dict[str, list[Path]] | None = field(default=None, repr=False)

    def find(self, *names: str, label: Path | None = None) -> Path | None:
        """The image file, or None.

        A name counts as found in another folder only if a single file fits best: the one with the
        most folder names in common. `said` counts such images, `unclear` has names with several.

        Args:
            names: possible names of the same image, the most likely first.
            label: the file with the annotations of this image alone. Names can be relative to its
                folder, and an image with its stem is the last thing that is tried.
        """
        if found := self.exact(*names, label=label):
            return found
        texts = list(dict.fromkeys(text for name in names for text in spellings(name)))
        shown = next(filter(None, names), str(label))
        for path in map(PurePosixPath, texts):
            for base in dict.fromkeys((path.name, UPLOAD.sub("", path.name))):
                if found := self._search(path, base, False, shown):
                    return found
                if shown in self.unclear:  # then it is not a file with another name
                    break
        stems = [PurePosixPath(label.as_posix()).with_suffix("")] if label else [
            path for path in map(PurePosixPath, texts) if path.suffix.lower() not in ENDINGS
        ]  # fmt: skip
        return next(filter(None, (self._search(s, s.name, True, shown) for s in stems)), None)

    def require(self, found: Sequence[Path | None], source: Path, name: str) -> None:
        """Check that at least one image was found; `name` is that of one of them.

        Raises:
            UserError: none was.
        """
        if found and not any(found):
            name = next(iter(self.unclear), name)
            raise UserError(f"{source}: none of its {len(found)} images was found: {name}: "
                            f"{self.why_not(name)}")  # fmt: skip

    def exact(self, *names: str, label: Path | None = None) -> Path | None:
        """The image file if it has one of these names as it is, in `folders` or beside `label`."""
        folders = [*([label.parent] if label else []), *self.folders]
        for text in dict.fromkeys(text for name in names for text in spellings(name)):
            for folder in folders:
                if self._is_file(path := os.path.join(folder, text)):
                    return Path(path if ".." in text else os.path.normpath(path))
        return None

    def _is_mirror(self, folder: Path) -> bool:
        """Whether a folder has files with the names of images that are elsewhere.

        Such a folder has thumbnails, masks or drawings of the images, not the missing ones.
        """
        if folder in self.mirrors:
            return self.mirrors[folder]
        self._is_file(os.path.join(folder, "x"))  # lists it
        there = self._listings[str(folder)]
        known = (p for p in self.placed if p.name in there)
        self.mirrors[folder] = any(p.parent != folder for p in known)
        return self.mirrors[folder]

    def why_not(self, name: str) -> str:
        """Why `find` did not find an image of this name."""
        if files := self.unclear.get(name):
            return f"could be {' or '.join(map(str, files[:2]))}; say which with --images DIR"
        return f"not found below {', '.join(map(display, self.trees))}; say where with --images DIR"

    def _search(self, path: PurePosixPath, base: str, ending: bool, name: str) -> Path | None:
        if self._index is None:
            self._index = defaultdict(list)
            for file in dict.fromkeys(f for tree in self.trees for f in files_below(tree)):
                if not self._foreign(file):
                    self._index[_plain(file.name)].append(file)
                    self._index["\0" + _plain(file.stem)].append(file)
        files = self._index.get("\0" * ending + _plain(base), [])
        if ending:
            files = [file for file in files if is_image(file)]
        if self.placed:
            files = [f for f in files if _shared(f, path) or not self._is_mirror(f.parent)]
        if not ending:
            files = [file for file in files if file.name == base] or files
        if not files:
            return None
        best = max(files, key=lambda file: _shared(file, path))
        ties = [file for file in files if _shared(file, path) == _shared(best, path)]
        if len({os.path.realpath(file) for file in ties}) > 1:
            self.unclear[name] = ties
            return None
        self.unclear.pop(name, None)
        if best.name != path.name:
            if not ending:
                self.said[OTHER_NAME] += 1
        else:
            self.said[OTHER_FOLDER] += 1
        return best

    def _foreign(self, file: Path) -> bool:
        """Whether a folder between a searched tree and this file is named after another split."""
        if not self.split:
            return False
        tree = next(tree for tree in self.trees if file.is_relative_to(tree))
        return split_of(*file.relative_to(tree).parent.parts) not in ("", self.split)

    def _is_file(self, path: str) -> bool:
        folder, base = os.path.split(path)
        if folder not in self._listings:
            try:
                self._listings[folder] = set(os.listdir(folder or "."))
            except (OSError, ValueError):
                self._listings[folder] = set()
        return base in self._listings[folder]


def _shared(file: Path, path: PurePosixPath) -> int:
    """How many folder names two paths have in common, counted from their ends."""
    pairs = zip(reversed(file.parent.parts), reversed(path.parent.parts))
    return next((n for n, (a, b) in enumerate(pairs) if _plain(a) != _plain(b)),
                min(len(file.parent.parts), len(path.parent.parts)))  # fmt: skip


@dataclass
class Resolved:
    """The images of one annotation file.

    Args:
        folder: of the images; None if none was found.
        names: for each given name the path below `folder`, or None: not found.
        said: remark -> number of images it applies to.
        unclear: given name -> files that it could mean.
    """

    folder: str | None
    names: list[str | None]
    said: Counter[str]
    unclear: dict[str, list[Path]]

    def why_not(self, place: str | Path) -> str:
        """Why no image was found in or near `place`, and what to do."""
        if self.unclear:
            name, files = next(iter(self.unclear.items()))
            shown = " or ".join(display(file) for file in files[:2])
            return f"{name} could be {shown}; name the folder of its images with --images DIR"
        return (f"none of its {len(self.names)} images was found in or near {display(place)}; "
                "name their folder with --images DIR")  # fmt: skip

    def renamed(self, given: Sequence[str]) -> dict[str, str]:
        """Given name -> the name that training needs, where they differ."""
        pairs = zip(given, self.names, strict=True)
        return {old: new for old, new in pairs if new is not None and new != old}


class _Top(msgspec.Struct):
    info: Any = None


def remembered(path: Path) -> Path | None:
    """The image folder that a converted or merged file states in `info.image_dir`, if it exists."""
    try:
        info = msgspec.json.decode(coco_json.mapped(path), type=_Top).info
    except (ValueError, RecursionError, UserError):
        return None
    place = info.get("image_dir") if isinstance(info, dict) else None
    folder = path.parent / place if isinstance(place, str) and "\0" not in place else None
    return folder if folder and folder.is_dir() else None


def remember(content: dict[str, Any], path: Path, root: Path | None) -> None:
    """State the image folder in `info.image_dir` of a file, unless it is found without that.

    Args:
        content: of the file; changed in place.
        path: where it is going to be written.
        root: the image folder; None: not known.
    """
    info = content.get("info")
    info = msgspec.json.decode(info) if isinstance(info, msgspec.Raw) else info
    info = dict(info) if isinstance(info, dict) else {}
    stated = info.pop("image_dir", None)
    images = [
        msgspec.json.decode(image) if isinstance(image, msgspec.Raw) else image
        for image in content["images"][:LOOK_AT]
    ]
    found = image_folder(path, [str(image.get("file_name")) for image in images])
    if root and (not found or os.path.realpath(found) != os.path.realpath(root)):
        info["image_dir"] = os.path.relpath(os.path.realpath(root), os.path.realpath(path.parent))
    if stated is not None or "image_dir" in info:
        content["info"] = info


def near(path: Path) -> Iterator[Path]:
    """Folders beside an annotation file and beside the target of a link, such as DVC's."""
    yield from dict.fromkeys((Path(os.path.abspath(path)).parent, Path(path).resolve().parent))


def trees_of(path: Path, images: Path | None = None, data: Path | None = None) -> list[Path]:
    """Folders that may be searched at any depth for the images of an annotation file.

    Args:
        path: the annotation file.
        images: the image folder, if it was named.
        data: the folder of the data set, if it was named.
    """
    if images is not None:
        return [Path(os.path.abspath(images))]
    found = [] if data is None else [Path(os.path.abspath(data))]
    for folder in near(path):
        name = folder.name.lower()
        found.append(folder.parent if name.startswith(_LABELS) else folder)
    return list(dict.fromkeys(found))


def resolve(
    path: str | Path, names: Sequence[str], images: Path | None = None, data: Path | None = None,
    split: str = "",
) -> Resolved:  # fmt: skip
    """Find the images of an annotation file.

    Args:
        path: the annotation file.
        names: of its images, as it has them.
        images: the image folder, or one that has it; None: search near the file.
        data: the folder of the data set, if it was named.
        split: the file's; "": none.
    """
    path = Path(path)
    images = images or remembered(path)
    folder = image_folder(path, names[:LOOK_AT], split, [images] if images else ())
    if folder is not None and all(map(_in(folder), names)):
        return Resolved(folder, list(names), Counter(), {})
    folders = [Path(f) for f in (folder, images) if f is not None]
    finder = ImageFinder(folders, trees_of(path, images, data), split_of(split))
    found = [finder.exact(name) for name in names]
    finder.placed = [Path(os.path.abspath(file)) for file in found if file is not None]
    found = [file or finder.find(name) for file, name in zip(found, names)]
    files = [os.path.abspath(file) for file in found if file is not None]
    if not files:
        return Resolved(None, [None] * len(names), finder.said, finder.unclear)
    name = next(name for name, file in zip(names, found) if file is not None)
    wanted = [files[0].removesuffix(f"/{text}") for text in spellings(name)]
    places = [os.path.abspath(folder)] if folder else []
    places += [place for place in wanted if place != files[0]]
    common = os.path.commonpath([os.path.dirname(file) for file in files])
    root = next((p for p in places if Path(common).is_relative_to(p)), common)
    relative = [None if f is None else os.path.relpath(os.path.abspath(f), root) for f in found]
    inside = _in(root)
    clean = [
        name if new is not None and inside(name) else new for name, new in zip(names, relative)
    ]
    return Resolved(display(root), clean, finder.said, finder.unclear)


def _in(folder: str):
    listed = ImageFinder([])

    def there(name: str) -> bool:
        return bool(name) and listed._is_file(os.path.join(folder, name))

    return there


def image_folder(
    path: str | Path, names: Sequence[str], split: str = "", roots: Sequence[Path] = ()
) -> str | None:
    """The folder near an annotation file that has most of these images.

    Returns:
        None: no folder has one, or several sub-folders have equally many.

    Args:
        path: of the annotation file.
        names: of some of its images.
        split: folders named after another split are skipped.
        roots: search these and their subfolders instead of the surroundings of the file.
    """
    own = split_of(split)
    around = [place for folder in near(Path(path)) for place in (folder, folder.parent)]
    below = [p for root in roots or around for p in (root, root / "images")]
    below = [p for p in dict.fromkeys(below) if p.is_dir()]
    inner = [p for root in below for p in sorted(root.iterdir())
             if p.is_dir() and (not own or split_of(p.name) in ("", own))]  # fmt: skip

    def number(folder: Path) -> int:
        return sum(os.path.isfile(folder / name) for name in names if "\0" not in name)

    for folders in (below, inner):
        there = [number(folder) for folder in folders]
        best = [folder for folder, n in zip(folders, there) if n == max(there)]
        several = len({os.path.realpath(folder) for folder in best}) > 1 and folders is inner
        # a folder beside the file or called images is preferred if it has half of what others have
        if any(there) and 2 * max(there) >= max(map(number, inner), default=0):
            return None if several else display(best[0])
    return None
