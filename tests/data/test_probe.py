"""ProbeScenes: labels follow from the cell that decides them, and from nothing nearer."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from segvid.data import ProbeScenes
from segvid.data.probe import CELL, COLOURS, LEVELS, TEXTURES, ProbeScenesDataset, make_probe
from segvid.errors import UserError

SEEDS = range(12)
Cell = tuple[int, int]


def cells_of(image: np.ndarray) -> tuple[dict[Cell, tuple[int, int]], dict[Cell, int]]:
    """Texture and colour of the coloured cells, texture of the grey ones, read from the picture alone."""
    coloured, grey = {}, {}
    for row in range(image.shape[0] // CELL):
        for column in range(image.shape[1] // CELL):
            window = image[row * CELL + 1 :, column * CELL + 1 :][:6, :6].astype(float)
            brightness = window.mean(axis=2) - window.mean()
            match = [(np.corrcoef(brightness.ravel(), texture.ravel())[0, 1]) for texture in TEXTURES]
            if max(match) < 0.9:
                continue  # noise
            texture = int(np.argmax(match))
            bright = window[TEXTURES[texture] > 0].mean(axis=0)
            if np.ptp(bright) < 40:
                grey[row, column] = texture
            else:
                nearest = np.abs(np.array(COLOURS) - bright).sum(axis=1).argmin()
                coloured[row, column] = (texture, int(nearest))
    return coloured, grey


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", SEEDS)
def test_labels_and_distances_follow_from_the_picture(seed: int, level: str) -> None:
    image, mask, distance = make_probe(np.random.default_rng(seed), level)
    coloured, grey = cells_of(image)
    assert len(grey) == 16
    assert len(coloured) == {"cue": 1, "match": len(TEXTURES), "relation": 8}[level]
    expected_mask = np.full((64, 64), 255)
    expected_distance = np.full((64, 64), -1.0)
    for (row, column), texture in grey.items():
        deciding = [
            (place, colour)
            for place, (other, colour) in coloured.items()
            if level == "cue" or (other == texture if level == "match" else place[0] == row)
        ]
        ((place, colour),) = deciding  # exactly one
        window = np.s_[row * CELL + 1 : row * CELL + 7, column * CELL + 1 : column * CELL + 7]
        expected_mask[window] = colour
        expected_distance[window] = 8 * ((row - place[0]) ** 2 + (column - place[1]) ** 2) ** 0.5
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_allclose(distance, expected_distance, rtol=1e-6)


@pytest.mark.parametrize("level", LEVELS)
def test_no_class_is_the_better_guess(level: str) -> None:
    """Without context a head can only guess: a quarter is right."""
    data = ProbeScenesDataset("train", 300, level=level)
    masks = torch.stack([data[index]["mask"] for index in range(len(data))])
    shares = torch.bincount(masks[masks != 255], minlength=4) / (masks != 255).sum()
    assert shares.shape == (4,)
    assert (shares - 0.25).abs().max() < 0.08


def test_scenes_are_the_same_in_every_process_and_differ_between_splits_levels_and_seeds() -> None:
    first = ProbeScenesDataset("train", 4, level="match")[3]["image"]
    assert torch.equal(ProbeScenesDataset("train", 4, level="match")[3]["image"], first)
    for other in (
        ProbeScenesDataset("val", 4, level="match"),
        ProbeScenesDataset("train", 4, level="cue"),
        ProbeScenesDataset("train", 4, level="match", seed=1),
    ):
        assert not torch.equal(other[3]["image"], first)


def test_batches() -> None:
    data = ProbeScenes(level="relation", train_scenes=8, val_scenes=6, batch_size=4, eval_batch_size=3)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    assert batch["image"].shape == (3, 3, 64, 64)
    assert batch["mask"].shape == batch["distance"].shape == (3, 64, 64)
    assert torch.equal(batch["distance"] >= 0, batch["mask"] != 255)
    assert len(list(data.train_dataloader())) == 2
    assert data.num_classes == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "match!"}, "cue, match, relation"),
        ({"size": 60}, "multiple of 8"),
        ({"size": 32, "cells": 11}, "room"),
    ],
)
def test_mistakes_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ProbeScenes(**options)  # type: ignore[arg-type]


def test_the_comparison_has_every_level() -> None:
    root = Path(__file__).parent.parent.parent
    variants = yaml.safe_load((root / "configs/compare/probe.yaml").read_text())["variants"]
    assert [v["data.init_args.level"] for v in variants.values()] == list(LEVELS)
