"""A run directory whose weights find something everywhere, and its Predictor."""

import pytest

from fcos_recipe.datasets.drawn_shapes import make_shapes


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "set"
    make_shapes(folder, train=2, val=6)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory, root, data):
    """A run directory whose weights find something everywhere: the logits' bias is raised."""
    from fcos_recipe import compat

    compat.before_paddle()
    import paddle

    from fcos_recipe.checkpoint.storage import save_weights
    from fcos_recipe.config import load_config

    folder = tmp_path_factory.mktemp("run")
    path = folder / "config.yml"
    lines = [f"_BASE_: ['{root}/configs/fcos/fcos_r18_fpn_demo.yml']"]
    for section in ("TrainDataset", "EvalDataset", "TestDataset"):
        lines.append(f"{section}: {{dataset_dir: {data}}}")
    path.write_text("\n".join(lines) + "\n")
    config = load_config(path)
    cfg = compat.workspace(config.stock_data())
    from ppdet.core.workspace import create

    paddle.seed(1)
    model = create(cfg["architecture"])
    head = model.fcos_head
    head.fcos_head_cls.weight.set_value(head.fcos_head_cls.weight * 20)
    head.fcos_head_cls.bias.set_value(paddle.full([4], -1.0))
    head.fcos_head_reg.bias.set_value(paddle.full([4], 2.0))
    names = ["Kreis", "Quadrat", "Dreieck", "Stern"]
    save_weights(folder / "model.pdparams", model.state_dict(), {"class_names": names})
    return folder / "model.pdparams", names


@pytest.fixture(scope="session")
def predictor(trained):
    from fcos_recipe.predict import Predictor

    return Predictor(trained[0], device="cpu")
