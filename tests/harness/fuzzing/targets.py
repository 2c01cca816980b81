"""The fuzz targets. A target gets bytes and may raise FFStreamErrors; any other exception is a finding.

`python -m tests.harness.fuzzing.targets NAME FILE…` reproduces findings. `tools/fuzz` starts the same module with a
folder and options of libFuzzer instead of files.
"""

import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

_COMPILED = ["ffstream.ff.loops"]  # numba cannot compile instrumented code

Target = Callable[[bytes], None]


class Prepared(NamedTuple):
    """A target, and its first inputs."""

    run: Target
    seeds: list[bytes]


def codec(folder: Path) -> Prepared:
    """A header and a payload, decoded with the message types of all sockets and of the client."""
    from ffstream.errors import FFStreamError
    from ffstream.wire import codec, messages
    from ffstream.wire.images import ImageChecker

    kinds = [each for each in vars(messages).values() if isinstance(each, type) and hasattr(each, "type")]
    table = codec.table(*kinds)
    checkers = [ImageChecker([2, 3], 10, 100, unlabelled=unlabelled) for unlabelled in (False, True)]

    def run(data: bytes) -> None:
        size, header, payload = data[0] if data else 0, data[1:], b""
        if size < len(header):
            header, payload = header[:size], header[size:]
        with suppress(FFStreamError):
            message = codec.decode(header, table)
            assert codec.decode(codec.encode(message), table) == message
            for checker in checkers:
                with suppress(FFStreamError):
                    if isinstance(message, messages.Samples):
                        checker.check_samples(message, payload)
                    elif isinstance(message, messages.ImageHeader):
                        checker.check_images(message, payload)

    samples = messages.Samples(client="a", n=1, base=1, count=2, dtype="uint8", shape=[2, 3], labels=b"\1\0\xff\xff")
    query = messages.Predict(id=1, count=1, dtype="float32", shape=[6])
    request = messages.Request(id=1, command="status", arguments={"timeout_s": 1.5})
    ack = messages.Ack(acks=[(1, 1, 1)], credit=5)
    seeds = []
    for message, payload in ((samples, bytes(12)), (query, bytes(24)), (request, b""), (ack, b"")):
        header = codec.encode(message)
        seeds.append(bytes([len(header)]) + header + payload)
    return Prepared(run, seeds)


def control(folder: Path) -> Prepared:
    """A request to a running daemon, for every command except those that stop it."""
    from ffstream.errors import FFStreamError
    from ffstream.wire import codec
    from ffstream.wire.messages import Reply, Request
    from tests.in_process import Running

    daemon = Running(folder / "state").daemon
    commands = dict(daemon.commands.table)
    for stopping in ("drain", "stop"):
        del commands[stopping]
    commands["snapshot"] = _snapshot_command(daemon)
    names = sorted(commands)
    table = codec.table(Request)

    def run(data: bytes) -> None:
        with suppress(FFStreamError):
            request = codec.decode(data[1:], table)
            assert isinstance(request, Request)
            command = commands.get(request.command) or commands[names[data[0] % len(names)]]
            work = command(request.arguments)
            codec.encode(Reply(id=request.id, result=work()))

    arguments: list[dict[str, Any]] = [
        {},
        {"timeout_s": 0.5},
        {"timeout_s": 2, "to": 0, "later": ["skip"]},
        {"boot": "x", "after": 7, "recipe": True},
    ]
    seeds = [
        b"\0" + codec.encode(Request(id=1, command=name, arguments=each)) for name in names for each in arguments
    ]
    return Prepared(run, seeds)


def _snapshot_command(daemon: Any) -> Callable[[dict[str, Any]], Callable[[], dict[str, Any]]]:
    """The command `snapshot`. A request that waits for newer weights is rejected, because none come."""
    from ffstream.errors import Busy
    from ffstream.metrics import Metrics
    from ffstream.server.followers import Answer, Followers
    from ffstream.wire.messages import Request

    def submit(work: Callable[[], Any]) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work())
        return done

    limits = daemon.config.limits.model_copy(update={"followers_every_s": 0.0})
    source = daemon.control._followers._source
    queue = Followers(source, limits, Metrics(), boot="boot", submit=submit)

    def command(arguments: dict[str, Any]) -> Callable[[], dict[str, Any]]:
        queue.add(b"peer", Request(id=1, command="snapshot", arguments=arguments), "sender")
        # The first poll begins a round, and the second one ends it.
        answers = [*queue.poll(), *queue.poll(), *queue.reject_all(Busy("nothing newer", hint="ask again"))]
        assert len(answers) == 1
        (answer,) = answers
        assert not queue.waits
        if isinstance(answer, Answer):
            return lambda: answer.result
        assert isinstance(answer.error, Busy), answer.error
        return lambda: {}

    return command


