//! Single instructions that may meet a signal, and what it was: number, code, address, as a guest's VMM would see it.
//!
//! The access puts the address behind itself into a record; the handler, if the thread has such a record, notes the
//! signal there and goes on at that address.

use nix::libc;
use std::arch::asm;
use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::sync::Once;

/// What an access met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Met {
    pub(crate) signal: c_int,
    pub(crate) code: c_int,
    pub(crate) addr: usize,
    pub(crate) lsb: i32,
    pub(crate) trap: i64,
    pub(crate) error: i64,
}

#[repr(C)]
struct Record {
    resume: u64,
    met: Option<Met>,
    times: u32,
    /// Called instead of going on behind the access; the access is then tried again.
    instead: Option<*const (dyn Fn() + 'static)>,
}

thread_local! {
    static RECORD: Cell<*mut Record> = const { Cell::new(std::ptr::null_mut()) };
}

unsafe extern "C" fn handler(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let record = RECORD.get();
    // SAFETY: the kernel's arguments; the record is the interrupted access's own, on this thread's stack.
    unsafe {
        if record.is_null() {
            libc::signal(signal, libc::SIG_DFL);
            return;
        }
        let context = &mut *context.cast::<libc::ucontext_t>();
        let registers = &mut context.uc_mcontext.gregs;
        (*record).times += 1;
        // si_addr_lsb follows the address.
        let lsb = info.cast::<u8>().add(24).cast::<i16>().read();
        (*record).met = Some(Met {
            signal,
            code: (*info).si_code,
            addr: (*info).si_addr() as usize,
            lsb: i32::from(lsb),
            trap: registers[libc::REG_TRAPNO as usize],
            error: registers[libc::REG_ERR as usize],
        });
        match (*record).instead {
            Some(instead) => {
                // A fault of its own is not the access's.
                RECORD.set(std::ptr::null_mut());
                (*instead)();
                RECORD.set(record);
            }
            None => registers[libc::REG_RIP as usize] = (*record).resume as i64,
        }
    }
}

/// Before the library installs its own, which then calls this one for what it does not know.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for signal in [libc::SIGBUS, libc::SIGSEGV] {
            // SAFETY: a handler with the signature that SA_SIGINFO asks for.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handler as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
                assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
            }
        }
    });
}

/// Has signals of this thread handled on its ordinary stack: what handlers do here needs more than the alternate one has.
pub(crate) fn on_the_ordinary_stack() {
    let none = libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
    // SAFETY: no handler runs in this thread now; the stack stays whoever's it is.
    assert_eq!(unsafe { libc::sigaltstack(&none, std::ptr::null_mut()) }, 0);
}

