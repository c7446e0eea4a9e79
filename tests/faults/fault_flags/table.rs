//! The table of rules in the documentation, and flags that contradict themselves.

use super::{A_WHILE, LEN, Lock, UNTOUCHED, busy, mapping};
use crate::support;
use nix::unistd::Pid;
use revocable_mmio::fault::{CallerLock, FaultFlags, IllegalFlags, LockAfter, NoLock, Outcome, Rules};
use revocable_mmio::{AccessError, Caller, CancelToken, FaultError, OnDisabled, PinError, Region};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread::{self, ScopedJoinHandle};

/// The presets that are compared, with the names of the table's columns.
const PRESETS: [(&str, Rules); 5] = [
    ("PATCH_V1", Rules::PATCH_V1),
    ("PATCH_V2", Rules::PATCH_V2),
    ("REVIEW", Rules::REVIEW),
    ("PAGE_LOCK", Rules::PAGE_LOCK),
    ("CRATE", Rules::CRATE),
];

/// A caller's lock whose state the test can read.
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

/// Makes a fault with each of these sets of flags, twice, at a region whose write side is held, all at the same time.
/// The second half is cancelled while it waits. Returns, in the table's words, how each waits, its outcome, and the
/// state of the caller's lock.
fn contended(rules: Rules, sets: &[FaultFlags]) -> Vec<String> {
    let region = Region::builder(LEN).build().expect("it builds");
    let tokens = [CancelToken::new(), CancelToken::new()];
    let held: Vec<AtomicBool> = (0..2 * sets.len()).map(|_| AtomicBool::new(true)).collect();
    let threads: Vec<AtomicI32> = held.iter().map(|_| AtomicI32::new(0)).collect();
    busy(&region, |end| {
        thread::scope(|scope| {
            let (region, tokens) = (&region, &tokens);
            let faults: Vec<_> = held
                .iter()
                .zip(&threads)
                .enumerate()
                .map(|(at, (held, thread))| {
                    let flags = sets[at % sets.len()];
                    scope.spawn(move || {
                        thread.store(nix::unistd::gettid().as_raw(), Ordering::SeqCst);
                        let mut caller = Caller::new(flags).cancel(&tokens[at / sets.len()]);
                        caller.rules = rules;
                        region.fault(0, caller, &mut Watched(held)).expect("legal")
                    })
                })
                .collect();
            // Each sleeps or has ended, and still does a while later: no lock on its way was what it slept for.
            let settle = || {
                let done = |(fault, thread): (&ScopedJoinHandle<'_, Outcome>, &AtomicI32)| {
                    let thread = thread.load(Ordering::SeqCst);
                    fault.is_finished() || (thread != 0 && support::waiter::sleeps(Pid::from_raw(thread)))
                };
                let all = || faults.iter().zip(&threads).all(done);
                support::eventually("every fault waits or has ended", || {
                    all() && {
                        thread::sleep(A_WHILE);
                        all()
                    }
                });
            };
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
                    assert!(!killed[at] || at >= sets.len(), "it woke without being cancelled");
                    assert!(!matches!(outcome, Outcome::Retry { lock: LockAfter::Held } if lock == "released"));
                    assert!(!matches!(outcome, Outcome::Retry { lock: LockAfter::Released } if lock == "held"));
                    format!("{}{}, {answer}, {lock}", sleeps[at], if killed[at] { ", killed" } else { "" })
                })
                .collect()
        })
    })
}

/// For every legal set of flags the outcome is the one in the documentation's table.
#[test]
fn the_rules_that_the_review_compared_come_to_what_the_table_says() {
    support::start();
    let sets: Vec<FaultFlags> =
        (0..1 << 10).map(FaultFlags::from_bits_retain).filter(|flags| flags.validate().is_ok()).collect();
    let columns = PRESETS.map(|(_, rules)| contended(rules, &sets));
    // One row for each combination of the flags that some preset looks at. The other flags make no difference.
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
    let told: Vec<&str> = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/protocol/fault.rs"))
        .lines()
        .filter(|line| line.starts_with("//! |"))
        .collect();
    assert_eq!(told.join("\n"), table, "the outcomes are:\n{table}");
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
