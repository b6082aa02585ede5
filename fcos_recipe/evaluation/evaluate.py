"""Evaluation of a weights file or an exported model on the data set of a config."""

from typing import Any

import paddle

from fcos_recipe.checkpoint import weights as weights_file
from fcos_recipe.config import Config, eval_sets
from fcos_recipe.config.load import data_paths
from fcos_recipe.console import log
from fcos_recipe.data.index import open_index
from fcos_recipe.errors import UserError
from fcos_recipe.evaluation.collectives import join_ranks
from fcos_recipe.evaluation.loop import REFERENCE_BATCHES, build_evaluation_sets, evaluate_sets
from fcos_recipe.evaluation.metric import CocoMetric
from fcos_recipe.evaluation.options import COCO, Evaluation, Options
from fcos_recipe.evaluation.tta import Augmented
from fcos_recipe.model.build import autocast, build_model, prepare
from fcos_recipe.predict.backends import NEEDS_EXPORT, export_facts, open_export
from fcos_recipe.system.watchdog import Watchdog


def evaluate_weights(
    config: Config,
    weights: str,
    device: str,
    options: Options = COCO,
    watchdog: Watchdog | None = None,
) -> Evaluation:
    """Evaluate weights on the config's data sets. Under a launcher every rank must call it.

    Args:
        config: a resolved config.
        weights: weights file, checkpoint folder, URL, or an exported model.
        device: cpu, gpu or iluvatar_gpu; Paddle is already set to it.
        options: see `Options`.
        watchdog: told of the progress.

    Raises:
        UserError: data, weights, config or options do not fit together.

    Returns:
        the figures of EvalDataset, or of the one set that is asked for; those of further sets are
        in `result["sets"]`.
    """
    rank, ranks = join_ranks()
    watchdog = watchdog or Watchdog()
    views: dict[str, Any] = {}
    if options.sizes or options.flip:
        views = {"sizes": list(options.sizes), "flip": options.flip}
    cfg = prepare(config, device, ranks, train=False)
    model: Any = build_model(cfg)
    _, context = autocast(config.data, device)
    if facts := export_facts(weights):
        if views:
            raise UserError(
                f"{weights}: an exported model has no test-time augmentation (--tta-sizes, "
                "--tta-flip); evaluate a checkpoint"
            )
        model = _exported(weights, facts, config, device, options)
        trained_on = facts["class_names"]
    elif options.precision != "fp32":
        raise UserError(NEEDS_EXPORT.format(options.precision, weights))
    else:
        log.info("weights: %s: %s", weights, weights_file.load(model, weights, exact=True))
        trained_on = weights_file.description(weights_file.resolve(weights)).get("class_names")

    def figures(reader: dict | None = None) -> tuple[dict, CocoMetric]:
        sets = build_evaluation_sets(
            cfg, rank, ranks, options.eval_set, sizes=options.sizes if views else None,
            reader=reader, score_threshold=options.score_threshold, max_dets=options.max_dets,
        )  # fmt: skip
        metric = next(iter(sets.values())).metric
        weights_file.compare_classes(trained_on, list(metric.categories.values()))
        network = Augmented(model, options.flip) if views else model
        with watchdog.phase("eval"):
            return evaluate_sets(network, sets, context, watchdog.beat), metric

    reference = figures(REFERENCE_BATCHES)[0] if options.padding_effect else None
    result, metric = figures()
    result["config"] = config.name
    if options.eval_set:
        result["eval_set"] = options.eval_set
    if views:
        result["tta"] = views
    if options.precision != "fp32":
        result["precision"] = options.precision
    if reference is not None:
        result["reference_ap"] = reference["stats"][0]
        for name, one in result.get("sets", {}).items():
            one["reference_ap"] = reference["sets"][name]["stats"][0]
    return Evaluation(result, metric)


def _exported(weights: str, facts: dict, config: Config, device: str, options: Options):
    """An exported model that is called as the trained one is: same reader, same evaluator.

    Raises:
        UserError: it was made for other classes.
    """
    first = next(iter(eval_sets.sections(config.data, options.eval_set).values()))
    annotations = data_paths(eval_sets.section(config.data, first) or {}, "anno_path")[0]
    names = open_index(annotations).class_names
    if names != facts["class_names"]:
        raise UserError(
            f"{weights}: class_names: made for {facts['class_names'][:3]}..., but {annotations} "
            f"has {names[:3]}...; evaluate it on the data set that it was trained on"
        )
    engine = open_export(weights, facts, device, options.precision)

    class Exported:
        def eval(self) -> None:
            pass

        def __call__(self, batch: dict) -> dict:
            arrays = {key: batch[key].numpy() for key in ("image", "im_shape", "scale_factor")}
            bbox, counts = engine.run(arrays)
            return {"bbox": paddle.to_tensor(bbox), "bbox_num": paddle.to_tensor(counts)}

    return Exported()
