"""Read files that somebody else may have written.

Only regular files are read, only up to a size, and only into the expected types. Whatever is wrong
with a file becomes a `UserError` of one line that names it.
"""

import json
import os
import stat
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

from fcos_recipe.errors import UserError

MOST_TEXT = 1 << 28  #: bytes of the largest text or JSON file that is read
MOST_IMAGE = 1 << 30  #: bytes of the largest image file; 2^27 pixels of a raw format are smaller
_DIGITS = 20  # of the largest integer in JSON; 64 bits need at most 20 with the sign


def given_path(text: str | os.PathLike, base: Path | None = None) -> Path:
    """Convert a path that a user or a file states; `~` and `~NAME` become home directories.

    Args:
        text: the path.
        base: folder that a relative path refers to; default: the working directory.

    Raises:
        UserError: no file can have this path, or NAME is not a user.
    """
    try:
        path = (base or Path()) / Path(text).expanduser()
        path.stat()
    except RuntimeError:
        raise UserError(f"{_shown(text)}: no such user; write the home directory out") from None
    except ValueError:  # a null character, or a surrogate that is not part of a file name
        raise UserError(f"{_shown(text)!r}: not a path: it contains a null character or bytes "
                        "that are not text") from None  # fmt: skip
    except OSError as error:
        if error.errno in (36, 40):  # too long, too many links
            raise UserError(f"{_shown(text)}: {error.strerror}") from None
    return path


def _shown(path: str | os.PathLike) -> str:
    """A path for a message, cut if it is as long as no file's."""
    text = os.fspath(path)
    return text if len(text) < 200 else f"{text[:200]}..."


def open_regular(path: str | os.PathLike, most: int | None = None) -> int:
    """Open a regular file for reading without ever waiting for it.

    Args:
        path: the file; it may be a link.
        most: largest accepted size, bytes; None: any.

    Returns:
        a file descriptor, which the caller closes.

    Raises:
        UserError: missing, not a regular file, too large, or not readable.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except ValueError:
        raise UserError(f"{_shown(path)!r}: not a path") from None
    except OSError as error:
        raise UserError(f"{_shown(path)}: {error.strerror}") from None
    found = os.fstat(file)
    wrong = None
    if not stat.S_ISREG(found.st_mode):
        wrong = "not a file"
    elif most is not None and found.st_size > most:
        wrong = f"larger than {most >> 20} MiB, the most that is read"
    if wrong:
        os.close(file)
        raise UserError(f"{path}: {wrong}")
    return file


def read_bytes(path: str | os.PathLike, most: int = MOST_TEXT) -> bytes:
    """Read a whole file.

    Raises:
        UserError: see `open_regular`; or the file states no size but has content, as the files in
            /proc, some of which never end.
    """
    with open(open_regular(path, most), "rb", buffering=0) as file:
        try:
            parts, left = [], os.fstat(file.fileno()).st_size
            while left and (part := file.read(left)):
                parts.append(part)
                left -= len(part)
            if not parts and file.read(1):
                raise UserError(f"{path}: not a file of known size; copy its content to one")
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_text(path: str | os.PathLike, most: int = MOST_TEXT) -> str:
    """Read a UTF-8 file; a byte order mark is left out.

    Raises:
        UserError: see `open_regular`, or the content is not UTF-8.
    """
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def read_json(path: str | os.PathLike, kind: Any = dict, most: int = MOST_TEXT) -> Any:
    """Read a JSON file, see `decode_json`.

    Raises:
        UserError: see `read_text`; or not JSON, or not of this type.
    """
    try:
        return decode_json(read_text(path, most), kind)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def decode_json(text: str | bytes, kind: Any = dict) -> Any:
    """Decode JSON into a type as msgspec describes it; NaN and Infinity are accepted.

    Raises:
        ValueError: not JSON, nested too deeply, an integer of more than 64 bits, or of another
            type; the message says what and where.
    """
    import msgspec  # not needed by the downloads, which run without packages

    try:
        return msgspec.convert(parse_json(text), kind, strict=True)
    except msgspec.ValidationError as error:
        raise ValueError(f"not the expected content: {error}") from None
    except RecursionError:
        raise ValueError("not usable JSON: nested too deeply") from None


def parse_json(text: str | bytes) -> Any:
    """Parse JSON without packages; the caller checks the types.

    Raises:
        ValueError: see `decode_json`, or a key occurs twice in an object.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        return json.loads(text, parse_int=_integer, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("not usable JSON: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not complete JSON ({error})") from None
    except ValueError as error:
        raise ValueError(f"not usable JSON: {error}") from None


def json_lines(data: bytes) -> Iterator[tuple[bytes, dict | None]]:
    """Each line that is not empty and its JSON object; None for a line that is not complete JSON
    or not an object."""
    for line in data.split(b"\n"):
        if line.strip():
            try:
                yield line, decode_json(line)
            except ValueError:
                yield line, None


def read_yaml(path: str | os.PathLike, most: int = 1 << 20) -> Any:
    """Read a YAML file of plain values. Aliases, by which a small file stands for a huge one, are
    refused, and so are keys that occur twice, of which YAML readers keep the last.

    Raises:
        UserError: see `read_text`, or it is not such YAML.
    """
    import yaml  # not needed by the downloads, which run without packages

    class Plain(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("an alias (*NAME); write its value out")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            known = set()
            for key, _ in node.value:
                name = self.construct_object(key, deep=True)
                if not isinstance(name, Hashable):
                    continue  # it is refused below
                if name in known:
                    line = key.start_mark.line + 1
                    raise UserError(f"{path}:{line}: the key {name} occurs twice; remove one")
                known.add(name)
            return super().construct_mapping(node, deep)

    text = read_text(path, most)
    try:
        return yaml.load(text, Plain)
    except UserError:
        raise
    except Exception as error:  # values that do not fit their tags raise many classes
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def read_records(path: str | os.PathLike) -> list[dict]:
    """Read a file with one JSON object per line.

    Raises:
        UserError: see `read_bytes`, or a line is not a JSON object.
    """
    found = [record for _, record in json_lines(read_bytes(path))]
    if None in found:
        raise UserError(f"{path}: record {found.index(None) + 1} is not a JSON object")
    return [record for record in found if record is not None]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        name = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {name!r} occurs twice in an object; remove one")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)
