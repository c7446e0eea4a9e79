//! A claim that lasts as long as its thread, and that the kernel ends: a robust mutex, never unlocked.
//!
//! A destructor of a thread-local cannot tell that its thread is done: other destructors run after it, and may do anything.
//! The kernel's walk of the robust list (`exit_robust_list`; robust_futexes.rst) comes after all of them, when the thread
//! runs no more.
//!
//! UNSAFETY: pthread functions on mutexes that are allocated here and never freed or moved.
#![expect(unsafe_code, reason = "robust mutexes have no safe form")]

use nix::libc;
// Not from `crate::sync`: the model hands out its thread numbers itself.
use core::sync::atomic::{AtomicPtr, Ordering};
use std::mem::MaybeUninit;
use std::ptr;

/// A claim that one living thread at a time has.
///
/// A forked child inherits the claims of its parent's threads: the thread that forked keeps its own, and those of the
/// others never end there.
#[derive(Debug, Default)]
pub(crate) struct LifeLock(AtomicPtr<libc::pthread_mutex_t>);

impl LifeLock {
    /// Claims it for the rest of the calling thread's life, unless a living thread has it (even the calling one). Never
    /// sleeps. The last owner's accesses come before this.
    pub(crate) fn claim(&self) -> bool {
        let mutex = self.mutex();
        // SAFETY: *Initialised*, see `mutex`.
        match unsafe { libc::pthread_mutex_trylock(mutex) } {
            0 => true,
            libc::EOWNERDEAD => {
                // SAFETY: as above; this thread has just locked it, and it protects nothing that could be half-done.
                unsafe { libc::pthread_mutex_consistent(mutex) };
                true
            }
            _ => false,
        }
    }

    /// True if no living thread has it. Never sleeps; a claim at the same time may fail.
    pub(crate) fn is_free(&self) -> bool {
        let free = self.claim();
        if free {
            // SAFETY: *Initialised*, and locked by this thread in the line above.
            unsafe { libc::pthread_mutex_unlock(self.mutex()) };
        }
        free
    }

    /// *Initialised*: what this returns is an initialised mutex that is never freed or moved, and that only this type uses.
    fn mutex(&self) -> *mut libc::pthread_mutex_t {
        // Acquire, here and below, pairs with the Release that published it.
        let known = self.0.load(Ordering::Acquire);
        if !known.is_null() {
            return known;
        }
        let made = Box::into_raw(Box::new(MaybeUninit::<libc::pthread_mutex_t>::uninit())).cast();
        let mut attributes = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        // SAFETY: room for what is initialised here.
        unsafe { libc::pthread_mutexattr_init(attributes.as_mut_ptr()) };
        // If the kernel has no robust mutexes this fails, and a claim outlasts its thread: nothing worse. Miri has none.
        // SAFETY: initialised above.
        #[cfg(not(miri))]
        unsafe {
            libc::pthread_mutexattr_setrobust(attributes.as_mut_ptr(), libc::PTHREAD_MUTEX_ROBUST)
        };
        // SAFETY: room for a mutex, which no other thread knows, and attributes that were initialised above.
        unsafe { libc::pthread_mutex_init(made, attributes.as_ptr()) };
        // SAFETY: initialised above, and used no more.
        unsafe { libc::pthread_mutexattr_destroy(attributes.as_mut_ptr()) };
        match self.0.compare_exchange(ptr::null_mut(), made, Ordering::Release, Ordering::Acquire) {
            Ok(_) => made,
            Err(theirs) => {
                // SAFETY: initialised above, never locked, and not published.
                unsafe { libc::pthread_mutex_destroy(made) };
                // SAFETY: it came from `Box::into_raw` above, with this layout, and was not published.
                drop(unsafe { Box::from_raw(made.cast::<MaybeUninit<libc::pthread_mutex_t>>()) });
                theirs
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Late(&'static LifeLock);

    impl Drop for Late {
        fn drop(&mut self) {
            assert!(!self.0.is_free(), "the thread runs still");
            LATER.with(|later| *later.borrow_mut() = Some(Later(self.0)));
        }
    }

    struct Later(&'static LifeLock);

    impl Drop for Later {
        fn drop(&mut self) {
            assert!(!self.0.claim(), "the thread runs still");
        }
    }

    thread_local! {
        static LATE: std::cell::RefCell<Option<Late>> = const { std::cell::RefCell::new(None) };
        static LATER: std::cell::RefCell<Option<Later>> = const { std::cell::RefCell::new(None) };
    }

    #[test]
    fn a_claim_lasts_until_the_last_destructor_of_its_thread_and_no_longer() {
        let lock: &'static LifeLock = Box::leak(Box::default());
        for _ in 0..3 {
            std::thread::spawn(move || {
                LATE.with(|late| *late.borrow_mut() = Some(Late(lock)));
                assert!(lock.is_free() && lock.claim() && !lock.claim() && !lock.is_free());
            })
            .join()
            .expect("no panic");
        }
        assert!(lock.claim());
    }
}