/// Runs an access with a record; what it met, if anything.
fn recorded(instead: Option<&dyn Fn()>, access: impl FnOnce(*mut u64)) -> (Option<Met>, u32) {
    // SAFETY: only the lifetime changes: the record does not outlive this call.
    let instead = instead.map(|f| unsafe { std::mem::transmute::<*const dyn Fn(), *const (dyn Fn() + 'static)>(f) });
    let mut record = Record { resume: 0, met: None, times: 0, instead };
    let at = &raw mut record;
    RECORD.set(at);
    // SAFETY: a field of a live record.
    access(unsafe { &raw mut (*at).resume });
    RECORD.set(std::ptr::null_mut());
    // SAFETY: the handler has written it behind the compiler's back.
    unsafe { (at.cast_const().read_volatile().met, (*at).times) }
}

macro_rules! one {
    ($resume:ident, $text:literal, $($operands:tt)*) => {
        // SAFETY: one access, for which the handler goes on behind it.
        unsafe {
            asm!("lea {scratch}, [rip + 2f]", "mov [{resume}], {scratch}", $text, "2:",
                scratch = out(reg) _, resume = in(reg) $resume, $($operands)*)
        }
    };
}

pub(crate) fn load(at: *const u8, width: usize) -> Result<u64, Met> {
    load_with(None, at, width).0
}

/// A load whose signal handler calls `instead` and returns; and how often it ran.
pub(crate) fn load_with(instead: Option<&dyn Fn()>, at: *const u8, width: usize) -> (Result<u64, Met>, u32) {
    let mut value: u64 = 0;
    let (met, times) = recorded(instead, |resume| match width {
        1 => one!(resume, "movzx {value:e}, byte ptr [{at}]", at = in(reg) at, value = inout(reg) value),
        2 => one!(resume, "movzx {value:e}, word ptr [{at}]", at = in(reg) at, value = inout(reg) value),
        4 => one!(resume, "mov {value:e}, [{at}]", at = in(reg) at, value = inout(reg) value),
        _ => one!(resume, "mov {value}, [{at}]", at = in(reg) at, value = inout(reg) value),
    });
    (met.filter(|_| instead.is_none()).map_or(Ok(value), Err), times)
}

pub(crate) fn store(at: *mut u8, width: usize, value: u64) -> Result<(), Met> {
    let met = recorded(None, |resume| match width {
        1 => one!(resume, "mov [{at}], {value}", at = in(reg) at, value = in(reg_byte) value as u8),
        2 => one!(resume, "mov [{at}], {value:x}", at = in(reg) at, value = in(reg) value),
        4 => one!(resume, "mov [{at}], {value:e}", at = in(reg) at, value = in(reg) value),
        _ => one!(resume, "mov [{at}], {value}", at = in(reg) at, value = in(reg) value),
    });
    met.0.map_or(Ok(()), Err)
}

pub(crate) fn exchange_add(at: *mut u8, value: u64) -> Result<u64, Met> {
    let mut old = value;
    let met = recorded(None, |resume| one!(resume, "lock xadd [{at}], {old}", at = in(reg) at, old = inout(reg) old));
    met.0.map_or(Ok(old), Err)
}

pub(crate) fn compare_exchange(at: *mut u8, old: u64, new: u64) -> Result<u64, Met> {
    let mut found = old;
    let met = recorded(
        None,
        |resume| one!(resume, "lock cmpxchg [{at}], {new}", at = in(reg) at, new = in(reg) new, inout("rax") found),
    );
    met.0.map_or(Ok(found), Err)
}

/// `rep movsb` of `len` bytes out of region memory.
pub(crate) fn copy_from(at: *const u8, len: usize) -> Result<(), Met> {
    let mut buffer = vec![0u8; len];
    let to = buffer.as_mut_ptr();
    let met = recorded(
        None,
        |resume| one!(resume, "rep movsb", inout("rsi") at => _, inout("rdi") to => _, inout("rcx") len => _),
    );
    met.0.map_or(Ok(()), Err)
}

/// An instruction fetch. Only for memory that cannot be executed.
pub(crate) fn execute(at: *const u8) -> Result<(), Met> {
    let met = recorded(None, |resume| {
        // A fault in the fetch has pushed the return address already; the stack is as before either way.
        // SAFETY: the handler goes on behind the call; nothing is ever executed there.
        unsafe {
            asm!("lea {scratch}, [rip + 2f]", "mov [{resume}], {scratch}", "mov r12, rsp", "call {at}", "2:",
                "mov rsp, r12", scratch = out(reg) _, resume = in(reg) resume, at = in(reg) at,
                out("r12") _)
        }
    });
    met.0.map_or(Ok(()), Err)
}

/// As the data writes it: the signal, its code, and where it says it was.
pub(crate) fn show(met: Met, base: *const u8) -> String {
    let (name, code) = match (met.signal, met.code) {
        (libc::SIGBUS, 2) => ("SIGBUS", "BUS_ADRERR"),
        (libc::SIGSEGV, 1) => ("SIGSEGV", "SEGV_MAPERR"),
        (libc::SIGSEGV, 2) => ("SIGSEGV", "SEGV_ACCERR"),
        _ => ("signal", "code"),
    };
    let offset = met.addr.wrapping_sub(base as usize);
    format!("{name} {code}({}) si_addr=base+{offset:#x}", met.code)
}

/// The signal's name alone.
pub(crate) fn short(met: Met) -> String {
    if met.signal == libc::SIGBUS { "SIGBUS".into() } else { "SIGSEGV".into() }
}

/// `ok 0x..`, or what it met.
pub(crate) fn loaded(result: Result<u64, Met>, base: *const u8) -> String {
    result.map_or_else(|met| show(met, base), |value| format!("ok {value:#x}"))
}

/// `0x..`, or the signal's name.
pub(crate) fn value(result: Result<u64, Met>) -> String {
    result.map_or_else(short, |value| format!("{value:#x}"))
}

/// `ok`, or what it met.
pub(crate) fn done(result: Result<(), Met>, base: *const u8) -> String {
    result.map_or_else(|met| show(met, base), |()| "ok".into())
}
