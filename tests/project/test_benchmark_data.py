"""The benchmark of loading: that it runs, with every kind of data and cache, and fills both of its tables."""

from __future__ import annotations

import shutil

import pytest
from tracks import need
from trainers import TINY

from benchmarks import data
from diffvocsep.config import load_config


@pytest.mark.slow
def test_it_prints_a_table_of_rates_and_one_against_the_musdb_package(monkeypatch, capsys):
    need(shutil.which("ffmpeg") is not None and shutil.which("ffprobe") is not None, "ffmpeg")
    try:
        import musdb
    except ImportError:
        need(False, "the package musdb")
    assert musdb
    monkeypatch.setattr(data, "load_config", lambda path, overrides: load_config(path, [*TINY.split(), *overrides]))
    monkeypatch.setattr(data, "CROPS", 2)
    options = ["--seconds", "0.01", "--steps", "1", "--repeats", "1", "--cpu-time", "--device", "cpu"]
    assert data.run(options) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()
            if line.startswith("|")]  # fmt: skip
    rates, peers = rows[2:13], rows[15:]
    caches = {"synthetic": ("memory", "device")} | dict.fromkeys(
        ("stems", "musdbhq", "musdb"), ("none", "memory", "device")
    )
    assert [tuple(row[:3]) for row in rates] == [(name, kind, "0") for name in caches for kind in caches[name]]
    assert all(float(row[3]) > 0 for row in rates)
    for row in rates:
        if row[0] == "musdbhq":
            assert float(row[4]) > 0 and 0 <= float(row[5].removesuffix(" %")) <= 100
    assert len(peers) == 3 and peers[0][2] == "1"
    for row in peers[1:]:
        assert float(row[2]) == pytest.approx(float(row[1]) / float(peers[0][1]), rel=0.1, abs=1)
