"""The fused training kernels, for bfloat16 and float32 activations, against plain torch in float32: values
and gradients over random shapes, vector tails, document borders and extreme values; the same bits every time
and, row by row, for any number of threads."""

import contextlib
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ayllu import native
from ayllu.model.config import RopeSpec
from ayllu.model.rope import rope_tables, rotate
from ayllu.native import ops

if not native.available():
    pytest.skip("the extension is not built here", allow_module_level=True)

BF16, F32 = torch.bfloat16, torch.float32
SHARE = {BF16: 2**-7, F32: 2e-5}  # of a row's own size: two units in bfloat16's last place
kinds = st.sampled_from([BF16, F32])
seeds = st.integers(0, 2**31)
widths = st.one_of(st.integers(1, 70), st.sampled_from([96, 127, 128, 129, 344, 513]))


def normal(seed, *shape, spread=1.0, kind=BF16):
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(shape, generator=generator)).to(kind)


def near(got, wanted, *, share=SHARE[BF16], floor=1e-6):
    """Within `share` of the row's own size."""
    got, wanted = got.detach().float(), wanted.detach().float()
    assert got.shape == wanted.shape and torch.isfinite(got).all()
    size = wanted.abs().amax(-1, keepdim=True) if wanted.dim() else wanted.abs()
    assert ((got - wanted).abs() <= share * size + floor).all(), float((got - wanted).abs().max())


