//! The calling thread's id, and threads of the crate's own.
//!
//! The crate's threads are the C library's, not the standard library's, for two things that the latter does where each of
//! its threads starts and ends (`std::sys::stack_overflow`). It takes a lock, which a child that is forked meanwhile inherits
//! held: no thread of std's ever starts there, and a child may build regions of its own. And it ends the process if there
//! is no room for an alternate signal stack.
//!
//! UNSAFETY: starts, joins and detaches threads; see [`Thread`].
#![expect(unsafe_code, reason = "pthread_create and its kin")]

use super::SysError;
use super::identity::Identity;
use super::signals::WithoutSignals;
use nix::errno::Errno;
use nix::libc;
use std::ffi::{CString, c_void};
use std::mem::{self, ManuallyDrop};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The caller's thread id, the one in `/proc/PID/task`.
pub(crate) fn current_tid() -> i32 {
    nix::unistd::gettid().as_raw()
}

/// The size of a thread's stack, in bytes: what the standard library gives to its own.
const STACK: usize = 2 << 20;

/// A thread of the crate's own. It goes on if this is dropped.
#[derive(Debug)]
pub(crate) struct Thread {
    /// Neither joined nor detached yet.
    id: libc::pthread_t,
    /// The process that has it. In a forked child the same `id` may be another thread.
    process: Identity,
}

// SAFETY: a `pthread_t` (a pointer with musl) may be used in any thread of its process.
unsafe impl Send for Thread {}
// SAFETY: as above; by reference it is only compared.
unsafe impl Sync for Thread {}

/// Starts a thread of the crate's own, which takes none of the process's signals: a handler of the application must not run
/// in a thread that resolves other threads' faults. SIGBUS and SIGSEGV stay unblocked, for the thread's own accesses. A
/// panic ends the thread, and nothing else.
///
/// # Errors
/// No thread can be started (clone(2)), or there is no room for its stack.
pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<Thread, SysError> {
    Thread::start(name, Box::new(run))
}

/// Makes the call `run` in a thread of its own, as [`spawn`] starts it, and calls `meanwhile` again and again in this one
/// until it is done. A panic of `run` is one of the caller's.
///
/// # Errors
/// As for [`spawn`]; nothing was called.
pub(crate) fn beside<R: Send>(
    name: &str,
    run: impl FnOnce() -> R + Send,
    mut meanwhile: impl FnMut(),
) -> Result<R, SysError> {
    let done = AtomicBool::new(false);
    let caller = std::thread::current();
    let mut result: std::thread::Result<R> = Err(Box::new("the thread has not run"));
    let run: Box<dyn FnOnce() + Send + '_> = Box::new(|| {
        result = catch_unwind(AssertUnwindSafe(run));
        done.store(true, Ordering::Release);
        caller.unpark();
    });
    // SAFETY: a lifetime only. The thread is the one that uses what `run` borrows, and `Joined` waits for its end before this
    // function returns or unwinds. A child that is forked meanwhile has no such thread, and this one's stack of its own.
    let run = unsafe { mem::transmute::<Box<dyn FnOnce() + Send + '_>, Box<dyn FnOnce() + Send + 'static>>(run) };
    let joined = Joined(Some(Thread::start(name, run)?));
    while !done.load(Ordering::Acquire) {
        meanwhile();
        std::thread::park_timeout(Duration::from_micros(200));
    }
    drop(joined);
    Ok(result.unwrap_or_else(|panic| resume_unwind(panic)))
}

/// Joined when this is dropped.
struct Joined(Option<Thread>);

impl Drop for Joined {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            thread.join();
        }
    }
}

struct Start {
    name: CString,
    run: Box<dyn FnOnce() + Send>,
}

