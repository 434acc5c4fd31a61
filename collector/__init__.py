"""The collector: BPF maps and page-table scans in, dirty bitmaps, rates and recordings out."""

VERSION = "0.1.0"
