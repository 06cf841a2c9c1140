from pathlib import Path

import pytest

from server.child import worker_command
from server.settings import Settings


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({}, ["--safety-threshold=0.8"]),
        (
            {"safety_threshold": 0.5, "force_safety_checker": True},
            ["--safety-threshold=0.5", "--force-safety-checker"],
        ),
        (
            {"safety_classifier": Path("/models/vit")},
            ["--safety-threshold=0.8", "--safety-classifier=/models/vit"],
        ),
    ],
)
def test_the_settings_of_the_safety_checker_reach_the_generating_process(settings, flags):
    command = worker_command(Settings(**settings))(7)
    assert [word for word in command if "safety" in word] == flags


@pytest.mark.parametrize("asked", [False, True])
def test_the_wish_to_have_fp8_dequantised_reaches_the_generating_process(asked):
    assert ("--dequantise" in worker_command(Settings(dequantise=asked))(7)) is asked
