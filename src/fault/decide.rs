//! The decisions, as the kernel takes them and as this crate does.

use super::{CallerLock, FaultFlags, LockAfter, Outcome, Woken};

/// What to do about a fault that cannot be resolved right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Decision {
    /// Answer at once. Nothing sleeps, nothing is queued, and the caller's lock is released only where the outcome
    /// says so.
    Answer(Outcome),
    /// Sleep first.
    Wait {
        /// What can end the sleep early.
        sleep: Sleep,
        /// What happens to the caller's lock before the sleep.
        lock: LockFirst,
        /// What follows when it was waited for successfully.
        done: Then,
        /// The answer if the sleep was ended early; then the lock is released, if it was not before.
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
    /// Answer this.
    Answer(Outcome),
}

/// Where this crate and the kernel may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Which tries RETRY_NOWAIT holds for, at a contended lock.
    pub nowait: RuleNowait,
    /// What a caller meets that does not allow to retry, at a disabled region whose faults wait.
    pub no_retry: RuleNoRetry,
    /// What a cancelled wait answers.
    pub killed: RuleKilled,
}

/// Which tries RETRY_NOWAIT holds for, at a contended lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleNowait {
    /// The kernel's: the first only; with TRIED the caller sleeps.
    FirstTry,
    /// All of them: NOWAIT never sleeps.
    EveryTry,
}

/// What a caller meets that does not allow to retry, at a disabled region whose faults wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleNoRetry {
    /// The kernel's `handle_userfault`: it may not be made to wait with its lock held.
    Sigbus,
    /// As the review of the vfio-pci patch settled for contention: wait, with the lock held.
    Wait,
}

/// What a cancelled wait answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleKilled {
    /// The kernel's: Retry with the lock released, even to who does not allow to retry. The caller has to notice
    /// its fatal signal by itself.
    Retry,
    /// Killed.
    Killed,
}

impl Rules {
    /// What Linux does.
    pub const KERNEL: Self = Self {
        nowait: RuleNowait::FirstTry,
        no_retry: RuleNoRetry::Sigbus,
        killed: RuleKilled::Retry,
    };
    /// What this crate does.
    pub const CRATE: Self = Self {
        nowait: RuleNowait::EveryTry,
        no_retry: RuleNoRetry::Wait,
        killed: RuleKilled::Killed,
    };

    const fn killed(self) -> Outcome {
        match self.killed {
            RuleKilled::Retry => RETRY_RELEASED,
            RuleKilled::Killed => Outcome::Killed,
        }
    }
}

impl Default for Rules {
    /// [`Rules::CRATE`].
    fn default() -> Self {
        Self::CRATE
    }
}

/// What a fault found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The memory lock is taken: the region is busy, whatever its state will be.
    Contended,
    /// The region is enabled.
    Enabled,
    /// The region is disabled.
    Disabled(Situation),
}

/// What else holds while a region is disabled, in the order in which it matters. The names in brackets are what
/// the kernel looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Situation {
    /// The caller is cancelled already (`PF_EXITING`).
    pub exiting: bool,
    /// Nobody would ever resolve the fault (the mapping has no context).
    pub unserved: bool,
    /// The region's policy is to fail accesses (`UFFD_FEATURE_SIGBUS`).
    pub sigbus: bool,
    /// The region's policy is to let only user-mode accesses wait (`UFFD_USER_MODE_ONLY`).
    pub user_mode_only: bool,
    /// The region is gone for good (the context is released).
    pub released: bool,
}

const RETRY_HELD: Outcome = Outcome::Retry {
    lock: LockAfter::Held,
};
const RETRY_RELEASED: Outcome = Outcome::Retry {
    lock: LockAfter::Released,
};

/// What to do about a fault, given everything that it found.
pub fn decide(flags: FaultFlags, seen: Seen, rules: Rules) -> Decision {
    match seen {
        Seen::Contended => on_contention(flags, rules),
        Seen::Enabled => Decision::Answer(Outcome::Mapped),
        Seen::Disabled(situation) => on_disabled(flags, situation, rules),
    }
}

