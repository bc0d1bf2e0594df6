"""A package on its way from one host to another: the tar stream of `rayprep pack`, in pieces, over Ray's object plane.

The source packs while the receiver unpacks: it makes a piece when the last few are taken, so no tree has to fit into
memory on either side.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pickle import PickleBuffer

import ray

from rayprep.base.errors import ErrorType, HostUnfit, RayprepError, StageError
from rayprep.fleet.agent.shared_stream import Make, SharedStreams
from rayprep.fleet.handles import Handle
from rayprep.host.layout import Layout
from rayprep.model.completion import Completion, Key
from rayprep.store.completions import read_completions
from rayprep.store.package.manifest import PackageManifest
from rayprep.store.package.pack import blocks, make_manifest

PIECE = 8 << 20
"""Bytes, or a little more. Ray keeps anything above 100 kB in its object store."""
AHEAD = 2
"""So many pieces may lie ready that nobody has taken."""
SILENCE_S = 60.0
"""After which a source is given up that sends nothing."""


class Packages:
    """What a source sends. Receivers that ask for the same at once share the packing of it."""

    def __init__(self) -> None:
        self._streams = SharedStreams()

    def pieces(self, layout: Layout, keys: Sequence[Key]) -> Iterator[PickleBuffer]:
        """The package of these completions, piece by piece, in a form that the receiver reads where Ray has put it.

        Raises:
            HostUnfit: one is not there, or a file is not what it lists. The receiver then has a part, and takes none.
        """
        for piece in self._streams.read((layout, *keys), partial(_package, layout, keys)):
            yield PickleBuffer(piece)


def _package(layout: Layout, keys: Sequence[Key]) -> Make:
    """One manifest for all who read it: a second one may already list other files."""
    return partial(_pieces, layout, make_manifest(layout, [_completion(layout, key) for key in keys]))


def _pieces(layout: Layout, manifest: PackageManifest, start: int) -> Iterator[bytes]:
    piece, size = list[bytes](), 0
    for block in blocks(layout, manifest, start):
        piece.append(block)
        size += len(block)
        if size >= PIECE:
            yield b"".join(piece)
            piece, size = [], 0
    if piece:
        yield b"".join(piece)


def _completion(layout: Layout, key: Key) -> Completion:
    found = next((each for each in read_completions(layout, key[0])[0] if each.key == key[1]), None)
    if found is None:
        raise HostUnfit(f"{layout.profiles} has no completion {key[0]}/{key[1]} any more")
    return found


class SourceFailed(RayprepError):
    """The source could not send all of it. Another one may."""


class PieceStream:
    """The receiver's end: what a source's actor yields, piece by piece.

    Raises:
        SourceFailed: while it is read, where the source died, fell silent, or could not pack.
        StageError: `node_lost`, the receiver's own part of Ray is gone.
    """

    def __init__(self, source: str, generator: Handle) -> None:
        self._source, self._generator = source, generator

    def read(self, _: int, /) -> bytes | memoryview:
        """The next piece, of whatever size; none at the end."""
        try:
            if not ray.wait([self._generator], timeout=SILENCE_S)[0]:
                raise self._failed(f"has sent nothing for {SILENCE_S:.0f} s")
            piece: memoryview = ray.get(next(self._generator), timeout=SILENCE_S)
            if len(piece) > 2 * PIECE:
                raise self._failed(f"has sent {len(piece)} bytes in one piece")
            ray.wait([self._generator], timeout=0)  # fetches the next one while this one is unpacked
            return piece
        except StopIteration:
            return b""
        except ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            raise self._failed(cause.message if isinstance(cause, RayprepError) else str(cause or error)) from None
        except ray.exceptions.RayError as error:
            raise self._failed(f"was lost while it sent: {type(error).__name__}") from None
        except OSError as error:  # Ray's for its own socket; it must not be taken for one of the cache's files
            raise StageError(ErrorType.NODE_LOST, f"this host has lost its raylet: {error}") from None

    def _failed(self, why: str) -> RayprepError:
        return SourceFailed(f"{self._source} {why}", error_type=ErrorType.NODE_LOST)
