"""Validate URLs, and print them without secrets. URLs come from tables and data sets that are not trusted."""

import re
from urllib.parse import unquote

from shards.text import one_line

PROTOCOLS = ("file", "http", "https", "s3", "s3a", "gs", "gcs")  # a closed list: others run code, or open more URLs

_PROTOCOL = re.compile(r"(?!pipe:)[^/]*://")
# Every run is scanned only once, since a URL may be arbitrarily long.
_USER = r"[^/\s@:\[]*:(?!\d*(?:[/?#]|$))\S*@|[^/\s]*@"  # a password may hold a slash, a port holds digits only
_HAS_USER = re.compile(rf"\w{{1,10}}://(?:{_USER})")
_SECRETS = re.compile(
    rf"(\w{{1,10}}://)(?:{_USER})?"
    r"((?:\[[\da-fA-F:.]*\])?(?:(?!::|\w{1,10}://)[^\s?#;'\"])*)"  # up to a nested URL, which has secrets of its own
    r"(?:[?#;]\S*?(?=['\"]?(?:\s|$)))?"
)
_URL_ALONE = re.compile(r"\s*[^/\s]*://")
_IPV6 = re.compile(r"^\w+://\[[\da-fA-F:.]*\]")
_NAME = re.compile(r"[?&#;~]([^=?&#;~/]*)=")
_SECRET_NAME = re.compile(
    r"key(?!word)|token|auth(?!or(?!i))|(?<!com)pass(?!age|enger)|\bpwd?\b|secret|(?<!de)(?<!as)sig(?!ht)|cred|jwt|"
    r"sess|access(?!or)|bearer|hmac|ticket|cookie|expires|\bsid\b|\bsas\b|x-(?:amz|goog)-",
    re.IGNORECASE,
)


def is_url(path: str) -> bool:
    """Return whether `path` begins with a protocol, as `https://` or `s3://`, supported or not.

    `a/b://c.jpg` is a file, and `pipe:curl https://host/a.tar` a command.
    """
    return _PROTOCOL.match(path) is not None


def protocol_of(url: str) -> str:
    """Return the protocol of a URL, in lower case."""
    return url.partition("://")[0].lower()


def is_on_web(url: str) -> bool:
    """Return whether this is the URL of a web server."""
    return is_url(url) and protocol_of(url) in ("http", "https")


def why_refused(url: str) -> str | None:
    """Return why a URL is never opened, whoever gives it; None if it may be."""
    if _is_chain(url):
        return "chains protocols with `::`; give the URL of the file itself"
    if protocol_of(url) not in PROTOCOLS:
        return f"its protocol is not one of {', '.join(PROTOCOLS)}; copy it to one of these, or to a disk"
    if _HAS_USER.match(_without_spaces(url)):
        return "contains a user or password; leave them out: credentials come from the environment"
    return None


def shows_credentials(text: str) -> bool:
    """Return whether a URL in `text` has user info, or a query or fragment with the names of secrets."""
    return bool(_HAS_USER.search(_without_spaces(text))) or any(
        map(_SECRET_NAME.search, _NAME.findall(unquote(text.partition("://")[2])))
    )


def has_query(url: str) -> bool:
    """Return whether the URL of a web server has a query or a fragment, secret or not."""
    return is_on_web(url) and re.search("[?#]", url) is not None


def printable_url(text: str) -> str:
    """Return a path, a URL or a message as one line, without the user info and the queries of its URLs.

    Of a chain of URLs only the first is shown.
    """
    text = _without_spaces(text)
    if _URL_ALONE.match(text) and _is_chain(text):
        text = re.sub(r"(?<!\[)::.*", "::...", text)
    return one_line(_SECRETS.sub(r"\1\2", text))


def _without_spaces(text: str) -> str:
    """Escape the spaces of a URL; leave a message alone, which has `: ` after its URL if it begins with one."""
    return re.sub(r"\s", "%20", text) if _URL_ALONE.match(text) and ": " not in text else text


def _is_chain(url: str) -> bool:
    return "::" in _IPV6.sub("", url, count=1)
