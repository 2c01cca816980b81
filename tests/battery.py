"""The tests that every layer must pass, whatever its parts are: `check_layer(recipe)`, or one of its checks.

    gradients      equal those of autograd on the formulas, in float64; those of the readout, too
    state          a network that was saved and loaded continues bit for bit
    prediction     the goodness of a prediction is that of the training pass
    precision      bfloat16 products are close to float32 products
    pipeline       stages on threads equal the serial reference bit for bit
    device         the results of a GPU are close to those of the CPU

A part from outside the package is tested with a recipe that names it.
"""

from pathlib import Path

import torch
from torch import Tensor

from ffstream.ff.activities import Activities
from ffstream.ff.head import Head
from ffstream.ff.layer import Layer
from ffstream.ff.member import FAST_WEIGHTS, below
from ffstream.ff.network import Network
from ffstream.ff.objective import Phase
from ffstream.ff.parameters import Parameters
from ffstream.ff.placement import Placement
from ffstream.ff.recipe import LayerOptions, Recipe
from ffstream.ff.recurrent import steps_of
from tests.unit.ff import formulas
from tests.unit.pipeline.run import QUIET, Run, Serial, Store, Stream, assert_same

_ROWS = 7


def check_layer(recipe: Recipe, folder: Path) -> None:
    """Runs every check; the last one only if there is a CUDA device."""
    check_gradients(recipe)
    check_state(recipe)
    check_prediction(recipe)
    check_precision(recipe)
    check_pipeline(recipe, folder)
    if torch.cuda.is_available():
        check_device(recipe, torch.device("cuda"))


def phases_of(recipe: Recipe) -> list[Phase]:
    """The phases for which the objectives of the recipe are defined."""
    return ["interleaved", "wake", "sleep"] if recipe.has_phases else ["interleaved"]


def check_gradients(recipe: Recipe, tolerance: float = 2e-5) -> None:
    """Compares the gradients of every layer in every phase with those of autograd."""
    largest = 0.0
    for phase in phases_of(recipe):
        network = formulas.random_network(recipe)
        images_BI = formulas.random_images(_ROWS, recipe.inputs)
        labels_B = formulas.labels_for(recipe, _ROWS)
        given = network.input.forward(images_BI, labels_B, 11, phase)
        if recipe.recurrence.is_recurrent:
            largest = max(largest, _check_recurrent_gradients(recipe, network, given, tolerance))
            continue
        shapes = list(recipe.input_shapes())
        for layer, shape in zip(network.layers, shapes, strict=True):
            given, found = _check_layer_gradients(recipe, layer, given, shape, tolerance)
            largest = max(largest, found)
        if network.readout is not None and phase != "sleep":
            _check_readout_gradients(recipe, network.readout, given, tolerance)
    assert largest > 1e-6, "all gradients are zero"


def _check_layer_gradients(
    recipe: Recipe, layer: Layer, given: Activities, shape: tuple[int, ...], tolerance: float
) -> tuple[Activities, float]:
    """Returns the activities for the next layer, and the size of the largest gradient.

    It may be 0 for one layer: a group whose units are all inactive has no gradient.
    """
    options = formulas.on_hardware(layer)
    own = formulas.leaves(layer.parameters.views)
    memory = {name: value.double() for name, value in below(FAST_WEIGHTS, layer.state_dict()).items()}
    before = given._replace(h_NF=given.h_NF.clone())
    before = formulas.with_recall(options.fast_weights, before, memory, recipe.labels)
    passed_on = layer.forward(given)
    wrong_B = None
    if given.positives is None and options.objective.needs_wrong_labels:
        wrong_B = _wrong_labels(recipe, options, layer, passed_on, before, shape)
    loss = formulas.layer_loss(options, own, before, wrong_B, shape, recipe.labels)
    layer.update()
    largest = _compare_gradients(f"layer {layer.index}", loss, own, layer.parameters, tolerance)
    figures = layer.figures()
    assert abs(figures.loss - loss.item()) <= 1e-4 * max(1.0, abs(loss.item()))
    return passed_on, largest


