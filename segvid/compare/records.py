"""The files of a comparison that are read back: whatever does not hold what it should is as if it were not there."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le, Lt

from segvid.errors import UserError
from segvid.files import checked, read_json

Share = Annotated[float, Ge(0), Le(1)]  # not NaN either
Amount = Annotated[float, Ge(0), Lt(float("inf"))]
Colour = tuple[Annotated[int, Ge(0), Le(255)], Annotated[int, Ge(0), Le(255)], Annotated[int, Ge(0), Le(255)]]


@dataclass(frozen=True)
class Spec:
    """What a run is started with, `spec.json`."""

    name: str
    variant: str
    seed: int
    words: list[str]
    checkpoint: str | None
    folder: str
    fingerprint: str
    images: int
    made_from: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """How far a training is, `progress.json`."""

    step: int
    steps: Amount
    loss: float | None


@dataclass(frozen=True)
class Failed:
    """Why a run has no result, `result.json`."""

    name: str
    variant: str
    seed: int
    fingerprint: str
    status: str
    reason: str


@dataclass(frozen=True)
class Bin:
    """See `segvid.segmentation.distance.DistanceBin`."""

    start: Amount
    pixels: int
    accuracy: Share


@dataclass(frozen=True)
class Done:
    """The result of a run, `result.json`; what has no value is None."""

    name: str
    variant: str
    seed: int
    fingerprint: str
    status: str
    images: int
    head: str
    backbone: str
    mIoU: Share | None
    mAcc: Share | None
    aAcc: Share | None
    mDice: Share | None
    fwIoU: Share | None
    iou: list[Share | None]
    accuracy: list[Share | None]
    dice: list[Share | None]
    distance: list[Bin]
    class_names: list[str]
    palette: list[Colour]
    steps: int | None
    train_seconds: Amount | None
    images_per_second: Amount | None
    train_memory_mb: Amount | None
    checkpoint: str

    def __post_init__(self) -> None:
        """Checks that all is said of the same classes."""
        if len({len(self.iou), len(self.accuracy), len(self.dice), len(self.class_names), len(self.palette)}) != 1:
            raise ValueError("the lists of the classes differ in length")


@dataclass(frozen=True)
class CostSpec:
    """Of which models the cost is measured, `cost_spec.json`."""

    rows: dict[str, list[str]]
    fingerprints: list[str]
    output: str


@dataclass(frozen=True)
class RowCost:
    """What one model costs, or why that is not known."""

    parameters_m: Amount | None = None
    gflops: Amount | None = None
    input: tuple[int, int] | None = None
    latency_ms: Amount | None = None
    memory_mb: Amount | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Cost:
    """What the models cost, `cost.json`."""

    device: str | None = None
    torch: str | None = None
    rows: dict[str, RowCost] = field(default_factory=dict)


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a run, "done" or "failed"."""
    file = folder / "result.json"
    try:
        content = read_json(file, dict[str, Any])
        if content.get("status") == "done":
            return asdict(checked(content, Done, file))
        return asdict(checked(content, Failed, file))
    except UserError:
        return None


def read_spec(folder: Path) -> Spec | None:
    """What a run was started with."""
    try:
        return read_json(folder / "spec.json", Spec)
    except UserError:
        return None


def read_state(folder: Path) -> State | None:
    """How far a training is."""
    try:
        return read_json(folder / "progress.json", State)
    except UserError:
        return None


def read_cost(output: Path) -> Cost:
    """What the models cost, as far as it has been measured."""
    try:
        return read_json(output / "cost.json", Cost)
    except UserError:
        return Cost()
