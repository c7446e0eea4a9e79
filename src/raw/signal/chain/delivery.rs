//! One delivery of a signal that isn't for this crate: how it goes down the list of displaced actions.
#![expect(unsafe_code, reason = "calls of foreign handlers, and raw pointers from the kernel")]
// UNSAFETY: async-signal-safe libc functions, other handlers called by the contract that they were installed with, and the
// unused end of a siginfo.

use super::{
    Chain, Displaced, KernelMask, SIGBUS_CHAIN, default_action, exchange, first_bytes, generation_of, is_ours,
    kernel_mask, stay,
};
use crate::raw::signal::is_fault;
use core::ffi::{c_int, c_void};
use core::mem::zeroed;
use core::ptr::null_mut;
// Not from `crate::sync`: a signal handler reads these, and the model checker's atomics aren't async-signal-safe.
use core::sync::atomic::Ordering;
use nix::errno::Errno;
use nix::libc::{
    self, SA_NODEFER, SA_RESETHAND, SA_SIGINFO, SIG_DFL, SIG_IGN, SIG_SETMASK, sigaction, siginfo_t, sigset_t,
    ucontext_t,
};

/// Delivers a signal that isn't for this crate.
///
/// # Safety
///
/// The arguments of a handler that is running now, in the thread that the signal was delivered to.
pub(in crate::raw::signal) unsafe fn foreign(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let errno = Errno::last_raw();
    let chain = Chain::of(signal);
    // SAFETY: the caller's contract.
    let mark = unsafe { Mark::of(info) };
    let now = exchange(signal, None).ok();
    let in_front = now.is_none_or(|now| is_ours(&now));
    // How many of the list the delivery is still above.
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
    // One that is in the list, and has displaced us anew, has called us: it is not called again.
    let has_called = |earlier: &Displaced| now.is_some_and(|now| now.sa_sigaction == earlier.action.sa_sigaction);
    let next = live.iter().rposition(|earlier| !has_called(earlier));
    let earlier = next.map(|next| &live[next]).filter(|earlier| match earlier.action.sa_flags & SA_RESETHAND {
        0 => !earlier.spent.load(Ordering::SeqCst),
        // One caller gets it.
        _ => !earlier.spent.swap(true, Ordering::SeqCst),
    });
    // SAFETY: the caller's contract.
    let fault = is_fault(signal, unsafe { &*info });
    match earlier {
        Some(Displaced { action, .. }) if action.sa_sigaction == SIG_IGN && !fault => {}
        Some(earlier) if earlier.action.sa_sigaction != SIG_IGN && earlier.action.sa_sigaction != SIG_DFL => {
            let before = mark.set(next.unwrap_or(0));
            // A handler that was called by another one runs with that one's mask, as it would without us.
            let by_kernel = in_front && before.is_none();
            // SAFETY: the caller's contract: the context of this delivery.
            let ours = by_kernel.then(|| unsafe { set_mask(&earlier.action, signal, context.cast()) });
            Errno::set_raw(errno);
            // SAFETY: the handler was installed for this signal, with these flags, and gets what the kernel gave us.
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
        // The default, or a fault that is ignored, which the kernel treats as the default.
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

/// How far down the list one delivery has come, kept in the delivery itself: in the end of the siginfo, which the kernel clears
/// and does not use. A handler that chains hands it on; one that leaves by longjmp takes it with its frame. Nothing is left
/// over, whatever happens.
struct Mark(*mut u64);

impl Mark {
    /// The kernel's siginfo has 48 bytes; there is room for several copies of this crate.
    const FIRST: usize = 8;
    const END: usize = size_of::<siginfo_t>() / size_of::<u64>();

    /// Tells this copy's marks from other copies'. The last byte is how far.
    fn key() -> u64 {
        (1 << 63 | (&raw const SIGBUS_CHAIN).addr().wrapping_mul(0x9E37_79B9) as u64) & !0xff
    }

    /// This copy's mark, or a place for one.
    ///
    /// # Safety
    ///
    /// A siginfo that stays for as long as this.
    unsafe fn of(info: *mut siginfo_t) -> Self {
        let words = (Self::FIRST..Self::END).map(|n| info.cast::<u64>().wrapping_add(n));
        // SAFETY: inside of the siginfo.
        let at = |word: &*mut u64| unsafe { word.read_unaligned() };
        let own = words.clone().find(|word| at(word) & !0xff == Self::key());
        let free = words.clone().find(|word| at(word) == 0);
        // Full of something else: the last is as good as any.
        let last = info.cast::<u64>().wrapping_add(Self::END - 1);
        Self(own.or(free).unwrap_or(last))
    }

    fn get(&self) -> Option<usize> {
        // SAFETY: `of`'s contract.
        let word = unsafe { self.0.read_unaligned() };
        (word & !0xff == Self::key()).then_some((word & 0xff) as usize)
    }

    /// Answers what it was.
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

/// Sets the mask that the kernel would have set for `action` (`signal_delivered`): what the interrupted code had blocked, what the
/// action asks for, and the signal itself unless `SA_NODEFER`. Answers the mask before.
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

/// Sends a signal to this thread again, as it came, to meet the default action.
///
/// # Safety
///
/// `info` is valid.
unsafe fn send_again(signal: c_int, info: *mut siginfo_t) {
    // System calls, as what libc offers may be cached and stale in a forked child.
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
