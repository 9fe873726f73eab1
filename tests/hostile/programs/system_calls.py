# Calls the kernel directly: mount, unshare, ptrace, bpf, keyctl, other processes' memory.
# expect: failed WrongAnswer
# needs: walls
import ctypes, platform
def solve(x):
    libc = ctypes.CDLL(None, use_errno=True)
    calls = {"ptrace": 101, "mount": 165, "umount2": 166, "unshare": 272, "setns": 308, "bpf": 321, "keyctl": 250,
             "add_key": 248, "perf_event_open": 298, "process_vm_readv": 310, "userfaultfd": 323, "io_uring_setup": 425,
             "memfd_create": 319, "init_module": 175, "kexec_load": 246, "reboot": 169, "swapon": 167,
             "open_by_handle_at": 304, "pidfd_open": 434, "fork": 57, "vfork": 58, "execve": 59, "socket": 41,
             "shmget": 29, "mq_open": 240, "personality": 135, "name_to_handle_at": 303, "setpriority": 141}
    if platform.machine() != "x86_64": return None
    args = {"ptrace": (16, 1, 0, 0), "unshare": (0x10000000,), "socket": (2, 1, 0), "pidfd_open": (1, 0),
            "memfd_create": (b"x", 0), "shmget": (0, 4096, 0o1600), "personality": (0xFFFFFFFF,), "setpriority": (0, 1, 19)}
    for name, number in calls.items():
        ctypes.set_errno(0)
        if libc.syscall(number, *args.get(name, (0, 0, 0, 0, 0, 0))) >= 0: return "ESCAPED " + name
        if ctypes.get_errno() not in (1, 38): return f"ESCAPED {name} errno {ctypes.get_errno()}"
