"""`ffstream keygen`: a key pair for the daemon or for one of its clients."""

from pathlib import Path

import click

from ffstream.cli import options
from ffstream.security.keys import create


@click.command(epilog=options.example("ffstream keygen daemon --out keys"))
@click.argument("name")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("ffstream-keys"),
    show_default=True,
    help="Folder for the two files; created if it does not exist.",
)
def keygen(name: str, out: Path) -> None:
    """Write a new key pair. NAME.key is public; NAME.key_secret must stay with its owner.

    The daemon and each client need their own pair. Existing files are never overwritten.
    """
    public, secret = create(out, name)
    click.echo(
        f"public  {public}\n"
        f"secret  {secret}\n"
        "for a daemon: --set security.server_key=SECRET; give PUBLIC to its clients: --server-key PUBLIC\n"
        "for a client: --key SECRET; copy PUBLIC into the folders security.learn_clients, predict_clients and\n"
        "control_clients, depending on what the client may do, or into follow_clients for a prediction replica,\n"
        "which may only copy weights. Delete it there to revoke access. Both take effect without a restart."
    )