extern "C" fn begin(start: *mut c_void) -> *mut c_void {
    // SAFETY: the box that `Thread::start` has given to this thread alone.
    let Start { name, run } = *unsafe { Box::from_raw(start.cast::<Start>()) };
    // Miri has neither this nor attributes.
    if !cfg!(miri) {
        let _ = nix::sys::prctl::set_name(&name);
    }
    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
        // Its destructor may panic in turn.
        mem::forget(panic);
    }
    ptr::null_mut()
}

impl Thread {
    fn start(name: &str, run: Box<dyn FnOnce() + Send>) -> Result<Self, SysError> {
        super::may_fail("clone")?;
        Identity::prepare()?;
        // Before the thread is there: a handler of this thread's may fork at any time, and the child does not have it.
        let process = Identity::current();
        let start = Box::into_raw(Box::new(Start { name: CString::new(name).unwrap_or_default(), run }));
        // The new thread inherits the mask, so it never runs with less.
        let blocked = WithoutSignals::new();
        let created = create(start.cast());
        drop(blocked);
        let id = created.map_err(|errno| {
            // SAFETY: the box made above, which no thread was given.
            drop(unsafe { Box::from_raw(start) });
            SysError::new("clone", errno)
        })?;
        Ok(Self { id, process })
    }

    /// Waits for its end. Returns at once in the thread itself, and in a forked child, which does not have the thread.
    pub(crate) fn join(self) {
        // SAFETY: always safe (pthread_self(3)).
        let here = unsafe { libc::pthread_self() };
        if !self.process.is_current() || self.id == here {
            return;
        }
        let thread = ManuallyDrop::new(self);
        // SAFETY: a thread of this process, neither joined nor detached, and not so afterwards by anyone else: `self` is gone.
        let failed = unsafe { libc::pthread_join(thread.id, ptr::null_mut()) };
        debug_assert_eq!(failed, 0, "a thread that can be joined");
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        if self.process.is_current() {
            // SAFETY: a thread of this process, neither joined nor detached; this is the last use of its id.
            unsafe { libc::pthread_detach(self.id) };
        }
    }
}

/// Calls pthread_create(3) for a thread that calls `begin` with `start`.
fn create(start: *mut c_void) -> Result<libc::pthread_t, Errno> {
    let mut id = mem::MaybeUninit::uninit();
    let mut room = mem::MaybeUninit::uninit();
    let attributes: *mut libc::pthread_attr_t = if cfg!(miri) { ptr::null_mut() } else { room.as_mut_ptr() };
    if !attributes.is_null() {
        // SAFETY: room for attributes, which this initialises.
        succeeded(unsafe { libc::pthread_attr_init(attributes) })?;
        // The C library's own size is the limit on the main thread's stack with glibc, and 128 KiB with musl.
        // SAFETY: initialised.
        succeeded(unsafe { libc::pthread_attr_setstacksize(attributes, STACK) })?;
    }
    // SAFETY: initialised attributes, or null for none; room for the id. `begin` may be called once in any thread.
    let created = succeeded(unsafe { libc::pthread_create(id.as_mut_ptr(), attributes, begin, start) });
    if !attributes.is_null() {
        // SAFETY: initialised, and no longer used.
        let _ = unsafe { libc::pthread_attr_destroy(attributes) };
    }
    // SAFETY: written by pthread_create, which succeeded.
    created.map(|()| unsafe { id.assume_init() })
}

/// What a function of pthreads returns.
fn succeeded(returned: libc::c_int) -> Result<(), Errno> {
    if returned == 0 { Ok(()) } else { Err(Errno::from_raw(returned)) }
}

#[cfg(all(test, not(revocable_model)))]
mod tests {
    use super::super::identity::tests::forked;
    use super::*;
    use nix::sys::signal::{SIGBUS, SIGSEGV, SIGUSR1, SigSet};
    use std::panic::catch_unwind;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc::channel;

