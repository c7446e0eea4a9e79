//! Other processes of the same user: ptrace, /proc/PID/mem and process_vm_readv reach nothing of a disabled region.

use super::calls::{advise_process, at, cloned, let_others_trace, write_process};
use super::{SECRET, addr, with_secret};
use crate::support::forking;
use crate::support::matrix::{Memory, every_case, every_case_with};
use crate::support::raw::{self, Hit};
use crate::support::{self, a_moment};
use nix::libc;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use revocable_mmio::OnDisabled;
use std::fs;
use std::os::unix::fs::FileExt;

/// The result of a child's process_vm_readv of its parent. 1: the secret; 2: something else; 0: it is refused.
fn spied(parent: i32, base: usize) -> i32 {
    let mut into = [0; 8];
    match raw::read_process(parent, base, &mut into) {
        Ok(8) if into == SECRET.to_le_bytes() => 1,
        Ok(_) => 2,
        Err(_) => 0,
    }
}

#[test]
fn another_process_reads_nothing_of_a_disabled_region() {
    support::start();
    every_case_with(&[OnDisabled::Sigbus, OnDisabled::AllOnes], |case| {
        let (region, _mapping, base) = with_secret(case);
        let me = nix::unistd::getpid().as_raw();
        let spy = || spied(me, base);
        let ones = case.policy == OnDisabled::AllOnes;
        region.disable().expect("it revokes");
        assert_eq!(forking::exit_code(spy), if ones { 2 } else { 0 }, "{case}: process_vm_readv");
        let memory = fs::File::open("/proc/self/mem").expect("our own memory");
        let mut into = [0; 8];
        let read = memory.read_at(&mut into, base as u64);
        assert!(read.is_err() || (ones && into == [0xff; 8]), "{case}: /proc/self/mem: {read:?} {into:?}");
        region.enable().expect("it comes back");
        if case.memory != Memory::Device && case.kernel_serves() {
            assert_eq!(forking::exit_code(spy), 1, "{case}: enabled, a debugger may look");
        }
    });
}

#[test]
fn another_process_writes_nothing_into_a_disabled_region() {
    support::start();
    every_case_with(&[OnDisabled::Sigbus, OnDisabled::AllOnes], |case| {
        let (region, mapping, base) = with_secret(case);
        let me = nix::unistd::getpid().as_raw();
        // Opened here, because the descriptor gives this process's memory to any process that uses it.
        let memory = fs::File::options().read(true).write(true).open("/proc/self/mem").expect("our own memory");
        let writes: [&dyn Fn() -> bool; 2] = [&|| write_process(me, base, &7_u64.to_le_bytes()).is_ok(), &|| {
            memory.write_at(&7_u64.to_le_bytes(), base as u64).is_ok()
        }];
        for write in writes {
            region.disable().expect("it revokes");
            let code = forking::exit_code(|| i32::from(write()));
            // All-ones drops the store, as if the device were absent.
            assert!(code == 0 || case.policy == OnDisabled::AllOnes, "{case}: {code}");
            assert_eq!(region.owner().read::<u64>(0), Ok(SECRET), "{case}: a store to a disabled region");
            region.enable().expect("it comes back");
            assert_eq!(raw::load64(base), Ok(SECRET), "{case}");
            // A debugger cannot write to a device's mapping.
            if case.memory != Memory::Device && case.kernel_serves() {
                assert_eq!(forking::exit_code(|| i32::from(write())), 1, "{case}: enabled, a debugger may write");
                assert_eq!(region.owner().read::<u64>(0), Ok(7), "{case}");
                mapping.write(0, SECRET).expect("enabled");
            }
        }
    });
}

/// Whether a tracer could read a word, found the secret, and could change the word; a bit each.
const PEEKED: i32 = 1;
const PEEKED_SECRET: i32 = 2;
const POKED: i32 = 4;
const NO_TRACER: i32 = 64;

/// Traces a thread of this process from a forked one: PEEKDATA and POKEDATA at an address.
fn trace(thread: Pid, base: usize) -> i32 {
    forking::exit_code(|| {
        if ptrace::seize(thread, ptrace::Options::empty()).is_err() || ptrace::interrupt(thread).is_err() {
            return NO_TRACER;
        }
        while !matches!(waitpid(thread, Some(WaitPidFlag::__WALL)), Ok(WaitStatus::PtraceEvent(..)) | Err(_)) {}
        let peeked = ptrace::read(thread, at(base));
        let poked = ptrace::write(thread, at(base), 7);
        let _ = ptrace::detach(thread, None);
        let secret = peeked.is_ok_and(|word| word.to_ne_bytes() == SECRET.to_ne_bytes());
        (if peeked.is_ok() { PEEKED } else { 0 })
            | (if secret { PEEKED_SECRET } else { 0 })
            | (if poked.is_ok() { POKED } else { 0 })
    })
}

