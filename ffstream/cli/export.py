"""`ffstream export`: writes the weights of a checkpoint to a file."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ffstream.checkpoint import manifest
from ffstream.cli import options, states
from ffstream.cli.checkpoint import folder_in, missing
from ffstream.cli.output import print_json
from ffstream.errors import CheckpointDamaged

if TYPE_CHECKING:
    from ffstream.checkpoint.weights import Weights


@click.command(epilog=options.example("ffstream export --state STATE --out weights.safetensors"))
@options.config_file
@options.state_folder
@click.option("--seq", type=click.IntRange(min=0), help="The checkpoint to export. Default: the newest.")
@click.option(
    "--out",
    "path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    required=True,
    help="The safetensors file to write.",
)
@click.option("--force", is_flag=True, help="Overwrite FILE if it exists.")
@options.as_json
def export(file: Path | None, state: Path | None, seq: int | None, path: Path, force: bool, as_json: bool) -> None:
    """Write the weights of a checkpoint to a safetensors file.

    FILE holds the EMA weights, which predict, and all options of the network. That is enough to rebuild the network,
    with `ffstream serve --from FILE` or in Python with `ffstream.checkpoint.weights.load`. The file appears when it
    is complete. A daemon may run on the state folder: `ffstream checkpoint` saves its current weights first.

    With a decoder that stores samples, FILE also holds activities and grey values of up to 256 of them.
    """
    folder = folder_in(states.folder(file, state))
    weights = _read(folder, seq)
    from ffstream.checkpoint.weights import export as write

    size = write(weights, path, overwrite=force)
    recipe = weights.recipe
    if as_json:
        result = {"path": str(path), "seq": weights.seq, "bytes": size}
        print_json(result | {"image_shape": list(recipe.image_shape), "labels": recipe.labels})
    else:
        click.echo(f"checkpoint {weights.seq:,} exported to {path}: {states.size(size)}")


def _read(folder: Path, seq: int | None) -> "Weights":
    """The weights of that checkpoint, or of the newest."""
    from ffstream.checkpoint.weights import of_checkpoint, of_newest

    try:
        return of_newest(folder) if seq is None else of_checkpoint(manifest.folder_of(folder, seq))
    except CheckpointDamaged as damage:
        seqs = manifest.seqs(folder)
        if seq is not None and seq not in seqs:
            raise missing(folder, seq) from damage
        older = seqs[:-1] if seq is None else [each for each in seqs if each < seq]
        damage.hint = f"export an older checkpoint with --seq {older[-1]}" if older else "there is no older one"
        raise
