"""JetStream as a log needs it: a record is appended behind the one that is expected there, and read by its number.

What is appended is either there or not, but for the moment in which nobody knows:

| raised | the record was appended |
|---|---|
| `WrongNumber`, `Refusal`, `BackplaneAway`, `BackplaneFull`, `PayloadTooLarge`, `NobodyThere` | surely not |
| `NoReply` | perhaps |

Every read is one of the stream's leader. No message of the log is subscribed to: what comes in on its subjects is not
yet in it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from msgspec import DecodeError, Struct, json

from chatx.cluster.backplane import BackplaneError, Broker, LinkState, NobodyThere, NoReply
from chatx.errors import ConfigError

ANSWERS_WITHIN_S: Final = 2.0
"""How long the answer about one record is waited for, in seconds. A leader that steps down lets go of some."""

WORKS_WITHIN_S: Final = 4.0
"""How long any other answer is waited for, in seconds; no call of an adapter may take longer by default."""

UNDER_WAY_BYTES: Final = 524_288
"""Bytes that are being appended at once, at most, but for a single record; others wait. Half of what may be pending."""

ASKED_AT_ONCE: Final = 64
"""What the server is asked at once, appends aside; others wait. An answer is a record in base64, at most."""

REPLICATED_SINCE: Final = (2, 10)
"""The first version whose replicated streams keep their order under compare-and-set."""

_WRONG_NUMBER: Final = (10071, 10164)
_NOT_FOUND: Final = (10037, 10059)  # no such message, no such stream
_NOT_ENABLED: Final = (10039, 10076)  # for this account, on this server
_THERE_ALREADY: Final = 10058  # under that name, and of another kind
_NO_REPLICAS: Final = 10074  # a server that is alone
_TOO_LARGE: Final = 10054
_FULL: Final = (10023, 10047)  # the server, the account
_NOT_STORED: Final = 10077  # says why in words

_KIND: Final = {
    "storage": "file",
    "retention": "limits",
    "discard": "new",  # what has no space is refused; nothing is let go of by itself
    "max_age": 0,
    "max_msgs": -1,
    "max_msgs_per_subject": -1,
}
"""What a stream must be that keeps a log. It may have a bound in bytes: then it refuses what goes beyond."""

_Answer = TypeVar("_Answer", bound="_Answered")


class WrongNumber(BackplaneError):
    """The subject's newest record is another one than was expected."""


class Refusal(BackplaneError):
    """JetStream has refused, and said why, such as that it has no space."""


class NoJetStream(BackplaneError):
    """The server has said that there is no JetStream for this user."""


class AsksBroker(Protocol):
    """A link that can ask the server itself."""

    @property
    def boot(self) -> str:
        """The id of this life of the node."""
        ...

    async def broker(self) -> Broker:
        """Return who the server is; raises `BackplaneAway`."""
        ...

    async def ask_broker(
        self, subject: str, payload: bytes, timeout_s: float, headers: dict[str, str] | None = None
    ) -> bytes:
        """Ask the server on one of its subjects, and return its answer.

        Raises:
            NobodyThere: It has nobody for this subject.
            NoReply: No answer came in time, or the link was lost meanwhile.
            BackplaneAway: The link is away.
            BackplaneFull: Too much waits to be sent.
            PayloadTooLarge: The payload is too large.
        """
        ...

    def watch(self, on_state: Callable[[LinkState], object] | None = None) -> None:
        """Have it called with `away` whenever the link is lost."""
        ...


class Stored(Struct, frozen=True):
    """A message of a stream.

    Attributes:
        seq: Its number in the stream.
        data: What was appended.
        subject: Where.
        time: When, by the clock of the server that led the stream; RFC 3339.
    """

    seq: int
    data: bytes = b""
    subject: str = ""
    time: str = ""


class _Error(Struct, frozen=True):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Answered(Struct, frozen=True):
    error: _Error | None = None


class _Appended(_Answered, frozen=True):
    seq: int = 0


class _Got(_Answered, frozen=True):
    message: Stored | None = None


class _State(Struct, frozen=True):
    subjects: dict[str, int] = {}


class _Config(Struct, frozen=True):
    subjects: list[str] | None = None
    storage: str = ""
    retention: str = ""
    discard: str = ""
    num_replicas: int = 1
    max_age: int = 0
    max_msgs: int = -1
    max_msgs_per_subject: int = -1
    no_ack: bool = False
    sealed: bool = False


