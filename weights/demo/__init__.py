"""The demo weights: a tiny model with the whole LTX-2.3 module tree, half constructed, half trained."""
