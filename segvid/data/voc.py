"""Pascal VOC 2012 semantic segmentation, with the extra training masks of the Semantic Boundaries Dataset (SBD).

Everingham et al., "The Pascal Visual Object Classes Challenge: A Retrospective", IJCV 2015,
http://host.robots.ox.ac.uk/pascal/VOC/voc2012/
Hariharan et al., "Semantic Contours from Inverse Detectors", ICCV 2011 (SBD).
The field trains on "trainaug": the 1,464 training images of VOC with their own masks, and the 9,118 images of SBD that
are in neither VOC's train nor its val, 10,582 together. The lists are those of mmsegmentation's
`tools/dataset_converters/voc_aug.py`.
"""

from pathlib import Path
from typing import Any

from PIL import Image

from segvid.commands.options import Progress
from segvid.data.download import Archive, download, extract, part_of, remove_abandoned, verify
from segvid.data.reading import DataError, voc_palette
from segvid.data.segmentation import Pair, SegmentationDataModule
from segvid.errors import UserError
from segvid.files import write_text
from segvid.text import console

CLASS_NAMES = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]
VOC_ARCHIVE = Archive(
    url="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    checksum="md5:6cd6e144f989b92b3379bac3b3de84fd",
)
SBD_ARCHIVE = Archive(
    url="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    checksum="md5:82b4d87ceb2ed10f6038a1cba92111cb",
)


