"""Every metric once, in Prometheus' conventions: base units, `_total` on counters, labels from closed lists.

A gauge has no sample in a scrape until its value is known. Zero would be a statement: an error ratio of 0 before the
first prediction, or a checkpoint at sequence number 0 after a restart, is false and sets off alerts.
"""

import math
import platform
from collections.abc import Callable

import torch
from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    Info,
    Metric,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from ffstream import __version__

# Otherwise there is a series of its own for each counter and histogram that says when it was made:
# process_start_time_seconds says it once.
disable_created_metrics()  # type: ignore[no-untyped-call]

_STEP_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)  # a microbatch: milliseconds
_COMMIT_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 2.5)  # a disk's fsync
# A group commit and the checks of its messages: milliseconds, 20 to 100 ms for a producer that sends as fast as it
# can, and seconds where the disk is busy.
_ACK_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5, 5)
# 0.5 to 1 ms, and up to 15 ms when cores are scarce.
_ANSWER_SECONDS = (0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.5)
_WRITE_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # a checkpoint: megabytes
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)


class Reading:
    """The value of a gauge, for one choice of its labels; unknown at first. Any thread may set it."""

    def __init__(self) -> None:
        self.read: Callable[[], float | None] = lambda: None

    def set(self, value: float) -> None:
        """The value from now on. NaN: unknown."""
        self.read = lambda: value

    def set_function(self, read: Callable[[], float | None]) -> None:
        """`read` is called at each scrape. None or NaN: unknown."""
        self.read = read


class Gauge:
    """A gauge without a sample in a scrape while its value is unknown."""

    _family: type[GaugeMetricFamily | CounterMetricFamily] = GaugeMetricFamily

    def __init__(self, name: str, help: str, labels: tuple[str, ...], registry: CollectorRegistry) -> None:
        self._name = name
        self._help = help
        self._label_names = labels
        self._readings: dict[tuple[str, ...], Reading] = {}
        registry.register(self)

    def labels(self, *values: str) -> Reading:
        """The reading for these values of the labels."""
        if len(values) != len(self._label_names):
            raise ValueError(f"{self._name} has the labels {self._label_names}, not {values}")
        return self._readings.setdefault(values, Reading())

    def set(self, value: float) -> None:
        """The value of a gauge without labels from now on. NaN: unknown."""
        self.labels().set(value)

    def set_function(self, read: Callable[[], float | None]) -> None:
        """`read` is called at each scrape of a gauge without labels. None or NaN: unknown."""
        self.labels().set_function(read)

    def clear(self) -> None:
        """No value is known from now on."""
        self._readings = {}

    def describe(self) -> list[Metric]:
        """For the registry: its name and type, also while no value is known."""
        return [self._family(self._name, self._help, labels=self._label_names)]

    def collect(self) -> list[Metric]:
        """For the registry: the values that are known."""
        family = self._family(self._name, self._help, labels=self._label_names)
        for labels, reading in self._readings.copy().items():
            value = reading.read()
            if value is not None and not math.isnan(value):
                family.add_metric(labels, value)
        return [family]


class ReadCounter(Gauge):
    """A counter that something else keeps, and that is read at each scrape."""

    _family = CounterMetricFamily


