"""Videos as pictures: upright, with square pixels, all of one size, each with its time. Read with PyAV."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segvid.data.reading import Array, DataError

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream

RATE = Fraction(25)  # where a file does not say its own
WIDEST_PIXEL = 8  # a pixel that is said to be wider (or higher) than this is a fault of the file


@dataclass(frozen=True)
class Frame:
    """A picture of a video.

    Args:
        picture: RGB, (H, W, 3).
        time: since the first picture, in units of `time_base`; later than that of the picture before.
        duration: likewise.
        time_base: in seconds.
        rate: pictures a second, on average.
    """

    picture: Array
    time: int
    duration: int
    time_base: Fraction
    rate: Fraction


@dataclass(frozen=True)
class Turn:
    """How stored pixels become an upright picture.

    Args:
        transposed: rows become columns, first of all.
        mirrored: then left and right are exchanged.
        upside_down: and top and bottom.
    """

    transposed: bool = False
    mirrored: bool = False
    upside_down: bool = False

    def upright(self, picture: Array) -> Array:
        """The picture (H, W, 3), turned."""
        turned = picture.transpose(1, 0, 2) if self.transposed else picture
        return np.ascontiguousarray(turned[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1])


def count_frames(path: Path) -> int:
    """How many pictures a video has, as far as its header says; 1 where it does not, or cannot be read."""
    import av

    try:
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            stream = container.streams.video[0]
            seconds = (container.duration or 0) / av.time_base
            return stream.frames or max(round(seconds * (stream.average_rate or RATE)), 1)
    except (av.error.FFmpegError, IndexError):
        return 1


def frames(path: Path, note: Callable[[str], None]) -> Iterator[Frame]:
    """The pictures of a video.

    They are turned as its display matrix says, to the nearest of the eight positions of a rectangle; pixels that are
    not square are made so by the longer side; a picture of another size is brought to that of the first.

    Args:
        path: of the video.
        note: is told what is odd, but no damage: fewer pictures than the header promises, a change of the size.

    Raises:
        DataError: it cannot be read, or is damaged: its decoder fails, pictures of its index cannot be found in it, or
            a file without such an index (Matroska, WebM) breaks off.
    """
    import av

    count = delivered = 0  # pictures and packets
    try:
        faults: list[str] = []
        with _demuxer_errors(faults):
            container = av.open(f"file:{path}", metadata_errors="replace")  # a name with a colon is no address
        with container:
            if not container.streams.video:
                raise DataError(path, "has no picture.")
            stream = container.streams.video[0]
            rate = Fraction(stream.average_rate or RATE)
            reader = _Reader(stream.sample_aspect_ratio, note)
            time_base = Fraction(stream.time_base or 1 / rate)
            step = max(round(1 / (rate * time_base)), 1)
            began = start = last = None  # of the first packet; of the first and of the latest picture
            broken = False
            by_packets = container.format.name == "avi"  # which gives times to packets only
            packets = container.demux(stream)
            while True:
                with _demuxer_errors(faults):  # decoders may complain of what they repair
                    packet = next(packets, None)
                if packet is None:
                    break
                delivered += packet.size > 0
                if began is None and not packet.is_discard:
                    began = packet.pts
                for decoded in packet.decode():
                    if broken:  # in the last one, which may be cut off, it is a promise that the file does not keep
                        raise DataError(path, f"is damaged: picture {count} cannot be decoded.")
                    broken = packet.is_corrupt or decoded.is_corrupt
                    time = decoded.dts if by_packets else decoded.pts
                    if time is None:
                        time = 0 if last is None else last + step
                    if start is None or last is None:
                        start = time
                        late = 0 if began is None else (start - began) * time_base
                        if late > 2 / rate:
                            note(f"its first {float(late):.1f} s cannot be decoded: they come before a key frame.")
                    else:
                        time = max(time, last + 1)
                    last = time
                    count += 1
                    yield Frame(reader.read(decoded), time - start, decoded.duration or step, time_base, rate)
            if delivered < _indexed(stream, path):
                raise DataError(path, f"is damaged: {count} of its pictures are left, others are in its index only.")
            if faults and "matroska" in container.format.name:
                raise DataError(
                    path,
                    f"is cut off or damaged after {count} pictures ({faults[0]}). If what is left will do: "
                    "ffmpeg -i FILE -c copy MENDED.mkv",
                )
            if count == 0:
                raise DataError(path, "has no picture that can be decoded.")
            if count < stream.frames:
                note(f"{count} of the {stream.frames} pictures that its header promises are there.")
    except av.error.FFmpegError as error:
        if count:
            raise DataError(
                path, f"is damaged: after {count} pictures its decoder fails ({error.strerror})."
            ) from error
        raise DataError(path, f"cannot be read as a video ({error.strerror}).") from error


def _indexed(stream: "VideoStream", path: Path) -> int:
    """How many packets of the stream's index lie within the file: those beyond its end are a promise only."""
    end = path.stat().st_size
    return sum(entry.size > 0 and entry.pos + entry.size <= end for entry in stream.index_entries)


