//! Mapping, disabling, enabling, resetting, unmapping and fault handling make system calls. Each call fails in turn,
//! with each errno that it plausibly has. After that G1 and G2 hold, the error says which call failed, the next try
//! works, and nothing leaks. Needs `--cfg revocable_inject`.

mod anew;
mod changes;
mod faults;
mod holes;
mod making;

use crate::support::addr;
use crate::support::count::Held;
use crate::support::matrix::{Case, Memory};
use crate::support::{self};
use crate::support::{eventually, raw};
use nix::errno::Errno;
use revocable_mmio::{Mapping, OnDisabled, Region, RevokeError, inject};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::thread;
use std::time::Duration;

/// All the errnos that a call plausibly has.
const ALL: usize = usize::MAX;
const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;

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

/// Each of these calls failing once, with each errno that it plausibly has: the call, the number of calls like it
/// before, the errno.
fn failing_once(calls: BTreeMap<&'static str, usize>) -> impl Iterator<Item = (&'static str, usize, Errno)> {
    calls.into_iter().flat_map(|(call, count)| {
        (0..count).flat_map(move |skip| plausible(call).iter().map(move |errno| (call, skip, *errno)))
    })
}

/// The calls that `verb` makes: each name with its count.
fn calls_of(verb: impl FnOnce()) -> BTreeMap<&'static str, usize> {
    inject::take_seen();
    verb();
    let mut calls = BTreeMap::new();
    for call in inject::take_seen() {
        // The monitor reads all the time, and that has a test of its own.
        if call != "read(userfaultfd)" {
            *calls.entry(call).or_insert(0) += 1;
        }
    }
    calls
}

/// A region with two mappings, whose pages have all been touched.
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

    /// G1: no raw load reaches the memory, and none waits for ever. In a thread, because it may wait.
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

    /// G2 through accessors and raw pointers, by both mappings.
    fn assert_reachable(&self, what: &impl Display) {
        for view in &self.views {
            for at in [0, self.region.page_size()] {
                assert_eq!(view.read::<u64>(at), Ok(SECRET), "{what}: accessor");
                assert_eq!(raw::load64(addr(view) + at), Ok(SECRET), "{what}: raw load");
            }
        }
    }

    /// The region reports its state truly, and both verbs work again.
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
        // A second round, since nothing of the failure may be left.
        self.region.disable().unwrap_or_else(|e| panic!("{what}: the second disable: {e}"));
        self.assert_unreachable(what);
        self.region.enable().unwrap_or_else(|e| panic!("{what}: the second enable: {e}"));
        self.assert_reachable(what);
    }
}

fn says_what_failed(e: &RevokeError, call: &str, errno: Errno, what: &impl Display) {
    let text = e.to_string();
    assert!(text.contains(&format!("{errno:?}")), "{what}: {call} is not named: {text}");
}

/// Lets each call of `verb` fail in turn, alone and together with all later calls of its name. Then lets all calls fail
/// from each one on.
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
        // A range that could not be unmapped is unmapped when something else is mapped.
        drop(case.map(&case.region(1)));
        let left = format!("{:?} {}", Held::now(), support::count::fds());
        eventually(&format!("{what}: nothing is left of it: {before:?} {left}"), || {
            let now = Held::now();
            now.fds <= before.fds && now.mappings <= before.mappings && now.threads <= before.threads
        });
    }
}

/// Objects that are made at the first use and kept: the refuser, the shared monitor with its thread, and the waiting
/// rooms with theirs.
fn keep_shared_things() -> impl Sized {
    let region = Region::builder(4096).build().expect("it builds");
    let mapping = region.map(revocable_mmio::MapOptions::new()).expect("it maps");
    if let Ok(zapped) = Region::builder(4096).strategy(revocable_mmio::Strategy::Zap).build() {
        drop(zapped.map(revocable_mmio::MapOptions::new().accessors_only()).expect("it maps"));
    }
    // The pipes of windows.
    drop(Region::builder(4096).strategy(revocable_mmio::Strategy::Withdraw).build().expect("it builds"));
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
