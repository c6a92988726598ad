"""Pascal VOC and SBD: lists, counts, conversion, and the sentence when something is missing."""

import hashlib
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segvid.data import VOC, voc
from segvid.data.download import Archive, part_of
from segvid.data.reading import DataError, voc_palette
from segvid.data.segmentation import Pair
from segvid.errors import UserError
from tests.data.miniature import SBD_ONLY, VOC_TRAIN, VOC_VAL, make_sbd, make_voc


def names(pairs: list[Pair]) -> list[str]:
    assert all(pair.image.stem == pair.mask.stem for pair in pairs)
    return [pair.image.stem for pair in pairs]


def masks(root: Path) -> Path:
    return root / "VOCdevkit" / "VOC2012" / "SegmentationClassAug"


def lists(root: Path) -> Path:
    return root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"


def pack(folder: Path, source: Path, name: str, entry: str) -> Archive:
    """An archive as the servers have it."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / name, "w:gz" if name.endswith("tgz") else "w") as archive:
        archive.add(source / entry, entry)
    digest = hashlib.md5((folder / name).read_bytes()).hexdigest()
    return Archive((folder / name).as_uri(), f"md5:{digest}")


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small archives in the place of the real ones."""
    source, server = tmp_path / "source", tmp_path / "server"
    make_voc(source)
    make_sbd(source)
    voc_archive = pack(server, source, "VOCtrainval_11-May-2012.tar", "VOCdevkit")
    monkeypatch.setattr(voc, "VOC_ARCHIVE", voc_archive)
    monkeypatch.setattr(voc, "SBD_ARCHIVE", pack(server, source, "benchmark.tgz", "benchmark_RELEASE"))
    return server


def test_facts() -> None:
    data = VOC("nowhere", batch_size=3)
    assert data.num_classes == len(data.class_names) == 21
    assert data.class_names[0] == "background"
    assert data.class_names[15] == "person"
    assert data.class_names[20] == "tvmonitor"
    assert data.palette == voc_palette(21)
    assert data.batch_size == 3
    assert voc.VOC_ARCHIVE.name == "VOCtrainval_11-May-2012.tar"
    assert voc.SBD_ARCHIVE.name == "benchmark.tgz"


def test_splits_without_sbd(tmp_path: Path) -> None:
    data = VOC(str(make_voc(tmp_path)), augmented=False)
    data.prepare_data()
    assert names(data.pairs("train")) == VOC_TRAIN
    assert names(data.pairs("val")) == VOC_VAL
    assert names(data.pairs("trainval")) == sorted(VOC_TRAIN + VOC_VAL)
    assert {pair.mask.parent.name for pair in data.pairs("train")} == {"SegmentationClass"}
    with pytest.raises(UserError, match=r"VOC has no split 'test'.*test\.txt"):
        data.pairs("test")


def test_training_adds_sbd_but_for_the_images_of_train_and_val(tmp_path: Path) -> None:
    data = VOC(str(make_sbd(make_voc(tmp_path))))
    data.prepare_data()
    train = data.pairs("train")
    assert names(train) == VOC_TRAIN + SBD_ONLY
    assert [pair.mask.parent.name for pair in train] == 3 * ["SegmentationClass"] + 4 * ["SegmentationClassAug"]
    assert names(data.pairs("val")) == VOC_VAL
    assert sorted(path.stem for path in masks(tmp_path).iterdir()) == SBD_ONLY  # and no other file is left
    assert (lists(tmp_path) / "aug.txt").read_text().split() == SBD_ONLY


def test_samples(tmp_path: Path) -> None:
    data = VOC(str(make_sbd(make_voc(tmp_path))))
    data.prepare_data()
    dataset = data.dataset("train", augmented=False)
    shapes = set()
    for index, pair in enumerate(data.pairs("train")):
        sample = dataset[index]
        with Image.open(pair.mask) as image:
            assert image.mode == "P"
            assert image.getpalette()[:63] == [value for colour in voc_palette(21) for value in colour]
            ids = np.asarray(image)
        np.testing.assert_array_equal(sample["mask"].numpy(), ids)
        assert (255 in ids) == (pair.mask.parent.name == "SegmentationClass")
        assert sample["image"].shape[1:] == sample["mask"].shape
        assert sample["mask"].dtype == torch.int64
        assert sample["name"] == str(pair.image)
        shapes.add(tuple(sample["mask"].shape))
    assert len(shapes) > 1


