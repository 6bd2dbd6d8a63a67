"""Which system calls the code in bubblewrap may not make: those that make namespaces, mounts, sockets and memory.

Without it, code may make a user namespace of its own, mount a tmpfs there and fill the machine's memory past every
limit of its process; memfd, System V shared memory, attributes of files and pipes sent over a socket do the same. And
no namespace parts sockets to a virtual machine's host (AF_VSOCK), which a connection reaches past all of them.
"""

from __future__ import annotations

import errno
import platform
import struct
from typing import Final

#: linux/audit.h: what the kernel calls the machine.
_ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

#: Numbers by machine: x86_64 (arch/x86/entry/syscalls/syscall_64.tbl), aarch64 (include/uapi/asm-generic/unistd.h).
_DENIED: Final = {
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "socket": (41, 198),
    "sendmsg": (46, 211),  # descriptors in flight count for nobody
    "sendmmsg": (307, 269),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "fanotify_init": (300, 262),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}

#: x86_64's second table of calls (x32); what is at or above is refused.
_X32: Final = 0x40000000

#: linux/bpf_common.h and linux/seccomp.h.
_LOAD_WORD: Final = 0x20
_JUMP_EQUAL: Final = 0x15
_JUMP_AT_LEAST: Final = 0x35
_RETURN: Final = 0x06
_ALLOW: Final = 0x7FFF0000
_KILL_PROCESS: Final = 0x80000000
_REFUSE: Final = 0x00050000 | errno.EPERM
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4  # in struct seccomp_data


def supports(machine: str | None = None) -> bool:
    """Whether the numbers of this machine's calls are known."""
    return (machine or platform.machine()) in _ARCHITECTURES


def filter_program(machine: str | None = None) -> bytes:
    """The filter as the kernel takes it (struct sock_filter, one after another).

    Raises:
        KeyError: the machine's calls are not known.
    """
    machine = machine or platform.machine()
    column = list(_ARCHITECTURES).index(machine) if machine in _ARCHITECTURES else -1
    architecture = _ARCHITECTURES[machine]
    denied = sorted(numbers[column] for numbers in _DENIED.values())
    program = [
        (_LOAD_WORD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD_WORD, 0, 0, _NUMBER_AT),
        (_JUMP_AT_LEAST, len(denied) + 1, 0, _X32),
    ]
    for place, number in enumerate(denied):
        program.append((_JUMP_EQUAL, len(denied) - place, 0, number))
    program += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
