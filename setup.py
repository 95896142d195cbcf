"""Map the top-level folders into the ``fewstep`` namespace; all other metadata is in pyproject.toml."""

from setuptools import find_packages, setup

FOLDERS = ("core", "modalities", "streaming", "apps", "configs")
PACKAGES = find_packages(include=[pattern for folder in FOLDERS for pattern in (folder, f"{folder}.*")])

setup(
    package_dir={"fewstep": "fewstep", **{f"fewstep.{folder}": folder for folder in FOLDERS}},
    packages=["fewstep", *(f"fewstep.{package}" for package in PACKAGES)],
)
