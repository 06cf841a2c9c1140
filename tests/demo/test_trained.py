import hashlib
import json

import pytest

from weights.demo.train import TRAINED


def test_the_trained_part_is_the_one_whose_hash_is_committed():
    expected, name = TRAINED.with_suffix(".safetensors.sha256").read_text().split()
    assert name == TRAINED.name
    assert hashlib.sha256(TRAINED.read_bytes()).hexdigest() == expected


def test_the_trained_part_is_small_enough_to_commit():
    assert TRAINED.stat().st_size <= 25_000_000


@pytest.mark.parametrize("name", ["transformer", "connectors"])
def test_the_training_logs_show_a_falling_loss(name):
    rows = [json.loads(line) for line in (TRAINED.parent / "training" / f"{name}.jsonl").read_text().splitlines()]
    assert len(rows) >= 40
    last = sum(row["loss"] for row in rows[-10:]) / 10
    assert last < 0.5 * rows[0]["loss"]
