"""The LightningModule of semantic segmentation: backbone + head + loss + optimiser + evaluation."""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics.classification import MulticlassConfusionMatrix

from segvid.backbones.base import Backbone
from segvid.data.record import DataRecord, check_same, complete, data_record
from segvid.data.segmentation import SegmentationDataModule
from segvid.errors import UserError
from segvid.recorded import as_config, class_path
from segvid.segmentation.checks import (
    check_backbone,
    check_batch,
    check_labels,
    check_loss,
    check_maps,
    make_head,
    unrecorded,
)
from segvid.segmentation.heads.base import SegmentationHead
from segvid.segmentation.inference import Inference, class_scores, resize
from segvid.segmentation.losses import CrossEntropy, SegmentationLoss
from segvid.segmentation.metrics import ImageMean, SegmentationScores, confusion_matrix, scores
from segvid.segmentation.schedule import PolyLR

HeadFactory = Callable[[Sequence[int], int], SegmentationHead]
OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]
INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"  # Lightning builds a module again from such a record


@dataclass(frozen=True)
class Factories:
    """What makes optimiser and schedule; a copy of the task shares it (jsonargparse's cannot be copied)."""

    optimizer: OptimizerFactory
    lr_scheduler: SchedulerFactory

    def __deepcopy__(self, memo: object) -> "Factories":
        return self


