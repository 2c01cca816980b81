"""Every option, once: its type, default, unit and description. Everything else about options is derived from here.

Options are set by a TOML file, by `FFSTREAM_SECTION__KEY` in the environment and by `--set section.key=value`. If
several of these set the same option, the last in this order applies.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from ffstream.config.learning import (
    Checkpoints,
    Cluster,
    Learning,
    PipelineSection,
    PrequentialSection,
    amounts,
    as_written,
)
from ffstream.config.section import Section
from ffstream.config.serving import Http, Limits, Listen, Security, Shutdown
from ffstream.errors import ConfigError
from ffstream.ff.presets import PRESET, PRESETS, recipe
from ffstream.ff.recipe import LayerOptions, Recipe
from ffstream.ff.recipe_checks import without_effect
from ffstream.util import option_sources
from ffstream.util.option_errors import Option, OptionError, UnknownOption, options_of, show, wrong

__all__ = [
    "Config",
    "Http",
    "Learning",
    "Limits",
    "Listen",
    "PrequentialSection",
    "Security",
    "amounts",
    "describe",
    "load",
    "names",
    "options",
    "validate",
]

log = logging.getLogger(__name__)


def _fill_preset(given: Any) -> Any:
    """A complete recipe from the name of a preset and the options that change it."""
    return recipe(given) if isinstance(given, Mapping) else given


class Config(Section):
    """All options."""

    state: Path = Field(Path("ffstream-state"), description="state folder: journal and checkpoints")
    listen: Listen = Listen()
    limits: Limits = Limits()
    security: Security = Security()
    http: Http = Http()
    network: Annotated[Recipe, BeforeValidator(_fill_preset)] = recipe("stream")
    learning: Learning = Learning()
    pipeline: PipelineSection = PipelineSection()
    cluster: Cluster = Cluster()
    checkpoint: Checkpoints = Checkpoints()
    prequential: PrequentialSection = PrequentialSection()
    shutdown: Shutdown = Shutdown()

    @model_validator(mode="before")
    @classmethod
    def _knows_every_name(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            for name, value in _leaves(given):
                _check_name(name, value)
        return given

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Checks options that depend on options of another section."""
        recipe, learning, stages = self.network, self.learning, self.pipeline.stages
        if learning.sleep_when_quiet_s and not recipe.wake:
            raise OptionError(
                wrong(
                    "learning.sleep_when_quiet_s",
                    learning.sleep_when_quiet_s,
                    "the network has no phases; set network.wake to a number of microbatches",
                ),
                hint='use network.preset = "wake-sleep"',
            )
        if recipe.wake and not recipe.sleep and not learning.sleep_when_quiet_s:
            reason = "without network.sleep or learning.sleep_when_quiet_s, negative rows are never learned"
            hint = "set network.sleep to a number of microbatches"
            raise OptionError(wrong("network.wake", recipe.wake, reason), hint=hint)
        if learning.partial == "wait" and self.limits.backlog_max_samples < recipe.batch_size:
            raise ValueError(
                wrong(
                    "limits.backlog_max_samples",
                    self.limits.backlog_max_samples,
                    f'with learning.partial = "wait" it must be at least network.batch_size = {recipe.batch_size}',
                )
            )
        self._check_cluster()
        if stages and (sum(stages) != len(recipe.layers) or min(stages) < 1):
            raise ValueError(
                wrong(
                    "pipeline.stages",
                    stages,
                    f"expected numbers from 1 whose sum is the number of layers, {len(recipe.layers)}",
                )
            )
        if recipe.recurrence.is_recurrent and len(recipe.stage_sizes(stages)) > 1:
            reason = f'with recurrence = "{recipe.recurrence.kind}" all layers must be in one stage'
            hint = f"set it to [{len(recipe.layers)}], or leave it out"
            raise OptionError(wrong("pipeline.stages", stages, reason), hint=hint)
        return self

    def _check_cluster(self) -> None:
        cluster, count = self.cluster, len(self.network.stage_sizes(self.pipeline.stages))
        for name in ("cpus", "gpus", "resources", "placement"):
            value = getattr(cluster, name)
            if value and len(value) != count:
                reason = f"expected an entry for each of the {count} stages"
                raise ValueError(wrong(f"cluster.{name}", as_written(value), reason))
        if (
            self.pipeline.engine == "ray"
            and self.pipeline.device == "cuda"
            and not (cluster.gpus and all(cluster.gpus))
        ):
            reason = 'with pipeline.device = "cuda" each stage needs a GPU, or a share of one: Ray hides all others'
            hint = f"set cluster.gpus, for example to {[0.5] * count}"
            raise OptionError(wrong("cluster.gpus", as_written(cluster.gpus), reason), hint=hint)
        if cluster.replicas > 1 and self.pipeline.engine != "ray":
            reason = 'replicas need pipeline.engine = "ray"'
            raise OptionError(wrong("cluster.replicas", cluster.replicas, reason), hint="set it, or use one replica")
        if self.pipeline.engine == "ray" and self.pipeline.overflow == "skip":
            reason = "between processes a full queue always blocks"
            raise OptionError(
                wrong("pipeline.overflow", "skip", reason),
                hint='use pipeline.engine = "threads", or overflow = "block"',
            )


