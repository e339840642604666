"""The client's side of the protocol, without I/O: bytes come in, bytes to send go out, time is passed in.

    created ── connected() ──▶ greeting ── Welcome ──▶ ready ── disconnected() ──▶ created

Only `ready` sends more than the greeting. After every Welcome all that is unanswered goes again: Submit frames
under their numbers (the daemon takes each number once), requests, subscriptions, and a roll call of the accepted
jobs that are open, so that nothing which was lost with a connection stays open here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import msgspec

from empd.client.handle import Handle, Request
from empd.client.lookups import Lookups
from empd.client.requests import Requests, Subscription
from empd.client.roll_call import ASK_IDS_MAX, RollCall
from empd.client.submissions import Submissions
from empd.errors import EmpdError, FailureClass, ProtocolError, Refused
from empd.payload import FRAME_BYTES_MAX, Carried
from empd.record import Record
from empd.result import Results
from empd.wire import codec, frames

GREETING_RETRY_NS = 2_000_000_000
ASK_AGAIN_NS = 200_000_000
SILENCE_NS = 2_000_000_000
FRAMES_IN_FLIGHT = 1
"""While this many Submit frames are unacknowledged, single submits gather into the next frame."""


class Conversation:
    """One client's conversation with one daemon, over any number of connections.

    Not safe for several threads at once: the skins take turns. Broken for good by bytes that are no frame
    (`failed` holds the ProtocolError, and every open job and request ends with it).
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.welcome: frames.Welcome | None = None
        self.ready = False
        self.failed: EmpdError | None = None
        self.submissions = Submissions()
        self.open = self.submissions.open
        self.submit_many = self.submissions.submit_many
        self.requests = Requests()
        self.subscriptions: dict[str, Subscription] = {}
        self.roll_call = RollCall(self.requests, self.open.__contains__)
        self.lookups = Lookups(self.submissions)
        self.unknown = self.lookups.unknown
        self.stale_answers = 0
        self._control: list[Record] = []
        self._greeted_ns: int | None = None
        self._renewing = False
        self._now_ns = 0
        self._next_ask_ns = 0
        self._heard_ns = 0
        self._reminder: Request | None = None
        self._handlers: dict[type, Callable[[Any], object]] = {
            Results: self.submissions.results,
            frames.Accepted: lambda frame: self.roll_call.add(self.submissions.accepted(frame)),
            frames.States: self._on_states,
            frames.Reply: lambda frame: self.requests.answered(frame.request, frame.body),
            frames.Error: self._on_error,
            frames.Rows: self._on_rows,
            frames.Reset: self._on_rows,
            frames.Resync: lambda _: self.roll_call.begin(self.submissions.acknowledged()),
        }

    # --- the connection ------------------------------------------------------------------------------------------

    def connected(self, now_ns: int) -> None:
        """A connection is up: greets, with the session and its token where there is one."""
        self._greet(now_ns, renew=False)

    def _greet(self, now_ns: int, renew: bool) -> None:
        self.ready = False
        self._greeted_ns = now_ns
        session, token = (self.welcome.session, self.welcome.token) if self.welcome else (0, b"")
        before = self._control if renew else []
        self._control = [*before, frames.ClientHello(frames.VERSION, session, token, self.name, renew)]

    def disconnected(self) -> None:
        """The connection is gone; nothing is sent until the next one."""
        self.ready = False
        self._greeted_ns = None
        self._control.clear()

    def take_changes(self, changes: list[bool], now_ns: int) -> bool:
        """The connection came up (True) or went down (False), in this order. Returns whether there was a change."""
        for up in changes:
            if up:
                self.connected(now_ns)
            else:
                self.disconnected()
        return bool(changes)

    def deadline_ns(self) -> int | None:
        """When `outgoing` has something to send although nothing came: a greeting that stays without answer, a
        question after jobs of other sessions, or after a daemon that has been silent for long."""
        if not self.ready:
            return None if self._greeted_ns is None else self._greeted_ns + GREETING_RETRY_NS
        if self.submissions.foreign:
            return self._next_ask_ns
        return self._heard_ns + SILENCE_NS if self.busy else None

    def receive(self, data: bytes, now_ns: int) -> None:
        """Takes one frame from the daemon. Raises ProtocolError when it is not one, and is broken from then on."""
        self._now_ns = self._heard_ns = now_ns
        try:
            frame = codec.decode_for_client(data)
            if type(frame) is frames.Welcome:
                self._on_welcome(frame)
            elif not self.ready:
                self._before_welcome(frame)
            else:
                self._handlers[type(frame)](frame)
        except ProtocolError as error:
            self.fail(error)
            raise

    def outgoing(self, now_ns: int) -> list[bytes]:
        """The frames to send now, in order."""
        deadline_ns = self.deadline_ns()
        if deadline_ns is not None and now_ns >= deadline_ns:
            if self.ready:
                self._remind(now_ns)
            else:
                self.connected(now_ns)
        if self.ready and self.submissions.used_up:
            self._renewing = True
            self._greet(now_ns, renew=True)
        sending, self._control = self._control, []
        if self.ready:
            submissions = self.submissions
            if submissions.gathering is not None and len(submissions.unacknowledged) < FRAMES_IN_FLIGHT:
                submissions.seal()
            sending += submissions.take_unsent()
            self.roll_call.go_on()
            sending += self.requests.take_unsent()
        return [codec.encode(frame) for frame in sending]

    def _remind(self, now_ns: int) -> None:
        """Asks after jobs of other sessions. Else asks for nothing, which tells whether the daemon still knows this
        connection: it answers, or wants to be greeted."""
        self._next_ask_ns = now_ns + ASK_AGAIN_NS
        self._heard_ns = now_ns
        followed = self.submissions.followed()
        if followed:
            if self.roll_call.over:
                self.roll_call.begin(followed)
        elif self.busy and (self._reminder is None or self._reminder.ended):
            self._reminder = self.request(lambda number: frames.Ask(number, []))

    def fail(self, error: EmpdError) -> None:
        """Ends everything that is open: the conversation is over."""
        if self.failed is None:
            self.failed = error
        self.submissions.fail_all(error)
        self.requests.fail_all(error)
        for subscription in self.subscriptions.values():
            subscription.error = error

    # --- what the skins want -------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """True while the daemon owes this client something."""
        return bool(self.open or self.requests.waiting or self.submissions.unacknowledged)

    @property
    def flushed(self) -> bool:
        """True when every submitted job was acknowledged or refused."""
        return not self.submissions.unacknowledged and self.submissions.gathering is None

    def submit(self, handle: Handle, options: msgspec.Raw, payload: Carried, key: str = "") -> None:
        """Takes a job; it goes with the next frame, at once when nothing is in flight."""
        self.submissions.submit(handle, options, payload, key)

    def seal(self) -> None:
        """What was submitted so far is a frame, and goes although others are in flight."""
        self.submissions.seal()

    def request(self, make: Callable[[int], Record]) -> Request:
        """Queues the request that `make(number)` returns, behind all that was submitted before it.

        Raises Refused when it does not fit into a frame.
        """
        self.submissions.seal()
        number = self.requests.next_number()
        frame = make(number)
        size = len(codec.encode(frame))
        if size > FRAME_BYTES_MAX:
            reason = f"the request has {size} bytes, over {FRAME_BYTES_MAX}: ask in parts"
            raise Refused(FailureClass.INVALID_INPUT, reason)
        return self.requests.ask(number, frame)

    def ask(self, ids: Iterable[int]) -> list[Request]:
        """Asks for the state or the result of jobs. Each request's answer is a list of JobStatus (of the unfinished);
        results go to the open handles."""
        left = iter(ids)
        requests = []
        while chunk := list(islice(left, ASK_IDS_MAX)):
            requests.append(self.request(lambda number, chunk=chunk: frames.Ask(number, chunk)))  # type: ignore[misc]
        return requests

    def subscribe(self, subscribe: frames.Subscribe) -> Subscription:
        """Follows the journal from `subscribe.from_seq` on."""
        subscription = self.subscriptions[subscribe.consumer] = Subscription(subscribe)
        if self.ready:
            self._control.append(subscribe)
        return subscription

    def acknowledge(self, subscription: Subscription, frame: frames.Rows | frames.Reset) -> None:
        """The consumer has safely processed `frame`."""
        acknowledgement = subscription.acknowledgement(frame)
        if acknowledgement is not None and self.ready:
            self._control.append(acknowledgement)

    def take_unknown(self) -> list[int]:
        """The next of the open jobs that only history may know, once each."""
        return self.lookups.take()

    def bye(self, forget: bool) -> None:
        """Says good-bye with the next frames."""
        if self.ready:
            self._control.append(frames.Bye(forget))

    # --- frames --------------------------------------------------------------------------------------------------

    def _before_welcome(self, frame: Any) -> None:
        """Answers to an earlier connection are passed over: all that is unanswered goes again after the Welcome."""
        if type(frame) is frames.Error and frame.request == 0 and not _wants_hello(frame):
            raise ProtocolError(f"the daemon refused the greeting: {frame.message}")
        self.stale_answers += 1

    def _on_welcome(self, welcome: frames.Welcome) -> None:
        if welcome.version != frames.VERSION:
            raise ProtocolError(f"the daemon speaks protocol {welcome.version}, this client {frames.VERSION}")
        renewed = self._renewing and self.welcome is not None and self.welcome.instance == welcome.instance
        accepted = self.submissions.resume(welcome.session, welcome.frame_number, welcome.next_job, renewed)
        self._renewing = False
        self.welcome = welcome
        self.ready = True
        self._greeted_ns = None
        self.roll_call.begin(accepted)
        self.requests.resume()
        self._control += [subscription.resumed() for subscription in self.subscriptions.values()]

    def _on_states(self, frame: frames.States) -> None:
        self.lookups.add(frame.jobs)
        self.requests.answered(frame.request, frame.jobs)

    def _on_error(self, frame: frames.Error) -> None:
        if _wants_hello(frame):
            # The daemon is a new one and the reconnect has not shown yet, or it gave up on sending to us.
            self.connected(self._now_ns)
        elif frame.request:
            self.requests.refused(frame)
        else:
            raise ProtocolError(f"the daemon rejected a frame: {frame.failure}: {frame.message}")

    def _on_rows(self, frame: frames.Rows | frames.Reset) -> None:
        subscription = self.subscriptions.get(frame.consumer)
        if subscription is not None:
            subscription.came(frame)


def _wants_hello(frame: frames.Error) -> bool:
    return frame.failure == FailureClass.REFUSED and "hello" in frame.message.lower()
