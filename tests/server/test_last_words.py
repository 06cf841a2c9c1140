import pytest

from server.last_words import tellable


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (
            ["Fatal Python error: Segmentation fault", '  File "/srv/x.py", line 3 in f'],
            "Fatal Python error: Segmentation fault",
        ),
        (
            ["Traceback (most recent call last):", "torch.AcceleratorError: CUDA error: an illegal address"],
            "CUDA error: an illegal address",
        ),
        (
            ["terminate called after throwing an instance of 'c10::Error'", "  what():  /srv/secret"],
            "terminate called after throwing an instance of 'c10::Error'",
        ),
        (['  File "/srv/x.py", line 3, in f', "ValueError: no such key: sk-1234"], "ValueError"),
        (["safetensors.SafetensorError: /srv/models/x is cut short"], "safetensors.SafetensorError"),
        (["KeyError: 1", "During handling of the above exception", "OSError: 2"], "OSError"),
        (["loading /srv/models", "a prompt about an Error: none"], None),
        ([], None),
    ],
)
def test_of_its_last_words_only_how_it_failed_is_told(lines, told):
    assert tellable(lines) == told
