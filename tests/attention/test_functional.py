"""softmax_attention, matmul_float32, adaptive_avg_pool2d and the moves on a grid against their definitions."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from segvid.attention import functional
from segvid.attention.functional import (
    adaptive_avg_pool2d,
    crop,
    join_blocks,
    matmul_float32,
    position_index,
    shifted,
    softmax_attention,
    split_blocks,
)
from tests import reference
from tests.reference import assert_same_with_gradients, random_input


def attention_inputs(batch=2, queries=5, keys=7, dim=3, channels=4):
    """Five different sizes, so that no two axes can be confused."""
    return (
        random_input(batch, queries, dim, seed=1),
        random_input(batch, keys, dim, seed=2),
        random_input(batch, keys, channels, seed=3),
    )


def defined_attention(query, key, value, scale):
    """One query at a time."""
    samples = []
    for q, k, v in zip(query, key, value, strict=True):
        samples.append(torch.stack([reference.attend(q_i, list(k), list(v), scale) for q_i in q]))
    return torch.stack(samples)


def shrink_chunks(monkeypatch, chunk):
    """Everything is above the limit of the explicit form; `chunk` affinities at a time."""
    monkeypatch.setattr(functional, "EXPLICIT", 0)
    monkeypatch.setattr(functional, "CHUNK", chunk)


# For 3 samples of 5 queries on 7 keys: everything; two samples and the one that is left; whole samples, just (35) or
# with room (69); 2 rows of 5; 4 rows and the one that is left; single rows, also where a row is more than a chunk.
CHUNKS = [1000, 105, 75, 70, 69, 35, 34, 14, 7, 3]


@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_softmax_attention_is_the_definition(scale):
    query, key, value = attention_inputs()
    expected = defined_attention(query, key, value, scale)
    assert_same_with_gradients(softmax_attention(query, key, value, scale), expected, [query, key, value])


@pytest.mark.parametrize("scale", [1.0, 0.37])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_chunked_attention_is_the_definition(monkeypatch, chunk, scale):
    shrink_chunks(monkeypatch, chunk)
    query, key, value = attention_inputs(batch=3)
    expected = defined_attention(query, key, value, scale)
    actual = softmax_attention(query, key, value, scale)
    assert "Chunked" in type(actual.grad_fn).__name__
    assert_same_with_gradients(actual, expected, [query, key, value])


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 6), (6, 1), (7, 3), (3, 7)], ids=str)
@pytest.mark.parametrize("chunk", [5, 10])
def test_chunked_attention_of_any_number_of_queries_and_keys(monkeypatch, chunk, queries, keys):
    shrink_chunks(monkeypatch, chunk)
    query, key, value = attention_inputs(queries=queries, keys=keys)
    expected = defined_attention(query, key, value, 0.5)
    assert_same_with_gradients(softmax_attention(query, key, value, 0.5), expected, [query, key, value])


def test_softmax_attention_is_chunked_above_the_limit(monkeypatch):
    """3 * 5 * 7 affinities are stored at a limit of just as many, not below."""
    query, key, value = attention_inputs(batch=3)
    monkeypatch.setattr(functional, "EXPLICIT", 105)
    assert "Chunked" not in type(softmax_attention(query, key, value).grad_fn).__name__
    monkeypatch.setattr(functional, "EXPLICIT", 104)
    assert "Chunked" in type(softmax_attention(query, key, value).grad_fn).__name__


def test_softmax_attention_stores_the_map_up_to_a_million_affinities():
    at_limit = torch.zeros(1, 1024, 1).requires_grad_()
    above = torch.zeros(1, 1025, 1).requires_grad_()
    assert "Chunked" not in type(softmax_attention(at_limit, at_limit, at_limit).grad_fn).__name__
    assert "Chunked" in type(softmax_attention(above, above, above).grad_fn).__name__


@pytest.mark.parametrize("chunk", CHUNKS)
def test_chunks_cover_every_row_once_and_stay_small(monkeypatch, chunk):
    """No more affinities at a time than allowed, unless one row alone has more."""
    monkeypatch.setattr(functional, "CHUNK", chunk)
    times = torch.zeros(3, 5)
    for samples, rows in functional._chunks(3, 5, 7):
        times[samples, rows] += 1
        assert times[samples, rows].numel() * 7 <= max(chunk, 7)
    assert torch.equal(times, torch.ones(3, 5))


@pytest.mark.parametrize("chunk", [1000, 75, 14])
def test_chunked_attention_without_gradients(monkeypatch, chunk):
    shrink_chunks(monkeypatch, chunk)
    query, key, value = attention_inputs(batch=3)
    with torch.no_grad():
        actual = softmax_attention(query, key, value, 0.37)
    assert not actual.requires_grad
    torch.testing.assert_close(actual, defined_attention(query, key, value, 0.37), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_chunked_attention_with_the_gradient_of_one_input_alone(monkeypatch, wanted):
    shrink_chunks(monkeypatch, 14)
    inputs = [t.detach() for t in attention_inputs()]
    inputs[wanted].requires_grad_()
    expected = defined_attention(*inputs, 0.37)
    assert_same_with_gradients(softmax_attention(*inputs, 0.37), expected, [inputs[wanted]])


@pytest.mark.parametrize("chunk", [None, 1000, 75, 14])
def test_softmax_attention_of_strided_inputs(monkeypatch, chunk):
    """Channels first, every other key, one value for all: views, as the mechanisms hand them over. So is the gradient:
    a sum's is one number, expanded.
    """
    if chunk is not None:
        shrink_chunks(monkeypatch, chunk)
    query, key, value = random_input(3, 3, 5), random_input(3, 14, 3, seed=2), random_input(3, 1, 4, seed=3)
    strided = (query.transpose(1, 2), key[:, ::2], value.expand(-1, 7, -1))
    assert not any(t.is_contiguous() for t in strided)
    expected = defined_attention(*strided, 0.37)
    actual = softmax_attention(*strided, 0.37)
    assert_same_with_gradients(actual, expected, [query, key, value])
    sums = torch.autograd.grad(softmax_attention(*strided, 0.37).sum(), [query, key, value])
    expected_sums = torch.autograd.grad(defined_attention(*strided, 0.37).sum(), [query, key, value])
    for actual_sum, expected_sum in zip(sums, expected_sums, strict=True):
        torch.testing.assert_close(actual_sum, expected_sum, rtol=1e-9, atol=1e-9)


def test_softmax_attention_differentiates_twice():
    assert torch.autograd.gradgradcheck(lambda q, k, v: softmax_attention(q, k, v, 0.5), attention_inputs())


def test_chunked_attention_refuses_to_be_differentiated_twice(monkeypatch):
    """Better than silently without the part that the recomputation hides."""
    shrink_chunks(monkeypatch, 14)
    query, key, value = attention_inputs()
    (first,) = torch.autograd.grad(softmax_attention(query, key, value).square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("how", ["scripted", "traced"])
def test_softmax_attention_in_a_graph_equals_eager(monkeypatch, how):
    """The plain formula at any size: nothing of the chunks of the example stays in the graph."""
    small, large = attention_inputs(), attention_inputs(batch=3, queries=6, keys=4)
    monkeypatch.setattr(functional, "EXPLICIT", 0)
    if how == "scripted":
        graph = torch.jit.script(softmax_attention)
    else:
        graph = torch.jit.trace(lambda q, k, v: softmax_attention(q, k, v, 1.0), small, check_trace=False)
    for inputs in (small, large):
        torch.testing.assert_close(graph(*inputs), softmax_attention(*inputs, 1.0))


def test_chunked_attention_gradcheck(monkeypatch):
    shrink_chunks(monkeypatch, 14)
    assert torch.autograd.gradcheck(lambda q, k, v: softmax_attention(q, k, v, 0.5), attention_inputs())


@pytest.mark.parametrize("chunk", [None, 1000, 14])
def test_softmax_attention_at_large_affinities(monkeypatch, chunk):
    """exp(1000) is infinite; what the softmax divides by is not. All affinities far below 0 are no 0 / 0 either."""
    if chunk is not None:
        shrink_chunks(monkeypatch, chunk)
    query = torch.full((1, 5, 1), 1000.0, requires_grad=True)
    value = torch.eye(7)[None]
    for shift in (0.0, -100.0):
        key = torch.linspace(-1, 1, 7)[None, :, None] + shift
        average = softmax_attention(query, key, value)
        torch.testing.assert_close(average, value[:, 6:].expand(-1, 5, -1))
        (gradient,) = torch.autograd.grad(average[..., 0].sum(), query)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("chunk", [None, 75, 14])
def test_softmax_attention_under_autocast(monkeypatch, chunk):
    """What the convolutions hand over is in bfloat16, and so are the average and the gradients."""
    if chunk is not None:
        shrink_chunks(monkeypatch, chunk)
    exact = [t.detach() for t in attention_inputs(batch=3)]
    inputs = [t.bfloat16().requires_grad_() for t in exact]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        average = softmax_attention(*inputs, 0.37)
    assert average.dtype == torch.bfloat16
    torch.testing.assert_close(average.double(), defined_attention(*exact, 0.37), rtol=0.03, atol=0.03)
    gradients = torch.autograd.grad(average, inputs, torch.ones_like(average))
    exact = [t.requires_grad_() for t in exact]
    expected = torch.autograd.grad(defined_attention(*exact, 0.37).sum(), exact)
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        assert gradient.dtype == torch.bfloat16
        torch.testing.assert_close(gradient.double(), expected_gradient, rtol=0.05, atol=0.1)


def test_chunked_attention_stays_in_float32_under_autocast(monkeypatch):
    """Affinities of 1e6 that differ by 1: bfloat16 would not tell them apart."""
    shrink_chunks(monkeypatch, 14)
    key = torch.tensor([1e6, 1e6 + 1])[None, :, None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        average = softmax_attention(torch.ones(1, 5, 1), key, torch.eye(2)[None])
    assert average.dtype == torch.float32
    torch.testing.assert_close(average[0, 0], torch.tensor([0.0, 1.0]).softmax(dim=0))


def test_softmax_attention_scale_defaults_to_one():
    inputs = attention_inputs()
    assert torch.equal(softmax_attention(*inputs), softmax_attention(*inputs, 1.0))


def test_softmax_attention_weights_sum_to_one_over_the_keys():
    """Values that are all alike come back unchanged."""
    query, key, value = attention_inputs()
    alike = value[:, :1].expand_as(value)
    torch.testing.assert_close(softmax_attention(query, key, alike), alike[:, :1].expand(-1, query.shape[1], -1))


def test_softmax_attention_gradcheck():
    assert torch.autograd.gradcheck(lambda q, k, v: softmax_attention(q, k, v, 0.5), attention_inputs())


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_matmul_float32_is_exempt_from_autocast(low):
    """A sum over many positions: 300^2 * 1000 is out of float16's range and needs more digits than bfloat16 has."""
    a = torch.full((2, 3, 1000), 300.0)
    b = torch.full((2, 1000, 4), 300.0)
    with torch.autocast("cpu", dtype=low):
        product = matmul_float32(a, b)
        assert torch.matmul(a, b).dtype == low  # else this test proves nothing
    assert product.dtype == torch.float32
    assert torch.equal(product, torch.full((2, 3, 4), 9e7))


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_matmul_float32_takes_low_precision_inputs(low):
    a = torch.full((3, 1000), 300.0, dtype=low)
    product = matmul_float32(a, a.T)
    assert product.dtype == torch.float32
    torch.testing.assert_close(product, a.double().matmul(a.double().T).float())


