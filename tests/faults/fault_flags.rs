//! A fault does what its caller's flags allow, on regions that are enabled, busy and disabled.

use crate::support;
use nix::errno::Errno;
use revocable_mmio::fault::{
    CallerLock, FaultFlags, IllegalFlags, LockAfter, NoLock, NotResolved, Outcome, Resolved, Rules,
};
use revocable_mmio::{
    AccessError, Caller, CancelToken, FaultError, MapOptions, Mapping, OnDisabled, PinError, Region, Strategy,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

const LEN: usize = 1 << 20;
/// Long enough that what has not happened by then is waiting for something.
const A_WHILE: Duration = Duration::from_millis(40);
/// What is woken is back by then, on any machine; what is not would stay for ever.
const AT_ONCE: Duration = Duration::from_secs(5);
const RELEASED: Outcome = Outcome::Retry { lock: LockAfter::Released };
const HELD: Outcome = Outcome::Retry { lock: LockAfter::Held };

/// A lock that counts what is done to it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lock {
    away: bool,
    released: usize,
    acquired: usize,
}

impl CallerLock for Lock {
    fn release(&mut self) {
        assert!(self.is_held(), "released twice");
        self.away = true;
        self.released += 1;
    }

    fn acquire(&mut self) {
        assert!(!self.is_held(), "taken twice");
        self.away = false;
        self.acquired += 1;
    }

    fn is_held(&self) -> bool {
        !self.away
    }
}

const UNTOUCHED: Lock = Lock { away: false, released: 0, acquired: 0 };
const LET_GO: Lock = Lock { away: true, released: 1, acquired: 0 };
const TAKEN_AGAIN: Lock = Lock { away: false, released: 1, acquired: 1 };

/// A region of every strategy that can be had here.
fn regions() -> impl Iterator<Item = Region> {
    [Strategy::Zap, Strategy::Detach, Strategy::Replace].into_iter().filter_map(|strategy| {
        let region = Region::builder(LEN).strategy(strategy).build();
        if let Err(e) = &region {
            support::skip(&format!("{strategy}: {e}"), support::at_its_best());
        }
        region.ok()
    })
}

/// Runs `meanwhile` while another thread resets the region, and ends the reset when `meanwhile` says so or returns.
fn busy<R>(region: &Region, meanwhile: impl FnOnce(mpsc::Sender<()>) -> R) -> R {
    thread::scope(|scope| {
        let (inside, is_inside) = mpsc::channel();
        let (end, ends) = mpsc::channel::<()>();
        let holder = scope.spawn(move || {
            region.reset(|_| {
                inside.send(()).expect("the test waits for it");
                let _ = ends.recv();
            })
        });
        is_inside.recv().expect("the reset begins");
        let result = meanwhile(end);
        holder.join().expect("no panic").expect("the reset ends");
        result
    })
}

/// What is compared, as the table's columns name it.
const PRESETS: [(&str, Rules); 5] = [
    ("PATCH_V1", Rules::PATCH_V1),
    ("PATCH_V2", Rules::PATCH_V2),
    ("REVIEW", Rules::REVIEW),
    ("PAGE_LOCK", Rules::PAGE_LOCK),
    ("CRATE", Rules::CRATE),
];

/// A caller's lock that others can look at.
struct Watched<'a>(&'a AtomicBool);

