"""Numbers of any kind are Python's own to the core: NumPy's scalars and 0-d arrays, every byte order of float64."""

from fractions import Fraction

import numpy as np
import pytest
from helpers import normal

import lowrank_core as lc

NUMBERS = [
    np.array(0.5),
    np.float32(0.5),
    np.float64(0.5),
    np.array(0.5, ">f8"),
    np.longdouble(0.5),
    Fraction(1, 2),
]
BAD = [
    (np.array([0.5]), ValueError),
    (np.array(True), TypeError),
    (np.array(0.5j), TypeError),
    (np.array(-0.5), ValueError),
    (np.float32("nan"), ValueError),
]


@pytest.mark.parametrize("number", NUMBERS, ids=repr)
def test_options_are_pythons_numbers(number):
    config = lc.DCTAdamWConfig(
        rank=2, betas=[number, number], eps=number, hysteresis=number, residual_scale=number,
        score_decay=number,
    )  # fmt: skip
    found = (
        *config.betas,
        config.eps,
        config.hysteresis,
        config.residual_scale,
        config.score_decay,
    )
    assert [type(x) for x in found] == [float] * 6
    assert set(found) == {0.5}
    assert type(lc.TrionConfig(rank=2, momentum=number).momentum) is float


@pytest.mark.parametrize(("bad", "error"), BAD, ids=repr)
def test_arrays_that_are_no_such_number_are_refused(bad, error):
    for options, name in (({"eps": bad}, "eps"), ({"betas": (0.9, bad)}, r"betas\[1\]")):
        with pytest.raises(error, match=name):
            lc.DCTAdamWConfig(rank=2, **options)
    with pytest.raises(error, match="momentum"):
        lc.TrionConfig(rank=2, momentum=bad)


@pytest.mark.parametrize("order", [">", "<"])
def test_float64_of_any_byte_order_is_computed_in_float64(order):
    plain = normal(8, 8)
    given = plain.astype(f"{order}f8")
    for function in (lc.dct, lc.idct, lc.orthogonalize, lc.column_scores):
        found = function(given)
        np.testing.assert_array_equal(found, function(plain))
        assert found.dtype.name == "float64"
    for config, init, step in (
        (lc.DCTAdamWConfig(rank=3), lc.dct_adamw_init, lc.dct_adamw_step),
        (lc.TrionConfig(rank=3), lc.trion_init, lc.trion_step),
    ):
        directions = []
        for gradient in (given, plain):
            state = init(gradient.shape, config, xp=np, dtype=gradient.dtype)
            directions.append(lc.materialize(step(gradient, state, config)[0]))
        np.testing.assert_array_equal(*directions)


@pytest.mark.skipif(np.finfo(np.longdouble).bits == 64, reason="long double is float64 here")
def test_wider_floats_are_refused():
    wide = normal(4, 4).astype(np.longdouble)
    config = lc.DCTAdamWConfig(rank=2)
    state = lc.dct_adamw_init((4, 4), config, xp=np)
    for call in (lc.dct, lc.orthogonalize, lambda x: lc.dct_adamw_step(x, state, config)):
        with pytest.raises(TypeError, match="float64 or a narrower dtype"):
            call(wide)
