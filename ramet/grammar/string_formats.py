"""What `format` means: a regex per name. Each is a subset of its standard that every validator takes."""

from __future__ import annotations

from collections.abc import Mapping

_YEAR = r"(?:000[1-9]|00[1-9]\d|0[1-9]\d\d|[1-9]\d{3})"
_LEAP = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DAY = r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
_DATE = rf"(?:{_YEAR}-{_DAY}|{_LEAP}-02-29)"
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
_SPAN = r"(?:\d+H(?:\d+M(?:\d+S)?)?|\d+M(?:\d+S)?|\d+S)"
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_SIMPLE_LABEL = r"[a-zA-Z0-9](?:-?[a-zA-Z0-9]){0,31}"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*"
_ATOM = r"[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]+"
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"{_OCTET}(?:\.{_OCTET}){{3}}"
_H = r"[0-9a-fA-F]{1,4}"
_MIXED = [rf"(?:{_H}:){{6}}{_IPV4}", rf"::(?:{_H}:){{0,5}}{_IPV4}"]
_MIXED += [rf"{_H}(?::{_H}){{{n}}}::(?:{_H}:){{0,{4 - n}}}{_IPV4}" for n in range(5)]
_IPV6 = "|".join(
    [rf"(?:{_H}:){{7}}{_H}", "::"]
    + [rf"(?:{_H}:){{{n}}}(?::{_H}){{1,{7 - n}}}" for n in range(1, 7)]
    + [rf"(?:{_H}:){{1,7}}:", rf":(?::{_H}){{1,7}}"]
    + _MIXED
)
_PLAIN = r"A-Za-z0-9\-._~!$&'()*+,;=:@"
_BEYOND = r"\xa0-\ud7ff\uf900-\ufdcf\ufdf0-\uffef"
"""What IRIs have and URIs have not, of the first 65,536 characters."""
_LETTERS = "a-z0-9ß-öø-ÿƒα-ωа-я一-鿿가-힣"
"""Of names that are not ASCII: what IDNA takes as it is, in any order."""
_WIDE_LABEL = rf"[{_LETTERS}]{{1,14}}"
_WIDE_HOST = rf"{_WIDE_LABEL}(?:\.{_WIDE_LABEL}){{0,2}}"


def _uris(beyond: str, host: str) -> tuple[str, str]:
    """RFC 3986 or 3987: with a scheme, and without one."""
    char = rf"(?:[{_PLAIN}{beyond}]|%[0-9A-Fa-f]{{2}})"
    after = rf"(?:\?(?:{char}|[/?])*)?(?:#(?:{char}|[/?])*)?"
    user = r"(?:(?:[A-Za-z0-9\-._~!$&'()*+,;=:]|%[0-9A-Fa-f]{2})*@)?"
    authority = rf"{user}(?:{host}|\[(?:{_IPV6})\])(?::[0-9]{{1,5}})?"
    at = rf"//{authority}(?:/{char}*)*"
    absolute = rf"(?:[A-Za-z][A-Za-z0-9+.\-]*:(?:{at}|/?{char}+(?:/{char}*)*)|file://(?:/{char}*)+){after}"
    relative = rf"(?:{at}|/(?:{char}+(?:/{char}*)*)?|[A-Za-z0-9\-._~{beyond}]+(?:/{char}*)*)?{after}"
    return absolute, f"(?:{absolute}|{relative})"


_URI, _URI_REFERENCE = _uris("", _HOST)
_IRI, _IRI_REFERENCE = _uris(_BEYOND, f"(?:{_HOST}|{_WIDE_HOST})")
_VARIABLES = r"\{[+#./;?&]?[A-Za-z0-9_]+(?:\*|:[1-9][0-9]{0,3})?(?:,[A-Za-z0-9_]+(?:\*|:[1-9][0-9]{0,3})?)*\}"
_EMAIL = rf"{_ATOM}(?:\.{_ATOM})*@{_HOST}"
_POINTER = r"(?:/(?:[^~/]|~[01])*)*"
_HEX = "[0-9a-fA-F]"
_BASE64 = r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?"
_REGEX_ATOM = r"(?:[A-Za-z0-9 _,:;@#%&=~<>!'/-]|\.|\\[dswDSW.()\[\]{}*+?|^$]|\[\^?(?:a-z|A-Z|0-9|[A-Za-z0-9_ ])+\])"
_REGEX_COUNT = r"(?:[*+?]|\{[0-9]{1,2}\})?"
_REGEX_INNER = rf"{_REGEX_ATOM}{_REGEX_COUNT}"
_REGEX_PART = rf"(?:{_REGEX_ATOM}|\((?:\?:)?(?:{_REGEX_INNER})+(?:\|(?:{_REGEX_INNER})+)*\)){_REGEX_COUNT}"

FORMATS: Mapping[str, str] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": rf"{_DATE}T{_TIME}",
    "duration": rf"P(?:(?:\d+D|\d+M(?:\d+D)?|\d+Y(?:\d+M(?:\d+D)?)?)(?:T{_SPAN})?|T{_SPAN}|\d+W)",
    "email": _EMAIL,
    "idn-email": rf"(?:{_EMAIL}|[{_LETTERS}]{{1,16}}@{_WIDE_HOST})",
    "name-email": rf"(?:[A-Za-z]+(?: [A-Za-z]+)* <{_EMAIL}>|{_EMAIL})",
    "hostname": _HOST,
    "idn-hostname": rf"(?:{_SIMPLE_LABEL}(?:\.{_SIMPLE_LABEL})*|{_WIDE_HOST})",
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "ipvanyaddress": rf"{_IPV4}|{_IPV6}",
    "ipv4network": rf"{_IPV4}(?:/32)?",
    "ipv6network": rf"(?:{_IPV6})(?:/128)?",
    "uri": _URI,
    "url": _URI,
    "iri": _IRI,
    "multi-host-uri": _URI,
    "uri-reference": _URI_REFERENCE,
    "iri-reference": _IRI_REFERENCE,
    "uri-template": rf"(?:[A-Za-z0-9\-._~/:?#@!$&()*+,;=]|%{_HEX}{{2}}|{_VARIABLES})*",
    "uuid": rf"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}",
    **{f"uuid{n}": rf"{_HEX}{{8}}-{_HEX}{{4}}-{n}{_HEX}{{3}}-[89abAB]{_HEX}{{3}}-{_HEX}{{12}}" for n in range(1, 9)},
    "json-pointer": _POINTER,
    "relative-json-pointer": rf"(?:0|[1-9][0-9]{{0,8}})(?:#|{_POINTER})",
    "regex": rf"\^?(?:{_REGEX_PART}(?:\|{_REGEX_PART})*)*\$?",
    "byte": _BASE64,
    "base64": _BASE64,
}
MAX_LENGTHS: Mapping[str, int] = {"hostname": 253, "idn-hostname": 253}
INTEGER_FORMATS: Mapping[str, tuple[int, int]] = {
    "int8": (-(2**7), 2**7 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint8": (0, 2**8 - 1),
    "uint16": (0, 2**16 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}
"""OpenAPI's. They bound numbers, and say nothing about fractions."""
ANNOTATIONS = frozenset({"float", "double", "password", "binary", "path", "file-path", "directory-path"})
"""OpenAPI's and pydantic's that leave the set of values as it is, or that no text tells apart."""
