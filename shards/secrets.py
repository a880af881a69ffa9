"""Mask secrets in text: passwords, tokens and signatures in URLs and in the commands of `pipe:`.

Everything that is written to a file or printed is masked here. When in doubt, text is masked. To be certain, keep a
secret out of the text: a reference to an environment variable, `$TOKEN`, is not masked.
"""

import re
from typing import Any

MASK = "***"
PIPE = "pipe:"  # precedes a shell command whose output is read

_SECRET = re.compile(
    r"token|secret|passw|passphrase|pwd|key|auth|credential|cookie|signature|jwt|bearer|session"
    r"|(?:^|[_.-])(?:sas|sig|pass|creds?|pat|pin|otp)(?:$|[_.-])",
    re.IGNORECASE,
)
_OPTION = re.compile(r"user|header|cert|connection|^-+(?:(?:post-|body-)?data|form|json)(?:$|-)", re.IGNORECASE)

# Not secret: a variable or a file of the shell, after the name of a header, a scheme or a user
_REFERENCE = re.compile(
    r"(?:[\w-]+:\s*)?(?:(?:Bearer|Basic|Token)\s+)?(?:\$\w+|\$\{\w+\}|\$\(cat [\w./~$-]+\)|:)+", re.IGNORECASE
)

# A path of Python's pathlib has one slash where a URL has two
_URL = re.compile(
    r"""(?<![\w+.-])([\w+.-]+://|(?:https?|ftps?|s3a?|gs|gcs):/)((?:\[[\da-fA-F:.]*\]|(?!::)[^\s'"<>])*)"""
)
_USER = re.compile(r"([^/]*|[^/:]*:(?!\d+(?:/|$))[^@]*)@")
_BEARER = re.compile(r"""\b(Bearer\s+|Basic\s+(?=[\w+/=-]{6}))([^\s"'\\]+)""", re.IGNORECASE)
_AUTHORIZATION = re.compile(r"""\b(Authorization:\s*)(?!Bearer|Basic|\s)([^"'\\]+)""", re.IGNORECASE)
# Tokens with a known form: of GitHub, GitLab, Hugging Face, Slack, AWS and Google, and JSON web tokens
_TOKEN = re.compile(
    r"\b(?:gh[a-z]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|hf_\w{16,}|xox[a-z]-[\w-]{10,}|A[KS]IA[0-9A-Z]{12,}"
    r"|AIza[\w-]{20,}|ya29\.[\w-]+|eyJ[\w-]{8,}(?:\.[\w-]+)*)"
)

# A shell word; its quotes may be escaped, as in a message that quotes the command, or unterminated
_WORD = re.compile(
    r"""(?:\\"(?:(?!\\").)*\\"|\\'(?:(?!\\').)*\\'|"(?:[^"\\]|\\.)*"|'[^']*'|\\[^\n]|["'].*|[^\s"'\\;|&()<>])+""",
    re.DOTALL,
)
_DEEPEST = 4  # levels of nested quotes that are parsed
_QUOTES = "\"'\\"
_TAKES_SECRET = re.compile(r"-[A-Za-z]{0,8}[HuUb]")  # headers, users, cookies of curl, wget and lftp, -sSH for instance
_WITH_SECRET = re.compile(r"(-[sSfLkvgiN#46]*[HuUb]=?)(.+)", re.DOTALL)
_MAY_TAKE_SECRET = re.compile(r"-[aEdFpPkK]")  # a password with some programs, something else with others
_TAKES_PASSWORD = re.compile(r"(?:.*/)?(?:sshpass|mysql\w*|mariadb[\w-]*|7z\w*)")  # as -pVALUE
_VARIABLE = re.compile(r"\w+")
_PASSWORD = re.compile(r"(-p)(.+)", re.DOTALL)
_ADDRESS = re.compile(r"[\"']?[\w+.-]+://")
_QUOTED = re.compile(r"""(\\?["'])(.*)(\1)""", re.DOTALL)
_QUOTE = re.compile(r"[\"']")
_NAME = re.compile(r"""["']?[^\s"'\\]*\\?["']?""")
_HARMLESS = re.compile(r"\d+|-.*|[^:=]*/[^:=]*")  # numbers, options, paths
_LABEL = re.compile(r"""([\w-]+)(\\?["'])?(?:\s*:|\s+=)\s*(?=\S)""")  # of a header, or of a value in JSON


