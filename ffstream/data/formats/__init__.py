"""The formats in which data sets lie in files: each module here defines one, as a subclass of `Collection`.

To add a format, add a module: it is imported, and so registered, by being in this folder.
"""

import pkgutil
from importlib import import_module

from ffstream.data.collection import Collection

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

FORMATS: tuple[type[Collection], ...] = tuple(Collection.formats)
