"""What the page asks about samples and layers, and what it teaches.

    GET  /api/mistakes                     the confusion matrix, the error of each class, the latest mistakes
    GET  /api/goodness                     histograms of what each layer compares
    GET  /api/filters?layer=0&limit=64     weights as images
    GET  /api/dreams?limit=8               images that layers make from what they remember
    GET  /api/sample?label=3               a sample of the stream
    POST /api/scores                       the prediction for an image, and what makes it up
    POST /api/activities                   the activities of each layer for an image under two labels
    POST /api/teach                        stores an image with a label, to be learned

A POST needs headers that a foreign page cannot send (`origin.py`). Answers are computed on background threads.
"""

import asyncio
import hmac
from collections.abc import Callable
from concurrent.futures import Future
from typing import Annotated, Any, NamedTuple

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ffstream.errors import DeadlineExceeded, FFStreamError
from ffstream.server.answers import answer, encode, encode_rounded, encoded, refusal
from ffstream.server.background import Background
from ffstream.server.rejections import RejectedConnections, client_of
from ffstream.server.requests import Arguments, body_of, parse, query, refused
from ffstream.serving.cached import Record
from ffstream.serving.inspection import Inspector
from ffstream.util.labels import UNLABELLED

TEACH_HEADER = "x-ffstream-teach"
_TEACH_TIMEOUT_S = 5.0
_COMMIT_TIMEOUT_S = 10.0  # once it has begun

Image = Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(description="the values of one image, 0 to 255")]
Label = Annotated[int, Field(ge=0, lt=UNLABELLED)]


class Scores(Arguments):
    """Of `/api/scores`."""

    image: Image


class Activities(Arguments):
    """Of `/api/activities`. Without labels they are the predicted one, and the strongest other one."""

    image: Image
    label: Label | None = None
    wrong: Label | None = None


class Filters(Arguments):
    """Of `/api/filters`."""

    layer: int = 0
    limit: int = Field(64, ge=1, le=256)


class Dreams(Arguments):
    """Of `/api/dreams`."""

    limit: int = Field(8, ge=1, le=16)


class Sample(Arguments):
    """Of `/api/sample`."""

    label: Label | None = None


class Teach(Arguments):
    """Of `/api/teach`."""

    image: Image
    label: Label


class Teaching(NamedTuple):
    """`submit` takes an image and its label, gives its sequence number once it is on disk, and raises FFStreamError.

    `enabled`: `http.teach`. `token`: what the header X-FFStream-Teach must hold; None: nothing. Requests without it
    are noted in `rejections`.
    """

    submit: Callable[[bytes, int], "Future[int]"]
    enabled: bool
    token: bytes | None
    rejections: RejectedConnections | None = None

    def refusal(self, request: Request) -> Response | None:
        """Why this request may not teach; None if it may."""
        if not self.enabled:
            return refusal(403, "teaching_off", "this daemon is not taught over HTTP", "set http.teach to true")
        given = request.headers.get(TEACH_HEADER, "").encode("latin-1")
        # In constant time: the duration must not reveal how much of a guess was right.
        if self.token is not None and not hmac.compare_digest(given, self.token):
            if self.rejections is not None:
                self.rejections.add("token", f"address={client_of(request.scope)} path={request.url.path}")
            hint = "send the header `X-FFStream-Teach: TOKEN`, with the token in the file http.teach_token"
            return refusal(403, "teach_token", "a token for teaching is required", hint)
        return None


def api_routes(inspector: Inspector, background: Background, teaching: Teaching) -> list[Route]:
    """Paths below `/api/`."""

    async def computed(work: Callable[[], Record], write: Callable[[Any], bytes] = encode) -> Response:
        try:
            return encoded(await background.run(lambda: write(work())))
        except Exception as error:
            return refused(error)

    async def mistakes(request: Request) -> Response:
        return await computed(inspector.mistakes)

    async def goodness(request: Request) -> Response:
        return await computed(inspector.goodness)

    async def filters(request: Request) -> Response:
        def work() -> Record:
            wanted = query(Filters, request)
            return inspector.filters(wanted.layer, wanted.limit)

        return await computed(work)

    async def dreams(request: Request) -> Response:
        return await computed(lambda: inspector.dreams(query(Dreams, request).limit))

    async def sample(request: Request) -> Response:
        return await computed(lambda: inspector.sample(query(Sample, request).label))

    async def scores(request: Request) -> Response:
        try:
            body = await body_of(request)
        except FFStreamError as error:
            return refused(error)
        return await computed(lambda: inspector.scores(parse(Scores, body).image), encode_rounded)

    async def activities(request: Request) -> Response:
        def work() -> Record:
            wanted = parse(Activities, body)
            return inspector.activities(wanted.image, wanted.label, wanted.wrong)

        try:
            body = await body_of(request)
        except FFStreamError as error:
            return refused(error)
        return await computed(work)

    async def teach(request: Request) -> Response:
        if (refused_because := teaching.refusal(request)) is not None:
            return refused_because
        try:
            lesson = parse(Teach, await body_of(request))
            image = inspector.image(lesson.image).numpy().tobytes()
            return answer({"accepted": await _stored(teaching.submit(image, lesson.label))})
        except Exception as error:
            return refused(error)

    return [
        *(
            Route(f"/api/{each.__name__}", each, methods=["GET"])
            for each in (mistakes, goodness, filters, dreams, sample)
        ),
        *(Route(f"/api/{each.__name__}", each, methods=["POST"]) for each in (scores, activities, teach)),
    ]


async def _stored(result: "Future[int]") -> int:
    """The sequence number of a taught sample. Raises FFStreamError."""
    waiting = asyncio.wrap_future(result)
    done, _ = await asyncio.wait([waiting], timeout=_TEACH_TIMEOUT_S)
    if not done and result.cancel():
        raise DeadlineExceeded(
            f"the sample was not stored within {_TEACH_TIMEOUT_S:g} s", hint="nothing was stored; teach it again"
        )
    done, _ = await asyncio.wait([waiting], timeout=_COMMIT_TIMEOUT_S)
    if not done:
        raise DeadlineExceeded("the disk does not answer", hint="the sample may have been stored; see the status")
    return await waiting
