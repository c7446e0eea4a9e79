//! A recoverable access never kills, and every other SIGBUS and SIGSEGV goes where it went before.
//!
//! What changes signal dispositions, or is meant to die, runs in a process of its own: this binary again, with the
//! scenario's name in the environment.
#![expect(unsafe_code, reason = "raw accesses and signal handlers are what is tested")]
#![expect(
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    reason = "test scaffolding on memory of its own"
)]

use crate::raw::signal;
use crate::raw::{self, Faulted};
use nix::libc::{self, c_int, c_void, siginfo_t};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering::SeqCst};

const PAGE: usize = 4096;

fn map(len: usize, protection: c_int, fd: c_int) -> *mut u8 {
    let flags = if fd < 0 { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS } else { libc::MAP_SHARED };
    let p = unsafe { libc::mmap(null_mut(), len, protection, flags, fd, 0) };
    assert_ne!(p, libc::MAP_FAILED);
    p.cast()
}

/// Accessible memory.
fn good(len: usize) -> *mut u8 {
    map(len, libc::PROT_READ | libc::PROT_WRITE, -1)
}

/// Memory that answers SIGSEGV.
fn segv(len: usize) -> *mut u8 {
    map(len, libc::PROT_NONE, -1)
}

/// Memory that answers SIGBUS behind its first `good` bytes.
fn bus_after(good: usize, len: usize) -> *mut u8 {
    let fd = unsafe { libc::memfd_create(c"empty".as_ptr(), libc::MFD_CLOEXEC) };
    assert_eq!(unsafe { libc::ftruncate(fd, good.try_into().unwrap()) }, 0);
    let p = map(len, libc::PROT_READ | libc::PROT_WRITE, fd);
    unsafe { libc::close(fd) };
    p
}

fn bus(len: usize) -> *mut u8 {
    bus_after(0, len)
}

/// Where the portable accessors are built, nothing recovers, and these tests have nothing to claim.
macro_rules! needs_recovery {
    () => {
        if !raw::RECOVERABLE {
            eprintln!("skipped: this build has no recoverable accesses (they hold a guard instead)");
            return;
        }
        signal::install().unwrap();
    };
}

macro_rules! integers {
    ($($ty:ident)*) => { $(
        #[test]
        fn $ty() {
            signal::install().unwrap();
            let p = good(PAGE).cast::<$ty>();
            unsafe {
                for value in [0, 1, 0x5a, <$ty>::MAX, <$ty>::MIN, !0, !1] {
                    assert_eq!(raw::store(p, value), Ok(()));
                    assert_eq!(raw::load(p), Ok(value));
                    assert_eq!(*p.add(1), 0, "wrote beyond itself");
                    assert_eq!(raw::compare_exchange(p, value, 3), Ok(Ok(value)));
                    assert_eq!(raw::compare_exchange(p, !3, 9), Ok(Err(3)));
                    assert_eq!(raw::swap(p, value), Ok(3));
                    assert_eq!(raw::fetch_add(p, 1), Ok(value));
                    assert_eq!(raw::load(p), Ok(value.wrapping_add(1)));
                    assert_eq!(raw::store(p, 0b1100), Ok(()));
                    assert_eq!(raw::fetch_or(p, 0b0011), Ok(0b1100));
                    assert_eq!(raw::fetch_and(p, 0b0110), Ok(0b1111));
                    assert_eq!(raw::fetch_xor(p, 0b0101), Ok(0b0110));
                    assert_eq!(raw::load(p), Ok(0b0011));
                }
                if !raw::RECOVERABLE {
                    return;
                }
                for p in [bus(PAGE), segv(PAGE)] {
                    for p in [p.cast::<$ty>(), p.add(PAGE - size_of::<$ty>()).cast()] {
                        assert_eq!(raw::load(p), Err(Faulted));
                        assert_eq!(raw::store(p, 1), Err(Faulted));
                        assert_eq!(raw::compare_exchange(p, 0, 1), Err(Faulted));
                        assert_eq!(raw::swap(p, !0), Err(Faulted));
                        assert_eq!(raw::fetch_add(p, 1), Err(Faulted));
                        assert_eq!(raw::fetch_or(p, 1), Err(Faulted));
                        assert_eq!(raw::fetch_and(p, 1), Err(Faulted));
                        assert_eq!(raw::fetch_xor(p, 1), Err(Faulted));
                    }
                }
            }
        }
    )* };
}

