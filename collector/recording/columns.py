"""Columns of a recording's files, a stable interface: columns are only ever added, at the end."""

# fmt: off
ROUNDS = (
    "round", "start_s", "duration_s", "arm_s", "present_pages", "dirty_pages", "redirtied_pages",
    "new_pages", "log_pages", "scan_pages", "missed_pages", "write_faults", "lost_events",
    "tlb_flushes", "tlb_flush_s",
    "first_touch_faults", "write_protect_faults", "cow_faults", "mkwrite_faults", "huge_faults",
    "dirty_frames", "frameless_pages", "stayed_dirty_pages", "boundary_s",
    "written_1s_pages",
    "present_once_pages", "dirty_once_pages", "redirtied_once_pages",
    "dirty_runs", "busiest_thread_s",
)
MAPPINGS = (
    "round", "pid", "start", "end", "perms", "mapping_class", "path",
    "present_pages", "dirty_pages", "redirtied_pages", "write_faults", "stayed_dirty_pages",
)
PAGES = (
    "pid", "address", "mapping_class", "rounds_dirty", "rounds_redirtied", "write_faults",
    "first_round", "last_round", "runs",
)
CURVE = ("pid", "elapsed_s", "unique_dirty_pages")
CURVES = (
    "round", "rounds", "mapping_class", "elapsed_s", "dirty_pages", "redirtied_pages", "raced_pages",
    "dirty_once_pages", "redirtied_once_pages",
)
TLB = (
    "round", "pid", "reason", "flushes", "pages", "time_s", "full_flushes", "ranges", "cpus",
    "arm_flushes", "arm_pages", "arm_time_s", "arm_full_flushes", "arm_ranges", "arm_cpus",
)
# fmt: on
RUNS = ("pid", "rounds_from", "rounds_to", "runs", "runs_going_on")
WORKING_SET = ("first_round", "rounds", "pid", "dirty_pages")
STACKS = ("pid", "stack_id", "pages", "stack")
ZEROS = (
    "pid",
    "start",
    "end",
    "mapping_class",
    "pages",
    "present_pages",
    "zero_pages",
    "unread_pages",
    "once_pages",
    "present_once_pages",
    "zero_once_pages",
)
EVENTS = ("time_s", "pid", "tid", "address", "ip", "kind", "stack_id")

SCHEMA = 1
