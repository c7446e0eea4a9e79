//! Peers that do to their descriptor what its right to write allows: content may be lost while it is enabled, and nothing
//! else.

use crate::log::{Head, Logged};
use crate::peer::Peer;
use crate::support::{self, raw};
use crate::{BEFORE, LEN, PAGE, POLICIES, SECRET, each, shared, untouched, withdraw, word, writable};
use revocable_mmio::{AccessError, MapOptions, OnDisabled, Region, RevokeError, ShareAccess};
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// In no region but the one of a neighbour.
const NEIGHBOUR: u64 = 0x4e45_4947_4842_4f55;
/// In the content only while it is withdrawn.
const STAMP: u64 = 0xdead_0000_dead_0000;

#[test]
fn a_window_cannot_be_sealed() {
    each(|_, peer, _| {
        for seal in 0..6 {
            assert_eq!(peer.ask(&format!("seal 0 {}", 1 << seal)), "EPERM");
        }
    });
}

/// With ones the window is sealed against it.
#[test]
fn a_window_that_a_peer_truncates() {
    each(|region, peer, policy| {
        let half = LEN / 2;
        let mapping = region.map(MapOptions::new()).expect("it maps");
        if policy == OnDisabled::AllOnes {
            assert_eq!(peer.ask(&format!("truncate 0 {half}")), "EPERM");
            assert_eq!(peer.ask(&format!("truncate 0 {}", 2 * LEN)), "EPERM");
            return;
        }
        assert_eq!(peer.ask(&format!("truncate 0 {half}")), "0");
        assert_eq!(mapping.read::<u64>(0), Ok(word(BEFORE)));
        assert_eq!(mapping.read::<u64>(half), Err(AccessError::NoMemory { offset: half }));
        assert_eq!(mapping.write(half, 1_u64), Err(AccessError::NoMemory { offset: half }));
        assert!(mapping.read_slice(half - 8, &mut [0; 16]).is_err());
        assert_eq!(region.owner().read::<u64>(half), Err(AccessError::NoMemory { offset: half }));
        assert!(region.owner().fill(0, BEFORE, LEN).is_err());
        assert_eq!(region.stats().lost, 0);
        region.disable().expect("it revokes");
        assert_eq!(region.stats().lost, half as u64);
        assert_eq!(region.owner().read::<u64>(half - 8), Ok(word(BEFORE)));
        assert_eq!(region.owner().read::<u64>(half), Ok(0), "what is lost is zeroes");
        region.owner().fill(0, SECRET, LEN).expect("it has memory");
        // Longer again, while disabled: there is nothing in it.
        assert_eq!(peer.ask(&format!("truncate 0 {}", 2 * LEN)), "0");
        assert_eq!(peer.ask("load-all a"), "0 everywhere");
        assert_eq!(peer.ask("store a 0x2808 0x77"), "ok");
        untouched(region);
        region.enable().expect("it restores");
        assert_eq!(peer.ask("load-all a"), format!("{:#x} everywhere", word(SECRET)));
        untouched(region);
        assert_eq!(mapping.read::<u64>(half), Ok(word(SECRET)));
    });
}

#[test]
fn holes_and_writes_reach_enabled_content_only() {
    each(|region, peer, _| {
        assert_eq!(peer.ask(&format!("punch 0 {:#x} {:#x}", PAGE, 2 * PAGE)), "0");
        assert_eq!(peer.ask(&format!("pwrite 0 {:#x} 0x77", 4 * PAGE)), "8");
        region.disable().expect("it revokes");
        assert_eq!(region.owner().read::<u64>(PAGE), Ok(0));
        assert_eq!(region.owner().read::<u64>(3 * PAGE), Ok(word(BEFORE)));
        assert_eq!(region.owner().read::<u64>(4 * PAGE), Ok(0x77));
        region.owner().fill(0, SECRET, LEN).expect("it has memory");
        peer.ask(&format!("pwrite 0 {:#x} 0x77", 4 * PAGE));
        peer.ask(&format!("punch 0 0 {:#x}", 2 * PAGE));
        untouched(region);
        region.enable().expect("it restores");
        untouched(region);
        assert_eq!(peer.ask("load-all a"), format!("{:#x} everywhere", word(SECRET)));
    });
}

