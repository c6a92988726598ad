"""Evaluation on many processes that counts every sample once.

torch's `DistributedSampler` fills up the last round with samples that were seen already, and they would be counted
twice. Here they are loaded too, so that all processes make the same number of steps (a process without any would leave
the others waiting), but their masks say "ignored" everywhere.
"""

from collections.abc import Iterator, Sized
from typing import cast

import torch
from torch.utils.data import Dataset, DistributedSampler

from segvid.data.reading import IGNORED
from segvid.data.sample import Sample


class EvaluationSampler(DistributedSampler[int]):
    """Positions rank, rank + W, ... of W processes; those behind the end of the data set stand for filling samples.

    Args:
        dataset: whose samples.
        num_replicas: number of processes W.
        rank: of this one.
    """

    def __init__(self, dataset: Dataset[Sample], *, num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.total_size, self.num_replicas))


class FilledDataset(Dataset[Sample]):
    """A data set that goes on behind its end: from the start again, with masks that ignore every pixel.

    Args:
        dataset: the samples.
    """

    def __init__(self, dataset: Dataset[Sample]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, index: int) -> Sample:
        size = len(self)
        sample = self.dataset[index % size]
        if index >= size:
            sample = cast(Sample, dict(sample))
            sample["mask"] = torch.full_like(sample["mask"], IGNORED)
            if "distance" in sample:
                sample["distance"] = torch.full_like(sample["distance"], -1)
        return sample
