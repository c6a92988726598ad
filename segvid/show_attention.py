"""The command `segvid attention`: where a trained head looks from a pixel of an image."""

from collections.abc import Sequence
from pathlib import Path

from segvid.commands.options import Parser
from segvid.errors import UserError
from segvid.files import write_whole
from segvid.text import console, plain


def show_attention(words: Sequence[str]) -> int:
    """Writes the picture that the options describe; returns the exit code."""
    parser = Parser(prog="segvid attention", description="Where a trained head looks: the weights of one query pixel.")
    parser.add_argument("--ckpt_path", type=Path, required=True, help="checkpoint: RUN/checkpoints/best.ckpt")
    parser.add_argument("--image", type=Path, required=True, help="image file")
    parser.add_argument(
        "--point", help="query pixel x,y of the image as viewers show it, upright, at its own size; default: its middle"
    )
    parser.add_argument("--all", action="store_true", help="nine queries, and the soft regions of heads that have them")
    parser.add_argument("--output", type=Path, default=Path("attention.png"), help="picture to write (attention.png)")
    options = parser.parse_args(words)

    from segvid.data.reading import read_image
    from segvid.segmentation.attention_maps import attention_maps, draw, query_points
    from segvid.segmentation.trained import load_trained

    model = load_trained(options.ckpt_path)
    if not options.image.is_file():
        raise UserError(f"there is no image {plain(options.image)} (--image).")
    picture = read_image(options.image, upright=True)
    height, width = picture.shape[:2]
    if options.all:
        points = query_points(height, width)
    else:
        points = [(width // 2, height // 2) if options.point is None else parse_point(options.point, width, height)]
    image = model.normalised(model.resized(picture))  # the size that the head was trained for
    queries = []
    for x, y in points:
        place = (x * image.shape[2] // width, y * image.shape[1] // height)
        queries.append(((x, y), attention_maps(model.task, image, place)))
    content = draw(picture, queries, with_regions=8 if options.all else 0)
    write_whole(options.output, lambda partial: partial.write_bytes(content))
    names = ", ".join(found.mechanism for found in queries[0][1])
    console().print(f"{plain(options.output)}: {type(model.task.head).__name__} ({names})", soft_wrap=True)
    return 0


def parse_point(text: str, width: int, height: int) -> tuple[int, int]:
    """The pixel "x,y" of an image.

    Raises:
        UserError: it is none, or lies outside.
    """
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"--point is '{plain(text)}'; give column and row of a pixel, for example 120,80.")
    x, y = int(parts[0]), int(parts[1])
    if x >= width or y >= height:
        raise UserError(f"--point {plain(text)} lies outside the image of {width} x {height} pixels (as it is shown).")
    return x, y
