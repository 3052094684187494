"""The types that editors show are the options there are: fields of configurations, presets, bases, roles."""

import dataclasses
import importlib.util
from typing import get_args, get_type_hints

import numpy as np
import pytest

import lowrank_core as lc
from lowrank_core import option_types
from lowrank_core.bases import registry

#: Options that signatures name themselves, and the one whose objects each library has its own type for.
NAMED = {"rank", "betas", "eps", "momentum", "state_dtype"}


@pytest.mark.parametrize(
    ("config", "own"),
    [
        (lc.DCTAdamWConfig, option_types.OptionsOfDCTAdamW),
        (lc.TrionConfig, option_types.OptionsOfTrion),
    ],
)
def test_dictionaries_have_the_fields_of_configurations_and_their_types(config, own):
    hints = get_type_hints(config)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(config)}
    shown = get_type_hints(option_types.SharedOptions) | get_type_hints(own)
    assert shown == {name: kind for name, kind in fields.items() if name not in NAMED}


def test_names_are_those_that_there_are():
    literal, _ = get_args(option_types.BasisName)
    # A registry of its own: other tests register bases.
    spec = importlib.util.spec_from_file_location("fresh", registry.__file__)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    assert set(get_args(literal)) == {*fresh.basis_names(), *fresh.STORED_BASES}
    assert get_args(option_types.PresetName) == tuple(lc.PRESETS)
    assert get_args(option_types.TrionPresetName) == tuple(lc.TRION_PRESETS)


@pytest.mark.parametrize("config", [lc.DCTAdamWConfig, lc.TrionConfig])
def test_dtypes_are_taken_as_objects(config):
    for given in (np.dtype("float16"), np.float16, "float16"):
        assert config(state_dtype=given).state_dtype == "float16"
    with pytest.raises(ValueError, match="state_dtype must be one of"):
        config(state_dtype=np.dtype("int8"))


def test_a_quarter_of_the_columns_is_the_default():
    assert lc.DCTAdamWConfig().rank == lc.TrionConfig().rank == 0.25
