//! SECCOMP.md's lists, and the filters made of them.

use linux_raw_sys::ioctl as nr;
use nix::libc::{self, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// A system call, and which values of which argument are allowed; `None`: all.
#[derive(Clone, Copy)]
pub(super) struct Allowed {
    pub(super) name: &'static str,
    pub(super) call: c_long,
    argument: Option<(u8, &'static [u64])>,
}

macro_rules! allow {
    ($call:ident) => {
        Allowed { name: stringify!($call), call: libc::$call, argument: None }
    };
    ($call:ident, $argument:expr, $values:expr) => {
        Allowed { name: stringify!($call), call: libc::$call, argument: Some(($argument, $values)) }
    };
}

const fn bits(value: libc::c_int) -> u64 {
    value as u64
}

/// A thread that uses mappings, by this crate's accesses.
pub(super) const ACCESSOR: &[Allowed] = &[
    allow!(SYS_gettid),
    // An access that met revoked memory comes back from the signal handler.
    allow!(SYS_rt_sigreturn),
    // Waiting for a region that is busy, or until it is enabled.
    allow!(SYS_futex, 1, FUTEX),
    allow!(SYS_sched_yield),
];

/// What it needs besides to resolve its own faults (`MapOptions::accessors_only`).
pub(super) const ACCESSORS_ONLY: &[Allowed] =
    &[allow!(SYS_ioctl, 1, RESOLVE), allow!(SYS_madvise, 2, &[bits(libc::MADV_POPULATE_WRITE)])];

/// What it needs besides where a device is asked whether its memory is on; the last is what the question for vfio-pci
/// itself calls.
pub(super) const ASKING: &[Allowed] =
    &[allow!(SYS_rt_sigprocmask), allow!(SYS_fstat), allow!(SYS_newfstatat), allow!(SYS_pread64)];

/// A thread of a monitor's.
pub(super) const MONITOR: &[Allowed] = &[
    allow!(SYS_read),
    allow!(SYS_epoll_pwait),
    allow!(SYS_ioctl, 1, RESOLVE),
    allow!(SYS_madvise, 2, &[bits(libc::MADV_POPULATE_WRITE)]),
    allow!(SYS_futex, 1, FUTEX),
    allow!(SYS_sched_yield),
    // A page that the file does not give is left to the kernel.
    allow!(SYS_ioctl, 1, &[nr::UFFDIO_UNREGISTER as u64]),
    // Its end: its mappings refuse, and its other threads are told.
    allow!(SYS_madvise, 2, &[bits(libc::MADV_DONTNEED), bits(libc::MADV_DONTNEED_LOCKED)]),
    allow!(SYS_fstat),
    allow!(SYS_newfstatat),
    allow!(SYS_mmap, 3, &[bits(libc::MAP_SHARED | libc::MAP_FIXED)]),
    allow!(SYS_mprotect),
    allow!(SYS_write),
];

/// A thread that calls `disable`, `enable`, `reset`.
pub(super) const OWNER: &[Allowed] = &[
    allow!(SYS_gettid),
    // No handler interrupts it where it holds what the faults of others may wait for.
    allow!(SYS_rt_sigprocmask),
    // Looks, and changes nothing.
    allow!(SYS_rt_sigaction, 1, &[0]),
    allow!(SYS_sched_yield),
    allow!(SYS_membarrier, 0, &[8]),
    allow!(SYS_futex, 1, FUTEX),
    allow!(SYS_fstat),
    allow!(SYS_newfstatat),
    allow!(SYS_mmap, 3, MAP),
    allow!(SYS_mremap),
    allow!(SYS_mprotect),
    allow!(SYS_munmap),
    allow!(SYS_msync),
    allow!(SYS_madvise, 2, DROP),
    allow!(SYS_ioctl, 1, &[nr::UFFDIO_REGISTER as u64, nr::UFFDIO_WAKE as u64]),
];

/// What it needs besides for shared regions, and all that their worker needs (with `ACCESSOR`).
pub(super) const WITHDRAW: &[Allowed] = &[
    allow!(SYS_splice),
    allow!(SYS_read),
    allow!(SYS_ftruncate),
    allow!(SYS_fallocate, 1, &[bits(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)]),
    allow!(SYS_pwrite64),
    allow!(SYS_fstat),
    allow!(SYS_newfstatat),
];

const MAP: &[u64] = &[
    bits(libc::MAP_SHARED),
    bits(libc::MAP_SHARED | libc::MAP_FIXED),
    bits(libc::MAP_PRIVATE | libc::MAP_FIXED),
    bits(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE),
];
const DROP: &[u64] = &[
    bits(libc::MADV_DONTNEED),
    bits(libc::MADV_DONTNEED_LOCKED),
    bits(libc::MADV_DONTFORK),
    bits(libc::MADV_DONTDUMP),
    bits(libc::MADV_NOHUGEPAGE),
];

const RESOLVE: &[u64] = &[nr::UFFDIO_CONTINUE as u64, nr::UFFDIO_WAKE as u64];
const FUTEX: &[u64] = &[
    bits(libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG),
    bits(libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG),
    bits(libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG),
];

/// What the test itself needs: to end, its sleeps, and what std asks before each close in a debug build.
pub(super) const OF_THE_TEST: &[Allowed] =
    &[allow!(SYS_exit_group), allow!(SYS_clock_nanosleep), allow!(SYS_fcntl, 1, &[bits(libc::F_GETFD)])];

pub(super) fn filter(lists: &[&[Allowed]]) -> BpfProgram {
    let mut rules: std::collections::BTreeMap<c_long, Vec<SeccompRule>> = std::collections::BTreeMap::new();
    let mut without_arguments = Vec::new();
    for Allowed { call, argument, .. } in lists.iter().copied().flatten() {
        let entry = rules.entry(*call).or_default();
        match argument {
            None => without_arguments.push(*call),
            Some((index, values)) => entry.extend(values.iter().map(|value| {
                let equal =
                    SeccompCondition::new(*index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *value & 0xffff_ffff);
                SeccompRule::new(vec![equal.expect("an argument's number")]).expect("one condition")
            })),
        }
    }
    for call in without_arguments {
        rules.insert(call, Vec::new());
    }
    let arch = std::env::consts::ARCH.try_into().expect("seccompiler knows this architecture");
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)
        .expect("a filter")
        .try_into()
        .expect("it compiles")
}

pub(super) fn install(program: &BpfProgram) {
    seccompiler::apply_filter(program).expect("no new privileges, one filter");
}

/// For all threads of the process.
pub(super) fn install_everywhere(program: &BpfProgram) {
    seccompiler::apply_filter_all_threads(program).expect("no new privileges, one filter");
}

/// What ends a thread of the crate's, which is the C library's.
pub(super) const END_OF_A_THREAD: &[Allowed] =
    &[allow!(SYS_rt_sigprocmask), allow!(SYS_madvise), allow!(SYS_munmap), allow!(SYS_exit)];

/// A thread that builds, maps, unmaps and drops regions after `init`: besides what an owner needs.
pub(super) const BUILDER: &[Allowed] = &[
    allow!(SYS_memfd_create),
    allow!(SYS_ftruncate),
    allow!(
        SYS_fcntl,
        1,
        &[bits(libc::F_ADD_SEALS), bits(libc::F_DUPFD_CLOEXEC), bits(libc::F_GETFL), bits(libc::F_GET_SEALS)]
    ),
    allow!(SYS_fstatfs),
    allow!(SYS_mmap, 3, &[bits(libc::MAP_SHARED)]),
    allow!(SYS_ioctl, 1, &[nr::UFFDIO_UNREGISTER as u64]),
    allow!(SYS_close),
];

/// What it needs besides for shared regions, with `WITHDRAW`.
pub(super) const BUILDER_SHARED: &[Allowed] =
    &[allow!(SYS_fallocate, 1, &[0]), allow!(SYS_madvise, 2, &[bits(libc::MADV_POPULATE_WRITE)]), allow!(SYS_fchmod)];

/// What a thread needs besides to give a device ioeventfds.
pub(super) const HOT_PLUG: &[Allowed] = &[allow!(SYS_epoll_ctl), allow!(SYS_readlink)];

/// A thread that drives a loop of ioeventfds, besides an accessor's.
pub(super) const KICKS: &[Allowed] = &[allow!(SYS_epoll_wait), allow!(SYS_preadv2)];

/// A thread by which accesses wait in stand-ins.
pub(super) const STAND_INS: &[Allowed] =
    &[allow!(SYS_read), allow!(SYS_poll), allow!(SYS_futex, 1, FUTEX), allow!(SYS_sched_yield)];

/// The thread of the shared loop of ioeventfds, besides `KICKS` and an accessor's.
pub(super) const SHARED_LOOP: &[Allowed] = &[allow!(SYS_poll)];

/// The first writable descriptor of a shared region.
pub(super) const SHARE: &[Allowed] = &[allow!(SYS_openat)];

/// The start of a thread of the crate's, which is the C library's: calls of the starting thread and of the new one.
pub(super) const START_OF_A_THREAD: &[Allowed] = &[
    allow!(SYS_clone3),
    allow!(SYS_mmap, 3, &[bits(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK)]),
    allow!(SYS_mprotect),
    allow!(SYS_rt_sigprocmask),
    allow!(SYS_rseq),
    allow!(SYS_set_robust_list),
    allow!(SYS_prctl, 0, &[bits(libc::PR_SET_NAME)]),
    allow!(SYS_sched_getaffinity),
];

/// The C library's allocator.
pub(super) const ALLOCATOR: &[Allowed] = &[
    allow!(SYS_brk),
    allow!(SYS_mmap, 3, &[bits(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)]),
    allow!(SYS_munmap),
    allow!(SYS_mremap),
];
