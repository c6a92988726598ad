"""Options of trainings on DigitScenes that take seconds."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
RECIPE = str(ROOT / "configs/segmentation/recipes/digits.yaml")
HEADS = ROOT / "configs/segmentation/heads"
TINY = [
    "--data.init_args.train_scenes=32",
    "--data.init_args.val_scenes=8",
    "--data.init_args.batch_size=4",
    "--data.init_args.eval_batch_size=4",
    "--data.init_args.size=48",
    "--data.init_args.digits=2",
    "--model.init_args.backbone.init_args.widths=[4,6,8]",
]


# Background counts little, so that a few steps predict more than background: else all weights have the same figures.
UNEQUAL = [
    "--model.init_args.loss.init_args.class_weights=[0.01,1,1,1,1,1,1,1,1,1,1]",
    "--model.init_args.optimizer.init_args.lr=0.02",
    "--model.init_args.lr_scheduler.init_args.warmup_steps=0",
]


def words(head: str = "danet") -> list[str]:
    return ["--config", RECIPE, "--config", str(HEADS / f"{head}.yaml"), *TINY]