/// What to do about a contended lock: `__folio_lock_or_retry`, after its trylock failed.
///
/// | ALLOW_RETRY | TRIED | NOWAIT | KILLABLE | does | answers | lock |
/// |---|---|---|---|---|---|---|
/// | 1 | 0 | 1 | | nothing | Retry | held |
/// | 1 | 0 | 0 | 1 | releases, sleeps killable | Retry | released |
/// | 1 | 0 | 0 | 0 | releases, sleeps | Retry | released |
/// | 1 | 1 | any (1) | 1 | sleeps killable | goes on, or Retry if killed | held, or released |
/// | 1 | 1 | any (1) | 0 | sleeps | goes on | held |
/// | 0 | 0 | | 1 | sleeps killable | goes on, or Retry if killed (2) | held, or released |
/// | 0 | 0 | | 0 | sleeps | goes on | held |
///
/// 1. NOWAIT counts on the first try only. With [`RuleNowait::EveryTry`] these two rows do as the first one does.
/// 2. A Retry that the caller did not allow. With [`RuleKilled::Killed`] every killed wait answers Killed.
///
/// INTERRUPTIBLE is not looked at. A set that [`FaultFlags::validate`] refuses is decided as the kernel's code
/// would: without ALLOW_RETRY, neither NOWAIT nor TRIED counts.
#[inline]
pub fn on_contention(flags: FaultFlags, rules: Rules) -> Decision {
    let first = flags.allow_retry_first();
    let nowait_counts = match rules.nowait {
        RuleNowait::FirstTry => first,
        RuleNowait::EveryTry => flags.contains(FaultFlags::ALLOW_RETRY),
    };
    if nowait_counts && flags.contains(FaultFlags::RETRY_NOWAIT) {
        return Decision::Answer(RETRY_HELD);
    }
    let sleep = if flags.contains(FaultFlags::KILLABLE) {
        Sleep::Killable
    } else {
        Sleep::Uninterruptible
    };
    let (lock, done) = match first {
        true => (LockFirst::Release, Then::Answer(RETRY_RELEASED)),
        false => (LockFirst::Keep, Then::Proceed),
    };
    Decision::Wait {
        sleep,
        lock,
        done,
        killed: rules.killed(),
    }
}

/// What to do about a fault on a disabled region: `handle_userfault`, step by step.
///
/// | step | if | answers | lock |
/// |---|---|---|---|
/// | 1 | the caller is exiting | Sigbus (1) | held |
/// | 2 | nobody serves the mapping | Sigbus | held |
/// | 3 | the policy is Sigbus, whatever the flags | Sigbus | held |
/// | 4 | only user mode may wait, and this is not | Sigbus | held |
/// | 5a | no ALLOW_RETRY | Sigbus (2) | held |
/// | 5b | NOWAIT, on any try | Retry; nothing is queued | held |
/// | 6 | the region is gone | Retry | released |
/// | 7 | otherwise: releases, sleeps | always Retry (1) | released |
///
/// 1. With [`RuleKilled::Killed`], who is cancelled gets Killed, with the lock released as ever: in step 1 if KILLABLE
///    or INTERRUPTIBLE, and not NOWAIT, which must keep its lock; in step 7 if the sleep was ended early.
/// 2. With [`RuleNoRetry::Wait`], sleeps with the lock held and goes on; Sigbus if the region is gone, as there is
///    nothing to wait for and no Retry to answer.
///
/// The sleep is interruptible, killable or neither, by the strongest flag. TRIED is not looked at.
#[inline]
pub fn on_disabled(flags: FaultFlags, situation: Situation, rules: Rules) -> Decision {
    let sleep = if flags.contains(FaultFlags::INTERRUPTIBLE) {
        Sleep::Interruptible
    } else if flags.contains(FaultFlags::KILLABLE) {
        Sleep::Killable
    } else {
        Sleep::Uninterruptible
    };
    let killed = rules.killed();
    if situation.exiting {
        let says_so = sleep != Sleep::Uninterruptible && !flags.contains(FaultFlags::RETRY_NOWAIT);
        return match rules.killed {
            RuleKilled::Killed if says_so => Decision::Answer(Outcome::Killed),
            _ => Decision::Answer(Outcome::Sigbus),
        };
    }
    let kept_from_user_mode = situation.user_mode_only && !flags.contains(FaultFlags::USER);
    if situation.unserved || situation.sigbus || kept_from_user_mode {
        return Decision::Answer(Outcome::Sigbus);
    }
    if !flags.contains(FaultFlags::ALLOW_RETRY) {
        return match rules.no_retry {
            RuleNoRetry::Wait if !situation.released => Decision::Wait {
                sleep,
                lock: LockFirst::Keep,
                done: Then::Proceed,
                killed,
            },
            _ => Decision::Answer(Outcome::Sigbus),
        };
    }
    if flags.contains(FaultFlags::RETRY_NOWAIT) {
        return Decision::Answer(RETRY_HELD);
    }
    if situation.released {
        return Decision::Answer(RETRY_RELEASED);
    }
    Decision::Wait {
        sleep,
        lock: LockFirst::Release,
        done: Then::Answer(RETRY_RELEASED),
        killed,
    }
}

impl Decision {
    /// Act on it: release the caller's lock where it says so, sleep by `wait`, and answer. `None`: go on with the
    /// fault, and look at the region again.
    ///
    /// `wait` must not report `Killed` for an uninterruptible sleep; it is taken as `Done` if it does.
    pub fn carry_out(
        self,
        caller: &mut impl CallerLock,
        wait: impl FnOnce(Sleep) -> Woken,
    ) -> Option<Outcome> {
        let answer = match self {
            Self::Answer(outcome) => outcome,
            Self::Wait {
                sleep,
                lock,
                done,
                killed,
            } => {
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
