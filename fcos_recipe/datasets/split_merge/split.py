"""Split images into parts with the same proportions of each class."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from fcos_recipe.datasets.account import Account
from fcos_recipe.datasets.split_merge.annotations import Annotations
from fcos_recipe.errors import UserError


def stratify(labels: np.ndarray, unit: np.ndarray, shares: list[float], seed: int) -> np.ndarray:
    """Assign images to parts with the same proportions of each class.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the Stratification of
    Multi-Label Data", ECML PKDD 2011): images of the rarest class are assigned first, each to the
    part that lacks most of that class. Parts are not overfilled, and of a class with few images
    the first part gets one first. Images without a box count as a class of their own.

    Args:
        labels: int64 [n, 2], distinct (image, class) pairs.
        unit: int64 [N], group of each image (0 to U - 1); images of a group stay together.
        shares: fraction of each part; they add up to 1.
        seed: of the random order within a class.

    Returns:
        int64 [N], the part of each image.
    """
    total, units = len(unit), int(unit.max(initial=-1)) + 1
    size = np.bincount(unit, minlength=units)
    room = _apportion(total, shares)
    classes = int(labels[:, 1].max(initial=-1)) + 1
    empty = np.setdiff1d(np.arange(total), labels[:, 0])
    labels = np.concatenate([labels, np.stack([empty, np.full(len(empty), classes)], axis=1)])
    pairs = np.unique(np.stack([unit[labels[:, 0]], labels[:, 1]], axis=1), axis=0)
    count = np.bincount(pairs[:, 1], minlength=classes + 1)
    want = [np.maximum(share * count, 1.0).tolist() for share in shares]
    per_unit = np.split(pairs[:, 1], np.searchsorted(pairs[:, 0], np.arange(1, units)))
    of_unit = [row.tolist() for row in per_unit]
    by_class = pairs[np.argsort(pairs[:, 1], kind="stable"), 0]
    members = np.split(by_class, np.cumsum(count)[:-1])
    rng = np.random.default_rng(seed)
    part = np.full(units, -1)
    left = count.copy()
    everyone = range(len(shares))
    while left.any():
        rarest = int(np.where(left > 0, left, np.iinfo(np.int64).max).argmin())
        waiting = members[rarest][part[members[rarest]] < 0]
        for u in rng.permutation(waiting).tolist():
            fits = [p for p in everyone if room[p] >= size[u]]
            fits = fits or [max(everyone, key=room.__getitem__)]
            best = max(fits, key=lambda p: want[p][rarest])  # the first of equal ones
            part[u] = best
            room[best] -= size[u]
            for k in of_unit[u]:
                want[best][k] -= 1
                left[k] -= 1
    return part[unit]


def _apportion(total: int, shares: list[float]) -> list[int]:
    """Integers that add up to `total`, each its share rounded up or down."""
    exact = np.array(shares) * total
    whole = np.floor(exact + 1e-9).astype(int)
    for p in np.argsort(whole - exact, kind="stable")[: total - whole.sum()]:
        whole[p] += 1
    return whole.tolist()


def units(data: Annotations, pattern: str | None) -> np.ndarray:
    """int64 [N]: group number of each image, by its file name or a pattern in it.

    Args:
        data: the annotation file.
        pattern: regular expression; the key is its first group, or else the whole match. An image
            whose name does not match is a group of its own.

    Raises:
        UserError: the pattern is no regular expression, or matches no file name.
    """
    keys = data.file_name
    if pattern is not None:
        try:
            found = [re.search(pattern, name) for name in data.file_name]
        except re.error as error:
            raise UserError(f"--group-by {pattern!r}: {error}") from None
        if data.file_name and not any(found):
            raise UserError(f"--group-by {pattern!r}: matches no name, as {data.file_name[0]!r}")
        keys = [
            ("group", m[m.re.groups and 1]) if m else name for m, name in zip(found, data.file_name)
        ]
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


@dataclass
class Part:
    """One part of a file: its content, and the classes that only other parts have."""

    content: dict[str, Any]
    without: list[str]


def split(
    data: Annotations, shares: list[float], pattern: str | None, seed: int, only_first: bool = False
) -> tuple[list[Part], Account]:
    """Split a file into parts; returns them and the account.

    Args:
        data: the file.
        shares: fraction of each part; they add up to 1.
        pattern: groups images that stay together, see `units`.
        seed: of the random choice.
        only_first: make only the first part; the account names the rest as not chosen.

    Raises:
        UserError: see `units`.
    """
    labels = data.labels()
    of_image = stratify(labels, units(data, pattern), shares, seed)
    account, parts = data.account(), []
    for number in range(len(shares)):
        rows = np.flatnonzero(of_image == number)
        if only_first and number:
            boxes = np.isin(data.of_image, rows).sum()
            account.leave_out("images", "not chosen", len(rows))
            account.leave_out("annotations", "of images that are not chosen", int(boxes))
            continue
        gone = np.setdiff1d(labels[:, 1], labels[np.isin(labels[:, 0], rows), 1])
        parts.append(Part(data.part(rows), [data.class_names[k] for k in gone]))
        for item in ("images", "annotations"):
            account.written[item] += len(parts[-1].content[item])
    account.check(data.path)
    return parts, account
