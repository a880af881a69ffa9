"""Why an image is left out."""


class Rejected(Exception):
    """An image that cannot be used: a short `reason` to count by, and a `detail`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
