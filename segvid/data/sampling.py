"""Which samples a process sees in training and in evaluation, and with which random numbers.

Training: the order and the augmentation of a sample follow from seed, epoch and index alone. Worker processes keep
random states of their own, which a resumed training could not find again.

Evaluation: every sample counts once. torch's `DistributedSampler` fills up the last round with samples that were seen
already, and they would be counted twice. Here they are loaded too, so that all processes make the same number of steps
(a process without any would leave the others waiting), but their masks say "ignored" everywhere.
"""

from collections.abc import Callable, Iterator, Sized
from typing import cast

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler

from segvid.data.reading import IGNORED
from segvid.data.sample import Sample


class TrainingSampler(DistributedSampler[int]):
    """Positions `epoch * len(dataset) + index`, in another order in every epoch.

    Args:
        dataset: whose samples.
        num_replicas: number of processes.
        rank: of this one.
        seed: of the order.
        done: how many samples of the epoch that begins this process has seen already: before it was stopped in the
            middle of it.
    """

    def __init__(
        self,
        dataset: Dataset[Sample],
        *,
        num_replicas: int,
        rank: int,
        seed: int,
        done: Callable[[], int] = lambda: 0,
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed)
        self.done = done

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * len(cast(Sized, self.dataset))
        indices = list(super().__iter__())[self.done() :]
        self.epoch += 1  # where no trainer sets it
        return iter([first + index for index in indices])


class SeededDataset(Dataset[Sample]):
    """A data set whose samples are taken by position: `index` modulo its length, augmented as the position says.

    Args:
        dataset: the samples.
        seed: of the augmentation.
    """

    def __init__(self, dataset: Dataset[Sample], seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, index: int) -> Sample:
        state = np.random.SeedSequence((self.seed, index)).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(state[0]))
            return self.dataset[index % len(self)]


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
