"""Several processes over Gloo, started by Paddle's own launcher."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, run_tool

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def gradients(tiny, folder: Path, ranks: int, *batches: int, env=None) -> dict[str, np.ndarray]:
    """Gradients of some batches; `env`: more environment, such as that of stand-in cards."""
    out = folder / f"{ranks}_{'_'.join(map(str, batches))}.npz"
    launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks),
                "--log_dir", str(folder / "log")]  # fmt: skip
    script = str(Path(__file__).with_name("gradients_of_ranks.py"))
    command = [sys.executable, *(launcher if ranks > 1 else []), script, str(tiny), str(out)]
    done = subprocess.run(
        [*command, *map(str, batches)], capture_output=True, text=True, timeout=300, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    with np.load(out) as file:
        return dict(file)


def assert_same(got: dict, wanted: dict) -> None:
    assert set(got) == set(wanted) and len(got) > 50
    for name, value in wanted.items():
        scale = max(np.abs(value).max(), 1e-7)
        np.testing.assert_allclose(got[name] / scale, value / scale, atol=1e-5, err_msg=name)


def test_two_ranks_and_two_accumulated_batches_give_the_mean_gradient(tiny, tmp_path):
    one, two = gradients(tiny, tmp_path, 1, 0), gradients(tiny, tmp_path, 1, 1)
    mean = {name: (one[name] + two[name]) / 2 for name in one}
    assert max(np.abs(one[n] - two[n]).max() for n in one) > 1e-4  # else nothing is shown
    assert_same(gradients(tiny, tmp_path, 2, 0, 1), mean)
    assert_same(gradients(tiny, tmp_path, 1, 0, 1), mean)
    # both at once: 2 ranks x 2 accumulated batches against one process with four
    assert_same(gradients(tiny, tmp_path, 2, 0, 1, 2, 3), gradients(tiny, tmp_path, 1, 0, 1, 2, 3))


@pytest.mark.matrix
def test_two_ranks_train_and_every_number_of_ranks_evaluates_alike(tiny, tmp_path):
    done = run_tool("train", "-c", tiny, "--eval", "--output", tmp_path / "run", cwd=tmp_path,
                    launch=2)  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r["kind"] == "train"] == list(range(1, 7))  # 24 / (2 x 4)
    # the same annotations under ids of every kind, in the order of the old ones
    folder = tiny.parent / "annotations"
    content = json.loads((folder / "instances_val.json").read_text())
    for section, field, new in (
        ("images", "image_id", [-(2**63), -5, 0, 3.0, "7", 2**53 + 1, 17 * 10**17 + 1, 2**63 - 1]),
        ("categories", "category_id", [-3, 0, "0005", 2**63 - 1]),
    ):
        ids = dict(zip(sorted(entry["id"] for entry in content[section]), new, strict=True))
        for entry in content[section]:
            entry["id"] = ids[entry["id"]]
        for annotation in content["annotations"]:
            annotation[field] = ids[annotation[field]]
    (folder / "ids.json").write_text(json.dumps(content))
    stats = []
    for ranks in (1, 2, 3, 8):
        out = tmp_path / f"{ranks}.json"
        done = run_tool("eval", "-c", tiny, "--weights", tmp_path / "run" / "model_final",
                        "--json", out, "-o", "EvalDataset.anno_path=annotations/ids.json",
                        cwd=tmp_path, launch=ranks * (ranks > 1),
                        env={"OMP_NUM_THREADS": "1"})  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        stats.append(json.loads(out.read_text())["stats"])
    assert stats == [stats[0]] * 4
    # what the training run reported is what its saved weights give, BatchNorm's statistics included
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["stats"] == stats[0]
    assert json.loads(out.read_text())["images"] == 8
