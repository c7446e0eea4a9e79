//! How many completions wait, for whoever polls: an eventfd, or in the model a number.

#[cfg(not(revocable_model))]
mod real {
    use crate::sys::SysError;
    use nix::sys::eventfd::{EfdFlags, EventFd};
    use std::os::fd::{AsFd, BorrowedFd};

    pub(in crate::async_fault) struct Ready(EventFd);

    impl Ready {
        pub(in crate::async_fault) fn new() -> Result<Self, SysError> {
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_SEMAPHORE;
            EventFd::from_flags(flags).map(Self).map_err(|e| SysError::new("eventfd", e))
        }

        pub(in crate::async_fault) fn add_one(&self) {
            // It cannot be full: it would take 2^64 completions.
            let _ = self.0.write(1);
        }

        pub(in crate::async_fault) fn take_one(&self) {
            let _ = self.0.read();
        }
    }

    impl AsFd for Ready {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
}

#[cfg(not(revocable_model))]
pub(super) use real::Ready;

#[cfg(revocable_model)]
mod model {
    use crate::sync::atomic::{AtomicU32, Ordering};
    use crate::sys::SysError;
    use std::os::fd::{AsFd, BorrowedFd};

    pub(in crate::async_fault) struct Ready(AtomicU32);

    impl Ready {
        pub(in crate::async_fault) fn new() -> Result<Self, SysError> {
            Ok(Self(AtomicU32::new(0)))
        }

        pub(in crate::async_fault) fn add_one(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }

        /// As a non-blocking read of an eventfd: takes nothing from nothing.
        pub(in crate::async_fault) fn take_one(&self) {
            let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_sub(1));
        }

        #[cfg(test)]
        pub(in crate::async_fault) fn count(&self) -> u32 {
            self.0.load(Ordering::SeqCst)
        }
    }

    impl AsFd for Ready {
        fn as_fd(&self) -> BorrowedFd<'_> {
            unreachable!("the model polls nothing")
        }
    }
}

#[cfg(revocable_model)]
pub(super) use model::Ready;