def _check_recurrent_gradients(recipe: Recipe, network: Network, given: Activities, tolerance: float) -> float:
    """Returns the size of the largest gradient."""
    own = [formulas.leaves(layer.parameters.views) for layer in network.layers]
    settled = formulas.settled_goodness(recipe, own, given.h_NF)
    (together,) = steps_of(network.layers)
    together.forward(given)
    wrong = [layer.wrong_labels() for layer in network.layers]
    together.update()
    largest = 0.0
    for layer, of_layer, G_BL, wrong_B in zip(network.layers, own, settled, wrong, strict=True):
        options = recipe.layers[layer.index]
        is_hardest = options.negatives.kind == "hardest"
        other_B = formulas.hardest(G_BL.detach(), given.labels_N) if is_hardest else wrong_B
        loss = formulas.label_loss(options.objective, G_BL, given.labels_N, other_B, given.phase)
        found = _compare_gradients(f"layer {layer.index}", loss, of_layer, layer.parameters, tolerance)
        largest = max(largest, found)
        assert abs(layer.figures().loss - loss.item()) <= 1e-4 * max(1.0, abs(loss.item()))
    return largest


def _check_readout_gradients(recipe: Recipe, readout: Head, given: Activities, tolerance: float) -> None:
    own = formulas.leaves(readout.parameters.views)
    loss = formulas.readout_loss(recipe.readout, own, given)
    readout.learn(given)
    assert _compare_gradients("readout", loss, own, readout.parameters, tolerance) > 1e-6
    assert abs(readout.loss() - loss.item()) <= 1e-4 * max(1.0, abs(loss.item()))


def _compare_gradients(
    member: str, loss: Tensor, own: dict[str, Tensor], parameters: Parameters, tolerance: float
) -> float:
    """Returns the size of the largest gradient."""
    wanted = torch.autograd.grad(loss, list(own.values()), allow_unused=True, materialize_grads=True)
    largest = max(float(each.abs().max()) for each in wanted)
    for name, want in zip(own, wanted, strict=True):
        error = float((parameters.gradients[name] - want).abs().max())
        assert error <= tolerance * max(largest, 1e-6), f"{member} {name}: off by {error:.3g} of {largest:.3g}"
    return largest


def _wrong_labels(
    recipe: Recipe,
    options: LayerOptions,
    layer: Layer,
    passed_on: Activities,
    before: Activities,
    shape: tuple[int, ...],
) -> Tensor:
    """The wrong labels of a batch: those in the activities of the first layer, or those that the part chooses.

    Whether the part chooses well is tested by its own tests.
    """
    if passed_on.positives is not None and before.phase != "wake":
        return passed_on.labels_N[-len(before.labels_N) :]
    own = formulas.leaves(layer.parameters.views)
    if options.negatives.kind == "hardest":
        return formulas.hardest(
            formulas.by_label(options, own, before.h_NF, shape, recipe.labels).detach(), before.labels_N
        )
    return layer.wrong_labels()


