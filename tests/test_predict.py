"""`segvid predict`: what is written, where, and what a bad input does."""

import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from segvid.cli import main
from segvid.data.cityscapes import TRAIN_IDS
from segvid.data.reading import voc_palette
from segvid.predict import ORIGIN, blend, find_sources
from segvid.segmentation.inference import Inference
from segvid.segmentation.trained import load_trained


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
    return {str(file) for file in files if file.name != ORIGIN}


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
    overlay = np.asarray(Image.open(tmp_path / "out/overlays/a.jpg")).astype(int)
    shown = blend(np.asarray(Image.open(first)), expected.astype(np.uint8), model.palette, 0.5)
    assert np.abs(overlay - shown).mean() < 25  # JPEG of noise


def test_windows_scales_and_mirrors_are_those_of_evaluation(run: Path, tmp_path: Path) -> None:
    picture = photo(tmp_path / "a.png")
    options = ["--window", "20", "24", "--stride", "10", "24", "--scales", "0.5", "1.5", "--flip"]
    assert predict(run, tmp_path, str(picture), *options) == 0
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
    content[len(content) // 4 : 3 * len(content) // 4] = bytes(len(content) // 2)
    video.write_bytes(content)
    assert predict(run, tmp_path, str(video)) == 1
    assert re.search(r"drive.avi: (is damaged: \d+ of its 40 frames|cannot be read)", capsys.readouterr().err)
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
    monkeypatch.setattr("segvid.predict.TRAIN_IDS", TRAIN_IDS[:11])
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