def test_converted_masks_are_those_of_the_mat_files(tmp_path: Path) -> None:
    data = VOC(str(make_sbd(make_voc(tmp_path))))
    data.prepare_data()
    voc_masks = make_voc(tmp_path / "again") / "VOCdevkit" / "VOC2012"
    for name in SBD_ONLY:
        with (
            Image.open(masks(tmp_path) / f"{name}.png") as converted,
            Image.open(voc_masks / "JPEGImages" / f"{name}.jpg") as image,
        ):
            ids, pixels = np.asarray(converted), np.asarray(image).astype(float)
        expected = np.array(voc_palette(21))[ids]
        assert np.abs(pixels - expected).mean() < 16  # images are painted in the colours of their masks


def test_prepare_data_is_idle_when_all_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = VOC(str(make_sbd(make_voc(tmp_path))), download=True)
    data.prepare_data()
    for name in ("download", "extract", "verify", "_convert_mask", "write_text"):
        monkeypatch.setattr(voc, name, None)
    data.prepare_data()
    assert len(data.pairs("train")) == 7


def test_an_interrupted_conversion_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = VOC(str(make_sbd(make_voc(tmp_path))))
    convert = voc._convert_mask
    done: list[str] = []

    def interrupted(source: Path, target: Path) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        convert(source, target)
        done.append(target.stem)

    monkeypatch.setattr(voc, "_convert_mask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.prepare_data()
    with pytest.raises(UserError, match="not, or not all, in"):
        data.pairs("train")
    monkeypatch.setattr(
        voc, "_convert_mask", lambda source, target: (convert(source, target), done.append(target.stem))
    )
    data.prepare_data()
    assert done == SBD_ONLY  # nothing twice
    assert names(data.pairs("train")) == VOC_TRAIN + SBD_ONLY


def test_a_conversion_that_fails_leaves_no_half_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = VOC(str(make_sbd(make_voc(tmp_path))))

    def break_off(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", break_off)
        with pytest.raises(KeyboardInterrupt):
            data.prepare_data()
    assert list(masks(tmp_path).iterdir()) == []


def test_a_damaged_mat_file_is_named(tmp_path: Path) -> None:
    data = VOC(str(make_sbd(make_voc(tmp_path))))
    damaged = data.sbd / "cls" / f"{SBD_ONLY[1]}.mat"
    damaged.write_bytes(damaged.read_bytes()[:300])
    with pytest.raises(DataError, match=rf"{SBD_ONLY[1]}\.mat: cannot be read as a class map of SBD"):
        data.prepare_data()
    damaged.unlink()
    with pytest.raises(DataError, match=rf"{SBD_ONLY[1]}\.mat: cannot be read"):
        data.prepare_data()


# What mmsegmentation users have


def converted_by_others(root: Path) -> None:
    """SegmentationClassAug of all SBD images, those of VOC's val included, and no SBD."""
    make_voc(root)
    masks(root).mkdir()
    for name in [*VOC_TRAIN, *VOC_VAL, *SBD_ONLY]:
        Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(masks(root) / f"{name}.png")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("aug.txt", SBD_ONLY[:3]),
        ("trainaug.txt", VOC_TRAIN + SBD_ONLY[:3]),
        ("trainaug.txt", VOC_VAL + SBD_ONLY[:3]),  # a list that leaks validation images
        ("trainaug.txt", [f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png" for n in SBD_ONLY[:3]]),
    ],
)
def test_an_existing_list_is_used(tmp_path: Path, file: str, content: list[str]) -> None:
    converted_by_others(tmp_path)
    (lists(tmp_path) / file).write_text("\n".join(content))
    data = VOC(str(tmp_path))
    data.prepare_data()
    assert names(data.pairs("train")) == VOC_TRAIN + SBD_ONLY[:3]


def test_existing_masks_without_a_list_are_used(tmp_path: Path) -> None:
    converted_by_others(tmp_path)
    data = VOC(str(tmp_path))
    data.prepare_data()
    assert names(data.pairs("train")) == VOC_TRAIN + SBD_ONLY


def test_hidden_masks_are_none(tmp_path: Path) -> None:
    converted_by_others(tmp_path)
    (masks(tmp_path) / f"._{SBD_ONLY[0]}.png").write_text("what macOS leaves")
    assert names(VOC(str(tmp_path)).pairs("train")) == VOC_TRAIN + SBD_ONLY


def test_what_a_killed_conversion_leaves_is_removed(tmp_path: Path) -> None:
    data = VOC(str(make_sbd(make_voc(tmp_path))))
    masks(tmp_path).mkdir()
    part = part_of(masks(tmp_path) / f"{SBD_ONLY[0]}.png")
    part.with_name(part.name.replace(str(os.getpid()), str(2**22 + 1))).touch()  # there is no such process
    data.prepare_data()
    assert sorted(path.name for path in masks(tmp_path).iterdir()) == [f"{name}.png" for name in SBD_ONLY]


def test_a_list_without_all_its_masks(tmp_path: Path) -> None:
    converted_by_others(tmp_path)
    (lists(tmp_path) / "aug.txt").write_text("\n".join([*SBD_ONLY, "2011_000001"]))
    data = VOC(str(tmp_path))
    for call in (data.prepare_data, lambda: data.pairs("train")):
        with pytest.raises(UserError, match="not, or not all, in"):
            call()
    make_sbd(tmp_path)
    with pytest.raises(UserError, match="not, or not all, in"):  # SBD has no 2011_000001
        data.prepare_data()


# Archives


def test_find_says_what_is_missing_and_touches_nothing(tmp_path: Path, servers: Path) -> None:
    with pytest.raises(UserError, match="Pascal VOC 2012 is not at"):
        VOC(str(tmp_path / "no")).find()
    VOC(str(tmp_path / "no"), download=True).find()
    assert not (tmp_path / "no").exists()
    VOC(str(make_voc(tmp_path / "alone")), augmented=False).find()
    with pytest.raises(UserError, match="Semantic Boundaries"):
        VOC(str(tmp_path / "alone")).find()
    make_sbd(tmp_path / "alone")
    VOC(str(tmp_path / "alone")).find()
    (tmp_path / "others").mkdir()
    converted_by_others(tmp_path / "others")
    VOC(str(tmp_path / "others")).find()
    packed = sorted(servers.iterdir())
    VOC(str(servers)).find()
    assert sorted(servers.iterdir()) == packed


def test_download(tmp_path: Path, servers: Path) -> None:
    root = tmp_path / "data" / "VOC"
    data = VOC(str(root), download=True)
    assert not root.exists()  # nothing happens in __init__
    data.prepare_data()
    assert names(data.pairs("train")) == VOC_TRAIN + SBD_ONLY
    expected = ["VOCdevkit", "VOCtrainval_11-May-2012.tar", "benchmark.tgz", "benchmark_RELEASE"]
    assert sorted(path.name for path in root.iterdir()) == expected


def test_download_takes_only_what_is_needed(tmp_path: Path, servers: Path) -> None:
    (servers / "benchmark.tgz").unlink()
    data = VOC(str(tmp_path / "data"), augmented=False, download=True)
    data.prepare_data()
    assert names(data.pairs("train")) == VOC_TRAIN


def test_archives_put_there_by_hand_are_unpacked(tmp_path: Path, servers: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for path in servers.iterdir():
        path.rename(root / path.name)
    data = VOC(str(root))
    data.prepare_data()
    assert names(data.pairs("train")) == VOC_TRAIN + SBD_ONLY


def test_a_damaged_archive_is_not_unpacked(tmp_path: Path, servers: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    content = (servers / "VOCtrainval_11-May-2012.tar").read_bytes()
    (root / "VOCtrainval_11-May-2012.tar").write_bytes(content[:-2000])
    with pytest.raises(UserError, match=r"VOCtrainval_11-May-2012\.tar is damaged or another file"):
        VOC(str(root)).prepare_data()
    assert [path.name for path in root.iterdir()] == ["VOCtrainval_11-May-2012.tar"]
    VOC(str(root), download=True).prepare_data()  # fetches it again


def test_no_network_says_what_to_put_where(tmp_path: Path, servers: Path) -> None:
    (servers / "VOCtrainval_11-May-2012.tar").unlink()
    root = tmp_path / "data"
    with pytest.raises(UserError, match=rf"could not be fetched .*put it at {root}/VOCtrainval_11-May-2012\.tar"):
        VOC(str(root), download=True).prepare_data()


def test_without_download_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    data = VOC(str(tmp_path / "typo"))
    for call in (data.prepare_data, lambda: data.pairs("train"), lambda: data.pairs("val"), data.train_dataloader):
        with pytest.raises(UserError) as caught:
            call()
        message = str(caught.value)
        assert message.startswith(f"Pascal VOC 2012 is not at {tmp_path / 'typo' / 'VOCdevkit' / 'VOC2012'}: put ")
        assert "VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk" in message
        assert "data.init_args.download" in message
        assert "\n" not in message
    assert not (tmp_path / "typo").exists()


def test_sbd_missing_is_said_by_prepare_data_and_pairs(tmp_path: Path) -> None:
    data = VOC(str(make_voc(tmp_path)))
    for call in (data.prepare_data, lambda: data.pairs("train")):
        with pytest.raises(UserError, match=r"benchmark\.tgz from https://www2\.eecs.*data\.init_args\.augmented to f"):
            call()
    assert names(data.pairs("val")) == VOC_VAL  # testing needs no SBD
