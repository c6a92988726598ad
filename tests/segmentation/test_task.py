"""The task in Python: parameter groups, losses, schedules, evaluation, checkpoints."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

from segvid.backbones import ConvNet
from segvid.data import DigitScenes
from segvid.errors import UserError
from segvid.segmentation.heads import DANetHead, FCNHead, PSPNetHead
from segvid.segmentation.losses import CrossEntropy, Dice, Lovasz
from segvid.segmentation.metrics import scores
from segvid.segmentation.schedule import PolyLR
from segvid.segmentation.task import SegmentationTask

# Small maps and steps: with more threads, and other work on the machine, they take ten times as long.
torch.set_num_threads(1)

SmallFCN = partial(FCNHead, channels=6)
Batch = dict[str, Tensor]
Factory = Callable[..., Any]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_task(head: Any = SmallFCN, num_classes: int = 11, **options: Any) -> SegmentationTask:
    return SegmentationTask(ConvNet((4, 6, 8)), head, num_classes, **options)


def make_trainer(*callbacks: Callback, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", enable_model_summary=False, callbacks=list(callbacks), **{**quiet, **options})


def digits(batch_size: int = 2) -> DigitScenes:
    """Two steps an epoch and three validation scenes in batches of two."""
    return DigitScenes(train_scenes=4, val_scenes=3, size=48, batch_size=batch_size, eval_batch_size=2)


def random_batches(*sizes: int, mask_size: tuple[int, int] = (24, 32), classes: int = 5) -> list[Batch]:
    """Images of 24 x 32 with noisy masks, a fifth of them ignored."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for size in sizes:
        mask = torch.randint(classes, (size, *mask_size), generator=generator)
        mask[torch.rand(mask.shape, generator=generator) < 0.2] = 255
        batches.append({"image": torch.randn(size, 3, 24, 32, generator=generator), "mask": mask})
    return batches


def loader(batches: list[Batch]) -> DataLoader[Any]:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


class Rates(Callback):
    """The learning rates of every step, {group name: rate}."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.seen.append({group["name"]: float(group["lr"]) for group in trainer.optimizers[0].param_groups})

    def of(self, name: str) -> list[float]:
        return [rates[name] for rates in self.seen]


# Parameter groups


def grouped_task(**options: Any) -> SegmentationTask:
    """DANet's head has scalars (its two gammas); the classifiers have biases; one stage of the backbone is frozen."""
    options = {"auxiliary_head": partial(SmallFCN, in_index=-2), "lr_scheduler": lambda o: PolyLR(o, 9), **options}
    task = make_task(partial(DANetHead, channels=8), **options)
    task.backbone.get_submodule("stages.0").requires_grad_(False)
    return task


def groups_of(task: SegmentationTask) -> list[dict[str, Any]]:
    optimizer = task.configure_optimizers()["optimizer"]
    return list(optimizer.param_groups)


def test_every_learning_parameter_is_in_exactly_one_group_and_frozen_ones_in_none() -> None:
    task = grouped_task()
    grouped = [id(p) for group in groups_of(task) for p in group["params"]]
    learning = [id(p) for name, p in task.named_parameters() if not name.startswith("backbone.stages.0")]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(learning)
    assert len(learning) < len(list(task.parameters()))


def test_weight_decay_on_convolution_weights_only() -> None:
    task = grouped_task()
    decay = {id(p): group["weight_decay"] for group in groups_of(task) for p in group["params"]}
    kinds = {0.0: set(), 5e-4: set()}  # type: ignore[var-annotated]
    for owner in task.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.requires_grad:
                expected = 5e-4 if isinstance(owner, nn.Conv1d | nn.Conv2d) and name == "weight" else 0.0
                assert decay[id(parameter)] == expected, (owner, name)
                kinds[expected].add((type(owner).__name__, name))
    assert {("BatchNorm2d", "weight"), ("BatchNorm2d", "bias"), ("Conv2d", "bias")} < kinds[0.0]
    assert any("Attention" in owner for owner, _ in kinds[0.0])  # the scalars


