"""Videos become upright pictures with square pixels, each at its time; what is odd is told, damage is an error."""

import re
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from segvid.data.reading import DataError
from segvid.data.video import Frame, count_frames, frames

Picture = NDArray[np.uint8]


def corners(width: int = 64, height: int = 48) -> Picture:
    """Red, green, blue and white, from top left to bottom right."""
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    picture[: height // 2, : width // 2] = (220, 20, 20)
    picture[: height // 2, width // 2 :] = (20, 200, 20)
    picture[height // 2 :, : width // 2] = (20, 20, 220)
    picture[height // 2 :, width // 2 :] = 230
    return picture


def write_video(
    path: Path, pictures: Sequence[Picture], times: Sequence[int] = (), codec: str = "mpeg4", **context: Any
) -> Path:
    """A video of ten pictures a second, or at times in hundredths of a second, of which the last is its end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=10)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if times:
            stream.codec_context.time_base = Fraction(1, 100)
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if times:
                frame.pts, frame.time_base = times[index], Fraction(1, 100)
            for packet in stream.encode(frame):
                if times:
                    packet.duration = times[index + 1] - times[index]
                out.mux(packet)
        out.mux(stream.encode(None))
    return path


def turn_by(path: Path, matrix: tuple[float, float, float, float]) -> Path:
    """Writes the display matrix of an mp4: a pixel (x, y) is shown at (a x + c y, b x + d y)."""
    a, b, c, d = (round(65536 * value) for value in matrix)
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def cut_avi(path: Path, count: int) -> Path:
    """Leaves so many pictures of an AVI, whose header goes on to promise all."""
    content = path.read_bytes()
    place = content.index(b"movi")
    for _ in range(count + 1):
        place = content.index(b"00dc", place + 1)
    path.write_bytes(content[:place])
    return path


def read(path: Path) -> tuple[list[Frame], list[str]]:
    notes: list[str] = []
    return list(frames(path, notes.append)), notes


SIDEWAYS = "its rotation is none of 0, 90, 180 and 270 degrees: the nearest of them is taken."


@pytest.mark.parametrize(
    ("matrix", "turned", "notes"),
    [
        ((1, 0, 0, 1), lambda p: p, []),
        ((0, 1, -1, 0), lambda p: np.rot90(p, -1), []),  # a phone held upright: clockwise
        ((-1, 0, 0, -1), lambda p: np.rot90(p, 2), []),
        ((0, -1, 1, 0), lambda p: np.rot90(p, 1), []),
        ((-1, 0, 0, 1), np.fliplr, []),
        ((1, 0, 0, -1), np.flipud, []),
        ((0, 1, 1, 0), lambda p: p.transpose(1, 0, 2), []),
        ((0, 0, 0, 0), lambda p: p, [SIDEWAYS]),
        ((0.71, 0.70, -0.70, 0.71), lambda p: p, [SIDEWAYS]),
        ((0.5, 0.87, -0.87, 0.5), lambda p: np.rot90(p, -1), [SIDEWAYS]),
    ],
)
def test_pictures_are_upright(
    matrix: tuple[float, float, float, float], turned: Callable[[Picture], Picture], notes: list[str], tmp_path: Path
) -> None:
    video = turn_by(write_video(tmp_path / "a.mp4", [corners()] * 3), matrix)
    found, said = read(video)
    expected = turned(corners())
    assert [frame.picture.shape for frame in found] == [expected.shape] * 3
    assert np.abs(found[1].picture.astype(int) - expected).mean() < 12
    assert said == notes


@pytest.mark.parametrize(
    ("pixel", "size", "notes"),
    [
        (Fraction(2), (128, 48), 0),
        (Fraction(1, 2), (64, 96), 0),
        (Fraction(16, 15), (68, 48), 0),
        (Fraction(20), (64, 48), 1),
    ],
)
def test_pixels_are_square(pixel: Fraction, size: tuple[int, int], notes: int, tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", [corners()] * 2, sample_aspect_ratio=pixel)
    found, said = read(video)
    assert found[0].picture.shape == (size[1], size[0], 3)
    assert np.abs(found[0].picture.astype(int) - corners(*size)).mean() < 12
    assert len(said) == notes


def test_wide_pixels_of_a_turned_video(tmp_path: Path) -> None:
    """Pixels are wide in the stored picture, before it is turned."""
    video = write_video(tmp_path / "a.mp4", [corners()] * 2, sample_aspect_ratio=Fraction(2))
    assert read(turn_by(video, (0, 1, -1, 0)))[0][0].picture.shape == (128, 48, 3)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_times_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    times = [0, 7, 300, 301, 858, 908]
    found, _ = read(write_video(tmp_path / name, [corners()] * 5, times))
    assert [float(100 * frame.time * frame.time_base) for frame in found] == times[:-1]


def test_times_of_avi_are_in_order(tmp_path: Path) -> None:
    """It has none of pictures, and those of packets are in disorder where pictures refer to later ones."""
    video = write_video(tmp_path / "a.avi", noise(12), codec="libx264")
    found, _ = read(video)
    assert [round(float(10 * frame.time * frame.time_base)) for frame in found] == list(range(12))


def test_another_size_is_brought_to_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        encoders = [stream]
        other: Any = av.CodecContext.create("mjpeg", "w")
        other.width, other.height, other.pix_fmt, other.time_base = 96, 80, "yuvj420p", Fraction(1, 10)
        encoders = [stream, stream, other, other]
        for index, encoder in enumerate(encoders):
            frame = av.VideoFrame.from_ndarray(corners(encoder.width, encoder.height), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            for packet in encoder.encode(frame):
                packet.stream, packet.pts, packet.dts = stream, index, index
                out.mux(packet)
    found, said = read(path)
    assert [frame.picture.shape for frame in found] == [(48, 64, 3)] * 4
    assert np.abs(found[3].picture.astype(int) - corners()).mean() < 12
    assert said == ["its pictures change from 64 x 48 to 96 x 80: all are brought to the size of the first."]


def test_pictures_that_are_promised_and_not_there(tmp_path: Path) -> None:
    video = cut_avi(write_video(tmp_path / "a.avi", [corners()] * 40), 6)
    found, said = read(video)
    assert len(found) == 6
    assert said == ["6 of the 40 pictures that its header promises are there."]


def noise(count: int = 40) -> list[Picture]:
    base = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    return [np.roll(base, 3 * index, axis=1) for index in range(count)]


@pytest.mark.parametrize("codec", ["mpeg4", "libx264", "ffv1"])
@pytest.mark.parametrize("share", [0.5, 0.97])
def test_matroska_that_breaks_off_is_damaged(codec: str, share: float, tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mkv", noise(), codec=codec)
    whole = video.read_bytes()
    assert len(read(video)[0]) == 40
    video.write_bytes(whole[: int(share * len(whole))])
    for _ in range(2):  # FFmpeg's log leaves out what it has said just before
        with pytest.raises(DataError, match=r"a\.mkv: is cut off or damaged after \d+ pictures"):
            read(video)


@pytest.mark.parametrize(
    ("name", "codec"),
    [(name, codec) for name in ("a.mkv", "a.mp4", "a.avi") for codec in ("mpeg4", "libx264")] + [("a.mkv", "ffv1")],
)
def test_a_hole_in_the_file_is_damage(name: str, codec: str, tmp_path: Path) -> None:
    video = write_video(tmp_path / name, noise(), codec=codec)
    content = bytearray(video.read_bytes())
    start, length = len(content) // 2, len(content) // 10
    content[start : start + length] = bytes(length)
    video.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        read(video)


def test_a_picture_in_the_middle_that_is_broken_is_damage(tmp_path: Path) -> None:
    """The file around it is whole."""
    video = write_video(tmp_path / "a.mkv", noise())
    content = bytearray(video.read_bytes())
    with av.open(str(video)) as container:
        packet = next(packet for packet in container.demux(video=0) if packet.pts == 500)
        place = content.index(bytes(packet)) + packet.size // 4
    content[place : place + packet.size // 2] = bytes(packet.size // 2)
    video.write_bytes(content)
    with pytest.raises(DataError, match=r"picture 6 cannot be decoded"):
        read(video)


def test_pictures_of_an_index_that_are_not_found_are_damage(tmp_path: Path) -> None:
    """Each picture stands alone: those that are left can be decoded."""
    video = write_video(tmp_path / "a.avi", noise(), codec="mjpeg")
    content = bytearray(video.read_bytes())
    places = [match.start() for match in re.finditer(b"00dc", content[: content.index(b"idx1")])]
    content[places[-20] : places[-10]] = bytes(places[-10] - places[-20])
    video.write_bytes(content)
    with pytest.raises(DataError, match="are in its index only"):
        read(video)


def test_what_is_no_video(tmp_path: Path) -> None:
    text, sound = tmp_path / "a.mp4", tmp_path / "b.mp4"
    text.write_text("no video at all")
    with pytest.raises(DataError, match="cannot be read as a video"):
        read(text)
    with av.open(str(sound), "w") as out:
        stream: Any = out.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.raises(DataError, match="has no picture"):
        read(sound)
    assert count_frames(text) == count_frames(sound) == 1


def test_how_many_pictures_there_are_to_come(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mkv", "a.avi"):
        assert count_frames(write_video(tmp_path / name, [corners()] * 7)) == 7


def test_a_name_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.mp4", [corners()] * 2).rename("concat:x.mp4")
    assert len(read(Path("concat:x.mp4"))[0]) == 2


def test_a_comment_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        out.metadata["comment"] = "MARKER"
        stream: Any = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(corners(), format="rgb24")))
        out.mux(stream.encode(None))
    content = path.read_bytes()
    assert b"MARKER" in content
    path.write_bytes(content.replace(b"MARKER", b"\xfe\xffMARK"))
    assert len(read(path)[0]) == 1