def snapshot(folder: Path) -> Prepared:
    """What a daemon sends to a replica: the bytes of a snapshot, the same cut short, and a result of `snapshot`."""
    from ffstream.errors import FFStreamError
    from ffstream.ff.network import Network
    from ffstream.ff.presets import recipe
    from ffstream.serving import replication
    from ffstream.serving.snapshot import Snapshot
    from ffstream.wire import codec
    from ffstream.wire.messages import Reply

    network = Network(recipe("fast", image_shape=[4, 4], widths=[4], labels=10))
    decoder = replication.Decoder(network.recipe)
    good = b"".join(replication.encode(Snapshot(network.classifier(), 1, 100)).frames)
    table = codec.table(Reply)

    def run(data: bytes) -> None:
        for payload in (data, data[: len(good)], data + good[len(data) :]):
            with suppress(FFStreamError):
                assert decoder.decode([payload], replication.checksum([payload]), 1, 100).version == 1
        with suppress(FFStreamError):
            reply = codec.decode(data, table)
            assert isinstance(reply, Reply)
            codec.snapshot_info(reply.result)

    info = {"boot": "b", "version": 1, "seq": 1, "applied_seq": 1, "as_of_s": 0.5, "bytes": 0, "checksum": ""}
    return Prepared(run, [good, codec.encode(Reply(id=1, result=info))])


def journal(folder: Path) -> Prepared:
    """A journal with changed bytes. Four bytes of input change one: page, offset (two bytes), new value."""
    from ffstream.errors import FFStreamError
    from ffstream.journal.inspection import opened, summarize
    from ffstream.journal.journal import Entry, Journal
    from ffstream.journal.reader import Reader
    from ffstream.journal.verification import Verification

    path, page = folder / "journal.sqlite", 8192
    with closing(Journal(path, inputs=100, labels=10)) as intact:
        for n in range(1, 101):
            intact.append([Entry("ab"[n % 2], n, 1, 2, "uint8", b"\1\0\xff\xff", bytes([n]) * 200)])
        intact.trim(9)
    good = path.read_bytes()
    stored = {2 * n - 1: bytes([n]) * 200 for n in range(1, 101)}

    def edits(data: bytes) -> Iterator[tuple[int, int]]:
        for at in range(0, len(data) - 3, 4):
            where = data[at] * page + int.from_bytes(data[at + 1 : at + 3], "big") % page
            yield where % len(good), data[at + 3]

    def run(data: bytes) -> None:
        damaged = bytearray(good)
        for where, value in edits(data):
            damaged[where] = value
        for suffix in ("-wal", "-shm", "-journal"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        path.write_bytes(damaged)
        with suppress(FFStreamError), opened(path) as connection:
            summarize(connection)
            Verification(connection).run()
        with (
            suppress(FFStreamError),
            closing(Journal(path, inputs=100, labels=10)) as opened_journal,
            closing(Reader(path)) as reader,
        ):
            rows = reader.read(8, 1000)
            assert all(row.images == stored[row.first_seq] for row in rows)
            assert not rows or rows[-1].first_seq + rows[-1].samples - 1 == opened_journal.head.seq
            opened_journal.trim(20)
            opened_journal.append([Entry("c", 1, 1, 1, "uint8", b"\0\0", bytes(100))])

    heads = [bytes([number, 0, offset, 0xFF]) for number in range(len(good) // page) for offset in (0, 3, 5, 8, 20)]
    return Prepared(run, heads)


def manifest(folder: Path) -> Prepared:
    """The bytes of a manifest and, if they are JSON, the same manifest with a valid checksum."""
    from ffstream.checkpoint import manifest as manifests
    from ffstream.checkpoint.inspection import inspect
    from ffstream.errors import FFStreamError

    here = manifests.folder_of(folder, 5)
    here.mkdir()
    state = here / manifests.STATE
    state.write_bytes(b"state")
    files = {manifests.STATE: {"bytes": 5, manifests.CHECKSUM: manifests.checksum(state)}}
    good = {"format": 1, "seq": 5, "written": 0.5, "recipe": {"widths": [3]}, "progress": {}, "files": files}

    def run(data: bytes) -> None:
        path = here / manifests.MANIFEST
        path.write_bytes(data)
        list(inspect(folder, thoroughly=True))
        with suppress(ValueError, RecursionError):
            found = json.loads(data)
            if isinstance(found, dict):
                found.pop("check", None)
                path.write_text(json.dumps(manifests.sign(found)), encoding="utf-8")
        with suppress(FFStreamError):
            assert manifests.verify(folder, 5)["files"][manifests.STATE] == files[manifests.STATE]

    return Prepared(run, [json.dumps(good).encode(), json.dumps(manifests.sign(good)).encode()])


TARGETS: dict[str, Callable[[Path], Prepared]] = {
    "codec": codec,
    "control": control,
    "journal": journal,
    "manifest": manifest,
    "snapshot": snapshot,
}


def main() -> None:
    """Runs one target: on each file once, or in the fuzzer until its time is over or there is a finding."""
    name, *rest = sys.argv[1:]
    files = [Path(each) for each in rest if Path(each).is_file()]
    with tempfile.TemporaryDirectory(prefix="ffstream-fuzz-") as folder:
        if files:
            prepared = TARGETS[name](Path(folder))
            for file in files:
                prepared.run(file.read_bytes())
        else:
            _fuzz(name, rest, Path(folder))


def _fuzz(name: str, rest: list[str], folder: Path) -> None:
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["ffstream"], exclude=_COMPILED):
        prepared = TARGETS[name](folder)
    for corpus in (Path(each) for each in rest if Path(each).is_dir()):
        for number, seed in enumerate(prepared.seeds):
            (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([name, *rest], prepared.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
