"""The lean SHA-256 against the standard library's."""

from __future__ import annotations

import hashlib
import subprocess
import sys

from edgescribe.sdk.sha256 import LARGE, sha256
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_it_is_sha256(parts: list[bytes]) -> None:
    digest = sha256()
    for part in parts:
        digest.update(memoryview(part))
    assert digest.hexdigest() == hashlib.sha256(b"".join(parts)).hexdigest()


def test_large_files_are_hashed_by_openssl() -> None:
    assert type(sha256(to_come=LARGE)) is type(hashlib.sha256())
    assert type(sha256(to_come=LARGE - 1)) is not type(hashlib.sha256())
    content = b"0123456789abcdef" * (LARGE // 16)
    assert sha256(content).hexdigest() == hashlib.sha256(content).hexdigest()


def test_openssl_stays_out_of_memory() -> None:
    program = "import sys, edgescribe.sdk.load; print([m for m in ('hashlib', '_hashlib', 'ssl') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