def test_matmul_float32_keeps_float64():
    a, b = random_input(2, 3, 5), random_input(2, 5, 4, seed=2)
    expected = torch.stack([torch.stack([(row[:, None] * s).sum(0) for row in r]) for r, s in zip(a, b, strict=True)])
    assert_same_with_gradients(matmul_float32(a, b), expected, [a, b])


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_matmul_float32_scripted_equals_eager():
    scripted = torch.jit.script(matmul_float32)
    a, b = random_input(2, 3, 5), random_input(2, 5, 4, seed=2)
    assert torch.equal(scripted(a, b), matmul_float32(a, b))


SIZES = [(1, 1), (1, 7), (7, 1), (2, 3), (5, 4), (6, 6), (7, 5), (12, 18), (13, 17), (33, 65), (97, 49)]


@pytest.mark.parametrize("bins", [1, 2, 3, 6, 8])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_adaptive_avg_pool2d_equals_torch(size, bins):
    """Also where cells overlap (sizes that bins does not divide) and where there are more bins than positions."""
    x = random_input(2, 3, *size)
    assert_same_with_gradients(adaptive_avg_pool2d(x, bins), F.adaptive_avg_pool2d(x, bins), [x])


@pytest.mark.parametrize(("size", "bins"), [((5, 7), 3), ((2, 3), 6), ((4, 1), 2)], ids=str)
def test_adaptive_avg_pool2d_is_the_definition(size, bins):
    x = random_input(2, 3, *size)
    assert_same_with_gradients(adaptive_avg_pool2d(x, bins), reference.adaptive_avg_pool2d(x, bins), [x])