def test_weight_decay_on_everything_when_asked_for() -> None:
    task = grouped_task(decay_norm_and_bias=True)
    groups = groups_of(task)
    assert {group["weight_decay"] for group in groups} == {5e-4}
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in task.parameters())


def test_the_head_multiplier_reaches_head_and_auxiliary_head_only() -> None:
    task = grouped_task(head_lr_multiplier=10.0)
    rate = {id(p): group["lr"] for group in groups_of(task) for p in group["params"]}
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            assert rate[id(parameter)] == pytest.approx(0.01 if name.startswith("backbone.") else 0.1), name
    assert {name.split(".")[0] for name, _ in task.named_parameters()} == {"backbone", "head", "auxiliary_head"}


def test_a_frozen_backbone_leaves_the_head_to_be_trained() -> None:
    task = make_task(lr_scheduler=lambda o: PolyLR(o, 9))
    task.backbone.requires_grad_(False)
    assert {group["name"] for group in groups_of(task)} == {"head", "head norms and biases"}


# Losses


def by_hand(logits: Tensor, mask: Tensor) -> Tensor:
    """Upsampled cross entropy over the counted pixels."""
    logits = F.interpolate(logits, mask.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(logits, mask, ignore_index=255)


@pytest.mark.parametrize("auxiliary_weight", [None, 1.7])
def test_total_loss_of_three_maps_and_an_auxiliary_head(
    auxiliary_weight: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {} if auxiliary_weight is None else {"auxiliary_weight": auxiliary_weight}
    auxiliary = partial(SmallFCN, in_index=-2, dropout=0.0)
    task = make_task(partial(DANetHead, channels=8, dropout=0.0), 5, auxiliary_head=auxiliary, **options)
    for name, parameter in task.named_parameters():
        if parameter.ndim > 1 and "classifier" in name:
            nn.init.normal_(parameter)  # as they come, all maps are near zero and their losses alike
    logged: dict[str, Tensor] = {}
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.update({name: value}))
    monkeypatch.setattr(task, "log_dict", lambda values, **_: logged.update(values))
    batch = random_batches(2, mask_size=(48, 64))[0]  # masks may be finer than the images
    total = task.training_step(batch, 0)

    head: Any = task.head
    features = task.backbone(batch["image"])
    position = head.position_out(head.position(head.position_in(features[-1])))
    channel = head.channel_out(head.channel(head.channel_in(features[-1])))
    maps = [
        head.classifier(position + channel),
        head.position_classifier(position),
        head.channel_classifier(channel),
        task.auxiliary_head(features),  # type: ignore[misc]
    ]
    terms = [by_hand(logits, batch["mask"]) for logits in maps]
    assert len({round(term.item(), 4) for term in terms}) == 4
    weight = 0.4 if auxiliary_weight is None else auxiliary_weight
    torch.testing.assert_close(total, terms[0] + terms[1] + terms[2] + weight * terms[3])
    assert total.requires_grad
    names = ["train/loss", "train/loss_map0", "train/loss_map1", "train/loss_map2", "train/loss_auxiliary"]
    assert list(logged) == names
    torch.testing.assert_close(list(logged.values()), [total.detach(), *(term.detach() for term in terms)])
    assert not any(value.requires_grad for value in logged.values())


def test_a_single_map_has_its_loss_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(partial(SmallFCN, dropout=0.0), 5)
    logged: dict[str, Tensor] = {}
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.update({name: value}))
    batch = random_batches(2)[0]
    total = task.training_step(batch, 0)
    torch.testing.assert_close(total, by_hand(task.head(task.backbone(batch["image"])), batch["mask"]))
    assert list(logged) == ["train/loss"]


