"""Write facts.json, the description of a run, at its start."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from fcos_recipe.config.effects import differences
from fcos_recipe.config.eval_sets import KEY, MAIN
from fcos_recipe.config.load import Config, load_config
from fcos_recipe.console import log
from fcos_recipe.datasets.fpn_levels import SIZES
from fcos_recipe.datasets.locate import Source
from fcos_recipe.datasets.look.stats import statistics
from fcos_recipe.errors import without_secrets
from fcos_recipe.files.atomic import replace_file
from fcos_recipe.places import display

FACTS = "facts.json"


def config_facts(config: Config) -> dict[str, Any]:
    """Name and path of a config and, in `changes`, how it differs from its bases.

    Each change is [key, value in the bases, value, origin ("" for a removed key)]; values are YAML
    text, "-" if there is none. `based` is False for a config without bases. `command_line` lists
    the keys whose value was changed by -o or another option.
    """
    rows = differences(config.base, config.data) if config.base else []
    overridden = differences(load_config(config.path).data, config.data)
    return {
        "name": config.name,
        "path": display(config.path),
        "based": config.base is not None,
        "changes": [[*row, config.origin(row[0]) if row[2] != "-" else ""] for row in rows],
        "command_line": [key for key, *_ in overridden],
    }


def dataset_facts(dataset) -> dict[str, Any]:
    """Statistics of a `COCODataSet` (images, boxes by size, classes) without reading images."""
    files = " + ".join(display(Path(file)) for file in dataset.files)
    source = Source("", files, None, {"load_crowd": dataset.load_crowd})
    source.index = lambda: dataset.index  # type: ignore[method-assign]  # of all its files
    found = statistics(source, None)
    images, boxes, per_image = found["images"], found["boxes"], found["boxes_per_image"]
    return {
        "annotations": files,
        "images": images["count"],
        "used": len(dataset.rows),
        "without_boxes": images["without_boxes"],
        "width_height": images["width_height"][:3],
        "sizes": len(images["width_height"]),
        "boxes": boxes["count"],
        "crowd": boxes["crowd"],
        "left_out": boxes["left_out"],
        "by_size": boxes["by_size"],
        "boxes_per_image": {key: per_image[key] for key in ("mean", "median", "max")},
        "classes": [
            {key: row[key] for key in ("name", "boxes", "images", *SIZES)}
            for row in found["classes"]
        ],
    }


def write_facts(trainer) -> None:
    """Write `FACTS` to a trainer's run directory; an error is logged and does not stop the run."""
    try:
        data, plan = trainer.config.data, trainer.plan
        facts = {
            "config": config_facts(trainer.config),
            "device": trainer.device,
            "cards": plan.cards,
            "batch": plan.batch,
            "total_batch": plan.total_batch,
            "lr": plan.lr,
            "epochs": data["epoch"],
            "steps": plan.max_steps,
            "seed": data["seed"],
            "amp": data["amp_dtype"] if trainer.use_amp else None,
            "ema": bool(data["use_ema"]),
            "validating": trainer.validating,
            "parameters": sum(int(np.prod(p.shape)) for p in trainer.model.parameters()),
            "data": {"train": dataset_facts(trainer.dataset)},
        }
        for name, one in trainer.evaluation_sets.items():
            split = "val" if name == MAIN else f"{KEY}.{name}"
            facts["data"][split] = dataset_facts(one.metric.dataset)
        text = without_secrets(json.dumps(facts, indent=1))
        replace_file(trainer.run.path / FACTS, text + "\n")
    except Exception as error:  # a disk error, or annotations that only training can use
        log.warning("%s: not written: %s: %s", FACTS, type(error).__name__, error)
