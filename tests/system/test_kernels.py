"""Mixed precision that a device has no kernels for is refused before a run starts."""

import pytest

from fcos_recipe import compat
from fcos_recipe.config import load_config
from fcos_recipe.errors import UserError
from fcos_recipe.system import kernels
from tests.conftest import ROOT
from tests.operators.registries import stored

DCN = "fcos_dcn_r50_fpn_1x_coco"
HEADLINE = "fcos_r50_fpn_1x_coco"


@pytest.fixture
def check(monkeypatch):
    """Calls `kernels.check` for a device with the kernels that are stored of it."""
    monkeypatch.setattr(kernels, "amp_supported", lambda kind, _dtype: kind != "cpu")

    def call(name, kind, *overrides, ranks=1, train=True):
        registry = stored("iluvatar_gpu" if kind == "iluvatar_gpu" else "gpu-2.5.2")
        backend = kind if kind == "iluvatar_gpu" else "GPU"
        found = {o: {(backend, dtype) for dtype in dtypes} for o, dtypes in registry.items()}
        monkeypatch.setattr(compat, "registered_kernels", lambda: found)
        config = load_config(ROOT / f"configs/fcos/{name}.yml", ["amp=true", *overrides])
        kernels.check(config.data, kind, ranks, train)

    return call


@pytest.mark.parametrize("kind", ["gpu", "iluvatar_gpu"])
def test_refused_with_the_keys_and_a_remedy(check, kind):
    with pytest.raises(
        UserError,
        match="amp_level: O2 with amp_dtype: bfloat16: the optimizer "
        f"Momentum .* merged_momentum in bfloat16, .* on {kind}; set amp_level: O1",
    ):
        check(HEADLINE, kind, "amp_level=O2", "amp_dtype=bfloat16")
    with pytest.raises(UserError, match="deformable_conv in float16.* set amp_level: O1$"):
        check(DCN, kind, "amp_level=O2")
    with pytest.raises(UserError, match="deformable_conv in float16"):
        check(DCN, kind, "amp_level=O2", train=False)


def test_plugin_has_no_sync_bn_in_bfloat16(check):
    options = ["norm_type=sync_bn", "amp_dtype=bfloat16"]
    check(HEADLINE, "gpu", *options, ranks=8)
    check(HEADLINE, "iluvatar_gpu", *options)
    with pytest.raises(UserError, match="sync_bn needs .* set norm_type: bn"):
        check(HEADLINE, "iluvatar_gpu", *options, ranks=8)


@pytest.mark.parametrize("kind", ["cpu", "gpu", "iluvatar_gpu"])
@pytest.mark.parametrize(
    "name, options",
    [(HEADLINE, []), (HEADLINE, ["amp_level=O2"]), (HEADLINE, ["amp_dtype=bfloat16"]),
     (DCN, []), (DCN, ["amp_level=O2", "custom_black_list=[deformable_conv]"])],
)  # fmt: skip
def test_what_cards_can_do_is_let_through(check, kind, name, options):
    check(name, kind, *options)