def test_adaptive_avg_pool2d_gradcheck():
    assert torch.autograd.gradcheck(lambda x: adaptive_avg_pool2d(x, 3), random_input(1, 2, 5, 4))


# On the grid


@pytest.mark.parametrize("grid", [(5,), (3, 4), (1, 4), (2, 3, 4)], ids=str)
def test_position_index_counts_along_the_last_axis_first(grid):
    positions = itertools.product(*map(range, grid))
    assert [position_index(grid, position) for position in positions] == list(range(torch.Size(grid).numel()))


@pytest.mark.parametrize("position", [(3, 0), (0, 4), (-1, 0), (0, -1), (0,), (0, 0, 0), ()], ids=str)
def test_position_index_refuses_what_lies_off_the_grid(position):
    with pytest.raises(ValueError, match=r"grid \(3, 4\)"):
        position_index((3, 4), position)


@pytest.mark.parametrize("fill", [0.0, -7.0])
@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("grid", [(3, 4), (1, 5), (5, 1)], ids=str)
def test_shifted_is_the_definition(grid, window, fill):
    """Map (dy + r) * window + dx + r holds x at (y + dy, x + dx)."""
    x = random_input(2, 3, *grid)
    maps = shifted(x, window, fill)
    assert len(maps) == window**2
    reach = window // 2
    offsets = itertools.product(range(-reach, reach + 1), repeat=2)
    for moved, (dy, dx) in zip(maps, offsets, strict=True):
        assert moved.shape == x.shape
        for row, column in itertools.product(*map(range, grid)):
            inside = 0 <= row + dy < grid[0] and 0 <= column + dx < grid[1]
            expected = x[:, :, row + dy, column + dx] if inside else torch.full((2, 3), fill, dtype=x.dtype)
            assert torch.equal(moved[:, :, row, column], expected)


