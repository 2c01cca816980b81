"""The lowest versions of what pyproject.toml names, which tools/lowest installs."""

import tomllib

import pytest

from tools.benchmarks.report import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("requirement", [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]])
def test_every_dependency_names_its_lowest_version_and_no_highest(requirement: str) -> None:
    name, bound, version = requirement.partition(";")[0].partition(">=")  # without a condition on the interpreter
    assert name.replace("-", "").isalnum()
    assert bound
    assert version.replace(".", "").isdigit(), "tools/lowest installs exactly this version"
