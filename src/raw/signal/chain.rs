//! The handlers that aren't ours: they get what isn't for this crate as the kernel would have delivered it.
//!
//! # Nothing goes round
//!
//! The crate's handler stands in front of a list of actions that it has displaced, oldest first. A signal from the kernel goes
//! to the newest. If that one chains, to what it had displaced, which is the crate's handler, the same delivery comes here again
//! and goes one further down the list; the delivery itself says how far it is (`delivery.rs`). The bottom is the default action. So
//! each action gets a delivery once, in the order in which they would have called each other.
//!
//! An action may also put back what it had displaced, and return or raise the signal anew. That is the crate's handler as it
//! was installed before, which a mark in its flags tells ([`GENERATIONS`]): the list is then what it was at that time.
#![expect(unsafe_code, reason = "sigaction, and lists that are never freed")]
// UNSAFETY: async-signal-safe libc functions, and leaked lists.

use super::{SignalError, handler};
use core::ffi::{c_int, c_void};
use core::mem::zeroed;
use core::ptr::{null, null_mut};
// Not from `crate::sync`: a signal handler reads these, and the model checker's atomics aren't async-signal-safe.
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use nix::errno::Errno;
use nix::libc::{
    self, SA_NOCLDSTOP, SA_NOCLDWAIT, SA_ONSTACK, SA_RESTART, SA_SIGINFO, SIG_DFL, SIGBUS, sigaction, siginfo_t,
    sigset_t,
};

mod delivery;

pub(super) use delivery::foreign;

/// Flags that mean nothing for SIGBUS and SIGSEGV, and that the kernel keeps: they tell one installation of the crate's handler
/// from the next.
const GENERATIONS: [c_int; 4] = [0, SA_NOCLDSTOP, SA_NOCLDWAIT, SA_NOCLDSTOP | SA_NOCLDWAIT];

/// No generation: what was there before the first.
const NONE: usize = usize::MAX;

/// An action that the crate's handler has displaced.
struct Displaced {
    action: sigaction,
    /// It has set the signal to its default, or was to be called once only and has been.
    spent: AtomicBool,
    /// Which generation of the crate's handler it had displaced itself, or [`NONE`].
    over: AtomicUsize,
}

/// What one signal is passed on to. Lists are leaked, and never freed: a handler may read one at any time.
struct Chain {
    /// Oldest first.
    displaced: Vec<Displaced>,
    /// How many of them still are in the chain.
    len: AtomicUsize,
    /// Which generation of the crate's handler is in front: an index into [`GENERATIONS`].
    generation: AtomicUsize,
}

static SIGBUS_CHAIN: AtomicPtr<Chain> = AtomicPtr::new(null_mut());
static SIGSEGV_CHAIN: AtomicPtr<Chain> = AtomicPtr::new(null_mut());

fn slot(signal: c_int) -> &'static AtomicPtr<Chain> {
    if signal == SIGBUS { &SIGBUS_CHAIN } else { &SIGSEGV_CHAIN }
}

impl Chain {
    fn of(signal: c_int) -> Option<&'static Self> {
        // Acquire: partner of the Release in `displace`.
        // SAFETY: null, or a leaked box.
        unsafe { slot(signal).load(Ordering::Acquire).as_ref() }
    }

    fn live(&self) -> &[Displaced] {
        &self.displaced[..self.len.load(Ordering::SeqCst)]
    }

    /// The crate's handler of an earlier generation was put back, by the action that had displaced it: that one is out, and so
    /// are all that came after.
    fn roll_back(&self, generation: usize) {
        let out = self.live().iter().position(|displaced| displaced.over.load(Ordering::SeqCst) == generation);
        if let Some(out) = out {
            self.len.store(out, Ordering::SeqCst);
        }
        self.generation.store(generation, Ordering::SeqCst);
    }

    /// Puts `action` on top of the list, before the crate's handler is installed in front of it; answers that one's generation.
    /// Not for signal handlers, and by one thread at a time.
    fn displace(signal: c_int, action: sigaction) -> usize {
        let known = Self::of(signal);
        let over = known.map_or(NONE, |known| known.generation.load(Ordering::SeqCst));
        let generation = over.wrapping_add(1) % GENERATIONS.len();
        if let Some(known) = known {
            // The one that is always in the way, another copy of this crate for instance, takes no more memory each time.
            if let Some(top) = known.live().last().filter(|top| is_same(&top.action, &action)) {
                top.over.store(over, Ordering::SeqCst);
                top.spent.store(false, Ordering::SeqCst);
                known.generation.store(generation, Ordering::SeqCst);
                return generation;
            }
        }
        let displaced =
            |action, spent, over| Displaced { action, spent: AtomicBool::new(spent), over: AtomicUsize::new(over) };
        // In the list once: it has but one memory of what it displaced.
        let kept =
            known.into_iter().flat_map(Self::live).filter(|kept| kept.action.sa_sigaction != action.sa_sigaction);
        let copy = |kept: &Displaced| {
            displaced(kept.action, kept.spent.load(Ordering::SeqCst), kept.over.load(Ordering::SeqCst))
        };
        let list: Vec<Displaced> = kept.map(copy).chain([displaced(action, false, over)]).collect();
        let len = AtomicUsize::new(list.len());
        let chain = Box::new(Self { displaced: list, len, generation: AtomicUsize::new(generation) });
        slot(signal).store(Box::into_raw(chain), Ordering::Release);
        generation
    }
}

