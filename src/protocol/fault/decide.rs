//! The decisions about faults, as the kernel takes them and as this crate does.

use super::{CallerLock, FaultFlags, LockAfter, Outcome, Woken};

/// What to do about a fault that cannot be resolved right now.
///
/// ```
/// use revocable_mmio::fault::{FaultFlags, NoLock, Outcome, Rules, Woken, on_contention};
///
/// let decision = on_contention(FaultFlags::WAIT, Rules::CRATE);
/// let outcome = decision.carry_out(&mut NoLock::default(), |_sleep| Woken::Killed); // the sleep was ended early
/// assert_eq!(outcome, Some(Outcome::Killed));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Decision {
    /// Return this outcome at once. Nothing sleeps, nothing is queued, and the caller's lock is released only where the
    /// outcome says so.
    Answer(Outcome),
    /// Sleep first.
    Wait {
        /// What can end the sleep early.
        sleep: Sleep,
        /// What happens to the caller's lock before the sleep.
        lock: LockFirst,
        /// What follows a successful sleep.
        done: Then,
        /// The outcome if the sleep was ended early. The lock is then released, if it was not before.
        killed: Outcome,
    },
}

/// How to sleep (`TASK_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// Nothing ends it early.
    Uninterruptible,
    /// A cancelled token does.
    Killable,
    /// A cancelled token does, and so may a signal that has a handler.
    Interruptible,
}

/// What happens to the caller's lock before the sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockFirst {
    /// It stays held.
    Keep,
    /// It is released.
    Release,
}

/// What follows a successful sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Go on with the fault, the caller's lock still held: look at the region again.
    Proceed,
    /// Return this outcome.
    Answer(Outcome),
}

/// The rules for a contended lock, by the names of those that the review of the vfio-pci patch compared. The table in the
/// [module's documentation](super) shows the result of each.
///
/// ```
/// use revocable_mmio::fault::{Decision, FaultFlags, Outcome, Rules, on_contention};
///
/// let no_retry = FaultFlags::KILLABLE;
/// assert_eq!(on_contention(no_retry, Rules::PATCH_V1), Decision::Answer(Outcome::Sigbus)); // for a lock merely held
/// assert!(matches!(on_contention(no_retry, Rules::CRATE), Decision::Wait { .. }));
/// assert_eq!(Rules::default(), Rules::CRATE);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// On which tries RETRY_NOWAIT keeps the caller from sleeping.
    nowait: Tries,
    /// On which tries the caller's lock is released before the sleep, and the outcome is Retry.
    retry: Tries,
    /// Whether a caller that allows no retry waits, with its lock held; it gets Sigbus otherwise.
    no_retry_waits: bool,
    /// What a KILLABLE caller gets when its wait is cancelled; `None` if its wait cannot be cancelled.
    killed: Option<Outcome>,
}

/// A choice among the tries that ALLOW_RETRY allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tries {
    None,
    First,
    Every,
}

impl Tries {
    fn include(self, flags: FaultFlags) -> bool {
        match self {
            Self::None => false,
            Self::First => flags.allow_retry_first(),
            Self::Every => flags.contains(FaultFlags::ALLOW_RETRY),
        }
    }
}

impl Rules {
    /// The first version of the patch "vfio-pci: Invalidate mmaps and block MMIO access on disabled memory". It honours
    /// NOWAIT and retry, and a caller that allows no retry gets SIGBUS for a lock that is merely held.
    pub const PATCH_V1: Self =
        Self { nowait: Tries::Every, retry: Tries::Every, no_retry_waits: false, killed: Some(RETRY_RELEASED) };
    /// The patch's second and third version; the third was merged (Linux 5.8). It waits with the caller's lock held,
    /// whatever the flags.
    pub const PATCH_V2: Self = Self { nowait: Tries::None, retry: Tries::None, no_retry_waits: true, killed: None };
    /// What the review asked for, which was not built: the first version, except that a caller that allows no retry waits.
    pub const REVIEW: Self = Self { no_retry_waits: true, ..Self::PATCH_V1 };
    /// The review's example, `__folio_lock_or_retry` (mm/filemap.c; `__lock_page_or_retry` then). It has two traps: NOWAIT
    /// holds on the first try only, and KILLABLE alone can end in a Retry with the lock released, which was not allowed.
    pub const PAGE_LOCK: Self =
        Self { nowait: Tries::First, retry: Tries::First, no_retry_waits: true, killed: Some(RETRY_RELEASED) };
    /// This crate's rules: the page lock's without the traps. NOWAIT never sleeps, and a cancelled wait ends in Killed.
    pub const CRATE: Self = Self { nowait: Tries::Every, killed: Some(Outcome::Killed), ..Self::PAGE_LOCK };
}

