//! Every system call that mapping, disabling, enabling, resetting, unmapping and fault handling make fails in turn,
//! with each errno it plausibly has: after that G1 and G2 hold, the error says what failed, the next try works,
//! nothing leaks. Needs `--cfg revocable_inject`.
#![cfg(revocable_inject)]

use crate::support::addr;
use crate::support::count::Held;
use crate::support::matrix::{Case, Memory, every_case};
use crate::support::{self, forking};
use crate::support::{eventually, raw};
use nix::errno::Errno;
use parking_lot::{Mutex, MutexGuard};
use revocable_mmio::{Mapping, OnDisabled, Prot, ProtectError, Region, RevokeError, Strategy, inject};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::thread;
use std::time::Duration;

/// With all the errnos that a call plausibly has.
const ALL: usize = usize::MAX;
const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;

/// Injection is the process's: one test at a time.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    support::start();
    ONE.lock()
}

fn plausible(call: &str) -> &'static [Errno] {
    match call {
        "mmap" | "mremap" | "mprotect" | "munmap" => &[Errno::ENOMEM, Errno::EAGAIN],
        "madvise" => &[Errno::ENOMEM, Errno::EINVAL, Errno::EAGAIN],
        "memfd_create" | "userfaultfd" | "open(/dev/userfaultfd)" => &[Errno::EMFILE, Errno::ENOMEM, Errno::EPERM],
        "UFFDIO_REGISTER" => &[Errno::ENOMEM, Errno::EINVAL, Errno::EBUSY, Errno::EBADF],
        "UFFDIO_UNREGISTER" => &[Errno::ENOMEM, Errno::EBADF],
        "UFFDIO_CONTINUE" => &[Errno::EAGAIN, Errno::EEXIST, Errno::ENOENT, Errno::ENOMEM, Errno::EFAULT, Errno::EIO],
        "UFFDIO_WAKE" | "UFFDIO_API" => &[Errno::EINVAL],
        _ => &[Errno::ENOMEM, Errno::EINVAL],
    }
}

/// The calls that `verb` makes: each name with how many of them.
fn calls_of(verb: impl FnOnce()) -> BTreeMap<&'static str, usize> {
    inject::take_seen();
    verb();
    let mut calls = BTreeMap::new();
    for call in inject::take_seen() {
        // The monitor's reading goes on all the time, and has a test of its own.
        if call != "read(userfaultfd)" {
            *calls.entry(call).or_insert(0) += 1;
        }
    }
    calls
}

/// A region with two mappings, all pages touched.
struct Rig {
    region: Region,
    views: [Mapping; 2],
}

impl Rig {
    fn new(case: &Case) -> Self {
        let region = case.region(2);
        let views = [case.map(&region), case.map(&region)];
        let rig = Self { region, views };
        for view in &rig.views {
            for at in [0, case.page()] {
                view.write(at, SECRET).expect("enabled");
            }
        }
        rig
    }

    /// G1: no raw load reaches the memory, and none waits for ever. By a thread, because it may wait.
    fn assert_unreachable(&self, what: &impl Display) {
        for view in &self.views {
            for at in [addr(view), addr(view) + self.region.page_size()] {
                let load = thread::spawn(move || raw::load64(at));
                for _ in 0..3 {
                    thread::sleep(Duration::from_micros(300));
                    if load.is_finished() {
                        break;
                    }
                }
                if load.is_finished() {
                    let got = load.join().expect("no panic");
                    assert_ne!(got, Ok(SECRET), "{what}: G1 is broken");
                }
            }
        }
    }

    /// G2, through everything: accessors and raw pointers, both mappings.
    fn assert_reachable(&self, what: &impl Display) {
        for view in &self.views {
            for at in [0, self.region.page_size()] {
                assert_eq!(view.read::<u64>(at), Ok(SECRET), "{what}: accessor");
                assert_eq!(raw::load64(addr(view) + at), Ok(SECRET), "{what}: raw load");
            }
        }
    }

