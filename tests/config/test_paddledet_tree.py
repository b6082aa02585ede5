"""Every FCOS file of PaddleDetection 2.6's tree trains a step, or is refused with the reason.

The fixture has upstream's folders, keys and values; only its data is replaced here.
"""

import pytest

from fcos_recipe import api
from fcos_recipe.config import load_config
from fcos_recipe.errors import UserErrors
from tests.conftest import ROOT
from tests.test_configs import small

TREE = ROOT / "tests/fixtures/paddledet_tree/configs"
FILES = [path for path in sorted(TREE.glob("*/**/*.yml"))
         if not {"_base_", "datasets"} & set(path.parts)]  # fmt: skip
REFUSED = {
    "denseteacher": r"\.yml:\d+: ssod_method: semi-supervised .*; use PaddleDetection itself, or ",
    "fcosr": r"dota\.yml:1: metric: RBOX: rotated boxes .*; use PaddleDetection for them",
}
NARROW = {  # deformable convolutions are slow on a CPU
    "dcn": ["FPN.out_channel=32", "FCOSHead.fcos_feat.feat_in=32", "FCOSHead.fcos_feat.feat_out=32"]
}


def about(table, path, default):
    return next((value for word, value in table.items() if word in path.stem), default)


def test_every_file_loads_without_a_warning_or_is_refused_in_one_line():
    assert len(FILES) == 12
    accepted = 0
    for path in FILES:
        if refusal := about(REFUSED, path, ""):
            with pytest.raises(UserErrors, match=refusal) as error:
                load_config(path)
            assert len(error.value.messages) == 1
        else:
            assert load_config(path).warnings == []
            accepted += 1
    assert accepted == 7


def test_only_files_of_coco_itself_are_said_to_come_with_its_download(tmp_path):
    path = TREE / "semi_det/baseline/fcos_r50_fpn_2x_coco_sup005.yml"
    config = load_config(path, [f"TrainDataset.dataset_dir={tmp_path}"])
    images, annotations = config.missing_files("TrainDataset")
    assert "download COCO" in images and "2017.1@5.json does not exist; set" in annotations


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for path in FILES if not about(REFUSED, path, "")], ids=lambda path: path.stem
)
def test_every_file_that_is_accepted_trains_a_step_and_evaluates(path, shapes, tmp_path):
    one = ["TrainDataset.sample_num=2", "EvalDataset.sample_num=1", *about(NARROW, path, [])]
    result = api.train(path, overrides=[*small(path, shapes), *one], output=tmp_path,
                       evaluate=True, device="cpu")  # fmt: skip
    assert result.steps == 1 and result.evaluation.result["images"] == 1
