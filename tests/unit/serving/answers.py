"""Classifiers and snapshots that can be told apart by what they answer."""

import torch

from ffstream.ff.classifier import Classifier
from ffstream.ff.network import Network
from ffstream.ff.presets import recipe as make_recipe
from ffstream.ff.recipe import Recipe
from ffstream.metrics import Metrics
from ffstream.serving.snapshot import Snapshot, Snapshots

INPUTS, LABELS = 16, 10
RECIPE = make_recipe("fast", image_shape=[4, 4], widths=[4], labels=LABELS)
DEADLINE_S = 20.0


def always(label: int, recipe: Recipe = RECIPE) -> Classifier:
    """A classifier that finds every image to be of that label."""
    weights = {name: torch.zeros_like(value) for name, value in Network(recipe).weights().items()}
    weights["layers.0.label_vectors"][label] = 1
    return Classifier(recipe, weights)


def snapshot(version: int) -> Snapshot:
    """A snapshot that answers with the last digit of its version, and has learned 100 samples a version."""
    return Snapshot(always(version % LABELS), version, 100 * version)


def begun_with(first: Snapshot) -> Snapshots:
    """Snapshots of which that is the current one."""
    snapshots = Snapshots(Metrics())
    snapshots.publish(first)
    return snapshots
