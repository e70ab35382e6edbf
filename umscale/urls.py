"""URLs that may carry secrets: how they are shown."""

import re

_CREDENTIALS = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?P<user>[^\s/?#@:]*):(?P<password>[^\s/?#]*)@", re.IGNORECASE
)
_SECRET_PARAMETER = re.compile(
    r"(?P<name>[?&;](?:password|passwd|pwd|secret|secret_key|access_key|token|sslpassword|signature|sig|"
    r"x-amz-signature|x-amz-security-token|x-amz-credential)=)[^&;#\s]*",
    re.IGNORECASE,
)
HIDDEN = "***"


def redact(text: str) -> str:
    """Return ``text`` with the password of every URL in it, and secret query parameters, replaced by ``***``.

    Takes a bare URL as well as a message that contains some, so an error of a library can be passed through it.
    """
    text = _CREDENTIALS.sub(rf"\g<scheme>\g<user>:{HIDDEN}@", text)
    return _SECRET_PARAMETER.sub(rf"\g<name>{HIDDEN}", text)
