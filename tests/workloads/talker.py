"""A program with connections: it keeps rewriting its memory, sends ascending numbers to whoever
connects, and accepts all connections. It prints its port. Usage: talker.py MIB
"""

import mmap
import socket
import sys
import threading
import time

PAUSE_S = 0.02


def main() -> None:
    """Run until killed."""
    listener = socket.create_server(("", 0), backlog=512)
    print(listener.getsockname()[1], flush=True)
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    memory = mmap.mmap(-1, int(sys.argv[1]) << 20)
    number = 0
    while True:
        number += 1
        for at in range(0, len(memory), mmap.PAGESIZE):
            memory[at : at + 8] = number.to_bytes(8, "little")
        time.sleep(PAUSE_S)


def serve(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=send_numbers, args=(connection,), daemon=True).start()


def send_numbers(connection: socket.socket) -> None:
    number = 0
    try:
        while True:
            connection.sendall(number.to_bytes(8, "little"))
            number += 1
            time.sleep(PAUSE_S)
    except OSError:
        connection.close()


if __name__ == "__main__":
    main()
