"""`ffstream backup`: copies a state folder, so that a daemon can be started on the copy."""

import os
from dataclasses import asdict
from pathlib import Path

import click

from ffstream.cli import options, states
from ffstream.cli.output import print_json, progress_bar

_NICENESS = 10


@click.command(epilog=options.example("ffstream backup /var/backups/ffstream-tuesday --state STATE"))
@click.argument("target", metavar="DIR", type=click.Path(path_type=Path))
@options.config_file
@options.state_folder
@options.as_json
def backup(target: Path, file: Path | None, state: Path | None, as_json: bool) -> None:
    """Back up a state folder to the new folder DIR. A daemon may be running on it.

    DIR contains every sample that was acked before the command began, and the newest checkpoint, all verified. It
    appears when it is complete. To restore it, start a daemon on a copy: `cp -a DIR STATE; ffstream serve --state
    STATE`.

    Run it on the daemon's machine, as the daemon's user or as root: it reads the files and does not use the daemon. A
    plain copy of the files is not a backup: without journal.sqlite-wal the samples acked last are missing.
    """
    from ffstream.daemon.backup import make

    folder = states.folder(file, state)
    os.nice(_NICENESS)
    with progress_bar(quiet=as_json) as bar:
        task = bar.add_task("copying pages of the journal", total=None)
        made = make(folder, target, lambda done, total: bar.update(task, completed=done, total=total))
    if as_json:
        print_json(asdict(made))
        return
    learned = f"checkpoint {made.checkpoint_seq:,}" if made.checkpoint_seq else "no checkpoint"
    after = made.last_seq - made.checkpoint_seq
    click.echo(
        f"backup of {folder} in {target}: {learned} and {after:,} samples after it,"
        f" {states.size(made.bytes)} in {made.seconds:.1f} s"
    )
