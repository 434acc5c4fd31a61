"""What the other end has, and what it lacks, brought up to date at each boundary between rounds.

A page is pending when it was written since it was copied, or was never copied. It stays so until it was
sent after the arm of its round.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from redirty.collector.errors import RESOURCE_ERRNOS, GoneError, RedirtyError, why
from redirty.collector.linux.maps import Mappings
from redirty.collector.linux.process_memory import PAGE
from redirty.collector.mirror.image.commit import PlacedMapping, PlacedProcess
from redirty.collector.mirror.image.image import FILE, SPACE
from redirty.collector.mirror.sources.files import Files, FileSource
from redirty.collector.mirror.sources.source import Source
from redirty.collector.mirror.sources.spaces import SpaceSource
from redirty.collector.mirror.sources.vmas import Key, pages_of
from redirty.collector.mirror.transport.sink import PageSink
from redirty.collector.pageset import PageSet, empty, page_numbers, page_runs, runs_of
from redirty.collector.tracking.rounds import Round

log = logging.getLogger(__name__)

_ROUNDS = 3  # that are remembered for each source
_SHIFT = 12


class MirrorState:
    """spaces: by the recorder's number. doubtful: files that may have been written unseen; unseen: spaces,
    by the recorder's number, whose memory may have been (not armed as a whole, or pinned). part_of: by the
    recorder's number, which mappings are mirrored; None: all. saved_s: what the last boundary would have
    taken longer if the target had stood still."""

    def __init__(
        self,
        sink: PageSink,
        *,
        scan: bool,
        part_of: Callable[[int], Mappings | None] = lambda number: None,
    ) -> None:
        self._sink = sink
        self._scan = scan
        self._part_of = part_of
        self._numbers = itertools.count(1)
        self.spaces: dict[int, SpaceSource] = {}
        self.files = Files()
        self.doubtful: set[Key] = set()
        self.unseen: set[int] = set()
        self.saved_s = 0.0
        self._all_doubtful = False
        self._looks_s: dict[int, float] = {}

    def sources(self) -> list[Source]:
        """All of them, in the order of their numbers."""
        found: list[Source] = [*self.spaces.values(), *self.files.by_key.values()]
        return sorted(found, key=lambda s: s.number)

    # ---- boundaries ----

    def follow(
        self, living: Mapping[int, int], result: Round | None, *, last: bool = False
    ) -> None:
        """After an arm: living is process by number of its space, result the round that ended with it.
        last: the target stands still; what may have changed unseen is read again.

        Errors: RedirtyError.
        """
        try:
            self._follow(living, result, last=last)
        except OSError as e:
            raise RedirtyError(
                f"the target could not be looked at: {why(e)}; there is no mirror"
            ) from None

    def _follow(self, living: Mapping[int, int], result: Round | None, *, last: bool) -> None:
        self._meet(living)
        self.saved_s = 0.0
        for number, space in self.spaces.items():
            space.look(self._part_of(number))
        self.files.follow(self.spaces.values(), self._numbers)
        for file in self.files.by_key.values():
            if not file.declared:
                self._sink.declare(file.number, FILE)
                file.declared = True
        dirty = {} if result is None else {s.space: s.dirty for s in result.spaces}
        in_files: dict[Key, PageSet] = {}
        for number, pages in dirty.items():
            writer = self.spaces.get(number)
            if writer is None:  # born and gone within the round
                self._all_doubtful |= len(pages) > 0
                continue
            found, unknown = self.files.dirtied(writer, page_numbers(pages))
            self._all_doubtful |= unknown
            for key, more in found.items():
                in_files[key] = in_files.get(key, empty()) | more
        for number, space in list(self.spaces.items()):
            try:
                changed = dirty.get(number, empty())
                whole = last or result is None
                wanted = self._wanted(number, space, changed, whole=whole)
                if last and number in self.unseen:
                    changed = wanted
                self._bring_up(space, wanted, changed)
            except GoneError:
                self._forget(number)
        for key, file in self.files.by_key.items():
            self._bring_up_file(file, in_files.get(key, empty()), last=last)
        if result is None:
            for source in self.sources():
                source.dirty = []

    def _wanted(self, number: int, space: SpaceSource, changed: PageSet, *, whole: bool) -> PageSet:
        """Asking the page tables takes 100 ns a page: only when there may be others than before. What came
        or went otherwise (madvise, huge pages) is found when the target stands still.

        Errors: GoneError.
        """
        known = space.have | space.pending
        if not whole and space.vmas == space.before and len(changed - known) == 0:
            self.saved_s += self._looks_s.get(number, 0.0)
            return known
        begun = time.monotonic()
        found = space.wanted()
        self._looks_s[number] = time.monotonic() - begun
        return found

    def _meet(self, living: Mapping[int, int]) -> None:
        for number in self.spaces.keys() - living.keys():
            self._forget(number)
        for number, pid in living.items():
            if number not in self.spaces:
                try:
                    space = SpaceSource(next(self._numbers), pid, scan=self._scan)
                except OSError as e:
                    if e.errno in RESOURCE_ERRNOS:
                        raise
                    continue  # it ended meanwhile
                self._sink.declare(space.number, SPACE)
                self.spaces[number] = space

    def _forget(self, number: int) -> None:
        space = self.spaces.pop(number)
        self._looks_s.pop(number, None)
        starts, ends = page_runs(space.have)
        self._sink.zero(space.number, starts, ends - starts)
        space.close()

    def _bring_up(self, source: Source, wanted: PageSet, dirty: PageSet) -> None:
        gone = source.have - wanted
        if len(gone.keys):
            numbers = page_numbers(gone)
            self._sink.zero(source.number, *runs_of(numbers))
            source.sent.drop(numbers)
            source.have = source.have - gone
        dirty = dirty & wanted
        source.pending = (source.pending & wanted) | dirty | (wanted - source.have)
        source.dirty = [dirty, *source.dirty[: _ROUNDS - 1]]

    def _bring_up_file(self, file: FileSource, dirty: PageSet, *, last: bool) -> None:
        try:
            wanted = file.wanted()
            first = len(file.have.keys) == 0
            if first or (last and self._may_have_changed(file)):
                file.settle()
                if not first:
                    dirty = dirty | wanted
            new = wanted - file.have
            if len(new.keys):
                file.have = file.have | file.holes(new)
        except OSError as e:
            log.info("cannot look at %s: %s", file.path, e)
            return
        self._bring_up(file, wanted, dirty)

    def _may_have_changed(self, file: FileSource) -> bool:
        if file.changed_outside() or file.key in self.doubtful:
            return True
        return self._all_doubtful and file.writable

    # ---- questions ----

    def left_bytes(self) -> int:
        """All that is pending."""
        return sum(len(s.pending) for s in self.sources()) * PAGE

    def fresh_pages(self) -> int:
        """Dirty in the last round and not in the one before."""
        dirty = [s.dirty for s in self.sources() if s.dirty]
        return sum(len(d[0] - d[1]) if len(d) > 1 else len(d[0]) for d in dirty)

    def unsettled_bytes(self) -> int:
        """What is to be read again while the target stands still, beside what is pending."""
        files = self.files.by_key.values()
        pages = sum(len(f.have) for f in files if self._may_have_changed(f))
        pages += sum(len(s.have) for n, s in self.spaces.items() if n in self.unseen)
        return pages * PAGE

    def lost(self, pages: Iterable[tuple[int, PageSet]]) -> None:
        """Pages that were sent and not acknowledged are dirty again."""
        by_number = {s.number: s for s in self.sources()}
        for number, some in pages:
            source = by_number.get(number)
            if source is not None:
                source.sent.forget(page_numbers(some))
                source.have = source.have - some
                source.pending = source.pending | some

    def parts(self) -> list[tuple[Source, PageSet]]:
        """Everything the mirror should have, for a digest. Errors: GoneError."""
        found: list[tuple[Source, PageSet]] = []
        for source in self.sources():
            assert isinstance(source, SpaceSource | FileSource)
            found.append((source, source.wanted()))
        return found

    def unmirrored(self) -> list[dict[str, object]]:
        """Mappings whose contents cannot be read: devices, rings of the kernel's."""
        return [
            {"pid": s.pid, "start": f"{v.start:#x}", "end": f"{v.end:#x}", "path": v.path}
            for s in self.spaces.values()
            for v in s.vmas
            if v.shared and self.files.behind(s, v) is None and v not in s.direct
        ]

    def placed(self, notes: Callable[[SpaceSource], bytes]) -> Sequence[PlacedProcess]:
        """Where everything belongs."""
        return [self._place(space, notes(space)) for space in self.spaces.values()]

    def _place(self, space: SpaceSource, notes: bytes) -> PlacedProcess:
        mappings, private = [], []
        for vma in space.vmas:
            file = self.files.behind(space, vma)
            place = PlacedMapping(vma.start >> _SHIFT, vma.end >> _SHIFT, vma.perms, vma.path)
            if file is not None:
                first, _ = vma.pages_of_file()
                place = PlacedMapping(
                    place.first, place.end, vma.perms, vma.path, file.number, first
                )
                if not vma.shared:
                    private.append(vma)
            mappings.append(place)
        zero = space.sent.zero_among(space.have & pages_of(private))
        runs = zip(*(a.tolist() for a in runs_of(zero)), strict=True)
        return PlacedProcess(space.pid, space.number, tuple(mappings), notes, tuple(runs))

    def close(self) -> None:
        """Lets go of everything."""
        for space in self.spaces.values():
            space.close()
        self.files.close()
