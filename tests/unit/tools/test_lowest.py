"""The lowest versions of what pyproject.toml names, which tools/lowest installs."""

import tomllib

import pytest

from tests.unit.tools.scripts import load
from tools.benchmarks.report import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("requirement", [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]])
def test_every_dependency_names_its_lowest_version_and_no_highest(requirement: str) -> None:
    name, bound, version = requirement.partition(";")[0].partition(">=")  # without a condition on the interpreter
    assert name.replace("-", "").isalnum()
    assert bound
    assert version.replace(".", "").isdigit(), "tools/lowest installs exactly this version"


def test_packages_that_tests_need_keep_their_conditions_on_the_interpreter() -> None:
    found = load("lowest").for_tests(PROJECT["optional-dependencies"]["dev"])
    assert "ray>=2.40; python_version < '3.14'" in found
    assert not any(each.startswith(("mypy", "ruff")) for each in found)
