"""Fuzzing of all readers of recordings: whatever is damaged, a result or one line, never a traceback.

REDIRTY_FUZZ=N tries N times as many damages.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from redirty.collector.analyze import load
from redirty.collector.cli import main as cli
from redirty.collector.errors import RedirtyError
from redirty.collector.folders import Folder
from redirty.collector.metrics.frame_tracking import LastFrames, add_up
from redirty.collector.recording.physical import PhysicalFiles
from redirty.tui.readers.recording import LoadedRecording, first_rounds
from redirty.tui.readers.replay import Replay
from redirty.tui.snapshots.convergence import ConvergenceQuestion
from redirty.tui.snapshots.history import History
from redirty.tui.snapshots.snapshot import ReaderState

from tests.support.mutations import CELLS, VALUES, limited_memory, of_bytes, of_csv, of_json
from tests.support.paths import TESTS

REDIS = TESTS / "data" / "redis"
pytestmark = pytest.mark.timeout(3600)
_TIMES = int(os.environ.get("REDIRTY_FUZZ", "1"))
_LOADED = 10_000 * _TIMES  # damages that the loader of the file gets
_USED = 240 * _TIMES  # damages that all commands get
_MEMORY = 2 << 30
_ROWS = 40

LOADERS: dict[str, Callable[[Path], Any]] = {
    "meta.json": load.load_meta,
    "rounds.csv": load.load_rounds,
    "mappings.csv": load.load_mappings,
    "pages.csv": load.load_pages,
    "curve.csv": load.load_curve,
    "curves.csv": load.load_curves,
    "tlb.csv": load.load_tlb,
    "runs.csv": load.load_runs,
    "working_set.csv": load.load_working_set,
    "zeros.csv": load.load_zeros,
    "stacks.csv": load.load_stacks,
    "stacks.folded": load.load_folded_stacks,
    "events.parquet": load.load_events,
    "physical.parquet": load.load_physical,
    "frames.parquet": lambda directory: load.load_frames(directory, 1),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a recording of every kind of file, each with few rows: the start of a real one, and the rest made up."""
    directory = tmp_path_factory.mktemp("fuzz") / "small"
    directory.mkdir()
    for path in REDIS.glob("*.csv"):
        head = path.read_bytes().splitlines(keepends=True)[: _ROWS + 1]
        (directory / path.name).write_bytes(b"".join(head))
    # the ends of rounds and windows are further down
    curves = (REDIS / "curves.csv").read_bytes().splitlines(keepends=True)
    ends = [line for line in curves if line.split(b",")[1] in (b"rounds", b"1", b"2", b"4")]
    (directory / "curves.csv").write_bytes(b"".join([*curves[:20], *ends[1:60]]))
    shutil.copy(REDIS / "meta.json", directory)
    folded = (REDIS / "stacks.folded").read_bytes().splitlines(keepends=True)
    (directory / "stacks.folded").write_bytes(b"".join(folded[:_ROWS]))
    events = pq.read_table(REDIS / "events.parquet").slice(0, 300)
    pq.write_table(events, directory / "events.parquet", compression="zstd")
    frames = PhysicalFiles(Folder.hold(directory))
    found = np.array([5, 6], np.uint64), np.array([50, 60], np.uint64)
    for number in range(2):
        frames.add(number, add_up([(25957, LastFrames(), *found)]))
    frames.close()
    (directory / "zeros.csv").write_text(
        "pid,start,end,mapping_class,pages,present_pages,zero_pages\r\n"
        "25957,0x10000,0x20000,anon_private,16,12,4\r\n25957,0x20000,0x30000,file_shared,16,2,0\r\n"
    )
    for name, loader in LOADERS.items():
        assert len(loader(directory)) > 0, name
    return directory


