"""Download COCO 2017, unpack and count it, and recognise a complete copy at the next call."""

import contextlib
import mmap
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fcos_recipe.console import Progress, amount, say
from fcos_recipe.errors import UserError
from fcos_recipe.files import archives, download
from fcos_recipe.files.atomic import own_folder, write_json
from fcos_recipe.files.download import Damaged, NoSpace
from fcos_recipe.files.reading import given_path, open_regular, parse_json, read_bytes

OURS = ".download"  # folder beside the data for archives in transit and records


@dataclass(frozen=True)
class Archive:
    """One zip file. Sizes are used only to check free space; the MD5 decides what is accepted."""

    path: str  #: below the server's address
    md5: str
    folder: str  #: the one folder in it
    size: int  #: bytes
    unpacked: int  #: bytes on a disk with blocks of 4 kB, rounded up

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class PublishedSplit:
    """Images of one archive, counted in `annotations/instances_FOLDER.json`."""

    archive: Archive
    images: int
    boxes: int

    @property
    def anno(self) -> str:
        return f"annotations/instances_{self.archive.folder}.json"


@dataclass(frozen=True)
class Release:
    """A data set as its publisher serves it."""

    title: str
    url: str
    annotations: Archive
    splits: dict[str, PublishedSplit]


COCO_2017 = Release(
    "COCO 2017",
    "http://images.cocodataset.org",  # its https fails on the certificate; MD5 decides
    Archive(
        "annotations/annotations_trainval2017.zip", "f4bbac642086de4f52a3fdda2de5fa2c",
        "annotations", 252_907_541, 850_000_000,
    ),
    {
        "val": PublishedSplit(
            Archive(
                "zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80",
                "val2017", 815_585_330, 840_000_000,
            ),
            5_000, 36_781,
        ),
        "train": PublishedSplit(
            Archive(
                "zips/train2017.zip", "cced6f7f71b7629ddf16f17bbcfab6b2",
                "train2017", 19_336_861_798, 19_600_000_000,
            ),
            118_287, 860_001,
        ),
    },
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """How to get a data set; the fields are the command's options."""

    splits: Sequence[str] = ("train", "val")
    annotations_only: bool = False
    mirror: str | None = None
    from_zips: Path | None = None
    keep_zips: bool = False
    connections: int = 4
    verify: bool = False


_DEFAULTS = Options()


def get(folder: Path, release: Release = COCO_2017, options: Options = _DEFAULTS) -> list[str]:
    """Complete the data set in `folder`; parts that are already there are kept.

    If it is complete and `verify` is not set, only file sizes and times are read: nothing is
    written and no server is contacted. Files from other sources are never changed or removed.

    Returns:
        the lines of a summary.

    Raises:
        UserError: `folder` can't be written, or `from_zips` lacks an archive.
        Damaged: checksums or counts don't match.
        NoSpace, DownloadError: see `download.fetch`.
    """
    job = _Job(folder, release, options)
    job.link()
    if missing := job.missing():
        download.prepare(job.folder)
        own_folder(job.ours)
        with download.locked(job.ours / "lock"):
            missing = job.missing(quiet=True)  # another process may just have brought it
            job.check_room(missing)
            sources = {archive.name: job.zip_given(archive) for archive in missing}
            for archive in missing:
                job.complete(archive, sources[archive.name])
    return job.summary(job.count())


def planned_steps(
    folder: Path, release: Release = COCO_2017, options: Options = _DEFAULTS
) -> list[str]:
    """What `get` would do, as lines of text; contacts no server and writes nothing."""
    job = _Job(folder, release, options, dry=True)
    missing = job.missing()
    lines = []
    for archive in job.wanted:
        if archive not in missing:
            lines.append(f"{archive.folder}/: complete")
            continue
        source = job.zip_given(archive) or job.url(archive)
        lines.append(f"{archive.folder}/: {amount(archive.size)} from {source}")
    lines.append(
        f"{job.folder}: needs {amount(job.room(missing))} at most, "
        f"{amount(download.free_bytes(job.folder))} free"
    )
    return lines


class _Job:
    def __init__(self, folder: Path, release: Release, options: Options, dry: bool = False):
        self.dry = dry  # write nothing
        self.folder = Path(os.path.abspath(given_path(folder)))
        self.ours = self.folder / OURS
        self.release, self.options = release, options
        self.splits = [split for name, split in release.splits.items() if name in options.splits]
        # smallest first: problems show early, and deleting a finished zip frees space
        self.wanted = [release.annotations]
        if not options.annotations_only:
            self.wanted += [split.archive for split in self.splits]
        self.was_there: set[str] = set()
        self.unchecked: set[str] = set()  # folders whose image names are still to be compared

    def place(self, archive: Archive) -> Path:
        """The folder of an archive's files; also that in images/, as Ultralytics has it."""
        usual, other = self.folder / archive.folder, self.folder / "images" / archive.folder
        return other if other.is_dir() and not os.path.lexists(usual) else usual

    def link(self) -> None:
        """Make links to folders in images/ where the configs look for them, if that can be done."""
        for archive in self.wanted:
            with contextlib.suppress(OSError):
                if (there := self.place(archive)).parent != self.folder:
                    (self.folder / archive.folder).symlink_to(there.relative_to(self.folder))

    def missing(self, quiet: bool = False) -> list[Archive]:
        """Archives whose files aren't all there."""
        return [a for a in self.wanted if not self._known(a, quiet) and not self._adopt(a, quiet)]

    def _known(self, archive: Archive, quiet: bool) -> bool:
        """Whether all files of an archive are there, according to the record of them."""
        record = self._record(archive)
        if record is None:
            return False
        found = _listing(self.place(archive), archive.folder)
        wrong, lost, touched = [], [], False
        files = record["files"]
        verify = self.options.verify and not quiet
        label = f"{archive.folder}: checking" if verify else ""
        with Progress(label, sum(size for size, *_ in files.values())) as progress:
            for name, (size, changed, crc) in files.items():
                if name not in found:
                    lost.append(name)
                elif found[name][0] != size:
                    wrong.append(name)
                elif verify or found[name][1] != changed:
                    touched = touched or found[name][1] != changed
                    if crc is not None and archives.checksum(self.folder / name) != crc:
                        wrong.append(name)
                    progress.add(size)
        if archive is self.release.annotations:  # may have been adopted for fewer splits
            lost += [s.anno for s in self.splits if s.anno not in files]
        if wrong:
            raise Damaged(
                f"{self.folder}: {_some(wrong)}: they differ from {archive.name}; remove them "
                "and try again"
            )
        if lost and not quiet:
            say(f"{self.folder}: {_some(lost)}: missing")
        if touched and not lost:  # same bytes, new times: a copy
            self._write_record(archive, {n: crc for n, (_, _, crc) in files.items()}, record)
        if verify and any(crc is None for *_, crc in files.values()):
            say(f"{archive.folder}: not unpacked here, so only sizes and counts can be checked")
        if lost:
            return False
        if not record.get("keep", True):  # killed before it could be removed
            (self.ours / archive.name).unlink(missing_ok=True)
        self.was_there.add(archive.folder)
        return True

    def _adopt(self, archive: Archive, quiet: bool) -> bool:
        """Whether a folder filled by other means is complete; if so, record it."""
        if self._record(archive) is not None or (self.ours / archive.name).is_file():
            return False  # or a run of ours was killed before it had recorded what it unpacked
        listing = _listing(self.place(archive), archive.folder)
        if archive is self.release.annotations:
            names = [s.anno for s in self.splits if s.anno in listing]
            good = len(names) == len(self.splits) and all(
                _count(self.folder / s.anno)[:2] == (s.images, s.boxes) for s in self.splits
            )
        else:
            images = next(s.images for s in self.splits if s.archive is archive)
            names = [name for name, (size, _) in listing.items() if size and _is_image(name)]
            good = len(names) == images
            if names and not good and not quiet:
                say(
                    f"{self.folder / archive.folder}: holds {len(names)} of {images} images; "
                    "only the missing ones will be added"
                )
        if good:
            self._write_record(archive, dict.fromkeys(names), {"md5": None})
            self.was_there.add(archive.folder)
            self.unchecked.add(archive.folder)
        return good

    def _record_path(self, archive: Archive) -> Path:
        return self.ours / f"{archive.folder}.json"

    def _record(self, archive: Archive) -> dict | None:
        try:
            record = parse_json(read_bytes(self._record_path(archive)))
            good = record["md5"] in (None, archive.md5) and isinstance(record["files"], dict)
            for size, changed, crc in record["files"].values():
                good &= isinstance(size, int) and isinstance(changed, int)
                good &= isinstance(crc, int | None)
            return record if good else None
        except (UserError, ValueError, KeyError, TypeError):
            return None

    def _write_record(self, archive: Archive, crcs: dict, more: dict) -> None:
        """Record size, time (ns) and CRC-32 of each file, if the disk is writable."""
        if self.dry:
            return
        found = _listing(self.place(archive), archive.folder)
        record = {**more, "files": {name: [*found[name], crc] for name, crc in crcs.items()}}
        try:
            own_folder(self.ours)
            write_json(self._record_path(archive), record, compact=True)
        except OSError:
            pass  # on a read-only disk the next call checks again

    def url(self, archive: Archive) -> str:
        return f"{(self.options.mirror or self.release.url).rstrip('/')}/{archive.path}"

    def zip_given(self, archive: Archive) -> Path | None:
        """The user's own copy of an archive, if `from_zips` is set."""
        if self.options.from_zips is None:
            return None
        for path in (archive.name, archive.path):
            if (given := given_path(self.options.from_zips) / path).is_file():
                return given
        raise UserError(f"--from-zips {self.options.from_zips}: {archive.name} is not in it")

    def room(self, missing: list[Archive]) -> int:
        """Most bytes needed at any time: the unpacked folders and the zip being processed."""
        used = worst = 0
        for archive in missing:
            own = 0 if self.options.from_zips else archive.size
            arrived = sum(
                path.stat().st_blocks * 512 for path in self.ours.glob(f"{archive.name}*")
            )
            files = archive.unpacked
            unpacked = self.ours / f"unpack-{archive.folder}" / archive.folder
            for folder in (self.place(archive), unpacked):
                files -= sum(size for size, _ in _listing(folder, "").values())
            files = max(files, 0)
            worst = max(worst, used + max(own - arrived, 0) + files)
            used += files - arrived + (own if self.options.keep_zips else 0)
        return worst

    def check_room(self, missing: list[Archive]) -> None:
        needed, free = self.room(missing), download.free_bytes(self.folder)
        if needed > free:
            raise NoSpace(
                f"{self.folder}: {amount(needed)} needed, {amount(free)} free; make room or choose "
                "another directory with --dir"
            )

    def complete(self, archive: Archive, given: Path | None) -> None:
        """Download, check, unpack and record one archive."""
        source = given or self.ours / archive.name
        if given:
            if download.digest(given, "md5", f"{given.name}: checking") != archive.md5:
                raise Damaged(f"{given}: its MD5 is not {archive.md5}; fetch it again")
        elif not source.is_file():  # it gets its final name only after its MD5 was checked
            remedy = "" if self.options.mirror else "; --mirror names another server"
            download.fetch(
                self.url(archive), source, archive.md5, self.options.connections, remedy=remedy
            )
        crcs, kept = archives.unpack(
            source, archive.folder, self.ours / f"unpack-{archive.folder}", self.folder
        )
        if kept:
            raise Damaged(
                f"{self.folder}: {_some(kept)}: exist with other content than in {archive.name} "
                "and were not changed; move them away and try again"
            )
        keep = self.options.keep_zips
        self._write_record(archive, crcs, {"md5": archive.md5, "keep": keep})
        self.was_there.discard(archive.folder)
        self.unchecked.add(archive.folder)
        if not given and not keep:
            source.unlink(missing_ok=True)

    def count(self) -> dict[str, tuple[int, int]]:
        """Images and boxes of each split, read once and then remembered in the record.

        Raises:
            Damaged: the counts differ from the published ones, or a listed image is missing.
        """
        annotations = self.release.annotations
        record = self._record(annotations) or {}
        counts = dict(record.get("counts", {}))
        for split in self.splits:
            folder = split.archive.folder
            level = "boxes" if self.options.annotations_only else "all"
            known = folder in counts and counts[folder][2] in (level, "all")
            if known and folder not in self.unchecked:
                continue
            images, boxes, names = _count(self.folder / split.anno)
            if (images, boxes) != (split.images, split.boxes):
                raise Damaged(
                    f"{self.folder / split.anno}: {images:,} images and {boxes:,} boxes instead of "
                    f"{split.images:,} and {split.boxes:,}"
                )
            if level == "all":
                found = _listing(self.place(split.archive), folder)
                if lost := [n for n in names if f"{folder}/{n}" not in found]:
                    raise Damaged(f"{self.folder / folder}: {_some(lost)}: missing")
            counts[folder] = (images, boxes, level)
        if record and counts != record.get("counts"):
            files = {name: crc for name, (_, _, crc) in record["files"].items()}
            self._write_record(annotations, files, {**record, "counts": counts})
        return {folder: (images, boxes) for folder, (images, boxes, _) in counts.items()}

    def summary(self, counts: dict[str, tuple[int, int]]) -> list[str]:
        lines = [f"{self.release.title} in {self.folder}"]
        for archive in self.wanted:
            text = f"  {archive.folder + '/':<13}"
            if archive is self.release.annotations:
                text += ", ".join(Path(split.anno).name for split in self.splits)
            else:
                images, boxes = counts[archive.folder]
                text += f"{images:,} images, {boxes:,} boxes"
            was_there = archive.folder in self.was_there
            lines.append(text + (" (was there)" if was_there else " (new)"))
        zips = [self.ours / a.name for a in self.wanted if (self.ours / a.name).is_file()]
        return lines + [f"  kept: {path}" for path in zips]


def _listing(folder: Path, prefix: str) -> dict[str, tuple[int, int]]:
    """Path below the data set -> (size in bytes, modification time in ns); {} if absent."""
    found: dict[str, tuple[int, int]] = {}
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return found
    with entries:
        for entry in entries:
            name = f"{prefix}/{entry.name}"
            if entry.is_file():
                status = entry.stat()
                found[name] = status.st_size, status.st_mtime_ns
            elif entry.is_dir():
                found |= _listing(folder / entry.name, name)
    return found


def _is_image(name: str) -> bool:
    return name.lower().endswith((".jpg", ".jpeg", ".png"))


def _count(path: Path) -> tuple[int, int, list[str]]:
    """Number of images and boxes of a COCO file, and the image names.

    It counts a key that each entry has once, which is ten times faster than parsing the 470 MB of
    train2017 and needs no gigabytes of objects.
    """
    try:
        with open(open_regular(path), "rb") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
                names = re.findall(rb'"file_name"\s*:\s*"([^"]*)"', text)
                boxes = sum(1 for _ in re.finditer(rb'"iscrowd"\s*:', text))
    except (OSError, UserError, ValueError) as error:
        raise Damaged(f"{path}: can't be read ({error})") from None
    return len(names), boxes, [name.decode("utf-8", "replace") for name in names]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
