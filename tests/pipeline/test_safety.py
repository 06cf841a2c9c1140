"""What the checker does within a generation is in test_generate.py."""

import logging

import pytest

from pipeline import safety


def test_the_checker_that_comes_with_the_program_loads():
    loaded = safety.load(classifier=None, threshold=0.7, forced=True)
    assert loaded.checker.classifier.name == "open_nsfw"
    assert (loaded.checker.threshold, loaded.forced) == (0.7, True)


def test_a_checker_that_does_not_load_is_told_to_the_operator(tmp_path, caplog):
    with caplog.at_level(logging.ERROR):
        loaded = safety.load(classifier=tmp_path / "none", threshold=0.8, forced=False)
    assert loaded == safety.Safety(None, forced=False)
    assert "every request that asks for it will be refused" in caplog.text
    assert str(tmp_path / "none") in caplog.text


@pytest.mark.parametrize(("num_frames", "looked_at"), [(1, 1), (9, 8), (121, 8), (481, 8)])
def test_frames_are_looked_at_from_the_first_to_the_last(num_frames, looked_at):
    watch = safety.Watch(safety.Safety(), asked=False, num_frames=num_frames)
    assert len(watch._frames) == looked_at
    assert {min(watch._frames), max(watch._frames)} == {0, num_frames - 1}
