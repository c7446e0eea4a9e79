//! The scenarios of the signal tests' processes, by name.

use super::handlers::*;
use super::{chains, masks, stack};
use crate::raw::test_memory::{PAGE, bus, good, segv};
use crate::raw::{self, Faulted, signal};
use nix::libc::{self, c_int};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, gettid};
use std::ptr::null_mut;
use std::sync::atomic::Ordering::SeqCst;

/// Sends a signal to a thread of this process. (A `pthread_t` is a pointer in some C libraries, and stays in its thread.)
fn send(to: Pid, signal: c_int) {
    // SAFETY: takes numbers.
    let rc = unsafe { libc::syscall(libc::SYS_tgkill, getpid().as_raw(), to.as_raw(), signal) };
    assert_eq!(rc, 0);
}

/// Runs a scenario by its name; prints "survived" at its end.
pub(super) fn scenario(name: &str) {
    match name {
        "earlier simple" => resolved_by_earlier(simple_handler as extern "C" fn(c_int) as usize, 0),
        "earlier siginfo" => {
            resolved_by_earlier(info_handler as extern "C" fn(_, _, _) as usize, libc::SA_SIGINFO | libc::SA_ONSTACK);
        }
        "earlier nesting" => resolved_by_earlier(nesting_handler as extern "C" fn(c_int) as usize, libc::SA_NODEFER),
        "earlier resethand" => {
            set_handler(libc::SIGSEGV, simple_handler as extern "C" fn(c_int) as usize, libc::SA_RESETHAND);
            signal::install().unwrap();
            raise(libc::SIGSEGV);
            assert_eq!(CALLS.load(SeqCst), 1);
            recovers();
            raise(libc::SIGSEGV);
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
        #[cfg(all(target_arch = "x86_64", not(revocable_portable)))]
        "copies of devices" => super::media::copies_of_devices(),
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
            raise(libc::SIGBUS);
            recovers_if_it_can();
        }
        "sent to default" => {
            set_handler(libc::SIGBUS, libc::SIG_DFL, 0);
            signal::install().unwrap();
            raise(libc::SIGBUS);
        }
        "sent to rust's" => {
            // Rust's handler resets the disposition to the default and returns: recovery has to survive that.
            signal::install().unwrap();
            raise(libc::SIGBUS);
            raise(libc::SIGSEGV);
            recovers_if_it_can();
        }
        "sent during accesses" => {
            for signal in [libc::SIGBUS, libc::SIGSEGV] {
                set_handler(signal, simple_handler as extern "C" fn(c_int) as usize, 0);
            }
            signal::install().unwrap();
            let page = good(PAGE);
            let thread = gettid();
            let sender = std::thread::spawn(move || {
                for _ in 0..20_000 {
                    send(thread, libc::SIGBUS);
                }
            });
            while !sender.is_finished() {
                for _ in 0..1000 {
                    // SAFETY: `raw`'s contract: the start of a page that only this scenario knows.
                    assert_eq!(unsafe { raw::load(page.cast::<u32>()) }, Ok(0), "a sent signal looked like a fault");
                    // SAFETY: `raw`'s contract: the start of a page that only this scenario knows.
                    assert_eq!(unsafe { raw::store(page.cast::<u64>(), 0) }, Ok(()));
                }
            }
            assert!(CALLS.load(SeqCst) > 0);
        }
        "buffer read" => {
            signal::install().unwrap();
            // SAFETY: the region's side is memory of the scenario's. The caller's side is not readable, which ends the process.
            unsafe { raw::copy_in(good(PAGE), segv(PAGE), 300, raw::Medium::Memory) };
        }
        "buffer write" => {
            signal::install().unwrap();
            // SAFETY: the region's side is memory of the scenario's. The caller's side is not writable, which ends the process.
            unsafe { raw::copy_out(bus(PAGE), good(PAGE), 300, raw::Medium::Memory) };
        }
        "stack overflow" => {
            signal::install().unwrap();
            recovers_if_it_can();
            println!("{}", overflow(0));
        }
        "no alternate stack" | "alternate stack" => {
            signal::install().unwrap();
            // SAFETY: all zeroes is a valid stack_t.
            let mut stack: libc::stack_t = unsafe { std::mem::zeroed() };
            if name == "alternate stack" {
                stack.ss_size = 1 << 16;
                stack.ss_sp = good(1 << 16).cast();
            } else {
                stack.ss_flags = libc::SS_DISABLE;
            }
            // SAFETY: none, or memory that nothing else uses; no handler of this thread runs now.
            assert_eq!(unsafe { libc::sigaltstack(&raw const stack, null_mut()) }, 0);
            recovers();
            if name == "alternate stack" {
                // The handler's frame, and nothing else, was on it.
                // SAFETY: the memory lives, all of it initialised, and no handler of this thread runs now.
                let used = unsafe { std::slice::from_raw_parts(stack.ss_sp.cast::<u8>(), stack.ss_size) };
                assert!(used.iter().any(|byte| *byte != 0));
            }
        }
        "displaced" => chains::displaced(),
        "displaced, own" => chains::displaced_own(),
        "chain in front of a chain" => chains::in_front_of_a_chain(),
        "takes itself out and returns" => chains::takes_itself_out_of_the_chain(false),
        "takes itself out and raises" => chains::takes_itself_out_of_the_chain(true),
        "masks" => masks::masks(),
        "stack" => stack::takes_little(),
        "interrupted" => {
            signal::install().unwrap();
            OPEN_UP.store(bus(PAGE) as usize, SeqCst);
            set_handler(libc::SIGPROF, accesses as extern "C" fn(c_int) as usize, 0);
            let thread = gettid();
            let sender = std::thread::spawn(move || {
                let since = std::time::Instant::now();
                while CALLS.load(SeqCst) < 2000 && since.elapsed() < std::time::Duration::from_secs(20) {
                    send(thread, libc::SIGPROF);
                }
            });
            let (bus, segv) = (bus(PAGE), segv(PAGE));
            while !sender.is_finished() {
                // SAFETY: `raw`'s contract: the start of a page that only this scenario knows.
                assert_eq!(unsafe { raw::load(bus.cast::<u64>()) }, Err(Faulted));
                // SAFETY: `raw`'s contract: the start of a page that only this scenario knows.
                assert_eq!(unsafe { raw::store(segv, 1) }, Err(Faulted));
            }
            assert!(CALLS.load(SeqCst) > 100);
        }
        "forked" => {
            signal::install().unwrap();
            let status = in_a_child(|| {
                signal::install().unwrap();
                recovers();
                if signal::own_handlers() == Err(signal::SignalError::Installed) { 7 } else { 8 }
            });
            assert_eq!(status, 7);
        }
        "forked, own" => {
            signal::own_handlers().unwrap();
            let status = in_a_child(|| {
                signal::install().unwrap();
                i32::from(signal::chain::is_in_front(libc::SIGBUS) != Ok(false))
            });
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
    raise(libc::SIGBUS);
    assert_eq!((CALLS.load(SeqCst), SEEN.load(SeqCst)), (2, libc::SIGBUS));
    recovers();
}

#[inline(never)]
fn overflow(n: u64) -> u64 {
    let on_stack = std::hint::black_box([n; 512]);
    if n == u64::MAX { 0 } else { overflow(n + 1) + on_stack[7] }
}

/// Runs `child` in a forked child; returns its exit status.
fn in_a_child(child: impl FnOnce() -> c_int) -> c_int {
    // SAFETY: no other thread holds a lock that the child takes: the harness's, if it has one, waits for this one.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let code = child();
            // SAFETY: ends the process at once, with nothing of the parent's torn down.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
            WaitStatus::Exited(_, code) => code,
            other => panic!("the child did not exit: {other:?}"),
        },
    }
}