def of_parquet(data: bytes, chance: Random) -> bytes:
    """Change some bytes of a Parquet file, or write it anew with other values, types or columns."""
    if chance.random() < 0.6:
        return of_bytes(data, chance)
    table = pq.read_table(io.BytesIO(data))
    at = chance.randrange(table.num_columns)
    name = table.column_names[at]
    column: list[Any] = table.column(at).to_pylist()
    match chance.randrange(6):
        case 0:
            table = table.drop_columns([name])
        case 1:
            table = table.append_column(name, table.column(at))
        case 2:
            table = pa.concat_tables([table, table]).slice(chance.randrange(table.num_rows))
        case 3:
            texts = [chance.choice(CELLS) for _ in column]
            table = table.set_column(at, name, pa.array(texts))
        case 4:
            values = [chance.choice((v, None, -1, 1 << 62, 0)) for v in column]
            kept = [v if isinstance(v, int) else 1 for v in values]
            table = table.set_column(at, name, pa.array(kept))
        case _:
            odd = [v for v in VALUES if isinstance(v, float)]
            floats = pa.array([chance.choice(odd) for _ in column])
            table = table.set_column(at, name, floats)
    written = io.BytesIO()
    pq.write_table(table, written, compression="zstd")
    return written.getvalue()


def damaged(name: str, data: bytes, chance: Random) -> bytes:
    """Damage a file in a way that fits its kind."""
    change = {".csv": of_csv, ".json": of_json, ".parquet": of_parquet}.get(Path(name).suffix)
    return (change or of_bytes)(data, chance)


@pytest.mark.parametrize("name", sorted(LOADERS))
def test_every_loader_returns_or_says_what_is_wrong(name: str, small: Path, tmp_path: Path) -> None:
    rec = tmp_path / "rec"
    shutil.copytree(small, rec)
    whole, refused = (small / name).read_bytes(), 0
    with limited_memory(_MEMORY), warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(_LOADED // len(LOADERS) + 1):
            content = damaged(name, whole, Random(f"{name} {seed}"))
            (rec / name).write_bytes(content)
            try:
                LOADERS[name](rec)
                if name == "rounds.csv":
                    first_rounds(rec)
            except RedirtyError as e:
                refused += 1
                assert str(rec) in str(e)
            except Exception as e:
                e.add_note(f"seed {seed}: {content[:3000]!r}")
                raise
    # a line that is not as it should be is left out of stacks.folded
    assert refused or name == "stacks.folded"


def no_number(text: str) -> None:
    raise AssertionError(f"{text} is not JSON")


COMMANDS: tuple[tuple[str, ...], ...] = (
    ("report",),
    ("report", "--json"),
    ("report", "--bandwidth", "1Gbit"),
    ("predict", "--bandwidth", "1Gbit"),
    ("predict", "--json", "--bandwidth", "1MiB"),
    ("predict", "--json", "--bandwidth", "100GB", "--policy", "qemu"),
    ("predict", "--json", "--bandwidth", "1Gbit", "--policy", "criu:3"),
    ("top",),
)


def test_every_command_answers_or_says_what_is_wrong(small: Path, tmp_path: Path) -> None:
    rec = tmp_path / "rec"
    shutil.copytree(small, rec)
    names, codes = sorted(LOADERS), [0, 0]
    with limited_memory(_MEMORY), warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(_USED):
            chance = Random(seed)
            name, words = names[seed % len(names)], chance.choice(COMMANDS)
            content = damaged(name, (small / name).read_bytes(), chance)
            (rec / name).write_bytes(content)
            try:
                codes[replayed(rec) if words == ("top",) else commanded(words, rec)] += 1
            except (Exception, SystemExit) as e:
                e.add_note(f"seed {seed}: {words}: {name}: {content[:3000]!r}")
                raise
            finally:
                (rec / name).write_bytes((small / name).read_bytes())
    assert all(codes)


def commanded(words: tuple[str, ...], directory: Path) -> int:
    """Run a command; check its output, and return its exit code."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.main([*words, str(directory)])
    assert (code, err.getvalue().count("\n")) in {(0, 0), (1, 1)}, err.getvalue()
    assert "internal error" not in err.getvalue(), err.getvalue()
    if code == 0 and "--json" in words:
        json.loads(out.getvalue(), parse_constant=no_number)
    return code


def replayed(directory: Path) -> int:
    """Read a recording as `top --replay` does, and make snapshots of its start and end; return 1 if it cannot."""
    try:
        recorded = LoadedRecording(directory)
    except RedirtyError:
        return 1
    reader = Replay(directory, ConvergenceQuestion(125e6, 0.3, "redirty"))
    reader.publish(reader.common(History(first_rounds(directory)), ReaderState.STARTING))
    for position_s in (0.0, np.inf):
        reader._position_s = position_s
        reader._publish(recorded)
    assert reader.latest is not None
    return 0