/// By /proc/self/fd a descriptor can be opened anew with more rights, if the file's mode allows it. (Of a user who may do
/// all to the owner's files it is asked in vain.)
#[test]
fn a_descriptor_for_loads_stays_one_for_another_user() {
    const NOBODY: u32 = 65534;
    support::start();
    require!(support::is_root(), "not root: no process of another user");
    for policy in POLICIES {
        let region = shared(LEN, policy);
        let window = region.share(ShareAccess::ReadOnly).expect("a descriptor can be had");
        let Some(mut peer) = Peer::of_user(NOBODY, window, LEN) else { return };
        assert_eq!(peer.ask("map-ro a 0"), "ok");
        assert_eq!(peer.ask("reopen 0"), "EACCES");
        assert_eq!(peer.ask("load-all a"), "0 everywhere");
        // One for stores is that, whatever the mode says.
        let sent = peer.control.send(writable(&region));
        assert_eq!(peer.ask(&format!("map b {sent}")), "ok");
        assert_eq!(peer.ask("store b 0x2808 0x77"), "ok");
    }
}

/// The flags of an open file are the peer's own.
#[test]
fn flags_of_a_peers_descriptor_are_its_own() {
    each(|region, peer, _| {
        for flag in [nix::libc::O_APPEND, nix::libc::O_NONBLOCK, nix::libc::O_DIRECT] {
            peer.ask(&format!("flags 0 {flag}"));
            withdraw(region);
            region.enable().expect("it restores");
            assert_eq!(peer.ask("load-all a"), format!("{:#x} everywhere", word(SECRET)));
        }
    });
}

/// What a vandal does, by the letters of vandal.c, against an owner that withdraws and gives back.
fn vandalised(ways: &str, policy: OnDisabled, len: usize, time: Duration) {
    let seed = seed();
    let region = shared(len, policy);
    let neighbour = shared(LEN, policy);
    for at in (0..LEN).step_by(8) {
        neighbour.owner().write(at, NEIGHBOUR).expect("it has memory");
    }
    let Some(mut vandal) = Logged::new("vandal", writable(&region), len, &[&seed.to_string(), ways]) else { return };
    let stamp = format!("{STAMP:#x}");
    let Some(prober) = Logged::new("prober", writable(&region), len, &["load", &stamp]) else { return };
    let end = AtomicBool::new(false);
    let mapping = region.map(MapOptions::new()).expect("it maps");
    let since = Instant::now();
    // With ones it cannot be cut off. What was cut off and is there again, empty, cannot be told from content.
    let counted = policy == OnDisabled::Sigbus && matches!(ways, "h" | "t");
    let what = format!("ways {ways}, {policy:?}, REVOCABLE_FUZZ_SEED={seed}");
    thread::scope(|scope| {
        // Own accesses fail, or are made: there is no signal. Accesses that cannot recover ask for the page first, and a
        // truncation after that is one.
        scope.spawn(|| {
            while cfg!(not(revocable_portable)) && !end.load(Ordering::Relaxed) {
                for page in (0..len).step_by(PAGE) {
                    for got in [mapping.read::<u64>(page), region.owner().read::<u64>(page)] {
                        assert_ne!(got, Ok(NEIGHBOUR), "{what}");
                    }
                    let _ = mapping.write(page + 8, 1_u64);
                    let _ = region.owner().write(page + 16, 1_u64);
                }
            }
        });
        let mut random = seed | 1;
        // Whether the vandal has come to it at all is up to the scheduler.
        let is_told = || {
            !counted || region.stats().lost > 0 || since.elapsed() > crate::support::patience(Duration::from_secs(10))
        };
        let mut toggled = Ok(());
        while toggled.is_ok() && (since.elapsed() < time || region.stats().disables < 3 || !is_told()) {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            toggled = toggle(&region, random >> 60).and_then(|()| {
                neighbour.disable().and_then(|_| neighbour.enable()).map(drop).map_err(|e| e.to_string())
            });
        }
        // Before a panic, too: the scope waits for the thread.
        end.store(true, Ordering::Relaxed);
        assert_eq!(toggled, Ok(()), "{what}");
    });
    vandal.wait(Head::Passes, 1);
    vandal.sound(&what);
    prober.sound(&what);
    assert!(!counted || region.stats().lost > 0, "{what}: what is cut off is counted");
    for at in (0..LEN).step_by(8) {
        assert_eq!(neighbour.owner().read(at), Ok(NEIGHBOUR), "{what}");
    }
    // Without vandals all is well again.
    drop(vandal);
    withdraw(&region);
    region.enable().expect("it restores");
    untouched(&region);
}

