"""Layers learning in parallel: a feeder, stages on threads of their own, bounded queues, barriers."""
