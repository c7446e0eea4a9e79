//! The signal that a raw access gets instead of its value: signal, code and address, and the registers beside.
//!
//! A raw access is one instruction between two labels (`access.rs`). Before it, the address of the second label is stored in a
//! thread-local; the signal handler records the signal and continues the thread there. So nothing of Rust is unwound or
//! jumped over.
//!
//! UNSAFETY: a signal handler, which reads the kernel's arguments and changes the interrupted context.
#![expect(unsafe_code, reason = "a signal handler, and the thread's alternate stack")]

use nix::libc;
use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

/// The signal that an access got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) signal: c_int,
    pub(crate) code: c_int,
    pub(crate) addr: usize,
}

/// `si_code` of an access past the end of the file, as a revoked BAR raises it.
pub(crate) const BUS_ADRERR: c_int = 2;

impl Hit {
    /// SIGBUS at this very byte.
    pub(crate) fn bus(addr: usize) -> Self {
        Self { signal: libc::SIGBUS, code: BUS_ADRERR, addr }
    }

    pub(crate) fn is_segv(self) -> bool {
        self.signal == libc::SIGSEGV
    }
}

/// What the signal of a hit carries beside, as a guest's VMM would see it.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Registers {
    /// `si_addr_lsb`.
    pub(crate) lsb: i16,
    /// The number of the exception.
    pub(crate) trap: i64,
    /// Its error code: bit 1 is set for a store.
    pub(crate) error: i64,
}

/// A closure that the handler calls, without its type.
#[derive(Clone, Copy)]
struct Call {
    closure: *const c_void,
    call: unsafe fn(*const c_void),
}

thread_local! {
    /// Where this thread continues if its access faults; 0: it is in none.
    static RESUME: Cell<usize> = const { Cell::new(0) };
    static HIT: Cell<Option<Hit>> = const { Cell::new(None) };
    #[cfg(target_arch = "x86_64")]
    static REGISTERS: Cell<Registers> = const { Cell::new(Registers { lsb: 0, trap: 0, error: 0 }) };
    /// Called instead of continuing after the access.
    static INSTEAD: Cell<Option<Call>> = const { Cell::new(None) };
}

/// Catches SIGBUS and SIGSEGV of raw accesses. The crate's own handler, installed later, passes on what is not its.
pub(crate) fn catch_signals() {
    for signal in [libc::SIGBUS, libc::SIGSEGV] {
        // SAFETY: all zeroes is a valid sigaction.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = (handler as unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void)) as usize;
        // Not deferred: what runs in the handler (`retried`) accesses revocable memory.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        // SAFETY: a valid action; the handler touches thread-locals without destructors and the context only, and what the
        // interrupted access has asked for.
        let rc = unsafe { libc::sigaction(signal, &raw const action, null_mut()) };
        assert_eq!(rc, 0, "sigaction");
    }
}

unsafe extern "C" fn handler(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let resume = RESUME.replace(0);
    if resume == 0 {
        // Not an access from here: the next such signal kills.
        // SAFETY: async-signal-safe.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    if let Some(instead) = INSTEAD.take() {
        // SAFETY: `retried` lives: its closure and this function belong together.
        unsafe { (instead.call)(instead.closure) };
        INSTEAD.set(Some(instead));
        RESUME.set(resume);
        return;
    }
    // SAFETY: the kernel's context, which the handler may change.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    #[cfg(target_arch = "x86_64")]
    {
        let registers = &mut context.uc_mcontext.gregs;
        // SAFETY: `si_addr_lsb` follows the address, at byte 24 of a fault's siginfo.
        let lsb = unsafe { info.cast::<i16>().wrapping_byte_add(24).read() };
        let (trap, error) = (registers[libc::REG_TRAPNO as usize], registers[libc::REG_ERR as usize]);
        REGISTERS.set(Registers { lsb, trap, error });
        registers[libc::REG_RIP as usize] = i64::try_from(resume).unwrap_or(0);
    }
    #[cfg(target_arch = "aarch64")]
    {
        context.uc_mcontext.pc = resume as u64;
    }
    // SAFETY: the kernel's siginfo.
    let info = unsafe { &*info };
    // SAFETY: a fault's siginfo has an address.
    let addr = unsafe { info.si_addr() }.addr();
    HIT.set(Some(Hit { signal, code: info.si_code, addr }));
}

/// Where an access stores the address after itself.
pub(super) fn resume() -> *mut usize {
    RESUME.with(Cell::as_ptr)
}

/// The end of an access: its value, or the signal that it got.
pub(super) fn outcome<T>(value: T) -> Result<T, Hit> {
    RESUME.set(0);
    match HIT.take() {
        None => Ok(value),
        Some(hit) => Err(hit),
    }
}

/// What the signal of this thread's last hit carried.
#[cfg(target_arch = "x86_64")]
pub(crate) fn registers() -> Registers {
    REGISTERS.get()
}

/// Makes accesses whose signals call `instead` in the handler, which then returns: the access is tried again. Also returns how
/// often that was.
pub(crate) fn retried<T>(instead: impl Fn(), accesses: impl FnOnce() -> T) -> (T, u32) {
    unsafe fn call<F: Fn()>(closure: *const c_void) {
        // SAFETY: the caller gives a live closure of this type.
        unsafe { (*closure.cast::<F>())() }
    }
    fn of<F: Fn()>(closure: &F) -> Call {
        Call { closure: (&raw const *closure).cast(), call: call::<F> }
    }
    let times = Cell::new(0);
    let counted = || {
        times.set(times.get() + 1);
        instead();
    };
    let before = on_stack(libc::stack_t { ss_sp: null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 });
    INSTEAD.set(Some(of(&counted)));
    let done = accesses();
    INSTEAD.set(None);
    on_stack(before);
    (done, times.get())
}

/// Has this thread's signals handled on another alternate stack, or none: std's is too small for `retried`. Returns the one before.
fn on_stack(stack: libc::stack_t) -> libc::stack_t {
    // SAFETY: all zeroes is a valid stack_t.
    let mut before: libc::stack_t = unsafe { std::mem::zeroed() };
    // SAFETY: no handler of this thread runs now; the stack is none, or the thread's own.
    let rc = unsafe { libc::sigaltstack(&raw const stack, &raw mut before) };
    assert_eq!(rc, 0, "sigaltstack");
    before
}
