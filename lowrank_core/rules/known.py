"""The rules there are, as frontends and state files know them."""

from __future__ import annotations

from lowrank_core.rules.dct_adamw import dct_adamw_init, dct_adamw_steps
from lowrank_core.rules.dct_adamw_columns import columns_due
from lowrank_core.rules.dct_adamw_config import DCTAdamWConfig, DCTAdamWState
from lowrank_core.rules.dct_adamw_projected import project_current, step_projected
from lowrank_core.rules.dct_adamw_rows import DCT_ADAMW_PASSES
from lowrank_core.rules.presets import PRESETS, TRION_PRESETS
from lowrank_core.rules.rule import Rule
from lowrank_core.rules.trion import trion_columns, trion_init, trion_steps
from lowrank_core.rules.trion_config import TrionConfig, TrionState
from lowrank_core.rules.trion_rows import TRION_PASSES

DCT_ADAMW = Rule(
    "dct_adamw",
    DCTAdamWConfig,
    DCTAdamWState,
    dct_adamw_init,
    dct_adamw_steps,
    due=columns_due,
    project=project_current,
    step_projected=step_projected,
    passes=DCT_ADAMW_PASSES,
    presets=PRESETS,
)
TRION = Rule(
    "trion",
    TrionConfig,
    TrionState,
    trion_init,
    trion_steps,
    step_dependent=False,
    passes=TRION_PASSES,
    choose=trion_columns,
    presets=TRION_PRESETS,
)
