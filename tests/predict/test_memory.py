"""Memory does not grow with the number of predictions, neither from Python nor from the shell."""

import gc
import os

import cv2
import numpy as np
import pytest

from fcos_recipe.cli import run
from fcos_recipe.predict import Detections, Predictor

IMAGES, EARLY, BATCH = 2000, 200, 8
BOUND = 12 << 20  # bytes; what one image or its rows take, 1,800 times, is 100 MB and more


@pytest.fixture(scope="module")
def small(trained, tmp_path_factory):
    """The run's config with 32-pixel images, which takes milliseconds."""
    path = tmp_path_factory.mktemp("small") / "small.yml"
    path.write_text(f"""\
_BASE_: ['{trained[0].parent}/config.yml']
TestReader:
  sample_transforms:
  - Decode: {{}}
  - Resize: {{target_size: [32, 32], keep_ratio: true, interp: 1}}
  - NormalizeImage: {{mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], is_scale: true}}
  - Permute: {{}}
""")
    return path


@pytest.fixture
def measured(monkeypatch):
    """Images predicted on -> resident bytes and living results, after 200 and 2,000 images."""
    found, normal, done = {}, Predictor.run, [0]

    def counting(self, batch):
        result = normal(self, batch)
        done[0] += len(batch["image"])
        if done[0] in (EARLY, IMAGES):
            gc.collect()
            with open("/proc/self/statm") as file:
                resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            results = sum(type(x) is Detections for x in gc.get_objects())
            found[done[0]] = resident, results
        return result

    monkeypatch.setattr(Predictor, "run", counting)
    return found


def from_python(weights, config, folder):
    rng = np.random.default_rng(0)
    shapes = ((150 + k % 17, 200 + k % 23, 3) for k in range(IMAGES))
    images = (rng.integers(0, 255, shape, np.uint8) for shape in shapes)
    predictor = Predictor(weights, config, device="cpu")
    assert sum(len(x) > 0 for x in predictor.stream(images, BATCH)) == IMAGES


def from_the_shell(weights, config, folder):
    noise = np.random.default_rng(0).integers(0, 255, (150, 200, 3), np.uint8)
    cv2.imwrite(str(folder / "0000.jpg"), noise)
    for k in range(1, IMAGES):
        os.link(folder / "0000.jpg", folder / f"{k:04d}.jpg")
    assert run("infer", ["-c", str(config), "--weights", str(weights), "--input", str(folder),
                         "--output", str(folder / "out"), "--batch-size", str(BATCH),
                         "--csv"]) == 0  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("way", [from_python, from_the_shell])
def test_2000_predictions_take_the_memory_of_200(way, trained, small, measured, tmp_path):
    way(trained[0], small, tmp_path)
    (early, few), (late, many) = measured[EARLY], measured[IMAGES]
    assert many <= few + BATCH, f"{many} results are kept"
    assert late - early < BOUND, f"{(late - early) / 1e6:.1f} MB more after {IMAGES} images"
