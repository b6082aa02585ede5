"""Print a line per importable package: name, version, digest of its code files.

Two lists of one machine are equal if no package was replaced, overwritten or hidden.
"""

import hashlib
import importlib.metadata

seen = {"pip", "setuptools"}  # every virtual environment has its own
for found in importlib.metadata.distributions():
    name = found.name.lower()
    if name in seen:
        continue
    seen.add(name)
    digest = hashlib.sha256()
    for path in sorted(found.files or []):
        if path.suffix == ".py" or ".so" in path.suffixes:
            file = path.locate()
            facts = file.stat()
            digest.update(f"{file} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    print(name, found.version, digest.hexdigest())
