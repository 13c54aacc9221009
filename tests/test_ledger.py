"""The ledger: whatever a kill leaves of the file, a run goes on from a prefix of what it had recorded."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from tenfold.errors import TenfoldError
from tenfold.ledger import SCHEMA, Ledger

ENTRIES = {"asked": {"budget": 600, "name": "é"}, "measured/1": [1.5, 2, None], "verdict": "take"}


def write(folder: Path, entries=ENTRIES) -> Path:
    ledger = Ledger(folder)
    for key, value in entries.items():
        ledger.append(key, value)
    ledger.close()
    return ledger.path


def line(entry: dict) -> bytes:
    body = json.dumps(entry).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def recorded(ledger: Ledger) -> list[tuple[str, object]]:
    return [(e["key"], e["value"]) for e in ledger.entries]


def test_a_resumed_run_reads_what_was_recorded(tmp_path):
    write(tmp_path)
    ledger = Ledger(tmp_path, resume=True)
    assert recorded(ledger) == list(ENTRIES.items())
    assert ledger.notices == []
    assert ledger.knows("verdict")
    assert ledger["measured/1"] == [1.5, 2, None]
    assert not ledger.knows("unheard of")


def test_remember_computes_only_what_is_not_recorded(tmp_path):
    write(tmp_path)
    ledger = Ledger(tmp_path, resume=True)
    assert ledger.remember("verdict", lambda: pytest.fail("it is recorded")) == "take"
    assert ledger.remember("new", lambda: 7) == 7
    assert ledger.remember("new", lambda: 8) == 7


def test_what_is_used_now_is_what_a_resumed_run_will_read(tmp_path):
    ledger = Ledger(tmp_path)
    now = ledger.remember("value", lambda: {"pair": (1, 2.0), 3: "int key"})
    entries = ledger.entries
    ledger.close()
    later = Ledger(tmp_path, resume=True)
    assert now == later["value"] == {"pair": [1, 2.0], "3": "int key"}
    assert entries == later.entries


def test_a_key_is_recorded_once(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.append("key", 1)
    with pytest.raises(ValueError, match="append-only"):
        ledger.append("key", 2)
    assert ledger["key"] == 1


def test_however_the_file_is_cut_a_prefix_is_resumed_and_can_be_gone_on_with(tmp_path):
    whole = write(tmp_path / "whole").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole) + 1):
        folder = tmp_path / f"cut-{length}"
        folder.mkdir()
        path = folder / "ledger.jsonl"
        path.write_bytes(whole[:length])
        kept = sum(end <= length for end in ends)

        ledger = Ledger(folder, resume=True)
        assert recorded(ledger) == list(ENTRIES.items())[:kept], length
        torn = length not in (0, *ends)
        assert [("torn" in n, "dropped" in n) for n in ledger.notices] == [(True, True)] * torn, length
        assert path.read_bytes() == whole[: ends[kept - 1] if kept else 0], length
        ledger.append("afterwards", length)
        ledger.close()

        again = Ledger(folder, resume=True)
        assert recorded(again) == [*list(ENTRIES.items())[:kept], ("afterwards", length)], length
        assert again.notices == [], length
        again.close()


def test_a_damaged_last_line_is_dropped_with_a_notice(tmp_path):
    path = write(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-3] + b"X" + content[-2:])
    ledger = Ledger(tmp_path, resume=True)
    assert recorded(ledger) == list(ENTRIES.items())[:2]
    assert len(ledger.notices) == 1


@pytest.mark.parametrize("position", [0, 9, 30], ids=["checksum", "brace", "body"])
def test_damage_before_the_last_line_is_refused_and_left_as_it_is(tmp_path, position):
    path = write(tmp_path)
    damaged = bytearray(path.read_bytes())
    damaged[position] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(TenfoldError, match=r"line 1 of .* is damaged.*--out"):
        Ledger(tmp_path, resume=True)
    assert path.read_bytes() == damaged


def test_a_blank_line_between_others_is_damage(tmp_path):
    path = write(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\n\n", 1))
    with pytest.raises(TenfoldError, match="line 2 of .* is damaged"):
        Ledger(tmp_path, resume=True)


def test_the_record_of_a_newer_tenfold_is_refused_and_left_as_it_is(tmp_path):
    path = write(tmp_path)
    content = path.read_bytes() + line({"schema": SCHEMA + 1, "key": "future", "at": 1.0, "value": None})
    path.write_bytes(content)
    with pytest.raises(TenfoldError, match=rf"newer Tenfold \(schema {SCHEMA + 1}, this one reads {SCHEMA}\): upgrade"):
        Ledger(tmp_path, resume=True)
    assert path.read_bytes() == content


def test_a_run_that_is_there_is_gone_on_with_only_when_asked(tmp_path):
    path = write(tmp_path)
    content = path.read_bytes()
    with pytest.raises(TenfoldError, match="holds a run already: go on with --resume"):
        Ledger(tmp_path)
    assert path.read_bytes() == content
    Ledger(tmp_path, resume=True).close()  # the refusal let go of the lock


def test_resuming_where_there_is_nothing_starts_anew(tmp_path):
    assert Ledger(tmp_path / "new", resume=True).entries == []


def test_two_runs_in_one_folder_are_refused(tmp_path):
    first = Ledger(tmp_path)
    for resume in (False, True):
        with pytest.raises(TenfoldError, match="another run is at work in"):
            Ledger(tmp_path, resume=resume)
    code = f"from pathlib import Path; from tenfold.ledger import Ledger; Ledger(Path({str(tmp_path)!r}))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "another run is at work in" in other.stderr
    first.append("still", "mine")
    first.close()
    assert Ledger(tmp_path, resume=True)["still"] == "mine"


def test_a_killed_run_lets_go_of_its_folder(tmp_path):
    code = (
        f"from pathlib import Path; from tenfold.ledger import Ledger; import os, signal\n"
        f"ledger = Ledger(Path({str(tmp_path)!r})); ledger.append('a', 1); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert recorded(Ledger(tmp_path, resume=True)) == [("a", 1)]


def test_time_at_work_carries_on_and_time_between_does_not_count(tmp_path):
    ledger = Ledger(tmp_path)
    time.sleep(0.2)
    ledger.append("a", 1)
    before = ledger.elapsed
    ledger.close()
    time.sleep(0.5)
    ledger = Ledger(tmp_path, resume=True)
    # recorded to a millisecond; opening takes a few, a busy machine takes more; the half second between must not count
    assert before - 0.1 <= ledger.elapsed < before + 0.4
    ledger.append("b", 2)
    assert [e["at"] for e in ledger.entries] == sorted(e["at"] for e in ledger.entries)


def test_long_work_without_entries_leaves_beats(tmp_path, monkeypatch):
    """So that a kill forgets little of the time that was spent."""
    ledger = Ledger(tmp_path)
    ledger.append("a", 1)
    ledger.beat()
    assert recorded(ledger) == [("a", 1)], "an entry was made just now"
    monkeypatch.setattr("tenfold.ledger.BEAT_SECONDS", 0.05)
    time.sleep(0.06)
    ledger.beat()
    ledger.beat()
    ledger.close()
    again = Ledger(tmp_path, resume=True)
    assert [key for key, _ in recorded(again)] == ["a", "beat:1"]
    assert again.elapsed >= 0.06


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"x": object()}], ids=["NaN", "infinity", "no JSON"])
def test_what_is_no_json_is_refused_without_harm(tmp_path, value):
    ledger = Ledger(tmp_path)
    ledger.append("good", 1)
    with pytest.raises((ValueError, TypeError)):
        ledger.append("bad", value)
    assert not ledger.knows("bad")
    ledger.append("bad", "mended")
    ledger.close()
    again = Ledger(tmp_path, resume=True)
    assert recorded(again) == [("good", 1), ("bad", "mended")]
    assert again.notices == []


def test_a_folder_that_cannot_be_made_is_one_sentence_with_its_remedy(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TenfoldError, match="cannot write .*: choose another folder with --out"):
        Ledger(tmp_path / "file" / "run")
