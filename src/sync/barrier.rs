//! A pair of memory barriers, one of which is almost free: membarrier(2).
//!
//! [`Barriers::light`] is for the side that runs all the time, [`Barriers::heavy`] for the side that runs when
//! memory is revoked. Where the kernel has membarrier's private expedited command, the light side only keeps the
//! compiler from reordering, and the heavy side makes every running thread of the process execute a full barrier.
//! Elsewhere both are full fences.
//!
//! # The contract, and why the model may use fences
//!
//! For a light barrier L of one thread and a heavy barrier H of another, either everything that came before L in
//! program order is visible to everything after H, or everything before H is visible to everything after L.
//! With two SeqCst fences that is the order of the two in the single total order of SeqCst fences. With membarrier,
//! H interrupts the thread of L somewhere, and the interrupt is a full fence F in that thread; if L's thread is not
//! running, the context switch was one. L being a compiler fence, the instructions on its two sides stay on their
//! sides, and F falls either after the last instruction before L, so that all of those are visible after H (the
//! call returns only once F was executed); or before that one, hence before all that follow L, which therefore see
//! everything before H (F was executed only after the call began). Every outcome of the membarrier pair is thus
//! one of the fence pair, and a proof that uses only the contract, like the model's, holds for both.

use super::{Mutation, atomic::Ordering, broken, fence};
use crate::sys::SysError;
#[cfg(not(all(test, revocable_model)))]
use crate::sys::{feature::Feature, membarrier, probe::Support};

/// Which pair of barriers is in use: both sides must take theirs from the same value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Barriers {
    /// Free on the light side, a system call on the heavy one.
    #[cfg(not(all(test, revocable_model)))]
    Membarrier,
    /// A SeqCst fence on both sides. The model has only this one.
    Fences,
}

impl Barriers {
    /// The best pair that this kernel gives this process.
    pub(crate) fn best() -> Self {
        // Miri has no membarrier(2).
        #[cfg(not(all(test, revocable_model)))]
        if !cfg!(miri) && Support::check(Feature::MEMBARRIER).is_ok() {
            return Self::Membarrier;
        }
        Self::Fences
    }

    /// The side that must cost nothing, between a store and a load that must not be swapped.
    #[inline(always)]
    pub(crate) fn light(self) {
        if broken(Mutation::LightBarrier) {
            return;
        }
        match self {
            // The partner is the system call in `heavy`.
            #[cfg(not(all(test, revocable_model)))]
            Self::Membarrier => std::sync::atomic::compiler_fence(Ordering::SeqCst),
            Self::Fences => fence(Ordering::SeqCst),
        }
    }

    /// The side that pays for both.
    ///
    /// # Errors
    ///
    /// The kernel refused a command that it accepted before (because of a seccomp filter that was installed since, say).
    /// There is no other way to reach threads in the middle of a light barrier, so the caller must fail closed.
    pub(crate) fn heavy(self) -> Result<(), SysError> {
        if broken(Mutation::HeavyBarrier) {
            return Ok(());
        }
        match self {
            #[cfg(not(all(test, revocable_model)))]
            Self::Membarrier => {
                // A process that was forked between the registration and now may have to register for itself.
                membarrier::barrier().or_else(|_| membarrier::register().and_then(|()| membarrier::barrier()))?;
            }
            Self::Fences => fence(Ordering::SeqCst),
        }
        Ok(())
    }
}

#[cfg(all(test, not(revocable_model)))]
mod tests {
    use super::*;

    #[test]
    fn whichever_pair_was_chosen_its_heavy_side_works() {
        println!("barriers: {:?}", Barriers::best());
        Barriers::best().heavy().unwrap();
        Barriers::Fences.heavy().unwrap();
    }
}
