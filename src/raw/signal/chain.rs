//! The handlers that are not the crate's: they get the signals that are not for this crate, as the kernel would have
//! delivered them.
//!
//! # No signal goes in a circle
//!
//! The crate's handler is in front of a list of actions that it has displaced, oldest first. A signal from the kernel goes
//! to the newest. If that one chains to the action that it had displaced, which is the crate's handler, the same delivery
//! comes here again and goes one further down the list; the delivery itself says how far it is ([`Mark`]). At the bottom is
//! the default action. So each action gets a delivery once, in the order in which the actions would have called each other.
//!
//! An action may also put back the handler that it had displaced, and return or raise the signal anew. That handler is the
//! crate's as it was installed before, which a mark in its flags tells ([`GENERATIONS`]): the list then becomes what it was
//! at that time.
#![expect(unsafe_code, reason = "sigaction, and calls of foreign handlers")]
// UNSAFETY: async-signal-safe libc functions, other handlers called by the contract that they were installed with, leaked
// lists, and the unused end of a siginfo.

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

/// Flags that mean nothing for SIGBUS and SIGSEGV, and that the kernel keeps: they distinguish one installation of the
/// crate's handler from the next.
const GENERATIONS: [c_int; 4] = [0, SA_NOCLDSTOP, SA_NOCLDWAIT, SA_NOCLDSTOP | SA_NOCLDWAIT];

/// No generation: the action before the first one.
const NONE: usize = usize::MAX;

/// An action that the crate's handler has displaced.
struct Displaced {
    action: sigaction,
    /// It has set the signal to its default, or it was to be called only once and has been.
    spent: AtomicBool,
    /// The generation of the crate's handler that it had displaced itself, or [`NONE`].
    over: AtomicUsize,
}

/// The actions that one signal is passed on to. Lists are leaked, and never freed: a handler may read one at any time.
struct Chain {
    /// Oldest first.
    displaced: Vec<Displaced>,
    /// How many of them are still in the chain.
    len: AtomicUsize,
    /// The generation of the crate's handler that is in front: an index into [`GENERATIONS`].
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

    /// Called when an action has put back the crate's handler of an earlier generation, which it had displaced: that action
    /// leaves the chain, and so do all later ones.
    fn roll_back(&self, generation: usize) {
        let out = self.live().iter().position(|displaced| displaced.over.load(Ordering::SeqCst) == generation);
        if let Some(out) = out {
            self.len.store(out, Ordering::SeqCst);
        }
        self.generation.store(generation, Ordering::SeqCst);
    }

