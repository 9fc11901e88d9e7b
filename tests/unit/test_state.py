"""The state directory: made once, refused when it is another's or newer, locked by one at a time."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from modelyard.errors import ModelyardError, StateLocked
from modelyard.state import StateDirectory, admin_key, is_locked, locked, open_state


def test_it_is_made_for_its_owner_alone_and_found_again(state: StateDirectory) -> None:
    assert state.root.stat().st_mode & 0o777 == 0o700
    assert open_state(state.root) == state
    assert admin_key(state) == admin_key(open_state(state.root))
    assert state.admin_key.stat().st_mode & 0o077 == 0


def test_a_newer_layout_is_refused_with_what_to_do(state: StateDirectory) -> None:
    state.layout.write_text("99\n")
    with pytest.raises(ModelyardError, match="has layout 99; this Modelyard writes layout 1") as refused:
        open_state(state.root)
    assert "MODELYARD_STATE" in refused.value.hint


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelyardError, match="cannot be made: Not a directory") as refused:
        open_state(tmp_path / "file" / "state")
    assert "MODELYARD_STATE" in refused.value.hint


def test_one_holds_the_lock_and_the_other_hears_for_what(state: StateDirectory) -> None:
    with locked(state.yard_lock, holding="serving"):
        assert is_locked(state.yard_lock)
        with (
            pytest.raises(StateLocked, match="another Modelyard process is serving"),
            locked(state.yard_lock, holding="serving"),
        ):
            pytest.fail("two hold one lock")
    assert not is_locked(state.yard_lock)


def test_a_lock_ends_with_the_process_that_held_it(state: StateDirectory) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom modelyard.state import locked\n"
        "with locked(Path(sys.argv[1]), holding='x'):\n    print(flush=True)\n    time.sleep(60)\n"
    )
    argv = [sys.executable, "-c", program, str(state.yard_lock)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert is_locked(state.yard_lock)
        holder.kill()
    assert not is_locked(state.yard_lock)


def test_who_only_looks_at_a_lock_keeps_nobody_from_taking_it(state: StateDirectory) -> None:
    with locked(state.yard_lock, holding="serving"):
        pass
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            is_locked(state.yard_lock)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for _ in range(100):
            with locked(state.yard_lock, holding="serving"):
                pass
    finally:
        done.set()
        watcher.join()
