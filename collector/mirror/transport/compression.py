"""Compression of page contents on the wire: zstd, the same format at both ends."""

from __future__ import annotations

import numpy as np
from redirty.collector.mirror.transport.protocol import FrameError

_CODEC = "zstd"
_LEVEL = 1  # the fastest one


def compress(data: memoryview) -> memoryview:
    """Compress the contents of pages."""
    import pyarrow as pa

    codec = pa.Codec(_CODEC, compression_level=_LEVEL)
    return memoryview(codec.compress(np.frombuffer(data, np.uint8), asbytes=True))


def decompress(data: memoryview, size: int) -> memoryview:
    """Decompress page contents to exactly `size` bytes.

    Raises:
        FrameError: the data is not valid, or does not decompress to that size.
    """
    import pyarrow as pa

    try:
        return memoryview(pa.decompress(data, size, _CODEC))
    except (OSError, pa.ArrowException) as e:
        raise FrameError(f"invalid compressed pages: {e}") from None
