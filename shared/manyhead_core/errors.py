"""Errors that the user can mend: shown as one line, without a traceback, with exit code 2."""


class UserError(Exception):
    """A mistake in the call, the configuration or the data.

    The message names the option or file, its value or state, and the remedy, in one line:
    `data.root: folder ratings does not exist; pass the folder that holds ratings.dat`.
    """


class ConfigError(UserError, ValueError):
    """A configuration that cannot be built: names field, value and what would be right."""


class DataError(UserError):
    """A file, folder or table that is missing, unreadable or not what was expected."""


class WeightsError(UserError):
    """Weights that cannot be loaded: wrong app, wrong layout, or an unreadable file."""
