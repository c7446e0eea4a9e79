//! Faults, and the monitor that resolves them.

use super::{Rig, SECRET, calls_of, failing_once, keep_shared_things, small};
use crate::one_at_a_time;
use crate::support::addr;
use crate::support::matrix::every_case;
use crate::support::{self};
use crate::support::{eventually, raw};
use nix::errno::Errno;
use revocable_mmio::{Region, inject};
use std::thread;

#[test]
fn faults_whose_calls_fail_are_answered_by_the_next_try() {
    let _one = one_at_a_time();
    let _kept = keep_shared_things();
    every_case(|case| {
        if !small(case) {
            return;
        }
        let touch = |rig: &Rig| {
            rig.region.disable().expect("it revokes");
            rig.region.enable().expect("it comes back");
        };
        let rig = Rig::new(case);
        touch(&rig);
        let calls = calls_of(|| assert_eq!(raw::load64(addr(&rig.views[0])), Ok(SECRET)));
        for (call, skip, errno) in failing_once(calls) {
            let what = format!("{case} {call} #{skip} {errno:?}");
            touch(&rig);
            inject::fail(call, skip, 1, errno);
            let at = addr(&rig.views[0]);
            let load = thread::spawn(move || raw::load64(at));
            eventually(&format!("{what}: the load ends"), || load.is_finished());
            inject::clear();
            assert_eq!(load.join().expect("no panic"), Ok(SECRET), "{what}");
            rig.assert_sound(&what);
        }
    });
}

#[test]
fn interrupted_reading_does_not_end_the_monitor() {
    let _one = one_at_a_time();
    let _kept = keep_shared_things();
    let Ok(region) = Region::builder(1 << 20).strategy(revocable_mmio::Strategy::Zap).build() else {
        return support::skip("Zap is not possible", support::at_its_best());
    };
    let mapping = region.map(revocable_mmio::MapOptions::new()).expect("it maps");
    for errno in [Errno::EINTR, Errno::EAGAIN] {
        for _ in 0..20 {
            region.disable().expect("it revokes");
            region.enable().expect("it comes back");
            inject::fail("read(userfaultfd)", 0, 3, errno);
            assert_eq!(raw::load64(addr(&mapping)), Ok(0), "{errno:?}");
            inject::clear();
        }
    }
}