    /// Puts `action` on top of the list, before the crate's handler is installed in front of it; returns the generation of
    /// the crate's handler. Not for signal handlers, and by one thread at a time.
    fn displace(signal: c_int, action: sigaction) -> usize {
        let known = Self::of(signal);
        let over = known.map_or(NONE, |known| known.generation.load(Ordering::SeqCst));
        let generation = over.wrapping_add(1) % GENERATIONS.len();
        if let Some(known) = known {
            // An action that comes again and again, such as another copy of this crate, takes no more memory each time.
            if let Some(top) = known.live().last().filter(|top| is_same(&top.action, &action)) {
                top.over.store(over, Ordering::SeqCst);
                top.spent.store(false, Ordering::SeqCst);
                known.generation.store(generation, Ordering::SeqCst);
                return generation;
            }
        }
        let displaced =
            |action, spent, over| Displaced { action, spent: AtomicBool::new(spent), over: AtomicUsize::new(over) };
        // Once in the list: an action remembers only one handler that it displaced.
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

fn is_ours(action: &sigaction) -> bool {
    action.sa_sigaction == address()
}

fn address() -> usize {
    (handler as unsafe extern "C" fn(c_int, *mut siginfo_t, *mut c_void)) as usize
}

/// True if the crate's handler is the one that the kernel calls.
pub(super) fn is_in_front(signal: c_int) -> Result<bool, Errno> {
    exchange(signal, None).map(|now| is_ours(&now))
}

/// Puts the crate's handler in front of whatever handles `signal` now, if it is not there already. By one thread at a time.
pub(super) fn install(signal: c_int) -> Result<(), SignalError> {
    let refused = |errno| SignalError::Sigaction { signal, errno };
    let seen = exchange(signal, None).map_err(refused)?;
    if is_ours(&seen) {
        return Ok(());
    }
    // The list is ready before the handler that reads it is installed, and changed if another thread changed the action in
    // between.
    let generation = Chain::displace(signal, seen);
    let displaced = exchange(signal, Some(&ours(seen.sa_flags, generation))).map_err(refused)?;
    if !is_same(&displaced, &seen) && !is_ours(&displaced) {
        let generation = Chain::displace(signal, displaced);
        exchange(signal, Some(&ours(displaced.sa_flags, generation))).map_err(refused)?;
    }
    Ok(())
}

/// The crate's action. All signals are blocked while it runs, except those that an instruction or a system call itself
/// raises: blocked, those would kill. Two of those, SIGBUS and SIGSEGV, are blocked on purpose: no handler can resolve a
/// fault of this handler. `SA_RESTART` is as in the earlier action: a sent signal then interrupts the same system calls.
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

fn generation_of(action: &sigaction) -> usize {
    let mark = action.sa_flags & (SA_NOCLDSTOP | SA_NOCLDWAIT);
    GENERATIONS.iter().position(|generation| *generation == mark).unwrap_or(0)
}

/// Delivers a signal that is not for this crate.
///
/// # Safety
///
/// The arguments of a handler that is running now, in the thread that the signal was delivered to.
pub(super) unsafe fn foreign(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let errno = Errno::last_raw();
    let chain = Chain::of(signal);
    // SAFETY: the caller's contract.
    let mark = unsafe { Mark::of(info) };
    let now = exchange(signal, None).ok();
    let in_front = now.is_none_or(|now| is_ours(&now));
    // How many actions of the list are still below the delivery.
    let above = match (mark.get(), now) {
        (Some(above), _) => above,
        (None, Some(now)) if in_front => {
            if let Some(chain) = chain.filter(|chain| chain.generation.load(Ordering::SeqCst) != generation_of(&now)) {
                chain.roll_back(generation_of(&now));
            }
            usize::MAX
        }
        (None, _) => usize::MAX,
    };
    let live = chain.map_or(&[][..], Chain::live);
    let live = &live[..above.min(live.len())];
    // An action of the list that has displaced this handler anew has called it: it is not called again.
    let has_called = |earlier: &Displaced| now.is_some_and(|now| now.sa_sigaction == earlier.action.sa_sigaction);
    let next = live.iter().rposition(|earlier| !has_called(earlier));
    let earlier = next.map(|next| &live[next]).filter(|earlier| match earlier.action.sa_flags & SA_RESETHAND {
        0 => !earlier.spent.load(Ordering::SeqCst),
        // Only one delivery calls it.
        _ => !earlier.spent.swap(true, Ordering::SeqCst),
    });
    // SAFETY: the caller's contract.
    let fault = is_fault(signal, unsafe { &*info });
    match earlier {
        Some(Displaced { action, .. }) if action.sa_sigaction == SIG_IGN && !fault => {}
        Some(earlier) if earlier.action.sa_sigaction != SIG_IGN && earlier.action.sa_sigaction != SIG_DFL => {
            let before = mark.set(next.unwrap_or(0));
            // A handler that another handler has called runs with that one's mask, as it would without the crate.
            let by_kernel = in_front && before.is_none();
            // SAFETY: the caller's contract: the context of this delivery.
            let ours = by_kernel.then(|| unsafe { set_mask(&earlier.action, signal, context.cast()) });
            Errno::set_raw(errno);
            // SAFETY: the handler was installed for this signal, with these flags, and gets the kernel's arguments.
            unsafe { call(&earlier.action, signal, info, context) };
            let errno = Errno::last_raw();
            if let Some(ours) = ours {
                // SAFETY: a valid set; only this thread's mask changes.
                unsafe { libc::pthread_sigmask(SIG_SETMASK, &raw const ours, null_mut()) };
            }
            mark.reset(before);
            stay(signal, earlier);
            Errno::set_raw(errno);
            return;
        }
        // The default action, or a fault that is ignored, which the kernel treats in the same way.
        _ => {
            let _ = exchange(signal, Some(&default_action()));
            if !fault {
                mark.reset(None);
                // SAFETY: the caller's contract.
                unsafe { send_again(signal, info) };
            }
            // A fault happens again when the handler returns, and then kills, with the right address in the core.
        }
    }
    Errno::set_raw(errno);
}

/// The part of a set that the kernel knows: signals 1 to 64.
type KernelMask = [u8; 8];

/// The first bytes of a set.
///
/// # Safety
///
/// At least the kernel's part is readable there.
unsafe fn first_bytes(set: *const sigset_t) -> KernelMask {
    // SAFETY: the caller's contract; bytes have no alignment.
    unsafe { set.cast::<KernelMask>().read() }
}

fn kernel_mask(action: &sigaction) -> KernelMask {
    // SAFETY: a whole set.
    unsafe { first_bytes(&raw const action.sa_mask) }
}

/// Sets the mask that the kernel would have set for `action` (`signal_delivered`): the signals that the interrupted code
/// had blocked, those that the action asks for, and the signal itself unless `SA_NODEFER`. Returns the mask before.
///
/// # Safety
///
/// The context of the delivery under way.
unsafe fn set_mask(action: &sigaction, signal: c_int, context: *const ucontext_t) -> sigset_t {
    // SAFETY: the caller's contract. The kernel's set is shorter than libc's, so no reference to it is made.
    let interrupted = unsafe { &raw const (*context).uc_sigmask };
    // SAFETY: as above: the kernel's part is there.
    let interrupted = unsafe { first_bytes(interrupted) };
    // SAFETY: all zeroes is a valid, empty set.
    let mut mask: sigset_t = unsafe { zeroed() };
    let mut before = mask;
    let mut bytes = kernel_mask(action);
    bytes.iter_mut().zip(interrupted).for_each(|(byte, also)| *byte |= also);
    // SAFETY: a set has room for the kernel's part.
    unsafe { (&raw mut mask).cast::<KernelMask>().write(bytes) };
    if action.sa_flags & SA_NODEFER == 0 {
        // SAFETY: a valid set and signal number.
        unsafe { libc::sigaddset(&raw mut mask, signal) };
    }
    // SAFETY: valid sets; only this thread's mask changes.
    unsafe { libc::pthread_sigmask(SIG_SETMASK, &raw const mask, &raw mut before) };
    before
}

/// How far down the list one delivery has come. It is kept in the delivery itself: at the end of the siginfo, which the
/// kernel clears and does not use. A handler that chains passes it on; one that leaves by longjmp drops it with its frame.
/// So nothing is ever left over.
struct Mark(*mut u64);

impl Mark {
    /// The kernel's siginfo has 48 bytes; there is room for several copies of this crate.
    const FIRST: usize = 8;
    const END: usize = size_of::<siginfo_t>() / size_of::<u64>();

    /// The key that tells this copy's marks from other copies'. The last byte says how far the delivery has come.
    fn key() -> u64 {
        (1 << 63 | (&raw const SIGBUS_CHAIN).addr().wrapping_mul(0x9E37_79B9) as u64) & !0xff
    }

    /// This copy's mark, or room for one.
    ///
    /// # Safety
    ///
    /// `info` is a siginfo that lives as long as the result.
    unsafe fn of(info: *mut siginfo_t) -> Self {
        let words = (Self::FIRST..Self::END).map(|n| info.cast::<u64>().wrapping_add(n));
        // SAFETY: inside of the siginfo.
        let at = |word: &*mut u64| unsafe { word.read_unaligned() };
        let own = words.clone().find(|word| at(word) & !0xff == Self::key());
        let free = words.clone().find(|word| at(word) == 0);
        // All are in use for something else: take the last.
        let last = info.cast::<u64>().wrapping_add(Self::END - 1);
        Self(own.or(free).unwrap_or(last))
    }

    fn get(&self) -> Option<usize> {
        // SAFETY: `of`'s contract.
        let word = unsafe { self.0.read_unaligned() };
        (word & !0xff == Self::key()).then_some((word & 0xff) as usize)
    }

    /// Returns the value before.
    fn set(&self, above: usize) -> Option<usize> {
        let before = self.get();
        // SAFETY: `of`'s contract; only this thread uses its delivery.
        unsafe { self.0.write_unaligned(Self::key() | above.min(0xff) as u64) };
        before
    }

    fn reset(&self, before: Option<usize>) {
        let word = before.map_or(0, |above| Self::key() | above as u64);
        // SAFETY: as in `set`.
        unsafe { self.0.write_unaligned(word) };
    }
}

/// Calls an earlier handler.
///
/// # Safety
///
/// `action` was installed for `signal` and is not SIG_DFL or SIG_IGN; the rest are a running handler's arguments.
unsafe fn call(action: &sigaction, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    if action.sa_flags & SA_SIGINFO != 0 {
        // SAFETY: SA_SIGINFO says that it's such a function.
        let handler = unsafe {
            core::mem::transmute::<usize, unsafe extern "C" fn(c_int, *mut siginfo_t, *mut c_void)>(action.sa_sigaction)
        };
        // SAFETY: its own contract, with the kernel's arguments.
        unsafe { handler(signal, info, context) };
    } else {
        // SAFETY: without SA_SIGINFO it's such a function.
        let handler = unsafe { core::mem::transmute::<usize, unsafe extern "C" fn(c_int)>(action.sa_sigaction) };
        // SAFETY: its own contract.
        unsafe { handler(signal) };
    }
}

/// Keeps the crate's handler installed if an earlier one, called by it, has reset the signal to its default: that was meant
/// for the earlier one itself. (Rust's own handler does so, for every signal that is not a stack overflow.) From then on
/// the crate passes signals on to the default action in its place.
fn stay(signal: c_int, earlier: &Displaced) {
    if exchange(signal, None).is_ok_and(|now| now.sa_sigaction == SIG_DFL) {
        earlier.spent.store(true, Ordering::SeqCst);
        let generation = Chain::of(signal).map_or(0, |chain| chain.generation.load(Ordering::SeqCst));
        let _ = exchange(signal, Some(&ours(0, generation)));
    }
}

/// Sends a signal to this thread again, as it came, for the default action.
///
/// # Safety
///
/// `info` is valid.
unsafe fn send_again(signal: c_int, info: *mut siginfo_t) {
    // System calls, since libc's functions may return cached ids that are stale in a forked child.
    // SAFETY: no arguments, can't fail.
    let process = unsafe { libc::syscall(libc::SYS_getpid) };
    // SAFETY: no arguments, can't fail.
    let thread = unsafe { libc::syscall(libc::SYS_gettid) };
    // SAFETY: valid arguments. A process may send itself any siginfo.
    let sent = unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, process, thread, signal, info) };
    if sent != 0 {
        // SAFETY: async-signal-safe.
        unsafe { libc::raise(signal) };
    }
}

fn default_action() -> sigaction {
    // SAFETY: all zeroes is a valid sigaction: SIG_DFL.
    unsafe { zeroed() }
}

/// `sigaction(2)`; returns the action before.
fn exchange(signal: c_int, new: Option<&sigaction>) -> Result<sigaction, Errno> {
    // SAFETY: all zeroes is a valid sigaction.
    let mut before: sigaction = unsafe { zeroed() };
    let new = new.map_or(null(), core::ptr::from_ref);
    // SAFETY: null or valid pointers; the new handler keeps to the rules of handlers, by this module's construction.
    let result = unsafe { sigaction(signal, new, &raw mut before) };
    Errno::result(result).map(|_| before)
}
