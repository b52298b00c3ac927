"""Likely personal data and secrets in texts, by shape and checksum: few false alarms rather than every last hit.

Checked beyond shape: Luhn and the issuer's prefix of card numbers, mod 97 and the country's length of IBANs, whether an
address is a public one, whether a domain is one of those reserved for examples. No value is ever given out whole.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator

IBAN_LENGTHS = dict(pair.split(":") for pair in (
    "AD:24 AE:23 AL:28 AT:20 AZ:28 BA:20 BE:16 BG:22 BH:22 BR:29 CH:21 CR:22 CY:28 CZ:24 DE:22 DK:18 DO:28 EE:20 EG:29 ES:24 FI:18 FO:18 "
    "FR:27 GB:22 GE:22 GI:23 GL:18 GR:27 GT:28 HR:21 HU:28 IE:22 IL:23 IQ:23 IS:26 IT:27 JO:30 KW:30 KZ:20 LB:28 LI:21 LT:20 LU:20 LV:21 "
    "MC:27 MD:24 ME:22 MK:19 MR:27 MT:31 MU:30 NL:18 NO:15 PK:24 PL:28 PS:29 PT:25 QA:29 RO:24 RS:22 SA:24 SE:24 SI:19 SK:24 SM:27 TN:24 "
    "TR:26 UA:29 VA:22 XK:20"
).split())  # fmt: skip
CARD = re.compile(
    r"(?:4\d{12}(?:\d{3})?|5[1-5]\d{14}|2(?:2[2-9]|[3-6]\d|7[01])\d{13}|3[47]\d{13}|6(?:011|5\d\d)\d{12}|35\d{14}|3(?:0[0-5]|[68]\d)\d{11})\Z"
)
EXAMPLES = re.compile(r"(?:^|\.)(?:example(?:\.(?:com|org|net|edu))?|test|invalid|localhost|local)\Z", re.I)
SHAPES = {
    "e-mail address": r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}(?![\w@])",
    "phone": (
        r"(?<![\w+.,:/-])(?:\+[1-9]\d{0,2}(?:[ .-]?\(?\d{1,4}\)?){2,5}|\([2-9]\d\d\) ?[2-9]\d\d-\d{4}|[2-9]\d\d([.-])[2-9]\d\d\1\d{4})"
        r"(?![\w-]|[.,:/]\d)"
    ),
    "IBAN": r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])",
    "card number": r"(?<![\w.,-])\d(?:[ -]?\d){12,18}(?![\w-]|[.,]\d)",
    "IP address": r"(?<![\w.:-])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{1,4}(?:::?[0-9A-Fa-f]{1,4}){3,7})(?![\w:-]|\.\d)",
    "social security number": r"(?<![\w.-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-]|\.\d)",
    "API key": (
        r"(?<![\w-])(?:sk-[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{40,}|(?:AKIA|ASIA)[0-9A-Z]{16}"
        r"|AIza[0-9A-Za-z_-]{35}|xox[abprs]-[A-Za-z0-9-]{20,}|glpat-[\w-]{20}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})(?![\w-])"
        r"|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
    ),
}


def _email(value: str, _before: str) -> bool:
    return not EXAMPLES.search(value.rpartition("@")[2])


def _phone(value: str, _before: str) -> bool:
    digits = re.sub(r"\D", "", value)
    return 8 <= len(digits) <= 15 and not re.search(r"55501\d\d\Z", digits) and len(set(digits)) > 2  # 555-01xx is fiction's


def _iban(value: str, _before: str) -> bool:
    text = value.replace(" ", "")
    if len(text) != int(IBAN_LENGTHS.get(text[:2], 0)):
        return False
    return int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1


def _card(value: str, _before: str) -> bool:
    digits = re.sub(r"\D", "", value)
    if not CARD.match(digits) or len(set(digits)) < 2:
        return False
    doubled = [int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits))]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def _ip(value: str, before: str) -> bool:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return False
    return address.is_global and not re.search(r"(?:\bv|version|release|section|chapter|§)\.?\s*\Z", before, re.I)


TRUE: dict[str, Callable[[str, str], bool]] = {"e-mail address": _email, "phone": _phone, "IBAN": _iban, "card number": _card, "IP address": _ip}
PATTERNS = {kind: re.compile(shape) for kind, shape in SHAPES.items()}
NEEDED = {"e-mail address": re.compile("@"), "API key": re.compile("sk-|hf_|gh[pousr]_|github_pat_|AKIA|ASIA|AIza|xox|glpat-|eyJ|-----BEGIN")}
DIGITS = re.compile(r"\d\D{0,3}\d")


def find(text: str) -> Iterator[tuple[str, int, int]]:
    """(kind, start, end) of each likely value."""
    numbers = bool(DIGITS.search(text))
    for kind, pattern in PATTERNS.items():
        if not (NEEDED[kind].search(text) if kind in NEEDED else numbers):
            continue
        for match in pattern.finditer(text):
            true = TRUE.get(kind)
            if true is None or true(match[0], text[max(0, match.start() - 12) : match.start()]):
                yield kind, match.start(), match.end()


def masked(text: str) -> str:
    """The text, as long as it was, with all but the first two characters of each value as dots."""
    out = list(text)
    for _, start, end in find(text):
        out[start + 2 : end] = ["•" if c.isalnum() else c for c in text[start + 2 : end]]
    return "".join(out)