impl CallerLock for Watched<'_> {
    fn release(&mut self) {
        assert!(self.0.swap(false, Ordering::SeqCst), "released twice");
    }

    fn acquire(&mut self) {
        assert!(!self.0.swap(true, Ordering::SeqCst), "taken twice");
    }

    fn is_held(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Faults with these sets of flags at a region whose write side is held, all at once; the second half of them are called off
/// while they sleep. In the table's words: how each sleeps, what it answers, and what has become of the caller's lock.
fn contended(rules: Rules, sets: &[FaultFlags]) -> Vec<String> {
    let region = Region::builder(LEN).build().expect("it builds");
    let tokens = [CancelToken::new(), CancelToken::new()];
    let held: Vec<AtomicBool> = (0..2 * sets.len()).map(|_| AtomicBool::new(true)).collect();
    let begun = AtomicUsize::new(0);
    // Nothing tells that a thread sleeps: all had the time to.
    let settle = || thread::sleep(4 * A_WHILE);
    busy(&region, |end| {
        thread::scope(|scope| {
            let (region, tokens) = (&region, &tokens);
            let faults: Vec<_> = held
                .iter()
                .enumerate()
                .map(|(at, held)| {
                    let (flags, begun) = (sets[at % sets.len()], &begun);
                    scope.spawn(move || {
                        begun.fetch_add(1, Ordering::SeqCst);
                        let mut caller = Caller::new(flags).cancel(&tokens[at / sets.len()]);
                        caller.rules = rules;
                        region.fault(0, caller, &mut Watched(held)).expect("legal")
                    })
                })
                .collect();
            while begun.load(Ordering::SeqCst) < held.len() {
                thread::sleep(A_WHILE / 40);
            }
            settle();
            let sleeps: Vec<&str> = faults
                .iter()
                .zip(&held)
                .map(|(fault, held)| match (fault.is_finished(), held.load(Ordering::SeqCst)) {
                    (true, _) => "at once",
                    (false, true) => "locked",
                    (false, false) => "unlocked",
                })
                .collect();
            tokens[1].cancel();
            settle();
            let killed: Vec<bool> =
                faults.iter().zip(&sleeps).map(|(fault, how)| *how != "at once" && fault.is_finished()).collect();
            drop(end);
            let outcomes = faults.into_iter().map(|fault| fault.join().expect("no panic"));
            outcomes
                .enumerate()
                .map(|(at, outcome)| {
                    let answer = match outcome {
                        Outcome::Mapped => "Mapped",
                        Outcome::Retry { .. } => "Retry",
                        Outcome::Sigbus => "Sigbus",
                        Outcome::Killed => "Killed",
                        other => panic!("{other:?}"),
                    };
                    let lock = if held[at].load(Ordering::SeqCst) { "held" } else { "released" };
                    assert!(!killed[at] || at >= sets.len(), "it woke without a word");
                    assert!(!matches!(outcome, Outcome::Retry { lock: LockAfter::Held } if lock == "released"));
                    assert!(!matches!(outcome, Outcome::Retry { lock: LockAfter::Released } if lock == "held"));
                    format!("{}{}, {answer}, {lock}", sleeps[at], if killed[at] { ", killed" } else { "" })
                })
                .collect()
        })
    })
}

/// The table of the documentation is what comes out, for every legal set of flags.
#[test]
fn the_rules_that_the_review_compared_come_to_what_the_table_says() {
    support::start();
    let sets: Vec<FaultFlags> =
        (0..1 << 10).map(FaultFlags::from_bits_retain).filter(|flags| flags.validate().is_ok()).collect();
    let columns = PRESETS.map(|(_, rules)| contended(rules, &sets));
    // A row for what any of them looks at; the other flags make no difference.
    let mut rows: BTreeMap<[bool; 5], Vec<String>> = BTreeMap::new();
    for (at, flags) in sets.iter().cycle().take(2 * sets.len()).enumerate() {
        let has = |flag| !flags.contains(flag);
        let killable = flags.contains(FaultFlags::KILLABLE);
        let key = [
            has(FaultFlags::ALLOW_RETRY),
            has(FaultFlags::RETRY_NOWAIT),
            has(FaultFlags::TRIED),
            !killable,
            killable && at >= sets.len(),
        ];
        let cells: Vec<String> = columns.iter().map(|column| column[at].clone()).collect();
        assert_eq!(rows.entry(key).or_insert_with(|| cells.clone()), &cells, "{flags} makes a difference");
    }
    let mut table = vec![format!("//! | flags | {} |", PRESETS.map(|(name, _)| name).join(" | "))];
    table.push(format!("//! |{}", "---|".repeat(1 + PRESETS.len())));
    for ([no_retry, wait, first, deaf, cancelled], cells) in rows {
        let names = [(no_retry, "ALLOW_RETRY"), (wait, "NOWAIT"), (first, "TRIED"), (deaf, "KILLABLE")];
        let names: Vec<&str> = names.into_iter().filter(|(without, _)| !without).map(|(_, name)| name).collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let called_off = if cancelled { "; cancelled" } else { "" };
        table.push(format!("//! | {names}{called_off} | {} |", cells.join(" | ")));
    }
    let table = table.join("\n");
    let told: Vec<&str> = include_str!("../../src/fault.rs").lines().filter(|line| line.starts_with("//! |")).collect();
    assert_eq!(told.join("\n"), table, "what comes out:\n{table}");
}

/// Runs `waits` in a thread, sees that it waits, runs `wakes`, and answers what the thread answers then.
fn waits_until<R: Send>(waits: impl FnOnce() -> R + Send, wakes: impl FnOnce()) -> R {
    thread::scope(|scope| {
        let waiter = scope.spawn(waits);
        thread::sleep(A_WHILE);
        assert!(!waiter.is_finished(), "it did not wait");
        wakes();
        let since = Instant::now();
        let result = waiter.join().expect("no panic");
        assert!(since.elapsed() < AT_ONCE, "woken after {:?}", since.elapsed());
        result
    })
}

fn mapping(region: &Region, policy: OnDisabled) -> Mapping {
    region.map(MapOptions::new().on_disabled(policy)).expect("it maps")
}

#[test]
fn an_enabled_region_maps_for_every_legal_set_of_flags_and_keeps_the_callers_lock() {
    support::start();
    for region in regions() {
        let mapping = mapping(&region, OnDisabled::Sigbus);
        let sets = (0..1 << 10).map(FaultFlags::from_bits_retain).filter(|flags| flags.validate().is_ok());
        let mut legal = 0;
        for (nth, flags) in sets.enumerate() {
            let offset = nth * 4096 % LEN + 8;
            let mut lock = Lock::default();
            assert_eq!(region.fault(offset, flags, &mut lock), Ok(Outcome::Mapped), "{flags}");
            assert_eq!(mapping.fault(offset, flags, &mut lock), Ok(Outcome::Mapped), "{flags}");
            assert_eq!(region.fault_in(offset, flags, &mut lock), Ok(Resolved { unlocked: false }), "{flags}");
            assert_eq!(lock, UNTOUCHED);
            mapping.write_with(offset, nth as u64, flags).expect("enabled");
            assert_eq!(mapping.read_with::<u64>(offset, flags), Ok(nth as u64), "{flags}");
            legal = nth + 1;
        }
        assert_eq!(legal, 80, "of 128 sets, those with NOWAIT or TRIED and without ALLOW_RETRY are illegal");
    }
}

#[test]
fn a_busy_region_sends_who_may_not_wait_away_with_its_lock() {
    support::start();
    for region in regions() {
        let mapping = mapping(&region, OnDisabled::Block);
        let again = FaultFlags::NOWAIT | FaultFlags::TRIED | FaultFlags::KILLABLE;
        busy(&region, |_end| {
            for flags in [FaultFlags::NOWAIT, again] {
                let mut lock = Lock::default();
                assert_eq!(region.fault(0, flags, &mut lock), Ok(HELD));
                assert_eq!(mapping.fault(0, flags, &mut lock), Ok(HELD));
                assert_eq!(region.fault_in(0, flags, &mut lock), Err(FaultError::NotResolved(NotResolved::WouldBlock)));
                assert_eq!(lock, UNTOUCHED);
                assert_eq!(mapping.read_with::<u8>(3, flags), Err(AccessError::WouldBlock { offset: 3 }));
                assert_eq!(region.pin(0..1, flags).map(drop), Err(PinError::WouldBlock));
            }
            assert_eq!(mapping.try_read::<u32>(4), Err(AccessError::WouldBlock { offset: 4 }));
            assert_eq!(mapping.try_write(4, 1u32), Err(AccessError::WouldBlock { offset: 4 }));
        });
        assert_eq!(mapping.try_read::<u32>(4), Ok(0), "{:?}: nothing was stored", region.strategy());
    }
}

#[test]
fn a_busy_region_has_who_may_wait_wait_and_says_what_became_of_its_lock() {
    support::start();
    let tried = FaultFlags::WAIT | FaultFlags::TRIED;
    let cases = [
        (FaultFlags::WAIT, RELEASED, LET_GO),
        (FaultFlags::ALLOW_RETRY, RELEASED, LET_GO),
        (tried, Outcome::Mapped, UNTOUCHED),
        (FaultFlags::empty(), Outcome::Mapped, UNTOUCHED),
        (FaultFlags::KILLABLE, Outcome::Mapped, UNTOUCHED),
    ];
    for region in regions() {
        for (flags, outcome, after) in &cases {
            busy(&region, |end| {
                let mut lock = Lock::default();
                let answer = waits_until(|| region.fault(0, *flags, &mut lock), || drop(end));
                assert_eq!((answer, &lock), (Ok(*outcome), after), "{flags}");
            });
        }
        busy(&region, |end| {
            let mut lock = Lock::default();
            let answer = waits_until(|| region.fault_in(0, FaultFlags::WAIT, &mut lock), || drop(end));
            assert_eq!((answer, lock), (Ok(Resolved { unlocked: true }), TAKEN_AGAIN));
        });
    }
}

#[test]
fn a_reset_refuses_no_access() {
    support::start();
    for region in regions() {
        let mapping = mapping(&region, OnDisabled::Sigbus);
        mapping.write(8, 5u64).expect("enabled");
        busy(&region, |end| assert_eq!(waits_until(|| mapping.read::<u64>(8), || drop(end)), Ok(5)));
        busy(&region, |end| {
            let flags = FaultFlags::WAIT;
            assert_eq!(waits_until(|| mapping.read_with::<u64>(8, flags), || drop(end)), Ok(5));
        });
    }
}

#[test]
fn a_disabled_region_answers_sigbus_or_has_the_caller_wait_as_its_policy_says() {
    support::start();
    for region in regions() {
        assert!(region.disable().expect("nobody is in the way"));
        let sets = [FaultFlags::DEFAULT, FaultFlags::NOWAIT, FaultFlags::WAIT, FaultFlags::empty()];
        for flags in sets {
            let mut lock = Lock::default();
            assert_eq!(region.fault(0, flags, &mut lock), Ok(Outcome::Sigbus), "{flags}");
            assert_eq!(region.fault_in(0, flags, &mut lock), Err(FaultError::NotResolved(NotResolved::Sigbus)));
            assert_eq!(lock, UNTOUCHED, "{flags}");
        }
        let block = |flags| Caller::new(flags).on_disabled(OnDisabled::Block);
        let mut lock = Lock::default();
        assert_eq!(region.fault(0, block(FaultFlags::NOWAIT), &mut lock), Ok(HELD));
        assert_eq!(lock, UNTOUCHED);
        let enable = || assert!(region.enable().expect("it can be given back"));
        let answer = waits_until(|| region.fault(0, block(FaultFlags::WAIT), &mut lock), enable);
        assert_eq!((answer, lock), (Ok(RELEASED), LET_GO));
    }
}

#[test]
fn accesses_at_a_disabled_region_meet_the_mappings_policy() {
    support::start();
    for region in regions() {
        let [sigbus, ones, block] =
            [OnDisabled::Sigbus, OnDisabled::AllOnes, OnDisabled::Block].map(|policy| mapping(&region, policy));
        assert!(region.disable().expect("nobody is in the way"));
        assert_eq!(sigbus.read_with::<u16>(2, FaultFlags::DEFAULT), Err(AccessError::Disabled { offset: 2 }));
        assert_eq!(ones.read_with::<u16>(2, FaultFlags::DEFAULT), Ok(0xffff));
        assert_eq!(ones.write_with(2, 7u16, FaultFlags::DEFAULT), Ok(()), "dropped, as a PCI Unsupported Request is");
        assert_eq!(block.try_read::<u16>(2), Err(AccessError::WouldBlock { offset: 2 }));
        let enable = || assert!(region.enable().expect("it can be given back"));
        assert_eq!(waits_until(|| block.read_with::<u16>(2, FaultFlags::WAIT), enable), Ok(0));
    }
}

#[test]
fn cancelling_ends_every_killable_wait_at_once() {
    support::start();
    let region = Region::builder(LEN).build().expect("it builds");
    let mapping = mapping(&region, OnDisabled::Block);
    let check = || {
        for flags in [FaultFlags::WAIT, FaultFlags::KILLABLE, FaultFlags::WAIT | FaultFlags::TRIED] {
            let token = CancelToken::new();
            let caller = Caller::new(flags).cancel(&token).on_disabled(OnDisabled::Block);
            let mut lock = Lock::default();
            let answer = waits_until(|| region.fault(0, caller, &mut lock), || assert!(token.cancel()));
            assert_eq!((answer, lock), (Ok(Outcome::Killed), LET_GO), "{flags}");
            let mut lock = Lock::default();
            let killed = Err(FaultError::NotResolved(NotResolved::Killed));
            assert_eq!(region.fault_in(0, caller, &mut lock).map(drop), killed, "cancelled is cancelled for good");
            assert!(lock.is_held());
        }
        let token = CancelToken::new();
        let caller = Caller::new(FaultFlags::WAIT).cancel(&token).on_disabled(OnDisabled::Block);
        let answers = waits_until(
            || {
                thread::scope(|scope| {
                    let read = scope.spawn(|| mapping.read_with::<u8>(1, caller));
                    let pin = scope.spawn(|| region.pin(0..1, caller).map(drop));
                    (read.join().expect("no panic"), pin.join().expect("no panic"))
                })
            },
            || assert!(token.cancel()),
        );
        assert_eq!(answers, (Err(AccessError::Cancelled { offset: 1 }), Err(PinError::Cancelled)));
    };
    busy(&region, |_end| check());
    assert!(region.disable().expect("nobody is in the way"));
    check();
}

#[test]
fn cancelling_does_not_end_a_wait_that_is_not_killable() {
    support::start();
    let region = Region::builder(LEN).build().expect("it builds");
    busy(&region, |end| {
        let token = CancelToken::new();
        assert!(token.cancel());
        let caller = Caller::new(FaultFlags::ALLOW_RETRY).cancel(&token);
        let answer = waits_until(|| region.fault(0, caller, &mut NoLock::default()), || drop(end));
        assert_eq!(answer, Ok(RELEASED));
    });
}

#[test]
fn dropping_the_region_ends_the_waits_of_its_mappings() {
    support::start();
    for region in regions() {
        let mapping = mapping(&region, OnDisabled::Block);
        assert!(region.disable().expect("nobody is in the way"));
        let answers = waits_until(
            || {
                thread::scope(|scope| {
                    let caller = scope.spawn(|| mapping.read_with::<u8>(1, FaultFlags::ALLOW_RETRY));
                    (mapping.read::<u8>(1), caller.join().expect("no panic"))
                })
            },
            || drop(region),
        );
        let gone = Err(AccessError::Gone { offset: 1 });
        assert_eq!(answers, (gone, gone));
    }
}

#[test]
fn system_calls_of_a_blocking_mapping_are_refused_before_and_after_its_region_is_dropped() {
    support::start();
    for region in regions() {
        let mapping = mapping(&region, OnDisabled::Block);
        assert!(region.disable().expect("nobody is in the way"));
        let into = mapping.as_ptr().expose_provenance();
        assert_eq!(stat_into(into), Err(Errno::EFAULT));
        drop(region);
        assert_eq!(stat_into(into), Err(Errno::EFAULT));
    }
}

/// A system call that writes to `address`.
#[expect(unsafe_code, reason = "a system call's buffer is the mapping")]
fn stat_into(address: usize) -> Result<(), Errno> {
    let into = std::ptr::with_exposed_provenance_mut::<nix::libc::stat>(address);
    // SAFETY: the mapping outlives the call, and only the kernel writes to it.
    Errno::result(unsafe { nix::libc::fstat(0, into) }).map(drop)
}

#[test]
fn flags_that_contradict_themselves_are_typed_errors_everywhere_and_nothing_is_done() {
    support::start();
    let region = Region::builder(LEN).build().expect("it builds");
    let mapping = mapping(&region, OnDisabled::Sigbus);
    for flags in [FaultFlags::RETRY_NOWAIT, FaultFlags::TRIED, FaultFlags::from_bits_retain(1 << 20)] {
        let illegal = flags.validate().expect_err("illegal");
        assert!(matches!(
            illegal,
            IllegalFlags::NowaitWithoutRetry { .. }
                | IllegalFlags::TriedWithoutRetry { .. }
                | IllegalFlags::Unknown { .. }
        ));
        let mut lock = Lock::default();
        assert_eq!(region.fault(0, flags, &mut lock), Err(FaultError::Flags(illegal)));
        assert_eq!(region.fault_in(0, flags, &mut lock), Err(FaultError::Flags(illegal)));
        assert_eq!(mapping.fault(0, flags, &mut lock), Err(FaultError::Flags(illegal)));
        assert_eq!(lock, UNTOUCHED);
        assert_eq!(mapping.read_with::<u8>(0, flags), Err(AccessError::Flags(illegal)));
        assert_eq!(mapping.write_with(0, 1u8, flags), Err(AccessError::Flags(illegal)));
        assert_eq!(region.pin(0..1, flags).map(drop), Err(PinError::Flags(illegal)));
    }
    assert_eq!(mapping.read::<u8>(0), Ok(0));
    let outside = Err(FaultError::OutOfBounds { offset: LEN, len: LEN });
    assert_eq!(region.fault(LEN, FaultFlags::DEFAULT, &mut NoLock::default()), outside);
    assert_eq!(mapping.fault(LEN, FaultFlags::DEFAULT, &mut NoLock::default()), outside);
}
