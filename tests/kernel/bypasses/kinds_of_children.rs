//! Processes made in all ways: fork, vfork, clone, posix_spawn. A child with memory of its own has nothing of a region.
//! A child that shares this process's memory is revoked with it.

use super::calls::cloned;
use super::{SECRET, addr, with_secret};
use crate::support::matrix::{STRATEGIES, every_case};
use crate::support::raw::{self, Hit};
use crate::support::{self, a_moment, child, eventually};
use nix::libc;
use nix::unistd::{pipe, read};
use revocable_mmio::{MapOptions, Monitor, OnDisabled, Region};
use std::ffi::c_int;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::{fs, thread};

/// fork, vfork without the parent's memory, and children that share all but the memory.
const OF_THEIR_OWN: [c_int; 4] = [0, libc::CLONE_VFORK, libc::CLONE_FILES, libc::CLONE_FS | libc::CLONE_FILES];
const SHARED: [c_int; 2] = [libc::CLONE_VM, libc::CLONE_VM | libc::CLONE_VFORK];

#[test]
fn a_child_with_memory_of_its_own_reads_and_writes_nothing_of_a_region() {
    support::start();
    every_case(|case| {
        let (region, mapping, base) = with_secret(case);
        for disabled in [false, true] {
            for flags in OF_THEIR_OWN {
                if disabled {
                    region.disable().expect("it revokes");
                }
                let code = cloned(flags, || {
                    let load = raw::load64(base);
                    let _ = raw::store64(base, 0xbad);
                    match load {
                        // There is nothing, or a cover of a disabled mapping.
                        Err(hit) if hit.is_segv() || (disabled && hit == Hit::bus(base)) => 0,
                        Ok(u64::MAX) if disabled && case.policy == OnDisabled::AllOnes => 0,
                        Ok(SECRET) => 1,
                        _ => 2,
                    }
                })
                .wait();
                assert_eq!(code, 0, "{case} flags {flags:#x}, disabled: {disabled}");
                region.enable().expect("it comes back");
                assert_eq!(mapping.read::<u64>(0), Ok(SECRET), "{case} flags {flags:#x}: a child's store");
                assert_eq!(raw::load64(base), Ok(SECRET), "{case} flags {flags:#x}");
            }
        }
    });
}

struct LetGo<'a>(&'a AtomicUsize);

impl Drop for LetGo<'_> {
    fn drop(&mut self) {
        self.0.store(usize::MAX, Ordering::SeqCst);
    }
}

/// The outcome of an access, as a number that can be shared between processes.
fn met(load: Result<u64, Hit>) -> u64 {
    match load {
        Ok(value) => value,
        Err(hit) if hit.is_segv() => 2,
        Err(_) => 1,
    }
}

#[test]
fn a_process_that_shares_the_memory_is_revoked_with_it() {
    support::start();
    every_case(|case| {
        for flags in SHARED {
            let (region, _mapping, base) = with_secret(case);
            // How far the child may go, how far it is, and the outcomes of its accesses.
            let (may, is) = (AtomicUsize::new(1), AtomicUsize::new(0));
            let loads = [const { AtomicU64::new(0) }; 3];
            thread::scope(|scope| {
                // In a thread that does nothing else. With CLONE_VFORK it is suspended, and the child uses its
                // thread-locals.
                let other = scope.spawn(|| {
                    let body = || {
                        for (step, load) in loads.iter().enumerate() {
                            while may.load(Ordering::SeqCst) <= step {
                                thread::yield_now();
                            }
                            load.store(met(raw::load64(base)), Ordering::SeqCst);
                            is.store(step + 1, Ordering::SeqCst);
                        }
                        0
                    };
                    cloned(flags, body).wait()
                });
                // If an assertion fails, the child must not wait for the next step.
                let _end = LetGo(&may);
                let reaches = |step| eventually("the child goes on", || is.load(Ordering::SeqCst) == step);
                reaches(1);
                region.disable().expect("it revokes");
                may.store(2, Ordering::SeqCst);
                if case.policy == OnDisabled::Block {
                    a_moment();
                    assert_eq!(is.load(Ordering::SeqCst), 1, "{case} flags {flags:#x}: it read while disabled");
                } else {
                    reaches(2);
                }
                region.enable().expect("it comes back");
                reaches(2);
                may.store(3, Ordering::SeqCst);
                assert_eq!(other.join().expect("it only waits"), 0, "{case} flags {flags:#x}");
            });
            let while_disabled = match case.policy {
                OnDisabled::AllOnes => u64::MAX,
                OnDisabled::Block => SECRET,
                _ => 1,
            };
            let loads = loads.map(AtomicU64::into_inner);
            assert_eq!(loads, [SECRET, while_disabled, SECRET], "{case} flags {flags:#x}");
        }
    });
}

