"""ProbeScenes: a diagnostic that says what a head can see, in minutes on a CPU.

Small textured cells lie on a grid over noise. What the label of a grey cell is, cannot be seen in it: it is the colour
of another cell, and which one is decided by the level.

- "cue": the one coloured cell of the scene. Averaging over the image is enough.
- "match": the coloured cell of the same texture; every texture is coloured once. The content must be looked up: an
  average over the image holds all pairs of texture and colour at once, pairwise attention finds the one.
- "relation": the coloured cell in the same row; every row has one, at any column. Position decides, content does not:
  a head that commutes with permutations of the positions cannot know it.

Every labelled pixel carries its distance from the cell that decides it, so that accuracy can be read against distance:
what the convolutions of backbone and head see by themselves ends after a few cells.
"""

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from segvid.data.reading import IGNORED
from segvid.data.segmentation import Sample, SegmentationDataModule
from segvid.errors import UserError

Level = Literal["cue", "match", "relation"]
LEVELS: tuple[str, ...] = get_args(Level)
CELL = 8  # pixels from cell to cell
COLOURS = ((220, 50, 40), (50, 180, 70), (60, 90, 230), (230, 200, 40))
CLASS_NAMES = ("red", "green", "blue", "yellow")
# Six textures of 6 x 6 pixels: no average over a cell tells them apart.
TEXTURES = np.array(
    [
        [[(x // 3) % 2 for x in range(6)] for _ in range(6)],  # halves, left and right
        [[(y // 3) % 2 for _ in range(6)] for y in range(6)],  # halves, top and bottom
        [[(x // 3 + y // 3) % 2 for x in range(6)] for y in range(6)],  # quarters
        [[x % 2 for x in range(6)] for _ in range(6)],  # upright lines
        [[y % 2 for _ in range(6)] for y in range(6)],  # level lines
        [[(x + y) % 2 for x in range(6)] for y in range(6)],  # dots
    ],
    dtype=np.float32,
)
GREY = np.array([150.0, 150.0, 150.0], dtype=np.float32)


def make_probe(
    rng: np.random.Generator, level: str, size: int = 64, cells: int = 16
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    """One scene: image (size, size, 3), mask (size, size) with 255 outside grey cells, distance (size, size) in pixels.

    The distance is that between the centres of a grey cell and the cell that decides it, -1 outside grey cells.
    """
    count = size // CELL
    image = rng.normal(90, 12, size=(size, size, 3)).astype(np.float32)
    mask = np.full((size, size), IGNORED, dtype=np.uint8)
    distance = np.full((size, size), -1, dtype=np.float32)
    places = [(int(p) // count, int(p) % count) for p in rng.permutation(count * count)]
    # (row, column), texture, colour of each coloured cell
    if level == "cue":
        keys = [(places.pop(), int(rng.integers(len(TEXTURES))), int(rng.integers(len(COLOURS))))]
    elif level == "match":
        keys = [(places.pop(), texture, int(rng.integers(len(COLOURS)))) for texture in range(len(TEXTURES))]
    else:
        keys = []
        for row in range(count):
            place = next(p for p in places if p[0] == row)
            places.remove(place)
            keys.append((place, int(rng.integers(len(TEXTURES))), int(rng.integers(len(COLOURS)))))
    for place, texture, colour in keys:
        _paint(image, place, TEXTURES[texture], np.array(COLOURS[colour], dtype=np.float32))
    for place in places[:cells]:
        texture = int(rng.integers(len(TEXTURES)))
        if level == "cue":
            key = keys[0]
        elif level == "match":
            key = keys[texture]
        else:
            key = keys[place[0]]
        window = _paint(image, place, TEXTURES[texture], GREY)
        mask[window] = key[2]
        distance[window] = CELL * float(np.hypot(place[0] - key[0][0], place[1] - key[0][1]))
    image += rng.normal(0, 4, size=image.shape).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8), mask, distance


def _paint(
    image: NDArray[np.float32], place: tuple[int, int], texture: NDArray[np.float32], colour: NDArray[np.float32]
) -> tuple[slice, slice]:
    """Draws a cell, bright and dark by its texture; gives its window."""
    top, left = place[0] * CELL + 1, place[1] * CELL + 1
    window = (slice(top, top + 6), slice(left, left + 6))
    image[window] = colour * (0.45 + 0.55 * texture[..., None])
    return window


class ProbeScenesDataset(Dataset[Sample]):
    """Scenes made when they are first asked for, then kept; scene `index` is the same in every process.

    Args:
        split: "train" or another; only the seed differs.
        scenes: how many there are.
        level: what decides the labels.
        seed: of the whole set.
        size: height and width of a scene in pixels.
        cells: grey cells in a scene.
    """

    def __init__(self, split: str, scenes: int, *, level: str, seed: int = 0, size: int = 64, cells: int = 16) -> None:
        self.split = split
        self.scenes = scenes
        self.level = level
        self.seed = seed
        self.size = size
        self.cells = cells
        self.made: dict[int, tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]] = {}

    def __len__(self) -> int:
        return self.scenes

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.scenes:
            raise IndexError(index)
        if index not in self.made:
            rng = np.random.default_rng((self.seed, int(self.split != "train"), LEVELS.index(self.level), index))
            self.made[index] = make_probe(rng, self.level, self.size, self.cells)
        image, mask, distance = self.made[index]
        tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        return {
            "image": (tensor - 0.5) / 0.25,
            "mask": torch.from_numpy(mask).long(),
            "name": f"{self.split} scene {index}",
            "distance": torch.from_numpy(distance),
        }


class ProbeScenes(SegmentationDataModule):
    """Generated scenes of cells whose label another cell decides; see the module for the levels.

    Args:
        level: "cue", "match" or "relation".
        train_scenes: training scenes; an epoch shows each once.
        val_scenes: validation scenes.
        seed: of the scenes (not of the training).
        size: height and width of a scene in pixels, a multiple of 8.
        cells: grey cells in a scene.
        batch_size: training scenes of one process and step.
        eval_batch_size: validation scenes of one step.
        num_workers: processes that generate scenes; 0 generates in the main process.

    Raises:
        UserError: an unknown level, a size that is no multiple of 8, or no room for the cells.
    """

    def __init__(
        self,
        *,
        level: Level = "cue",
        train_scenes: int = 3200,
        val_scenes: int = 256,
        seed: int = 0,
        size: int = 64,
        cells: int = 16,
        batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        if level not in LEVELS:
            raise UserError(f"data.init_args.level is {level!r}; use {', '.join(LEVELS)}.")
        count = size // CELL
        if size % CELL or cells + max(len(TEXTURES), count) > count**2:
            raise UserError(
                f"data.init_args.size is {size} and cells {cells}: take a multiple of {CELL} with room for them."
            )
        self.class_names = list(CLASS_NAMES)
        self.palette = list(COLOURS)
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
        )
        self.level = level
        self.train_scenes = train_scenes
        self.val_scenes = val_scenes
        self.seed = seed
        self.size = size
        self.cells = cells

    def dataset(self, split: str, *, augmented: bool) -> Dataset[Sample]:
        """The scenes of a split; they are not augmented."""
        scenes = self.train_scenes if split == "train" else self.val_scenes
        return ProbeScenesDataset(split, scenes, level=self.level, seed=self.seed, size=self.size, cells=self.cells)
