"""The error for training that cannot continue."""


class TrainingError(Exception):
    """Training cannot continue. The message says why and what to do."""