def test_shifted_passes_gradients_on():
    assert torch.autograd.gradcheck(lambda x: tuple(shifted(x, 3, 2.0)), random_input(1, 2, 3, 2))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("block", "blocks"), [((2, 3), [4, 5]), ((1, 4), [3, 1]), ((3, 1), [1, 2])], ids=str)
def test_split_blocks_is_the_definition(block, blocks, interlaced):
    """Four different sizes, so that no two axes can be confused."""
    x = random_input(2, 3, block[0] * blocks[0], block[1] * blocks[1])
    groups = split_blocks(x, block, blocks, interlaced)
    inside, across = block[0] * block[1], blocks[0] * blocks[1]
    assert groups.shape == ((2 * inside, across, 3) if interlaced else (2 * across, inside, 3))
    for sample, row, column in itertools.product(range(2), range(x.shape[2]), range(x.shape[3])):
        place = row % block[0] * block[1] + column % block[1]
        which = row // block[0] * blocks[1] + column // block[1]
        token = groups[sample * inside + place, which] if interlaced else groups[sample * across + which, place]
        assert torch.equal(token, x[sample, :, row, column])
    assert torch.equal(join_blocks(groups, block, blocks, interlaced, 2), x)


@pytest.mark.parametrize("interlaced", [False, True])
def test_blocks_pass_gradients_on(interlaced):
    x = random_input(2, 2, 4, 3)
    assert torch.autograd.gradcheck(lambda x: split_blocks(x, (2, 1), [2, 3], interlaced), x)
    groups = split_blocks(x, (2, 1), [2, 3], interlaced).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda g: join_blocks(g, (2, 1), [2, 3], interlaced, 2), groups)


@pytest.mark.parametrize("box", [(0, 4, 0, 6), (1, 3, 2, 6), (0, 1, 5, 6)], ids=str)
def test_crop_is_the_slice(box):
    x = random_input(2, 3, 4, 6)
    top, bottom, left, right = box
    assert crop(x, *box).is_contiguous()
    assert_same_with_gradients(crop(x, *box), x[:, :, top:bottom, left:right], [x])