def test_another_loss_is_used_for_training_and_evaluation() -> None:
    task = make_task(partial(SmallFCN, dropout=0.0), 5, loss=Dice())
    batch = random_batches(2)[0]
    total = task.training_step(batch, 0)
    logits = task(batch["image"])
    assert logits.shape == (2, 5, 24, 32)
    torch.testing.assert_close(total, Dice()(logits, batch["mask"]))
    trainer = make_trainer()
    trainer.validate(task, loader([batch]), verbose=False)
    logits, weights = task.eval()(batch["image"]), (batch["mask"] != 255).flatten(1).sum(1)
    images = torch.stack([Dice()(logits[i : i + 1], batch["mask"][i : i + 1]) for i in range(2)])
    torch.testing.assert_close(trainer.callback_metrics["val/loss"], (images * weights).sum() / weights.sum())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-true"])
@pytest.mark.parametrize("loss", [Lovasz, lambda: CrossEntropy([0.1, 0.2, 0.3, 0.4, 0.5])])
def test_losses_in_half_precision(loss: Factory, precision: Any) -> None:
    """Trained and evaluated on a CPU; the numbers that are logged have not been rounded to half of a float."""
    task = make_task(num_classes=5, loss=loss())
    trainer = make_trainer(max_steps=2, precision=precision)
    trainer.fit(task, loader(random_batches(2, 2)), loader(random_batches(2)))
    for name in ("train/loss", "val/loss"):
        value = trainer.callback_metrics[name].float()
        assert value.isfinite()
        assert value != value.bfloat16().float(), name


@pytest.mark.parametrize("make", [CrossEntropy, lambda: CrossEntropy([1.0, 2.0, 3.0, 4.0, 0.5]), Lovasz])
def test_the_loss_of_a_split_depends_on_no_batches(make: Factory) -> None:
    task = make_task(num_classes=5, loss=make())
    nn.init.normal_(task.head.classifier[1].weight)  # type: ignore[index,union-attr,arg-type]
    (whole,) = random_batches(6)
    whole["mask"][2] = 255
    whole["mask"][3, 4:] = 255
    found = []
    for sizes in ([6], [4, 2], [1] * 6):
        parts = zip(whole["image"].split(sizes), whole["mask"].split(sizes), strict=True)
        batches = [{"image": image, "mask": mask} for image, mask in parts]
        make_trainer().validate(task, loader(batches), verbose=False)
        found.append(task.mean_losses["val"])
    assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-7)  # the logits themselves are rounded otherwise
    if make is not Lovasz:
        logits = task.eval()(whole["image"]).double()
        assert found[0] == pytest.approx(float(make()(logits, whole["mask"])), rel=1e-6)


def test_a_crop_without_labels_teaches_nothing() -> None:
    task = make_task(num_classes=5, auxiliary_head=SmallFCN)
    batch = random_batches(2)[0]
    batch["mask"][:] = 255
    total = task.training_step(batch, 0)
    assert total == 0
    total.backward()
    assert all((p.grad == 0).all() for p in task.parameters() if p.grad is not None)


# Training


def test_three_steps_on_digit_scenes() -> None:
    task = make_task(head_lr_multiplier=10.0, auxiliary_head=partial(SmallFCN, in_index=-2))
    before = {name: p.detach().clone() for name, p in task.named_parameters()}
    rates = Rates()
    trainer = make_trainer(rates, max_steps=3)
    trainer.fit(task, datamodule=digits())
    assert trainer.global_step == 3
    assert all((p != before[name]).any() for name, p in task.named_parameters())
    assert all(p.isfinite().all() for p in task.parameters())
    decay = [(1 - step / 3) ** 0.9 for step in range(3)]
    assert rates.of("backbone") == pytest.approx([0.01 * d for d in decay])
    assert rates.of("head") == rates.of("head norms and biases") == pytest.approx([0.1 * d for d in decay])
    assert rates.of("auxiliary") == pytest.approx([0.1 * d for d in decay])
    assert {"train/loss", "val/loss", "val/mIoU", "val/mAcc", "val/aAcc", "val/mDice", "val/fwIoU"} <= set(
        trainer.callback_metrics
    )


