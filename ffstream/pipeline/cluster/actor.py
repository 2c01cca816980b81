"""The process of a stage. Ray makes it an actor; this module does not know Ray.

It serves one training run after the other: `listen`, then `run`, which returns when the run has ended.
"""

import os
import socket as system
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import zmq
from zmq.auth.thread import ThreadAuthenticator

from ffstream import __version__
from ffstream.checkpoint.replicas import MERGER
from ffstream.errors import ConfigError, FFStreamError, StageFailed
from ffstream.ff import kernels
from ffstream.ff.member import below
from ffstream.ff.merging import Merger
from ffstream.ff.placement import Placement
from ffstream.ff.recipe import Recipe, load_parts, stored_recipe
from ffstream.pipeline.channel import Closed
from ffstream.pipeline.cluster.control import Control
from ffstream.pipeline.cluster.frames import Message
from ffstream.pipeline.cluster.hops import HopIn, HopOut
from ffstream.pipeline.cluster.merger import StateMerger, follow, lead
from ffstream.pipeline.cluster.sockets import (
    Allowed,
    Keys,
    Opened,
    Socket,
    authenticate,
    connected,
    listening,
)
from ffstream.pipeline.device import choose_device, choose_product_dtype, make_stream
from ffstream.pipeline.members import members_of
from ffstream.pipeline.messages import Barrier, Part
from ffstream.pipeline.stage import Stage
from ffstream.util.endpoints import is_loopback
from ffstream.util.option_errors import OptionError
from ffstream.util.threads import use_one_core

_START_S: Final = 120.0  # in which the daemon sends what the stage begins with


class StageActor:
    """One stage at a time."""

    def __init__(self) -> None:
        use_one_core()
        kernels.prepare()
        self._context: zmq.Context[Any] = zmq.Context()
        self._allowed = Allowed()
        self._authenticator: ThreadAuthenticator | None = None
        self._keys: Keys | None = None
        self._control: Control
        self._inlet: Socket
        self._followers: list[Opened] = []

    def describe(self) -> dict[str, Any]:
        """What the keeper has to know of this process."""
        return {"pid": os.getpid(), "host": system.gethostname(), "version": __version__}

    def listen(self, token: str, host: str, client: str, *, encrypt: bool, followers: int = 0) -> dict[str, Any]:
        """Listens for the daemon, whose public key is `client`, for the stage before, and for the same stage in that
        many other replicas. Returns where."""
        self._keys = Keys.new() if encrypt and not is_loopback(host) else None
        if self._keys is not None and self._authenticator is None:
            self._authenticator = authenticate(self._context, self._allowed)
        self._allowed.only([client])
        control, control_port = listening(self._context, host, self._keys)
        self._inlet, inlet_port = listening(self._context, host, self._keys)
        mergers = [listening(self._context, host, self._keys) for _ in range(followers)]
        self._followers = [Opened(socket, token) for socket, _ in mergers]
        self._token = token
        self._control = Control(control, token)
        return {
            "host": host,
            "control": control_port,
            "inlet": inlet_port,
            "key": self._keys.public if self._keys else "",
            "mergers": [port for _, port in mergers],
        }

    def run(self) -> None:
        """Runs one stage until the daemon ends it, or the stage before says that nothing follows."""
        control = self._control
        try:
            start = control.expect("start", _START_S)
            stage = _Hosted(self._connect, control, self._inlet, self._followers, self._token, start)
            self._allowed.only(start.fields["clients"])
            control.send("ready", stage.describe())
            stage.run(**control.expect("go", _START_S).fields)
        except Closed:
            pass
        except FFStreamError as error:
            control.fail(error)
        except Exception as error:
            control.fail(StageFailed(repr(error), hint="see the logs of Ray on that node"))
            raise
        finally:
            for line in self._followers:
                line.close()
            self._inlet.close()
            control.finish()

    def _connect(self, to: Mapping[str, Any], port: str) -> Socket:
        return connected(self._context, to["host"], to[port], self._token, self._keys, to["key"])


class _Hosted:
    """The stage of one run."""

    def __init__(
        self,
        connect: Callable[[Mapping[str, Any], str], Socket],
        control: Control,
        inlet: Socket,
        followers: Sequence[Opened],
        token: str,
        start: Message,
    ) -> None:
        self._connect, self._control, self._inlet, self._token = connect, control, inlet, token
        self._followers = followers
        self._fields = fields = start.fields
        self._depth: int = fields["queue_depth"]
        device = choose_device(fields["device"])
        dtype = choose_product_dtype(fields["precision"], device)
        placement = Placement(device, dtype, self._depth + 2)
        recipe = _recipe(fields["recipe"])
        self._members = members_of(recipe, placement, fields["sizes"], fields["index"], fields["live"])
        self._members.load_state_dict(start.tensors)
        self._merger = Merger()
        self._merger.load_state_dict(below(MERGER, start.tensors))
        self._stream = make_stream(device, self._depth)
        self._device, self._precision = str(device), str(dtype).removeprefix("torch.")

    def describe(self) -> dict[str, Any]:
        """For the daemon."""
        return {"device": self._device, "precision": self._precision}

    def run(self, *, next: Mapping[str, Any] | None, leader: Mapping[str, Any] | None) -> None:
        """Returns when the stage has ended. `next` is the stage after it, `leader` the same one of the first replica,
        unless it is that itself."""
        control, name = self._control, self._fields["name"]
        also: Sequence[Socket] = [control.socket]
        outbox = None if next is None else HopOut(self._connect(next, "inlet"), self._depth, control.check, also)
        following = None if leader is None else Opened(self._connect(leader, "merger"), None)
        exchange = lead(self._merger, self._followers) if following is None else follow(following)
        merger = StateMerger(self._merger, exchange, control.check, also)
        inbox = HopIn(self._inlet, self._token, control.check, self._barrier, also, self._stream.device)
        control.watch(inbox, outbox, merger)
        stage = Stage(
            name,
            self._members,
            inbox=inbox,
            outbox=outbox,
            stream=self._stream,
            observer=control,
            on_failure=control.fail,
            merger=merger,
            seq=self._fields["seq"],
        )
        stage.start()
        while not stage.thread.join(60.0):
            pass
        inbox.release()
        if outbox is not None:
            outbox.release()
            outbox.monitor.close()
        if following is not None:
            following.close()

    def _barrier(self, message: Message) -> Barrier:
        fields, name = message.fields, self._fields["name"]

        def send(barrier: Barrier) -> None:
            part = Part(barrier.weights, barrier.tensors, barrier.progress)
            self._control.contributed(name, barrier, part)

        return Barrier(**fields, contributors=[name], on_complete=send)


def _recipe(stored: Mapping[str, Any]) -> Recipe:
    """The daemon's. Imports its parts from outside, which the daemon has imported, too. Raises ConfigError."""
    try:
        load_parts(stored["parts"])
        return stored_recipe(stored)
    except OptionError as error:
        raise ConfigError(f"network.{error}", hint="every node needs the same packages as the daemon") from error