impl Default for Rules {
    /// [`Rules::CRATE`].
    fn default() -> Self {
        Self::CRATE
    }
}

/// What a fault found at its region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The memory lock is taken: the region is busy, whatever its state will be.
    Contended,
    /// The region is enabled.
    Enabled,
    /// The region is disabled.
    Disabled(Situation),
}

/// The circumstances of a fault on a disabled region, in the order in which they matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Situation {
    /// The caller is cancelled already (`PF_EXITING`).
    pub exiting: bool,
    /// Accesses fail: the policy is not [`OnDisabled::Block`](crate::OnDisabled), or the region is gone (`UFFD_FEATURE_SIGBUS`).
    pub sigbus: bool,
}

const RETRY_HELD: Outcome = Outcome::Retry { lock: LockAfter::Held };
const RETRY_RELEASED: Outcome = Outcome::Retry { lock: LockAfter::Released };

/// What to do about a fault, given everything that it found.
///
/// ```
/// use revocable_mmio::fault::{Decision, FaultFlags, Outcome, Rules, Seen, Situation, decide};
///
/// let disabled = Seen::Disabled(Situation { exiting: false, sigbus: true });
/// assert_eq!(decide(FaultFlags::DEFAULT, disabled, Rules::CRATE), Decision::Answer(Outcome::Sigbus));
/// assert_eq!(decide(FaultFlags::DEFAULT, Seen::Enabled, Rules::CRATE), Decision::Answer(Outcome::Mapped));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn decide(flags: FaultFlags, seen: Seen, rules: Rules) -> Decision {
    match seen {
        Seen::Contended => on_contention(flags, rules),
        Seen::Enabled => Decision::Answer(Outcome::Mapped),
        Seen::Disabled(situation) => on_disabled(flags, situation),
    }
}

/// What to do about a contended lock: see the table in the [module's documentation](super).
///
/// WRITE, USER and INTERRUPTIBLE are ignored. A set that [`FaultFlags::validate`] refuses is decided as the kernel's code
/// would: without ALLOW_RETRY, NOWAIT and TRIED are ignored too.
///
/// ```
/// use revocable_mmio::fault::{Decision, FaultFlags, LockAfter, Outcome, Rules, Then, on_contention};
///
/// let at_once = Decision::Answer(Outcome::Retry { lock: LockAfter::Held });
/// assert_eq!(on_contention(FaultFlags::NOWAIT, Rules::CRATE), at_once);
/// let merged = on_contention(FaultFlags::NOWAIT, Rules::PATCH_V2); // the patch, as merged
/// assert!(matches!(merged, Decision::Wait { done: Then::Proceed, .. })); // waits, with the lock held
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[inline]
pub fn on_contention(flags: FaultFlags, rules: Rules) -> Decision {
    if flags.contains(FaultFlags::RETRY_NOWAIT) && rules.nowait.include(flags) {
        return Decision::Answer(RETRY_HELD);
    }
    if !flags.contains(FaultFlags::ALLOW_RETRY) && !rules.no_retry_waits {
        return Decision::Answer(Outcome::Sigbus);
    }
    let (sleep, killed) = match rules.killed {
        Some(killed) if flags.contains(FaultFlags::KILLABLE) => (Sleep::Killable, killed),
        _ => (Sleep::Uninterruptible, Outcome::Killed),
    };
    let (lock, done) = match rules.retry.include(flags) {
        true => (LockFirst::Release, Then::Answer(RETRY_RELEASED)),
        false => (LockFirst::Keep, Then::Proceed),
    };
    Decision::Wait { sleep, lock, done, killed }
}