class ProcessFigures(Collector):
    """The library's `process_*`, as they were at the last `refresh`.

    Reading them takes a dozen system calls. While all cores learn, each may wait for the interpreter's lock, so the
    daemon does it once a second and not during a scrape.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._collector = ProcessCollector(registry=None)
        self.refresh()
        registry.register(self)

    def refresh(self) -> None:
        """Reads them. Any thread may call it."""
        self._figures = list(self._collector.collect())

    def collect(self) -> list[Metric]:
        """For the registry."""
        return self._figures


class Metrics:
    """The metrics of one daemon, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.process = ProcessFigures(self.registry)
        GCCollector(registry=self.registry)
        self._define_ingest()
        self._define_learning()
        self._define_cluster()
        self._define_serving()
        self._define_replication()
        self._define_resources()
        info = Info("ffstream_build", "Versions this daemon runs with.", registry=self.registry)
        info.info({"version": __version__, "torch": str(torch.__version__), "python": platform.python_version()})

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"ffstream_{name}", help, labels, registry=self.registry)

    def _read_counter(self, name: str, help: str, *labels: str) -> ReadCounter:
        return ReadCounter(f"ffstream_{name}", help, labels, self.registry)

    def _gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return Gauge(f"ffstream_{name}", help, labels, self.registry)

    def _histogram(self, name: str, help: str, *labels: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"ffstream_{name}", help, labels, registry=self.registry, buckets=buckets)

    def _define_ingest(self) -> None:
        self.samples_received = self._counter("samples_received_total", "Samples in well-formed messages.")
        self.samples_acked = self._counter("samples_acked_total", "Samples committed to the journal and acked.")
        self.samples_unlabelled = self._counter(
            "samples_unlabelled_total", "Samples without a label, of samples_acked_total."
        )
        self.samples_duplicate = self._counter("samples_duplicate_total", "Samples acked again, not stored again.")
        self.messages_rejected = self._counter(
            "messages_rejected_total", "Messages answered with an error.", "reason"
        )
        self.connections_refused = self._counter(
            "connections_refused_total", "Rejected connections and HTTP requests.", "socket", "reason"
        )
        self.connections_ended = self._counter(
            "connections_ended_total", "Connections that have ended, whichever side ended them.", "socket"
        )
        self.replies_dropped = self._counter(
            "replies_dropped_total", "Replies to peers that are gone or do not read."
        )
        self.output_dropped = self._read_counter(
            "output_dropped_lines_total", "Lines for stdout or stderr that were dropped because no process read them."
        )
        self.clients = self._gauge("clients", "Producers in the journal; limits.clients_max is the maximum.")
        self.credit = self._gauge("credit_messages", "Messages that a client may have unanswered.")
        self.refusing = self._gauge("refusing_samples", "1 while no samples are accepted, for this reason.", "reason")
        self.ack_seconds = self._histogram(
            "ack_seconds", "From receipt of a message with samples to its ack.", buckets=_ACK_SECONDS
        )
        self.journal_commit = self._histogram(
            "journal_commit_seconds", "Time of a group commit, fsync included.", buckets=_COMMIT_SECONDS
        )
        self.journal_commit_messages = self._histogram(
            "journal_commit_messages", "Messages in a group commit.", buckets=_SIZES
        )
        self.journal_backlog = self._gauge("journal_backlog_samples", "Samples on disk that are not learned yet.")
        self.backlog_seconds = self._gauge(
            "journal_backlog_seconds", "Time until these are learned, at the rate of the last seconds."
        )
        self.journal_bytes = self._gauge("journal_used_bytes", "Bytes of the journal in use.")
        self.journal_log_bytes = self._gauge(
            "journal_log_bytes", "Size of the journal's write-ahead log, which is not part of journal_used_bytes."
        )
        self.warning = self._gauge(
            "warning", "1 while a warning is active; `ffstream status` says what to do.", "reason"
        )
        self.journal_seq = self._gauge("journal_last_seq", "Sequence number of the last sample on disk.")

    def _define_learning(self) -> None:
        self.samples_learned = self._counter("samples_learned_total", "Samples that every layer has learned.")
        self.applied_seq = self._gauge("applied_seq", "Sequence number up to which every layer has learned.")
        self.goodness = self._gauge(
            "layer_goodness",
            "Mean goodness of positive and negative rows between the last two barriers.",
            "layer",
            "rows",
        )
        self.loss = self._gauge("layer_loss", "Mean loss between the last two barriers.", "layer")
        self.layer_separation = self._gauge(
            "layer_separation_ratio",
            "Share of positive rows with more goodness than the negative row beside them; 0.5 by chance.",
            "layer",
        )
        self.layer_margin = self._gauge(
            "layer_margin",
            "Mean goodness of the right label minus that of the strongest wrong one, in a sampled microbatch.",
            "layer",
        )
        self.layer_dead_units = self._gauge(
            "layer_dead_units_ratio", "Share of units that were 0 in the last sampled microbatches.", "layer"
        )
        self.layer_weight_norm = self._gauge("layer_weight_norm", "Euclidean norm of the newest weights.", "layer")
        self.layer_contradictions = self._gauge(
            "layer_contradictions_ratio",
            "Share of sampled negative rows that equal a positive one in image and label.",
            "layer",
        )
        self.layer_decoder_error = self._gauge(
            "layer_decoder_error_ratio",
            "Share of the variance of a layer's input that its decoder does not restore, in the last microbatch.",
            "layer",
        )
        self.layer_restarts = self._counter(
            "layer_restarts_total",
            "Times that the layer has started over because the concept or its hardware had changed.",
            "layer",
        )
        self.live_error = self._gauge(
            "live_error_ratio",
            "Error of the newest weights before they learn, over the last 10,000 samples; compare"
            " prequential_error_ratio.",
        )
        self.running_goodness = self._gauge(
            "layer_running_goodness",
            "Running mean of the goodness of positive and negative rows, where the objective keeps one.",
            "layer",
            "rows",
        )
        self.threshold = self._gauge(
            "layer_threshold", "Goodness halfway between the running means, where the objective keeps them.", "layer"
        )
        self.step_seconds = self._histogram(
            "stage_step_seconds", "Time of a stage for a microbatch.", "stage", buckets=_STEP_SECONDS
        )
        self.queue_depth = self._gauge("stage_queue_depth", "Items waiting before a stage.", "stage")
        self.stage_seq = self._gauge("stage_last_seq", "Last sample that a stage has learned.", "stage")
        self.skipped = self._read_counter(
            "stage_skipped_microbatches_total",
            "Microbatches that a stage has skipped since the start or a rollback.",
            "stage",
        )
        self.phase = self._gauge("phase", "1 for the phase that is running.", "phase")
        self.paused = self._gauge("learning_paused", "1 while learning is paused.")
        self.paused_seconds = self._read_counter(
            "learning_paused_seconds_total", "Time for which learning was paused, since the start."
        )
        self.checkpoint_seconds = self._histogram(
            "checkpoint_write_seconds", "Time to make a checkpoint durable.", buckets=_WRITE_SECONDS
        )
        self.checkpoint_bytes = self._gauge("checkpoint_bytes", "Size of the newest checkpoint.")
        self.checkpoint_seq = self._gauge("checkpoint_last_seq", "Sequence number of the newest checkpoint.")
        self.checkpoint_timestamp = self._gauge(
            "checkpoint_timestamp_seconds", "When the newest checkpoint was written, in seconds since 1970."
        )
        self.checkpoint_failures = self._counter(
            "checkpoint_failures_total", "Checkpoints that could not be written."
        )
        self.checkpoints_damaged = self._counter(
            "checkpoints_damaged_total", "Damaged checkpoints found at recovery."
        )

    def _define_cluster(self) -> None:
        """Except for the first, they have values while stages run in a cluster."""
        self.learning_interrupted = self._gauge(
            "learning_interrupted", "1 while no stage learns, because stages in the cluster are being placed."
        )
        self.stage_replacements = self._counter(
            "stage_replacements_total", "Actors of stages that were lost and replaced.", "stage", "reason"
        )
        self.stage_place = self._gauge(
            "stage_place_info", "1; the labels say where a stage runs.", "stage", "node", "device"
        )
        self.hop_bytes = self._counter("hop_bytes_total", "Bytes that were sent to a stage.", "stage")
        self.hop_seconds = self._counter(
            "hop_seconds_total",
            "Time for sending to a stage, for waiting until its queue has room, and its own for receiving.",
            "stage",
            "part",
        )

    def _define_serving(self) -> None:
        self.predictions = self._counter("predictions_total", "Samples predicted for clients.")
        self.prediction_seconds = self._histogram(
            "prediction_seconds", "From receipt of a query to its reply.", buckets=_ANSWER_SECONDS
        )
        self.prediction_paced = self._counter(
            "prediction_paced_seconds_total", "Time that predictions were delayed to leave learning its share."
        )
        self.prediction_batch = self._histogram(
            "prediction_batch_samples", "Samples predicted at once.", buckets=_SIZES
        )
        self.prequential_samples = self._counter("prequential_samples_total", "Samples predicted before learned.")
        self.prequential_errors = self._counter(
            "prequential_errors_total", "Samples predicted wrongly, of prequential_samples_total."
        )
        self.prequential_skipped = self._counter(
            "prequential_skipped_samples_total",
            "Samples learned without being predicted first, at high rates.",
        )
        self.prequential_error = self._gauge(
            "prequential_error_ratio", "Error over the last 10,000 predicted samples, or all if fewer."
        )
        self.prequential_window = self._gauge(
            "prequential_window_samples", "Samples that prequential_error_ratio is measured over; at first, fewer."
        )
        self.drifts = self._counter(
            "drifts_total", "Rises of the prequential error that prequential.drift_detector has found."
        )
        self.drift_seq = self._gauge("drift_last_seq", "Sample at which the last such rise was found.")
        self.snapshot_age = self._gauge("snapshot_age_seconds", "Time since the weights that predict were published.")
        self.snapshot_seq = self._gauge("snapshot_seq", "Last sample that the weights that predict have learned.")
        self.snapshot_version = self._gauge("snapshot_version", "Number of the snapshot that predicts.")

    def _define_replication(self) -> None:
        self.followers = self._gauge(
            "followers", "Connections that wait for or receive a snapshot; limits.followers_max is the maximum."
        )
        self.snapshots_sent = self._counter("snapshots_sent_total", "Snapshots sent to prediction replicas.")
        self.snapshots_sent_bytes = self._counter("snapshots_sent_bytes_total", "Bytes of weights in these.")
        self.replica_connected = self._gauge(
            "replica_connected", "Of a replica: 1 while the daemon that it follows gives usable answers."
        )
        self.replica_staleness = self._gauge(
            "replica_staleness_seconds", "Of a replica: its weights were the daemon's newest that long ago, at most."
        )
        self.replica_behind = self._gauge(
            "replica_behind_samples",
            "Of a replica: samples that the daemon had learned when it last answered, and these weights have not.",
        )
        self.replica_received = self._counter("replica_snapshots_total", "Of a replica: snapshots received.")
        self.replica_received_bytes = self._counter(
            "replica_snapshots_bytes_total", "Of a replica: bytes of weights in these."
        )
        self.replica_failures = self._counter(
            "replica_failures_total",
            "Of a replica: requests for a snapshot that failed, by the error's code.",
            "reason",
        )

    def _define_resources(self) -> None:
        self.standby = self._gauge("standby", "1 while it stands by for another daemon; 0 while it serves.")
        self.disk_free = self._gauge(
            "disk_free_bytes", "Free bytes on the disk of the state folder, those within the journal's file included."
        )
        self.disk_min_free = self._gauge(
            "disk_min_free_bytes", "limits.disk_min_free_bytes: below it, samples are rejected."
        )
        self.live_readers = self._gauge(
            "http_live_readers", "Clients that read /api/live; limits.http_live_readers is the maximum."
        )
        self.memory_max = self._gauge(
            "memory_max_bytes", "process_resident_memory_bytes at which samples are rejected."
        )