def check_state(recipe: Recipe) -> None:
    """A network continues from a saved state bit for bit, and a saved state does not change while it learns on."""
    phases = phases_of(recipe)

    def learn(network: Network, first: int, last: int) -> None:
        for step in range(first, last + 1):
            formulas.learn(network, step, step, phases[step % len(phases)])

    whole = Network(recipe)
    learn(whole, 1, 6)
    saved = whole.state_dict()
    kept = {name: value.clone() for name, value in saved.items()}
    learn(whole, 7, 12)
    assert_equal(saved, kept)
    resumed = Network(recipe)
    learn(resumed, 3, 5)  # what it learned before must not matter
    resumed.load_state_dict(saved)
    assert_equal(resumed.state_dict(), saved)
    learn(resumed, 7, 12)
    assert_equal(resumed.state_dict(), whole.state_dict())
    assert_equal(resumed.weights(), whole.weights())


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Raises AssertionError unless all tensors are bit-equal."""
    assert got.keys() == want.keys()
    different = [name for name in want if not torch.equal(got[name], want[name])]
    assert not different, f"different: {different}"


def check_prediction(recipe: Recipe) -> None:
    """For a sample and its label, the classifier computes the same goodness of each layer as the training pass, and
    the same logits of the readout as the formulas do from the activities of that pass.

    With fast weights this is so for the first row of a microbatch: later ones read what the rows before them wrote.
    """
    network = formulas.random_network(recipe.change(ema_samples=0.0))
    formulas.learn(network, 1, 3)
    classifier = network.classifier()
    images_BI = formulas.random_images(_ROWS, recipe.inputs, seed=9)
    labels_B = formulas.random_labels(_ROWS, recipe.labels, seed=9)
    rows = _ROWS if all(layer.fast_weights.kind == "none" for layer in recipe.layers) else 1
    predicted = classifier.goodness(images_BI[:rows])
    for layer in network.layers:
        layer.figures()
    given = Activities(classifier.preprocess(images_BI[:rows]), labels_B[:rows], None, 4, "interleaved")
    if recipe.image_negatives:
        rows_NI = torch.cat((given.h_NF, given.h_NF.roll(1, 0)))
        given = given._replace(h_NF=rows_NI, labels_N=labels_B.repeat(2), positives=_ROWS)
    steps = steps_of(network.layers)
    for layer, G_BL in zip(network.layers, predicted, strict=True):
        if layer.index < len(steps):
            given = steps[layer.index].forward(given)
            steps[layer.index].update()
        trained = layer.figures().goodness_positive
        expected = float(G_BL.expand(-1, recipe.labels).gather(1, labels_B[:rows, None]).mean())
        assert abs(trained - expected) <= 1e-5 * max(1.0, abs(expected)), f"layer {layer.index}"
    if network.readout is not None:
        want_BL = formulas.readout_logits(formulas.leaves(network.readout.weights()), given.carried)
        assert torch.allclose(classifier.logits(images_BI[:rows]).double(), want_BL, rtol=1e-4, atol=1e-4)
    if any(getattr(layer.hardware, "noise", 0) for layer in recipe.layers):
        images_BI = images_BI[:1].repeat(_ROWS, 1)  # noise differs from row to row
        alone = classifier.predict(images_BI[:1]).goodness_BL
        assert torch.allclose(alone, classifier.predict(images_BI).goodness_BL[:1], rtol=1e-4, atol=1e-4)
        return
    alone = torch.cat([classifier.predict(image[None]).goodness_BL for image in images_BI])
    assert torch.allclose(alone, classifier.predict(images_BI).goodness_BL, rtol=1e-4, atol=1e-4)


def check_precision(recipe: Recipe, tolerance: float = 0.05) -> None:
    """Gradients with bfloat16 products are close to gradients with float32 products."""
    exact = formulas.random_network(recipe, scale=0.1)
    rounded = Network(recipe, Placement(product_dtype=torch.bfloat16))
    rounded.load_state_dict(exact.state_dict())
    for network in (exact, rounded):
        formulas.learn(network, 1, 1)
    for one, other in zip(exact.layers, rounded.layers, strict=True):
        want, got = one.parameters.gradient, other.parameters.gradient
        assert got.dtype == torch.float32
        assert float(want.norm()) > 0
        assert float((got - want).norm() / want.norm()) < tolerance, f"layer {one.index}"


def check_pipeline(recipe: Recipe, folder: Path, steps: int = 12) -> None:
    """With one stage for each layer, and with all layers in one stage, the pipeline equals the serial reference."""
    folder.mkdir(exist_ok=True)
    stream = Stream.random(steps * recipe.batch_size, inputs=recipe.inputs, labels=recipe.labels)
    if recipe.learns_unlabelled:
        stream = stream.without_some_labels()
    serial = Serial(recipe, stream)
    for name, stages in (("each", ()), ("one", (len(recipe.layers),))):
        store = Store(folder, name=name, inputs=recipe.inputs, labels=recipe.labels)
        store.write(stream.images, stream.labels)
        run = Run(store, recipe, QUIET, stages=stages).start()
        try:
            run.wait_applied(len(stream.labels))
            last = run.stop()
        finally:
            run.end()
            store.journal.close()
        assert_same(last.tensors, serial.states[last.step])


def check_device(recipe: Recipe, device: torch.device, tolerance: float = 1e-3) -> None:
    """After a few steps, the state on that device is close to that on the CPU.

    With SGD, because Adam makes whole steps of rounding errors where a gradient is nothing else.
    """
    plain = {"optimizer": "sgd", "learning_rate": 0.01}
    recipe = recipe.change(**plain)
    if recipe.readout.kind != "none":
        recipe = recipe.change(readout={"kind": recipe.readout.kind, **plain})
    states = []
    for each in (torch.device("cpu"), device):
        network = Network(recipe, Placement(each))
        formulas.learn(network, 1, 5)
        states.append(network.state_dict())
    for name, want in states[0].items():
        if name.endswith(".parameters"):
            got = states[1][name].cpu()
            assert float((got - want).norm() / want.norm()) < tolerance, name
