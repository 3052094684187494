"""Codes of 8 and 4 bits: how far they may be off, what they come back as exactly, how they are packed."""

from functools import cache

import numpy as np
import oracles_family as oracles
import pytest
from helpers import (
    assert_close,
    assert_identical,
    dtype_name,
    from_numpy,
    library_of,
    normal,
    to_numpy,
    untouched,
)
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import KINDS, data

import lowrank_core as lc

BITS = (8, 4)
BLOCK = 256
# Shorter than a block, one block, just past it, several; odd and even; with leading dimensions, and empty ones.
SHAPES = ((1,), (5,), (256,), (3, 257), (2, 2, 513), (0, 5))


def blocks_of(values):
    """Each block of the last axis in turn, as a flat list."""
    return [
        values[place][start : start + BLOCK]
        for place in np.ndindex(values.shape[:-1])
        for start in range(0, values.shape[-1], BLOCK)
    ]


def codes_of(quantized):
    """The codes one by one, unpacked here by hand."""
    codes = to_numpy(quantized.codes)
    if quantized.bits == 8:
        return codes
    table = np.zeros((*codes.shape[:-1], 2 * codes.shape[-1]), dtype=np.uint8)
    table[..., 0::2] = codes // 16
    table[..., 1::2] = codes % 16
    return table[..., : quantized.size]


@cache
def round_trip(xp):
    """Quantised and brought back; in JAX compiled, whose single operations take longer to compile."""

    def there_and_back(x, bits):
        quantized = lc.quantize(x, bits)
        return quantized.codes, quantized.minimum, quantized.scale, lc.dequantize(quantized)

    if library_of(xp) != "jax":
        return there_and_back
    import jax

    return jax.jit(there_and_back, static_argnums=1)


@st.composite
def arrays(draw):
    shape = draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = data(draw(st.sampled_from(KINDS)), shape if len(shape) > 1 else (1, *shape), rng)
    offset = draw(st.sampled_from((0.0, 1.0, -1e3)))
    scale = draw(st.sampled_from((1.0, 1e-20, 1e10)))
    return (values.reshape(shape) + offset) * scale


@given(values=arrays())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bits", BITS)
def test_no_number_is_off_by_more_than_half_a_scale(xp, bits, dtype, values):
    array = from_numpy(values, xp, dtype)
    with untouched(array):
        codes, _, scale, back = round_trip(xp)(array, bits)
    assert tuple(back.shape) == values.shape
    assert dtype_name(back) == dtype
    assert dtype_name(codes) == "uint8"
    exact, found = to_numpy(array).astype(np.float64), to_numpy(back).astype(np.float64)
    scales = to_numpy(scale).astype(np.float64).ravel()
    # What the arithmetic itself rounds away: code * scale and the minimum are each off by one part in 2^24.
    rounding = 4 * np.finfo(dtype).eps
    for before, after, scale in zip(blocks_of(exact), blocks_of(found), scales, strict=True):
        largest = np.abs(before).max()
        assert (np.abs(before - after) <= scale / 2 + rounding * largest).all()
        spread = before.max() - before.min()
        np.testing.assert_allclose(scale, spread / (2**bits - 1), rtol=4 * rounding)


# A ratio that is a half but for rounding, which a product with the inverse and a quotient round to either side.
AT_A_HALF = np.array([-9.98e-18, -9.98e-18, -1.00e-17, -9.99e-18, -1.00e-17])


@given(values=arrays())
@example(values=AT_A_HALF)
@pytest.mark.parametrize("bits", BITS)
def test_codes_are_the_same_everywhere(xp, bits, values):
    array = from_numpy(values, xp, "float32")
    quantized = lc.quantize(array, bits)
    exact = to_numpy(array)
    assert quantized.codes.shape[-1] == (
        values.shape[-1] if bits == 8 else -(-values.shape[-1] // 2)
    )
    lows, scales = to_numpy(quantized.minimum).ravel(), to_numpy(quantized.scale).ravel()
    for block, codes, low, scale in zip(
        blocks_of(exact), blocks_of(codes_of(quantized)), lows, scales, strict=True
    ):
        wanted, lowest, spread = oracles.quantize_block(block, bits, scale)
        np.testing.assert_array_equal(codes, wanted)
        assert low == lowest
        assert abs(scale - spread) <= np.finfo("float32").eps * spread
    if values.size:
        numpys = lc.quantize(exact, bits)
        np.testing.assert_array_equal(to_numpy(quantized.codes), numpys.codes)
        np.testing.assert_array_equal(scales, numpys.scale.ravel())


@pytest.mark.parametrize("bits", BITS)
def test_every_code_is_used(xp, bits):
    count = 2**bits
    ramp = np.arange(count, dtype=np.float64)
    for offset, step in ((0.0, 1.0), (-7.5, 0.25)):
        quantized = lc.quantize(from_numpy(ramp * step + offset, xp, "float32"), bits)
        np.testing.assert_array_equal(codes_of(quantized), np.arange(count))
        assert_close(lc.dequantize(quantized), ramp * step + offset, xp=xp, dtype="float32")


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [0.0, 0.1, -3.7e-30, 1e30])
def test_a_constant_block_comes_back_exactly(xp, bits, value):
    # A constant block between others that are not.
    values = normal(3 * BLOCK)
    values[BLOCK : 2 * BLOCK] = value
    for x in (values, np.full(5, value), np.full((2, 1), value)):
        array = from_numpy(x, xp, "float32")
        back = to_numpy(lc.dequantize(lc.quantize(array, bits)))
        constant = slice(BLOCK, 2 * BLOCK) if x is values else ...
        np.testing.assert_array_equal(back[constant], to_numpy(array)[constant])
        assert np.isfinite(back).all()


