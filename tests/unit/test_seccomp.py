"""The filter of system calls, run instruction by instruction as the kernel does, for machines of all kinds."""

from __future__ import annotations

import errno
import struct

import pytest

from streamer.video.isolation.confinement import NOT_CONFINED, landlock_attributes, seccomp_program

PID = 4711
ALLOW, KILL = 0x7FFF0000, 0x80000000
DENY = 0x00050000 | errno.EPERM
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
THREAD = 0x3D0F00
FORK = 17  # SIGCHLD


def verdict(machine: str, number: int, *arguments: int, arch: int | None = None) -> int:
    """Return what the filter returns for a call."""
    given = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=iIQ6Q", number, ARCH[machine] if arch is None else arch, 0, *given)
    code = list(struct.iter_unpack("=HBBI", seccomp_program(machine, PID)))
    accumulator = at = 0
    while True:
        operation, if_true, if_false, k = code[at]
        at += 1
        match operation:
            case 0x20:  # BPF_LD | BPF_W | BPF_ABS
                (accumulator,) = struct.unpack_from("=I", data, k)
            case 0x54:  # BPF_ALU | BPF_AND | BPF_K
                accumulator &= k
            case 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
                at += if_true if accumulator == k else if_false
            case 0x06:  # BPF_RET | BPF_K
                return int(k)
            case _:
                pytest.fail(f"no instruction of the filter: {operation:#x}")


@pytest.mark.parametrize("machine", ARCH)
def test_every_number_has_a_verdict_and_few_are_allowed(machine: str) -> None:
    allowed = [number for number in range(600) if verdict(machine, number, PID) == ALLOW]
    assert len(allowed) < 44
    assert {verdict(machine, number, PID) for number in range(600)} == {ALLOW, DENY}


@pytest.mark.parametrize(
    ("name", "x86_64", "aarch64"),
    [
        ("open", 2, None), ("openat", 257, 56), ("openat2", 437, 437), ("stat", 4, None), ("newfstatat", 262, 79),
        ("statx", 332, 291), ("fstat", 5, 80), ("socket", 41, 198), ("connect", 42, 203), ("sendmsg", 46, 211),
        ("fork", 57, None), ("vfork", 58, None), ("execve", 59, 221), ("execveat", 322, 281), ("ptrace", 101, 117),
        ("process_vm_writev", 311, 271), ("io_uring_setup", 425, 425), ("memfd_create", 319, 279), ("tkill", 200, 130),
        ("pidfd_send_signal", 424, 424), ("unshare", 272, 97), ("ioctl", 16, 29), ("bpf", 321, 280),
        ("seccomp", 317, 277), ("dup", 32, 23), ("setrlimit", 160, 164), ("personality", 135, 92),
    ],
)  # fmt: skip
def test_system_calls_that_reach_beyond_the_process_are_denied(name: str, x86_64: int, aarch64: int | None) -> None:
    assert name
    assert verdict("x86_64", x86_64, 0) == DENY
    if aarch64 is not None:
        assert verdict("aarch64", aarch64, 0) == DENY


@pytest.mark.parametrize(("machine", "clone", "clone3"), [("x86_64", 56, 435), ("aarch64", 220, 435)])
def test_neither_processes_nor_threads_can_be_started(machine: str, clone: int, clone3: int) -> None:
    for flags in (THREAD, THREAD | 0x400000, FORK, 0, THREAD | 0x04000000, THREAD | FORK):
        assert verdict(machine, clone, flags) == DENY
    assert verdict(machine, clone3) == DENY


@pytest.mark.parametrize(("machine", "exits"), [("x86_64", (60, 231)), ("aarch64", (93, 94))])
def test_no_exit_code_says_that_the_process_was_not_confined(machine: str, exits: tuple[int, int]) -> None:
    """The kernel tells the parent the lowest eight bits."""
    for number in exits:
        for code in (*range(1 << 9), 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 1 << 32 | NOT_CONFINED):
            claims = code & NOT_CONFINED != 0
            assert verdict(machine, number, code) == (DENY if claims else ALLOW)
    assert NOT_CONFINED < 1 << 8


@pytest.mark.parametrize(("machine", "kill", "tgkill"), [("x86_64", 62, 234), ("aarch64", 129, 131)])
def test_a_decoder_may_send_signals_only_to_itself(machine: str, kill: int, tgkill: int) -> None:
    for number in (kill, tgkill):
        assert verdict(machine, number, PID, 9) == ALLOW
        for other in (0, 1, PID + 1, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 1 << 64 - PID.bit_length()):
            assert verdict(machine, number, other, 9) == DENY


@pytest.mark.parametrize(("machine", "mmap", "mprotect"), [("x86_64", 9, 10), ("aarch64", 222, 226)])
def test_no_memory_may_be_made_executable(machine: str, mmap: int, mprotect: int) -> None:
    for number in (mmap, mprotect):
        assert [verdict(machine, number, 0, 4096, protection) for protection in (0, 1, 3)] == [ALLOW] * 3
        assert [verdict(machine, number, 0, 4096, protection) for protection in (4, 5, 7)] == [DENY] * 3


def test_fcntl_prctl_prlimit_and_sendto_are_allowed_only_with_harmless_arguments() -> None:
    fcntl, prctl, prlimit, sendto = 72, 157, 302, 44
    assert [verdict("x86_64", fcntl, 0, command) for command in (1, 3, 1030)] == [ALLOW] * 3
    assert [verdict("x86_64", fcntl, 0, command) for command in (4, 8, 10, 1024, 1033)] == [DENY] * 5
    assert verdict("x86_64", prctl, 15) == ALLOW
    assert [verdict("x86_64", prctl, option) for option in (1, 4, 22, 38)] == [DENY] * 4
    assert verdict("x86_64", prlimit, 0, 7, 0, 1) == ALLOW
    assert [verdict("x86_64", prlimit, *given) for given in ((1, 7), (0, 7, 1), (0, 7, 1 << 32))] == [DENY] * 3
    assert verdict("x86_64", sendto, 3, 1, 1) == ALLOW
    assert [verdict("x86_64", sendto, 3, 1, 1, 0, address) for address in (1, 1 << 32)] == [DENY] * 2
    out_of_band, more, fast_open = 1, 0x8000, 0x20000000
    assert [verdict("x86_64", sendto, 3, 1, 1, flag) for flag in (out_of_band, more, fast_open)] == [DENY] * 3


def test_a_system_call_of_another_architecture_kills_the_process() -> None:
    read, x32 = 0, 0x40000000
    assert verdict("x86_64", read) == ALLOW
    assert verdict("x86_64", read, arch=0x40000003) == KILL  # of 32 bits
    assert verdict("x86_64", read | x32) == DENY


def test_an_architecture_with_unknown_call_numbers_has_no_filter() -> None:
    with pytest.raises(KeyError, match="riscv64"):
        seccomp_program("riscv64", PID)


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (1, [(1 << 13) - 1]),
        (2, [(1 << 14) - 1]),
        (3, [(1 << 15) - 1]),
        (4, [(1 << 15) - 1, 3]),
        (5, [(1 << 16) - 1, 3]),
        (6, [(1 << 16) - 1, 3, 3]),
        (7, [(1 << 16) - 1, 3, 3]),
        (99, [(1 << 16) - 1, 3, 3]),
    ],
)
def test_landlock_is_asked_for_what_its_version_knows(version: int, words: list[int]) -> None:
    """Of more the kernel would take nothing."""
    assert landlock_attributes(version) == struct.pack(f"={len(words)}Q", *words)