def test_it_learns() -> None:
    # a task that is trained on the wrong map, or not at all, cannot learn a batch by heart
    batch = random_batches(4, classes=3)[0]
    batch["mask"][batch["mask"] != 255] = 0
    batch["mask"][:, :, 16:][batch["mask"][:, :, 16:] != 255] = 2
    batch["image"] += (batch["mask"] == 2).unsqueeze(1)
    task = make_task(num_classes=3, optimizer=lambda groups: SGD(groups, lr=0.1, momentum=0.9))
    make_trainer(max_steps=40).fit(task, loader([batch] * 40))
    make_trainer().validate(task, loader([batch]), verbose=False)
    assert task.scores["val"].iou[0] > 0.8
    assert task.scores["val"].iou[2] > 0.8


def test_the_schedule_covers_all_epochs() -> None:
    rates = Rates()
    make_trainer(rates, max_epochs=2).fit(make_task(), datamodule=digits())
    assert rates.of("backbone") == pytest.approx([0.01 * (1 - step / 4) ** 0.9 for step in range(4)])


def test_the_schedule_counts_optimiser_steps_not_batches() -> None:
    rates = Rates()
    make_trainer(rates, max_epochs=2, accumulate_grad_batches=2).fit(make_task(), datamodule=digits())
    assert rates.of("backbone") == pytest.approx([0.01, 0.01, 0.01 * 0.5**0.9, 0.01 * 0.5**0.9])


def test_a_schedule_that_advances_every_epoch() -> None:
    rates = Rates()
    make_trainer(rates, max_epochs=3).fit(make_task(lr_interval="epoch"), datamodule=digits())
    assert rates.of("backbone") == pytest.approx([0.01 * (1 - epoch / 3) ** 0.9 for epoch in (0, 0, 1, 1, 2, 2)])


def test_a_schedule_that_advances_every_epoch_needs_their_number() -> None:
    with pytest.raises(UserError, match=r"set trainer\.max_epochs"):
        make_trainer(max_steps=6).fit(make_task(lr_interval="epoch"), datamodule=digits())


def test_a_length_that_is_given_is_kept() -> None:
    rates = Rates()
    task = make_task(lr_scheduler=partial(PolyLR, total_steps=100, power=1.0))
    make_trainer(rates, max_steps=3).fit(task, datamodule=digits())
    assert rates.of("backbone") == pytest.approx([0.01, 0.0099, 0.0098])


def test_an_endless_training_has_no_polynomial_schedule() -> None:
    with pytest.raises(UserError, match=r"trainer\.max_steps or trainer\.max_epochs"):
        make_trainer(max_epochs=-1).fit(make_task(), datamodule=digits())


def test_unknown_interval() -> None:
    with pytest.raises(UserError, match="lr_interval is 'batch'"):
        make_task(lr_interval="batch")


@pytest.mark.parametrize(("interval", "exponents"), [("epoch", [0, 0, 0, 0, 1, 1]), ("step", [0, 0, 1, 1, 2, 2])])
def test_adamw_and_step_schedule(interval: str, exponents: list[int]) -> None:
    rates = Rates()
    task = make_task(
        optimizer=lambda groups: AdamW(groups, lr=0.002, weight_decay=0.05),
        lr_scheduler=lambda optimizer: StepLR(optimizer, step_size=2, gamma=0.1),
        lr_interval=interval,
        head_lr_multiplier=2.0,
    )
    trainer = make_trainer(rates, max_epochs=3)
    trainer.fit(task, datamodule=digits())
    assert isinstance(trainer.optimizers[0], AdamW)
    assert rates.of("backbone") == pytest.approx([0.002 * 0.1**e for e in exponents])
    assert rates.of("head") == pytest.approx([0.004 * 0.1**e for e in exponents])
    assert {group["weight_decay"] for group in trainer.optimizers[0].param_groups} == {0.05, 0.0}