/// One round: withdrawn content is the owner's alone, so what it writes stays.
fn toggle(region: &Region, how: u64) -> Result<(), String> {
    let keeps = || -> Result<(), String> {
        for page in (0..region.len()).step_by(PAGE) {
            region.owner().write(page, STAMP).map_err(|e| e.to_string())?;
        }
        thread::yield_now();
        for page in (0..region.len()).step_by(PAGE) {
            let kept = region.owner().read::<u64>(page);
            if kept != Ok(STAMP) {
                return Err(format!("page at {page:#x}: {kept:?} in withdrawn content"));
            }
            region.owner().write(page, 0_u64).map_err(|e| e.to_string())?;
        }
        Ok(())
    };
    if how % 4 == 0 {
        return region.reset(|_| keeps()).map_err(|e| e.to_string())?;
    }
    let disabled = match how % 4 {
        1 => region.try_disable(),
        2 => region.disable_timeout(Duration::from_secs(5)),
        _ => region.disable(),
    };
    match disabled {
        Ok(_) => {}
        Err(RevokeError::Busy(_)) => return Ok(()),
        Err(e) => return Err(e.to_string()),
    }
    keeps()?;
    region.enable().map_err(|e| e.to_string())?;
    Ok(())
}

/// The seed of `REVOCABLE_FUZZ_SEED`, or a new one.
fn seed() -> u64 {
    let asked = std::env::var("REVOCABLE_FUZZ_SEED").ok().and_then(|seed| seed.parse().ok());
    asked.unwrap_or_else(|| RandomState::new().hash_one("vandal") >> 32)
}

/// Each way alone, or with the one that makes the window as long as it was.
#[test]
fn vandals_of_one_mind() {
    support::start();
    for policy in POLICIES {
        for ways in ["t", "h", "tr", "gr", "p", "a", "s", "w", "f", "fi", "m", "l"] {
            vandalised(ways, policy, LEN, Duration::from_millis(60));
        }
    }
}

/// All at random. The seed is printed, and `REVOCABLE_FUZZ_SEED` sets it.
#[test]
fn vandals_at_random() {
    support::start();
    // Past the test harness's capture.
    let _ = writeln!(std::io::stderr(), "fuzz: peers::vandals_at_random, seed {}", seed());
    for policy in POLICIES {
        vandalised("thgrpaswfmlci", policy, LEN, support::stress_time(700));
        // With huge pages.
        vandalised("thgrpaswfmlci", policy, (4 << 20) + LEN, support::stress_time(300));
    }
}

/// The system calls of this process on a mapping that a peer has truncated.
#[test]
fn system_calls_on_a_truncated_window_are_refused() {
    support::start();
    let region = shared(LEN, OnDisabled::Sigbus);
    let Some(mut peer) = Peer::new(writable(&region), LEN) else { return };
    let mapping = region.map(MapOptions::new()).expect("it maps");
    assert_eq!(peer.ask("truncate 0 0"), "0");
    assert_eq!(raw::write_from(support::addr(&mapping), PAGE), Err(nix::errno::Errno::EFAULT));
    region.disable().expect("it revokes");
    assert_eq!(region.stats().lost, LEN as u64);
    region.enable().expect("it restores");
    assert_eq!(raw::write_from(support::addr(&mapping), PAGE), Ok(PAGE));
}