    /// Whatever the state is by now: it is told right, and both verbs work again.
    fn assert_sound(&self, what: &impl Display) {
        if self.region.is_enabled() {
            self.assert_reachable(what);
        } else {
            self.assert_unreachable(what);
        }
        self.region.disable().unwrap_or_else(|e| panic!("{what}: the next disable: {e}"));
        self.assert_unreachable(what);
        self.region.enable().unwrap_or_else(|e| panic!("{what}: the next enable: {e}"));
        self.assert_reachable(what);
        // A second round: nothing of the failure is left.
        self.region.disable().unwrap_or_else(|e| panic!("{what}: the second disable: {e}"));
        self.assert_unreachable(what);
        self.region.enable().unwrap_or_else(|e| panic!("{what}: the second enable: {e}"));
        self.assert_reachable(what);
    }
}

fn says_what_failed(e: &RevokeError, call: &str, errno: Errno, what: &impl Display) {
    let text = e.to_string();
    assert!(text.contains(&format!("{errno:?}")), "{what}: {call} is not told: {text}");
}

/// Lets each call of `verb` fail in turn: alone, and with all that follow; then every call at once from there on.
fn each_failure(
    case: &Case,
    errnos: usize,
    prepare: impl Fn(&Rig),
    verb: impl Fn(&Rig) -> Result<bool, RevokeError>,
    check: impl Fn(&Rig, &Result<bool, RevokeError>, &str),
) {
    let _kept = keep_shared_things();
    let before = Held::now();
    let rig = Rig::new(case);
    prepare(&rig);
    let calls = calls_of(|| drop(verb(&rig)));
    drop(rig);
    let total: usize = calls.values().sum();
    let mut plans: Vec<(&'static str, usize, usize, Errno)> = Vec::new();
    for (call, count) in &calls {
        for skip in 0..*count {
            for errno in plausible(call).iter().take(errnos) {
                plans.push((call, skip, 1, *errno));
                plans.push((call, skip, 1000, *errno));
            }
        }
    }
    plans.extend((0..total).map(|skip| (inject::ANY, skip, 1000, Errno::ENOMEM)));
    for (call, skip, times, errno) in plans {
        let what = format!("{case} {call} #{skip} x{times} {errno:?}");
        let rig = Rig::new(case);
        prepare(&rig);
        if std::env::var_os("REVOCABLE_TRACE").is_some() {
            eprintln!("{what}");
        }
        inject::fail(call, skip, times, errno);
        let did = verb(&rig);
        inject::clear();
        if let Err(e) = &did {
            says_what_failed(e, call, errno, &what);
        }
        check(&rig, &did, &what);
        rig.assert_sound(&what);
        drop(rig);
        // What could not be unmapped is, as soon as something else is mapped.
        drop(case.map(&case.region(1)));
        let left = format!("{:?} {}", Held::now(), support::count::fds());
        eventually(&format!("{what}: nothing is left of it: {before:?} {left}"), || {
            let now = Held::now();
            now.fds <= before.fds && now.mappings <= before.mappings && now.threads <= before.threads
        });
    }
}

/// What is held at the first use and kept: the refuser, the shared monitor and its thread, where faults wait and the threads of
/// that.
fn keep_shared_things() -> impl Sized {
    let region = Region::builder(4096).build().expect("it builds");
    let mapping = region.map(revocable_mmio::MapOptions::new()).expect("it maps");
    if let Ok(zapped) = Region::builder(4096).strategy(revocable_mmio::Strategy::Zap).build() {
        drop(zapped.map(revocable_mmio::MapOptions::new().accessors_only()).expect("it maps"));
    }
    if let Ok(waits) = region.map(revocable_mmio::MapOptions::new().on_disabled(OnDisabled::Block)) {
        region.reset(|_| ()).expect("it resets");
        region.disable().expect("it revokes");
        region.enable().expect("it comes back");
        drop(waits);
    }
    (region, mapping)
}

fn small(case: &Case) -> bool {
    case.memory == Memory::Memfd || (case.memory == Memory::Device && case.policy != OnDisabled::AllOnes)
}

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
                    // If nothing works any more, not even taking back what came back, then it is called enabled.
                    let nothing_works = what.contains(inject::ANY);
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

/// Several parts, each covered and mapped by itself.
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

/// Rights that could not be changed are as before, in every state.
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
            for (call, count) in calls {
                for (skip, errno) in (0..count).flat_map(|skip| plausible(call).iter().map(move |e| (skip, *e))) {
                    let what = format!("{case} enabled: {enabled} {call} #{skip} {errno:?}");
                    inject::fail(call, skip, 1, errno);
                    let did = protect();
                    inject::clear();
                    // What is put away is not missed.
                    match did {
                        Err(ProtectError::Sys(e)) => assert_eq!((e.call, e.errno), (call, errno), "{what}"),
                        Ok(()) => rig.views[0].protect(0..page, Prot::ReadWrite).expect("as many as it had"),
                        other => panic!("{what}: {other:?}"),
                    }
                }
            }
            rig.assert_sound(case);
        }
    });
}