class VOC(SegmentationDataModule):
    """Pascal VOC 2012: 21 classes, 10,582 training images with SBD (1,464 without), 1,449 for validation.

    Files are expected as the archives unpack: `VOCdevkit/VOC2012/...` and, for SBD, either
    `VOCdevkit/VOC2012/SegmentationClassAug` as mmsegmentation makes it, with or without the list
    `ImageSets/Segmentation/trainaug.txt` or `aug.txt`, or `benchmark_RELEASE/dataset`, from which `prepare_data` makes
    that folder once. Archives that lie in `root` are unpacked.

    Args:
        root: folder that holds, or will hold, `VOCdevkit`.
        augmented: train on the images of SBD too.
        download: fetch the archives that are missing (VOC 2 GB, SBD 1.4 GB).
        loading: see `SegmentationDataModule`.
    """

    mask_hint = "Unpack the archive again."

    def __init__(
        self, root: str = "data/VOC", *, augmented: bool = True, download: bool = False, **loading: Any
    ) -> None:
        self.class_names = list(CLASS_NAMES)
        self.palette = voc_palette(len(CLASS_NAMES))
        super().__init__(**loading)
        self.root = Path(root).expanduser()
        self.augmented = augmented
        self.may_download = download
        self.folder = self.root / "VOCdevkit" / "VOC2012"
        self.lists = self.folder / "ImageSets" / "Segmentation"
        self.augmented_masks = self.folder / "SegmentationClassAug"
        self.sbd = self.root / "benchmark_RELEASE" / "dataset"

    def find(self) -> None:
        """Looks for the folders, or the archives where they may not be fetched.

        Raises:
            UserError: something is missing that `prepare_data` cannot get.
        """
        has_voc = self._has_voc()
        if not has_voc and not self._has_or_fetches(VOC_ARCHIVE):
            raise self._voc_missing()
        if not self.augmented or self.sbd.is_dir() or self._has_or_fetches(SBD_ARCHIVE):
            return
        if not self.augmented_masks.is_dir() or (has_voc and self._sbd_names() is None):
            raise self._sbd_missing()

    def prepare_data(self) -> None:
        """Fetches, unpacks and converts what is missing, as far as it may and can.

        Raises:
            UserError: something is missing and may not or cannot be fetched.
        """
        if not self._has_voc():
            self._unpack(VOC_ARCHIVE, self._voc_missing())
        if self.augmented and self._sbd_names() is None:
            if not self.sbd.is_dir():
                self._unpack(SBD_ARCHIVE, self._sbd_missing())
            self._convert_sbd()

    def files(self, split: str) -> tuple[list[Pair], list[Path]]:
        """The files of "train", "val" or "trainval"; train includes SBD if `augmented`.

        Raises:
            UserError: VOC, SBD or the split is missing.
        """
        if not self._has_voc():
            raise self._voc_missing()
        if not (self.lists / f"{split}.txt").is_file():
            raise UserError(f"VOC has no split {split!r}: there is no list {self.lists / f'{split}.txt'}.")
        pairs = [self._pair(name, "SegmentationClass") for name in _read_names(self.lists / f"{split}.txt")]
        if split == "train" and self.augmented:
            names = self._sbd_names()
            if names is None:
                raise self._sbd_missing()
            pairs += [self._pair(name, self.augmented_masks.name) for name in names]
        return pairs, []

    def _pair(self, name: str, masks: str) -> Pair:
        return Pair(self.folder / "JPEGImages" / f"{name}.jpg", self.folder / masks / f"{name}.png")

    def _has_voc(self) -> bool:
        lists = all((self.lists / f"{split}.txt").is_file() for split in ("train", "val"))
        return lists and (self.folder / "JPEGImages").is_dir() and (self.folder / "SegmentationClass").is_dir()

    def _has_or_fetches(self, archive: Archive) -> bool:
        return self.may_download or (self.root / archive.name).is_file()

    def _official_names(self) -> set[str]:
        return {name for split in ("train", "val") for name in _read_names(self.lists / f"{split}.txt")}

    def _sbd_names(self) -> list[str] | None:
        """Images that training takes from SBD, or None while they lack masks: those of a list, else all masks."""
        official = self._official_names()
        masks = {path.stem for path in self.augmented_masks.glob("*.png") if not path.name.startswith(".")}
        for name in ("trainaug.txt", "aug.txt"):
            if (self.lists / name).is_file():
                names = [n for n in _read_names(self.lists / name) if n not in official]
                return names if masks.issuperset(names) else None
        if self.sbd.is_dir():  # the conversion writes the list when it is complete
            return None
        return sorted(masks - official) or None

    def _unpack(self, archive: Archive, missing: UserError) -> None:
        path = self.root / archive.name
        if self.may_download:
            download(archive.url, path, archive.checksum)
        elif path.is_file():
            verify(path, archive.checksum)
        else:
            raise missing
        extract(path, self.root)

    def _convert_sbd(self) -> None:
        """Class maps of SBD to palette PNGs. The list `aug.txt` marks that all are there."""
        official = self._official_names()
        names = [n for split in ("train", "val") for n in _read_names(self.sbd / f"{split}.txt") if n not in official]
        self.augmented_masks.mkdir(exist_ok=True)
        remove_abandoned(self.augmented_masks, "*.png")
        with Progress(console(stderr=True), "Converting the masks of SBD", len(names)) as progress:
            for name in names:
                target = self.augmented_masks / f"{name}.png"
                if not target.is_file():
                    _convert_mask(self.sbd / "cls" / f"{name}.mat", target)
                progress.advance()
        if not any((self.lists / name).is_file() for name in ("trainaug.txt", "aug.txt")):
            write_text(self.lists / "aug.txt", "".join(f"{name}\n" for name in names))
        if self._sbd_names() is None:
            raise self._sbd_missing()

    def _voc_missing(self) -> UserError:
        return UserError(
            f"Pascal VOC 2012 is not at {self.folder}: put {VOC_ARCHIVE.name} from {VOC_ARCHIVE.url} into {self.root}, "
            "where it will be unpacked, or set data.init_args.download to true, or correct data.init_args.root."
        )

    def _sbd_missing(self) -> UserError:
        return UserError(
            f"The masks of the Semantic Boundaries Dataset are not, or not all, in {self.augmented_masks}: put "
            f"{SBD_ARCHIVE.name} from {SBD_ARCHIVE.url} into {self.root}, where it will be unpacked and converted, or "
            "set data.init_args.download to true, or data.init_args.augmented to false."
        )


def _read_names(path: Path) -> list[str]:
    """Image names of a list: one a line, bare or as the path of the image with more behind it."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, f"cannot be read as a list of images ({error}).") from error
    return list(dict.fromkeys(Path(line.split()[0]).stem for line in lines if line.strip()))


def _convert_mask(source: Path, target: Path) -> None:
    import scipy.io  # type: ignore[import-untyped]

    try:
        mask = scipy.io.loadmat(source)["GTcls"][0]["Segmentation"][0].astype("uint8")
        image = Image.fromarray(mask)
    except Exception as error:  # a damaged file makes scipy raise anything
        raise DataError(source, f"cannot be read as a class map of SBD ({error}); unpack the archive again.") from error
    image.putpalette([value for colour in voc_palette(256) for value in colour])
    part = part_of(target)
    try:
        image.save(part, format="PNG")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
