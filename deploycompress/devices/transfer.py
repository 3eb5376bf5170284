"""Files to a device and from it, in pieces as large as the link is fast: a lost one is sent again, not the whole."""

from __future__ import annotations

from pathlib import Path

from deploycompress.artifact import digest_file
from deploycompress.devices.link import Answer, Link
from deploycompress.errors import EnvironmentMissing
from deploycompress.writing import saving

PIECES_BYTES = (1 << 16, 1 << 22)  # the smallest, and first, and the largest
PIECE_S = 3.0  # what one should take
TRIES = 3  # of a file whose digest is wrong on arrival
SHORT = 100  # pieces of which less arrived than was sent; a link that is cut now and then leaves some
LARGEST_BYTES = 1 << 30  # of what a device may send us


def send(link: Link, digest: str, path: Path, sender: str, where: str) -> None:
    """Put a file there under its digest, which the device checks. ``sender``: whose piece it is, until it is whole."""
    size = path.stat().st_size
    there, piece, damaged, short = 0, PIECES_BYTES[0], 0, 0
    with path.open("rb") as stream:
        while damaged < TRIES and short < SHORT:
            stream.seek(there)
            data = stream.read(piece)
            answer = link.ask("put", data, digest=digest, sender=sender, offset=there, of=size)
            now = answer.head.get("size")
            if now == size and answer.head.get("whole") is True:
                return
            piece = _next(piece, answer)
            if isinstance(now, int) and there < now < size:
                short += now < there + len(data)
                there = now
            else:
                there, damaged = 0, damaged + 1
    raise EnvironmentMissing(
        f"{where}: a file of {size} bytes does not arrive as it was sent, {TRIES} times from its beginning or in {SHORT} "
        "pieces; look at its disk and memory"
    )


def receive(link: Link, job: str, name: str, place: Path, where: str, largest: int = LARGEST_BYTES) -> bool:
    """Bring a file of a job to ``place``; False where there is none.

    Raises EnvironmentMissing for one that is damaged, or has more than ``largest`` bytes.
    """
    piece = PIECES_BYTES[0]
    with saving(place), place.open("wb") as stream:
        while True:
            answer = link.ask("read", id=job, name=name, offset=stream.tell(), most=piece)
            size = answer.head.get("size")
            if size is None:
                return False
            if not isinstance(size, int) or size > largest:
                raise EnvironmentMissing(f"{where}: {name} has {size} bytes; measure for less time")
            expected = min(piece, size - stream.tell())
            stream.write(answer.data)
            if stream.tell() >= size or len(answer.data) < expected:  # a file's every piece is whole
                break
            piece = _next(piece, answer)
    if digest_file(place) != answer.head.get("sha256"):
        raise EnvironmentMissing(f"{where}: {name} of its result arrived damaged; run the same command again")
    return True


def _next(piece: int, answer: Answer) -> int:
    """What the link can carry in the time that a piece should take; at most twice the last."""
    fitting = int(piece * PIECE_S / max(answer.seconds, 0.01))
    return max(PIECES_BYTES[0], min(2 * piece, fitting, PIECES_BYTES[1]))
