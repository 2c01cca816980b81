"""`ffstream predict`: asks a daemon for the labels of images in files."""

import click
import numpy as np

from ffstream.cli import options
from ffstream.cli.images import Named, Wanted, in_queries, read_images
from ffstream.cli.output import print_json
from ffstream.client import CurveKeys, Predictor
from ffstream.client.predictor import Labels
from ffstream.wire.messages import DEFAULT_PREDICT

_SCORES_SHOWN = 10


@click.command(
    epilog=options.example("ffstream predict digit.png --resize --invert", "ffstream predict - --json < images.npy")
)
@click.argument("places", metavar="IMAGE...", type=click.Path(allow_dash=True), nargs=-1, required=True)
@click.option("--at", "endpoint", metavar="URL", default=DEFAULT_PREDICT, show_default=True, help="Predict socket.")
@click.option("--resize", is_flag=True, help="Scale pictures to the height and width that the network takes.")
@click.option("--invert", is_flag=True, help="Swap dark and light: for dark strokes on white, as on paper.")
@options.timeout(10.0)
@options.as_json
@options.keys
def predict(
    places: tuple[str, ...],
    endpoint: str,
    resize: bool,
    invert: bool,
    timeout_s: float,
    as_json: bool,
    keys: CurveKeys | None,
) -> None:
    """Ask a daemon for the labels of images and their scores.

    IMAGE is a PNG or JPEG picture, or an array of one or several images: IDX, npy, npz (the array `images`, or the
    only one). `-` is stdin.

    A picture becomes grey if the network has one channel, and coloured if it has three; transparent places count as
    white. A picture of another size is an error without --resize, which does not keep its proportions. Arrays are
    taken as they are: uint8 from 0 to 255, or floats from 0 to 1.

    A score is the goodness of a label, or the logit of a network with a readout. It is not a probability.
    """
    with Predictor(endpoint, keys=keys) as predictor:
        welcome = predictor.hello(timeout_s)
        wanted = Wanted(welcome, resize, invert)
        images = [each for place in places for each in read_images(place, wanted)]
        answers = []
        for part in in_queries(images, welcome):
            answer = predictor.predict(np.stack([each.image.reshape(-1) for each in part]), timeout_s)
            answers += [(named, answer, row) for row, named in enumerate(part)]
    if as_json:
        print_json({"predictions": [_record(*each) for each in answers]})
        return
    for named, answer, row in answers:
        click.echo(_line(named, answer, row))


def _record(named: Named, answer: Labels, row: int) -> dict[str, object]:
    scores = [float(str(each)) for each in answer.goodness[row]]  # the shortest numbers that are the same float32
    label = int(answer.labels[row])
    return {"image": named.name, "label": label, "scores": scores, "version": answer.version, "seq": answer.seq}


def _line(named: Named, answer: Labels, row: int) -> str:
    scores = answer.goodness[row]
    best = sorted(range(len(scores)), key=lambda label: -float(scores[label]))[:_SCORES_SHOWN]
    shown = ", ".join(f"{label} {scores[label]:.4g}" for label in best)
    more = ", …" if len(best) < len(scores) else ""
    return f"{named.name}: {int(answer.labels[row])} (scores: {shown}{more})"
