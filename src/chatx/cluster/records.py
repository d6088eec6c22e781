"""What nodes say to each other, as bytes: one of version, then a tagged array in MessagePack.

Rules:
1. The version comes first, and nothing behind it is looked at before it is known to be understood.
2. A node reads its own version and the one before, and writes what all nodes read: a cluster is upgraded node by node.
3. Whatever is not a record, in whatever way, is `BadRecord` and nothing else.
4. A field is never given another meaning. A field or a kind that is added makes a new version, and the shapes of the
   one before stay beside it for as long as it is read.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

from msgspec import Meta, ValidationError, msgpack

from chatx.cluster.fields import RECORD_BYTES, Boot, Count, NodeName, Part, Word
from chatx.cluster.log_record import Logged
from chatx.cluster.placement import LARGEST_WEIGHT
from chatx.cluster.rpc import Answer, Ask, Told

VERSION: Final = 1
"""The version of records that this node writes and reads; it reads the one before it too. At most 127."""

Version: TypeAlias = Annotated[int, Meta(ge=1, le=127)]


class BadRecord(Exception):
    """What came is not a record that this node can read, or what was to go is too large for one."""


class UnknownVersion(BadRecord):
    """A record has a version that this node does not read; the text names both."""


class Heartbeat(Part, frozen=True, gc=False, tag="hb"):
    """A node is there.

    Attributes:
        node: Its name.
        boot: Which life of it.
        number: How many heartbeats it has made, this one counted.
        state: `joining` listens and owns nothing; `draining` hands its rooms off; `gone` is the last word.
        strategy: The effective cluster strategy.
        version: The newest version of records that it reads.
        view: The hash of its view.
        config: A hash of the options that must agree.
        weight: How many shares of the rooms it takes.
        presence: A digest of the memberships through it.
        tails: A digest of the heads of the rooms that it has.
        rooms: How many rooms it has.
    """

    node: NodeName
    boot: Boot
    number: Count
    state: Literal["joining", "up", "draining", "gone"]
    strategy: Literal["pg", "horde"]
    version: Version
    view: Word
    config: Word
    weight: Annotated[int, Meta(ge=1, le=LARGEST_WEIGHT)] = 1
    presence: Count = 0
    tails: Count = 0
    rooms: Count = 0


Record: TypeAlias = Heartbeat | Ask | Answer | Told | Logged


class Records:
    """Writes and reads records.

    Args:
        version: The newest version that is read, and the one that is written unless another is asked for.
    """

    __slots__ = ("_decoder", "_encoder", "version")

    def __init__(self, version: int = VERSION) -> None:
        self.version: int = version
        self._encoder = msgpack.Encoder()
        self._decoder: msgpack.Decoder[Any] = msgpack.Decoder(Record)

    def encode(self, record: Record, version: int | None = None) -> bytes:
        """Return a record as bytes.

        Args:
            record: What is to be said.
            version: The version to write, for a cluster with older nodes; this node's own by default.

        Raises:
            BadRecord: It has more than `RECORD_BYTES`.
            ValueError: No node of this version writes that one.
        """
        version = self.version if version is None else version
        if not self._reads(version):
            raise ValueError(f"A record of version {version} was asked for; {self._understood}.")
        content = bytearray((version,))
        self._encoder.encode_into(record, content, 1)
        if len(content) > RECORD_BYTES:
            raise BadRecord(
                f"A record of kind {type(record).__name__} has {len(content)} bytes, and {RECORD_BYTES} are allowed; "
                "say it in several."
            )
        return bytes(content)

    def decode(self, content: bytes) -> Record:
        """Return the record that bytes are.

        Raises:
            UnknownVersion: Its version is newer than this node's, or older than the one before.
            BadRecord: It is none: cut off, too long, of an unknown kind, or with a field that is out of its bounds.
        """
        if not 0 < len(content) <= RECORD_BYTES:
            raise BadRecord(f"A record has {len(content)} bytes; 1 to {RECORD_BYTES} are expected. It was left out.")
        version = content[0]
        if not self._reads(version):
            do = "upgrade this node" if version > self.version else "upgrade the node that sent it"
            raise UnknownVersion(f"A record has version {version}; {self._understood}: {do}.")
        try:
            record: Record = self._decoder.decode(memoryview(content)[1:])
            record.check()
        except Exception as error:
            what = "does not have the fields" if isinstance(error, ValidationError) else "cannot be read"
            raise BadRecord(f"A record of version {version} {what}: {str(error)[:300]!r}. It was left out.") from error
        return record

    def _reads(self, version: int) -> bool:
        return version > 0 and self.version - 1 <= version <= self.version

    @property
    def _understood(self) -> str:
        if self.version == 1:
            return "this node reads version 1"
        return f"this node reads versions {self.version - 1} and {self.version}"