/// Every operation at every width, on good memory, on SIGBUS and on SIGSEGV; all ones are a value like any other.
mod integers {
    use super::*;
    integers!(u8 u16 u32 u64 usize i8 i16 i32 i64 isize);
}

#[test]
fn floats_load_and_store_bit_for_bit() {
    signal::install().unwrap();
    let p = good(PAGE);
    unsafe {
        for bits in [0, 0x8000_0000_0000_0000, u64::MAX, 0x7ff0_0000_0000_0001] {
            raw::store(p.cast::<f64>(), f64::from_bits(bits)).unwrap();
            assert_eq!(raw::load(p.cast::<f64>()).unwrap().to_bits(), bits);
            let half = u32::try_from(bits >> 32).unwrap();
            raw::store(p.cast::<f32>(), f32::from_bits(half)).unwrap();
            assert_eq!(raw::load(p.cast::<f32>()).unwrap().to_bits(), half);
        }
    }
    needs_recovery!();
    unsafe {
        assert!(raw::load(segv(PAGE).cast::<f32>()).is_err());
        assert!(raw::load(bus(PAGE).cast::<f64>()).is_err());
    }
}

/// Copies of every kind that meet the page's edge at `edge` bytes, at every alignment of both sides modulo 32.
fn copies_stop_at(edge: usize, len: usize, region: impl Fn() -> *mut u8) {
    let buffer: Vec<u8> = (0..len + 64).map(|i| u8::try_from(i % 251).unwrap() + 1).collect();
    for misaligned in 0..32 {
        let page = region();
        let start = unsafe { page.add(PAGE - edge) };
        let before = unsafe { std::slice::from_raw_parts(page, PAGE) }.to_vec();
        let done = unsafe { raw::copy_in(start, buffer[misaligned..].as_ptr(), len) };
        assert_eq!(done, edge.min(len), "copy_in");
        let after = unsafe { std::slice::from_raw_parts(page, PAGE) };
        assert_eq!(after[PAGE - edge..][..done], buffer[misaligned..][..done]);
        assert_eq!(after[..PAGE - edge], before[..PAGE - edge]);
        assert_eq!(after[PAGE - edge + done..], before[PAGE - edge + done..]);

        let mut out = vec![0xee; len + 64];
        let done = unsafe { raw::copy_out(out[misaligned..].as_mut_ptr(), start, len) };
        assert_eq!(done, edge.min(len), "copy_out");
        assert_eq!(out[misaligned..][..done], after[PAGE - edge..][..done]);
        assert!(out[..misaligned].iter().chain(&out[misaligned + done..]).all(|byte| *byte == 0xee), "wrote beyond");

        let done = unsafe { raw::fill(start, 0x77, len) };
        assert_eq!(done, edge.min(len), "fill");
        assert!(after[PAGE - edge..][..done].iter().all(|byte| *byte == 0x77));
        unsafe { libc::munmap(page.cast(), 3 * PAGE) };
    }
}

#[test]
fn a_whole_copy_is_whole() {
    signal::install().unwrap();
    for len in [0, 1, 7, 8, 9, 127, 128, 129, 1023, 1024, 1055, 2222, PAGE] {
        copies_stop_at(len, len, || good(3 * PAGE));
    }
}

#[test]
fn a_copy_that_meets_revoked_memory_says_how_far_it_came() {
    needs_recovery!();
    for edge in (0..=200).chain([1000, 1024, 1055, 1056, 2047, 2048, 4000, PAGE]) {
        copies_stop_at(edge, edge + 1, || bus_after(PAGE, 3 * PAGE));
        copies_stop_at(edge, edge + 200, || {
            let p = good(3 * PAGE);
            assert_eq!(unsafe { libc::mprotect(p.add(PAGE).cast(), 2 * PAGE, libc::PROT_NONE) }, 0);
            p
        });
    }
}

