"""What goes wrong with data."""


class DataError(Exception):
    """Training cannot go on with this data. The message names what is wrong with what, and what to do."""
