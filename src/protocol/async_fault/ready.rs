//! The number of completions that wait, for epoll: an eventfd, or in the model a number.

#[cfg(not(all(test, revocable_model)))]
mod real {
    use crate::sys::SysError;
    use crate::sys::identity::Identity;
    use nix::sys::eventfd::{EfdFlags, EventFd};
    use std::os::fd::{AsFd, BorrowedFd};

    pub(in crate::protocol::async_fault) struct Ready {
        eventfd: EventFd,
        /// The process whose queue it counts for. A forked child has the same eventfd, and another queue.
        process: Identity,
    }

    impl Ready {
        pub(in crate::protocol::async_fault) fn new() -> Result<Self, SysError> {
            Identity::prepare()?;
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_SEMAPHORE;
            let eventfd = EventFd::from_flags(flags).map_err(|e| SysError::new("eventfd", e))?;
            Ok(Self { eventfd, process: Identity::current() })
        }

        pub(in crate::protocol::async_fault) fn is_inherited(&self) -> bool {
            !self.process.is_current()
        }

        pub(in crate::protocol::async_fault) fn add_one(&self) {
            // It cannot be full: that would take 2^64 completions.
            let _ = self.eventfd.write(1);
        }

        pub(in crate::protocol::async_fault) fn take_one(&self) {
            let _ = self.eventfd.read();
        }
    }

    impl AsFd for Ready {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.eventfd.as_fd()
        }
    }
}

#[cfg(not(all(test, revocable_model)))]
pub(super) use real::Ready;

#[cfg(all(test, revocable_model))]
mod model {
    use crate::sync::atomic::{AtomicU32, Ordering};
    use crate::sys::SysError;
    use std::os::fd::{AsFd, BorrowedFd};

    pub(in crate::protocol::async_fault) struct Ready(AtomicU32);

    impl Ready {
        pub(in crate::protocol::async_fault) fn new() -> Result<Self, SysError> {
            Ok(Self(AtomicU32::new(0)))
        }

        pub(in crate::protocol::async_fault) fn is_inherited(&self) -> bool {
            false
        }

        pub(in crate::protocol::async_fault) fn add_one(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }

        /// Like a non-blocking read of an eventfd: takes nothing from nothing.
        pub(in crate::protocol::async_fault) fn take_one(&self) {
            let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_sub(1));
        }

        #[cfg(test)]
        pub(in crate::protocol::async_fault) fn count(&self) -> u32 {
            self.0.load(Ordering::SeqCst)
        }
    }

    impl AsFd for Ready {
        fn as_fd(&self) -> BorrowedFd<'_> {
            unreachable!("the model polls nothing")
        }
    }
}

#[cfg(all(test, revocable_model))]
pub(super) use model::Ready;
