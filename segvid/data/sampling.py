"""Which samples a process sees in training and in evaluation, and with which random numbers.

Training: the order and the augmentation of a sample follow from seed, epoch and index alone. Worker processes keep
random states of their own, which a resumed training could not find again. How far an epoch is, `TrainingLoader` knows.

Evaluation: every sample counts once. torch's `DistributedSampler` fills up the last round with samples that were seen
already, and they would be counted twice. Here they are loaded too, so that all processes make the same number of steps
(a process without any would leave the others waiting), but their masks say "ignored" everywhere.
"""

import signal
from collections.abc import Iterator, Mapping, Sized
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from segvid.data.reading import IGNORED
from segvid.data.sample import Sample
from segvid.errors import UserError


class TrainingSampler(DistributedSampler[int]):
    """Positions `epoch * len(dataset) + index`, in another order in every epoch.

    Args:
        dataset: whose samples.
        num_replicas: number of processes.
        rank: of this one.
        seed: of the order.

    Attributes:
        skipped: samples of the epoch that begins that this process has seen already.
    """

    def __init__(self, dataset: Dataset[Sample], *, num_replicas: int, rank: int, seed: int) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed)
        self.skipped = 0

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * len(cast(Sized, self.dataset))
        indices = list(super().__iter__())[self.skipped :]
        self.epoch += 1  # where no trainer sets it
        return iter([first + index for index in indices])


class TrainingLoader(DataLoader[Sample]):
    """Whole batches, which go on where a checkpoint was written.

    Args:
        dataset: the samples.
        sampler: which of them, in which order.
        batch_size: of this process.
        resumed: the position in a checkpoint.
        options: see `DataLoader`.

    Raises:
        UserError: the position is inside an epoch of other batches: samples would be seen twice or not at all.
    """

    def __init__(
        self,
        dataset: "SeededDataset",
        sampler: TrainingSampler,
        batch_size: int,
        resumed: Mapping[str, int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dataset, batch_size=batch_size, sampler=sampler, drop_last=True, **options)
        self.order = sampler
        self.size = batch_size
        self.epoch = self.done = 0  # batches of the epoch that were given
        self.resumed = {"epoch": 0, "batches": 0} if resumed is None else resumed
        self.check_resumed()

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: it begins with the first batch, and Lightning has told the epoch by then.
        self.epoch = self.order.epoch
        self.done = self.resumed["batches"] if self.resumed["epoch"] == self.epoch else 0
        self.order.skipped = self.done * self.size
        for batch in super().__iter__():
            self.done += 1
            yield batch

    def position(self) -> dict[str, int]:
        """Where in the epoch this is, and what that depends on."""
        return {
            "epoch": self.epoch,
            "batches": self.done,
            "processes": self.order.num_replicas,
            "batch_size": self.size,
            "samples": len(cast(Sized, self.dataset)),
        }

    def check_resumed(self) -> None:
        """Compares the batches of a checkpoint with those of now."""
        was, now = self.resumed, self.position()
        other = [name for name in ("processes", "batch_size", "samples") if was.get(name, now[name]) != now[name]]
        if not other or not was["batches"]:
            return
        of = -(-was["samples"] // was["processes"]) // was["batch_size"]
        if was["batches"] < of:
            then, here = (", ".join(f"{name} {counts[name]}" for name in other) for counts in (was, now))
            raise UserError(
                f"the checkpoint is from inside an epoch, after {was['batches']} of {of} batches, with {then}. "
                f"With {here} some samples of the epoch would be seen twice and others never. Go on as before "
                "(trainer.devices, trainer.num_nodes, data.init_args.batch_size), or from a checkpoint of the end of "
                "an epoch, which best.ckpt may be: segvid fit --config RUN/config.yaml --ckpt_path ..."
            )


def ignore_signals(worker: int) -> None:
    """A signal that stops a training goes to all its processes; those that load data are needed to its end."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


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