    #[test]
    fn a_thread_has_its_name_takes_no_signals_and_has_ended_after_the_join() {
        let (tell, told) = channel();
        let ended = Arc::new(AtomicBool::new(false));
        let its = Arc::clone(&ended);
        let thread = spawn("mmio-test", move || {
            let name = nix::sys::prctl::get_name().expect("it has one");
            let blocked = SigSet::thread_get_mask().expect("a mask");
            tell.send((name, [SIGUSR1, SIGBUS, SIGSEGV].map(|signal| blocked.contains(signal)))).expect("it is heard");
            std::thread::sleep(Duration::from_millis(20));
            its.store(true, Ordering::Relaxed);
        });
        thread.expect("it starts").join();
        assert!(ended.load(Ordering::Relaxed), "joined too early");
        assert_eq!(told.recv().expect("told"), (c"mmio-test".to_owned(), [true, false, false]));
    }

    #[test]
    fn a_panic_ends_its_thread_only() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("the payload's destructor");
            }
        }
        spawn("mmio-test", || std::panic::panic_any(Bomb)).expect("it starts").join();
        let caught = catch_unwind(|| beside("mmio-test", || panic!("seen by the caller"), || ()));
        let caught = caught.expect_err("it panicked");
        assert_eq!(caught.downcast_ref::<&str>(), Some(&"seen by the caller"));
    }

    #[test]
    fn a_thread_that_joins_itself_goes_on() {
        let (give, given) = channel::<Thread>();
        let (tell, told) = channel();
        give.send(
            spawn("mmio-test", move || {
                given.recv().expect("this very thread").join();
                tell.send(()).expect("it is heard");
            })
            .expect("it starts"),
        )
        .expect("it takes it");
        told.recv().expect("it went on");
    }

    #[test]
    fn the_caller_goes_on_beside_the_call_and_has_its_result() {
        let turns = AtomicUsize::new(0);
        let mut seen = 0;
        let run = || {
            while turns.load(Ordering::Relaxed) < 3 {
                std::thread::yield_now();
            }
            seen = turns.load(Ordering::Relaxed);
            current_tid()
        };
        let tid = beside("mmio-test", run, || {
            turns.fetch_add(1, Ordering::Relaxed);
        });
        assert_ne!(tid, Ok(current_tid()), "a thread of its own");
        assert!(seen >= 3);
    }

    /// What the call has borrowed is the caller's again once the caller unwinds.
    #[test]
    fn a_panic_beside_the_call_waits_for_the_call() {
        let (begun, ended) = (AtomicBool::new(false), AtomicBool::new(false));
        let run = || {
            begun.store(true, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(50));
            ended.store(true, Ordering::Relaxed);
        };
        let meanwhile = || {
            if begun.load(Ordering::Relaxed) {
                resume_unwind(Box::new("meanwhile"));
            }
        };
        assert!(catch_unwind(AssertUnwindSafe(|| beside("mmio-test", run, meanwhile))).is_err());
        assert!(ended.load(Ordering::Relaxed), "the call still has what it borrowed");
    }

    /// The C library gives the id of a thread that the child does not have to the child's next one.
    #[test]
    fn a_child_that_drops_an_inherited_thread_detaches_none_of_its_own() {
        let (end, ended) = channel::<()>();
        let mut inherited = Some(
            spawn("mmio-test", move || {
                let _ = ended.recv();
            })
            .expect("it starts"),
        );
        let code = forked(|| {
            let inherited = inherited.take().expect("the parent's");
            let own: Vec<_> = (0..4).map(|_| spawn("mmio-test", || ()).expect("it starts")).collect();
            let reused = own.iter().any(|thread| thread.id == inherited.id);
            drop(inherited);
            own.into_iter().for_each(Thread::join);
            if cfg!(target_env = "gnu") && !reused { 2 } else { 0 }
        });
        assert_eq!(code, 0, "2: no id was used again, so nothing is shown; else a thread could not be joined");
        drop(end);
        inherited.expect("the parent still has it").join();
    }
}
