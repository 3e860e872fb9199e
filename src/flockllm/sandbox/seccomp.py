"""The system calls that own model code may not make, as a seccomp filter.

Namespaces, mounts, keys, tracing, kernel modules, BPF, io_uring, time and memory that no limit
counts are refused; so are sockets other than Unix and IP ones, and calls newer than this list.
Formats: classic BPF (linux/filter.h, linux/seccomp.h) and the JSON of containers.
"""

import errno
import platform
import struct
from typing import Any

from flockllm.errors import SandboxError

CALLS: dict[str, tuple[int, int]] = {
    "acct": (163, 89), "add_key": (248, 217), "adjtimex": (159, 171), "bpf": (321, 280),
    "chroot": (161, 51), "clock_adjtime": (305, 266), "clock_settime": (227, 112),
    "delete_module": (176, 106), "fanotify_init": (300, 262), "finit_module": (313, 273),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fsopen": (430, 430), "fspick": (433, 433),
    "init_module": (175, 105), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425), "kcmp": (312, 272), "kexec_file_load": (320, 294),
    "kexec_load": (246, 104), "keyctl": (250, 219), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "migrate_pages": (256, 238), "mount": (165, 40),
    "mount_setattr": (442, 442), "move_mount": (429, 429), "move_pages": (279, 239),
    "mq_open": (240, 180), "msgget": (68, 186), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "open_tree": (428, 428), "perf_event_open": (298, 241),
    "personality": (135, 92), "pidfd_getfd": (438, 438), "pivot_root": (155, 41),
    "process_madvise": (440, 440), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "ptrace": (101, 117), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "reboot": (169, 142), "request_key": (249, 218),
    "semget": (64, 190), "setdomainname": (171, 162), "sethostname": (170, 161),
    "setns": (308, 268), "settimeofday": (164, 170), "shmat": (30, 196), "shmget": (29, 194),
    "swapoff": (168, 225), "swapon": (167, 224), "syslog": (103, 116), "umount2": (166, 39),
    "unshare": (272, 97), "userfaultfd": (323, 282), "vhangup": (153, 58),
}  # fmt: skip
"""Refused with EPERM; numbers on x86_64 and aarch64."""

X86_ONLY = {"ioperm": 173, "iopl": 172, "modify_ldt": 154, "uselib": 134, "create_module": 174}
CLONE, SOCKET, SOCKETPAIR, IOCTL = (56, 220), (41, 198), (53, 199), (16, 29)
CLONE3 = 435
"""Its flags lie in memory, where a filter cannot look: ENOSYS makes the C library use `clone`."""

NEWEST = 462
NEW_NAMESPACES = 0x7E020000
"""`CLONE_NEWNS | …CGROUP | …UTS | …IPC | …USER | …PID | …NET`."""

FAMILIES = (1, 2, 10)
"""AF_UNIX, AF_INET, AF_INET6: within a network namespace that has nothing but a loopback."""

AF_MAX = 64
"""Above all address families that there are."""

TERMINAL_INPUT = (0x5412, 0x541C)
"""TIOCSTI, TIOCLINUX: typing into the terminal that the node runs in."""

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine → column of the numbers above, and its AUDIT_ARCH."""

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT, SECOND_ARGUMENT = 0, 4, 16, 24
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000


def program(machine: str = platform.machine()) -> bytes:
    """The filter, as `bwrap --seccomp` wants it.

    Raises:
        SandboxError: the system calls of this machine are not known.
    """
    if machine not in MACHINES:
        raise SandboxError(f"no system call filter for {machine}; use podman, or another machine")
    column, architecture = MACHINES[machine]
    refused = {numbers[column]: errno.EPERM for numbers in CALLS.values()}
    if machine == "x86_64":
        refused |= dict.fromkeys(X86_ONLY.values(), errno.EPERM)
    refused |= {CLONE3: errno.ENOSYS, CALLS["memfd_create"][column]: errno.ENOSYS}

    code = [
        _op(LOAD, ARCHITECTURE),
        _op(EQUAL, architecture, 1, 0),
        _op(RETURN, KILL),
        _op(LOAD, NUMBER),
        _op(AT_LEAST, NEWEST + 1, 0, 1),  # also the x32 calls, which have a high bit set
        _op(RETURN, REFUSE | errno.ENOSYS),
    ]
    for number, error in sorted(refused.items()):
        code += [_op(EQUAL, number, 0, 1), _op(RETURN, REFUSE | error)]
    code += [
        _op(EQUAL, CLONE[column], 0, 4),
        _op(LOAD, FIRST_ARGUMENT),
        _op(ANY_BIT, NEW_NAMESPACES, 0, 1),
        _op(RETURN, REFUSE | errno.EPERM),
        _op(RETURN, ALLOW),
    ]
    for call in (SOCKET, SOCKETPAIR):
        code += [
            _op(EQUAL, call[column], 0, len(FAMILIES) + 3),
            _op(LOAD, FIRST_ARGUMENT),
            *(_op(EQUAL, f, len(FAMILIES) - i, 0) for i, f in enumerate(FAMILIES)),
            _op(RETURN, REFUSE | errno.EAFNOSUPPORT),
            _op(RETURN, ALLOW),
        ]
    code += [
        _op(EQUAL, IOCTL[column], 0, 4),
        _op(LOAD, SECOND_ARGUMENT),
        _op(EQUAL, TERMINAL_INPUT[0], 1, 0),
        _op(EQUAL, TERMINAL_INPUT[1], 0, 1),
        _op(RETURN, REFUSE | errno.EPERM),
        _op(RETURN, ALLOW),
    ]
    return b"".join(code)


def profile() -> dict[str, Any]:
    """The same rules as the JSON that podman and docker take (`--security-opt seccomp=FILE`).

    That format has no "not one of these" for an argument: forbidden values stand one by one.
    """
    refuse = {"action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM}
    missing = refuse | {"errnoRet": errno.ENOSYS}
    namespaces = [bit for bit in (1 << n for n in range(32)) if bit & NEW_NAMESPACES]
    families = [n for n in range(AF_MAX) if n not in FAMILIES]

    def when(index: int, operation: str, value: int, masked: int = 0) -> list[dict[str, Any]]:
        return [{"index": index, "op": operation, "value": value, "valueTwo": masked}]

    rules = [
        {"names": sorted((CALLS.keys() - {"memfd_create"}) | X86_ONLY.keys()), **refuse},
        {"names": ["clone3", "memfd_create"], **missing},
        *(
            {"names": ["clone"], "args": when(0, "SCMP_CMP_MASKED_EQ", bit, bit), **refuse}
            for bit in namespaces
        ),
        *(
            {"names": ["socket", "socketpair"], "args": when(0, "SCMP_CMP_EQ", n), **refuse}
            for n in families
        ),
        {"names": ["socket"], "args": when(0, "SCMP_CMP_GE", AF_MAX), **refuse},
        *(
            {"names": ["ioctl"], "args": when(1, "SCMP_CMP_EQ", request), **refuse}
            for request in TERMINAL_INPUT
        ),
    ]
    machines = ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"]
    return {"defaultAction": "SCMP_ACT_ALLOW", "architectures": machines, "syscalls": rules}


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