def test_reduce_on_plateau_follows_the_validation_miou() -> None:
    class Plateau(ReduceLROnPlateau):
        def __init__(self, optimizer: Optimizer) -> None:
            super().__init__(optimizer, mode="max", factor=0.5, patience=0, threshold=2.0, threshold_mode="abs")
            self.seen: list[float] = []

        def step(self, metrics: Any, epoch: int | None = None) -> None:
            self.seen.append(float(metrics))
            super().step(metrics, epoch)

    class Scores(Callback):
        seen: tuple[float, ...] = ()

        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if not trainer.sanity_checking:
                self.seen += (pl_module.scores["val"].mIoU,)  # type: ignore[union-attr,operator,index]

    rates, seen = Rates(), Scores()
    trainer = make_trainer(rates, seen, max_epochs=4)
    trainer.fit(make_task(lr_scheduler=Plateau, lr_interval="epoch"), datamodule=digits())
    plateau: Any = trainer.lr_scheduler_configs[0].scheduler
    assert plateau.seen == pytest.approx(seen.seen)
    assert len(plateau.seen) == 4
    # no mIoU is better than the first by the 2.0 that the threshold asks for
    assert rates.of("backbone")[::2] == pytest.approx([0.01, 0.01, 0.005, 0.0025])


def test_one_sample_a_batch_with_a_head_that_pools_to_one_pixel() -> None:
    task = make_task(partial(PSPNetHead, channels=4))
    with pytest.raises(UserError, match=r"data\.init_args\.batch_size to 2"):
        make_trainer(max_steps=1).fit(task, datamodule=digits(batch_size=1))
    make_trainer(max_epochs=1).fit(task, datamodule=digits())  # its last validation batch is a single scene: fine
    assert task.confusion_counts["val"].sum() == 3 * 48 * 48


def test_other_errors_of_a_head_stay_what_they_are() -> None:
    class Broken(FCNHead):
        def forward(self, features: list[Tensor]) -> Tensor:
            raise ValueError("nothing to do with the batch")

    with pytest.raises(ValueError, match="nothing to do with the batch"):
        make_task(Broken).training_step(random_batches(2)[0], 0)


# Evaluation


