"""The error that users see when training itself cannot go on."""


class TrainingError(Exception):
    """Training cannot go on. The message says why and what to do."""
