"""Carries what each rank measured at a step to rank 0, through the key-value store by which the ranks met.

There is no collective in this, so no rank waits for another, whatever the others do. A thread of its own, with a
connection of its own to the store, sends (`Outbox`, on every other rank) or collects (`Inbox`, on rank 0). A rank has
sent a step when its key is in the store; rank 0 deletes what it has taken. A step that a rank will not send is known by
what it has sent since, or else by time.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from queue import SimpleQueue
from typing import Any, NamedTuple, cast

from chainrule.errors import brief
from chainrule.pytorch_internals import default_store, process_groups

PATIENCE = 10.0  # seconds that a step may be late after a later one ended on rank 0; nobody waits meanwhile
AT_END = 2.0  # seconds that the end of a watch waits for what is still under way
HANGS = 10.0  # seconds that it waits for one answer of the store after that
POLL = 0.002, 0.1  # seconds between two looks into the store: at first, and at most
LAST = 64  # moments of the last steps of a rank that the others can read
PIECE = 2**22  # bytes of one entry in the store; a TCPStore takes 8 MiB


class Moment(NamedTuple):
    """A point of the training, in order of time: ranks at the same point have begun the same number of collectives."""

    collectives: int
    step: int


class PartedError(Exception):
    """A rank will not send a step; the message says why."""


def now(step: int) -> Moment:
    """This rank's moment."""
    begun = 0
    for group in list(process_groups()):
        try:
            begun += cast(Any, group)._get_sequence_number_for_group()
        except RuntimeError:  # its backend does not count
            continue
    return Moment(begun, step)


@dataclass(slots=True)
class Expected:
    """A step of rank 0 that is complete with what the others send."""

    moment: Moment
    complete: Callable[[Sequence[str]], None]
    overtaken: float | None = None  # when a later step ended on rank 0


class _Thread:
    """Works off a queue beside the training; an error ends it, and `problem` says which."""

    def __init__(self) -> None:
        self.problem: str | None = None
        self._store: Any = default_store()  # kept alive: this process may be its server
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._given_up = False
        self._closing: float | None = None  # when the watch ended
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chainrule joins the ranks", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Finish what is under way, for a short time at most."""
        self._closing = time.monotonic()
        self._queue.put(None)
        self._wake.set()
        self._thread.join(2 * AT_END)
        if self._thread.is_alive():
            # A thread that came back from the store while Python shuts down would abort the process.
            self._given_up = True
            self._thread.join(HANGS)
            self.problem = self.problem or "the store of the process group does not answer"

    def _run(self) -> None:
        try:
            connection = self._store.clone()
            connection.set_timeout(timedelta(seconds=AT_END))
            store = _Until(connection, lambda: self._given_up)
            while (item := self._queue.get()) is not None:
                self._work(store, item)
        except PartedError as error:
            self.problem = str(error)
        except Exception as error:
            self.problem = f"the ranks no longer watch together ({brief(error)})"

    def _work(self, store: Any, item: Any) -> None:
        raise NotImplementedError


class _Until:
    """A store until it is given up; from then on each use is an error."""

    def __init__(self, store: Any, given_up: Callable[[], bool]) -> None:
        self._store, self._given_up = store, given_up

    def __getattr__(self, name: str) -> Any:
        if self._given_up():
            raise PartedError("the ranks took too long to join their last steps")
        return getattr(self._store, name)


def _key(*names: object) -> str:
    return "/".join(map(str, ("chainrule", *names)))


class Outbox(_Thread):
    """Sends this rank's steps."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._last: deque[str] = deque(maxlen=LAST)
        self._sent: deque[tuple[str, list[str], float]] = deque()  # not taken yet: the key, all keys, since when
        super().__init__()

    def send(self, moment: Moment, content: Callable[[], str]) -> None:
        """Send what was measured at a step; the thread asks for it as text."""
        self._queue.put((moment, content))

    def _work(self, store: Any, item: tuple[Moment, Callable[[], str]]) -> None:
        moment, content = item
        data = zlib.compress(content().encode(), 1)
        pieces = [data[place : place + PIECE] for place in range(0, len(data), PIECE)]
        keys = [_key(*moment, self._rank, *((number,) if number else ())) for number in range(len(pieces))]
        for key, piece in zip(keys[1:], pieces[1:], strict=True):
            store.set(key, piece)
        store.set(keys[0], len(pieces).to_bytes(4, "little") + pieces[0])
        self._last.append(f"{moment.collectives} {moment.step}")
        store.set(_key("last", self._rank), ",".join(self._last))
        while self._sent and not store.check([self._sent[0][0]]):
            self._sent.popleft()
        self._sent.append((keys[0], keys, time.monotonic()))
        if self._sent[0][2] < time.monotonic() - PATIENCE and len(self._sent) > 2:
            for _, several, _ in self._sent:
                for key in several:
                    store.delete_key(key)
            raise PartedError(f"rank 0 takes no statistics of rank {self._rank}")


class Inbox(_Thread):
    """Collects on rank 0 what the other ranks send, step by step."""

    def __init__(self, ranks: int) -> None:
        self._others = range(1, ranks)
        self._began = now(0)
        super().__init__()

    def expect(self, step: Expected) -> None:
        """Complete a step as soon as all ranks have sent it."""
        self._queue.put(step)

    def _work(self, store: Any, item: Expected) -> None:
        keys = [_key(*item.moment, rank) for rank in self._others]
        pause, most = POLL
        while not store.check(keys):
            if pause == most or self._closing is not None:
                self._check_hope(store, item, keys)
            if self._wake.wait(pause):
                time.sleep(POLL[0])  # the watch has ended: look often
            pause = min(2 * pause, most)
        item.complete([zlib.decompress(self._taken(store, key)).decode() for key in keys])

    def _taken(self, store: Any, key: str) -> bytes:
        first = store.get(key)
        rest = [f"{key}/{number}" for number in range(1, int.from_bytes(first[:4], "little"))]
        data = b"".join([first[4:], *(store.get(each) for each in rest)])
        for each in (key, *rest):
            store.delete_key(each)
        return data

    def _check_hope(self, store: Any, item: Expected, keys: Sequence[str]) -> None:
        """Raise PartedError if a rank will not send this step any more, or is too late with it."""
        began = time.monotonic()
        late = (item.overtaken is not None and began > item.overtaken + PATIENCE) or (
            self._closing is not None and began > self._closing + AT_END
        )
        for rank, key in zip(self._others, keys, strict=True):
            last = self._last(store, rank)
            passed = bool(last) and last[-1] >= item.moment
            if (late or passed) and not store.check([key]):
                raise PartedError(_why(rank, last, item.moment))

    def _last(self, store: Any, rank: int) -> list[Moment]:
        key = _key("last", rank)
        said = store.get(key).decode() if store.check([key]) else ""
        moments = (Moment(*map(int, each.split())) for each in said.split(",") if each)
        return [each for each in moments if each >= self._began]  # without those of an earlier watch


def _why(rank: int, sent: Sequence[Moment], here: Moment) -> str:
    if not sent:
        return f"rank {rank} has no watch: call chainrule.watch on every rank, in the same way"
    last = next((each for each in sent if each > here), sent[-1])
    if last < here:
        return f"the ranks no longer watch together (rank {rank} has sent nothing since step {last.step})"
    if last.step != here.step:
        return f"the ranks are at different steps (rank 0 at {here.step}, rank {rank} at {last.step})"
    return (
        f"the ranks are at different points of the training (at step {here.step} rank 0 has begun {here.collectives} "
        f"collectives, rank {rank} {last.collectives})"
    )
