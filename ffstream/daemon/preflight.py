"""Finds what would prevent a daemon from starting: for `ffstream config check`, and for the start itself.

It creates, changes and locks nothing, and imports neither torch nor numba unless `pipeline.device` is "cuda" or
`pipeline.engine` is "ray". Conditions that may pass by themselves, such as a port in use, are left to the start.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path

from ffstream.checkpoint import manifest as manifests
from ffstream.checkpoint import recipes
from ffstream.config import Config, Listen
from ffstream.errors import CheckpointDamaged, ConfigError, Unavailable
from ffstream.journal import inspection, schema
from ffstream.security.keys import check_folder
from ffstream.server.credentials import check_exposure, load_credentials
from ffstream.util import endpoints
from ffstream.util.option_errors import about, wrong


def check(config: Config) -> None:
    """Raises ConfigError, which names the option or its file."""
    check_exposure(config.listen, config.security)
    load_credentials(config.security)
    _check_ipc_folders(config.listen)
    _check_state_folder(config.state)
    _check_stored(config)
    if config.pipeline.engine == "ray":
        from ffstream.pipeline.cluster.engine import check_installed  # imports torch

        check_installed()  # the device is that of the nodes
    elif config.pipeline.device == "cuda":
        from ffstream.pipeline.device import choose_device  # imports torch

        choose_device("cuda")


def _check_ipc_folders(listen: Listen) -> None:
    for name in ("learn", "predict", "control"):
        path = endpoints.parse(getattr(listen, name)).path
        if path and not path.startswith(("@", "*")) and not Path(path).absolute().parent.is_dir():
            raise ConfigError(
                wrong(f"listen.{name}", getattr(listen, name), f"there is no folder {Path(path).absolute().parent}"),
                hint="make the folder, or name a socket in another one",
            )


def _check_state_folder(state: Path) -> None:
    """It is a folder, or can be created as one."""
    there = next(each for each in (state.absolute(), *state.absolute().parents) if os.path.lexists(each))
    try:
        mode = there.stat().st_mode
    except OSError:  # a dangling link, or a parent that may not be entered: the start says more
        return
    if not stat.S_ISDIR(mode):
        raise ConfigError(
            wrong("state", state, f"{there} is not a folder"), hint="--state names a folder to write to"
        )
    if there == state.absolute():
        with about("state"):
            check_folder(state, group_may_write=True)


def _check_stored(config: Config) -> None:
    """The state belongs to this network. Damaged or unreadable files are left to recovery."""
    recipe = config.network
    journal, checkpoints = config.state / schema.JOURNAL, config.state / manifests.CHECKPOINTS
    if (config.state / "backup.json").exists():
        from ffstream.daemon import backup  # the import takes a while, and is rarely needed

        backup.check_format(config.state)
    schema.expect_network(journal, inspection.peek(journal), recipe.inputs, recipe.labels)
    with suppress(CheckpointDamaged, Unavailable):
        for newest in manifests.seqs(checkpoints)[-1:]:
            stored = manifests.read(checkpoints, newest)["recipe"]
            recipes.expect_same(stored, recipe.model_dump(mode="json"), f"checkpoint {newest}")
