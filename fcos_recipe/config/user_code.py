"""Read the Python files that a config's key `plugins` names, without executing them."""

import ast
import hashlib
import os
from pathlib import Path

from fcos_recipe.errors import UserError, UserErrors
from fcos_recipe.files.reading import given_path, read_text
from fcos_recipe.plugins import Plugin, allowed, refusal

MOST_BYTES = 1 << 20  # of a Python file


def named(tree) -> list[Plugin]:
    """Read the files of the key `plugins`, and make their paths absolute.

    A path is relative to the file that names it, on the command line to the working directory.

    Raises:
        UserErrors: a file is not permitted or cannot be read; nothing of it is executed here.
    """
    node, errors, found = tree.value.get("plugins"), [], []
    for entry in node.value if node and isinstance(node.value, list) else []:
        if not isinstance(entry.value, str):
            continue  # `check` reports it
        file = entry.where.rpartition(":")[0]
        try:
            path = os.path.abspath(given_path(entry.value, Path(file).parent if file else None))
            if not allowed(path):
                raise UserError(refusal(path))
            text = read_text(Path(path), MOST_BYTES)
            ast.parse(text, path)
        except UserError as error:
            errors.append(f"{entry.where}: plugins: {error}")
            continue
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            line = getattr(error, "lineno", 1)
            errors.append(f"{path}:{line}: SyntaxError: {getattr(error, 'msg', error)}")
            continue
        entry.value = path
        found.append(Plugin(path, hashlib.sha256(text.encode()).hexdigest(), text))
    if errors:
        raise UserErrors(errors)
    return found
