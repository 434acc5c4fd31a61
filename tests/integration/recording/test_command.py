"""Tests of a command traced from its first instruction on."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from redirty.collector.target.command import Command

from tests.support.redirty_cli import run_redirty
from tests.support.stepped_rounds import NONE, LiveRounds, assert_same, space_of, within
from tests.support.tested_methods import METHOD_OPTIONS
from tests.support.waiting import wait_idle, wait_until

pytestmark = pytest.mark.usefixtures("tracing")

EARLY = r"""
#include <stdio.h>
#include <unistd.h>
#define PAGES 256
static volatile char area[PAGES * 4096] __attribute__((aligned(4096)));
__attribute__((constructor)) static void before_main(void)
{
	for (int i = 0; i < 40; i += 2)
		area[i * 4096] = 1;
}
int main(int argc, char **argv)
{
	FILE *out = fopen(argv[1], "w");
	for (int i = 100; i < 130; i++)
		area[i * 4096 + 5] = 2;
	fprintf(out, "%lu\n", (unsigned long)area / 4096);
	fclose(out);
	sleep(argc > 2 ? 0 : 3600);
	usleep(400000);
	return argc > 2 ? 7 : 0;
}
"""
EARLY_PAGES = np.concatenate([np.arange(0, 40, 2), np.arange(100, 130)]).astype(np.uint64)


@pytest.fixture
def early(tmp_path: Path) -> Path:
    """Build a program that writes before main() and in it, and reports where."""
    source, program = tmp_path / "early.c", tmp_path / "early"
    source.write_text(EARLY)
    subprocess.run(["gcc", "-O1", "-o", program, source], check=True)
    return program


def test_command_from_its_first_instruction(early: Path, tmp_path: Path) -> None:
    """Pages that a program writes before main() are in round 0, and no others."""
    said = tmp_path / "where"
    command = Command([str(early), str(said)])
    with LiveRounds(targets=command) as live:
        try:
            live.begin()
            wait_until(lambda: said.exists() and said.read_text().endswith("\n"), "its answer")
            wait_idle(command.pid)
            space = space_of(live.end_round(), command.pid)
            first = int(said.read_text())
            area = np.arange(first, first + 256, dtype=np.uint64)
            assert_same(within(space.dirty, area), EARLY_PAGES + np.uint64(first), "dirty")
            assert_same(within(space.missed, area), NONE, "missed")
            assert_same(within(space.redirtied, area), NONE, "re-dirtied")
            # The dynamic linker and the C library write too, from the first instruction on.
            linker = [m for m in space.mappings.items if "/ld-" in m.path and m.perms[1] == "w"]
            assert linker
            pages = np.concatenate(
                [np.arange(m.start >> 12, m.end >> 12, dtype=np.uint64) for m in linker]
            )
            assert len(within(space.dirty, pages)) > 0
        finally:
            os.kill(command.pid, signal.SIGKILL)
            os.waitpid(command.pid, 0)


def test_command_by_the_command_line(early: Path, tmp_path: Path) -> None:
    """A recording by the command line that lasts as long as its command is complete."""
    said, directory = tmp_path / "where", tmp_path / "rec"
    words = ("50ms", "-o", directory, "--", early, said, "short")
    done = run_redirty("record", *METHOD_OPTIONS, *words)
    assert done.code == 0, done.err
    first = int(said.read_text())
    with (directory / "pages.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    pages = {int(row["address"], 16) >> 12: row for row in rows}
    found = np.array(sorted(p for p in pages if first <= p < first + 256), np.uint64)
    assert_same(found, EARLY_PAGES + np.uint64(first), "pages.csv")
    meta = json.loads((directory / "meta.json").read_text())
    assert meta["complete"] is True and meta["target"]["comm"] == "early"
