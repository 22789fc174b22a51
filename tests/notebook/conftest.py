"""All tests of this folder need ipywidgets and are marked `newest`."""


def pytest_ignore_collect(config):
    """Do not import them for `-m "not newest"`, which also runs where ipywidgets is not installed."""
    return True if config.option.markexpr == "not newest" else None
