"""Convert weights to safetensors, which cannot contain code, or to PaddleDetection's files."""

import os
import shutil
from pathlib import Path

from fcos_recipe.checkpoint import storage, weights
from fcos_recipe.errors import UserError
from fcos_recipe.files.atomic import draft

ENDINGS = {".safetensors": "safetensors", ".pdparams": "paddledet"}
# of `weights.description`, copied to the target
NOTES = ("config", "class_names", "category_ids", "AP")


def convert(source: str, target: Path, form: str | None = None) -> list[Path]:
    """Write weights in another format.

    Args:
        source: as for `weights.resolve`. A whole checkpoint is converted to PaddleDetection's files
            with its optimizer (.pdopt) and, with EMA, the weights being trained (.pdema).
        target: the new file; it must not exist.
        form: safetensors or paddledet; default: by the target's ending. The ending is added if it
            is missing.

    Returns:
        the files written.

    Raises:
        UserError: the source is damaged or cannot be read, the format is unknown, or the target
            exists.
    """
    form = form or ENDINGS.get(target.suffix)
    if form is None:
        raise UserError(f"{target}: no known ending ({', '.join(ENDINGS)}); give --format")
    ending = next(end for end, name in ENDINGS.items() if name == form)
    stem = target.with_suffix("") if target.suffix == ending else target
    path = weights.resolve(source)
    files = {ending: path}
    if form == "paddledet" and (path.parent / storage.STATE).is_file():
        verified = storage.read_state(path.parent)["files"]
        names = [f"model{end}" for end in (".pdparams", ".pdopt", ".pdema")]
        files = {Path(name).suffix: path.parent / name for name in names if name in verified}
    new = {end: stem.with_name(stem.name + end) for end in files}
    for file in new.values():
        if os.path.lexists(file):
            raise UserError(f"{file}: exists; choose another name or remove it")
    known = weights.description(path)
    notes = {key: known[key] for key in NOTES if key in known}
    state = weights.read(path)
    try:
        if form == "safetensors":
            with draft(new[ending]) as part:
                weights.write_safetensors(part, state, notes)
        else:
            for end, file in files.items():
                if end != ending:
                    with draft(new[end]) as part:
                        shutil.copyfile(file, part)
            tensors = {name: weights.tensor(value) for name, value in state.items()}
            storage.save_weights(new[ending], tensors, notes)
    except OSError as error:
        raise UserError(f"{target}: {storage.reason(error)}") from None
    return list(new.values())
