"""What goes wrong with data."""


class DataError(Exception):
    """Training cannot go on with this data. The message names what is wrong with what, and what to do."""


def no_validation_image(root: str) -> DataError:
    """That of the validation images in `root` none is good."""
    return DataError(f"{root}: none of the validation samples can be used; run `maskfeat-shards verify`")
