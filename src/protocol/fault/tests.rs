//! Every combination of flags and circumstances, against the kernel's tables written as data.
//!
//! A row is a pattern (1, 0, or . for either), then: how the caller sleeps and whether its lock is held meanwhile, the
//! result, and whether the lock is held afterwards. "deaf" is uninterruptible; "proceed" is the kernel's 0: the lock was
//! obtained.

use super::*;

type Row = (&'static str, &'static str);

const PRESETS: [Rules; 5] = [Rules::PATCH_V1, Rules::PATCH_V2, Rules::REVIEW, Rules::PAGE_LOCK, Rules::CRATE];

/// `__folio_lock_or_retry`: ALLOW_RETRY TRIED, NOWAIT, KILLABLE, fatal signal during the sleep.
const FOLIO_LOCK_OR_RETRY: &[Row] = &[
    ("10 1 . .", "no sleep, retry, held"),
    ("10 0 1 .", "unlocked killable, retry, released"),
    ("10 0 0 .", "unlocked deaf, retry, released"),
    ("11 . 1 0", "locked killable, proceed, held"),
    ("11 . 1 1", "locked killable, retry, released"),
    ("11 . 0 .", "locked deaf, proceed, held"),
    ("0. . 1 0", "locked killable, proceed, held"),
    ("0. . 1 1", "locked killable, retry, released"),
    ("0. . 0 .", "locked deaf, proceed, held"),
];

/// The same columns under this crate's rules: NOWAIT on every try, and Killed for a killed caller.
const CONTENTION_HERE: &[Row] = &[
    ("1. 1 . .", "no sleep, retry, held"),
    ("10 0 1 0", "unlocked killable, retry, released"),
    ("10 0 1 1", "unlocked killable, killed, released"),
    ("10 0 0 .", "unlocked deaf, retry, released"),
    ("11 0 1 0", "locked killable, proceed, held"),
    ("11 0 1 1", "locked killable, killed, released"),
    ("11 0 0 .", "locked deaf, proceed, held"),
    ("0. . 1 0", "locked killable, proceed, held"),
    ("0. . 1 1", "locked killable, killed, released"),
    ("0. . 0 .", "locked deaf, proceed, held"),
];

/// `handle_userfault` with this crate's departures, where the first row that fits counts: exiting, sigbus; ALLOW_RETRY, NOWAIT;
/// KILLABLE, INTERRUPTIBLE; signal during the sleep.
const DISABLED: &[Row] = &[
    ("1. .0 .1 .", "no sleep, killed, released"),
    ("1. .0 1. .", "no sleep, killed, released"),
    ("1. .. .. .", "no sleep, sigbus, held"),
    (".1 .. .. .", "no sleep, sigbus, held"),
    (".. 0. .1 0", "locked interruptible, proceed, held"),
    (".. 0. .1 1", "locked interruptible, killed, released"),
    (".. 0. 1. 0", "locked killable, proceed, held"),
    (".. 0. 1. 1", "locked killable, killed, released"),
    (".. 0. .. .", "locked deaf, proceed, held"),
    (".. 11 .. .", "no sleep, retry, held"),
    (".. .. .1 0", "unlocked interruptible, retry, released"),
    (".. .. .1 1", "unlocked interruptible, killed, released"),
    (".. .. 1. 0", "unlocked killable, retry, released"),
    (".. .. 1. 1", "unlocked killable, killed, released"),
    (".. .. .. .", "unlocked deaf, retry, released"),
];

/// include/linux/mm_types.h and `handle_userfault`'s warning: ALLOW_RETRY, TRIED, NOWAIT.
const LEGAL: &[Row] = &[("1..", "legal"), ("000", "legal"), ("0.1", "nowait"), ("010", "tried")];

/// Under Miri only some sets: none with a flag that decides nothing, except the set of all flags.
fn all_flags() -> impl Iterator<Item = FaultFlags> {
    let matters = FaultFlags::ALLOW_RETRY
        | FaultFlags::TRIED
        | FaultFlags::RETRY_NOWAIT
        | FaultFlags::KILLABLE
        | FaultFlags::INTERRUPTIBLE;
    let is_tried = move |flags: &FaultFlags| !cfg!(miri) || matters.contains(*flags) || flags.is_all();
    let sets = (0..1 << 10).map(FaultFlags::from_bits_retain).filter(|flags| FaultFlags::all().contains(*flags));
    sets.filter(is_tried)
}

/// Under Miri the first and the last.
fn presets() -> impl Iterator<Item = Rules> {
    PRESETS.into_iter().step_by(if cfg!(miri) { PRESETS.len() - 1 } else { 1 })
}

fn bits(of: impl IntoIterator<Item = bool>) -> String {
    of.into_iter().map(|bit| if bit { '1' } else { '0' }).collect()
}

