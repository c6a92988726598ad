"""What the commands say of themselves: printed before anything heavy is imported."""

USAGE = """\
usage: segvid <command> [options]          (lightning <command> and python -m segvid <command> are the same)

  fit        train:     segvid fit --config RECIPE.yaml --config HEAD.yaml [--trainer.max_steps 1000 ...]
  validate   evaluate on the validation split:  segvid validate --config RUN/config.yaml --ckpt_path RUN/.../best.ckpt
  test       evaluate on the test split, likewise
  resume     go on with a training that was stopped:  segvid resume RUN [options of fit]
  lr_find    the loss at rising learning rates:  segvid lr_find --config RECIPE.yaml --config HEAD.yaml
  compare    train and evaluate several heads, and report:  segvid compare --config configs/compare/quickstart.yaml
  data       check a data set, weigh its classes:  segvid data check --config RECIPE.yaml, segvid data weights ...
  predict    classes of images, folders and videos:  segvid predict --ckpt_path RUN/checkpoints/best.ckpt photos/
  export     TorchScript, .pt2 or ONNX, proven equal:  segvid export --ckpt_path RUN/checkpoints/best.ckpt
  attention  where a head looks:  segvid attention --ckpt_path RUN/checkpoints/last.ckpt --image PICTURE --point 120,80

  segvid <command> --help     its options; --print_config prints the whole configuration
  --debug                     (anywhere) show the stack trace of an error
  --allow_import PACKAGE      (anywhere) let configs and checkpoints name classes of a package of yours

Exit codes: 0 done, 1 failed with a message, 2 wrong usage, 130 interrupted (Ctrl-C), 143 a training that was told to
stop (Ctrl-C, SIGTERM, a lost terminal) and saved itself.
"""

CONFIGURATION = """\
  --config FILE                recipe, head, trainer ...; later ones win. Looked for here, then among those of segvid
  --data.init_args.NAME VALUE  of the data: root, batch_size, num_workers ...
  --model.init_args.NAME VALUE of the model: head.init_args.dropout, optimizer.init_args.lr, inference.scales ...
  --trainer.NAME VALUE         of Lightning's Trainer: max_epochs, max_steps, devices, precision, default_root_dir ...
  --print_config               the whole configuration, all defaults included
  --data.help CLASS            the options of a data set: segvid {command} --data.help FolderSegmentation
  --model.init_args.head.help CLASS    those of a head, after a recipe and a head; backbone, loss ... likewise:
                               segvid {command} --config RECIPE --config HEAD --model.init_args.head.help DANetHead
  --help all                   all options of the parser
"""

FIT = """\
usage: segvid fit --config RECIPE.yaml --config HEAD.yaml [options]

Trains a model and writes one folder, runs/<data>-<head>/version_N: configuration, checkpoints, logs, figures, pictures.

{configuration}
  --seed_everything N          of every random decision (0)
  --ckpt_path FILE             go on from this checkpoint (segvid resume RUN does it for a run)
  --checkpoint.monitor NAME    figure that best.ckpt goes by (val/mIoU)
  --panels.images N            images of the panels that every validation draws (4)
"""

VALIDATE = """\
usage: segvid {command} --config RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt [options]

Evaluates a checkpoint on the {split} split and prints and writes the figures of every class.

  --ckpt_path FILE             the weights to evaluate
  --model.init_args.inference.window [H,W]    in sliding windows; likewise stride, scales [0.75,1.0], flip true
{configuration}"""

RESUME = """\
usage: segvid resume RUN [options of fit]

Goes on with a training that was stopped, in its folder, with the same schedule, batches and random numbers. RUN is the
run's folder, for example runs/VOC-DANetHead/version_0; it holds config.yaml and checkpoints/last.ckpt.

  --trainer.max_epochs N       longer than planned; likewise --trainer.max_steps
{configuration}"""

LR_FIND = """\
usage: segvid lr_find --config RECIPE.yaml --config HEAD.yaml [options]

Trains along rising learning rates (no weights are kept), draws the loss and suggests a rate.

  --lr_find.min_lr X           the first rate (1e-6)
  --lr_find.max_lr X           the last one (1.0)
  --lr_find.steps N            training steps in between (100)
  --lr_find.output FOLDER      for lr_find.csv and lr_find.png (runs/lr_find)
{configuration}"""


def usage(command: str) -> str | None:
    """The help of a command that LightningCLI parses; None for the others, which have a parser of their own."""
    texts = {"fit": FIT, "validate": VALIDATE, "test": VALIDATE, "resume": RESUME, "lr_find": LR_FIND}
    if command not in texts:
        return None
    shown = "fit" if command == "resume" else command
    split = "test" if command == "test" else "validation"
    return texts[command].format(command=command, split=split, configuration=CONFIGURATION.format(command=shown))
