"""Find the file of a config by path or name."""

import contextlib
import os
from pathlib import Path

from fcos_recipe.config import eval_sets
from fcos_recipe.errors import UserError
from fcos_recipe.files.reading import given_path, read_json
from fcos_recipe.places import CHECKOUT, CONFIGS, FILES, RESULTS, display


def project_configs() -> list[Path]:
    """List all configs of the project, including those that serve only as bases."""
    return sorted(path for path in CONFIGS.rglob("*.yml") if path != RESULTS)


def find_config(given: str | os.PathLike) -> Path:
    """Find the file of a config.

    Args:
        given: a path; or, where no such file exists, a config of the project: its name with or
            without .yml (`fcos_r18_fpn_demo`), or its path from configs/ on.

    Returns:
        the file; `given` as a path if nothing was found.

    Raises:
        UserError: not a path, or a name that the working directory and the project both have.
    """
    path = given_path(given)
    if path.is_file() or path.is_absolute():
        return path
    if path.parts[:1] == ("configs",):
        return FILES / path if (FILES / path).is_file() else path
    if len(path.parts) != 1:
        return path
    name = path.name if path.suffix in (".yml", ".yaml") else f"{path.name}.yml"
    ours = next((p for p in project_configs() if p.name == name), None)
    if ours and Path(name).exists() and Path(name).resolve() != ours:
        raise UserError(f"{path}: both {name} here and a config of the recipe; write -c {name} "
                        f"for yours, -c {display(ours)} for the recipe's")  # fmt: skip
    return ours or path


def recorded_name(path: Path) -> str | None:
    """Return the config name that a run recorded beside its config.yml; None if there is none."""
    for record in ("facts.json", "best_model.json", "model_final.json"):
        if path.name == "config.yml" and (path.parent / record).is_file():
            with contextlib.suppress(UserError):  # a damaged record: the next one may serve
                name = read_json(path.parent / record).get("config")
                name = name.get("name") if isinstance(name, dict) else name
                if isinstance(name, str) and name not in ("", "..") and Path(name).name == name:
                    return name
    return None


def find_data(tree) -> list[str]:
    """Replace each relative `dataset_dir` by the folder found; return lines that report this.

    Folders are searched below the working directory, then below the project; PaddleDetection's
    `dataset/x` also as `datasets/x`. A folder that does not exist stays as written.
    """
    found: dict[str, str] = {}
    sections = (*tree.value.values(), *eval_sets.named(tree).values())
    for section in sections:
        node = section.value.get("dataset_dir") if isinstance(section.value, dict) else None
        written = node.value if node else None
        if node is None or not isinstance(written, str) or not written:
            continue
        if (path := given_path(written)).is_absolute():
            node.value = str(path)  # without ~
            continue
        names = [written]
        if Path(written).parts[0] == "dataset":
            names.append(str(Path("datasets", *Path(written).parts[1:])))
        places = [
            (n, p)
            for n in names
            for p in (Path(n), *([FILES / n] if CHECKOUT else []))
            if p.is_dir()
        ]
        if places and places[0][1] != Path(written):
            name, place = places[0]
            node.value = display(place)
            if name != written:
                line = f"{node.where}: {written} not found, using {node.value}"
                found.setdefault(written, line)  # reported once, not for each section
    return list(found.values())
