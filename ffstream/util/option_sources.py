"""The sources of options: a TOML file, the environment, `--set`. A later source overrides an earlier one."""

import codecs
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ffstream.errors import ConfigError
from ffstream.util.option_errors import closest

_ENVIRONMENT = "FFSTREAM_"
_LIST = "ffstream config show lists all options"
_EXAMPLE = "ffstream config show prints a file to start from"
_OTHER_UNICODE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


def option_of(variable: str) -> str:
    """The name of the option that an environment variable sets; empty if it sets none."""
    if not variable.startswith(_ENVIRONMENT) or "__" not in variable:
        return ""
    return variable.removeprefix(_ENVIRONMENT).lower().replace("__", ".")


class Given:
    """The options that are set, as a tree, and by which source. `known` are the dotted names of all options."""

    def __init__(self, known: Iterable[str]) -> None:
        self.tree: dict[str, Any] = {}
        self._known = list(known)
        self._set_by: dict[str, str] = {}

    def read(self, file: Path) -> None:
        """Reads a TOML file: UTF-8, with or without a byte order mark. Raises ConfigError."""
        try:
            content = file.read_bytes()
        except OSError as error:
            raise _unusable(file, error.strerror) from error
        if content.startswith(_OTHER_UNICODE) or b"\0" in content[:4]:
            raise _unusable(file, "the file is UTF-16 or UTF-32, but TOML must be UTF-8", "save it as UTF-8")
        try:
            self.tree = tomllib.loads(content.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            raise _unusable(file, f"line {line} is not UTF-8", "save it as UTF-8") from error
        except ValueError as error:
            raise _unusable(file, str(error)) from error
        for section, value in self.tree.items():
            for name in [f"{section}.{key}" for key in value] if isinstance(value, dict) else [section]:
                self._set_by[name] = str(file)

    def take_environment(self, environment: Mapping[str, str]) -> None:
        """Reads the variables `FFSTREAM_SECTION__KEY`. Raises ConfigError."""
        for variable, text in environment.items():
            if name := option_of(variable):
                self._put(name, text, variable)
                self._set_by[name] = variable

    def take_settings(self, settings: Iterable[str]) -> None:
        """Reads settings of the form `section.key=value`. Raises ConfigError."""
        for setting in settings:
            name, separator, text = (part.strip() for part in setting.partition("="))
            if not separator or not name:
                raise self._invalid_setting(setting, name)
            self._put(name, text, f"--set {setting}")
            self._set_by.pop(name, None)

    def value(self, name: str) -> Any:
        """The value that an option is set to; None if it is not set."""
        section, _, key = name.rpartition(".")
        return (self.tree.get(section, {}) if section else self.tree).get(key)

    def set_by(self, name: str) -> str:
        """A clause that names the file or variable that sets an option; empty if neither does."""
        return f"{name} is set by {self._set_by[name]}" if name in self._set_by else ""

    def _put(self, name: str, text: str, source: str) -> None:
        *sections, key = name.split(".")
        tree = self.tree
        for section in sections:
            tree = tree.setdefault(section, {})
            if not isinstance(tree, dict):
                raise ConfigError(f"{source}: {section} is an option, not a section", hint=_LIST)
        try:
            tree[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            tree[key] = text  # text without quotes is a string

    def _invalid_setting(self, setting: str, name: str) -> ConfigError:
        if name in self._known:
            return ConfigError(f"--set {setting}: the value is missing", hint=f"write --set {name}=VALUE")
        similar = closest(name, self._known) if name else []
        meant = f"; did you mean {' or '.join(similar)}?" if similar else ""
        return ConfigError(
            f"--set {setting}: expected SECTION.KEY=VALUE", hint=f"write --set section.key=value{meant}"
        )


def _unusable(file: Path, reason: str | None, hint: str = _EXAMPLE) -> ConfigError:
    return ConfigError(f"{file}: {reason}", hint=hint)