#[test]
fn many_threads_may_fault_at_once() {
    needs_recovery!();
    let (bus, segv, fine) = (bus(PAGE) as usize, segv(PAGE) as usize, good(PAGE) as usize);
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(move || {
                for i in 0..500u32 {
                    assert_eq!(unsafe { raw::load(bus as *const u32) }, Err(Faulted));
                    assert_eq!(unsafe { raw::store(segv as *mut u64, 1) }, Err(Faulted));
                    assert_eq!(unsafe { raw::load(fine as *const u64) }, Ok(0), "round {i}");
                }
            });
        }
    });
}

#[test]
fn errno_is_kept() {
    needs_recovery!();
    let p = bus(PAGE);
    nix::errno::Errno::set_raw(4711);
    assert_eq!(unsafe { raw::load(p) }, Err(Faulted));
    assert_eq!(nix::errno::Errno::last_raw(), 4711);
}

// ---- Scenarios in processes of their own. ----

static CALLS: AtomicUsize = AtomicUsize::new(0);
static SEEN: AtomicI32 = AtomicI32::new(0);
static OPEN_UP: AtomicUsize = AtomicUsize::new(0);

/// A C library's handler: counts, and makes the memory accessible so that the fault ends.
extern "C" fn simple_handler(signal: c_int) {
    CALLS.fetch_add(1, SeqCst);
    SEEN.store(signal, SeqCst);
    let page = OPEN_UP.load(SeqCst);
    if page != 0 {
        unsafe { libc::mprotect(page as *mut c_void, PAGE, libc::PROT_READ | libc::PROT_WRITE) };
    }
}

/// Likewise with SA_SIGINFO; checks what it is given.
extern "C" fn info_handler(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    assert!(!context.is_null());
    let page = OPEN_UP.load(SeqCst);
    if page != 0 {
        assert_eq!(unsafe { (*info).si_addr() } as usize, page);
    }
    let mut mask = unsafe { std::mem::zeroed() };
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut mask) };
    assert_eq!(unsafe { libc::sigismember(&raw const mask, signal) }, 1, "its own signal is blocked");
    assert_eq!(unsafe { libc::sigismember(&raw const mask, libc::SIGUSR2) }, 1, "its mask is in force");
    simple_handler(signal);
}

/// A foreign handler that uses the crate.
extern "C" fn nesting_handler(signal: c_int) {
    let p = bus(PAGE);
    assert_eq!(unsafe { raw::load(p.cast::<u32>()) }, Err(Faulted));
    assert_eq!(unsafe { raw::store(p.cast::<u64>(), 1) }, Err(Faulted));
    simple_handler(signal);
}

/// Calls the handler it replaced for what it doesn't know.
extern "C" fn later_handler(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    CALLS.fetch_add(1, SeqCst);
    let earlier = unsafe {
        std::mem::transmute::<usize, extern "C" fn(c_int, *mut siginfo_t, *mut c_void)>(OPEN_UP.load(SeqCst))
    };
    earlier(signal, info, context);
}

/// A VMM's own.
extern "C" fn vmm_handler(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    CALLS.fetch_add(1, SeqCst);
    if !unsafe { signal::try_handle(signal, info, context) } {
        std::process::abort();
    }
}

/// An asynchronous handler that uses the crate.
extern "C" fn accesses(_: c_int) {
    CALLS.fetch_add(1, SeqCst);
    assert_eq!(unsafe { raw::load((OPEN_UP.load(SeqCst) as *const u32).wrapping_add(1)) }, Err(Faulted));
}

extern "C" fn vmm_without_us(_: c_int) {
    std::process::abort();
}

/// What `chain_x` and `chain_y` have displaced, and how often each was called.
static OVER: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
static XY: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

fn chain(which: usize, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    assert!(XY[which].fetch_add(1, SeqCst) < 5, "it goes round");
    let over = OVER[which].load(SeqCst);
    let over = unsafe { std::mem::transmute::<usize, extern "C" fn(c_int, *mut siginfo_t, *mut c_void)>(over) };
    over(signal, info, context);
}

