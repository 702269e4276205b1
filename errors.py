"""Errors with a message for the user; the doors show it as one line, without a traceback."""


class CleanError(Exception):
    """Its message alone tells the user what happened and what to do."""


class InputError(CleanError, ValueError):
    """Bad configuration, argument or file: the message names the key or file and says what would be right."""


class TrainingError(CleanError, RuntimeError):
    """A run that cannot go on, such as one with a non-finite loss."""
