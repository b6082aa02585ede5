"""The figures that the README shows: `configs/results.yml`, typed, and its table.

AP is COCO's box AP in percent (39.7, not 0.397) everywhere in this module.
"""

import datetime
from functools import lru_cache
from pathlib import Path
from typing import Literal

import msgspec
import yaml

from fcos_recipe.config.schema import RESULTS
from fcos_recipe.errors import UserError


class Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text of a row in both languages; `str()` gives the English one.

    Args:
        en, zh: English and Chinese.
        url: where it can be read, if anywhere.
    """

    en: str
    zh: str
    url: str | None = None

    def __str__(self) -> str:
        return self.en


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One published figure.

    Args:
        config: name of the file in configs/fcos without its ending.
        about: what the data are, where the config's name does not say it.
        dataset: what was evaluated on.
        device: name of the card; "cpu"; None where the publisher names none.
        cards: processes of the run, one card each.
        total_batch: images of one optimizer step.
        epochs: of the run.
        ap: box AP in percent; the mean where there are several seeds.
        ap_by_seed: AP of each seed, in percent.
        images_per_second: training throughput; None: not published.
        throughput_of: images of all cards ("total") or of one ("card"); "unstated".
        throughput_note: what is to be known about it.
        hours: of the whole run; None: not published.
        source: who says so.
        machine: what it ran on.
        date: of the run, or of its publication.
        commit: of this project, for its own runs.
        reproduced: this project has trained to that figure.
        tolerance: AP points by which a run may differ and still be the same result.
        tolerance_from: where that number comes from.
        weights_url, weights_sha256: of the trained weights, where they are published.
    """

    config: str
    about: Text | None = None
    dataset: str
    device: str | None = None
    cards: int
    total_batch: int
    epochs: int
    ap: float
    ap_by_seed: dict[int, float] = {}
    images_per_second: float | None = None
    throughput_of: Literal["total", "card", "unstated"] = "unstated"
    throughput_note: Text | None = None
    hours: float | None = None
    source: Text
    machine: Text | None = None
    date: datetime.date | None = None
    commit: str | None = None
    reproduced: bool
    tolerance: float
    tolerance_from: Text
    weights_url: str | None = None
    weights_sha256: str | None = None

    @property
    def ap_range(self) -> tuple[float, float] | None:
        """Lowest and highest AP over the seeds; None for fewer than two."""
        values = self.ap_by_seed.values()
        return (min(values), max(values)) if len(values) > 1 else None


class Band(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What loss to expect of a config.

    Args:
        config: name of the file in configs/fcos without its ending.
        total_batch: images of one optimizer step.
        steps: step -> (lowest, highest) mean of `loss` over the `WINDOW` steps before it.
        source: which runs it was taken from.
    """

    config: str
    total_batch: int
    steps: dict[int, tuple[float, float]]
    source: str


class Results(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    rows: tuple[Row, ...]
    loss_bands: tuple[Band, ...]


@lru_cache
def load(path: Path = RESULTS) -> Results:
    """Read and check the file.

    Raises:
        UserError: it is missing, or a field of it is wrong.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        return msgspec.convert(data, Results, strict=False)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, msgspec.ValidationError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None


def published(config_name: str) -> list[Row]:
    """The rows of one config, in the file's order; [] where nothing is published.

    Args:
        config_name: as `Config.name`.
    """
    return [row for row in load().rows if row.config == config_name]
