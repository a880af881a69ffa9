"""Errors in the data."""


class DataError(Exception):
    """Training cannot continue with this data. The message names the cause and the remedy."""


def no_validation_image(root: str) -> DataError:
    """Return the error for a validation set in `root` without a usable sample."""
    return DataError(f"{root}: none of the validation samples can be used; run `maskfeat-shards verify`")