extern "C" fn chain_x(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    chain(0, signal, info, context);
}

extern "C" fn chain_y(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    chain(1, signal, info, context);
}

static mut REPLACED: libc::sigaction = unsafe { std::mem::zeroed() };
static RAISES: AtomicUsize = AtomicUsize::new(0);

/// A crash reporter's way: puts back what it replaced, for that to have the signal.
extern "C" fn takes_itself_out(signal: c_int, _: *mut siginfo_t, _: *mut c_void) {
    assert!(CALLS.fetch_add(1, SeqCst) < 5, "it goes round");
    unsafe {
        assert_eq!(libc::sigaction(signal, &raw const REPLACED, null_mut()), 0);
        if RAISES.load(SeqCst) > 0 {
            libc::raise(signal);
        }
    }
}

/// The mask that the last handler ran with.
static MASK: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

fn mask_now() -> usize {
    let mut mask: libc::sigset_t = unsafe { std::mem::zeroed() };
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut mask) };
    unsafe { (&raw const mask).cast::<usize>().read() }
}

extern "C" fn mask_handler(signal: c_int) {
    MASK[0].store(mask_now(), SeqCst);
    simple_handler(signal);
}

extern "C" fn mask_info_handler(signal: c_int, _: *mut siginfo_t, context: *mut c_void) {
    // What it writes there is in force afterwards, as ever.
    let context = context.cast::<libc::ucontext_t>();
    unsafe { libc::sigaddset(&raw mut (*context).uc_sigmask, libc::SIGWINCH) };
    mask_handler(signal);
}

/// Every kind of handler sees the mask that it sees alone, and leaves the one that it leaves alone.
fn masks() {
    let sees = |signal: c_int, flags: c_int, masked: &[c_int], blocked: &[c_int], sent: bool, chained: bool| {
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_flags = flags;
        action.sa_sigaction = match flags & libc::SA_SIGINFO {
            0 => mask_handler as extern "C" fn(c_int) as usize,
            _ => mask_info_handler as extern "C" fn(_, _, _) as usize,
        };
        let mut mask: libc::sigset_t = unsafe { std::mem::zeroed() };
        masked.iter().for_each(|s| assert_eq!(unsafe { libc::sigaddset(&raw mut action.sa_mask, *s) }, 0));
        blocked.iter().for_each(|s| assert_eq!(unsafe { libc::sigaddset(&raw mut mask, *s) }, 0));
        assert_eq!(unsafe { libc::sigaction(signal, &raw const action, null_mut()) }, 0);
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, null_mut()) };
        if chained {
            signal::install().unwrap();
        }
        let before = CALLS.load(SeqCst);
        match sent {
            true => assert_eq!(unsafe { libc::raise(signal) }, 0),
            false => {
                let page = if signal == libc::SIGSEGV { segv(PAGE) } else { bus(PAGE) };
                OPEN_UP.store(page as usize, SeqCst);
                // SIGBUS: the handler's mprotect changes nothing, so it is only sent.
                foreign_fault(page);
                OPEN_UP.store(0, SeqCst);
            }
        }
        assert_eq!(CALLS.load(SeqCst), before + 1);
        (MASK[0].load(SeqCst), mask_now())
    };
    let mut seen = Vec::new();
    for chained in [false, true] {
        for signal in [libc::SIGSEGV, libc::SIGBUS] {
            for flags in [0, libc::SA_NODEFER, libc::SA_SIGINFO, libc::SA_SIGINFO | libc::SA_NODEFER] {
                for masked in [&[][..], &[libc::SIGUSR2, libc::SIGRTMAX()], &[signal]] {
                    for blocked in [&[][..], &[libc::SIGUSR1, libc::SIGPROF]] {
                        for sent in [true, false] {
                            if signal == libc::SIGBUS && !sent {
                                continue;
                            }
                            seen.push(sees(signal, flags, masked, blocked, sent, chained));
                        }
                    }
                }
            }
        }
    }
    let (alone, chained) = seen.split_at(seen.len() / 2);
    assert_eq!(alone, chained);
}

