//! Other processes of the same user: what ptrace, /proc/PID/mem and process_vm_readv reach.

use super::{SECRET, addr};
use crate::support;
use crate::support::matrix::{Memory, every_case_with};
use crate::support::raw;
use revocable_mmio::{OnDisabled, Strategy};
use std::fs;
use std::os::unix::fs::FileExt;

#[test]
fn another_process_reads_nothing_of_a_disabled_region() {
    support::start();
    every_case_with(&[OnDisabled::Sigbus, OnDisabled::AllOnes], |case| {
        let region = case.region(2);
        let mapping = case.map(&region);
        let base = addr(&mapping);
        mapping.write(0, SECRET).expect("enabled");
        raw::load64(base).expect("enabled");
        let me = nix::unistd::getpid().as_raw();
        // 1: it read the secret; 2: it read something else; 0: it was refused.
        let spy = || {
            let mut into = [0; 8];
            match raw::read_process(me, base, &mut into) {
                Ok(8) if into == SECRET.to_le_bytes() => 1,
                Ok(_) => 2,
                Err(_) => 0,
            }
        };
        let ones = case.policy == OnDisabled::AllOnes;
        region.disable().expect("it revokes");
        assert_eq!(raw::forked(spy), if ones { 2 } else { 0 }, "{case}: process_vm_readv");
        let memory = fs::File::open("/proc/self/mem").expect("our own memory");
        let mut into = [0; 8];
        let read = memory.read_at(&mut into, base as u64);
        assert!(read.is_err() || (ones && into == [0xff; 8]), "{case}: /proc/self/mem: {read:?} {into:?}");
        region.enable().expect("it comes back");
        // A userfaultfd for user-mode faults only refuses the kernel's.
        if case.memory != Memory::Device && (case.strategy != Strategy::Zap || case.kernel_waits()) {
            assert_eq!(raw::forked(spy), 1, "{case}: enabled, a debugger may look");
        }
    });
}
