"""Test-time augmentation: its views and how evaluation merges them."""

import json

import numpy as np
import paddle
import pytest
import yaml

from fcos_recipe.cli import run
from fcos_recipe.config import load_config
from fcos_recipe.errors import UserError
from fcos_recipe.evaluation.loop import REFERENCE_BATCHES, build_evaluation_set
from fcos_recipe.evaluation.tta import Augmented, Views, mirrored, resized
from fcos_recipe.model.build import prepare
from fcos_recipe.predict import Predictor
from fcos_recipe.system.compute import start


def test_other_sizes_keep_the_limit_s_proportion():
    chain = [{"Decode": {}}, {"Resize": {"target_size": [800, 1333], "keep_ratio": True}}]
    assert resized(chain, 400)[1]["Resize"]["target_size"] == [400, 666]
    assert chain[1]["Resize"]["target_size"] == [800, 1333]
    with pytest.raises(UserError, match="no Resize"):
        resized([{"Decode": {}}], 400)


@pytest.mark.parametrize("channels_last", [True, False])
def test_padding_stays_where_it_is(channels_last):
    image = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3).astype(np.uint8)
    sizes = np.array([[4, 6], [4, 5]], np.float32)
    given = image if channels_last else image.astype(np.float32).transpose(0, 3, 1, 2)
    batch = {"image": paddle.to_tensor(given), "im_shape": paddle.to_tensor(sizes)}
    turned = mirrored(batch).numpy()
    turned = turned if channels_last else turned.transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(turned[0], image[0, :, ::-1])
    np.testing.assert_array_equal(turned[1, :, :5], image[1, :, 4::-1])
    np.testing.assert_array_equal(turned[1, :, 5], image[1, :, 5])


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("tta") / "run"
    assert run("train", ["-c", str(tiny), "--output", str(path), "-o", "epoch=2"]) == 0
    return next(path.glob("*.pdparams"))


def figures(tiny, weights, out, *extra) -> tuple[dict, np.ndarray]:
    argv = ["-c", str(tiny), "--weights", str(weights), "--json", str(out / "eval.json")]
    argv += ["--save-predictions", str(out / "dets.json"), "--output", str(out), "--no-plots"]
    assert run("eval", [*argv, *extra]) == 0
    rows = json.loads((out / "dets.json").read_text())
    rows = [[r["image_id"], r["category_id"], r["score"], *r["bbox"]] for r in rows]
    return json.loads((out / "eval.json").read_text()), np.array(sorted(rows))


def test_one_view_is_plain_evaluation(tiny, trained, tmp_path):
    plain, found = figures(tiny, trained, tmp_path)
    chain = yaml.safe_load((trained.parent / "config.yml").read_text())["EvalReader"]
    target = next(t["Resize"] for t in chain["sample_transforms"] if "Resize" in t)["target_size"]
    short = target if isinstance(target, int) else min(target)
    same, views = figures(tiny, trained, tmp_path, "--tta-sizes", str(short))
    assert same["stats"] == plain["stats"] and same["tta"]["sizes"] == [short]
    np.testing.assert_array_equal(found, views)
    _, other = figures(tiny, trained, tmp_path, "--tta-sizes", str(short * 2))
    assert other.shape != found.shape or not np.allclose(other, found)


def test_batches_are_those_asked_for(tiny, trained):
    config, device = load_config(str(tiny)), start("cpu").device
    cfg = prepare(config, device, 1, train=False)
    own = next(iter(build_evaluation_set(cfg, 0, 1).loader))["image"]
    reference = next(iter(build_evaluation_set(cfg, 0, 1, reader=REFERENCE_BATCHES).loader))[
        "image"
    ]
    assert own.shape[0] > 1 and reference.shape[0] == 1
    assert all(side % 128 == 0 for side in reference.shape[1:3]) and own.shape[1] % 128
    sizes = [min(v["im_shape"][0].tolist()) for v in next(iter(build_evaluation_set(
        cfg, 0, 1, sizes=(64, 96)).loader))["views"]]  # fmt: skip
    assert sizes == [64, 96]


def test_a_mirrored_data_set_gives_the_mirrored_boxes(tiny, trained, tmp_path):
    """Looking at both views, left and right are alike: what the plain network never is."""
    predictor = Predictor(str(trained), load_config(str(tiny)))
    model = predictor.backend.model
    head = model.fcos_head
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3)).astype(np.uint8)
    batch = {k: paddle.to_tensor(v) for k, v in predictor.batch([image]).items() if k != "im_id"}
    width = float(batch["im_shape"][0, 1] / batch["scale_factor"][0, 1])

    def look(picture):
        with paddle.no_grad():
            views = Views([[{**batch, "image": picture}]])
            return Augmented(model, flip=True)(next(iter(views)))["bbox"].numpy()

    def ordered(rows):
        return rows[np.lexsort(np.round(rows[:, [2, 3, 1]], 2).T)]

    head.clip = False
    straight, turned = look(batch["image"]), look(mirrored(batch))
    assert len(straight) > 0
    turned[:, [2, 4]] = width - turned[:, [4, 2]]
    np.testing.assert_allclose(ordered(turned), ordered(straight), atol=1e-2)


def test_flip_and_sizes_are_said_and_kept(tiny, trained, tmp_path, capfd):
    result, _ = figures(tiny, trained, tmp_path, "--tta-flip", "--tta-sizes", "64,96",
                        "--padding-effect")  # fmt: skip
    told = capfd.readouterr().out
    assert "test-time augmentation" in told and "padded to 128:" in told
    assert result["tta"] == {"sizes": [64, 96], "flip": True}
    assert 0 <= result["reference_ap"] <= 1


def test_what_cannot_be_augmented_is_refused(tiny, trained, capfd):
    with pytest.raises(SystemExit) as stop:
        run("eval", ["--predictions", "a.json", "--annotations", "b.json", "--tta-flip"])
    assert stop.value.code == 2
    with pytest.raises(SystemExit):
        run("eval", ["-c", str(tiny), "--weights", str(trained), "--tta-sizes", "8"])
    assert "--tta-sizes" in capfd.readouterr().err
