"""All tests of this folder need ipywidgets and are marked `newest`."""


def pytest_ignore_collect(config):
    """Skip the import of these files for `-m "not newest"`, which also runs without ipywidgets."""
    return True if config.option.markexpr == "not newest" else None
