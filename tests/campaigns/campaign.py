"""What all campaigns share: how many tries, what came of them, and where that is written down."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

#: Beside the tests in the path, as pytest has them.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))


class Outcome(NamedTuple):
    """What came of a campaign."""

    tried: int
    #: Of each failure, in words.
    failures: list[str]
    #: Figures besides.
    more: dict[str, Any]


#: A campaign: it yields for each try ``None``, or what went wrong in words; a mapping is figures besides.
Campaign = Callable[[int, int], Iterator[Any]]


def run(campaign: Campaign, count: int, seed: int = 0) -> Outcome:
    """Try ``count`` times."""
    tried, failures, more = 0, [], {}
    for said in campaign(count, seed):
        if isinstance(said, dict):
            more.update(said)
            continue
        tried += 1
        if said is not None:
            failures.append(said)
    return Outcome(tried, failures, more)


def main(**campaigns: tuple[Campaign, int]) -> None:
    """Be a program: ``python tests/campaigns/test_NAME.py CAMPAIGN --count N --json FILE``."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("campaign", choices=campaigns)
    parser.add_argument("--count", type=int, help="tries; by default as many as were published")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file to write the result to")
    asked = parser.parse_args()
    begun, name = time.monotonic(), asked.campaign
    campaign, full = campaigns[name]
    count = full if asked.count is None else asked.count
    outcome = run(campaign, count, asked.seed)
    program = f"python tests/campaigns/{Path(sys.argv[0]).name}"
    for failure in outcome.failures[:20]:
        print(failure)
    print(f"{name}: {outcome.tried} tried, {len(outcome.failures)} failed {outcome.more or ''}")
    if asked.json:
        result = {
            "campaign": name,
            "command": f"{program} {name} --count {count} --seed {asked.seed}",
            "tried": outcome.tried,
            "failed": len(outcome.failures),
            "failures": outcome.failures[:100],
            **outcome.more,
            "seconds": round(time.monotonic() - begun, 1),
            "python": platform.python_version(),
            "processors": os.cpu_count(),
        }
        asked.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(bool(outcome.failures))
