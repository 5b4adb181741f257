"""Whoever guesses has to wait, and nobody else."""

from __future__ import annotations

from memu_backup.web.patience import Patience


def test_each_further_failure_of_an_address_makes_it_wait_longer() -> None:
    at = [0.0]
    patience = Patience(lambda: at[0])
    waits = []
    for _ in range(12):
        patience.failed("10.0.0.1")
        waits.append(patience.must_wait_s("10.0.0.1"))
    assert waits == [0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert patience.must_wait_s("10.0.0.2") == 0
    at[0] = 59
    assert patience.must_wait_s("10.0.0.1") == 1
    at[0] = 700
    patience.failed("10.0.0.1")
    assert patience.must_wait_s("10.0.0.1") == 0
    for _ in range(5):
        patience.failed("10.0.0.1")
    patience.succeeded("10.0.0.1")
    assert patience.must_wait_s("10.0.0.1") == 0


def test_a_network_of_ipv6_is_one_and_memory_has_an_end() -> None:
    patience = Patience(lambda: 0.0)
    for number in range(6):
        patience.failed(f"2001:db8:1:2::{number}")
    assert patience.must_wait_s("2001:db8:1:2:ffff::1") == 2 and patience.must_wait_s("2001:db8:1:3::1") == 0
    for number in range(20_000):
        patience.failed(f"name {number}")
    assert patience.must_wait_s("2001:db8:1:2::1") == 0
