"""`segvid predict`: what is written, where, and what a bad input does."""

import json
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from segvid.cli import main
from segvid.commands import options as command_options
from segvid.data.cityscapes import TRAIN_IDS
from segvid.data.reading import voc_palette
from segvid.errors import UserError
from segvid.export.exported import ExportedModel
from segvid.predict import blend, find_sources
from segvid.predictions import RECORD, Record, stamp_of
from segvid.segmentation.inference import Inference
from segvid.segmentation.trained import TrainedModel, load_trained
from tests.data.test_video import corners, cut_avi, noise, turn_by, write_video


def photo(path: Path, size: tuple[int, int] = (60, 50), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def predict(run: Path, tmp_path: Path, *words: str) -> int:
    checkpoint = run / "checkpoints" / "last.ckpt"
    return main(
        ["predict", *words, "--ckpt_path", str(checkpoint), "--output", str(tmp_path / "out"), "--device", "cpu"]
    )


def written(tmp_path: Path) -> set[str]:
    files = [file.relative_to(tmp_path / "out") for file in (tmp_path / "out").rglob("*") if file.is_file()]
    return {str(file) for file in files if file.name not in (RECORD, "legend.png")}


def test_masks_hold_the_classes_and_the_palette_of_the_data(run: Path, tmp_path: Path) -> None:
    """Folders keep their structure; the mask is what the task itself predicts, at the picture's own size."""
    first = photo(tmp_path / "in/a.png")
    photo(tmp_path / "in/street/b.png", (33, 47), 1)
    assert predict(run, tmp_path, str(tmp_path / "in")) == 0
    assert written(tmp_path) == {"masks/a.png", "masks/street/b.png", "overlays/a.jpg", "overlays/street/b.jpg"}
    mask = Image.open(tmp_path / "out/masks/a.png")
    model = load_trained(run / "checkpoints" / "last.ckpt")
    image = model.normalised(np.asarray(Image.open(first)))[None]
    with torch.no_grad():
        expected = model.task(image).argmax(dim=1)[0].numpy()
    assert mask.mode == "P"
    np.testing.assert_array_equal(np.asarray(mask), expected)
    assert len(np.unique(expected)) > 1, "one class everywhere would be right with any weights"
    assert np.array(mask.getpalette()).reshape(-1, 3)[: len(model.palette)].tolist() == [list(c) for c in model.palette]
    assert Image.open(tmp_path / "out/masks/street/b.png").size == (33, 47)
    shown = blend(np.asarray(Image.open(first)), expected.astype(np.uint8), model, 0.5)
    Image.fromarray(shown).save(tmp_path / "shown.jpg", quality=92)
    assert (tmp_path / "out/overlays/a.jpg").read_bytes() == (tmp_path / "shown.jpg").read_bytes()


def test_windows_scales_and_mirrors_are_those_of_evaluation(run: Path, tmp_path: Path) -> None:
    picture = photo(tmp_path / "a.png")
    options = ["--window", "20", "24", "--stride", "10", "24", "--flip", "--scales", "0.5,1.5"]
    assert predict(run, tmp_path, *options, str(picture)) == 0
    how = Inference(window=(20, 24), stride=(10, 24), scales=(0.5, 1.5), flip=True)
    model = load_trained(run / "checkpoints" / "last.ckpt")
    (expected,) = model.classes([np.asarray(Image.open(picture))], how)
    (plain,) = model.classes([np.asarray(Image.open(picture))], Inference())
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/masks/a.png")), expected)
    assert (expected != plain).any()


def test_what_is_done_is_not_predicted_again(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo(tmp_path / "in/a.png")
    assert predict(run, tmp_path, str(tmp_path / "in")) == 0
    stamp = (tmp_path / "out/masks/a.png").stat().st_mtime_ns
    photo(tmp_path / "in/b.png")
    assert predict(run, tmp_path, str(tmp_path / "in")) == 0
    assert "2 files, 1 done already" in capsys.readouterr().out
    assert (tmp_path / "out/masks/a.png").stat().st_mtime_ns == stamp
    (tmp_path / "out/overlays/a.jpg").unlink()  # a half result counts as none
    assert predict(run, tmp_path, str(tmp_path / "in")) == 0
    assert (tmp_path / "out/overlays/a.jpg").is_file()


def test_predictions_of_another_model_or_in_another_way_are_not_mixed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(tmp_path / "in/a.png")
    assert predict(run, tmp_path, str(tmp_path / "in")) == 0
    assert predict(run, tmp_path, str(tmp_path / "in"), "--flip") == 1
    assert "holds predictions with another flip" in capsys.readouterr().err
    other = tmp_path / "other.ckpt"
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save(content | {"epoch": 99}, other)
    words = ["--ckpt_path", str(other), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["predict", str(tmp_path / "in"), *words]) == 1
    assert "holds predictions with another model" in capsys.readouterr().err


def test_results_below_the_pictures_are_no_pictures(run: Path, tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    for _ in range(2):
        assert predict(run, tmp_path, str(tmp_path)) == 0
        assert written(tmp_path) == {"masks/a.png", "overlays/a.jpg"}


def test_a_photo_is_turned_as_viewers_show_it(run: Path, tmp_path: Path) -> None:
    upright = photo(tmp_path / "in/upright.png")
    lying = Image.open(upright).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    lying.save(tmp_path / "in/lying.png", exif=exif)
    assert predict(run, tmp_path, str(tmp_path / "in")) == 0
    masks = [np.asarray(Image.open(tmp_path / f"out/masks/{name}.png")) for name in ("upright", "lying")]
    np.testing.assert_array_equal(masks[0], masks[1])


def test_a_damaged_video_is_said_to_be(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = make_video(tmp_path / "drive.avi", count=40)
    content = bytearray(video.read_bytes())
    start = content.index(b"movi") + len(content) // 10  # of pictures that are in the index at the end
    content[start : start + len(content) // 4] = bytes(len(content) // 4)
    video.write_bytes(content)
    assert predict(run, tmp_path, str(video)) == 1
    assert re.search(r"drive.avi: is damaged", capsys.readouterr().err)
    assert written(tmp_path) == set()


def test_the_tree_of_the_voc_server(run: Path, tmp_path: Path) -> None:
    picture = photo(tmp_path / "2008_000001.jpg")
    assert predict(run, tmp_path, str(picture), "--format", "voc") == 0
    assert written(tmp_path) == {"results/VOC2012/Segmentation/comp6_test_cls/2008_000001.png"}
    image = Image.open(tmp_path / "out/results/VOC2012/Segmentation/comp6_test_cls/2008_000001.png")
    assert np.array(image.getpalette()).reshape(-1, 3).tolist() == [list(c) for c in voc_palette(256)]


def test_the_files_of_the_cityscapes_server(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Label ids, not train ids; the round trip through the data set's own table gives the classes back."""
    picture = photo(tmp_path / "berlin/berlin_000000_000019_leftImg8bit.png")
    assert predict(run, tmp_path, str(picture), "--format", "cityscapes") == 1  # eleven classes
    monkeypatch.setattr("segvid.data.cityscapes.TRAIN_IDS", TRAIN_IDS[:11])
    assert predict(run, tmp_path, str(picture), "--format", "cityscapes") == 0
    assert written(tmp_path) == {"berlin_000000_000019_labelIds.png"}
    ids = np.asarray(Image.open(tmp_path / "out/berlin_000000_000019_labelIds.png"))
    assert set(np.unique(ids)) <= set(TRAIN_IDS)
    model = load_trained(run / "checkpoints" / "last.ckpt")
    (classes,) = model.classes([np.asarray(Image.open(picture))], Inference())
    from segvid.data import Cityscapes

    np.testing.assert_array_equal(Cityscapes().label_table()[ids], classes)


def make_video(path: Path, size: tuple[int, int] = (48, 34), count: int = 5) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for index in range(count):
            pixels = np.full((size[1], size[0], 3), 40 * (index % 6), dtype=np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))
    return path


def test_a_video_becomes_a_video(run: Path, tmp_path: Path) -> None:
    """As many frames, the same rate and size; without opacity the frames are those that went in."""
    video = make_video(tmp_path / "drive.avi")
    assert predict(run, tmp_path, str(video), "--opacity", "0") == 0
    assert written(tmp_path) == {"videos/drive.mp4"}
    with av.open(str(tmp_path / "out/videos/drive.mp4")) as container:
        assert container.streams.video[0].average_rate == 10
        found = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [f.shape for f in found] == [(34, 48, 3)] * 5
    assert [round(float(f.mean()) / 40) for f in found] == [0, 1, 2, 3, 4]


def test_one_bad_file_does_not_end_the_others(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "c.png"):
        photo(tmp_path / "in" / name)
    whole = (tmp_path / "in/a.png").read_bytes()
    (tmp_path / "in/b.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/d.mp4").write_bytes(b"no video at all")
    assert predict(run, tmp_path, str(tmp_path / "in")) == 1
    error = capsys.readouterr().err
    assert "b.png: cannot be read" in error
    assert "d.mp4: cannot be read as a video" in error
    assert len(error.strip().splitlines()) == 2
    assert written(tmp_path) == {"masks/a.png", "overlays/a.jpg", "masks/c.png", "overlays/c.jpg"}


def test_patterns_and_names(tmp_path: Path) -> None:
    for name in ("x/1.jpg", "x/y/2.jpg", "x/note.txt", "z/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_sources([str(tmp_path / "x" / "**" / "*.jpg")])
    assert [str(source.name) for source in found] == ["1", "y/2"]
    assert [str(source.name) for source in find_sources([str(tmp_path / "x")])] == ["1", "y/2"]
    twice = find_sources([str(tmp_path / "x/1.jpg"), str(tmp_path / "x/1.jpg")])
    assert len(twice) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.jpg"], "no file, folder or match for 'nowhere.jpg'"),
        (["x", "z"], "would both be written as predictions/masks/1.png"),
        (["empty"], "no image or video below empty"),
        (["x", "--opacity", "2"], "--opacity is 2.0"),
        (["x", "--scales", "nan"], "give positive numbers"),
        (["x", "--scales", "0.5,,1"], "give positive numbers with commas"),
        (["x", "--scales", "0.5", "1.0"], "unrecognized arguments: 1.0"),
        (["x", "--format", "voc", "--confidence"], "--confidence is of --format indices"),
        (["x", "--output", "."], "choose another --output"),
        (["x", "--window", "-3", "4"], "give positive sizes"),
        (["x", "y", "--format", "voc"], "would both be written as"),
        (["x", "--output", "x/1.png"], "x/1.png"),
        (["x", "--device", "meta"], "--device meta cannot be used"),
        (["x", "--format", "coco"], "--format"),
        (["x", "--window", "8", "8", "--stride", "9", "9"], "leaves pixels out"),
        (["v.mp4", "--format", "voc"], "leave videos out"),
        (["x", "--device", "abacus"], "--device abacus cannot be used"),
        (["x", "--ckpt_path", "no.ckpt"], "there is no checkpoint no.ckpt"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str],
    said: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "x/1.png")
    photo(tmp_path / "z/1.png")
    photo(tmp_path / "y/deep/1.png")
    (tmp_path / "empty").mkdir()
    make_video(tmp_path / "v.mp4")
    options = [] if "--ckpt_path" in words else ["--ckpt_path", str(run / "checkpoints/last.ckpt")]
    assert main(["predict", *words, *options]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "predictions").exists()


def of_video(path: Path) -> tuple[list[tuple[float, tuple[int, int]]], float]:
    """Time and size of the pictures of a video, and its length in seconds."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.duration is not None
        assert stream.time_base is not None
        length = float(stream.duration * stream.time_base)
        return [(frame.time or 0.0, (frame.width, frame.height)) for frame in container.decode(stream)], length


def test_a_phone_video_is_written_upright_with_square_pixels(run: Path, tmp_path: Path) -> None:
    """Its masks too: the model sees what a viewer sees."""
    video = write_video(tmp_path / "phone.mp4", [corners()] * 3, sample_aspect_ratio=Fraction(2))
    turn_by(video, (0, 1, -1, 0))
    assert predict(run, tmp_path, str(video), "--frames", "--opacity", "0") == 0
    with av.open(str(tmp_path / "out/videos/phone.mp4")) as container:
        found = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].sample_aspect_ratio in (None, 1)
    upright = np.rot90(corners(128, 48), -1)
    assert [frame.shape for frame in found] == [(128, 48, 3)] * 3
    assert np.abs(found[0].astype(int) - upright).mean() < 12
    masks = sorted((tmp_path / "out/frames/phone").iterdir())
    assert [mask.name for mask in masks] == ["000001.png", "000002.png", "000003.png"]
    assert Image.open(masks[0]).size == (48, 128)


def test_a_video_of_varying_rate_keeps_its_times(run: Path, tmp_path: Path) -> None:
    times = [0, 4, 300, 301, 858]
    video = write_video(tmp_path / "a.mkv", [corners()] * 5, times)
    assert predict(run, tmp_path, str(video)) == 0
    found, length = of_video(tmp_path / "out/videos/a.mp4")
    assert [round(100 * time) for time, _ in found] == times
    assert length == pytest.approx(8.58 + 0.1)  # the last picture is shown as long as others are


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_a_broken_matroska_file_leaves_nothing_that_counts_as_done(
    codec: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_video(tmp_path / "drive.mkv", noise(12), codec=codec)
    whole = video.read_bytes()
    video.write_bytes(whole[: 3 * len(whole) // 4])
    for _ in range(2):
        assert predict(run, tmp_path, str(video), "--frames", "--confidence") == 1
        assert re.search(r"drive\.mkv: is cut off or damaged after \d+ pictures", capsys.readouterr().err)
        assert written(tmp_path) == set()
        assert not [file for file in (tmp_path / "out").rglob("*") if "drive" in file.name]
    video.write_bytes(whole)
    assert predict(run, tmp_path, str(video)) == 0


def test_a_video_with_fewer_pictures_than_it_promises_has_a_note(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = cut_avi(write_video(tmp_path / "lie.avi", [corners()] * 9), 4)
    assert predict(run, tmp_path, str(video)) == 0
    assert "lie.avi: 4 of the 9 pictures that its header promises are there." in capsys.readouterr().out
    assert len(of_video(tmp_path / "out/videos/lie.mp4")[0]) == 4


def test_masks_of_frames_and_confidence(run: Path, tmp_path: Path) -> None:
    """Frames of a video have the masks that the same pictures have; confidence is the probability times 255."""
    video = write_video(tmp_path / "in/drive.mkv", noise(3), codec="ffv1")
    with av.open(str(video)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for index, picture in enumerate(pictures, start=1):
        Image.fromarray(picture).save(tmp_path / f"in/{index:06d}.png")
    assert predict(run, tmp_path, str(tmp_path / "in"), "--frames", "--confidence") == 0
    out = tmp_path / "out"
    for index in (1, 2, 3):
        for frames, images in (("frames/drive", "masks"), ("frames_confidence/drive", "confidence")):
            one, other = (Image.open(out / folder / f"{index:06d}.png") for folder in (frames, images))
            assert one.mode == other.mode == ("P" if images == "masks" else "L")
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    model = load_trained(run / "checkpoints" / "last.ckpt")
    with torch.no_grad():
        logits = model.task(model.normalised(np.asarray(pictures[0], dtype=np.uint8))[None])[0]
    expected = (255 * logits.softmax(dim=0).amax(dim=0)).round().numpy()
    np.testing.assert_array_equal(np.asarray(Image.open(out / "confidence/000001.png")), expected)
    (out / "frames/drive/000002.png").unlink()  # then the video is not done
    assert predict(run, tmp_path, str(tmp_path / "in"), "--frames") == 0
    assert (out / "frames/drive/000002.png").is_file()


def test_pictures_of_the_same_name_are_not_mixed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo(tmp_path / "pa/a.png", seed=1)
    photo(tmp_path / "pb/a.png", seed=2)
    assert predict(run, tmp_path, str(tmp_path / "pa")) == 0
    before = (tmp_path / "out/masks/a.png").read_bytes()
    assert predict(run, tmp_path, str(tmp_path / "pb")) == 1
    error = capsys.readouterr().err
    assert "masks/a.png is the result of" in error
    assert "pa/a.png; that of" in error
    assert (tmp_path / "out/masks/a.png").read_bytes() == before


def test_a_picture_that_was_replaced_is_predicted_again(run: Path, tmp_path: Path) -> None:
    picture = photo(tmp_path / "in/a.png", seed=1)
    assert predict(run, tmp_path, str(tmp_path / "in")) == 0
    photo(picture, seed=2)
    os.utime(picture, ns=(0, picture.stat().st_mtime_ns + 1))
    assert predict(run, tmp_path, str(tmp_path / "in")) == 0
    model = load_trained(run / "checkpoints" / "last.ckpt")
    (expected,) = model.classes([np.asarray(Image.open(picture))], Inference())
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/masks/a.png")), expected)


@pytest.mark.parametrize("result", ["masks/a.png", "overlays/a.jpg"])
def test_an_empty_result_is_not_done(result: str, run: Path, tmp_path: Path) -> None:
    photo(tmp_path / "in/a.png")
    assert predict(run, tmp_path, str(tmp_path / "in")) == 0
    (tmp_path / "out" / result).write_bytes(b"")
    assert predict(run, tmp_path, str(tmp_path / "in")) == 0
    assert (tmp_path / "out" / result).stat().st_size > 0


def test_what_is_not_of_predict_is_not_overwritten(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The labels of a data set also lie in a folder masks."""
    photo(tmp_path / "in/a.png")
    own = photo(tmp_path / "out/masks/a.png", seed=3).read_bytes()
    assert predict(run, tmp_path, str(tmp_path / "in")) == 1
    assert "it may be yours" in capsys.readouterr().err
    assert (tmp_path / "out/masks/a.png").read_bytes() == own


@pytest.mark.parametrize(
    "content", [b"[1]", b"", b"{", b"null\n", b'{"model": ', b"\xff\xfe", b"[" * 100_000, b"7\n\n"]
)
def test_a_record_that_cannot_be_read_is_one_sentence(
    content: bytes, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(tmp_path / "in/a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / RECORD).write_bytes(content)
    assert predict(run, tmp_path, str(tmp_path / "in")) == 1
    error = capsys.readouterr().err
    assert "does not say what the predictions in" in error
    assert len(error.strip().splitlines()) == 1


def test_a_record_survives_a_kill_and_grows_by_a_line_a_file(tmp_path: Path) -> None:
    """Lines are added, not the record rewritten; half a line, or one that is no record, is a file that is not done."""
    out = tmp_path / "out"
    pictures = [photo(tmp_path / f"in/{index}.png", (4, 4), index) for index in range(3)]
    results = [[photo(out / f"masks/{index}.png", (4, 4))] for index in range(3)]
    record = Record(out, {"model": "m"})
    record.begin()
    start = record.file.stat().st_ino
    for picture, files in zip(pictures[:2], results, strict=False):
        record.add(stamp_of(picture), files)
    assert record.file.stat().st_ino == start
    lines = record.file.read_bytes().split(b"\n")
    assert len(lines) == 4
    record.file.write_bytes(b"\n".join([lines[0], lines[1], b"[1]", b"null", b'{"source": 3}', lines[2][:40]]))
    again = Record(out, {"model": "m"})
    stamps = [stamp_of(picture) for picture in pictures]
    assert [again.is_done(stamp, files) for stamp, files in zip(stamps, results, strict=True)] == [True, False, False]
    again.begin()
    again.add(stamps[2], results[2])
    last = Record(out, {"model": "m"})
    assert [last.is_done(stamp, files) for stamp, files in zip(stamps, results, strict=True)] == [True, False, True]
    with pytest.raises(UserError, match="with another model"):
        Record(out, {"model": "n"})


def broken(run: Path, folder: Path, **changes: Any) -> str:
    """A checkpoint with weights or a normalisation that are broken."""
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    if "data" in changes:
        content["data"] |= changes["data"]
    else:
        content["state_dict"]["head.classifier.1.weight"].fill_(changes["weight"])
    torch.save(content, folder / "broken.ckpt")
    return str(folder / "broken.ckpt")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weight": float("nan")}, "the scores of the model are no numbers"),
        ({"weight": float("inf")}, "the scores of the model are no numbers"),
        ({"data": {"std": (0.25, 0.0, 0.25)}}, "std"),
        ({"data": {"std": (0.25, float("nan"), 0.25)}}, "std"),
        ({"data": {"mean": (float("nan"), 0.5, 0.5)}}, "mean"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--confidence"], ["--flip"]])
def test_a_broken_model_predicts_nothing(
    options: list[str],
    changes: dict[str, Any],
    said: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photo(tmp_path / "in/a.png")
    words = ["--ckpt_path", broken(run, tmp_path, **changes), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["predict", str(tmp_path / "in"), *words, *options]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not list((tmp_path / "out").rglob("a.*"))


@pytest.mark.parametrize("output_type", ["logits", "probabilities"])
def test_an_exported_file_that_gives_no_numbers_predicts_nothing(output_type: str) -> None:
    def run(image: Any) -> Any:
        return np.full((1, 2, *image.shape[2:]), np.nan, dtype=np.float32)

    model = ExportedModel(Path("m.ts"), run, ["a", "b"], [(0, 0, 0)] * 2, None, "uint8", output_type, 1, 1)
    for how in (Inference(), Inference(flip=True)):
        with pytest.raises(UserError, match="no numbers"):
            model.classes([corners()], how)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("Failed to allocate memory for requested buffer of size 9"),  # onnxruntime
        cv2.error("OpenCV(4.11.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 9 bytes"),
    ],
)
def test_a_picture_too_large_for_the_memory_is_one_failed_file(
    error: Exception, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in (("a.png", (60, 50)), ("b.png", (90, 50)), ("c.png", (60, 50))):
        photo(tmp_path / "in" / name, size)
    usual = TrainedModel.resized

    def resized(self: TrainedModel, picture: Any) -> Any:
        if picture.shape[1] == 90:
            raise error
        return usual(self, picture)

    monkeypatch.setattr(TrainedModel, "resized", resized)
    assert predict(run, tmp_path, str(tmp_path / "in")) == 1
    said = capsys.readouterr().err
    assert "b.png: is too large for the memory" in said
    assert len(said.strip().splitlines()) == 1
    assert written(tmp_path) == {"masks/a.png", "overlays/a.jpg", "masks/c.png", "overlays/c.jpg"}


def test_a_decompression_bomb_is_one_failed_file(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(tmp_path / "in/a.png")
    photo(tmp_path / "in/b.png", (120, 90))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    assert predict(run, tmp_path, str(tmp_path / "in")) == 1
    assert "b.png: cannot be read as an image" in capsys.readouterr().err
    assert written(tmp_path) == {"masks/a.png", "overlays/a.jpg"}


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    for name in ("in/a.jpg", "in/._a.jpg", "in/.thumbnails/a.jpg", "in/deep/b.mp4", "in/deep/._b.mp4", "in/m.ts"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [str(source.name) for source in find_sources([str(tmp_path / "in")])] == ["a", "deep/b"]
    assert [str(source.name) for source in find_sources([str(tmp_path / "in" / "*.jpg")])] == ["a"]
    with pytest.raises(UserError, match="no file, folder or match"):
        find_sources([str(tmp_path / "in" / "._*.jpg")])
    (named,) = find_sources([str(tmp_path / "in/._a.jpg")])
    assert named.path.name == "._a.jpg"
    (video,) = find_sources([str(tmp_path / "in/m.ts")])
    assert video.is_video


def test_what_a_killed_run_left_is_removed(run: Path, tmp_path: Path) -> None:
    photo(tmp_path / "in/a.png")
    write_video(tmp_path / "in/b.mp4", [corners()])
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = tmp_path / "out" / "masks" / f".partial-{gone.pid}-a.png"
    folder = tmp_path / "out" / "frames" / f".partial-{gone.pid}-b"
    of_another = tmp_path / "out" / "masks" / f".partial-{os.getppid()}-a.png"
    for path in (left, folder / "000001.png", of_another):
        photo(path)
    assert predict(run, tmp_path, str(tmp_path / "in"), "--frames") == 0
    assert not left.exists()
    assert not folder.exists()
    assert of_another.exists()


def test_names_of_files_are_text(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("[/] :smile: \x1b[31m.png", "$\\x$\n.png", "=1+1.png"):
        photo(tmp_path / "in" / name)
    (tmp_path / "in" / "b\x1b[2J\n.png").write_bytes(b"no image")
    assert predict(run, tmp_path, str(tmp_path / "in"), "--confidence") == 1
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert "b\\x1b[2J\\n.png" in captured.err
    assert len(written(tmp_path)) == 9
    assert predict(run, tmp_path, str(tmp_path / "in"), "--confidence") == 1
    assert "4 files, 3 done already." in capsys.readouterr().out


def test_the_background_is_not_darkened_and_colours_have_a_legend(run: Path, tmp_path: Path) -> None:
    model = load_trained(run / "checkpoints" / "last.ckpt")
    assert model.class_names[0] == "background"
    picture = np.full((2, 2, 3), 200, dtype=np.uint8)
    classes = np.array([[0, 1], [1, 0]], dtype=np.uint8)
    shown = blend(picture, classes, model, 0.5)
    np.testing.assert_array_equal(shown[[0, 1], [0, 1]], 200)
    np.testing.assert_array_equal(shown[0, 1], np.round((200 + np.array(model.palette[1])) / 2))
    photo(tmp_path / "in/a.png")
    assert predict(run, tmp_path, str(tmp_path / "in")) == 0
    legend = np.asarray(Image.open(tmp_path / "out/legend.png").convert("RGB"))
    for colour in model.palette:
        assert (legend == colour).all(axis=2).sum() > 50


def test_a_log_says_how_far_a_long_video_is(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(tmp_path / "in/a.png")
    cut_avi(write_video(tmp_path / "in/b.avi", [corners()] * 9), 4)  # five pictures fewer than expected
    photo(tmp_path / "in/c.png")
    monkeypatch.setattr(command_options, "INTERVAL", 0.0)
    assert predict(run, tmp_path, str(tmp_path / "in")) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " of " in line and "left" in line]
    assert [line.partition(",")[0] for line in lines] == [
        "a.png: 1 of 11 pictures",
        "b.avi: 2 of 11 pictures",
        "b.avi: 3 of 11 pictures",
        "b.avi: 4 of 11 pictures",
        "b.avi: 5 of 11 pictures",
        "c.png: 6 of 6 pictures",
    ]


@pytest.mark.parametrize("command", ["predict", "show_attention"])
def test_help_needs_no_torch(command: str) -> None:
    code = (
        f"import sys, contextlib\nfrom segvid.{command} import {command} as command\n"
        "with contextlib.suppress(SystemExit):\n    command(['--help'])\n"
        "heavy = {'torch', 'numpy', 'PIL', 'lightning', 'matplotlib', 'cv2', 'av', 'pydantic', 'rich'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--output" in done.stdout


def test_a_record_is_a_line_for_the_model_and_one_for_every_file(run: Path, tmp_path: Path) -> None:
    picture = photo(tmp_path / "in/a.png")
    assert predict(run, tmp_path, str(tmp_path / "in")) == 0
    first, second = (json.loads(line) for line in (tmp_path / "out" / RECORD).read_text().splitlines())
    assert first["format"] == "indices"
    assert second["source"] == {
        "path": str(picture),
        "size": picture.stat().st_size,
        "mtime_ns": picture.stat().st_mtime_ns,
    }
    assert second["files"]["masks/a.png"] == (tmp_path / "out/masks/a.png").stat().st_size