/// The rows that fit, with their numbers.
fn fitting<'a>(table: &'a [Row], columns: &str) -> Vec<(usize, &'a str)> {
    let fits = |pattern: &str| {
        let mut wanted = pattern.bytes().filter(|byte| *byte != b' ');
        let fits = columns.bytes().all(|is| wanted.next().is_some_and(|want| want == b'.' || want == is));
        assert!(!fits || wanted.next().is_none(), "{pattern} has more columns than {columns}");
        fits
    };
    table.iter().enumerate().filter(|(_, row)| fits(row.0)).map(|(at, row)| (at, row.1)).collect()
}

/// Carries the decision out, with a signal or without, and describes the outcome in the tables' words.
fn observe(decision: Decision, signal: bool) -> String {
    let mut caller = NoLock::default();
    let before = caller;
    let mut slept = "no sleep".to_owned();
    let held_during = match decision {
        Decision::Wait { lock: LockFirst::Release, .. } => "unlocked",
        _ => "locked",
    };
    let outcome = decision.carry_out(&mut caller, |sleep| {
        let how = match sleep {
            Sleep::Uninterruptible => "deaf",
            Sleep::Killable => "killable",
            Sleep::Interruptible => "interruptible",
        };
        slept = format!("{held_during} {how}");
        if signal { Woken::Killed } else { Woken::Done }
    });
    assert!(before.is_held());
    let lock = if caller.is_held() { LockAfter::Held } else { LockAfter::Released };
    let answer = match outcome {
        None => "proceed",
        Some(Outcome::Mapped) => "mapped",
        Some(Outcome::Retry { lock: said }) => {
            assert_eq!(said, lock, "the answer and the lock disagree");
            "retry"
        }
        Some(Outcome::Sigbus) => "sigbus",
        Some(Outcome::Killed) => "killed",
        Some(Outcome::Reentrant | Outcome::WouldDeadlock) => unreachable!("no decision: see `Protocol::fault_once`"),
    };
    let lock = if lock == LockAfter::Held { "held" } else { "released" };
    format!("{slept}, {answer}, {lock}")
}

fn situations() -> impl Iterator<Item = Situation> {
    (0..1u32 << 2).map(|set| Situation { exiting: set & 1 != 0, sigbus: set & 2 != 0 })
}

#[test]
fn a_contended_lock_is_decided_as_the_tables_say_for_every_set_of_flags() {
    for (rules, table) in [(Rules::PAGE_LOCK, FOLIO_LOCK_OR_RETRY), (Rules::CRATE, CONTENTION_HERE)] {
        let mut used = vec![0; table.len()];
        for flags in all_flags() {
            for signal in [false, true] {
                let has = |flag| flags.contains(flag);
                let columns = bits([
                    has(FaultFlags::ALLOW_RETRY),
                    has(FaultFlags::TRIED),
                    has(FaultFlags::RETRY_NOWAIT),
                    has(FaultFlags::KILLABLE),
                    signal,
                ]);
                let rows = fitting(table, &columns);
                let [(row, expected)] = rows[..] else { panic!("{columns} fits {rows:?}, not one row") };
                assert_eq!(observe(decide(flags, Seen::Contended, rules), signal), expected, "{flags} {columns}");
                used[row] += 1;
            }
        }
        assert!(!used.contains(&0), "a row that never fits: {used:?}");
    }
}

#[test]
fn a_disabled_region_is_decided_as_the_table_says_for_every_set_of_flags_whatever_the_rules() {
    let mut used = vec![0; DISABLED.len()];
    for (flags, situation) in all_flags().flat_map(|flags| situations().map(move |at| (flags, at))) {
        for signal in [false, true] {
            let Situation { exiting, sigbus } = situation;
            let has = |flag| flags.contains(flag);
            let columns = bits([
                exiting,
                sigbus,
                has(FaultFlags::ALLOW_RETRY),
                has(FaultFlags::RETRY_NOWAIT),
                has(FaultFlags::KILLABLE),
                has(FaultFlags::INTERRUPTIBLE),
                signal,
            ]);
            let (row, expected) = fitting(DISABLED, &columns)[0];
            for rules in presets() {
                let decision = decide(flags, Seen::Disabled(situation), rules);
                assert_eq!(observe(decision, signal), expected, "{flags} {columns}");
            }
            used[row] += 1;
        }
    }
    assert!(!used.contains(&0), "a row that never fits: {used:?}");
}

#[test]
fn an_enabled_region_maps_for_every_set_of_flags() {
    for flags in all_flags() {
        for rules in presets() {
            assert_eq!(observe(decide(flags, Seen::Enabled, rules), true), "no sleep, mapped, held");
        }
    }
}

#[test]
fn nowait_never_sleeps_and_never_loses_its_lock_while_the_region_lives() {
    for flags in all_flags().filter(|flags| flags.contains(FaultFlags::RETRY_NOWAIT) && flags.validate().is_ok()) {
        for seen in situations().map(Seen::Disabled).chain([Seen::Contended, Seen::Enabled]) {
            let happened = observe(decide(flags, seen, Rules::CRATE), true);
            assert!(happened.starts_with("no sleep") && happened.ends_with("held"), "{flags} {seen:?}: {happened}");
        }
    }
}

