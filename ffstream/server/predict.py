"""The predict socket: queries that wait together are answered together, each batch from one snapshot."""

import time

from ffstream.config import Limits
from ffstream.errors import FFStreamError
from ffstream.metrics import Metrics
from ffstream.server.router import Received, RouterLoop
from ffstream.serving.predictor import Answer, Predictor
from ffstream.threads import OnFailure
from ffstream.wire import codec
from ffstream.wire.messages import Hello, Predict, Prediction


class PredictLoop(RouterLoop):
    """Thread `ff-predict`."""

    def __init__(
        self,
        predictor: Predictor,
        checker: codec.ImageChecker,
        limits: Limits,
        *,
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

    def handle(self, batch: list[Received]) -> None:
        """Checks, predicts together, replies one by one."""
        start = time.perf_counter()
        good: list[tuple[bytes, int]] = []
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
                self.refuse(peer, error, sender=received.sender(), id=message.id)
                continue
            queries.append(codec.images_to_array(message.dtype, message.count, images))
            good.append((peer, message.id))
        if not good:
            return
        for (peer, id), answer in zip(good, self._predictor.answer(queries), strict=True):
            self.reply(peer, _prediction(id, answer), answer.goodness.astype("<f4", copy=False).tobytes())
        metrics = self._metrics
        samples = sum(map(len, queries))
        metrics.predictions.inc(samples)
        metrics.prediction_batch.observe(samples)
        metrics.prediction_seconds.observe(time.perf_counter() - start)


def _prediction(id: int, answer: Answer) -> Prediction:
    snapshot = answer.snapshot
    return Prediction(id=id, labels=answer.labels.tolist(), version=snapshot.version, seq=snapshot.seq)
