"""Fixtures for all tests."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real images and reference figures kept beside the checkout; skips where they are absent."""
    path = Path(os.environ.get("FCOS_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"shared data not found at {path} (set FCOS_SHARED)")
    return path
