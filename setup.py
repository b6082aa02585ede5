"""Package metadata. Dependencies are in requirements.txt; scripts/install.sh installs them.

There is no install_requires on purpose: `pip install -e .` must never replace the Paddle, NumPy
or OpenCV that a vendor's image brings, and paddledet 2.6.0 itself only installs with --no-deps.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent

setup(
    name="fcos-recipe",
    version=re.search(r'__version__ = "(.+?)"', (HERE / "fcos_recipe/__init__.py").read_text())[1],
    description="Training recipe for FCOS-R50-FPN on PaddlePaddle: Iluvatar, NVIDIA or CPU",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["fcos_recipe", "fcos_recipe.*"]),
    package_data={
        "fcos_recipe": ["py.typed"],
        "fcos_recipe.report": ["style.css"],
        "fcos_recipe.datasets.look": ["page.html", "page.js"],
    },
    entry_points={"console_scripts": ["fcos = fcos_recipe.cli:main"]},
)