/// What to do about a fault on a disabled region: `handle_userfault` of fs/userfaultfd.c, step by step, with two
/// departures. (vfio-pci has no counterpart: it always refuses.)
///
/// | if | does | answers | lock |
/// |---|---|---|---|
/// | the caller is cancelled already, and KILLABLE or INTERRUPTIBLE, and not NOWAIT | | Killed (1) | released |
/// | the caller is cancelled already | | Sigbus | held |
/// | accesses fail, whatever the flags | | Sigbus | held |
/// | no ALLOW_RETRY | sleeps | goes on (2), or Killed | held, or released |
/// | NOWAIT, on any try | queues nothing | Retry | held |
/// | otherwise | releases, sleeps | Retry, or Killed (1) | released |
///
/// 1. The kernel answers Sigbus, and Retry: its caller has to notice the fatal signal on its own.
/// 2. The kernel answers Sigbus: it lets no fault wait with the caller's lock held. Here it waits, as the review settled
///    for contention.
///
/// The sleep is interruptible, killable or neither, by the strongest flag. TRIED is ignored.
///
/// ```
/// use revocable_mmio::fault::{Decision, FaultFlags, LockFirst, Situation, Sleep, on_disabled};
///
/// let blocks = Situation { exiting: false, sigbus: false };
/// let Decision::Wait { sleep, lock, .. } = on_disabled(FaultFlags::WAIT, blocks) else { unreachable!() };
/// assert_eq!((sleep, lock), (Sleep::Killable, LockFirst::Release));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[inline]
pub fn on_disabled(flags: FaultFlags, situation: Situation) -> Decision {
    let sleep = if flags.contains(FaultFlags::INTERRUPTIBLE) {
        Sleep::Interruptible
    } else if flags.contains(FaultFlags::KILLABLE) {
        Sleep::Killable
    } else {
        Sleep::Uninterruptible
    };
    let nowait = flags.contains(FaultFlags::RETRY_NOWAIT);
    if situation.exiting && sleep != Sleep::Uninterruptible && !nowait {
        return Decision::Answer(Outcome::Killed);
    }
    if situation.exiting || situation.sigbus {
        return Decision::Answer(Outcome::Sigbus);
    }
    let (lock, done) = match flags.contains(FaultFlags::ALLOW_RETRY) {
        false => (LockFirst::Keep, Then::Proceed),
        true if nowait => return Decision::Answer(RETRY_HELD),
        true => (LockFirst::Release, Then::Answer(RETRY_RELEASED)),
    };
    Decision::Wait { sleep, lock, done, killed: Outcome::Killed }
}

impl Decision {
    /// Acts on the decision: releases the caller's lock if it says so, sleeps by `wait`, and returns the outcome. `None`
    /// means: go on with the fault, and look at the region again.
    ///
    /// `wait` must not return `Killed` for an uninterruptible sleep; it is taken for `Done`.
    pub fn carry_out(self, caller: &mut impl CallerLock, wait: impl FnOnce(Sleep) -> Woken) -> Option<Outcome> {
        let answer = match self {
            Self::Answer(outcome) => outcome,
            Self::Wait { sleep, lock, done, killed } => {
                if lock == LockFirst::Release {
                    release(caller);
                }
                match (wait(sleep), sleep, done) {
                    (Woken::Killed, Sleep::Killable | Sleep::Interruptible, _) => killed,
                    (_, _, Then::Answer(outcome)) => outcome,
                    (_, _, Then::Proceed) => return None,
                }
            }
        };
        if matches!(answer, RETRY_RELEASED | Outcome::Killed) {
            release(caller);
        }
        Some(answer)
    }
}

fn release(caller: &mut impl CallerLock) {
    if caller.is_held() {
        caller.release();
    }
}
