"""OpenVINO's side of `infer`: it reads our ONNX export, as docs/deploy.md shows.

It needs openvino, and of our dependencies only NumPy.
"""

from pathlib import Path

from fcos_recipe.lab.benchmark.prepared_images import batch_of, timed
from fcos_recipe.lab.benchmark.side_process import Line


def main(line: Line) -> None:
    """Time detection on prepared images, calculated in float32."""
    import openvino

    file = Path(line.setup["export"]) / "model.onnx"
    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # without it, bfloat16 where the processor has it
    engine = openvino.Core().compile_model(file, "CPU", exact)
    names = [value.any_name for value in engine.inputs]
    batches: dict[int, dict] = {}

    def work(batch: int) -> dict:
        if batch not in batches:
            found = batch_of(line.setup["images"], batch)
            batches[batch] = {name: found[name] for name in names}
        return timed(lambda: int(engine(batches[batch])[1].sum()))

    line.serve(work)


if __name__ == "__main__":
    main(Line())
