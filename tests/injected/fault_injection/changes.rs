//! Changes of state and of rights, with failing calls.

use super::{ALL, Rig, calls_of, each_failure, failing_once, keep_shared_things, small};
use crate::one_at_a_time;
use crate::support::matrix::{Memory, every_case};
use revocable_mmio::{OnDisabled, Prot, ProtectError, Strategy, inject};

#[test]
fn a_disable_whose_calls_fail_revokes_or_says_that_it_did_not() {
    let _one = one_at_a_time();
    let _kept = keep_shared_things();
    every_case(|case| {
        if small(case) {
            each_failure(
                case,
                ALL,
                |_| (),
                |rig| rig.region.disable(),
                |rig, did, what| match did {
                    Ok(changed) => {
                        assert!(*changed && !rig.region.is_enabled(), "{what}");
                        rig.assert_unreachable(&what);
                    }
                    Err(_) => assert!(rig.region.is_enabled(), "{what}: an error, and the state is as before"),
                },
            );
        }
    });
}

#[test]
fn an_enable_whose_calls_fail_restores_or_stays_revoked() {
    let _one = one_at_a_time();
    let _kept = keep_shared_things();
    every_case(|case| {
        if small(case) {
            let disable = |rig: &Rig| assert!(rig.region.disable().expect("it revokes"));
            each_failure(
                case,
                ALL,
                disable,
                |rig| rig.region.enable(),
                |rig, did, what| {
                    // If no call works any more, what came back cannot be revoked again, and the region is called
                    // enabled.
                    // Withdraw needs its files for that too.
                    let lasting = case.strategy == Strategy::Withdraw && what.contains(" x1000 ");
                    let nothing_works = what.contains(inject::ANY) || lasting;
                    assert!(rig.region.is_enabled() == did.is_ok() || nothing_works, "{what}");
                },
            );
        }
    });
}

#[test]
fn a_reset_whose_calls_fail_leaves_a_state_that_is_told_right() {
    let _one = one_at_a_time();
    let _kept = keep_shared_things();
    every_case(|case| {
        if small(case) {
            each_failure(case, ALL, |_| (), |rig| rig.region.reset(|_| true), |_, _, _| ());
        }
    });
}

/// A mapping of several parts, each of which is covered and mapped by itself.
#[test]
fn a_split_mapping_whose_calls_fail_is_revoked_or_told() {
    let _one = one_at_a_time();
    let _kept = keep_shared_things();
    let split = |rig: &Rig| {
        let page = rig.region.page_size();
        for view in &rig.views {
            view.protect(page..2 * page, Prot::Read).expect("fewer rights");
        }
    };
    every_case(|case| {
        if case.memory == Memory::Memfd && case.policy != OnDisabled::AllOnes {
            each_failure(case, 1, split, |rig| rig.region.disable(), |_, _, _| ());
            let disabled = |rig: &Rig| {
                split(rig);
                rig.region.disable().expect("it revokes");
            };
            each_failure(case, 1, disabled, |rig| rig.region.enable(), |_, _, _| ());
        }
    });
}

/// If rights cannot be changed, they stay as before, in every state.
#[test]
fn a_protect_whose_calls_fail_changes_nothing() {
    let _one = one_at_a_time();
    let _kept = keep_shared_things();
    every_case(|case| {
        if !small(case) {
            return;
        }
        for enabled in [true, false] {
            let rig = Rig::new(case);
            let page = rig.region.page_size();
            if !enabled {
                rig.region.disable().expect("it revokes");
            }
            let protect = || rig.views[0].protect(0..page, Prot::None);
            let calls = calls_of(|| protect().expect("fewer rights"));
            rig.views[0].protect(0..page, Prot::ReadWrite).expect("as many as it had");
            for (call, skip, errno) in failing_once(calls) {
                let what = format!("{case} enabled: {enabled} {call} #{skip} {errno:?}");
                inject::fail(call, skip, 1, errno);
                let did = protect();
                inject::clear();
                // A failed call that only cleans up is no error.
                match did {
                    Err(ProtectError::Sys(e)) => assert_eq!((e.call, e.errno), (call, errno), "{what}"),
                    Ok(()) => rig.views[0].protect(0..page, Prot::ReadWrite).expect("as many as it had"),
                    other => panic!("{what}: {other:?}"),
                }
            }
            rig.assert_sound(case);
        }
    });
}