/// The descriptors of userfaultfds and of what covers are made of are lost: other code in the process has closed them.
fn lose_what_covers_are_made_of() {
    let entries = std::fs::read_dir("/proc/self/fd").expect("the process's descriptors").flatten();
    for entry in entries {
        let name = std::fs::read_link(entry.path()).unwrap_or_default().to_string_lossy().into_owned();
        if ["[userfaultfd]", "revocable-empty", "revocable-ones"].iter().any(|its| name.contains(its)) {
            raw::close_behind_its_back(entry.file_name().to_string_lossy().parse().expect("a number"));
        }
    }
}

/// They are made anew by the next revocation, and each call of that may fail.
#[test]
fn what_has_to_be_made_anew_may_fail_too() {
    let _one = one_at_a_time();
    let ended = support::child::alone(|| {
        let seen = std::cell::RefCell::new(std::collections::BTreeSet::new());
        every_case(|case| {
            // A monitor whose userfaultfd is lost serves no more: not Zap. What is made is the same for all others.
            let tried = case.strategy == Strategy::Detach || case.memory == Memory::Device;
            if !small(case) || !tried {
                return;
            }
            let lose = |_: &Rig| lose_what_covers_are_made_of();
            let note = |_: &Rig, _: &Result<bool, RevokeError>, what: &str| {
                seen.borrow_mut().extend(KNOWN.into_iter().filter(|call| what.contains(&format!(" {call} #"))));
            };
            each_failure(case, 1, lose, |rig| rig.region.disable(), note);
            // During a reset everyone waits alike.
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

/// The calls that only making anew makes.
const KNOWN: [&str; 4] = ["memfd_create", "userfaultfd", "clone", "UFFDIO_API"];

#[test]
fn a_map_whose_calls_fail_maps_nothing_and_the_next_works() {
    let _one = one_at_a_time();
    let _kept = keep_shared_things();
    every_case(|case| {
        if !small(case) {
            return;
        }
        for enabled in [true, false] {
            let make = || {
                let region = if enabled { case.builder(2) } else { case.builder(2).disabled() };
                region.build().expect("it builds")
            };
            let region = make();
            let calls = calls_of(|| drop(case.map(&region)));
            for (call, count) in calls {
                for (skip, errno) in (0..count).flat_map(|skip| plausible(call).iter().map(move |e| (skip, *e))) {
                    let what = format!("{case} enabled: {enabled} {call} #{skip} {errno:?}");
                    let before = Held::now();
                    inject::fail(call, skip, 1, errno);
                    let mapped = region.map(case.options());
                    inject::clear();
                    match &mapped {
                        Ok(mapping) if !enabled => assert_ne!(
                            thread::scope(|_| if case.policy == OnDisabled::Block {
                                Ok(0)
                            } else {
                                raw::load64(addr(mapping))
                            }),
                            Ok(SECRET),
                            "{what}"
                        ),
                        Ok(mapping) => assert!(mapping.read::<u64>(0).is_ok(), "{what}"),
                        Err(e) => assert!(e.to_string().contains(&format!("{errno:?}")), "{what}: {e}"),
                    }
                    drop(mapped);
                    assert_eq!(region.stats().mappings, 0, "{what}");
                    let mapping = region.map(case.options()).unwrap_or_else(|e| panic!("{what}: the next: {e}"));
                    drop(mapping);
                    eventually(&format!("{what}: nothing is left of it: {before:?}"), || {
                        let now = Held::now();
                        now.fds <= before.fds && now.mappings <= before.mappings
                    });
                }
            }
        }
    });
}

#[test]
fn a_build_whose_calls_fail_leaves_nothing() {
    let _one = one_at_a_time();
    let _kept = keep_shared_things();
    every_case(|case| {
        if !small(case) {
            return;
        }
        let calls = calls_of(|| drop(case.region(2)));
        for (call, count) in calls {
            for (skip, errno) in (0..count).flat_map(|skip| plausible(call).iter().map(move |e| (skip, *e))) {
                let what = format!("{case} {call} #{skip} {errno:?}");
                let before = Held::now();
                inject::fail(call, skip, 1, errno);
                let built = case.builder(2).build();
                inject::clear();
                if let Err(e) = &built {
                    assert!(e.to_string().contains(&format!("{errno:?}")), "{what}: {e}");
                }
                drop(built);
                eventually(&format!("{what}: nothing is left of it: {before:?}"), || Held::now() == before);
                drop(case.region(2));
            }
        }
    });
}

#[test]
fn an_unmap_that_fails_does_not_leave_the_memory_reachable() {
    let _one = one_at_a_time();
    let _kept = keep_shared_things();
    every_case(|case| {
        if !small(case) {
            return;
        }
        let before = Held::now();
        let region = case.region(2);
        let mapping = case.map(&region);
        mapping.write(0, SECRET).expect("enabled");
        let at = addr(&mapping);
        inject::fail("munmap", 0, 1000, Errno::ENOMEM);
        drop(mapping);
        inject::clear();
        assert_ne!(raw::load64(at), Ok(SECRET), "{case}: dropped, and still reachable");
        region.disable().expect("it revokes");
        assert_ne!(raw::load64(at), Ok(SECRET), "{case}: disabled, and still reachable");
        drop(case.map(&region)); // the next of these calls makes up for the failed one
        drop(region);
        eventually("nothing is left", || Held::now().mappings <= before.mappings);
    });
}

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
        for (call, count) in calls {
            for (skip, errno) in (0..count).flat_map(|skip| plausible(call).iter().map(move |e| (skip, *e))) {
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
        }
    });
}

/// A dropped region has no caller to tell of a failure, so it goes on trying, in the background where threads can be had.
#[test]
fn a_drop_whose_calls_fail_for_a_while_revokes_in_the_end() {
    let _one = one_at_a_time();
    let _kept = keep_shared_things();
    every_case(|case| {
        if !small(case) {
            return;
        }
        // Without threads it does so before the drop returns.
        for fails in [inject::ANY_BUT_CLONE, inject::ANY] {
            let Rig { region, views } = Rig::new(case);
            thread::scope(|scope| {
                inject::fail(fails, 0, usize::MAX, Errno::ENOMEM);
                scope.spawn(|| {
                    // The first tries of the background, too.
                    thread::sleep(Duration::from_millis(30));
                    inject::clear();
                });
                drop(region);
            });
            for view in &views {
                assert_eq!(
                    view.read::<u64>(0).ok(),
                    (case.policy == OnDisabled::AllOnes).then_some(u64::MAX),
                    "{case}"
                );
                for at in [addr(view), addr(view) + case.page()] {
                    let what = format!("{case}: nothing reaches the memory of a dropped region");
                    eventually(&what, || raw::load64(at) != Ok(SECRET));
                }
            }
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

/// In a process that has not built any yet: a forked child.
#[test]
fn a_first_region_whose_calls_fail_is_refused_or_as_good_as_any_and_decides_nothing_for_the_next() {
    support::start();
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
                        panic!("{errno} at call {skip}: {other}; 1: a weaker one, or another reason; 2: the next too")
                    }
                }
            }
            assert!(skip > 5, "only {skip} calls");
        }
    })
    .well();
}
