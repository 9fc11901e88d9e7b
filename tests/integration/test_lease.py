"""The lease file: renewed by one, read by many, and worth nothing once its writer is silent."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelyard.node.lease import Lease, boot_id, kill_margin_s, remaining_s


def test_a_renewed_lease_runs_out_lease_s_later(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    with Lease(path) as lease:
        lease.renew(1000.0)
        assert remaining_s(path, 5.0, 1000.0) == 5.0
        assert remaining_s(path, 5.0, 1003.5) == pytest.approx(1.5)
        assert remaining_s(path, 5.0, 1005.0) == 0.0
        assert remaining_s(path, 5.0, 2000.0) == 0.0
        lease.renew(1004.0)
        assert remaining_s(path, 5.0, 1005.0) == pytest.approx(4.0)


def test_monotonic_time_is_one_for_all_processes_of_a_boot(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    program = f"from modelyard.node.lease import *; Lease({str(path)!r}).renew()"
    before = time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True)
    after = time.monotonic()
    assert remaining_s(path, 60.0, after) >= 60.0 - (after - before)
    assert remaining_s(path, 60.0, after) <= 60.0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"\xff\xfe",
        b"another-boot 1000.0 1000.0\n",
        b"BOOT 1000.0\n",
        b"BOOT 1000.0 1001.0\n",
        b"BOOT x x\n",
        b"BOOT 9999.0 9999.0\n",
        b"BOOT nan nan\n",
        b"BOOT inf inf\n",
    ],
)
def test_what_is_no_lease_of_this_boot_has_run_out(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lease"
    path.write_bytes(content.replace(b"BOOT", boot_id().encode()))
    assert remaining_s(path, 5.0, 1000.0) == 0.0


def test_no_lease_has_run_out(tmp_path: Path) -> None:
    assert remaining_s(tmp_path / "lease", 5.0, 1000.0) == 0.0


def test_a_lease_that_was_given_up_has_run_out_and_can_be_taken_again(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    with Lease(path) as lease:
        lease.renew(1000.0)
        lease.end()
    assert remaining_s(path, 5.0, 1000.0) == 0.0
    with Lease(path) as lease:
        lease.renew(1001.0)
    assert remaining_s(path, 5.0, 1001.0) == 5.0


def test_a_renewal_overwrites_in_place_and_changes_no_size(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    with Lease(path) as lease:
        lease.renew(9.5)
        inode, size = path.stat().st_ino, path.stat().st_size
        lease.renew(123456789.25)
        assert (path.stat().st_ino, path.stat().st_size) == (inode, size)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("lease_s", "margin_s"), [(1.5, 0.3), (5.0, 1.0), (60.0, 1.0)])
def test_killing_begins_before_the_end(lease_s: float, margin_s: float) -> None:
    assert kill_margin_s(lease_s) == pytest.approx(margin_s)