class SegmentationTask(LightningModule):
    """Trains and evaluates one head on one backbone.

    A head is given as a factory: the class itself or a `functools.partial` of it in Python, its class path and
    remaining arguments in a config. Its first two arguments, the backbone's channels and the number of classes, are
    filled in here.

    A batch is `{"image": (B, 3, H, W), "mask": (B, H', W')}`: normalised images, and int64 labels of which 255 is
    ignored; a `"name"` for every image is named in messages. A checkpoint keeps how the parts were made, where that can
    be written down, and what the trainer's data module, if there is one, says of its `class_names`, `palette`,
    `image_size`, `mean` and `std`.

    Args:
        backbone: image to feature maps.
        head: makes the head from the backbone's channels and the number of classes.
        num_classes: linked to the data in the command line; no config holds it.
        auxiliary_head: makes a second head that is only supervised, not evaluated; in most papers an `FCNHead` on the
            last but one map.
        auxiliary_weight: weight of its loss.
        loss: of logits and mask.
        optimizer: makes the optimiser from parameter groups; SGD with 0.01, momentum 0.9 and weight decay 5e-4.
        lr_scheduler: makes the schedule from the optimiser; polynomial decay over the whole training.
        lr_interval: "step" or "epoch", when the schedule advances.
        head_lr_multiplier: learning rate of the heads over that of the backbone.
        decay_norm_and_bias: also apply weight decay to norms and biases.
        inference: how an image is evaluated: whole, in windows, at several scales.
        compile: run backbone and heads through `torch.compile`; checkpoints are the same with and without.

    Attributes:
        stop_at_wrong_loss: end the training at a loss that is infinite or no number.
        accept_other_data: take a checkpoint also where its classes, or how its images were prepared, are not those of
            the data at hand.
        data: what is known of the data, since `setup`.
        checkpoint_step: of the checkpoint that was loaded last.
        scores: the figures of the last evaluation of a stage.
        mean_losses: likewise the loss, the mean over all images.
    """

    stop_at_wrong_loss = True
    accept_other_data = False

    def __init__(
        self,
        backbone: Backbone,
        head: HeadFactory,
        num_classes: int,
        *,
        auxiliary_head: HeadFactory | None = None,
        auxiliary_weight: float = 0.4,
        loss: SegmentationLoss | None = None,
        optimizer: OptimizerFactory = lambda groups: SGD(groups, lr=0.01, momentum=0.9, weight_decay=5e-4),
        lr_scheduler: SchedulerFactory = PolyLR,
        lr_interval: str = "step",
        head_lr_multiplier: float = 1.0,
        decay_norm_and_bias: bool = False,
        inference: Inference = Inference(),  # noqa: B008 - frozen
        compile: bool = False,
    ) -> None:
        super().__init__()
        if lr_interval not in ("step", "epoch"):
            raise UserError(f"model.init_args.lr_interval is {lr_interval!r}; use 'step' or 'epoch'.")
        self.num_classes = num_classes = int(num_classes)
        self.backbone = check_backbone(backbone)
        self.head = make_head(head, "head", backbone.channels, num_classes)
        self.auxiliary_head = (
            None
            if auxiliary_head is None
            else make_head(auxiliary_head, "auxiliary_head", backbone.channels, num_classes)
        )
        self.auxiliary_weight = auxiliary_weight
        self.loss = check_loss(CrossEntropy() if loss is None else loss)
        self.factories = Factories(optimizer, lr_scheduler)
        self.lr_interval = lr_interval
        self.head_lr_multiplier = head_lr_multiplier
        self.decay_norm_and_bias = decay_norm_and_bias
        self.inference = inference
        self.supervised_maps = torch.compile(supervised_maps) if compile else supervised_maps
        self.evaluated_map = torch.compile(evaluated_map) if compile else evaluated_map
        self.confusion = nn.ModuleDict({"val": confusion_matrix(num_classes), "test": confusion_matrix(num_classes)})
        self.losses = nn.ModuleDict({"val": ImageMean(), "test": ImageMean()})
        self.scores: dict[str, SegmentationScores] = {}
        self.confusion_counts: dict[str, Tensor] = {}
        self.mean_losses: dict[str, float] = {}
        self.data: DataRecord = complete({}, num_classes, "the model")
        self.checkpoint_step = 0
        if _given_hyperparameters.get() is not None:
            self.save_hyperparameters()  # from the command line: plain data, enough to build everything again
        else:
            options = {
                "backbone": backbone,
                "head": head,
                "num_classes": num_classes,
                "auxiliary_head": auxiliary_head,
                "auxiliary_weight": auxiliary_weight,
                "loss": loss,
                "lr_interval": lr_interval,
                "head_lr_multiplier": head_lr_multiplier,
                "decay_norm_and_bias": decay_norm_and_bias,
                "inference": asdict(inference),
            }
            self.save_hyperparameters(self._record(options))

    def _record(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What the command line would have recorded; if a part cannot be written down, its name and the numbers."""
        record = {}
        for name, value in options.items():
            with contextlib.suppress(ValueError):
                record[name] = as_config(value)
        missing = unrecorded(record, self.state_dict())
        own = type(self).__init__ is not SegmentationTask.__init__  # with other arguments than these
        try:
            path = class_path(type(self))
        except ValueError:
            own = True
        if missing or own:
            numbers = {name: value for name, value in record.items() if isinstance(value, int | float | str)}
            return numbers | {"unrecorded": missing or ["task"]}
        return record | {"_class_path": path, "_instantiator": INSTANTIATOR}

    def setup(self, stage: str) -> None:
        """Asks the data module, if there is one, for the classes and how it prepares images.

        Raises:
            UserError: it says something impossible, or has another number of classes.
        """
        data = getattr(self.trainer, "datamodule", None)
        self.data = complete(data_record(data), self.num_classes, type(data).__name__)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes how the images were prepared, so that the checkpoint alone is enough to look at new ones."""
        data = getattr(self._trainer, "datamodule", None)
        if data is not None:
            checkpoint["data"] = data_record(data)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes the step of the weights, and holds the data at hand against those that they were trained with.

        Raises:
            UserError: they are others.
        """
        self.checkpoint_step = checkpoint.get("global_step", 0)
        data = getattr(self._trainer, "datamodule", None)
        if data is not None:
            self.check_data(checkpoint, data, "The checkpoint")

    def check_data(self, checkpoint: Mapping[str, Any], data: object, name: str) -> None:
        """Holds data against those that a checkpoint was trained with.

        Raises:
            UserError: they are others, and `accept_other_data` does not say that it is meant.
        """
        if not self.accept_other_data:
            check_same(checkpoint.get("data") or {}, data_record(data), name)

    @property
    def evaluated_step(self) -> int:
        """The training step of the weights that are evaluated, also where they are from a checkpoint."""
        loaded = self.trainer.state.fn != "fit" and self.trainer.ckpt_path is not None
        return self.checkpoint_step if loaded else self.trainer.global_step

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads the weights of a checkpoint.

        Raises:
            UserError: they are those of another model.
        """
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            detail = " ".join(str(error).split())
            raise UserError(
                f"The checkpoint does not fit the model ({type(self.head).__name__} on {type(self.backbone).__name__}, "
                f"{self.num_classes} classes): use the config.yaml of its own run. ({detail[:240]} ...)"
            ) from error

    def forward(self, image: Tensor) -> Tensor:
        """Logits at image size, (B, 3, H, W) -> (B, num_classes, H, W)."""
        return resize(self.evaluated_map(self.backbone, self.head, image), image.shape[-2:])

    def class_scores(self, image: Tensor, size: Sequence[int]) -> Tensor:
        """Scores of the classes at any size, by the way set in `inference`: (B, 3, H, W) -> (B, num_classes, *size).

        From logits at the size of the image, as mmsegmentation does, and as an exported file gives them.
        """
        return class_scores(self, image, size, self.inference)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The weighted sum of the losses of all supervised maps."""
        self._check(batch, batch_idx)
        try:
            maps = self.supervised_maps(self.backbone, self.head, self.auxiliary_head, batch["image"])
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                "The head pools the image to one value a channel, and batch norm cannot learn from a single one: "
                "set data.init_args.batch_size to 2 or more, or trainer.sync_batchnorm with several devices."
            ) from error
        weights = [*self.head.loss_weights, *([] if self.auxiliary_head is None else [self.auxiliary_weight])]
        mask = batch["mask"]
        # Also resized in float32: upsampled in half precision, near logits become equal.
        terms = [self.loss(resize(logits.float(), mask.shape[-2:]), mask) for logits in maps]
        total = torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum()
        if self.stop_at_wrong_loss and not total.isfinite():
            raise UserError(self._no_number(f"The loss is {float(total.detach())}", batch))
        size = len(mask)
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=size)
        if len(terms) > 1:  # unweighted, one by one
            names = [f"train/loss_map{i}" for i in range(len(self.head.loss_weights))] + ["train/loss_auxiliary"]
            self.log_dict({n: t.detach() for n, t in zip(names, terms, strict=False)}, batch_size=size)
        return total

    def _check(self, batch: Any, batch_idx: int) -> None:
        """Checks a batch. Labels of segvid's own data are checked as they are read; on a GPU the first batch has to do.

        Raises:
            UserError: it is no batch of this task, or a label is none of its classes.
        """
        check_batch(batch)
        own = isinstance(getattr(self._trainer, "datamodule", None), SegmentationDataModule)
        if not own and (batch_idx == 0 or batch["mask"].device.type == "cpu"):
            check_labels(batch, self.num_classes)

    def _no_number(self, what: str, batch: dict[str, Any]) -> str:
        files = batch.get("name")
        return (
            f"{what} at step {self.evaluated_step}"
            + (f" ({', '.join(files)})" if files else "")
            + ". Lower optimizer.init_args.lr, warm up (lr_scheduler.init_args.warmup_steps), set "
            "trainer.gradient_clip_val, or trainer.precision to bf16-mixed or 32-true. Checkpoints of the run are from "
            "before."
        )

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Counts the batch; gives the predicted classes (B, H, W)."""
        return self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Counts the batch; gives the predicted classes (B, H, W)."""
        return self._evaluate(batch, batch_idx, "test")

    def _evaluate(self, batch: dict[str, Any], batch_idx: int, stage: str) -> dict[str, Tensor]:
        self._check(batch, batch_idx)
        mask = batch["mask"]
        logits = self.class_scores(batch["image"], mask.shape[-2:])
        if not logits.isfinite().all():
            raise UserError(self._no_number("Scores of the model are no numbers", batch))
        prediction = logits.argmax(dim=1)
        self._metric(stage).update(prediction, mask)
        # One by one, so that batches make no difference; samples that only fill up a round have the weight 0.
        losses = [self.loss(logits[i : i + 1], mask[i : i + 1]) for i in range(len(mask))]
        cast(ImageMean, self.losses[stage]).update(torch.stack(losses), self.loss.weight(mask))
        return {"prediction": prediction}

    def _metric(self, stage: str) -> MulticlassConfusionMatrix:
        return cast(MulticlassConfusionMatrix, self.confusion[stage])

    def on_validation_epoch_end(self) -> None:
        """Figures of the whole validation split."""
        self._finish_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Figures of the whole test split."""
        self._finish_evaluation("test")

    def _finish_evaluation(self, stage: str) -> None:
        metric = self._metric(stage)
        mean = cast(ImageMean, self.losses[stage])
        counts: Tensor = metric.compute().cpu()
        loss: float = mean.compute()
        metric.reset()
        mean.reset()
        if self.trainer.sanity_checking:
            return  # a few batches of an untrained model are no result
        self.confusion_counts[stage] = counts
        self.scores[stage] = scores(self.confusion_counts[stage])
        self.mean_losses[stage] = loss
        self.log(f"{stage}/loss", loss, rank_zero_only=False, sync_dist=False)
        for name, value in self.scores[stage].means().items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "mIoU", rank_zero_only=False, sync_dist=False)

    def configure_optimizers(self) -> Any:
        """Parameter groups for backbone and heads, with and without weight decay; the schedule over all steps."""
        groups: list[dict[str, Any]] = []
        for name, module in (("backbone", self.backbone), ("head", self.head), ("auxiliary", self.auxiliary_head)):
            if module is None:
                continue
            decayed, plain = split_parameters(module, self.decay_norm_and_bias)
            groups.append({"name": name, "params": decayed})
            groups.append({"name": f"{name} norms and biases", "params": plain, "weight_decay": 0.0})
        optimizer = self.factories.optimizer([group for group in groups if group["params"]])
        for group in optimizer.param_groups:
            if not group["name"].startswith("backbone"):
                group["lr"] = group["lr"] * self.head_lr_multiplier
        scheduler = self.factories.lr_scheduler(optimizer)
        if isinstance(scheduler, PolyLR) and scheduler.total_steps is None:
            scheduler.set_total_steps(self._total_steps())
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": self.lr_interval, "monitor": "val/mIoU"},
        }

    def _total_steps(self) -> int:
        if self.lr_interval == "epoch":
            if self.trainer.max_epochs in (None, -1):
                raise UserError("A polynomial schedule by epoch needs their number: set trainer.max_epochs.")
            return int(self.trainer.max_epochs or 1)
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise UserError("The polynomial schedule needs an end: set trainer.max_steps or trainer.max_epochs.")
        return int(total)


# Functions of the modules and not methods: compiled, they belong to no task, so that a copy of a task (averaged
# weights) runs its own modules, and nothing of the compiler is in the checkpoint.
def supervised_maps(
    backbone: nn.Module, head: SegmentationHead, auxiliary_head: nn.Module | None, image: Tensor
) -> list[Tensor]:
    """Logits of all maps that training supervises, those of the auxiliary head last."""
    features = check_maps(backbone(image), backbone)
    maps = head.supervised(features)
    return maps if auxiliary_head is None else [*maps, auxiliary_head(features)]


def evaluated_map(backbone: nn.Module, head: nn.Module, image: Tensor) -> Tensor:
    """The logits that are evaluated, at the size of a feature map."""
    logits: Tensor = head(check_maps(backbone(image), backbone))
    return logits


def split_parameters(module: nn.Module, decay_norm_and_bias: bool) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The learning parameters with and without weight decay: norms, biases and scalars have fewer than two axes."""
    learning = [p for p in module.parameters() if p.requires_grad]
    if decay_norm_and_bias:
        return learning, []
    return [p for p in learning if p.ndim > 1], [p for p in learning if p.ndim <= 1]
