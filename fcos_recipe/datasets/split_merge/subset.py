"""Choose some images of a file and keep the proportions of the classes."""

from fcos_recipe.datasets.account import Account
from fcos_recipe.datasets.split_merge.annotations import Annotations
from fcos_recipe.datasets.split_merge.split import Part, split
from fcos_recipe.errors import UserError


def subset(
    data: Annotations, count: int | None, share: float, pattern: str | None, seed: int
) -> tuple[Part, Account]:
    """Choose images; returns them and the account.

    Args:
        data: the file.
        count: number of images; None: decided by `share`.
        share: fraction of the images; at least one image is chosen.
        pattern: groups images that stay together, see `split.units`.
        seed: of the random choice.

    Raises:
        UserError: the file has fewer images; see `split.units`.
    """
    total = len(data.images)
    count = count or max(1, round(share * total))
    if count > total:
        raise UserError(f"{data.path}: --count {count}: it has {total} images")
    share = count / max(total, 1)
    parts, account = split(data, [share, 1 - share], pattern, seed, only_first=True)
    return parts[0], account