#[test]
fn the_sets_of_flags_that_the_kernel_warns_about_are_errors() {
    for flags in all_flags() {
        let says = match flags.validate() {
            Ok(same) => {
                assert_eq!(same, flags);
                "legal"
            }
            Err(IllegalFlags::NowaitWithoutRetry { .. }) => "nowait",
            Err(IllegalFlags::TriedWithoutRetry { .. }) => "tried",
            Err(IllegalFlags::Unknown { .. }) => "unknown",
        };
        let columns = bits(
            [FaultFlags::ALLOW_RETRY, FaultFlags::TRIED, FaultFlags::RETRY_NOWAIT].map(|flag| flags.contains(flag)),
        );
        let rows = fitting(LEGAL, &columns);
        let [(_, expected)] = rows[..] else { panic!("{columns} fits {rows:?}, not one row") };
        assert_eq!(says, expected, "{flags}");
    }
    let stray = FaultFlags::from_bits_retain(1 << 12);
    assert_eq!(stray.validate(), Err(IllegalFlags::Unknown { flags: 1 << 12 }));
    assert_eq!(
        FaultFlags::RETRY_NOWAIT.validate().unwrap_err().to_string(),
        "RETRY_NOWAIT: RETRY_NOWAIT needs ALLOW_RETRY"
    );
}

/// The arguments of the attempts, for a list of their results.
fn looped(
    flags: FaultFlags,
    answers: &[Outcome],
    cancelled_at: usize,
) -> (Vec<FaultFlags>, Result<Resolved, NotResolved>) {
    let (tries, checks) = (std::cell::RefCell::new(Vec::new()), std::cell::Cell::new(0));
    let mut caller = NoLock::default();
    let cancelled = || {
        checks.set(checks.get() + 1);
        checks.get() > cancelled_at
    };
    let result = resolve(flags, &mut caller, cancelled, |flags, caller| {
        assert!(caller.is_held(), "an attempt without the caller's lock");
        let answer = answers[tries.borrow().len()];
        tries.borrow_mut().push(flags);
        if matches!(answer, Outcome::Killed | Outcome::Retry { lock: LockAfter::Released }) {
            caller.release();
        }
        answer
    });
    assert!(caller.is_held(), "the loop returned without the caller's lock");
    (tries.into_inner(), result)
}

const NEVER: usize = usize::MAX;
const AGAIN: Outcome = Outcome::Retry { lock: LockAfter::Released };
const NOT_NOW: Outcome = Outcome::Retry { lock: LockAfter::Held };

#[test]
fn the_loop_tries_first_without_and_then_with_tried() {
    let flags = FaultFlags::WAIT | FaultFlags::WRITE;
    let tried = flags | FaultFlags::TRIED;
    let (tries, result) = looped(flags, &[AGAIN, AGAIN, Outcome::Mapped], NEVER);
    assert_eq!((tries, result), (vec![flags, tried, tried], Ok(Resolved { unlocked: true })));
    let (tries, result) = looped(flags, &[Outcome::Mapped], NEVER);
    assert_eq!((tries, result), (vec![flags], Ok(Resolved { unlocked: false })));
    assert_eq!(looped(flags, &[AGAIN, Outcome::Sigbus], NEVER).1, Err(NotResolved::Sigbus));
    assert_eq!(looped(flags, &[AGAIN, Outcome::Killed], NEVER).1, Err(NotResolved::Killed));
}

#[test]
fn the_loop_looks_for_cancellation_before_every_try_of_who_is_killable() {
    for at in 0..4 {
        let (tries, result) = looped(FaultFlags::WAIT, &[AGAIN; 4], at);
        assert_eq!((tries.len(), result), (at, Err(NotResolved::Killed)));
    }
    let (tries, result) = looped(FaultFlags::ALLOW_RETRY, &[AGAIN, AGAIN, Outcome::Mapped], 0);
    assert_eq!((tries.len(), result), (3, Ok(Resolved { unlocked: true })));
}

#[test]
fn the_loop_hands_a_nowait_retry_back_and_ends_for_who_was_killed_without_allowing_a_retry() {
    let (tries, result) = looped(FaultFlags::NOWAIT, &[NOT_NOW], NEVER);
    assert_eq!((tries.len(), result), (1, Err(NotResolved::WouldBlock)));
    let (tries, result) = looped(FaultFlags::KILLABLE, &[AGAIN], 1);
    assert_eq!((tries, result), (vec![FaultFlags::KILLABLE], Err(NotResolved::Killed)));
    let illegal = looped(FaultFlags::TRIED, &[], NEVER).1;
    assert!(matches!(illegal, Err(NotResolved::Illegal(IllegalFlags::TriedWithoutRetry { .. }))));
}
