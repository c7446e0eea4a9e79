//! SECCOMP.md's lists are enough: each kind of thread does its work under a filter that allows them and nothing else.
#![expect(unsafe_code, reason = "the child ends without running destructors, which its filter would forbid")]

mod lists;
mod start;
mod work;

use crate::support::{self, child};
use lists::*;
use nix::errno::Errno;
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::uio::pread;
use nix::unistd::ftruncate;
use revocable_mmio::signal::SignalError;
use revocable_mmio::{
    AccessError, Backing, MapOptions, Monitor, OnDisabled, OnRevoke, Region, RevokeError, Strategy, Support,
};
use seccompiler::{SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};
use work::{access, work};

fn exit(code: i32) -> ! {
    // SAFETY: ends the process at once; nothing of it is needed any more.
    unsafe { libc::_exit(code) }
}

#[test]
fn every_kind_of_thread_works_under_its_own_filter() {
    support::start();
    require!(Support::current().userfaultfd(), "no userfaultfd");
    let ended = child::alone(|| {
        let patience = support::patience(Duration::from_secs(30));
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
        let program = filter(&[OWNER, WITHDRAW, OF_THE_TEST]);
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
            if since.elapsed() > patience {
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
fn an_accessor_asks_a_device_under_its_filter() {
    support::start();
    let ended = child::alone(|| {
        let file = memfd_create(c"device", MFdFlags::MFD_CLOEXEC).expect("a memfd");
        ftruncate(&file, 1 << 16).expect("it can grow");
        let fd = file.try_clone().expect("a descriptor");
        let backing = Backing::File { fd, offset: 0, device: Some(OnRevoke::Keep) };
        let region = Region::builder(1 << 16).backing(backing);
        // Off: there is nothing to read.
        let region = region.memory_enabled(|device| pread(device, &mut [0; 1], 0).is_ok_and(|read| read == 1));
        let region = region.build().expect("a region");
        let mapping = region.map(MapOptions::new()).expect("it maps");
        ftruncate(&file, 0).expect("it can shrink");
        install(&filter(&[ACCESSOR, ASKING, OF_THE_TEST]));
        let refused = AccessError::Disabled { offset: 8 };
        let asked = mapping.read::<u64>(8) == Err(refused) && mapping.try_write(8, 1_u64) == Err(refused);
        exit(if asked { 0 } else { 2 })
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
        // Under Block, faults wait in the monitor's userfaultfd.
        for region in work.regions.iter().filter(|region| region.strategy() != Strategy::Zap) {
            region.disable().expect("nothing is in the way");
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
        // Besides those, the worker of the shared region.
        while threads() > before + 1 {
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
        ("### Devices that are asked", ASKING),
        ("## Monitor thread", MONITOR),
        ("## Owner thread", OWNER),
        ("### Shared regions", WITHDRAW),
        ("### Region::share", SHARE),
        ("## Building, mapping and dropping regions", BUILDER),
        ("### Building shared regions", BUILDER_SHARED),
        ("### Adding ioeventfds", HOT_PLUG),
        ("### Driving a loop of ioeventfds", KICKS),
        ("## Threads of stand-ins", STAND_INS),
        ("## The thread of the shared loop", SHARED_LOOP),
        ("## Starting a thread", START_OF_A_THREAD),
        ("### Ending a thread", END_OF_A_THREAD),
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