fn set_handler(signal: c_int, handler: usize, flags: c_int) -> usize {
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    unsafe { libc::sigaddset(&raw mut action.sa_mask, libc::SIGUSR2) };
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    assert_eq!(unsafe { libc::sigaction(signal, &raw const action, &raw mut before) }, 0);
    before.sa_sigaction
}

fn recovers() {
    assert_eq!(unsafe { raw::load(bus(PAGE)) }, Err(Faulted));
    assert_eq!(unsafe { raw::load(segv(PAGE)) }, Err(Faulted));
}

fn foreign_fault(p: *mut u8) {
    unsafe { p.write_volatile(1) };
}

/// A foreign fault that the earlier handler resolves.
fn resolved_by_earlier(handler: usize, flags: c_int) {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        set_handler(signal, handler, flags);
    }
    signal::install().unwrap();
    recovers();
    assert_eq!(CALLS.load(SeqCst), 0, "a fault of the crate's is not foreign");
    let page = segv(PAGE);
    OPEN_UP.store(page as usize, SeqCst);
    foreign_fault(page);
    assert_eq!((CALLS.load(SeqCst), SEEN.load(SeqCst)), (1, libc::SIGSEGV));
    OPEN_UP.store(0, SeqCst);
    unsafe { libc::raise(libc::SIGBUS) };
    assert_eq!((CALLS.load(SeqCst), SEEN.load(SeqCst)), (2, libc::SIGBUS));
    recovers();
}

#[inline(never)]
fn overflow(n: u64) -> u64 {
    let on_stack = std::hint::black_box([n; 512]);
    if n == u64::MAX { 0 } else { overflow(n + 1) + on_stack[7] }
}

