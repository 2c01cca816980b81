"""Loads the programs in `tools/` that have no suffix."""

import importlib.util
from importlib.machinery import SourceFileLoader
from types import ModuleType

from tools.benchmarks.report import ROOT


def load(name: str) -> ModuleType:
    """The module of `tools/NAME`."""
    loader = SourceFileLoader(f"{name}_tool", str(ROOT / "tools" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
