"""The predict socket: the queries of a batch are answered together, from one snapshot."""

import time
from collections.abc import Callable

from ffstream.config import Limits
from ffstream.errors import FFStreamError
from ffstream.metrics import Metrics
from ffstream.server.pacing import Pacer
from ffstream.server.received import Received
from ffstream.server.router import RouterLoop
from ffstream.serving.predictor import Answer, Predictor
from ffstream.util.threads import OnFailure
from ffstream.wire import codec
from ffstream.wire.images import ImageChecker, images_to_array
from ffstream.wire.messages import Hello, Message, Predict, Prediction


class PredictLoop(RouterLoop):
    """Thread `ff-predict`. While learning `is_behind`, it pauses for `limits.learning_min_share` of the time."""

    def __init__(
        self,
        predictor: Predictor,
        checker: ImageChecker,
        limits: Limits,
        *,
        is_behind: Callable[[], bool] = lambda: False,
        note: Callable[[], str] = lambda: "",
        boot: str,
        metrics: Metrics,
        on_failure: OnFailure,
    ) -> None:
        super().__init__(
            "predict",
            limits,
            metrics,
            on_failure,
            checker=checker,
            boot=boot,
            payload_max_bytes=limits.message_max_bytes,
            batch_messages=limits.query_batch_max_samples,
            batch_bytes=limits.query_batch_max_samples * checker.inputs * 4,
        )
        self._predictor = predictor
        self._is_behind = is_behind
        self._note = note
        self._pacer = Pacer(limits.learning_min_share)

    def handle(self, batch: list[Received]) -> None:
        """Checks the queries, predicts all of them at once, and replies to each."""
        self._pacer.begin()
        self._answer(batch)
        self._pacer.end()

    def note(self) -> str:
        """Of a replica: that its daemon does not answer."""
        return self._note()

    def idle(self) -> None:
        """Pauses for as long as it owes to learning."""
        if not self._is_behind():
            self._pacer.forgive()
        elif (wait_s := self._pacer.owed_s()) > 0:
            with self.thread.waiting():
                self._stopping.wait(wait_s)
            self._metrics.prediction_paced.inc(wait_s)

    def _answer(self, batch: list[Received]) -> None:
        good: list[Received] = []
        queries = []
        for received in batch:
            peer, message, payload, *_ = received
            if isinstance(message, Hello):
                self.welcome(peer)
                continue
            assert isinstance(message, Predict)
            try:
                (images,) = codec.expect_payload(payload, 1)
                images = self._checker.check_images(message, images)
            except FFStreamError as error:
                self.reject(peer, error, sender=received.sender(), id=message.id)
                continue
            queries.append(images_to_array(message.dtype, message.count, images))
            good.append(received)
        if not good:
            return
        for received, answer in zip(good, self._predictor.answer(queries), strict=True):
            goodness = answer.goodness.astype("<f4", copy=False).tobytes()
            self.reply(received.peer, _prediction(received.message, answer), goodness)
        metrics = self._metrics
        samples = sum(map(len, queries))
        metrics.predictions.inc(samples)
        metrics.prediction_batch.observe(samples)
        replied_s = time.perf_counter()
        for received in good:
            metrics.prediction_seconds.observe(replied_s - received.at_s)


def _prediction(query: Message, answer: Answer) -> Prediction:
    assert isinstance(query, Predict)
    snapshot = answer.snapshot
    return Prediction(id=query.id, labels=answer.labels.tolist(), version=snapshot.version, seq=snapshot.seq)
