//! One delivery of a signal that isn't for this crate: how it goes down the list of displaced actions.
#![expect(unsafe_code, reason = "calls of foreign handlers, and raw pointers from the kernel")]
// UNSAFETY: async-signal-safe libc functions, other handlers called by the contract that they were installed with, and the
// unused end of a siginfo.

use super::{Chain, Displaced, KernelMask, Now, SIGBUS_CHAIN, kernel_mask, kernel_part, reset, stay};
use crate::raw::signal::is_fault;
use core::ffi::{c_int, c_void};
// Not from `crate::sync`: a signal handler reads these, and the model checker's atomics aren't async-signal-safe.
use core::sync::atomic::Ordering;
use nix::errno::Errno;
use nix::libc::{
    self, SA_NODEFER, SA_RESETHAND, SA_SIGINFO, SIG_DFL, SIG_IGN, SIG_SETMASK, sigaction, siginfo_t, ucontext_t,
};

/// Delivers a signal that isn't for this crate.
///
/// Signal stacks are small: 8 KiB in Rust's threads, of which the kernel's frame takes 3.4 KiB where the processor has
/// protection keys or AVX-512, and as much again if the handler that is called here uses an accessor. So no copy of an
/// action or of a set of signals lives in this function's frame.
///
/// # Safety
///
/// The arguments of a handler that is running now, in the thread that the signal was delivered to.
pub(in crate::raw::signal) unsafe fn foreign(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let errno = Errno::last_raw();
    // SAFETY: the caller's contract.
    let mark = unsafe { Mark::of(info) };
    let Step { earlier, place, in_front } = step(signal, mark.get());
    // SAFETY: the caller's contract.
    let fault = is_fault(signal, unsafe { &*info });
    match earlier {
        Some(Displaced { action, .. }) if action.sa_sigaction == SIG_IGN && !fault => {}
        Some(earlier) if earlier.action.sa_sigaction != SIG_IGN && earlier.action.sa_sigaction != SIG_DFL => {
            let before = mark.set(place);
            // A handler that was called by another one runs with that one's mask, as it would without us.
            let by_kernel = in_front && before.is_none();
            // SAFETY: the caller's contract: the context of this delivery.
            let ours = by_kernel.then(|| unsafe { set_mask(&earlier.action, signal, context.cast()) });
            Errno::set_raw(errno);
            // SAFETY: the handler was installed for this signal, with these flags, and gets what the kernel gave us.
            unsafe { call(&earlier.action, signal, info, context) };
            let errno = Errno::last_raw();
            if let Some(ours) = ours {
                exchange_mask(ours);
            }
            mark.reset(before);
            stay(signal, earlier);
            Errno::set_raw(errno);
            return;
        }
        // The default, or a fault that is ignored, which the kernel treats as the default.
        _ => {
            reset(signal);
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

/// Where a delivery goes next.
struct Step {
    /// `None`: to the default action.
    earlier: Option<&'static Displaced>,
    /// That action's place in the list.
    place: usize,
    /// The crate's handler is the one that the kernel calls.
    in_front: bool,
}

/// The next step of a delivery that has come down to `marked`, or that has just begun.
#[inline(never)]
fn step(signal: c_int, marked: Option<usize>) -> Step {
    let chain = Chain::of(signal);
    let now = Now::of(signal).ok();
    let in_front = now.is_none_or(|now| now.is_ours());
    // How many of the list the delivery is still above.
    let above = match (marked, now) {
        (Some(above), _) => above,
        (None, Some(now)) if in_front => {
            if let Some(chain) = chain.filter(|chain| chain.generation.load(Ordering::SeqCst) != now.generation()) {
                chain.roll_back(now.generation());
            }
            usize::MAX
        }
        (None, _) => usize::MAX,
    };
    let live = chain.map_or(&[][..], Chain::live);
    let live = &live[..above.min(live.len())];
    // One that is in the list, and has displaced us anew, has called us: it is not called again.
    let has_called = |earlier: &Displaced| now.is_some_and(|now| now.handler == earlier.action.sa_sigaction);
    let next = live.iter().rposition(|earlier| !has_called(earlier));
    let earlier = next.map(|next| &live[next]).filter(|earlier| match earlier.action.sa_flags & SA_RESETHAND {
        0 => !earlier.spent.load(Ordering::SeqCst),
        // One caller gets it.
        _ => !earlier.spent.swap(true, Ordering::SeqCst),
    });
    Step { earlier, place: next.unwrap_or(0), in_front }
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
/// action asks for, and the signal itself unless `SA_NODEFER`. Returns the mask before.
///
/// # Safety
///
/// The context of the delivery under way.
unsafe fn set_mask(action: &sigaction, signal: c_int, context: *const ucontext_t) -> KernelMask {
    // SAFETY: the caller's contract. The kernel's set is shorter than libc's, so no reference to it is made.
    let interrupted = unsafe { &raw const (*context).uc_sigmask };
    // SAFETY: as above: the kernel's part is there.
    let interrupted = unsafe { kernel_part(interrupted) };
    let itself = if action.sa_flags & SA_NODEFER == 0 { 1 << (signal - 1) } else { 0 };
    exchange_mask(kernel_mask(action) | interrupted | itself)
}

/// Sets this thread's mask; returns the one before. A system call of its own: libc's function takes sets of 128 bytes.
fn exchange_mask(mask: KernelMask) -> KernelMask {
    let mut before: KernelMask = 0;
    let (new, old, size) = (&raw const mask, &raw mut before, size_of::<KernelMask>());
    // SAFETY: two sets as the kernel has them, of that size; only this thread's mask changes.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, SIG_SETMASK, new, old, size) };
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
