"""What the tests of the examples share."""

from types import ModuleType

import pytest


def refused(example: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Assert that an example refuses its arguments in one line, and return that."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        example.main(arguments)
    assert stop.value.code == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors.count("\n") == 1
    return errors
