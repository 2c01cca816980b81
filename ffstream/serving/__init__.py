"""Predictions while learning: snapshots of the weights, and how well they do."""
