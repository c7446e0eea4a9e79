//! Objects that a process makes once: with its first region, and again when they were lost.

use super::{Rig, each_failure, small};
use crate::one_at_a_time;
use crate::support::matrix::{Memory, every_case};
use crate::support::raw;
use crate::support::{self, forking};
use nix::errno::Errno;
use revocable_mmio::{OnDisabled, Region, RevokeError, Strategy, inject};

/// Closes the descriptors of userfaultfds and of the files that covers are made of, as other code in the process may.
fn lose_what_covers_are_made_of() {
    let entries = std::fs::read_dir("/proc/self/fd").expect("the process's descriptors").flatten();
    for entry in entries {
        let name = std::fs::read_link(entry.path()).unwrap_or_default().to_string_lossy().into_owned();
        if ["[userfaultfd]", "revocable-empty", "revocable-ones"].iter().any(|its| name.contains(its)) {
            raw::close_behind_its_back(entry.file_name().to_string_lossy().parse().expect("a number"));
        }
    }
}

/// The next revocation makes them anew, and each call of that may fail.
#[test]
fn what_has_to_be_made_anew_may_fail_too() {
    let _one = one_at_a_time();
    let ended = support::child::alone(|| {
        let seen = std::cell::RefCell::new(std::collections::BTreeSet::new());
        every_case(|case| {
            // Not Zap, because a monitor whose userfaultfd is lost serves no more. The others all make the same
            // objects.
            let tried = case.strategy == Strategy::Detach || case.memory == Memory::Device;
            if !small(case) || !tried {
                return;
            }
            let lose = |_: &Rig| lose_what_covers_are_made_of();
            let note = |_: &Rig, _: &Result<bool, RevokeError>, what: &str| {
                seen.borrow_mut().extend(KNOWN.into_iter().filter(|call| what.contains(&format!(" {call} #"))));
            };
            each_failure(case, 1, lose, |rig| rig.region.disable(), note);
            // During a reset accesses wait alike under every policy.
            if case.policy == OnDisabled::Sigbus {
                each_failure(case, 1, lose, |rig| rig.region.reset(|_| true), note);
            }
        });
        for call in KNOWN {
            assert!(seen.borrow().contains(&call), "{call} was never made: nothing was tried");
        }
    });
    ended.well();
}

/// The calls that are made only for this.
const KNOWN: [&str; 4] = ["memfd_create", "userfaultfd", "clone", "UFFDIO_API"];

/// In a forked child, which has not built a region yet.
#[test]
fn a_first_region_whose_calls_fail_is_refused_or_as_good_as_any_and_decides_nothing_for_the_next() {
    let _one = one_at_a_time();
    use revocable_mmio::{BuildError, Feature, Strategy, Support};
    support::child::alone(|| {
        support::start();
        let possible = Support::probe();
        require!(possible.has(Feature::DONTUNMAP | Feature::MINOR_SHMEM), "an older kernel");
        let first = |skip, errno| {
            inject::fail(inject::ANY, skip, 1, errno);
            let first = Region::builder(1 << 16).build();
            let hit = inject::clear();
            let right = match first {
                Ok(region) => region.strategy() == Strategy::Detach,
                Err(BuildError::Strategy { source, .. }) => source.is_some_and(|e| e.errno == errno),
                Err(e) => e.to_string().contains(errno.desc()),
            };
            let next = Region::builder(1 << 16).build().map(|region| region.strategy());
            match (hit, right, next.is_ok_and(|strategy| strategy == Strategy::Detach)) {
                (_, false, _) => 1,
                (_, _, false) => 2,
                (true, true, true) => 3,
                (false, true, true) => 4,
            }
        };
        for errno in [Errno::EMFILE, Errno::ENOMEM, Errno::EINTR] {
            let mut skip = 0;
            loop {
                match forking::exit_code(|| first(skip, errno)) {
                    3 => skip += 1,
                    4 => break,
                    other => {
                        panic!("{errno} at call {skip}: {other}; 1: weaker, or another reason; 2: the next region too")
                    }
                }
            }
            assert!(skip > 5, "only {skip} calls");
        }
    })
    .well();
}