def test_the_first_code_lies_in_the_high_nibble(xp):
    x = from_numpy([0.0, 15.0, 3.0, 9.0, 12.0], xp, "float32")
    quantized = lc.quantize(x, 4)
    np.testing.assert_array_equal(to_numpy(quantized.codes), [0x0F, 0x39, 0xC0])
    assert_identical(lc.dequantize(quantized), x)


@pytest.mark.parametrize("bits", BITS)
def test_the_ends_of_a_block_come_back(xp, bits):
    values = normal(600)
    array = from_numpy(values, xp, "float32")
    back = to_numpy(lc.dequantize(lc.quantize(array, bits))).astype(np.float64)
    for before, after in zip(blocks_of(to_numpy(array)), blocks_of(back), strict=True):
        np.testing.assert_allclose(after.min(), before.min(), rtol=1e-6)
        np.testing.assert_allclose(after.max(), before.max(), rtol=1e-6)


@pytest.mark.parametrize("bits", BITS)
def test_dequantising_reads_and_does_not_write(xp, bits):
    quantized = lc.quantize(from_numpy(normal(3, 300), xp), bits)
    with untouched(quantized.codes, quantized.minimum, quantized.scale):
        lc.dequantize(quantized)


@pytest.mark.parametrize("bits", BITS)
def test_quantising_again_changes_nothing_more(xp, bits):
    once = lc.dequantize(lc.quantize(from_numpy(normal(3, 300), xp), bits))
    twice = lc.dequantize(lc.quantize(once, bits))
    assert_close(twice, to_numpy(once), xp=xp, dtype="float64")


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_and_stays_in_its_block(xp, bits, bad):
    values = normal(2, 3 * BLOCK - 7)
    values[1, BLOCK + 3] = bad
    # NumPy says of infinities what it says of any arithmetic with them.
    with np.errstate(invalid="ignore"):
        quantized = lc.quantize(from_numpy(values, xp, "float32"), bits)
        back = to_numpy(lc.dequantize(quantized))
    clean = values.copy()
    clean[1, BLOCK + 3] = 0.0
    expected = to_numpy(lc.dequantize(lc.quantize(from_numpy(clean, xp, "float32"), bits)))
    spoilt = np.zeros(values.shape, dtype=bool)
    spoilt[1, BLOCK : 2 * BLOCK] = True
    assert not np.isfinite(back[spoilt]).any()
    np.testing.assert_array_equal(back[~spoilt], expected[~spoilt])


@pytest.mark.parametrize(
    ("xp", "dtype"),
    [("torch", "bfloat16"), ("torch", "float16"), ("jax", "bfloat16"), ("jax", "float16")],
    indirect=["xp"],
)
@pytest.mark.parametrize("bits", BITS)
def test_half_precision_is_computed_in_float32(xp, dtype, bits):
    narrow = from_numpy(normal(300), xp, dtype)
    wide = from_numpy(to_numpy(narrow), xp, "float32")
    found, expected = lc.quantize(narrow, bits), lc.quantize(wide, bits)
    assert_identical(found.codes, expected.codes)
    assert_identical(lc.dequantize(found), lc.dequantize(expected))


@pytest.mark.parametrize("bits", BITS)
def test_it_compiles_in_jax(jnp, bits):
    import jax

    x = from_numpy(normal(2, 515), jnp, "float32")
    back = jax.jit(lambda a: lc.dequantize(lc.quantize(a, bits)))(x)
    scale = to_numpy(lc.quantize(x, bits).scale).max()
    assert np.abs(to_numpy(back) - to_numpy(x)).max() <= scale / 2 * (1 + 1e-5)


@pytest.mark.parametrize(
    ("x", "bits", "error", "words"),
    [
        (np.ones(3), 2, ValueError, ["bits must be one of 8, 4", "2"]),
        (np.ones(3), None, ValueError, ["bits must be one of 8, 4", "None"]),
        (np.ones(3, dtype=np.int32), 8, TypeError, ["x must be of a real floating", "int32"]),
        (np.ones((2, 0)), 8, ValueError, ["x must not be empty", "(2, 0)"]),
        (np.ones(()), 4, ValueError, ["x must not be empty", "()"]),
    ],
)
def test_a_bad_argument_is_named(x, bits, error, words):
    with pytest.raises(error) as caught:
        lc.quantize(x, bits)
    for word in words:
        assert word in str(caught.value)