class _Reader:
    """Decoded pictures of one video as upright RGB of one size."""

    def __init__(self, pixel: Fraction | None, note: Callable[[str], None]) -> None:
        from av.video.reformatter import VideoReformatter

        self.pixel = pixel or Fraction(1)
        self.note = note
        self.stored: tuple[int, int] | None = None  # width and height of the first picture
        self.size = (0, 0)  # with square pixels
        self.turn = Turn()
        self.reformatter = VideoReformatter()

    def read(self, frame: "VideoFrame") -> Array:
        """A picture, (H, W, 3)."""
        size = (frame.width, frame.height)
        if self.stored is None:
            self.stored = size
            self.size = self._square(*size)
            self.turn = self._turn(frame)
        elif size != self.stored:
            self.note(
                f"its pictures change from {self.stored[0]} x {self.stored[1]} to {size[0]} x {size[1]}: all are "
                "brought to the size of the first."
            )
            self.stored = size  # the next change is told, too
        converted = self.reformatter.reformat(frame, *self.size, format="rgb24", threads=1)
        return self.turn.upright(np.asarray(converted.to_ndarray(), dtype=np.uint8))

    def _square(self, width: int, height: int) -> tuple[int, int]:
        if not Fraction(1, WIDEST_PIXEL) <= self.pixel <= WIDEST_PIXEL:
            self.note(f"its pixels are said to be {self.pixel} times as wide as high: taken as square.")
            return width, height
        if self.pixel >= 1:
            return round(width * self.pixel), height
        return width, round(height / self.pixel)

    def _turn(self, frame: "VideoFrame") -> Turn:
        side_data: Any = frame.side_data
        found = side_data.get("DISPLAYMATRIX")
        if found is None:
            return Turn()
        # Where a pixel (x, y) is shown: (a x + c y, b x + d y). As fixed-point numbers, of which the signs suffice.
        a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(found), dtype=np.int32)[:5])
        transposed = abs(b) + abs(c) > abs(a) + abs(d)
        across, down, *rest = (c, b, a, d) if transposed else (a, d, b, c)
        if across == 0 or down == 0 or any(rest):
            self.note("its rotation is none of 0, 90, 180 and 270 degrees: the nearest of them is taken.")
        return Turn(transposed, across < 0, down < 0)


@contextlib.contextmanager
def _demuxer_errors(found: list[str]) -> Iterator[None]:
    """Collects what FFmpeg logs as errors: a file that breaks off is no other error to it than one that ends."""
    import av

    before = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as logs:
            yield
    finally:
        found += [message.strip() for _, _, message in logs]
        av.logging.set_level(before[0])
        av.logging.set_skip_repeated(before[1])
