//! The loop around a fault: `fixup_user_fault` and `faultin_page` of mm/gup.c.

use super::{CallerLock, FaultFlags, IllegalFlags, LockAfter, Outcome};

/// The memory is there, and the caller's lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// True if the lock was released in between; results that were looked up under it are then stale.
    pub unlocked: bool,
}

/// Why the memory is not there. The caller's lock is held.
///
/// ```
/// use revocable_mmio::fault::{FaultFlags, NoLock, NotResolved, Outcome, resolve};
///
/// let refused = resolve(FaultFlags::WAIT, &mut NoLock::default(), || false, |_, _| Outcome::Sigbus);
/// assert_eq!(refused, Err(NotResolved::Sigbus)); // -EFAULT
/// let killed = resolve(FaultFlags::WAIT, &mut NoLock::default(), || true, |_, _| Outcome::Mapped);
/// assert_eq!(killed, Err(NotResolved::Killed)); // -EINTR
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotResolved {
    /// It would have to wait, and its flags forbid that; nothing was queued (`-EAGAIN`, or 0 pages).
    #[error("the region is busy or disabled, and the caller must not wait")]
    WouldBlock,
    /// The region refuses, or there is no memory (`-EFAULT`).
    #[error("the region is disabled")]
    Sigbus,
    /// The caller was cancelled (`-EINTR`).
    #[error("cancelled while waiting for the region")]
    Killed,
    /// It would wait for the calling thread itself: see [`Outcome::Reentrant`]. Nothing was queued (`-EDEADLK`).
    #[error(
        "the fault would wait for its own thread, which changes the region's state: try it later, or in another thread"
    )]
    Reentrant,
    /// It would wait for a change that waits for the calling thread: see [`Outcome::WouldDeadlock`] (`-EDEADLK`).
    #[error(
        "the change under way waits for this thread, for a guard that it holds of a region that changes with this one: drop it"
    )]
    WouldDeadlock,
    /// The flags contradict themselves.
    #[error(transparent)]
    Illegal(#[from] IllegalFlags),
}

/// Tries a fault until it is decided: once with `flags`, then with TRIED added.
///
/// The caller's lock is held at every `attempt`, and when this returns. If the caller is KILLABLE, `cancelled` is asked
/// before each attempt.
///
/// ```
/// use revocable_mmio::fault::{FaultFlags, LockAfter, NoLock, Outcome, Resolved, resolve};
///
/// let mut tries = Vec::new();
/// let resolved = resolve(FaultFlags::DEFAULT, &mut NoLock::default(), || false, |flags, _| {
///     tries.push(flags.contains(FaultFlags::TRIED));
///     if tries.len() == 1 { Outcome::Retry { lock: LockAfter::Released } } else { Outcome::Mapped }
/// })?;
/// assert_eq!(tries, [false, true]);
/// assert_eq!(resolved, Resolved { unlocked: false }); // this attempt has kept the lock, whatever it said
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// The reason why it was not resolved. A Retry with the lock held is not repeated but returned as
/// [`NotResolved::WouldBlock`], as get_user_pages does: only a NOWAIT caller gets one, and it must not loop.
pub fn resolve<L: CallerLock>(
    mut flags: FaultFlags,
    caller: &mut L,
    cancelled: impl Fn() -> bool,
    mut attempt: impl FnMut(FaultFlags, &mut L) -> Outcome,
) -> Result<Resolved, NotResolved> {
    flags.validate()?;
    let mut unlocked = false;
    loop {
        if flags.contains(FaultFlags::KILLABLE) && cancelled() {
            return Err(NotResolved::Killed);
        }
        let outcome = attempt(flags, caller);
        if !caller.is_held() {
            caller.acquire();
            unlocked = true;
        }
        match outcome {
            Outcome::Mapped => return Ok(Resolved { unlocked }),
            Outcome::Sigbus => return Err(NotResolved::Sigbus),
            Outcome::Killed => return Err(NotResolved::Killed),
            Outcome::Reentrant => return Err(NotResolved::Reentrant),
            Outcome::WouldDeadlock => return Err(NotResolved::WouldDeadlock),
            Outcome::Retry { lock: LockAfter::Held } => return Err(NotResolved::WouldBlock),
            // Without ALLOW_RETRY this is the kernel's answer to a caller that was killed. TRIED would be illegal then, and
            // the check of `cancelled` ends the loop.
            Outcome::Retry { lock: LockAfter::Released } => {
                if flags.contains(FaultFlags::ALLOW_RETRY) {
                    flags |= FaultFlags::TRIED;
                }
            }
        }
    }
}