def masked(text: str) -> str:
    """Return `text` with `***` for everything that is, or may be, secret: in its URLs, and in commands after `pipe:`.

    In URLs, that is the user and password, the values of the query, and the fragment. The function is idempotent.
    """
    while (less := _less_secret(text)) != text:  # a mask that replaces a quote changes where words begin and end
        text = less
    return text


def masked_values(value: Any) -> Any:
    """Return plain values, as from JSON or YAML, with every string in them masked."""
    if isinstance(value, dict):
        return {key: masked_values(item) for key, item in value.items()}
    if isinstance(value, list):
        return [masked_values(item) for item in value]
    return masked(value) if isinstance(value, str) else value


def _less_secret(text: str) -> str:
    text = _URL.sub(_without_secrets, text)
    text = _BEARER.sub(_hide, text)
    text = _AUTHORIZATION.sub(_hide, text)
    text = _TOKEN.sub(MASK, text)
    before, pipe, command = text.partition(PIPE)
    return before + pipe + _masked_command(command)


def _hide(found: re.Match[str]) -> str:
    return found[1] + _hidden(found[2])


def _hidden(value: str) -> str:
    bare = value.strip(_QUOTES)
    return value if bare in ("", MASK) or _REFERENCE.fullmatch(bare) else MASK


def _without_secrets(found: re.Match[str]) -> str:
    protocol, rest = found.groups()
    address = rest.rstrip(":,;.)")  # the punctuation of the sentence around the URL
    marks = rest[len(address) :]
    if user := _USER.match(address):
        address = f"{_hidden(user[1])}@{address[user.end() :]}"
    address, sharp, fragment = address.partition("#")
    path, question, query = address.partition("?")
    values = [re.sub(r"^([^=]*=|)(.+)", _hide, value) for value in query.split("&")]
    return f"{protocol}{path}{question}{'&'.join(values)}{sharp}{_hidden(fragment)}{marks}"


def _masked_command(command: str, depth: int = 0) -> str:
    """Mask a shell command; a quoted part may be another command, a header, or JSON."""
    if depth > _DEEPEST:
        return MASK
    pieces, end, option, protected = [], 0, "", False
    for found in _WORD.finditer(command):
        gap, word = command[end : found.start()], found[0]
        if gap.replace("\\\n", "").strip():
            option, protected = "", False  # another command begins
        protected = protected or bool(_TAKES_PASSWORD.fullmatch(word))
        if _takes_secret(option, word):
            word, option = _hidden(word), ""
        elif protected and (attached := _PASSWORD.fullmatch(word)):
            word = _hide(attached)
        else:
            option, word = word, _masked_word(word, depth)
        pieces += [gap, word]
        end = found.end()
    return "".join(pieces) + command[end:]


def _takes_secret(option: str, value: str) -> bool:
    """Return whether the word after an option is, or may be, secret."""
    if _ADDRESS.match(value):
        return False
    if not option.startswith("-"):
        return bool(_VARIABLE.fullmatch(option) and _SECRET.search(option))  # set NAME VALUE
    if "=" in option:
        return False
    if _MAY_TAKE_SECRET.fullmatch(option):
        return not _HARMLESS.fullmatch(value)
    return bool(_TAKES_SECRET.fullmatch(option) or _SECRET.search(option) or _OPTION.search(option))


def _masked_word(word: str, depth: int) -> str:
    """Mask the secret parts of a word."""
    if attached := _WITH_SECRET.fullmatch(word):
        return _hide(attached)
    quoted = _QUOTED.fullmatch(word)
    start, inner, end = quoted.groups() if quoted else ("", word, "")
    for sign in "=:":
        name, _, value = inner.partition(sign)
        if value and not value.startswith("//") and _NAME.fullmatch(name) and _is_secret(name):
            return start + name.lstrip(_QUOTES) + sign + _hidden(value) + end
    if not quoted:
        return word
    for label in _LABEL.finditer(inner):
        if _is_secret(label[1]) and (label[2] or not _QUOTE.search(inner)):
            inner = _masked_command(inner[: label.start()], depth + 1) + label[0] + _hidden(inner[label.end() :])
            return start + inner + end
    return start + _masked_command(inner, depth + 1) + end


def _is_secret(name: str) -> bool:
    """Return whether the value of a variable, a header, an option or a query parameter of this name is secret."""
    last = re.split(r"[^\w.-]", name.rstrip(_QUOTES))[-1]
    return "://" not in name and bool(_SECRET.search(last) or (name.startswith("-") and _OPTION.search(name)))
