//! SECCOMP.md's lists are enough: each kind of thread does its work under a filter that allows them and nothing else.
#![expect(unsafe_code, reason = "the child ends without running destructors, which its filter would forbid")]

use crate::support::{self, child};
use linux_raw_sys::ioctl as nr;
use nix::errno::Errno;
use nix::libc::{self, c_long};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::ftruncate;
use revocable_mmio::signal::SignalError;
use revocable_mmio::{
    AccessError, Backing, MapOptions, Mapping, Monitor, OnDisabled, Prot, Region, RevokeError, Strategy, Support,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

/// A system call, and which values of which argument are allowed; `None`: all.
#[derive(Clone, Copy)]
struct Allowed {
    name: &'static str,
    call: c_long,
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
const ACCESSOR: &[Allowed] = &[
    allow!(SYS_gettid),
    // An access that met revoked memory comes back from the signal handler.
    allow!(SYS_rt_sigreturn),
    // Waiting for a region that is busy, or until it is enabled.
    allow!(SYS_futex, 1, FUTEX),
    allow!(SYS_sched_yield),
];

/// What it needs besides to resolve its own faults (`MapOptions::accessors_only`).
const ACCESSORS_ONLY: &[Allowed] =
    &[allow!(SYS_ioctl, 1, RESOLVE), allow!(SYS_madvise, 2, &[bits(libc::MADV_POPULATE_WRITE)])];

/// A thread of a monitor's.
const MONITOR: &[Allowed] = &[
    allow!(SYS_read),
    allow!(SYS_epoll_wait),
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
const OWNER: &[Allowed] = &[
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

const MAP: &[u64] = &[
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
const OF_THE_TEST: &[Allowed] =
    &[allow!(SYS_exit_group), allow!(SYS_clock_nanosleep), allow!(SYS_fcntl, 1, &[bits(libc::F_GETFD)])];

fn filter(lists: &[&[Allowed]]) -> BpfProgram {
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

fn install(program: &BpfProgram) {
    seccompiler::apply_filter(program).expect("no new privileges, one filter");
}

/// What ends a thread, of std's and of the C library's.
const END_OF_A_THREAD: &[Allowed] =
    &[allow!(SYS_sigaltstack), allow!(SYS_rt_sigprocmask), allow!(SYS_madvise), allow!(SYS_munmap), allow!(SYS_exit)];

#[derive(Default)]
struct Work {
    regions: Vec<Region>,
    mappings: Vec<Mapping>,
    own: Vec<Mapping>,
    /// Nobody accesses them.
    split: Vec<Mapping>,
}

fn split(mapping: &Mapping) {
    mapping.protect(0..4096, Prot::Read).expect("the mapping's rights can be changed");
}

/// A mapping whose second half the file does not have any more.
fn truncated(strategy: Strategy, monitor: &Monitor) -> (Region, Mapping) {
    let file = memfd_create(c"truncated", MFdFlags::MFD_CLOEXEC).expect("a memfd");
    ftruncate(&file, 1 << 16).expect("it can grow");
    let backing = Backing::file(file.as_fd(), 0).expect("a descriptor");
    let region = Region::builder(1 << 16).backing(backing).strategy(strategy).monitor(monitor.clone());
    let region = region.build().expect("a region");
    let mapping = region.map(MapOptions::new()).expect("it maps");
    ftruncate(&file, 1 << 15).expect("it can shrink");
    (region, mapping)
}

fn work(monitor: &Monitor) -> Work {
    let mut work = Work::default();
    for strategy in [Strategy::Zap, Strategy::Detach, Strategy::Replace] {
        for policy in [OnDisabled::Sigbus, OnDisabled::AllOnes, OnDisabled::Block] {
            let region =
                Region::builder(1 << 18).strategy(strategy).monitor(monitor.clone()).build().expect("a region");
            work.mappings.push(region.map(MapOptions::new().on_disabled(policy)).expect("it maps"));
            work.split.push(region.map(MapOptions::new().on_disabled(policy)).expect("it maps"));
            if strategy == Strategy::Zap && policy == OnDisabled::Sigbus {
                work.own.push(region.map(MapOptions::new().accessors_only()).expect("it maps"));
            }
            work.regions.push(region);
        }
        let (region, mapping) = truncated(strategy, monitor);
        work.mappings.push(mapping);
        work.regions.push(region);
    }
    work.split.iter().for_each(split);
    work
}

/// Loads and stores everywhere, whatever comes of it.
fn access(mappings: &[Mapping], round: u64) -> u64 {
    let mut done = 0;
    for mapping in mappings {
        let at = (usize::try_from(round).unwrap_or(0) * 4096) % mapping.len();
        for result in [mapping.read::<u64>(at).map(drop), mapping.write::<u64>(at + 8, round)] {
            match result {
                Ok(()) => done += 1,
                Err(AccessError::Disabled { .. } | AccessError::NoMemory { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
    }
    done
}

fn exit(code: i32) -> ! {
    // SAFETY: ends the process at once; nothing of it is needed any more.
    unsafe { libc::_exit(code) }
}

#[test]
fn every_kind_of_thread_works_under_its_own_filter() {
    support::start();
    require!(Support::current().userfaultfd(), "no userfaultfd");
    let ended = child::alone(|| {
        // Start-up: everything is opened, mapped and tried once.
        let monitor = Monitor::with_threads(1).expect("a userfaultfd");
        let program = filter(&[MONITOR, OF_THE_TEST]);
        monitor.on_thread_start(move || install(&program));
        let work = Arc::new(work(&monitor));
        let accesses = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let ready = Arc::new(Barrier::new(4));
        for own in [false, false, true] {
            let (work, accesses, stop, ready) =
                (Arc::clone(&work), Arc::clone(&accesses), Arc::clone(&stop), Arc::clone(&ready));
            // Where accesses don't recover, a file that may shrink is asked for its memory.
            let more = own || cfg!(revocable_portable);
            let lists: &[&[Allowed]] =
                if more { &[ACCESSOR, ACCESSORS_ONLY, OF_THE_TEST] } else { &[ACCESSOR, OF_THE_TEST] };
            let program = filter(lists);
            thread::spawn(move || {
                let mappings = if own { &work.own } else { &work.mappings };
                // The first access of a thread allocates its slot.
                access(mappings, 0);
                ready.wait();
                install(&program);
                for round in 1.. {
                    accesses.fetch_add(access(mappings, round), Ordering::Relaxed);
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
                loop {
                    thread::park();
                }
            });
        }
        let program = filter(&[OWNER, OF_THE_TEST]);
        ready.wait();
        install(&program);
        let since = Instant::now();
        let mut cycles = 0;
        while cycles < 200 || accesses.load(Ordering::Relaxed) < 10_000 {
            for region in &work.regions {
                if !region.disable().is_ok_and(|did| did) {
                    exit(2);
                }
            }
            thread::sleep(Duration::from_micros(50));
            for region in &work.regions {
                if !region.enable().is_ok_and(|did| did) {
                    exit(3);
                }
            }
            if cycles % 10 == 0 && work.regions.iter().any(|region| region.reset(|_| ()).is_err()) {
                exit(4);
            }
            cycles += 1;
            if since.elapsed() > Duration::from_secs(30) {
                exit(5);
            }
        }
        stop.store(true, Ordering::Relaxed);
        let degraded = work.regions.iter().any(|region| region.stats().degraded > 0);
        exit(if degraded { 6 } else { 0 })
    });
    assert_ne!(ended.by_signal(), Some(libc::SIGSYS), "a system call is missing in SECCOMP.md");
    ended.well();
}

#[test]
fn a_monitor_fails_closed_under_its_filter() {
    support::start();
    require!(Support::current().userfaultfd(), "no userfaultfd");
    let ended = child::alone(|| {
        let threads = || std::fs::read_dir("/proc/self/task").expect("there is /proc").count();
        // Those that stay, once there are regions and some that wait.
        let first = Region::builder(4096).strategy(Strategy::Detach).build().expect("a region");
        drop(first.map(MapOptions::new().on_disabled(OnDisabled::Block)).expect("it maps"));
        let before = threads();
        let monitor = Monitor::with_threads(1).expect("a userfaultfd");
        let mapped = Arc::new(Barrier::new(2));
        let wait = Arc::clone(&mapped);
        let program = filter(&[MONITOR, OF_THE_TEST, END_OF_A_THREAD]);
        monitor.on_thread_start(move || {
            wait.wait();
            install(&program);
            // Not `panic!`, whose message would need calls of its own.
            std::panic::resume_unwind(Box::new(()));
        });
        let work = work(&monitor);
        // Whoever waits, under Block, waits in the monitor's userfaultfd.
        for region in work.regions.iter().filter(|region| region.strategy() != Strategy::Zap) {
            region.disable().expect("nobody is in the way");
        }
        mapped.wait();
        for (region, mapping) in work.regions.iter().zip(&work.mappings).filter(|(region, _)| region.is_enabled()) {
            // Where accesses don't recover, none needs a monitor.
            let refuses = mapping.on_disabled() != OnDisabled::AllOnes && !cfg!(revocable_portable);
            if matches!(mapping.read::<u64>(0), Ok(0)) && refuses {
                exit(2);
            }
            let _ = region.disable();
        }
        // Only then every mapping has been gone through.
        let since = Instant::now();
        while threads() > before {
            if since.elapsed() > Duration::from_secs(30) {
                exit(3);
            }
            thread::sleep(Duration::from_millis(1));
        }
        exit(0)
    });
    assert_ne!(ended.by_signal(), Some(libc::SIGSYS), "a system call is missing in SECCOMP.md");
    ended.well();
}

#[test]
fn a_filter_that_lacks_a_call_kills() {
    support::start();
    let ended = child::alone(|| {
        let region = Region::builder(1 << 18).build().expect("a region");
        let _mapping = region.map(MapOptions::new()).expect("it maps");
        let without_mremap: Vec<Allowed> =
            OWNER.iter().copied().filter(|a| ![libc::SYS_mremap, libc::SYS_madvise].contains(&a.call)).collect();
        install(&filter(&[&without_mremap, OF_THE_TEST]));
        let _ = region.disable();
        exit(0)
    });
    assert_eq!(ended.by_signal(), Some(libc::SIGSYS), "the filters filter nothing: {ended:?}");
}

#[test]
fn seccomp_md_has_the_lists_that_are_tested() {
    support::start();
    let document = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/SECCOMP.md"));
    for (heading, list) in [
        ("## Accessor thread", ACCESSOR),
        ("### Mappings for accessors only", ACCESSORS_ONLY),
        ("## Monitor thread", MONITOR),
        ("## Owner thread", OWNER),
    ] {
        let section = document.split(&format!("\n{heading}\n")).nth(1).unwrap_or_else(|| panic!("no {heading}"));
        let section = section.split("\n#").next().expect("its text");
        let mut told: Vec<&str> =
            section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
        let mut tested: Vec<&str> = list.iter().map(|a| a.name.trim_start_matches("SYS_")).collect();
        told.sort_unstable();
        tested.sort_unstable();
        tested.dedup();
        assert_eq!(told, tested, "{heading}");
    }
}

#[test]
fn a_displaced_handler_that_cannot_be_put_back_is_told_and_nothing_is_revoked() {
    support::start();
    let ended = child::alone(|| {
        let region = Region::builder(4096).build().expect("it builds");
        let mapping = region.map(MapOptions::new()).expect("it maps");
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: the default action is no handler.
        let displaced = unsafe { sigaction(Signal::SIGBUS, &default) };
        displaced.expect("it can be set");
        // Looking is allowed, changing is not.
        let changes =
            SeccompCondition::new(1, SeccompCmpArgLen::Qword, SeccompCmpOp::Ne, 0).expect("an argument's number");
        let rules = [(libc::SYS_rt_sigaction, vec![SeccompRule::new(vec![changes]).expect("one condition")])];
        let arch = std::env::consts::ARCH.try_into().expect("seccompiler knows this architecture");
        let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
        let filter = SeccompFilter::new(rules.into_iter().collect(), SeccompAction::Allow, refused, arch);
        install(&filter.and_then(TryInto::try_into).expect("it compiles"));
        let disabled = region.disable();
        let Err(RevokeError::Signal(SignalError::Sigaction { signal: libc::SIGBUS, errno: Errno::EPERM })) = disabled
        else {
            panic!("{disabled:?}");
        };
        assert!(region.is_enabled(), "nothing was changed");
        assert_eq!(mapping.read::<u8>(0), Ok(0));
        drop(region);
        assert!(matches!(mapping.read::<u8>(0), Err(AccessError::Gone { .. })), "what ends, ends");
        exit(0);
    });
    ended.well();
}
