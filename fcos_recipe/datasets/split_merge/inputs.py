"""What `fcos dataset subset`, `split` and `merge` take: COCO files, or data sets of any format."""

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from fcos_recipe.datasets.account import Account
from fcos_recipe.datasets.convert.layouts import Options, convert, refuse_bad, several
from fcos_recipe.datasets.recognise import is_coco_file, recognise
from fcos_recipe.datasets.split_merge.annotations import Annotations
from fcos_recipe.errors import UserError


@dataclass
class Inputs:
    """COCO files that were read, or made of a data set of another format.

    Args:
        splits: of `files`; "": none.
        files: one per split.
        folders: image folder of each; None: it is still to be found.
        account: of the conversion; None: nothing was converted.
        notes: how the data were read and what was left out, one line each.
    """

    splits: list[str] = field(default_factory=list)
    files: list[Annotations] = field(default_factory=list)
    folders: list[Path | None] = field(default_factory=list)
    account: Account | None = None
    notes: list[str] = field(default_factory=list)

    def add(self, split: str, data: Annotations, folder: Path | None) -> None:
        self.splits.append(split)
        self.files.append(data)
        self.folders.append(folder)


def read(
    place: Path, options: Options, kind: str | None, split: str | None, skip_bad: bool
) -> Inputs:  # fmt: skip
    """Read a COCO file, or the splits of a data set.

    Args:
        place: COCO file, or a folder or file in any format that `recognise` knows.
        options: what the user says about the data.
        kind: the format, if several lie in the folder.
        split: only this one.
        skip_bad: leave out what can't be converted.

    Raises:
        UserError: nothing was recognised, there is no such split, or something can't be converted.
    """
    found = Inputs()
    if is_coco_file(place, kind):
        found.add("", Annotations.read(place), options.images)
        return found
    layout = recognise(place, kind)
    found.notes += layout.notes
    if layout.kind == "coco":
        for name, files in layout.splits.items():
            if split not in (None, name):
                continue
            if len(files) > 1:
                raise UserError(f"{several(layout.folder, name, files)}; name the file itself")
            found.add(name, Annotations.read(files[0]), options.images)
    else:
        made = convert(layout, options, split)
        refuse_bad(made, skip_bad, "leave them out with --skip-bad")
        found.notes.append(f"{place}: {layout.name}")
        found.notes += [f"left out: {line}" for line in made.bad]
        found.notes += [f"{count} {text}" for text, count in made.said.items()]
        found.account = made.account
        for name, part in made.splits.items():
            found.add(name, Annotations.read(place, msgspec.json.encode(part.content)), part.root)
    if not found.files:
        told = ", ".join(name or "data without a split" for name in layout.splits)
        raise UserError(f"{place}: no {split} in it; it has {told}")
    return found
