"""The store: work is done once, and what a kill, an error or another process leaves behind is never a half result."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tenfold.errors import TenfoldError
from tenfold.recipe import digest
from tenfold.store import Store, cache_dir, unwritable, write_atomic

KEY = {"step": "test", "n": 1}
SOON = 30.0  # seconds: a fresh Python is there in one, on a busy machine in a few


def start(code: str, root: Path) -> subprocess.Popen[str]:
    """A fresh Python that has `root` and `Store` at hand."""
    head = f"import os, sys, time\nfrom pathlib import Path\nfrom tenfold.store import Store\nroot = Path({str(root)!r})\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(path: Path) -> None:
    end = time.monotonic() + SOON
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not come"
        time.sleep(0.01)


def names(root: Path) -> set[str]:
    return {p.name for p in root.iterdir()}


def test_work_is_done_once(tmp_path):
    calls = []

    def work(folder: Path) -> dict:
        calls.append(folder)
        (folder / "out.txt").write_text("result")
        return {"fact": [1, 2]}

    store = Store(tmp_path)
    first, second = store.step(KEY, work), Store(tmp_path).step(dict(reversed(KEY.items())), work)
    assert len(calls) == 1
    assert (first.reused, second.reused) == (False, True)
    assert first.path == second.path
    assert (second.path / "out.txt").read_text() == "result"
    assert first.meta == second.meta
    assert (second.meta["fact"], second.meta["key"]) == ([1, 2], KEY)
    assert second.meta["seconds"] >= 0
    assert names(tmp_path) == {digest(KEY)}  # neither a lock nor a partial folder is left


def test_another_key_is_other_work(tmp_path):
    store = Store(tmp_path)
    one, two = store.step(KEY, lambda _: {"n": 1}), store.step({**KEY, "n": 2}, lambda _: {"n": 2})
    assert one.path != two.path
    assert (one.meta["n"], two.meta["n"]) == (1, 2)


def test_what_the_first_caller_gets_is_what_later_ones_read(tmp_path):
    store = Store(tmp_path)
    made = store.step(KEY, lambda _: {"shape": (1, 2), "where": Path("x")})
    assert made.meta == store.step(KEY, lambda _: {}).meta


def test_checkpoints_are_no_part_of_the_output_nor_what_a_kill_left_of_one(tmp_path):
    killed = start(
        f"""
        import resource, signal
        from tenfold.store import write_atomic
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it, and would get an error instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))  # the kernel kills who writes more in one file
        Store(root).step({KEY!r}, lambda folder: write_atomic(folder / "train.checkpoint", bytes(5_000)))
        """,
        tmp_path,
    )
    killed.communicate()
    assert killed.returncode == -signal.SIGXFSZ
    assert len(list((tmp_path / f"{digest(KEY)}.partial").iterdir())) == 1  # a part of the checkpoint

    def work(folder: Path) -> dict:
        write_atomic(folder / "train.checkpoint", "state")
        (folder / "model").write_text("weights")
        return {}

    assert names(Store(tmp_path).step(KEY, work).path) == {"model", "meta.json"}


def test_a_killed_step_leaves_no_result_and_its_folder_goes_on_where_it_was(tmp_path):
    process = start(
        f"""
        def work(folder):
            (folder / "train.checkpoint").write_text("half")
            time.sleep({SOON})
        Store(root).step({KEY!r}, work)
        """,
        tmp_path,
    )
    partial = tmp_path / f"{digest(KEY)}.partial"
    wait_for(partial / "train.checkpoint")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / digest(KEY)).exists()

    def work(folder: Path) -> dict:
        assert folder == partial
        return {"found": (folder / "train.checkpoint").read_text()}

    step = Store(tmp_path).step(KEY, work)  # the lock went with the process that held it
    assert (step.reused, step.meta["found"]) == (False, "half")
    assert names(tmp_path) == {digest(KEY)}


def test_an_exception_leaves_no_result_and_the_next_attempt_its_folder(tmp_path):
    store = Store(tmp_path)

    def fail(folder: Path) -> dict:
        (folder / "train.checkpoint").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.step(KEY, fail)
    assert not (tmp_path / digest(KEY)).exists()
    step = store.step(KEY, lambda folder: {"found": (folder / "train.checkpoint").read_text()})
    assert (step.reused, step.meta["found"]) == (False, "half")


@pytest.mark.parametrize("meta", [None, "{"], ids=["no meta", "torn meta"])
def test_a_folder_without_readable_meta_is_no_result(tmp_path, meta):
    done = tmp_path / digest(KEY)
    done.mkdir()
    (done / "rubbish").touch()
    if meta is not None:
        (done / "meta.json").write_text(meta)
    step = Store(tmp_path).step(KEY, lambda _: {"fresh": True})
    assert not step.reused
    assert names(step.path) == {"meta.json"}


def test_two_processes_that_want_the_same_step_work_once_and_both_get_it_whole(tmp_path):
    worker = f"""
        def work(folder):
            (root / f"working-{{os.getpid()}}").touch()
            while not (root / "go").exists():
                time.sleep(0.01)
            (folder / "out.txt").write_text("result")
            return {{}}
        (root / f"started-{{os.getpid()}}").touch()
        step = Store(root).step({KEY!r}, work)
        print(step.reused, (step.path / "out.txt").read_text())
        """
    both = [start(worker, tmp_path) for _ in range(2)]
    for process in both:
        wait_for(tmp_path / f"started-{process.pid}")
    time.sleep(0.3)  # for the second to arrive at the lock; were it later, it would find the result, and pass as well
    working = list(tmp_path.glob("working-*"))
    (tmp_path / "go").touch()
    answers = sorted(process.communicate(timeout=SOON)[0].strip() for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert answers == ["False result", "True result"]
    assert len(working) == len(list(tmp_path.glob("working-*"))) == 1
    assert not list(tmp_path.glob("*.lock"))
    assert not list(tmp_path.glob("*.partial"))


def test_who_waited_for_a_process_that_was_killed_takes_its_work_over(tmp_path):
    first = start(
        f"""
        def work(folder):
            (folder / "train.checkpoint").write_text("half")
            time.sleep({SOON})
        Store(root).step({KEY!r}, work)
        """,
        tmp_path,
    )
    wait_for(tmp_path / f"{digest(KEY)}.partial" / "train.checkpoint")
    second = start(
        f"""
        (root / "started").touch()
        print(Store(root).step({KEY!r}, lambda folder: {{"found": (folder / "train.checkpoint").read_text()}}).meta["found"])
        """,
        tmp_path,
    )
    wait_for(tmp_path / "started")
    time.sleep(0.3)
    assert second.poll() is None  # it waits
    first.kill()
    first.communicate()
    assert second.communicate(timeout=SOON)[0].strip() == "half"


def test_a_step_may_ask_for_others_while_it_works(tmp_path):
    store = Store(tmp_path)
    outer = store.step(KEY, lambda _: {"inner": store.step({**KEY, "n": 2}, lambda _: {"deep": 1}).meta["deep"]})
    assert outer.meta["inner"] == 1


def test_a_folder_that_cannot_be_made_is_one_sentence_with_its_remedy(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        TenfoldError, match=r"cannot write .*file.*: choose another folder with --out or \$TENFOLD_CACHE"
    ) as caught:
        Store(tmp_path / "file" / "store")  # below a file nobody makes folders, not even root
    assert "\n" not in str(caught.value)


def test_a_step_that_cannot_be_written_is_one_sentence_with_its_remedy(tmp_path):
    store = Store(tmp_path)
    (tmp_path / f"{digest(KEY)}.partial").touch()
    with pytest.raises(TenfoldError, match=r"cannot write .*\.partial.*: choose another folder"):
        store.step(KEY, lambda _: {})


def test_a_full_disk_says_so():
    error = unwritable(Path("store"), OSError(errno.ENOSPC, "No space left on device"))
    assert str(error) == "the disk that holds store is full: free some space, then go on with --resume"


def test_readers_of_an_atomic_write_see_the_old_or_the_new_and_never_a_part(tmp_path):
    path = tmp_path / "data.json"
    write_atomic(path, json.dumps(["x"] * 100))
    writer = start(
        """
        from tenfold.store import write_atomic
        for letter in "abcdefgh" * 10:
            write_atomic(root / "data.json", '["' + '", "'.join([letter] * 20_000) + '"]')
        """,
        tmp_path,
    )
    while writer.poll() is None:
        assert len(set(json.loads(path.read_text()))) == 1
    assert writer.returncode == 0
    assert names(tmp_path) == {"data.json"}


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("TENFOLD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "tenfold"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "tenfold"
