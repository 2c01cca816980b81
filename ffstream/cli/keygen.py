"""`ffstream keygen`: a key pair for the daemon or for one of its clients."""

from pathlib import Path

import click

from ffstream.security.keys import create


@click.command()
@click.argument("name")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("ffstream-keys"),
    show_default=True,
    help="Folder for the two files; made if it is not there.",
)
def keygen(name: str, out: Path) -> None:
    """Make a key pair: NAME.key is public, NAME.key_secret is for its owner alone.

    One for the daemon, and one for each client. Nothing is overwritten.
    """
    public, secret = create(out, name)
    click.echo(
        f"public  {public}\n"
        f"secret  {secret}\n"
        "for a daemon: --set security.server_key=SECRET; its clients get PUBLIC: --server-key PUBLIC\n"
        "for a client: --key SECRET; copy PUBLIC into the folders that security.learn_clients, predict_clients\n"
        "and control_clients name, for what this client may do: at once, without a restart; to shut it out, delete it"
    )