class _Described(_Answered, frozen=True):
    config: _Config = _Config()
    state: _State = _State()


class JetStream:
    """One stream of JetStream.

    Args:
        link: The link to the server, which is connected.
        cluster: The name of the cluster; its stream is `CHATX_<cluster>`, and has the subjects `cx.<cluster>.log.>`.
        replicas: On how many servers the stream is; at least. One that is there already stays as it is.

    Attributes:
        boot: The id of this life of the node.
        name: The stream's name.
        subjects: What all its subjects begin with.
        losses: How often the link was lost so far. A server that came back may have other data, or less.
    """

    def __init__(self, link: AsksBroker, cluster: str, replicas: int = 1) -> None:
        self._link = link
        self.boot: str = link.boot
        self.name: str = f"CHATX_{cluster}"
        self.subjects: str = f"cx.{cluster}.log."
        self.losses: int = 0
        self._replicas = replicas
        self._is_alone = False
        self._asking = asyncio.Semaphore(ASKED_AT_ONCE)
        self._under_way = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        link.watch(self._on_state)

    async def ensure(self) -> None:
        """See to it that the stream is there and keeps what is appended.

        Raises:
            NoJetStream: The server has said that it has none for this user.
            ConfigError: The stream is of another kind, on too few servers, or would be on ones that are too old.
            BackplaneError: It cannot be asked.
        """
        try:
            self._checked(await self._asked("INFO", b"", _Answered))
        except NobodyThere as error:
            if (await self._link.broker()).keeps:
                raise NoReply("The server says that it has JetStream, and nobody answers for it; not yet.") from error
            raise NoJetStream("The server says that JetStream is not enabled.") from None
        described = await self._asked(f"STREAM.INFO.{self.name}", b"", _Described)
        if described.error is not None and described.error.err_code in _NOT_FOUND:
            if self._replicas > 1:
                await self._check_replicated(self._replicas)
            wanted = _KIND | {
                "name": self.name,
                "subjects": [self.subjects + ">"],
                "num_replicas": self._replicas,
            }
            described = await self._asked(f"STREAM.CREATE.{self.name}", json.encode(wanted), _Described)
            if described.error is not None and described.error.err_code == _NO_REPLICAS:
                raise ConfigError(
                    f"cluster_replicas is {self._replicas}, and the server is none of a cluster with JetStream: "
                    f"{described.error.description[:200]}. Give it the others, or have the log on one server."
                )
            if described.error is not None and described.error.err_code == _THERE_ALREADY:  # another node was faster
                described = await self._asked(f"STREAM.INFO.{self.name}", b"", _Described)
        kept = self._checked(described).config
        expected = _KIND | {"subjects": [self.subjects + ">"], "no_ack": False, "sealed": False}
        wrong = {name: getattr(kept, name) for name in expected if getattr(kept, name) != expected[name]}
        if wrong:
            raise ConfigError(
                f"The stream {self.name} is none that keeps a log: it has {_shown(wrong)}; expected "
                f"{_shown({name: expected[name] for name in wrong})}. Change it, or give another cluster_name."
            )
        if kept.num_replicas < self._replicas:
            raise ConfigError(
                f"The stream {self.name} is on {kept.num_replicas} of the servers, and cluster_replicas is "
                f"{self._replicas}. Bring it to more of them, as with nats stream edit {self.name} --replicas "
                f"{self._replicas}, or lower cluster_replicas."
            )
        if kept.num_replicas > 1:
            await self._check_replicated(kept.num_replicas)
        self._is_alone = kept.num_replicas == 1

    async def _check_replicated(self, replicas: int) -> None:
        version = (await self._link.broker()).version
        if version_of(version) < REPLICATED_SINCE:
            raise ConfigError(
                f"The log would be on {replicas} servers of NATS {version}, and replicated streams before 2.10 lose "
                "their order. Upgrade the servers, or have the stream on one of them."
            )

    async def append(self, subject: str, content: bytes, expected: int) -> int:
        """Append a record behind a subject's newest one, which has the number `expected` or is none; return its own.

        Raises:
            WrongNumber: The newest one is another.
            BackplaneError: As at the top of this file.
        """
        await self._enter(len(content))
        try:
            headers = {"Nats-Expected-Last-Subject-Sequence": str(expected)}
            answer = await self._link.ask_broker(subject, content, ANSWERS_WITHIN_S, headers)
        finally:
            self._leave(len(content))
        appended = _read(answer, _Appended)
        if (error := appended.error) is not None and not self._nothing_written(error):
            raise NoReply(f"{_said(error)} Perhaps the record was appended.")
        self._checked(appended)
        if appended.seq <= 0:
            raise NoReply("JetStream answered without a number; perhaps the record was appended.")
        return appended.seq

    async def newest(self, subject: str) -> Stored | None:
        """Return a subject's newest record, or None."""
        return await self._got({"last_by_subj": subject})

    async def numbered(self, number: int) -> Stored | None:
        """Return the record with a number, or None where it is gone."""
        return await self._got({"seq": number})

    async def next(self, subject: str, number: int) -> Stored | None:
        """Return a subject's first record that has this number or a higher one, or None."""
        return await self._got({"seq": number, "next_by_subj": subject})

    async def purge(self, subject: str, ahead_of: int) -> None:
        """Let go of a subject's records that are ahead of a number."""
        request = json.encode({"filter": subject, "seq": ahead_of})
        self._checked(await self._asked(f"STREAM.PURGE.{self.name}", request, _Answered))

    async def all_subjects(self) -> list[str]:
        """Return all subjects that have records, without the part that all have."""
        found: list[str] = []
        while True:
            request = json.encode({"subjects_filter": self.subjects + ">", "offset": len(found)})
            described = self._checked(await self._asked(f"STREAM.INFO.{self.name}", request, _Described))
            more = list(described.state.subjects)
            found += more
            if len(more) < 100_000:  # the server's own bound for one answer
                return [each.removeprefix(self.subjects) for each in dict.fromkeys(found)]

    async def _got(self, request: dict[str, Any]) -> Stored | None:
        got = await self._asked(f"STREAM.MSG.GET.{self.name}", json.encode(request), _Got, ANSWERS_WITHIN_S)
        if got.error is not None and got.error.err_code == _NOT_FOUND[0]:
            return None
        message = self._checked(got).message
        if message is None:
            raise NoReply("JetStream answered neither with a record nor that there is none.")
        return message

    async def _asked(self, api: str, payload: bytes, kind: type[_Answer], within_s: float = WORKS_WITHIN_S) -> _Answer:
        async with self._asking:
            return _read(await self._link.ask_broker(f"$JS.API.{api}", payload, within_s), kind)

    def _nothing_written(self, error: _Error) -> bool:
        """Return whether an append's error is one that comes ahead of all writing.

        A disk that fails says so when it has written, perhaps; and one server of several that is full says nothing of
        the others.
        """
        code = error.err_code
        if code == _NOT_STORED:
            return error.description.startswith("maximum ")
        return code in (*_WRONG_NUMBER, *_NOT_ENABLED, _TOO_LARGE) or (self._is_alone and code in _FULL)

    def _on_state(self, state: LinkState) -> None:
        self.losses += state == "away"

    def _checked(self, answer: _Answer) -> _Answer:
        error = answer.error
        if error is None:
            return answer
        said = _said(error)
        if error.err_code in _WRONG_NUMBER:
            raise WrongNumber(said)
        if error.err_code in _NOT_ENABLED:
            raise NoJetStream(said)
        raise Refusal(said)

    async def _enter(self, size: int) -> None:
        if self._under_way and (self._waiting or self._under_way + size > UNDER_WAY_BYTES):
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append((size, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._leave(size)
                raise
        else:
            self._under_way += size

    def _leave(self, size: int) -> None:
        self._under_way -= size
        while self._waiting:
            next_size, turn = self._waiting[0]
            if turn.done():  # whoever it was waits no more
                self._waiting.popleft()
                continue
            if self._under_way and self._under_way + next_size > UNDER_WAY_BYTES:
                return
            self._waiting.popleft()
            self._under_way += next_size
            turn.set_result(None)


def version_of(text: str) -> tuple[int, ...]:
    """Return the first two numbers of a version; what is none is taken for the newest."""
    parts = text.split(".")[:2]
    return tuple(map(int, parts)) if len(parts) == 2 and all(each.isdecimal() for each in parts) else (99, 0)


def _said(error: _Error) -> str:
    return f"JetStream refused: {error.description[:200] or error.code} ({error.err_code})."


def _shown(options: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in options.items())


def _read(answer: bytes, kind: type[_Answer]) -> _Answer:
    try:
        return json.decode(answer, type=kind)
    except DecodeError as error:
        raise NoReply(f"JetStream's answer cannot be read: {error}") from error
