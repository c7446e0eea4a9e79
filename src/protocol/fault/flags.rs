//! The fault flags, with the kernel's values and the kernel's rules for them.

use std::fmt;

bitflags::bitflags! {
    /// What access a faulting caller makes, and what it allows the fault to do.
    ///
    /// Names and values are the kernel's `enum fault_flag` (include/linux/mm_types.h).
    ///
    /// ```
    /// use revocable_mmio::fault::{FaultFlags, IllegalFlags};
    ///
    /// let store = FaultFlags::WAIT | FaultFlags::WRITE;
    /// assert!(store.allow_retry_first()); // its first try may be retried
    /// assert_eq!(store.validate(), Ok(store));
    /// assert!(matches!(FaultFlags::RETRY_NOWAIT.validate(), Err(IllegalFlags::NowaitWithoutRetry { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct FaultFlags: u32 {
        /// The access is a store.
        const WRITE = 1 << 0;
        /// The fault may end in [`Retry`](super::Outcome::Retry), with the caller's lock released.
        const ALLOW_RETRY = 1 << 2;
        /// Neither release the caller's lock nor sleep: retry at once instead. Needs `ALLOW_RETRY`.
        const RETRY_NOWAIT = 1 << 3;
        /// A fatal signal ends the wait; here, a [`CancelToken`](crate::CancelToken).
        const KILLABLE = 1 << 4;
        /// This is not the first try. Needs `ALLOW_RETRY`.
        const TRIED = 1 << 5;
        /// The access came from user mode; a system call's or a vCPU's did not.
        const USER = 1 << 6;
        /// Any signal ends the wait.
        const INTERRUPTIBLE = 1 << 9;
    }
}

impl FaultFlags {
    /// What a page fault of the CPU allows (`FAULT_FLAG_DEFAULT`).
    pub const DEFAULT: Self = Self::ALLOW_RETRY.union(Self::KILLABLE).union(Self::INTERRUPTIBLE);
    /// What a caller that must not sleep allows (get_user_pages with `FOLL_NOWAIT`).
    pub const NOWAIT: Self = Self::ALLOW_RETRY.union(Self::RETRY_NOWAIT);
    /// What a caller that waits and can be killed allows (`fixup_user_fault`).
    pub const WAIT: Self = Self::ALLOW_RETRY.union(Self::KILLABLE);

    /// True for a first try that may be retried (`fault_flag_allow_retry_first`).
    #[must_use]
    pub const fn allow_retry_first(self) -> bool {
        self.contains(Self::ALLOW_RETRY) && !self.contains(Self::TRIED)
    }

    /// The same flags, if they make sense together.
    ///
    /// # Errors
    ///
    /// The combinations of which the kernel warns: see [`IllegalFlags`].
    pub fn validate(self) -> Result<Self, IllegalFlags> {
        let allow = self.contains(Self::ALLOW_RETRY);
        let unknown = self.difference(Self::all());
        if !unknown.is_empty() {
            Err(IllegalFlags::Unknown { flags: unknown.bits() })
        } else if self.contains(Self::RETRY_NOWAIT) && !allow {
            Err(IllegalFlags::NowaitWithoutRetry { flags: self })
        } else if self.contains(Self::TRIED) && !allow {
            Err(IllegalFlags::TriedWithoutRetry { flags: self })
        } else {
            Ok(self)
        }
    }
}

impl Default for FaultFlags {
    /// [`FaultFlags::DEFAULT`].
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for FaultFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bitflags::parser::to_writer(self, f)
    }
}

/// A set of flags that contradicts itself.
///
/// ```
/// use revocable_mmio::fault::{FaultFlags, IllegalFlags};
///
/// let flags = FaultFlags::TRIED | FaultFlags::KILLABLE;
/// assert_eq!(flags.validate(), Err(IllegalFlags::TriedWithoutRetry { flags }));
/// assert_eq!(FaultFlags::from_bits_retain(1 << 10).validate(), Err(IllegalFlags::Unknown { flags: 1 << 10 }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IllegalFlags {
    /// RETRY_NOWAIT ends in a retry, so it needs ALLOW_RETRY (`handle_userfault` warns).
    #[error("{flags}: RETRY_NOWAIT needs ALLOW_RETRY")]
    NowaitWithoutRetry {
        /// The whole set.
        flags: FaultFlags,
    },
    /// Only a caller that may retry can have tried before (include/linux/mm_types.h).
    #[error("{flags}: TRIED needs ALLOW_RETRY")]
    TriedWithoutRetry {
        /// The whole set.
        flags: FaultFlags,
    },
    /// Bits that mean nothing to this crate, though the kernel may have a use for them.
    #[error("{flags:#x} are no fault flags of this crate")]
    Unknown {
        /// The bits that are not known.
        flags: u32,
    },
}
