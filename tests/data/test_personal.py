"""Personal data by shape and checksum: true ones are found, look-alikes are not, and no value is shown whole."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmkit.data import personal


def kinds(text: str) -> list[str]:
    return [kind for kind, _, _ in personal.find(text)]


TRUE = {
    "e-mail address": ["marie.curie@sorbonne.fr", "a+b@mail.co.uk"],
    "phone": ["+49 30 901820", "+1 415-867-5309", "(415) 867-5309", "415-867-5309", "+33 1 44 27 44 27"],
    "IBAN": ["DE89370400440532013000", "GB82 WEST 1234 5698 7654 32", "NL91ABNA0417164300"],
    "card number": ["4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005"],
    "IP address": ["8.8.8.8", "2001:4860:4860:0:0:0:0:8888"],
    "social security number": ["219-09-9999"],
    "API key": ["sk-proj-abcdefghijklmnopqrstuvwx", "AKIAIOSFODNN7EXAMPLE", "-----BEGIN RSA PRIVATE KEY-----", "ghp_" + "a1B2" * 9],
}
FALSE = [
    "someone@example.com", "a@b", "user@localhost", "@handle", "2024-05-17", "12.12.2027", "1234567890", "order 4711-0815-2342", "555-01-00",
    "415-555-0142", "4111 1111 1111 1112", "1234 5678 9012 3456", "DE89370400440532013001", "AB12 3456 7890 1234", "10.0.0.1", "192.168.1.1",
    "127.0.0.1", "version 1.2.3.4", "v8.8.8.8", "256.1.1.1", "12:30:45", "000-12-3456", "666-12-3456", "sk-short", "3.14159265358979",
    "1,234,567,890",
    "PO-52411 668 kg", "0000 0000 0000 0000", "1.2.3.4.5", "+5 - 3 = 2", "task-force-abcdefghijklmnopqrstuvwxyz",
]


@pytest.mark.parametrize(("kind", "value"), [(k, v) for k, values in TRUE.items() for v in values])
def test_true_ones_are_found_and_dotted_out(kind, value):
    for text in (value, f"Call {value}, please.", f"({value})"):
        assert kinds(text) == [kind]
        hidden = personal.masked(text)
        assert len(hidden) == len(text) and value not in hidden and kinds(hidden) == []


@pytest.mark.parametrize("value", FALSE)
def test_look_alikes_are_not(value):
    assert kinds(value) == [] and kinds(f"see {value} here") == []


@given(st.text(max_size=200))
@settings(max_examples=300, deadline=None)
def test_masking_keeps_the_length_and_any_text_can_be_looked_at(text):
    assert len(personal.masked(text)) == len(text)


@given(st.integers(10**15, 10**16 - 1))
@settings(max_examples=200, deadline=None)
def test_a_changed_digit_breaks_a_card_number(number):
    digits = f"4{str(number)[1:]}"
    check = next(d for d in range(10) if personal._card(digits[:15] + str(d), "") or d == 9)
    if personal._card(digits[:15] + str(check), ""):
        assert not any(personal._card(digits[:15] + str(d), "") for d in range(10) if d != check)