fn scenario(name: &str) {
    match name {
        "earlier simple" => resolved_by_earlier(simple_handler as extern "C" fn(c_int) as usize, 0),
        "earlier siginfo" => {
            resolved_by_earlier(info_handler as extern "C" fn(_, _, _) as usize, libc::SA_SIGINFO | libc::SA_ONSTACK);
        }
        "earlier nesting" => resolved_by_earlier(nesting_handler as extern "C" fn(c_int) as usize, libc::SA_NODEFER),
        "earlier resethand" => {
            set_handler(libc::SIGSEGV, simple_handler as extern "C" fn(c_int) as usize, libc::SA_RESETHAND);
            signal::install().unwrap();
            unsafe { libc::raise(libc::SIGSEGV) };
            assert_eq!(CALLS.load(SeqCst), 1);
            recovers();
            unsafe { libc::raise(libc::SIGSEGV) };
            unreachable!("the second is for the default action");
        }
        "later" => {
            signal::install().unwrap();
            for signal in [libc::SIGSEGV, libc::SIGBUS] {
                OPEN_UP.store(
                    set_handler(signal, later_handler as extern "C" fn(_, _, _) as usize, libc::SA_SIGINFO),
                    SeqCst,
                );
            }
            recovers();
            assert_eq!(CALLS.load(SeqCst), 2);
        }
        "own" => {
            signal::own_handlers().unwrap();
            signal::install().unwrap();
            for signal in [libc::SIGSEGV, libc::SIGBUS] {
                set_handler(signal, vmm_handler as extern "C" fn(_, _, _) as usize, libc::SA_SIGINFO);
            }
            recovers();
            assert_eq!(CALLS.load(SeqCst), 2);
        }
        "too late to own" => {
            signal::install().unwrap();
            signal::install().unwrap();
            assert_eq!(signal::own_handlers(), Err(signal::SignalError::Installed));
        }
        "default segv" | "default bus" | "ignored segv" => {
            let disposition = if name == "ignored segv" { libc::SIG_IGN } else { libc::SIG_DFL };
            set_handler(libc::SIGSEGV, disposition, 0);
            set_handler(libc::SIGBUS, disposition, 0);
            signal::install().unwrap();
            recovers_if_it_can();
            foreign_fault(if name == "default bus" { bus(PAGE) } else { segv(PAGE) });
        }
        "rust segv" => {
            signal::install().unwrap();
            foreign_fault(segv(PAGE));
        }
        "sent to ignored" => {
            set_handler(libc::SIGBUS, libc::SIG_IGN, 0);
            signal::install().unwrap();
            unsafe { libc::raise(libc::SIGBUS) };
            recovers_if_it_can();
        }
        "sent to default" => {
            set_handler(libc::SIGBUS, libc::SIG_DFL, 0);
            signal::install().unwrap();
            unsafe { libc::raise(libc::SIGBUS) };
        }
        "sent to rust's" => {
            // Rust's handler resets the disposition to the default and returns: recovery has to survive that.
            signal::install().unwrap();
            unsafe { libc::raise(libc::SIGBUS) };
            unsafe { libc::raise(libc::SIGSEGV) };
            recovers_if_it_can();
        }
        "sent during accesses" => {
            for signal in [libc::SIGBUS, libc::SIGSEGV] {
                set_handler(signal, simple_handler as extern "C" fn(c_int) as usize, 0);
            }
            signal::install().unwrap();
            let page = good(PAGE);
            let thread = unsafe { libc::pthread_self() };
            let sender = std::thread::spawn(move || {
                for _ in 0..20_000 {
                    unsafe { libc::pthread_kill(thread, libc::SIGBUS) };
                }
            });
            while !sender.is_finished() {
                for _ in 0..1000 {
                    assert_eq!(unsafe { raw::load(page.cast::<u32>()) }, Ok(0), "a sent signal looked like a fault");
                    assert_eq!(unsafe { raw::store(page.cast::<u64>(), 0) }, Ok(()));
                }
            }
            assert!(CALLS.load(SeqCst) > 0);
        }
        "buffer read" => {
            signal::install().unwrap();
            unsafe { raw::copy_in(good(PAGE), segv(PAGE), 300) };
        }
        "buffer write" => {
            signal::install().unwrap();
            unsafe { raw::copy_out(bus(PAGE), good(PAGE), 300) };
        }
        "stack overflow" => {
            signal::install().unwrap();
            recovers_if_it_can();
            println!("{}", overflow(0));
        }
        "no alternate stack" | "alternate stack" => {
            signal::install().unwrap();
            let mut stack: libc::stack_t = unsafe { std::mem::zeroed() };
            if name == "alternate stack" {
                stack.ss_size = 1 << 16;
                stack.ss_sp = good(1 << 16).cast();
            } else {
                stack.ss_flags = libc::SS_DISABLE;
            }
            assert_eq!(unsafe { libc::sigaltstack(&raw const stack, null_mut()) }, 0);
            recovers();
            if name == "alternate stack" {
                // The handler's frame, and nothing else, was on it.
                let used = unsafe { std::slice::from_raw_parts(stack.ss_sp.cast::<u8>(), stack.ss_size) };
                assert!(used.iter().any(|byte| *byte != 0));
            }
        }
        "displaced" => {
            // Neither knows anything of the crate, and the first revoked access would end the process.
            for disposition in [libc::SIG_DFL, libc::SIG_IGN, vmm_without_us as extern "C" fn(c_int) as usize] {
                for region in [true, false] {
                    let disabled = crate::Region::builder(PAGE).build().unwrap();
                    for signal in [libc::SIGBUS, libc::SIGSEGV] {
                        set_handler(signal, disposition, 0);
                    }
                    match region {
                        true => drop(crate::Region::builder(PAGE).build().unwrap()),
                        false => assert!(disabled.disable().unwrap()),
                    }
                    recovers();
                }
            }
        }
        "displaced, own" => {
            signal::own_handlers().unwrap();
            let region = crate::Region::builder(PAGE).build().unwrap();
            let theirs = vmm_handler as extern "C" fn(_, _, _) as usize;
            for signal in [libc::SIGSEGV, libc::SIGBUS] {
                set_handler(signal, theirs, libc::SA_SIGINFO);
            }
            assert!(region.disable().unwrap());
            assert_eq!(set_handler(libc::SIGBUS, theirs, libc::SA_SIGINFO), theirs, "left alone, as promised");
        }
        "chain in front of a chain" => {
            set_handler(libc::SIGBUS, simple_handler as extern "C" fn(c_int) as usize, 0);
            signal::install().unwrap();
            for round in 1..20 {
                // Each time it displaces the crate's handler, and is displaced.
                let chains = [chain_x as extern "C" fn(_, _, _) as usize, chain_y as extern "C" fn(_, _, _) as usize];
                let which = usize::from(round % 3 == 0);
                let over = set_handler(libc::SIGBUS, chains[which], libc::SA_SIGINFO);
                OVER[which].store(over, SeqCst);
                for in_front in [false, true] {
                    if in_front {
                        signal::install().unwrap();
                    }
                    CALLS.store(0, SeqCst);
                    XY.iter().for_each(|calls| calls.store(0, SeqCst));
                    unsafe { libc::raise(libc::SIGBUS) };
                    assert_eq!(CALLS.load(SeqCst), 1, "the first, round {round} {in_front}");
                    assert_eq!(XY[0].load(SeqCst), 1, "X, round {round} {in_front}");
                    let y = usize::from(round >= 3);
                    assert_eq!(XY[1].load(SeqCst), y, "Y, round {round} {in_front}");
                    recovers();
                }
            }
        }
        "takes itself out and returns" | "takes itself out and raises" => {
            signal::install().unwrap();
            RAISES.store(usize::from(name.ends_with("raises")), SeqCst);
            for _ in 0..9 {
                let out = takes_itself_out as extern "C" fn(_, _, _) as usize;
                unsafe {
                    let mut action: libc::sigaction = std::mem::zeroed();
                    action.sa_sigaction = out;
                    action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
                    assert_eq!(libc::sigaction(libc::SIGSEGV, &raw const action, &raw mut REPLACED), 0);
                }
                signal::install().unwrap();
                recovers();
            }
            foreign_fault(segv(PAGE));
        }
        "masks" => masks(),
        "interrupted" => {
            signal::install().unwrap();
            OPEN_UP.store(bus(PAGE) as usize, SeqCst);
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = accesses as extern "C" fn(c_int) as usize;
            assert_eq!(unsafe { libc::sigaction(libc::SIGPROF, &raw const action, null_mut()) }, 0);
            let thread = unsafe { libc::pthread_self() };
            let sender = std::thread::spawn(move || {
                let since = std::time::Instant::now();
                while CALLS.load(SeqCst) < 2000 && since.elapsed() < std::time::Duration::from_secs(20) {
                    unsafe { libc::pthread_kill(thread, libc::SIGPROF) };
                }
            });
            let (bus, segv) = (bus(PAGE), segv(PAGE));
            while !sender.is_finished() {
                assert_eq!(unsafe { raw::load(bus.cast::<u64>()) }, Err(Faulted));
                assert_eq!(unsafe { raw::store(segv, 1) }, Err(Faulted));
            }
            assert!(CALLS.load(SeqCst) > 100);
        }
        "forked" => {
            signal::install().unwrap();
            let status = match unsafe { libc::fork() } {
                0 => {
                    signal::install().unwrap();
                    recovers();
                    let late = signal::own_handlers() == Err(signal::SignalError::Installed);
                    unsafe { libc::_exit(if late { 7 } else { 8 }) }
                }
                child => {
                    let mut status = 0;
                    unsafe { libc::waitpid(child, &raw mut status, 0) };
                    libc::WEXITSTATUS(status)
                }
            };
            assert_eq!(status, 7);
        }
        "forked, own" => {
            signal::own_handlers().unwrap();
            let status = match unsafe { libc::fork() } {
                0 => {
                    signal::install().unwrap();
                    unsafe { libc::_exit(i32::from(signal::chain::is_in_front(libc::SIGBUS) != Ok(false))) }
                }
                child => {
                    let mut status = 0;
                    unsafe { libc::waitpid(child, &raw mut status, 0) };
                    libc::WEXITSTATUS(status)
                }
            };
            assert_eq!(status, 0, "the promise is the child's too");
        }
        _ => panic!("no scenario {name}"),
    }
    println!("survived");
}