@cache
def options() -> dict[str, Option]:
    """All options by their dotted names, and all sections by their names."""
    found: dict[str, Option] = {}
    for name, option in options_of(Config).items():
        found[name] = option
        if isinstance(option.kind, type) and issubclass(option.kind, BaseModel):
            found |= {f"{name}.{key}": each for key, each in options_of(option.kind).items()}
    for_all_layers = {f"network.{key}": each for key, each in options_of(LayerOptions).items()}
    return found | for_all_layers | {"network.preset": PRESET, "network.widths": Option(tuple[int, ...])}


def names() -> list[str]:
    """The dotted names of all options, without sections."""
    sections = {name.partition(".")[0] for name in options() if "." in name}
    return [name for name in options() if name not in sections]


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The options that are set, by their dotted names."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value and name not in names():
            yield from ((f"{name}.{key}", each) for key, each in value.items())
        else:
            yield name, value


def _check_name(name: str, value: Any) -> None:
    """Raises OptionError for what pydantic would accept, or would report in words meant for programmers."""
    option = options().get(name)
    if option is None:
        raise UnknownOption(name, names())
    is_wrong_preset = name == "network.preset" and not (isinstance(value, str) and value in PRESETS)
    if is_wrong_preset or (option.is_number and isinstance(value, bool)):  # True is 1 in Python
        raise OptionError(wrong(name, value, option.expected()), hint=option.closest(value))


def load(
    file: Path | None = None,
    settings: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Config:
    """The options from all sources. Raises ConfigError, which names the option."""
    given = option_sources.Given(names())
    if file is not None:
        given.read(file)
    given.take_environment(os.environ if environment is None else environment)
    given.take_settings(settings)
    return validate(given)


def validate(given: option_sources.Given) -> Config:
    """The options that are set, and the defaults of all others. Raises ConfigError, which names the option.

    Logs what is set and has no effect.
    """
    try:
        config = Config.model_validate(given.tree)
    except ValidationError as error:
        # Its URLs are for programmers.
        raise _explain(error.errors(include_url=False)[0], given) from error
    for name, reason in without_effect(given.tree.get("network", {}), config.network).items():
        log.warning("option has no effect option=network.%s reason=%s", name, reason)
    return config


def _explain(first: Mapping[str, Any], given: option_sources.Given) -> ConfigError:
    """The error for a person: the option, its value, what is expected, and where it was set."""
    cause = first.get("ctx", {}).get("error")  # an error that one of our validators raised
    name = ".".join(str(part) for part in first["loc"][:2])
    hint = getattr(cause, "hint", "")
    if name in names():
        option, value = options()[name], given.value(name)
        message = wrong(name, value, str(cause) if cause else option.expected())
        hint = hint or option.closest(value)
    elif cause is not None:
        message = f"{name}.{cause}" if name else str(cause)
    else:
        message = wrong(name, first["input"], "expected a section of options, not a value")
    hints = (hint, given.set_by(message.partition(" ")[0].rstrip(":")), "ffstream config show lists all options")
    return ConfigError(message, hint="; ".join(filter(None, hints)).replace("?;", "?"))


def describe(config: Config) -> str:
    """All options as a TOML file, each with its description."""
    lines: list[str] = [f"# {Config.model_fields['state'].description}", f"state = {show(config.state)}"]
    for name in Config.model_fields:
        section = getattr(config, name)
        if isinstance(section, Recipe):
            lines += [
                "",
                f"[{name}]",
                "# `preset = NAME` sets everything that is not set here: " + ", ".join(PRESETS),
            ]
            lines += ["# options of layers may be set here as well, for all layers"]
            lines += _described(section)
            for layer in section.layers:
                lines += ["", f"[[{name}.layers]]", *_described(layer)]
        elif isinstance(section, Section):
            lines += ["", f"[{name}]", *_described(section)]
    return "\n".join(lines) + "\n"


def _described(section: BaseModel) -> Iterator[str]:
    """A line for each option, except for layers, which are tables of their own."""
    for key, value in section.model_dump(exclude={"layers"}).items():
        yield f"{key} = {show(value)}  # {type(section).model_fields[key].description}"