def independent_counts(task: SegmentationTask, batches: list[Batch], classes: int) -> Tensor:
    """Every counted pixel one by one, in numpy."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    task.eval()
    for batch in batches:
        with torch.no_grad():
            logits = task.head(task.backbone(batch["image"]))
            logits = F.interpolate(logits, batch["image"].shape[-2:], mode="bilinear", align_corners=False)
            logits = F.interpolate(logits, batch["mask"].shape[-2:], mode="bilinear", align_corners=False)
        prediction, mask = logits.argmax(1).numpy(), batch["mask"].numpy()
        np.add.at(counts, (mask[mask != 255], prediction[mask != 255]), 1)
    return torch.from_numpy(counts)


@pytest.mark.parametrize("stage", ["val", "test"])
@pytest.mark.parametrize("mask_size", [(24, 32), (37, 50)])
def test_scores_are_those_of_an_independent_pass(stage: str, mask_size: tuple[int, int]) -> None:
    task = make_task(num_classes=5)
    nn.init.normal_(task.head.classifier[1].weight)  # type: ignore[index,union-attr,arg-type]
    batches = random_batches(2, 2, 1, mask_size=mask_size)
    trainer = make_trainer()
    run = trainer.validate if stage == "val" else trainer.test
    for _ in range(2):  # the second time too: nothing is left of the first
        run(task, loader(batches), verbose=False)
        counts = independent_counts(task, batches, 5)
        assert torch.equal(task.confusion_counts[stage], counts)
        assert counts.sum() == sum((batch["mask"] != 255).sum() for batch in batches)
        assert (counts.sum(0) > 0).sum() > 1
        expected = scores(counts).means()
        assert expected["mIoU"] == pytest.approx(
            np.mean([counts[k, k] / (counts[k].sum() + counts[:, k].sum() - counts[k, k]) for k in range(5)])
        )
        assert task.scores[stage].means() == expected
        logged = {name: float(trainer.callback_metrics[f"{stage}/{name}"]) for name in expected}
        assert logged == pytest.approx(expected)
    assert set(task.scores) == {stage}


def test_evaluation_gives_the_predicted_classes() -> None:
    task = make_task(num_classes=5).eval()
    batch = random_batches(2)[0]
    for step in (task.validation_step, task.test_step):
        assert torch.equal(step(batch, 0)["prediction"], task(batch["image"]).argmax(1))


def test_sanity_check_batches_leave_no_scores() -> None:
    class Sanity(Callback):
        found: Any = None

        def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            counted: Any = pl_module.confusion["val"]  # type: ignore[index]
            logged = "val/mIoU" in trainer.callback_metrics
            self.found = (dict(pl_module.scores), int(counted.confmat.sum()), logged)  # type: ignore[arg-type]

    sanity, task = Sanity(), make_task()
    make_trainer(sanity, max_epochs=1, num_sanity_val_steps=2).fit(task, datamodule=digits())
    assert sanity.found == ({}, 0, False)
    assert task.confusion_counts["val"].sum() == 3 * 48 * 48


# Checkpoints


def test_a_checkpoint_of_a_task_built_in_python(tmp_path: Path) -> None:
    options = {"auxiliary_weight": 0.7, "head_lr_multiplier": 3.0}
    trainer = make_trainer(max_steps=2)
    task = make_task(**options)
    trainer.fit(task, datamodule=digits())
    trainer.save_checkpoint(tmp_path / "task.ckpt")

    content = torch.load(tmp_path / "task.ckpt", weights_only=True)  # no code is needed to read it
    assert content["hyper_parameters"]["num_classes"] == 11
    torch.manual_seed(1)
    loaded = SegmentationTask.load_from_checkpoint(tmp_path / "task.ckpt", weights_only=True)
    image = torch.randn(1, 3, 40, 56)
    assert torch.equal(loaded.eval()(image), task.eval()(image))
    assert loaded(image).shape == (1, 11, 40, 56)
    assert (loaded.num_classes, loaded.auxiliary_weight, loaded.head_lr_multiplier) == (11, 0.7, 3.0)


def test_a_resumed_training_goes_on_at_the_same_learning_rate(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    make_trainer(Stop(), max_epochs=2).fit(make_task(), datamodule=digits())
    rates = Rates()
    trainer = make_trainer(rates, max_epochs=2)
    trainer.fit(make_task(), datamodule=digits(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert rates.of("head") == pytest.approx([0.01 * (1 - step / 4) ** 0.9 for step in (2, 3)])


@pytest.mark.parametrize("head", [FCNHead, lambda channels, classes: FCNHead(channels, classes, channels=4)])
def test_a_class_or_any_function_is_a_head_factory(head: Factory) -> None:
    task = make_task(head, 7)
    assert task.head.num_classes == 7
    assert task(torch.zeros(1, 3, 16, 20)).shape == (1, 7, 16, 20)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_training_and_names_the_files(value: float) -> None:
    batches: list[Any] = random_batches(2, 2)
    batches[1]["image"][0, 0, 0, 0] = value
    batches[1]["name"] = ["first.png", "second.png"]
    task = make_task(num_classes=5)
    with pytest.raises(UserError, match=r"The loss is (nan|inf) at step 1 \(first.png, second.png\). Lower optimizer"):
        make_trainer(max_epochs=1).fit(task, loader(batches))
    assert all(p.isfinite().all() for p in task.parameters())