fn is_same(one: &sigaction, other: &sigaction) -> bool {
    let flags = |action: &sigaction| action.sa_flags & !(SA_NOCLDSTOP | SA_NOCLDWAIT);
    one.sa_sigaction == other.sa_sigaction && flags(one) == flags(other) && kernel_mask(one) == kernel_mask(other)
}

/// What handles a signal: as much of its action as a delivery asks for, in a few bytes.
#[derive(Clone, Copy)]
struct Now {
    handler: usize,
    flags: c_int,
}

impl Now {
    /// What the kernel calls. Not inlined, so that the whole action is off the stack when an earlier handler runs.
    #[inline(never)]
    fn of(signal: c_int) -> Result<Self, Errno> {
        let mut action = default_action();
        exchange(signal, None, &mut action).map(|()| Self::in_action(&action))
    }

    fn in_action(action: &sigaction) -> Self {
        Self { handler: action.sa_sigaction, flags: action.sa_flags }
    }

    fn is_ours(self) -> bool {
        self.handler == address()
    }

    /// The generation of the crate's handler, if it is that.
    fn generation(self) -> usize {
        let mark = self.flags & (SA_NOCLDSTOP | SA_NOCLDWAIT);
        GENERATIONS.iter().position(|generation| *generation == mark).unwrap_or(0)
    }
}

fn address() -> usize {
    (handler as unsafe extern "C" fn(c_int, *mut siginfo_t, *mut c_void)) as usize
}

/// Is the crate's handler the one that the kernel calls?
pub(super) fn is_in_front(signal: c_int) -> Result<bool, Errno> {
    Now::of(signal).map(Now::is_ours)
}

/// Puts the crate's handler in front of whatever handles `signal` now, if it is not there already. By one thread at a time.
pub(super) fn install(signal: c_int) -> Result<(), SignalError> {
    let refused = |errno| SignalError::Sigaction { signal, errno };
    let mut seen = default_action();
    exchange(signal, None, &mut seen).map_err(refused)?;
    if Now::in_action(&seen).is_ours() {
        return Ok(());
    }
    // The list is there before the handler that reads it is in place, and changed in case that another thread changed the
    // action in between.
    let generation = Chain::displace(signal, seen);
    let mut displaced = default_action();
    exchange(signal, Some(&ours(seen.sa_flags, generation)), &mut displaced).map_err(refused)?;
    if !is_same(&displaced, &seen) && !Now::in_action(&displaced).is_ours() {
        let generation = Chain::displace(signal, displaced);
        exchange(signal, Some(&ours(displaced.sa_flags, generation)), &mut default_action()).map_err(refused)?;
    }
    Ok(())
}

/// The crate's action. Everything is blocked while it runs, except signals that an instruction or a system call raises by itself:
/// blocked, those would kill. Two such are blocked on purpose, SIGBUS and SIGSEGV: a fault of the handler's own is for nobody.
/// `SA_RESTART` as the earlier one: a sent signal then interrupts the same system calls.
fn ours(earlier_flags: c_int, generation: usize) -> sigaction {
    // SAFETY: all zeroes is a valid sigaction, with an empty mask.
    let mut action: sigaction = unsafe { zeroed() };
    action.sa_sigaction = address();
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | (earlier_flags & SA_RESTART) | GENERATIONS[generation];
    // SAFETY: a valid set.
    unsafe { libc::sigfillset(&raw mut action.sa_mask) };
    for raised in [libc::SIGILL, libc::SIGTRAP, libc::SIGFPE, libc::SIGSYS] {
        // SAFETY: a valid set and signal number.
        unsafe { libc::sigdelset(&raw mut action.sa_mask, raised) };
    }
    action
}

/// The part of a set that the kernel knows: signal `n`, from 1 to 64, is bit `n - 1`.
type KernelMask = u64;

/// The first bytes of a set.
///
/// # Safety
///
/// At least the kernel's part is readable there.
unsafe fn kernel_part(set: *const sigset_t) -> KernelMask {
    // SAFETY: the caller's contract.
    unsafe { set.cast::<KernelMask>().read_unaligned() }
}

fn kernel_mask(action: &sigaction) -> KernelMask {
    // SAFETY: a whole set.
    unsafe { kernel_part(&raw const action.sa_mask) }
}

/// Keeps the crate's handler when an earlier one, called by it, reset the signal to its default: that was meant for
/// itself. (Rust's own handler does, for every signal that isn't a stack overflow.) The default action is then what
/// the crate passes signals on to in its place.
fn stay(signal: c_int, earlier: &Displaced) {
    if Now::of(signal).is_ok_and(|now| now.handler == SIG_DFL) {
        earlier.spent.store(true, Ordering::SeqCst);
        let generation = Chain::of(signal).map_or(0, |chain| chain.generation.load(Ordering::SeqCst));
        let _ = exchange(signal, Some(&ours(0, generation)), &mut default_action());
    }
}

/// Sets the default action, so that it gets what comes next.
#[inline(never)]
fn reset(signal: c_int) {
    let _ = exchange(signal, Some(&default_action()), &mut default_action());
}

fn default_action() -> sigaction {
    // SAFETY: all zeroes is a valid sigaction: SIG_DFL.
    unsafe { zeroed() }
}

/// `sigaction(2)`. `before` gets the action that was in force.
fn exchange(signal: c_int, new: Option<&sigaction>, before: &mut sigaction) -> Result<(), Errno> {
    let new = new.map_or(null(), core::ptr::from_ref);
    // SAFETY: null or valid pointers; the new handler keeps to the rules of handlers, by this module's construction.
    let result = unsafe { sigaction(signal, new, before) };
    Errno::result(result).map(drop)
}