#[test]
fn a_tracer_peeks_and_pokes_nothing_of_a_disabled_region() {
    support::start();
    let_others_trace();
    let (tell, told) = std::sync::mpsc::channel();
    let (end, until) = std::sync::mpsc::channel::<()>();
    let traced = std::thread::spawn(move || {
        tell.send(nix::unistd::gettid()).expect("the test waits");
        let _ = until.recv();
    });
    let thread = told.recv().expect("it tells");
    every_case_with(&[OnDisabled::Sigbus, OnDisabled::AllOnes], |case| {
        let (region, mapping, base) = with_secret(case);
        region.disable().expect("it revokes");
        let seen = trace(thread, base);
        assert_ne!(seen, NO_TRACER, "{case}: a process may trace its own user's");
        let expected = if case.policy == OnDisabled::AllOnes { PEEKED | POKED } else { 0 };
        assert_eq!(seen, expected, "{case}");
        assert_eq!(region.owner().read::<u64>(0), Ok(SECRET), "{case}: a store to a disabled region");
        region.enable().expect("it comes back");
        assert_eq!(mapping.read::<u64>(0), Ok(SECRET), "{case}");
        raw::load64(base).expect("enabled");
        if case.memory != Memory::Device && case.kernel_serves() {
            assert_eq!(trace(thread, base), PEEKED | PEEKED_SECRET | POKED, "{case}: enabled, a debugger may look");
            assert_eq!(region.owner().read::<u64>(0), Ok(7), "{case}");
        }
    });
    drop(end);
    traced.join().expect("it only waits");
}

/// Under Block the kernel's own accesses are refused, also on behalf of another process. During a reset they wait, and
/// can be killed.
#[test]
fn another_process_that_meets_a_blocking_mapping_is_refused_and_waits_for_a_reset() {
    support::start();
    every_case_with(&[OnDisabled::Block], |case| {
        let (region, _mapping, base) = with_secret(case);
        let me = nix::unistd::getpid().as_raw();
        let spy = || spied(me, base);
        region.disable().expect("it revokes");
        assert_eq!(forking::exit_code(spy), 0, "{case}: refused at once");
        region.enable().expect("it comes back");
        let waits = case.kernel_waits();
        let reader = region.reset(|_| {
            let (killed, reader) = (cloned(0, spy), cloned(0, spy));
            a_moment();
            for process in [&killed, &reader] {
                assert!(!waits || !process.has_ended(), "{case}: it was refused, or read during a reset");
            }
            killed.kill();
            let code = killed.wait();
            assert!(code == 128 + libc::SIGKILL || (!waits && code == 0), "{case}: {code}");
            reader
        });
        let code = reader.expect("it resets").wait();
        assert_eq!(code, i32::from(waits), "{case}");
        assert_eq!(raw::load64(base), Ok(SECRET), "{case}");
    });
}

/// No advice that another process may give (process_madvise) brings a page back or loses one.
#[test]
fn another_process_advises_nothing_into_a_disabled_region() {
    support::start();
    every_case(|case| {
        let region = case.region(2);
        let mapping = case.map(&region);
        let (base, len) = (addr(&mapping), mapping.len());
        let me = nix::unistd::getpid().as_raw();
        mapping.write(0, SECRET).expect("enabled");
        let advise = || {
            forking::exit_code(|| {
                let advices = [libc::MADV_WILLNEED, libc::MADV_COLD, libc::MADV_PAGEOUT, raw::MADV_COLLAPSE];
                for advice in advices {
                    let _ = advise_process(me, base, len, advice);
                }
                // The kernel does not accept advice from other processes that would drop or make pages.
                let more = [libc::MADV_DONTNEED, libc::MADV_POPULATE_WRITE, libc::MADV_HUGEPAGE, libc::MADV_DOFORK];
                i32::from(more.into_iter().any(|advice| advise_process(me, base, len, advice).is_ok()))
            })
        };
        assert_eq!(advise(), 0, "{case}");
        assert_eq!(raw::load64(base), Ok(SECRET), "{case}");
        region.disable().expect("it revokes");
        assert_eq!(advise(), 0, "{case}");
        match case.policy {
            OnDisabled::Sigbus => assert_eq!(raw::load64(base), Err(Hit::bus(base)), "{case}"),
            OnDisabled::AllOnes => assert_eq!(raw::load64(base), Ok(u64::MAX), "{case}"),
            _ => assert!(mapping.try_read::<u64>(0).is_err(), "{case}"),
        }
        region.enable().expect("it comes back");
        assert_eq!(raw::load64(base), Ok(SECRET), "{case}");
    });
}