/// A child holds all of its parent's descriptors open, the userfaultfds too. So closing them in the parent wakes no
/// thread.
#[test]
fn a_child_that_lives_on_keeps_nobody_waiting() {
    support::start();
    let ended = child::alone(|| {
        every_case(|case| {
            let (until, end) = pipe().expect("a pipe");
            let monitor = case.can_wait().then(|| Monitor::with_threads(1).expect("a userfaultfd"));
            let builder = match &monitor {
                Some(monitor) => case.builder(2).monitor(monitor.clone()),
                None => case.builder(2),
            };
            let region = builder.build().expect("it builds");
            let mapping = case.map(&region);
            let base = addr(&mapping);
            mapping.write(0, SECRET).expect("enabled");
            let waits = |what: &str, then: &dyn Fn() -> Result<u64, Hit>| {
                region.disable().expect("it revokes");
                thread::scope(|scope| {
                    let waiting = scope.spawn(|| raw::load64(base));
                    a_moment();
                    assert!(case.policy != OnDisabled::Block || !waiting.is_finished(), "{case} {what}");
                    let expected = then();
                    let got = waiting.join().expect("it only loads");
                    assert!(case.policy != OnDisabled::Block || got == expected, "{case} {what}: {got:?}");
                });
            };
            let fork = || {
                cloned(0, || {
                    let _ = read(&until, &mut [0]);
                    0
                })
            };
            let before = fork();
            let mut during = None;
            waits("enable", &|| {
                region.enable().expect("it comes back");
                Ok(SECRET)
            });
            region.reset(|_| during.replace(fork())).expect("it resets");
            assert_eq!(raw::load64(base), Ok(SECRET), "{case}");
            let late = region.map(MapOptions::new()).expect("it maps");
            assert_eq!(late.read::<u64>(0), Ok(SECRET), "{case}");
            drop(late);
            region.disable().expect("it revokes");
            thread::scope(|scope| {
                let waiting = scope.spawn(|| raw::load64(base));
                a_moment();
                // This drops the last reference to the monitor, and with it this process's userfaultfd.
                drop((mapping, region, monitor));
                let got = waiting.join().expect("it only loads");
                assert!(case.policy != OnDisabled::Block || got.is_err(), "{case} dropped: {got:?}");
            });
            drop(end);
            let _ = (before.kill(), during);
        });
    });
    ended.well();
}

/// std starts the first program by vfork or posix_spawn, and the second, which runs a closure before exec, by fork.
#[test]
fn a_program_that_is_executed_inherits_nothing() {
    const EXECUTED: &str = "REVOCABLE_TEST_EXECUTED";
    const NAME: &str = "kept-from-programs";
    support::start();
    if std::env::var_os(EXECUTED).is_some() {
        let maps = support::read_text("/proc/self/maps");
        assert!(maps.contains("[stack]") && !maps.contains(NAME) && !maps.contains("revocable-"), "{maps}");
        let mut seen = 0;
        for entry in fs::read_dir("/proc/self/fd").expect("our descriptors").flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default().to_string_lossy().into_owned();
            assert!(!target.contains("memfd:") && !target.contains("userfaultfd"), "inherited: {target}");
            seen += 1;
        }
        assert!(seen >= 3, "three are always handed on");
        return;
    }
    let regions: Vec<_> = STRATEGIES
        .into_iter()
        .filter_map(|strategy| Region::builder(64 << 10).name(NAME).strategy(strategy).build().ok())
        .map(|region| (region.map(MapOptions::new()), region.map(MapOptions::new().accessors_only()), region))
        .collect();
    assert!(support::read_text("/proc/self/maps").contains(NAME));
    for disabled in [false, true] {
        for (_, _, region) in regions.iter().filter(|_| disabled) {
            region.disable().expect("it revokes");
        }
        for forks in [false, true] {
            let mut program = child::this_test();
            program.env(EXECUTED, "1").stdin(Stdio::null());
            if forks {
                #[expect(unsafe_code, reason = "runs in a forked child")]
                // SAFETY: it does nothing.
                unsafe {
                    program.pre_exec(|| Ok(()))
                };
            }
            let output = program.output().expect("it starts");
            let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && text.contains("1 passed"), "{text}");
        }
    }
}
