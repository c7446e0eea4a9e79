//! A peer that holds the lock of a shared region's file: a write(2) to the file whose source does not arrive.
//!
//! The source is memory of another region that is being reset, so the call waits in a page fault with the lock held.

use crate::support::waiter::Waiter;
use crate::support::{self, AtTheEnd, addr, eventually, forking, raw};
use revocable_mmio::{MapOptions, Mapping, OnDisabled, Region, RevokeError, ShareAccess, Support};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const LEN: usize = 64 << 10;
const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;
const POLICIES: [OnDisabled; 2] = [OnDisabled::Sigbus, OnDisabled::AllOnes];

struct Shared {
    region: Region,
    mapping: Mapping,
    peers: OwnedFd,
}

fn shared(policy: OnDisabled) -> Shared {
    let region = Region::builder(LEN).shared(policy).build().expect("it builds");
    let mapping = region.map(MapOptions::new()).expect("it maps");
    mapping.write(8, SECRET).expect("enabled");
    let peers = region.share(ShareAccess::ReadWrite).expect("it is shared");
    Shared { region, mapping, peers }
}

/// Runs `body` while a thread is in a write(2) to the file that does not end before `body` does.
fn while_held(shared: &Shared, body: impl FnOnce() + Send) {
    let source = Region::builder(4096).build().expect("it builds");
    let buffer = source.map(MapOptions::new()).expect("it maps");
    let (from, peers) = (addr(&buffer), &shared.peers);
    thread::scope(|scope| {
        let writing = source.reset(|_| {
            let waiter = Waiter::default();
            let begins = waiter.clone();
            let writing = scope.spawn(move || {
                begins.begins();
                raw::pwrite_from(peers, from, 1)
            });
            waiter.until_it_faults();
            assert!(!writing.is_finished(), "it waits for its source");
            scope.spawn(body).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            writing
        });
        let _ = writing.expect("a reset").join().expect("no panic");
    });
}

#[test]
fn who_does_not_wait_is_told_and_nothing_has_changed() {
    support::start();
    require!(Support::current().sees_kernel_faults(), "no userfaultfd makes a system call wait");
    for policy in POLICIES {
        let shared = shared(policy);
        let Shared { region, mapping, .. } = &shared;
        // It has the file open, too: the one that writes is a thread of this process, which is not named.
        let other = forking::start(|| {
            loop {
                thread::sleep(Duration::from_secs(1));
            }
        });
        while_held(&shared, || {
            for round in 0..3 {
                let since = Instant::now();
                match region.try_disable() {
                    Err(RevokeError::Busy(holders)) => {
                        assert!(holders.peers, "{policy:?}: {holders}");
                        assert!(holders.peer_pids.contains(&other.pid()), "{policy:?}: {holders}");
                    }
                    other => panic!("{policy:?}, round {round}: {other:?}"),
                }
                match region.disable_timeout(Duration::from_millis(150)) {
                    Err(RevokeError::TimedOut { holders, .. }) => assert!(holders.peers, "{policy:?}: {holders}"),
                    other => panic!("{policy:?}, round {round}: {other:?}"),
                }
                assert!(region.try_reset(|_| panic!("it is held up")).is_err(), "{policy:?}");
                assert!(since.elapsed() < crate::support::patience(Duration::from_secs(20)), "{policy:?}: it gives up");
                assert!(region.is_enabled(), "{policy:?}");
                assert_eq!(mapping.read::<u64>(8), Ok(SECRET), "{policy:?}: accesses go on");
                assert_eq!(region.owner().read::<u64>(8), Ok(SECRET), "{policy:?}: the owner's too");
                mapping.write(16, round).expect("enabled");
            }
            assert!(region.stats().peer_waits > 0, "{policy:?}: it is counted");
        });
        other.kill();
        // The write is over: the next try works, and every store is there.
        assert!(region.disable().expect("no one holds it up"), "{policy:?}");
        assert!(mapping.read::<u64>(8).is_err(), "{policy:?}");
        assert_eq!(region.owner().read::<u64>(8), Ok(SECRET), "{policy:?}");
        region.enable().expect("it comes back");
        assert_eq!(mapping.read::<u64>(16), Ok(2_u64), "{policy:?}");
    }
}

#[test]
fn who_waits_waits_while_accesses_and_other_regions_go_on() {
    support::start();
    require!(Support::current().sees_kernel_faults(), "no userfaultfd makes a system call wait");
    for policy in POLICIES {
        let (shared, other) = (shared(policy), shared(policy));
        let Shared { region, mapping, .. } = &shared;
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            while_held(&shared, || {
                scope.spawn(|| {
                    assert!(region.disable().expect("in the end"), "{policy:?}");
                    done.store(true, Ordering::SeqCst);
                });
                eventually("it waits for the peer", || region.stats().peer_waits > 0);
                assert_eq!(mapping.read::<u64>(8), Ok(SECRET), "{policy:?}: accesses go on");
                assert!(other.region.disable().expect("it is another"), "{policy:?}");
                assert!(other.region.enable().expect("it is another"), "{policy:?}");
                assert!(!done.load(Ordering::SeqCst), "{policy:?}: the peer has the lock");
            });
            eventually("the peer has let go", || done.load(Ordering::SeqCst));
        });
        assert!(mapping.read::<u64>(8).is_err(), "{policy:?}");
        region.enable().expect("it comes back");
        assert_eq!(mapping.read::<u64>(8), Ok(SECRET), "{policy:?}");
    }
}

/// Writers come and go, also between the look at the lock and the emptying: each change is made or told, content survives
/// and no access of the region's own fails.
#[test]
fn writers_that_come_and_go_lose_nothing() {
    support::start();
    require!(Support::current().sees_kernel_faults(), "no userfaultfd makes a system call wait");
    for policy in POLICIES {
        let shared = shared(policy);
        let Shared { region, mapping, .. } = &shared;
        let source = Region::builder(4096).build().expect("it builds");
        let buffer = source.map(MapOptions::new()).expect("it maps");
        let (from, peers) = (addr(&buffer), &shared.peers);
        let end = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    let _ = raw::pwrite_from(peers, from, 1);
                }
            });
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    source.reset(|_| thread::sleep(Duration::from_millis(130))).expect("a reset");
                    thread::sleep(Duration::from_millis(5));
                }
            });
            let _end = AtTheEnd(&end);
            let since = Instant::now();
            let mut stores = 0_u64;
            while since.elapsed() < Duration::from_secs(2) {
                stores += 1;
                mapping.write(16, stores).unwrap_or_else(|e| panic!("{policy:?}: {e}"));
                match region.disable_timeout(Duration::from_millis(200)) {
                    Ok(changed) => {
                        assert!(changed && mapping.read::<u64>(8).is_err(), "{policy:?}");
                        assert_eq!(region.owner().read::<u64>(16), Ok(stores), "{policy:?}");
                        region.enable().expect("it comes back");
                    }
                    Err(RevokeError::TimedOut { .. }) => {
                        assert!(region.is_enabled(), "{policy:?}");
                        // A peer that took the lock right before the emptying, and writes again while that is undone, has the
                        // window show zeroes for a moment (SECURITY.md).
                        eventually("the window has its content", || mapping.read::<u64>(8) == Ok(SECRET));
                    }
                    Err(e) => panic!("{policy:?}: {e}"),
                }
                assert_eq!(mapping.read::<u64>(8), Ok(SECRET), "{policy:?}");
                assert_eq!(mapping.read::<u64>(16), Ok(stores), "{policy:?}");
            }
        });
    }
}
