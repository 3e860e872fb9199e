"""Connects to a port inside a sandbox, whose network nothing else reaches.

Run as a program of its own, because a process with threads may not change its user namespace:
`python -I -S enter.py PID PORT SECONDS FD` enters the network namespace of process PID, connects
to its loopback, and hands the connection over through the Unix socket FD. A connection stays in the
namespace that it was made in, whoever holds it.
"""

import ctypes
import fcntl
import os
import select
import socket
import sys
import time

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
NS_GET_USERNS = 0xB701
"""ioctl: the user namespace that owns a namespace (ioctl_ns(2))."""


def enter(pid: int) -> None:
    """Moves this process into the network namespace of `pid`."""
    libc = ctypes.CDLL(None, use_errno=True)

    def setns(fd: int, kind: int) -> None:
        if libc.setns(fd, kind):
            raise OSError(ctypes.get_errno(), "cannot enter the sandbox's namespaces")

    network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    owner = fcntl.ioctl(network, NS_GET_USERNS)
    if not os.path.samestat(os.fstat(owner), os.stat("/proc/self/ns/user")):
        setns(owner, CLONE_NEWUSER)
    setns(network, CLONE_NEWNET)


def connect(pid: int, port: int, seconds: float) -> socket.socket:
    """Waits until something listens on the loopback's `port`, while `pid` runs."""
    until = time.monotonic() + seconds
    lives = os.pidfd_open(pid)
    try:
        while True:
            try:
                return socket.create_connection(("127.0.0.1", port), timeout=1)
            except OSError:
                if time.monotonic() > until:
                    raise
            if select.select([lives], [], [], 0.02)[0]:
                raise ConnectionError("it ended before it listened")
    finally:
        os.close(lives)


if __name__ == "__main__":
    process, number, patience, channel = sys.argv[1:]
    enter(int(process))
    seconds = float(patience)
    with (
        connect(int(process), int(number), seconds) as found,
        socket.socket(fileno=int(channel)) as back,
    ):
        socket.send_fds(back, [b"."], [found.fileno()])
