"""Take passwords, tokens and keys out of everything a run leaves behind."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import yaml

REDACTED = "<redacted>"  # a plain scalar in YAML, so that a redacted document keeps its types

# Words of a name that mark its value as a secret wherever they stand in it (`client_secret_file`) ...
_SECRET_WORDS = {"apikey", "authkey", "authorization", "credential", "credentials", "passphrase", "passwd"}
_SECRET_WORDS |= {"password", "passwords", "pwd", "secret", "secrets"}
# ... pairs that only together do, because "key", "access" and "pass" alone are everyday words ...
_BEFORE_KEY = ("access", "account", "api", "auth", "encryption", "private", "signing", "ssh")
_SECRET_PAIRS = {
    ("db", "pass"),
    ("user", "pass"),
    ("pass", "word"),
    ("pass", "phrase"),
    *((first, "key") for first in _BEFORE_KEY),
}
# ... and one that does only at the end: `hf_token` is a secret, `token_dim` and `num_tokens` are not.
_SECRET_ENDING = "token"

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_USER_INFO = re.compile(r"""://[^\s/?#"']*@(?=\S)""")
_KNOWN_SHAPES = re.compile(
    r"""\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b                 # AWS access key id
    | \bgh[pousr]_[A-Za-z0-9]{30,}\b | \bgithub_pat_\w{30,}     # GitHub
    | \bglpat-[\w-]{20,} | \bhf_[A-Za-z0-9]{30,}\b              # GitLab, Hugging Face
    | \bsk-[\w-]{20,} | \bxox[abprs]-[\w-]{10,}                 # OpenAI and alike, Slack
    | \bAIza[\w-]{35}                                           # Google
    | \beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*                         # JSON web token
    | (?<=[Bb]earer\ )[\w.~+/=-]{8,}
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----.*?(?:-----END\ [A-Z ]*PRIVATE\ KEY-----|\Z)
    """,
    re.VERBOSE | re.DOTALL,
)
# What stands before a value: `--name `, or `name:`, `"name":`, `name=`; then the value itself, in its three forms.
_NAME = re.compile(r"""(?<!\S)(?P<flag>--[\w.-]+)[ \t]+(?!-)|(?<![\w.-])(?P<name>[\w.-]+)["']?[ \t]*[:=][ \t]*""")
_QUOTED = re.compile(r""""(?:[^"\\\n]|\\.)*"|'(?:[^'\n]|'')*'""")
_REST_OF_LINE = re.compile(r"[^\s{\[|>&*!#][^\n]*?(?=[ \t]*,?[ \t]*$|[ \t]+#)", re.MULTILINE)
_SINGLE = re.compile(r"""[^\s,;&}\])"'|>]+""")
_OPENS_LINE = re.compile(r"""[ \t]*(?:-[ \t]+)?["']?""")
_NO_SECRET = {"null", "~", "true", "false", "None", "True", "False", '""', "''", REDACTED}


def redact(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of nested values in which every secret reads `<redacted>`.

    A value is a secret because of its name (`password`, `hf_token`, `api.key`, at any depth) or of its shape (a URI
    with user and password, an AWS, GitHub or Hugging Face key). Numbers under other names, booleans and None stay.

    Args:
        values: Mapping of names to JSON types, nested as deep as need be.

    Examples:
        >>> redact({"uri": "postgresql://ann:pw@host/db", "data": {"hf_token": "abc", "num_tokens": 3}})
        {'uri': 'postgresql://<redacted>@host/db', 'data': {'hf_token': '<redacted>', 'num_tokens': 3}}
    """
    return {key: _redact_value(value, secret=is_secret_name(str(key))) for key, value in values.items()}


def redact_uri(uri: str) -> str:
    """Return a URI without user, password and secret query items.

    Examples:
        >>> redact_uri("postgresql://ann:pw@host/db?password=pw&sslmode=require")
        'postgresql://<redacted>@host/db?password=<redacted>&sslmode=require'
        >>> redact_uri("sqlite:////data/outputs/mlflow.db")
        'sqlite:////data/outputs/mlflow.db'
    """
    return redact_text(uri)


def redact_text(text: str) -> str:
    """Return free text without secrets: known key shapes, credentials in URIs, and `name: value` of secret names.

    Examples:
        >>> redact_text("connect with password=hunter2 to http://ann:pw@host")
        'connect with password=<redacted> to http://<redacted>@host'
    """
    text = _USER_INFO.sub(f"://{REDACTED}@", text)
    return _redact_assignments(_KNOWN_SHAPES.sub(REDACTED, text))


def redact_yaml(text: str) -> str:
    """Return a YAML document without secrets, with its comments and order where that is possible.

    Args:
        text: A YAML document. Lines are redacted in place; where that does not reach every secret (block scalars,
            lists), the document is written anew from its redacted values and loses its comments.
    """
    by_line = redact_text(text)
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        return by_line
    if not isinstance(values, Mapping):
        return by_line
    wanted = redact(values)
    try:
        if yaml.safe_load(by_line) == wanted:
            return by_line
    except yaml.YAMLError:
        pass  # redacting a line broke the syntax, so the document is written anew
    return yaml.safe_dump(wanted, sort_keys=False)


def is_secret_name(name: str) -> bool:
    """Tell whether a name announces a secret.

    Examples:
        >>> [is_secret_name(name) for name in ("AWS_SECRET_ACCESS_KEY", "apiKey", "model.hf_token", "token_dim")]
        [True, True, True, False]
    """
    words = [word.lower() for word in _WORD.findall(name)]
    pairs = set(pairwise(words))
    return words[-1:] == [_SECRET_ENDING] or not _SECRET_WORDS.isdisjoint(words) or not _SECRET_PAIRS.isdisjoint(pairs)


def _redact_value(value: Any, *, secret: bool) -> Any:  # noqa: ANN401 - any JSON type in, the same shape out
    if isinstance(value, Mapping):
        return {key: _redact_value(item, secret=secret or is_secret_name(str(key))) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_redact_value(item, secret=secret) for item in value]
    if secret:
        return value if value is None or isinstance(value, bool) or value == "" else REDACTED
    return redact_text(value) if isinstance(value, str) else value


def _redact_assignments(text: str) -> str:
    pieces: list[str] = []
    position = 0
    for match in _NAME.finditer(text):
        if match.start() < position or not is_secret_name(match["flag"] or match["name"]):
            continue
        value = _value_at(text, match)
        if value is None or value in _NO_SECRET:
            continue
        quote = value[0] if value[0] in "\"'" else ""
        pieces += [text[position : match.end()], quote, REDACTED, quote]
        position = match.end() + len(value)
    return "".join([*pieces, text[position:]])


def _value_at(text: str, name: re.Match[str]) -> str | None:
    line_start = text.rfind("\n", 0, name.start()) + 1
    opens_line = _OPENS_LINE.fullmatch(text, line_start, name.start()) is not None and name["name"] is not None
    for form in (_QUOTED, _REST_OF_LINE if opens_line else _SINGLE):
        if found := form.match(text, name.end()):
            return found[0]
    return None
