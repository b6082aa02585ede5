"""Path of this project's checkout."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  #: the folder with configs/, datasets/ and tools/
