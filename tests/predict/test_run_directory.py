"""A run directory is accepted wherever weights are, and means its best weights."""

import re
import shutil

import pytest

from fcos_recipe.cli import run

# Command line: RUN is the run directory or its weights file, DATA the data set, OUT a new folder.
COMMANDS = {
    "eval": "-c CONFIG --weights RUN --output OUT",
    "infer": "--weights RUN --input DATA/val --output OUT",
    "export_model": "--weights RUN --output OUT",
    "train": "-c CONFIG --output OUT -o pretrain_weights=RUN epoch=1 worker_num=0 "
             "TrainReader.batch_size=2",
    "weights": "convert RUN OUT/w.safetensors",
    "config": "new --data DATA --weights RUN --output OUT/new.yml",
    "verify_result": "-c fcos_r18_fpn_demo --weights RUN "
                     "-o EvalDataset.dataset_dir=DATA TrainDataset.dataset_dir=DATA",
}  # fmt: skip
QUICK = {"infer", "weights", "config"}
TIMES = re.compile(
    r"[\d.]+ (images/s|with|total|per card|ms|s\b)|(ips|eta|data|reader|device|memory|time)\S*: \S+"
)


@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=[] if c in QUICK else pytest.mark.slow) for c in COMMANDS]
)
def test_a_run_directory_is_its_weights(trained, data, tmp_path, capfd, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    told = []
    out = tmp_path / "out"
    for weights in (trained[0], trained[0].parent):
        out.mkdir()
        text = COMMANDS[command].replace("CONFIG", str(trained[0].with_name("config.yml")))
        for word, path in ("RUN", weights), ("DATA", data), ("OUT", out):
            text = text.replace(word, str(path))
        code = run(command, text.split())
        printed, error = capfd.readouterr()
        assert code == (2 if command == "verify_result" else 0), error  # other data: no verdict
        told.append(TIMES.sub("", printed.replace(str(weights), "RUN")))
        assert code or any(out.iterdir())
        shutil.rmtree(out)
    assert told[0] == told[1]
