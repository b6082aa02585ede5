"""Read the published figures in `configs/results.yml` and write the README's table of them.

AP is COCO's box AP in percent (39.7, not 0.397) everywhere in this module.
"""

import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from fcos_recipe.errors import UserError
from fcos_recipe.files.reading import read_text
from fcos_recipe.places import RESULTS

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
WINDOW = 50  #: steps over which a loss is averaged to compare it with a `Band`
# Column titles and texts of the table; Chinese for files whose name ends in _zh.
WORDS: dict[str, dict[Any, Any]] = {
    "en": {
        "titles": ("config", "cards", "box AP", "images/s", "source", "reproduced here"),
        True: "yes", False: "no: needs the cards",
        "device": "{device} x {cards}", "unknown": "{cards}",
        "cpu": "{cards} CPU process", "cpus": "{cards} CPU processes",
        "range": "{ap:.1f} ({low:.1f} to {high:.1f}, seeds {seeds})",
        "total": "{speed:g} in all", "card": "{speed:g} per card", "unstated": "{speed:g}",
        "none": "not published", "minutes": "{minutes:.1f} minutes per run",
        "brackets": " ({})", "comma": ", ", "weights": "weights",
    },
    "zh": {
        "titles": ("配置", "卡数", "框 AP", "图像/秒", "来源", "本项目是否复现"),
        True: "是", False: "否：需要加速卡", "device": "{device} x {cards}", "unknown": "{cards}",
        "cpu": "{cards} 个 CPU 进程", "cpus": "{cards} 个 CPU 进程",
        "range": "{ap:.1f}（{low:.1f} 至 {high:.1f}，种子 {seeds}）",
        "total": "共 {speed:g}", "card": "单卡 {speed:g}", "unstated": "{speed:g}",
        "none": "未公布", "minutes": "每次 {minutes:.1f} 分钟",
        "brackets": "（{}）", "comma": "，", "weights": "权重",
    },
}  # fmt: skip


class Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text of a row in two languages; `str()` gives the English one.

    Args:
        en, zh: English and Chinese.
        url: link target, if there is one.
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
        about: description of the data, if the config's name is not clear.
        dataset: the evaluation data set.
        images: number of evaluated images.
        device: name of the card; "cpu"; None: not published.
        cards: world size.
        total_batch: images per optimizer step.
        epochs: of the run.
        ap: box AP in percent; with several seeds, their mean.
        ap_by_seed: AP of each seed, in percent.
        images_per_second: training throughput; None: not published.
        throughput_of: "total" of all cards, per "card", or "unstated".
        throughput_note: remark on the throughput.
        hours: of the whole run; None: not published.
        source: who published the figure.
        machine: hardware of the run.
        date: of the run, or of its publication.
        commit: of this project, for its own runs.
        reproduced: whether this project has trained to this figure.
        tolerance: AP points by which a run may differ and still count as reproduced.
        tolerance_from: how the tolerance was chosen.
        weights_url, weights_sha256: of the trained weights, if published.
    """

    config: str
    about: Text | None = None
    dataset: str
    images: int
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
    def band(self) -> tuple[float, float]:
        """Lowest and highest AP in percent that counts as reproduced."""
        return self.ap - self.tolerance, self.ap + self.tolerance

    @property
    def ap_range(self) -> tuple[float, float] | None:
        """Lowest and highest AP over the seeds; None for fewer than two seeds."""
        values = self.ap_by_seed.values()
        return (min(values), max(values)) if len(values) > 1 else None


class Band(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Usual training loss of a config.

    Args:
        config: name of the file in configs/fcos without its ending.
        total_batch: images per optimizer step.
        steps: step -> (lowest, highest) mean of `loss` over the last `WINDOW` steps.
        source: the runs from which it was computed.
    """

    config: str
    total_batch: int
    steps: dict[int, tuple[float, float]]
    source: str


class Results(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Contents of configs/results.yml."""

    rows: tuple[Row, ...]
    loss_bands: tuple[Band, ...]


@lru_cache
def load(path: Path = RESULTS) -> Results:
    """Read and check the file.

    Raises:
        UserError: the file is missing, or one of its fields is wrong.
    """
    try:
        data = yaml.safe_load(read_text(path))
        return msgspec.convert(data, Results, strict=False)
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None


def published(config_name: str) -> list[Row]:
    """The rows of one config, in the file's order; [] if nothing is published.

    Args:
        config_name: as `Config.name`.
    """
    return [row for row in load().rows if row.config == config_name]


def table(language: str = "en") -> str:
    """Write all rows as a Markdown table.

    Args:
        language: "en" or "zh".
    """
    titles = WORDS[language]["titles"]
    lines = [titles, ["---"] * len(titles), *(_cells(row, language) for row in load().rows)]
    return "".join(f"|{'|'.join(cells)}|\n" if cells[0] == "---" else f"| {' | '.join(cells)} |\n"
                   for cells in lines)  # fmt: skip


def _cells(row: Row, language: str) -> list[str]:
    words = WORDS[language]

    def say(text: Text | None) -> str:
        if text is None:
            return ""
        plain = getattr(text, language)
        return f"[{plain}]({text.url})" if text.url else plain

    def with_note(text: str, note: Text | None) -> str:
        return text + (words["brackets"].format(say(note)) if note else "")

    kind = "unknown" if row.device is None else "device"
    if row.device == "cpu":
        kind = "cpu" if row.cards == 1 else "cpus"
    ap = f"{row.ap:.1f}"
    if row.ap_range:
        seeds = ", ".join(map(str, row.ap_by_seed))
        ap = words["range"].format(ap=row.ap, low=row.ap_range[0], high=row.ap_range[1],
                                   seeds=seeds)  # fmt: skip
    speed = words["none"]
    if row.images_per_second is not None:
        speed = words[row.throughput_of].format(speed=row.images_per_second)
    about = [say(row.source)]
    if row.weights_url:
        about.append(f"[{words['weights']}]({row.weights_url})")
    if row.commit:  # a run of this project
        about += [str(row.date), say(row.machine)]
        if row.hours:
            about.append(words["minutes"].format(minutes=60 * row.hours))
    return [
        with_note(f"`{row.config}`", row.about),
        words[kind].format(device=row.device, cards=row.cards),
        ap,
        with_note(speed, row.throughput_note),
        words["comma"].join(about),
        words[row.reproduced],
    ]


def insert(path: Path) -> str:
    """Return a file's text with the current table between its markers.

    Args:
        path: a Markdown file; a name that ends in _zh gets the Chinese table.

    Raises:
        UserError: the file cannot be read, or does not have each marker once on its own line.
    """
    text = read_text(path)
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    if not (begin and end) or text.count(BEGIN) + text.count(END) != 2:
        raise UserError(f"{path}: needs {BEGIN} and, below it, {END}, each once on its own line")
    return f"{before}{begin}\n{table('zh' if path.stem.endswith('_zh') else 'en')}\n{end}{after}"
