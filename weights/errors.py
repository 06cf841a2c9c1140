"""What can be wrong with a model file."""


class WeightsFileError(Exception):
    """A model file is missing, malformed, or not what was expected of it. The message names the file."""
