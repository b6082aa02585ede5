"""Options that people know from PaddleDetection and other projects, and what to use here instead.

They are recognised so that the error says more than "unrecognized arguments".
"""

import argparse

from fcos_recipe.errors import UserError

_SLIM = "model compression (pruning, distillation, quantisation) is not part of this recipe"
_TILES = "sliced inference is not part of this recipe; cut large images into tiles beforehand"
_SLICES = dict.fromkeys(
    ("--slice_infer", "--slice_size", "--overlap_ratio", "--combine_method", "--match_threshold",
     "--match_metric"), _TILES)  # fmt: skip
# command -> option of PaddleDetection 2.6's tool of that name that is not an option here -> remedy
PADDLEDETECTION = {
    "train": {
        "--slim_config": _SLIM,
        "--fleet": "use `bash scripts/train.sh`; several cards and hosts need no option",
        "--use_wandb": "use --logger wandb",
        "--save_prediction_only": "use `fcos eval --save-predictions FILE` after training",
        "--profiler_options": "use `fcos benchmark train --profile`",
        "--save_proposals": "FCOS has no proposals",
        "--proposals_path": "FCOS has no proposals",
    },
    "eval": {
        "--json_eval": "use --predictions DETS.json with --annotations GT.json",
        "--slim_config": _SLIM,
        "--bias": "it serves metrics other than COCO's",
        "--save_prediction_only": "use --save-predictions FILE, which also computes AP",
        **_SLICES,
    },
    "infer": {
        "--slim_config": _SLIM,
        "--do_eval": "use `fcos eval` for figures",
        "--visualize": "drawings are always written; nothing to select",
        "--rtn_im_file": "file names are always in predictions.json",
        "--save_threshold": "use --score_threshold SCORE",
        **_SLICES,
    },
    "export_model": {
        "--export_serving_model": "export with --format onnx or paddle, and serve that model",
        "--slim_config": _SLIM,
        "--for_fd": "exports have inputs and outputs of their own, see docs/deploy.md",
    },
}
_COMMON = {"-c, --config": "the same", "-o, --opt": "the same; a second -o adds to the first"}
# command -> options of PaddleDetection's tool of that name that work here -> what they do
WORKING = {
    "train": {
        **_COMMON,
        "--eval": "the same",
        "-r, --resume": "the same; `auto` finds the newest intact checkpoint",
        "--amp": "the same",
        "--to_static": "the same",
        "--use_vdl": "the same as --logger visualdl; true or false may follow",
        "--vdl_log_dir": "the same; default: vdl in the run directory",
        "--enable_ce": "seed 0; every run is repeatable with its seed",
    },
    "eval": {
        **_COMMON,
        "--output_eval": "the same as --output",
        "--classwise": "the same; curves are drawn in any case",
        "--amp": "the same",
    },
    "infer": {
        **_COMMON,
        "--infer_dir": "the same as --input",
        "--infer_img": "the same as --input",
        "--infer_list": "the same as --input",
        "--output_dir": "the same as --output",
        "--draw_threshold": "the same; default: the score of the best F1, if it is known",
        "--save_results": "accepted; predictions.json is always written",
        "--use_vdl": "accepted with a warning; drawings are files in --output",
        "--vdl_log_dir": "accepted with a warning; drawings are files in --output",
    },
    "export_model": {**_COMMON, "--output_dir": "the same as --output"},
}
# options of other projects' commands
USUAL = {
    "train": {
        "--epochs": "use -o epoch=N",
        "--epoch": "use -o epoch=N",
        "--lr": "use -o LearningRate.base_lr=LR",
        "--learning-rate": "use -o LearningRate.base_lr=LR",
        "--batch-size": "use -o TrainReader.batch_size=N",
        "--batch_size": "use -o TrainReader.batch_size=N",
        "--workers": "use -o worker_num=N",
        "--num-workers": "use -o worker_num=N",
        "--imgsz": "change Resize in TrainReader, EvalReader and TestReader",
        "--weights": "use -o pretrain_weights=FILE",
        "--pretrained": "use -o pretrain_weights=FILE",
        "--data": "use `fcos config new --data DIR -o my.yml`, then -c my.yml",
        "--device": "use -o device=cpu, gpu or iluvatar_gpu",
        "--gpus": "use `bash scripts/train.sh --gpus N CONFIG`",
        "--wandb": "use --logger wandb",
        "--work-dir": "use --output DIR",
    },
    "eval": {
        "--device": "use -o device=cpu, gpu or iluvatar_gpu",
        "--batch-size": "use -o EvalReader.batch_size=N",
        "--batch_size": "use -o EvalReader.batch_size=N",
    },
    "infer": {
        "--device": "use -o device=cpu, gpu or iluvatar_gpu, with -c CONFIG",
        "--source": "use --input",
        "--conf": "use --draw_threshold SCORE",
    },
}


class _Refuse(argparse.Action):
    def __call__(self, _parser, _namespace, _values, option_string=None):
        raise UserError(f"{option_string}: not an option here; {self.const}")


def add_refusals(parser: argparse.ArgumentParser, command: str) -> None:
    """Let a parser answer the options of the two tables with their remedies.

    Args:
        parser: has all of its own options already.
        command: a key of the tables.
    """
    own = {option for action in parser._actions for option in action.option_strings}
    remedies = {**USUAL.get(command, {}), **PADDLEDETECTION.get(command, {})}
    for option, remedy in remedies.items():
        if option not in own:
            parser.add_argument(option, action=_Refuse, nargs="*", const=remedy,
                                help=argparse.SUPPRESS)  # fmt: skip


def markdown() -> str:
    """The table of docs/migrating.md."""
    rows = [
        f"| `{command}` | `{option}` | {mark}{text} |"
        for command in WORKING
        for mark, table in (("", WORKING), ("refused: ", PADDLEDETECTION))
        for option, text in table[command].items()
    ]
    return "\n".join(["| command | option of PaddleDetection | here |", "|---|---|---|", *rows])