def gradients(function, inputs, out_gradient):
    """The function's value and its gradients for the inputs that are tensors."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    out.backward(out_gradient.to(out.dtype))
    return [out, *(leaf.grad for leaf in leaves)]


# ---- RMSNorm
def plain_norm(x, weight, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


@settings(deadline=None, max_examples=40)
@given(
    seed=seeds, rows=st.integers(1, 150), width=widths, spread=st.sampled_from([1e-4, 1.0, 1e3]), kind=kinds
)
def test_rms_norm(seed, rows, width, spread, kind):
    x = normal(seed, rows, width, spread=spread, kind=kind)
    dy = normal(seed + 1, rows, width, kind=kind)
    weight = 1 + 0.3 * normal(seed + 2, width).float()
    got = gradients(lambda x, w: ops.rms_norm(x, w, 1e-6), [x, weight], dy)
    wanted = gradients(lambda x, w: plain_norm(x, w, 1e-6), [x.float(), weight], dy)
    # What is left of dy may be small (all of it lies along x when the width is 1): its size counts.
    scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
    share = SHARE[kind]
    floors = (1e-6, share / 2 * scale * (dy.float() * weight).abs().amax(-1, keepdim=True), share / 32 * rows)
    assert [x.dtype for x in got] == [kind, kind, F32]
    for mine, theirs, floor in zip(got, wanted, floors, strict=True):
        near(mine, theirs, share=share, floor=floor)


def test_rms_norm_of_extremes():
    x = torch.tensor([[0.0] * 5, [3e38, -3e38, 0, 0, 0], [1e-38] * 5, [1e15, 1, 1, 1, 1]]).to(BF16)
    y = ops.rms_norm(x[[0, 2, 3]], torch.ones(5), 1e-6).float()
    assert (y[0] == 0).all() and (y[1].abs() < 1e-30).all()
    assert y[2, 0] == pytest.approx(5**0.5, rel=0.01) and (y[2, 1:] < 1e-14).all()
    # The squares overflow float32, as in torch: the row becomes zero, not something else.
    assert torch.equal(
        ops.rms_norm(x[1:2], torch.ones(5), 1e-6).float(), plain_norm(x[1:2].float(), torch.ones(5), 1e-6)
    )


# ---- SwiGLU
@settings(deadline=None, max_examples=40)
@given(
    seed=seeds, rows=st.integers(1, 150), hidden=widths, spread=st.sampled_from([0.1, 3.0, 200.0]), kind=kinds
)
def test_swiglu(seed, rows, hidden, spread, kind):
    x = normal(seed, rows, 2 * hidden, spread=spread, kind=kind)
    dy = normal(seed + 1, rows, hidden, kind=kind)
    got = gradients(ops.swiglu, [x], dy)
    wanted = gradients(lambda x: F.silu(x[:, :hidden]) * x[:, hidden:], [x.float()], dy)
    assert [x.dtype for x in got] == [kind, kind]
    for mine, theirs in zip(got, wanted, strict=True):
        near(mine, theirs, share=SHARE[kind])


def test_swiglu_of_extremes():
    gates = torch.tensor([-1e4, -100.0, -87.5, 0.0, 87.5, 100.0, 1e4])
    got = ops.swiglu(torch.cat([gates, torch.ones(7)]).to(BF16)[None])[0].float()
    assert torch.allclose(got, F.silu(gates.to(BF16).float()), rtol=2**-7, atol=1e-30)


# ---- attention
LEVELS = [name for name in ("portable", "AVX2", "AVX-512") if native.module().runs(name)]


@contextlib.contextmanager
def at_level(name):
    """Attention by the kernels of a machine level."""
    before, ops.LEVEL = ops.LEVEL, name
    try:
        yield
    finally:
        ops.LEVEL = before


def plain_attention(qkv, q_weight, k_weight, cos, sin, starts, heads, kv_heads):
    b, t, _ = qkv.shape
    q, k, v = qkv.view(b, t, -1, cos.shape[1]).split([heads, kv_heads, kv_heads], 2)
    if q_weight is not None:
        q, k = plain_norm(q, q_weight, 1e-6), plain_norm(k, k_weight, 1e-6)
    q, k = (rotate(x, cos[:, None], sin[:, None]).transpose(1, 2) for x in (q, k))
    position = torch.arange(t)
    mask = (position[None, None] <= position[:, None]) & (position[None, None] >= starts[:, :, None])
    y = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), attn_mask=mask[:, None], enable_gqa=True)
    return y.transpose(1, 2).reshape(b, t, -1)


def random_starts(seed, rows, length, borders):
    """Documents of random lengths: a border at one in `borders` places."""
    generator = torch.Generator().manual_seed(seed)
    new = torch.rand(rows, length, generator=generator) < 1 / borders
    new[:, 0] = True
    return torch.where(new, torch.arange(length), 0).cummax(1).values.to(torch.int32)


@settings(deadline=None, max_examples=30)
@given(
    seed=seeds,
    batch=st.integers(1, 3),
    length=st.integers(1, 130),
    borders=st.sampled_from([2, 7, 40, 1000]),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    half=st.sampled_from([2, 3, 8, 16, 33]),
    norms=st.booleans(),
    kind=kinds,
    level=st.sampled_from(LEVELS),
)
@example(
    seed=2798,
    batch=2,
    length=62,
    borders=7,
    kv_heads=1,
    group=2,
    half=2,
    norms=True,
    kind=BF16,
    level="portable",
)
def test_attention(seed, batch, length, borders, kv_heads, group, half, norms, kind, level):
    heads, dim = kv_heads * group, 2 * half
    qkv = normal(seed, batch, length, (heads + 2 * kv_heads) * dim, kind=kind)
    weights = [1 + 0.3 * normal(seed + n, dim).float() for n in (1, 2)] if norms else []
    cos, sin = (x[0] for x in rope_tables(RopeSpec(dim, 100.0), torch.arange(length)[None]))
    starts = random_starts(seed, batch, length, borders)
    dy = normal(seed + 3, batch, length, heads * dim, kind=kind)

    def fused(x, q_weight=None, k_weight=None):
        return ops.attention(
            x, q_weight, k_weight, cos, sin, starts, heads=heads, kv_heads=kv_heads, eps=1e-6
        )

    def plain(x, q_weight=None, k_weight=None):
        return plain_attention(x, q_weight, k_weight, cos, sin, starts, heads, kv_heads)

    with at_level(level):
        got = gradients(fused, [qkv, *weights], dy)
    # A weight's gradient is a sum over all rows that may cancel (then torch in bfloat16 is as far off), so
    # that its error is one of the terms: with a weight for each row the gradients are these terms.
    rowwise = [w.expand(batch, length, n, dim) for w, n in zip(weights, (heads, kv_heads), strict=False)]
    values = gradients(plain, [qkv.float(), *rowwise], dy)
    for mine, theirs in zip(got, values, strict=True):
        wanted = theirs.sum((0, 1, 2)) if theirs.dim() == 4 else theirs
        error = float((mine.float() - wanted).norm().detach())
        share, floor = {BF16: (0.03, 3e-5), F32: (1e-4, 1e-5)}[kind]  # torch rounds where 0 is right
        assert torch.isfinite(mine).all() and error < share * float(theirs.detach().norm()) + floor, error


_LONG = """
import resource, torch
from ayllu.native import ops
length = 10_000  # all scores of the head would be 400 MB
x = torch.randn(1, length, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
assert ops.usable(x)
turn, starts = torch.ones(length, 8), torch.zeros(1, length, dtype=torch.int32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
y = ops.attention(x, None, None, turn, 0 * turn, starts, heads=1, kv_heads=1, eps=1e-6)
y[0, 9000:9003].sum().backward()
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
other = x.detach().clone().requires_grad_()
q, k, v = other[0].split(8, -1)
unseen = torch.arange(length) > torch.arange(9000, 9003)[:, None]
wanted = (q[9000:9003] @ k.T * 8**-0.5).masked_fill(unseen, -torch.inf).softmax(-1) @ v
wanted.sum().backward()
assert torch.allclose(y[0, 9000:9003], wanted, rtol=1e-4, atol=1e-6)
assert torch.allclose(x.grad, other.grad, rtol=1e-3, atol=1e-6)
print(grown)
"""


def test_attention_over_a_long_row_keeps_no_scores():
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", _LONG], capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 100 * 2**20


def test_attention_does_not_see_what_is_left_over_or_next_door():
    cos, sin = (x[0] for x in rope_tables(RopeSpec(8, 100.0), torch.arange(40)[None]))
    starts = torch.tensor([[0] * 17 + [17] * 23], dtype=torch.int32)

    def fused(x):
        length = x.shape[1]
        rows = cos[:length], sin[:length], starts[:, :length]
        return ops.attention(x, None, None, *rows, heads=1, kv_heads=1, eps=1e-6)

    clean, dy = normal(0, 1, 40, 24), normal(1, 1, 40, 8)
    bad = clean.clone()
    bad[:, :17] = float("nan")
    for good, found in zip(gradients(fused, [clean], dy), gradients(fused, [bad], dy), strict=True):
        assert torch.equal(good[:, 17:], found[:, 17:]) and found[:, :17].isnan().any()
    short = gradients(fused, [clean[:, :9]], dy[:, :9])  # where rows of NaN have been
    assert all(x.isfinite().all() for x in short)


@pytest.mark.parametrize("start", [-1, 3, 2**31 - 1])
def test_a_document_cannot_begin_before_its_row_or_after_its_token(start):
    cos, sin = (x[0] for x in rope_tables(RopeSpec(8, 100.0), torch.arange(4)[None]))
    starts = torch.tensor([[0, 1, start, 0]], dtype=torch.int32)
    with pytest.raises(AssertionError):
        ops.attention(normal(0, 1, 4, 24), None, None, cos, sin, starts, heads=1, kv_heads=1, eps=1e-6)


def test_attention_never_crosses_a_document():
    cos, sin = (x[0] for x in rope_tables(RopeSpec(8, 100.0), torch.arange(12)[None]))
    starts = torch.tensor([[0] * 5 + [5] * 7], dtype=torch.int32)
    one = normal(0, 1, 12, 24)
    other = one.clone()
    other[:, :5] = normal(1, 1, 5, 24)

    def fused(x):
        return ops.attention(x, None, None, cos, sin, starts, heads=1, kv_heads=1, eps=1e-6)

    assert torch.equal(fused(one)[:, 5:], fused(other)[:, 5:])
    assert not torch.equal(fused(one)[:, :5], fused(other)[:, :5])


# ---- cross-entropy
@settings(deadline=None, max_examples=40)
@given(
    seed=seeds,
    rows=st.integers(1, 130),
    vocab=st.one_of(st.integers(1, 80), st.sampled_from([255, 257, 1000])),
    spread=st.sampled_from([0.1, 4.0, 300.0]),
    kind=kinds,
)
def test_cross_entropy(seed, rows, vocab, spread, kind):
    logits = normal(seed, rows, vocab, spread=spread, kind=kind)
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, vocab, (rows,), generator=generator)
    weights = torch.randn(rows, generator=generator)  # advantages: of either sign
    weights[::3] = 0
    leaf = logits.float().requires_grad_()
    log_p = leaf.log_softmax(-1)
    wanted = -log_p.gather(-1, targets[:, None])[:, 0]
    (wanted * weights).sum().backward()
    losses, entropies = ops.cross_entropy_(logits, targets, weights)
    assert torch.allclose(losses, wanted, rtol=1e-5, atol=2e-4)
    assert torch.allclose(entropies, -(log_p.exp() * log_p).sum(-1), rtol=1e-4, atol=2e-4)
    near(logits, leaf.grad, share=SHARE[kind])


def test_cross_entropy_of_extremes():
    low = -1e30
    logits = torch.tensor([[0.0, low, low], [9e4, 9e4, low], [-9e4, -9e4, -9e4], [0, 0, -200.0]]).to(BF16)
    losses, entropies = ops.cross_entropy_(
        logits, torch.tensor([0, 1, 2, 2]), torch.tensor([1.0, -2.0, 1.0, 1.0])
    )
    assert losses.tolist() == pytest.approx([0, 0.693147, 1.098612, 200.693147], abs=0.02)
    assert entropies.tolist() == pytest.approx([0, 0.693147, 1.098612, 0.693147], abs=1e-5)
    assert torch.allclose(
        logits.float(),
        torch.tensor([[0, 0, 0], [-1, 1, 0], [1 / 3, 1 / 3, -2 / 3], [0.5, 0.5, -1]]),
        atol=2e-3,
    )


def test_a_logit_that_is_not_a_number_shows_in_the_loss():
    logits = torch.zeros(2, 40, dtype=BF16)
    logits[1, 7] = float("nan")
    losses, _ = ops.cross_entropy_(logits, torch.tensor([1, 1]), torch.ones(2))
    assert losses[0].isfinite() and losses[1].isnan()


@pytest.mark.parametrize("target", [-1, 40, -100])
def test_a_target_outside_the_vocabulary_is_stopped(target):
    with pytest.raises(AssertionError):
        ops.cross_entropy_(torch.zeros(1, 40, dtype=BF16), torch.tensor([target]), torch.ones(1))


# ---- threads
_PROGRAM = """
import hashlib, sys, torch
from ayllu import native
from ayllu.native import ops
torch.set_num_threads(int(sys.argv[1]))
assert ops.usable(torch.zeros(1, dtype=torch.bfloat16))  # tells the kernels the number of threads
g = torch.Generator().manual_seed(0)
def normal(*shape): return torch.randn(shape, generator=g).to(torch.bfloat16)
x, w, dy = normal(300, 130).requires_grad_(), torch.ones(130, requires_grad=True), normal(300, 130)
y = ops.rms_norm(x, w, 1e-6)
y.backward(dy)
s = normal(300, 258).requires_grad_()
z = ops.swiglu(s)
z.backward(normal(300, 129))
qkv = normal(3, 100, 4 * 8).requires_grad_()
turn, starts = torch.rand(100, 8, generator=g), torch.arange(100).div(30, rounding_mode="floor").mul(30)
seen = ops.attention(qkv, None, None, turn, turn, starts.int().repeat(3, 1), heads=2, kv_heads=1, eps=1e-6)
seen.backward(normal(3, 100, 16))
logits = normal(300, 517)
losses, entropies = ops.cross_entropy_(logits, torch.arange(300), torch.randn(300, generator=g))
assert native.module().thread_count() == int(sys.argv[1])
def digest(*tensors):
    return hashlib.sha256(b"".join(t.detach().float().numpy().tobytes() for t in tensors)).hexdigest()
print(digest(y, x.grad, z, s.grad, seen, qkv.grad, logits, losses, entropies))
print(digest(w.grad), float(w.grad.double().sum()), float(w.grad.abs().max()))
"""


def test_threads_and_repetition():
    def run(threads):
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(threads)], capture_output=True, text=True, check=True
        )
        rows, sums = done.stdout.splitlines()
        return rows, sums.split()

    one, two, again = run(1), run(2), run(2)
    assert two == again, "the same thread count gives the same bits"
    assert one[0] == two[0], "rows don't depend on the number of threads"
    # Sums over rows are added in another order: the same but for rounding.
    assert float(one[1][1]) == pytest.approx(float(two[1][1]), rel=1e-3)
    assert float(one[1][2]) == pytest.approx(float(two[1][2]), rel=1e-4)