fn recovers_if_it_can() {
    if raw::RECOVERABLE {
        recovers();
    }
}

const SCENARIO: &str = "REVOCABLE_TEST_SCENARIO";

/// Not a test by itself: what `run` starts in another process.
#[test]
fn child() {
    if let Ok(name) = std::env::var(SCENARIO) {
        scenario(&name);
    }
}

fn run(name: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "raw::signal::tests::child", "--nocapture", "--test-threads=1"])
        .env(SCENARIO, name)
        .output()
        .unwrap()
}

fn survives(name: &str) {
    let output = run(name);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains("survived"), "{name}: {output:?}");
}

fn dies_of(name: &str, signal: c_int) -> String {
    let output = run(name);
    assert_eq!(output.status.signal(), Some(signal), "{name}: {output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_earlier_handler_gets_foreign_faults_and_only_those() {
    needs_recovery!();
    survives("earlier simple");
    survives("earlier siginfo");
}

#[test]
fn a_foreign_handler_may_use_the_crate() {
    needs_recovery!();
    survives("earlier nesting");
}

#[test]
fn a_one_shot_handler_is_called_once() {
    needs_recovery!();
    dies_of("earlier resethand", libc::SIGSEGV);
}

#[test]
fn a_later_handler_may_chain_or_ask() {
    needs_recovery!();
    survives("later");
    survives("own");
    survives("too late to own");
}

#[test]
fn a_foreign_fault_dies_of_the_right_signal() {
    dies_of("default segv", libc::SIGSEGV);
    dies_of("default bus", libc::SIGBUS);
    dies_of("ignored segv", libc::SIGSEGV);
    dies_of("rust segv", libc::SIGSEGV);
}

#[test]
fn a_sent_signal_is_foreign() {
    survives("sent to ignored");
    dies_of("sent to default", libc::SIGBUS);
    survives("sent to rust's");
    survives("sent during accesses");
}

#[test]
fn a_fault_in_the_callers_buffer_is_foreign() {
    dies_of("buffer read", libc::SIGSEGV);
    dies_of("buffer write", libc::SIGBUS);
}

#[test]
fn rust_still_reports_a_stack_overflow() {
    let stderr = dies_of("stack overflow", libc::SIGABRT);
    assert!(stderr.contains("has overflowed its stack"), "{stderr}");
}

#[test]
fn recovery_works_with_and_without_an_alternate_stack() {
    needs_recovery!();
    survives("alternate stack");
    survives("no alternate stack");
}

#[test]
fn a_handler_that_was_displaced_is_put_back_in_front() {
    needs_recovery!();
    survives("displaced");
    survives("displaced, own");
}

#[test]
fn handlers_that_chain_are_called_once_each_in_whatever_order_they_came() {
    needs_recovery!();
    survives("chain in front of a chain");
}

#[test]
fn a_handler_that_takes_itself_out_is_out() {
    needs_recovery!();
    dies_of("takes itself out and returns", libc::SIGSEGV);
    dies_of("takes itself out and raises", libc::SIGSEGV);
}

#[test]
fn a_chained_handler_has_the_mask_that_it_has_alone() {
    needs_recovery!();
    survives("masks");
}

#[test]
fn a_forked_child_has_the_handlers_and_the_promise_of_its_parent() {
    needs_recovery!();
    survives("forked");
    survives("forked, own");
}

#[test]
fn looking_whether_the_handlers_are_in_place_takes_less_than_a_microsecond() {
    needs_recovery!();
    let best = (0..50).map(|_| {
        let since = std::time::Instant::now();
        for _ in 0..100 {
            signal::install().unwrap();
        }
        since.elapsed() / 100
    });
    let best = best.min().unwrap();
    eprintln!("looking takes {best:?}");
    assert!(best < std::time::Duration::from_micros(1), "{best:?}");
}

#[test]
fn a_handler_that_uses_the_crate_may_come_at_any_time() {
    needs_recovery!();
    survives("interrupted");
}
